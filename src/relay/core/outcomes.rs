//! What becomes of rows: published, tried again, given up, and what is recorded of it.

use std::collections::HashSet;
use std::time::Duration;

use super::reading::Way;
use super::window::{Hold, Item, Suspect};
use super::{
    Command, Core, LANE_RETRY, Lane, MAX_CRASHES, RECORD_MAX, STORE_RETRY, StoreFailed, Time,
};
use crate::error::{Action, Reason, ReasonCode, Verdict};
use crate::event::Record;
use crate::store::{Failure, FailureState};

impl Core {
    /// When failures may be recorded again, after that failed. Otherwise they are recorded as they come.
    pub(super) fn record_due(&self, now: Time) -> Option<Time> {
        (self.recording.is_empty() && self.record_after > now).then_some(self.record_after)
    }

    pub(super) fn next_record(&mut self, now: Time) -> Option<Command> {
        if !self.recording.is_empty() || now < self.record_after {
            return None;
        }
        if self.may_publish(now) {
            let idle = self.lanes.iter().all(|lane| *lane != Lane::Busy);
            let quiet = idle && !self.fetching;
            for seq in self.window.next_suspects(quiet) {
                let Some(item) = self.window.waiting(seq) else {
                    continue;
                };
                let (attempts, crashes) = (item.record.attempts, item.record.crashes + 1);
                let failure = failure(item, FailureState::Suspect, attempts, crashes, None, None);
                self.record(failure);
            }
        }
        if self.to_record.is_empty() {
            return None;
        }
        while self.recording.len() < RECORD_MAX
            && let Some((_, failure)) = self.to_record.pop_first()
        {
            self.recording.push(failure);
        }
        Some(Command::Record(self.recording.clone()))
    }

    /// Takes in one row, with care if its partition was left by a crash.
    ///
    /// Who crashed the last owner is unknown, so after such a takeover rows are recorded as suspects before they go, few
    /// at a time, until enough of them have gone. If that relay dies too, each of those few goes alone, its record
    /// counting that it does: a row alone in flight at [`MAX_CRASHES`] crashes is poison.
    pub(super) fn admit(&mut self, mut item: Item, way: Way) {
        let careful = self.ownership.careful(item.record.hash);
        let seq = item.record.seq;
        // What this relay wrote itself counts a crash that did not come, since it lives.
        if self
            .suspected
            .get(&seq)
            .is_some_and(|(_, written)| *written == item.record.crashes)
        {
            item.record.crashes = item.record.crashes.saturating_sub(1);
        }
        let crashes = item.record.crashes;
        // A row may be dropped and read again. Its record that has not left yet counts no more; one that has left
        // must be there before the row goes: written afterwards, it would outlive the row.
        let is_suspect = |failure: &Failure| failure.state == FailureState::Suspect;
        if self.to_record.get(&seq).is_some_and(is_suspect) {
            self.to_record.remove(&seq);
        }
        let recording = self
            .recording
            .binary_search_by_key(&seq, |failure| failure.seq);
        let under_way = recording.is_ok_and(|index| is_suspect(&self.recording[index]));
        let poison = careful && crashes > MAX_CRASHES;
        if careful && !poison {
            item.suspect = Suspect::Queued;
        } else if poison || under_way {
            item.suspect = Suspect::Recording { alone: false };
        }
        let dead = poison.then(|| {
            let reason = Reason::new(
                ReasonCode::Poison,
                format!(
                    "{MAX_CRASHES} relays in a row died while it alone was in flight; \
                     look for crashes of the relay before you retry it"
                ),
            );
            let (state, attempts) = (FailureState::Dead, item.record.attempts);
            failure(&item, state, attempts, crashes, Some(reason), None)
        });
        let admitted = match way {
            Way::Ordinary => self.window.admit(item),
            Way::Due => self.window.admit_due(item),
            Way::CatchUp => self.window.admit_held(item),
            Way::Retry => self.window.admit_retry(item),
        };
        if !admitted && way == Way::Retry {
            self.reading.refused(seq);
        }
        if admitted && let Some(dead) = dead {
            self.record(dead);
        }
    }

    pub(super) fn published(&mut self, now: Time, lane: usize, results: Vec<(Item, Verdict)>) {
        let answered = results
            .iter()
            .any(|(_, verdict)| *verdict != Verdict::Unavailable);
        self.lanes[lane] = if answered {
            Lane::Idle
        } else {
            Lane::Resting(now + LANE_RETRY)
        };
        for (item, verdict) in results {
            if verdict != Verdict::Unavailable && item.suspect != Suspect::No {
                self.ownership.survived(item.record.hash);
            }
            if let Verdict::Rejected(reason)
            | Verdict::Impossible(reason)
            | Verdict::Postponed { reason, .. } = &verdict
            {
                self.totals.refused[reason.code as usize] += 1;
            }
            match (verdict, item.dead_letter.clone()) {
                (Verdict::Unavailable, _) => {
                    self.totals.unavailable += 1;
                    self.ownership.arrived(item.record.hash);
                    if self.ownership.active(item.record.hash) {
                        self.window.returned(item);
                    } else {
                        self.window.abandoned(&item);
                    }
                }
                (Verdict::Confirmed, None) => {
                    self.totals.published += 1;
                    self.window.finished(&item);
                    self.finish(now, item);
                }
                (Verdict::Confirmed, Some(reason)) => self.give_up(item, reason),
                (Verdict::Rejected(refusal) | Verdict::Impossible(refusal), Some(reason)) => {
                    let detail = format!(
                        "{}; its dead letter was refused too: {refusal}",
                        reason.detail
                    );
                    self.give_up(item, Reason::new(reason.code, detail));
                }
                (Verdict::Postponed { reason, after }, None) => {
                    self.postponed(now, item, reason, after);
                }
                (Verdict::Postponed { reason, after }, Some(_)) => {
                    // The event is given up, and where its dead letter goes is out of order. Later it is tried once
                    // more as what it was, and comes back here.
                    let mut item = item;
                    item.record.attempts = item.record.attempts.saturating_sub(1);
                    self.postponed(now, item, reason, after);
                }
                (Verdict::Impossible(reason), None) => self.exhausted(item, reason, Action::Dead),
                (Verdict::Rejected(reason), None) => self.rejected(now, item, reason),
            }
        }
    }

