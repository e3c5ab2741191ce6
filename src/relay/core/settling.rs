//! Finished rows become settled ones, and what happens if they do not.
//!
//! A settle is not believed: the database says which rows are pending all the same. Such a row was published, so it is not
//! published again: it is recorded as unsettled, its key goes on, and settling it is tried again from time to time, apart from
//! the others. If none can be settled, nothing more is published ([`Trust`]) until one can.

use std::collections::HashMap;
use std::time::Duration;

use super::reading::{Arrivals, Way};
use super::window::Item;
use super::{Command, Core, SETTLE_MAX, SETTLE_WAIT, SETTLE_WORTH, STORE_RETRY, StoreFailed, Time};
use crate::error::{Reason, ReasonCode};
use crate::event::Record;
use crate::store::{Failure, FailureState, Settle, Settled, Unsettled};

/// Rows that may be published and not settled while nothing is known to be settled.
const TRIAL: usize = 20;
/// First and longest wait before a row is settled again.
const AGAIN_FIRST: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(30);
/// Wait between two rows that are tried while none can be settled.
const PROBE_PAUSE: Duration = Duration::from_secs(1);

/// A finished row on its way to the database.
#[derive(Debug, Clone)]
pub(super) struct Finished {
    row: Settled,
    hash: i64,
    keyed: bool,
    event_type: String,
    key: Option<String>,
    /// Has a failure record.
    failed_before: bool,
    /// Was not published: its time had passed.
    expired: bool,
    /// How often it could not be settled.
    tries: u32,
}

impl Finished {
    fn new(record: Record, failed_before: bool) -> Self {
        Self {
            hash: record.hash,
            keyed: record.keyed,
            event_type: record.event_type,
            key: record.key,
            failed_before,
            expired: false,
            tries: if record.published {
                record.attempts.max(1)
            } else {
                0
            },
            row: Settled {
                seq: record.seq,
                id: record.id,
            },
        }
    }
}

/// Whether what is published can be settled.
#[derive(Debug, Default)]
pub(super) struct Trust {
    /// Rows that could not be settled since one could.
    barren: usize,
    /// Some row was settled.
    proven: bool,
    /// An earlier relay could not settle a row.
    doubtful: bool,
    /// Why the last one could not be settled.
    reason: String,
    /// While none can be settled: when the next one is tried.
    probe_at: Time,
}

impl Trust {
    fn is_lost(&self) -> bool {
        self.barren >= TRIAL
    }
}

impl Core {
    /// Why nothing is published, if that is because published rows cannot be settled.
    pub fn unsettled(&self) -> Option<&str> {
        self.trust.is_lost().then_some(self.trust.reason.as_str())
    }

    /// How many rows may be published now, as far as settling is concerned.
    pub(super) fn may_go(&self) -> usize {
        if self.trust.barren == 0 && (self.trust.proven || !self.trust.doubtful) {
            return usize::MAX;
        }
        TRIAL.saturating_sub(self.trust.barren + self.window.busy())
    }

    /// `unsettled`: the database knows of rows that could not be settled.
    pub(super) fn trust_ticked(&mut self, unsettled: bool) {
        if !self.trust.proven {
            self.trust.doubtful = unsettled;
        }
        if self.trust.is_lost() && !unsettled {
            // None is left that could be tried: a new one has to be.
            self.trust.barren = TRIAL - 1;
        }
    }

    /// When rows that failed are to be read.
    pub(super) fn retries_due(&self) -> Option<Time> {
        // Keys returning from the table wait for those that are catching up.
        if !self.may_hold_more() && self.window.has_wanting() && self.room() > 0 {
            return None;
        }
        let at = self.reading.next_retry()?;
        Some(if self.trust.is_lost() {
            at.max(self.trust.probe_at)
        } else {
            at
        })
    }

    /// How many of them.
    pub(super) fn room_of_retries(&self, room: usize) -> usize {
        if self.trust.is_lost() { 1 } else { room }
    }

    /// While none can be settled: a read was to bring one that can be tried.
    pub(super) fn probed(&mut self, now: Time, arrivals: &Arrivals) {
        if arrivals.way != Way::Retry || !self.trust.is_lost() {
            return;
        }
        self.trust.probe_at = now + PROBE_PAUSE;
        if self.room() == 0 && !arrivals.rows.iter().any(|record| record.published) {
            // A main read would notice a different server or table, but there is no room for one.
            self.reading.doubt();
        }
    }

