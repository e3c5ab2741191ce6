//! Held keys that only the database knows of, so that memory does not grow with their number.

use std::cmp::Reverse;

use super::{Hold, Key, Window};
use crate::event::Record;

/// Whether the database leaves a held key out of main reads, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parked {
    /// It does not.
    No,
    /// It may. The key becomes normal only after it does not.
    Perhaps,
    /// It is about to be told not to.
    Leaving,
}

impl Window {
    /// Held keys that the database may leave out of main reads, too.
    pub fn parked(&self) -> usize {
        self.parked
    }

    pub(super) fn set_parked(&mut self, hash: i64, parked: Parked) {
        if let Some(key) = self.keys.get_mut(&hash) {
            let old = std::mem::replace(&mut key.parked, parked);
            self.parked -= usize::from(old != Parked::No);
            self.parked += usize::from(parked != Parked::No);
        }
    }

    /// Whether a failed row came back whose key is not held here: then the database holds it.
    pub fn is_held_elsewhere(&self, record: &Record) -> bool {
        self.ordered(record) && self.hold_of(record.hash).is_none()
    }

    /// Takes in a key that only the database held. What is known of it is nothing: a catch-up read brings its rows, in order.
    pub fn take_in(&mut self, hash: i64) {
        let gone = |culprit: i64| !self.slots.contains_key(&culprit);
        match self.hold_of(hash) {
            None => {
                self.restrain(hash, Hold::Lagging, i64::MIN, 0);
                if let Some(key) = self.keys.get_mut(&hash) {
                    key.has_failed = true;
                }
            }
            // The row that holds it up is no longer failing.
            Some(hold) if hold.culprit().is_some_and(gone) => {
                if let Some(key) = self.keys.get_mut(&hash) {
                    key.hold = Some(Hold::Lagging);
                    key.last_known = i64::MIN;
                    key.has_failed = true;
                }
            }
            Some(_) => {}
        }
        self.perhaps_parked(hash);
    }

    /// The keys that the database is to hold instead: those it may hold already, and if more than `most` keys are held
    /// here, those that have longest to wait.
    pub fn to_park(&self, most: usize) -> Vec<i64> {
        let idle = self.keys.iter().filter(|(_, key)| self.may_be_parked(key));
        let excess = match self.held > most {
            true => self.held - (most - most / 4),
            false => 0,
        };
        let (mut keys, mut others) = (Vec::new(), Vec::new());
        for (hash, key) in idle {
            match (key.parked, key.hold) {
                (Parked::Perhaps, _) => keys.push(*hash),
                (Parked::No, Some(Hold::Failing { retry_at, .. })) => {
                    others.push((Reverse(Some(retry_at)), *hash));
                }
                (Parked::No, _) => others.push((Reverse(None), *hash)),
                (Parked::Leaving, _) => {}
            }
        }
        let blocked = |(retry_at, _): &(Reverse<Option<_>>, i64)| retry_at.0.is_some();
        others.sort_unstable();
        others.sort_by_key(blocked);
        keys.extend(others.into_iter().map(|(_, hash)| hash).take(excess));
        keys.sort_unstable();
        keys
    }

    /// Whether nothing of the key is here but that it waits for one row, whose failure is recorded. A read that began
    /// before the key was held, and could bring rows of it, is over.
    fn may_be_parked(&self, key: &Key) -> bool {
        let culprit = key.hold.and_then(Hold::culprit);
        key.waiting.is_empty()
            && key.in_flight == 0
            && culprit.is_some_and(|culprit| !self.slots.contains_key(&culprit))
    }

    /// The keys that the database is to hold no longer.
    pub fn to_unpark(&self) -> Vec<i64> {
        let leaving = |(_, key): &(&i64, &Key)| key.parked == Parked::Leaving;
        let mut keys: Vec<i64> = self
            .keys
            .iter()
            .filter(leaving)
            .map(|(hash, _)| *hash)
            .collect();
        keys.sort_unstable();
        keys
    }

    /// The database holds the key: it need not be known here, unless something of it came in meanwhile.
    pub fn now_parked(&mut self, hash: i64) {
        let idle = |key: &Key| self.may_be_parked(key);
        if self.keys.get(&hash).is_some_and(idle) {
            self.release(hash);
        } else {
            self.perhaps_parked(hash);
        }
    }

    /// The database may hold the key.
    pub fn perhaps_parked(&mut self, hash: i64) {
        let unknown = |key: &Key| key.hold.is_some() && key.parked == Parked::No;
        if self.keys.get(&hash).is_some_and(unknown) {
            self.set_parked(hash, Parked::Perhaps);
        }
    }

    /// The database may hold any of these keys.
    pub fn all_perhaps_parked(&mut self, scope: impl Fn(i64) -> bool) {
        let keys: Vec<i64> = self
            .keys
            .keys()
            .copied()
            .filter(|hash| scope(*hash))
            .collect();
        for hash in keys {
            self.perhaps_parked(hash);
        }
    }

    /// The database does not hold the key any more. One more catch-up read makes it normal.
    pub fn now_unparked(&mut self, hash: i64) {
        self.set_parked(hash, Parked::No);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