    pub(super) fn rejected(&mut self, now: Time, mut item: Item, reason: Reason) {
        item.record.attempts += 1;
        // The broker answered, so this row does not crash relays.
        item.record.crashes = 0;
        let jitter = self.jitter();
        match self.config.retry.decide(item.record.attempts, jitter) {
            Action::Retry { after } => self.retry(now, &item, reason, after),
            end => self.exhausted(item, reason, end),
        }
    }

    /// As if it had not been tried, except that this relay has lived through it.
    fn postponed(&mut self, now: Time, mut item: Item, reason: Reason, after: Duration) {
        item.record.crashes = 0;
        self.retry(now, &item, reason, after);
    }

    /// Holds the key, and has the event published again after a while.
    fn retry(&mut self, now: Time, item: &Item, reason: Reason, after: Duration) {
        self.totals.retried += 1;
        let hold = Hold::Failing {
            seq: item.record.seq,
            retry_at: now + after,
        };
        self.window.failed(item, Some(hold));
        self.reading.retry_at(now + after);
        self.record(failure(
            item,
            FailureState::Retrying,
            item.record.attempts,
            item.record.crashes,
            Some(reason),
            Some(after),
        ));
    }

    /// No attempt is left (or none can help).
    pub(super) fn exhausted(&mut self, mut item: Item, reason: Reason, end: Action) {
        if end == Action::Block {
            self.totals.blocked[reason.code as usize] += 1;
            let hold = Hold::Blocked {
                seq: item.record.seq,
            };
            self.window.failed(&item, Some(hold));
            self.record(failure(
                &item,
                FailureState::Blocked,
                item.record.attempts,
                item.record.crashes,
                Some(reason),
                None,
            ));
        } else if self.config.dead_letter && self.ownership.active(item.record.hash) {
            // It goes once more, to the dead-letter destination, before its key goes on.
            item.dead_letter = Some(reason);
            item.retried = item.retried || item.record.attempts > 1;
            self.ownership.arrived(item.record.hash);
            self.window.returned(item);
        } else {
            self.give_up(item, reason);
        }
    }

    pub(super) fn give_up(&mut self, item: Item, reason: Reason) {
        self.totals.dead[reason.code as usize] += 1;
        self.window.failed(&item, None);
        self.record(failure(
            &item,
            FailureState::Dead,
            item.record.attempts.max(1),
            item.record.crashes,
            Some(reason),
            None,
        ));
    }

    pub(super) fn record(&mut self, failure: Failure) {
        if let Some(reload) = &mut self.reload {
            reload.failed_since.push(failure.hash);
        }
        // A record that is there already is of a row that was dropped before it went, and read again: nothing counts
        // on it any more. A row that has gone is not read again before it is recorded.
        self.to_record.insert(failure.seq, failure);
    }

    pub(super) fn recorded(&mut self, now: Time, result: Result<Vec<i64>, StoreFailed>) {
        let failures = std::mem::take(&mut self.recording);
        let Ok(stored) = result else {
            self.record_after = now + STORE_RETRY;
            for failure in failures {
                // What was recorded since is newer.
                self.to_record.entry(failure.seq).or_insert(failure);
            }
            return;
        };
        let stored: HashSet<i64> = stored.into_iter().collect();
        let epoch = self.reading.epoch();
        for failure in failures {
            let ours = stored.contains(&failure.seq);
            if failure.state == FailureState::Suspect {
                self.suspected(&failure, ours);
                continue;
            }
            self.suspected.remove(&failure.seq);
            if self.window.give_up_waiting(failure.seq) {
                // A suspect given up before it went out.
                self.totals.dead[ReasonCode::Poison as usize] += 1;
            } else {
                self.ownership.arrived(failure.hash);
            }
            if ours {
                self.window.settled(failure.seq, epoch);
            } else {
                self.window.disown(failure.seq);
            }
        }
        self.reading.settle_epochs(&mut self.window);
    }

    /// A suspect's record was written, or refused because its partition is no longer ours.
    fn suspected(&mut self, failure: &Failure, ours: bool) {
        if !ours {
            self.window.drop_row(failure.seq);
            return;
        }
        self.suspected
            .insert(failure.seq, (failure.hash, failure.crashes));
        // Read again meanwhile, it may have been found out as poison: that record must be there first.
        if !self.to_record.contains_key(&failure.seq) {
            self.window.cleared(failure.seq, failure.crashes);
        }
    }

    pub(super) fn jitter(&mut self) -> f64 {
        // xorshift64*: good enough to spread retries, and the core stays reproducible by its seed.
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let bits = self.random.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11;
        bits as f64 / (1u64 << 53) as f64
    }
}

fn failure(
    item: &Item,
    state: FailureState,
    attempts: u32,
    crashes: u32,
    reason: Option<Reason>,
    retry_after: Option<Duration>,
) -> Failure {
    let Record {
        seq,
        hash,
        keyed,
        id,
        event_type,
        key,
        ..
    } = &item.record;
    Failure {
        seq: *seq,
        hash: *hash,
        keyed: *keyed,
        event_id: id.clone(),
        event_type: event_type.clone(),
        key: key.clone(),
        state,
        attempts,
        crashes,
        reason,
        retry_after,
    }
}
