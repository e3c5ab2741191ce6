//! Failing keys that do not fit in memory are kept in the database.
//!
//! Every main read, due read and sweep skips a *parked* key, no matter which replica reads, until the key's owner unparks it. So
//! whatever happens to its failure record in the meantime (an operator, a late settle), none of its rows can overtake another. A key leaves
//! memory once the database has confirmed that it is parked. It returns when one of its failed rows is due, or when
//! its failure record is gone; a catch-up read then fetches its rows in order, as after a takeover. It stays parked until it has
//! caught up; then it is unparked, catches up once more, and is treated like any other key.

use std::collections::HashSet;

use super::{Command, Core, STORE_RETRY, StoreFailed, Time};
use crate::event::Record;
use crate::store::Park;

/// Keys in one statement.
const PARK_MAX: usize = 4_000;

/// Which keys are to be parked and unparked.
#[derive(Debug, Default)]
pub(super) struct Parking {
    next: Park,
    out: Option<Park>,
    after: Time,
    /// Parked keys without a failing row are left that were not taken in yet.
    pub(super) more: bool,
    /// Keys of the whole outbox that are parked, as of the last tick.
    pub(super) parked: u64,
}

impl Core {
    /// The most keys ever held in memory. This is reached only while catch-up reads are behind, or while keys cannot be
    /// parked.
    fn held_limit(&self) -> usize {
        2 * self.config.max_held + self.config.max_in_flight
    }

    /// Whether main reads may bring rows that fail.
    pub(super) fn may_hold_more(&self) -> bool {
        self.window.held() < self.held_limit()
    }

    /// Memory is full of failing keys that could not be parked, so no rows of other keys are read.
    pub fn is_crowded(&self) -> bool {
        !self.may_hold_more()
    }

    /// Most failing rows to be loaded at once, and most parked keys to be taken in. The other failing keys are to be
    /// parked.
    pub fn load_limits(&self) -> (usize, usize) {
        let held = self.config.max_held.max(1);
        (2 * (held + self.config.max_in_flight), held)
    }

    /// A failed row is due whose key is parked. Its key comes back, and the row with it.
    pub(super) fn back_from_the_table(&mut self, record: &Record) {
        if self.may_hold_more() {
            self.window.take_in(record.hash);
        } else {
            self.reading.refused(record.seq);
        }
    }

    /// After each input: what has become idle may leave memory.
    pub(super) fn look_for_parking(&mut self) {
        if self.parking.out.is_some() {
            return;
        }
        self.parking.next = Park::default();
        let most = self.config.max_held;
        if self.is_stopping() || self.window.held() <= most && self.window.parked() == 0 {
            return;
        }
        self.parking.next = Park {
            park: self.window.to_park(most),
            unpark: self.window.to_unpark(),
        };
        self.parking.next.park.truncate(PARK_MAX);
        self.parking.next.unpark.truncate(PARK_MAX);
    }

    /// When keys are to be parked or unparked.
    pub(super) fn park_due(&self) -> Option<Time> {
        let wanted = self.parking.out.is_none() && !self.parking.next.is_empty();
        wanted.then_some(self.parking.after)
    }

    pub(super) fn next_park(&mut self, now: Time) -> Option<Command> {
        if self.park_due().is_none_or(|due| due > now) {
            return None;
        }
        let next = std::mem::take(&mut self.parking.next);
        self.parking.out = Some(next.clone());
        Some(Command::Park(next))
    }

    /// `result`: the keys that are parked, or not, as asked for. The others are no longer ours.
    pub(super) fn parked(&mut self, now: Time, result: Result<Vec<i64>, StoreFailed>) {
        let Some(asked) = self.parking.out.take() else {
            return;
        };
        let Ok(done) = result else {
            self.parking.after = now + STORE_RETRY;
            for hash in asked.park {
                self.window.perhaps_parked(hash);
            }
            return;
        };
        let done: HashSet<i64> = done.into_iter().collect();
        for hash in asked.park.iter().filter(|hash| done.contains(hash)) {
            self.window.now_parked(*hash);
        }
        for hash in asked.unpark.iter().filter(|hash| done.contains(hash)) {
            self.window.now_unparked(*hash);
        }
        if done.len() < asked.park.len() + asked.unpark.len() {
            self.parking.after = now + STORE_RETRY;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
