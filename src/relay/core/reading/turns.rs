//! What is read next.

use super::super::{Core, Time};
use super::{BEYOND, CATCH_UP_KEYS, Out, SourceChange};
use crate::store::{ReadKind, ReadRequest};

/// What is read. Those that look for rows take turns, so that thousands of retries hold up no new row and the other way
/// round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// A main read, the last one before a stop.
    Last,
    Retries,
    Due,
    CatchUp,
    Main,
    /// Whether a different server or table answers, when no main read would reveal it.
    Look,
    Sweep,
}

impl Next {
    pub(super) const ALL: [Next; 7] = [
        Self::Last,
        Self::Retries,
        Self::Due,
        Self::CatchUp,
        Self::Main,
        Self::Look,
        Self::Sweep,
    ];
    const TURNS: [Next; 5] = [
        Self::Retries,
        Self::Due,
        Self::CatchUp,
        Self::Main,
        Self::Look,
    ];
}

impl Core {
    /// When the next read can begin. Without proof of ownership none does, and a tick that renews it is an input.
    pub(in crate::relay::core) fn read_due(&self, now: Time) -> Option<Time> {
        if self.reading.out.is_some()
            || self.is_stopping() && !self.wants_last_read()
            || self.paused
            || self.ownership.partitions().is_none()
            || !self.ownership.proven(now)
            || self.reading.change != SourceChange::None
        {
            return None;
        }
        if self.room() == 0 {
            // The rows that fill memory may be waiting for a settle, so one retry is still allowed.
            let retry = self.retries_due().filter(|_| self.unsettled().is_some());
            let due = retry.into_iter().chain(self.due(Next::Look)).min()?;
            return Some(due.max(self.reading.after_failure));
        }
        let due = Next::ALL.into_iter().filter_map(|next| self.due(next));
        due.min().map(|due| due.max(self.reading.after_failure))
    }

    /// When a read of this kind has something to do.
    fn due(&self, next: Next) -> Option<Time> {
        let reading = &self.reading;
        let at_once = |wanted: bool| wanted.then_some(Time::ZERO);
        match next {
            Next::Last => at_once(self.wants_last_read()),
            Next::Retries => self.retries_due(),
            Next::Due => reading.due_at,
            Next::CatchUp => at_once(reading.has_order && self.window.has_wanting()),
            Next::Main => self.may_hold_more().then(|| self.pace.due()),
            Next::Look if !reading.has_order => None,
            Next::Look if reading.in_doubt => Some(Time::ZERO),
            Next::Look => (!self.may_hold_more()).then_some(reading.look_at),
            // A sweep finds what main reads missed; none are running.
            Next::Sweep if !self.may_hold_more() => None,
            Next::Sweep => {
                let bounds = (reading.bound.settled_below(), reading.lowest);
                let (true, (Some(_), Some(_))) = (reading.has_order, bounds) else {
                    return None;
                };
                Some(reading.sweep.due())
            }
        }
    }

    pub(in crate::relay::core) fn next_read(&mut self, now: Time) -> Option<ReadRequest> {
        if self.read_due(now).is_none_or(|due| due > now) {
            return None;
        }
        let partitions = self.ownership.partitions()?;
        let room = self.room();
        let (kind, limit) = self.choose(now, room)?;
        let reading = &mut self.reading;
        let (known, skip_keys) = match &kind {
            ReadKind::Main { after } => (self.window.known(*after, None), self.window.held_keys()),
            ReadKind::CatchUp { after, up_to, .. } => {
                (self.window.known(Some(*after), Some(*up_to)), Vec::new())
            }
            ReadKind::Sweep { after, up_to } => (
                self.window.known(Some(*after), Some(*up_to)),
                self.window.held_keys(),
            ),
            ReadKind::Retries => {
                let mut known = self.window.known(None, None);
                known.extend(&reading.refused);
                (known, self.window.lagging_keys())
            }
            ReadKind::Due => (self.window.known(None, None), self.window.stopped_keys()),
        };
        let ticket = reading.begin();
        reading.out = Some(Out {
            kind: kind.clone(),
            known_to: std::mem::take(&mut reading.known_to),
            started: now,
            ticket,
        });
        let byte_limit = self.free_bytes().max(1);
        let careful = self.ownership.is_careful();
        Some(ReadRequest {
            kind,
            partitions,
            skip_keys,
            known,
            // What does not fit would be fetched for nothing.
            limit: limit.min(byte_limit / self.reading.row_weight + 1),
            byte_limit,
            // After a crash nothing is read before it is recorded that it will be.
            whole: if careful { 0 } else { self.config.whole_bytes },
            max_event: self.config.max_event_bytes,
            source: self.reading.source,
        })
    }