    /// Settling waits a moment for more rows: a commit per event would cost the database more than the
    /// events do. Nobody waits for it but a stop and a hand-over.
    pub(super) fn settle_due(&self) -> Option<Time> {
        let nothing = self.to_settle.is_empty() && self.to_settle_again.is_empty();
        if nothing || !self.settling.is_empty() {
            return None;
        }
        let hurry = self.is_stopping() || self.ownership.is_draining();
        let enough = self.to_settle.len() >= SETTLE_WORTH || self.to_settle.is_empty();
        let patience = if hurry || enough {
            Time::ZERO
        } else {
            self.settle_from + SETTLE_WAIT
        };
        Some(patience.max(self.settle_after))
    }

    /// A row is finished: the database is to know.
    pub(super) fn finish(&mut self, now: Time, item: Item) {
        if self.to_settle.is_empty() {
            self.settle_from = now;
        }
        self.to_settle
            .push(Finished::new(item.record, item.retried));
    }

    /// A row has expired: it is finished without being published.
    pub(super) fn finish_expired(&mut self, now: Time, item: Item) {
        self.totals.expired += 1;
        self.ownership.departed(item.record.hash);
        self.finish(now, item);
        if let Some(last) = self.to_settle.last_mut() {
            last.expired = true;
        }
    }

    /// A row that was published before is to be settled.
    pub(super) fn settle_again(&mut self, record: Record) {
        self.window.admit_finished(record.seq);
        self.ownership.departed(record.hash);
        self.to_settle_again.push(Finished::new(record, true));
    }

    pub(super) fn next_settle(&mut self, now: Time) -> Option<Command> {
        if self.settle_due().is_none_or(|due| due > now) {
            return None;
        }
        // Apart from the others, which must not wait for them.
        let careful = self.to_settle.is_empty();
        let queue = if careful {
            &mut self.to_settle_again
        } else {
            &mut self.to_settle
        };
        let most = queue.len().min(SETTLE_MAX);
        self.settling = queue.drain(..most).collect();
        let mut settle = Settle {
            careful,
            ..Settle::default()
        };
        for finished in &self.settling {
            settle.rows.push(finished.row.clone());
            if finished.failed_before {
                settle.failed_before.push(finished.row.seq);
            }
            if finished.expired {
                settle.expired.push(finished.row.seq);
            }
        }
        Some(Command::Settle(settle))
    }

    pub(super) fn settled(&mut self, now: Time, result: Result<Vec<Unsettled>, StoreFailed>) {
        let rows = std::mem::take(&mut self.settling);
        let Ok(unsettled) = result else {
            self.settle_after = now + STORE_RETRY;
            let (again, fresh): (Vec<_>, Vec<_>) =
                rows.into_iter().partition(|row: &Finished| row.tries > 0);
            self.to_settle.splice(0..0, fresh);
            self.to_settle_again.splice(0..0, again);
            return;
        };
        let mut unsettled: HashMap<i64, String> = unsettled
            .into_iter()
            .map(|row| (row.seq, row.reason))
            .collect();
        let epoch = self.reading.epoch();
        let (mut settled, mut new) = (0, 0);
        for finished in rows {
            match unsettled.remove(&finished.row.seq) {
                None => {
                    settled += 1;
                    self.suspected.remove(&finished.row.seq);
                    self.window.settled(finished.row.seq, epoch);
                    self.ownership.arrived(finished.hash);
                }
                Some(reason) => {
                    new += usize::from(finished.tries == 0);
                    self.not_settled(now, finished, reason);
                }
            }
        }
        self.reading.settle_epochs(&mut self.window);
        if settled > 0 {
            self.trust.proven = true;
            self.trust.doubtful = false;
            self.trust.barren = 0;
        } else {
            self.trust.barren = self.trust.barren.saturating_add(new);
            self.trust.probe_at = now + PROBE_PAUSE;
        }
    }

    /// A published row is pending all the same: that is recorded, so that nobody publishes it again.
    fn not_settled(&mut self, now: Time, finished: Finished, reason: String) {
        let jitter = self.jitter();
        let after = AGAIN_FIRST
            .saturating_mul(1 << finished.tries.min(5))
            .min(AGAIN_MAX)
            .mul_f64(0.5 + 0.5 * jitter);
        self.reading.retry_at(now + after);
        self.trust.reason.clone_from(&reason);
        self.record(Failure {
            seq: finished.row.seq,
            hash: finished.hash,
            keyed: finished.keyed,
            event_id: finished.row.id,
            event_type: finished.event_type,
            key: finished.key,
            state: FailureState::Unsettled,
            attempts: finished.tries.saturating_add(1),
            crashes: 0,
            reason: Some(Reason::new(ReasonCode::Other, reason)),
            retry_after: Some(after),
        });
    }
}