    fn choose(&mut self, now: Time, room: usize) -> Option<(ReadKind, usize)> {
        let is_due = |next: Next| self.due(next).is_some_and(|due| due <= now);
        let next = if room == 0 {
            // What may have use for no room: a probe of whether rows can be settled again.
            [Next::Look, Next::Retries]
                .into_iter()
                .find(|next| is_due(*next))
        } else {
            match (is_due(Next::Last), is_due(Next::Sweep)) {
                (true, _) => Some(Next::Last),
                (false, sweep) => Next::TURNS
                    .into_iter()
                    .filter(|next| is_due(*next))
                    .min_by_key(|next| self.reading.served[*next as usize])
                    .or(sweep.then_some(Next::Sweep)),
            }
        }?;
        // The other half is for new rows.
        let room_of_retries = self.room_of_retries(room.div_ceil(2));
        let reading = &mut self.reading;
        reading.served[next as usize] = reading.next_ticket;
        match next {
            Next::Last => {
                self.last_read_begins();
                Some((self.main(), room))
            }
            Next::Retries => {
                reading.retry_at = None;
                Some((ReadKind::Retries, room_of_retries))
            }
            Next::Due => {
                reading.due_at = None;
                Some((ReadKind::Due, room))
            }
            Next::CatchUp => Some(self.catch_up(room)),
            Next::Main => Some((self.main(), room)),
            Next::Look => {
                reading.in_doubt = false;
                reading.look_at = now + self.config.poll_interval;
                Some((BEYOND, 1))
            }
            Next::Sweep => {
                let (bound, lowest) = (reading.bound.settled_below()?, reading.lowest?);
                let (after, up_to) = reading.sweep.slice(lowest, bound);
                Some((ReadKind::Sweep { after, up_to }, room))
            }
        }
    }

    fn catch_up(&mut self, room: usize) -> (ReadKind, usize) {
        let reading = &mut self.reading;
        let wanting = self.window.wanting(CATCH_UP_KEYS);
        let failed = wanting
            .iter()
            .any(|(hash, _, _)| self.window.has_failed(*hash));
        let up_to = match reading.bound.coverage() {
            Some(coverage) if !failed => coverage,
            _ => i64::MAX,
        };
        let after = wanting
            .iter()
            .map(|(_, last, _)| *last)
            .min()
            .unwrap_or(up_to);
        let room_of_keys: usize = wanting.iter().map(|(_, _, room)| *room).sum();
        reading.known_to = wanting
            .iter()
            .map(|(hash, last, _)| (*hash, *last))
            .collect();
        let keys = wanting.into_iter().map(|(hash, _, _)| hash).collect();
        let limit = room.min(room_of_keys).max(1);
        (ReadKind::CatchUp { after, up_to, keys }, limit)
    }

    fn main(&mut self) -> ReadKind {
        self.totals.wakes[self.pace.reason() as usize] += 1;
        self.pace.read_started();
        let ordered = self.reading.has_order;
        let after = ordered.then(|| self.reading.bound.start()).flatten();
        ReadKind::Main { after }
    }
}
