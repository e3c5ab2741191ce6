//! Keys that take in no rows from main reads, because a row of them failed or because too many wait:
//! what of them is kept, up to where they are known, and how they become normal again.

use std::collections::HashMap;

use super::parking::Parked;
use super::{Hold, Key, Ordering, Slot, Window};
use crate::relay::core::Time;
use crate::relay::core::reading::CaughtUp;

impl Window {
    /// Keys that take in no rows from main reads.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Where the first row in memory, or the first left out because of its key, begins: just below it.
    pub fn pending_above(&self) -> Option<i64> {
        let first = self
            .slots
            .iter()
            .find(|(_, slot)| !matches!(slot, Slot::Gone))
            .map(|(seq, _)| seq.saturating_sub(1));
        let left_out = self
            .keys
            .values()
            .filter(|key| key.hold.is_some())
            .map(|key| key.last_known);
        left_out.chain(first).min()
    }

    /// The keys that take in no rows from main reads.
    pub fn held_keys(&self) -> Vec<i64> {
        self.keys_with(|_| true)
    }

    /// The keys that take in rows from catch-up and due reads only.
    pub fn lagging_keys(&self) -> Vec<i64> {
        self.keys_with(|hold| hold == Hold::Lagging)
    }

    /// The keys that wait for one of their rows.
    pub fn stopped_keys(&self) -> Vec<i64> {
        self.keys_with(|hold| hold != Hold::Lagging)
    }

    fn keys_with(&self, wanted: impl Fn(Hold) -> bool) -> Vec<i64> {
        if self.held == 0 {
            return Vec::new();
        }
        let mut keys: Vec<i64> = self
            .keys
            .iter()
            .filter(|(_, key)| key.hold.is_some_and(&wanted))
            .map(|(hash, _)| *hash)
            .collect();
        keys.sort_unstable();
        keys
    }

    /// The hold of a key.
    pub fn hold_of(&self, hash: i64) -> Option<Hold> {
        self.keys.get(&hash).and_then(|key| key.hold)
    }

    /// Holds a key, keeping its first `keep` waiting rows. `known`: every row of the key up to there is
    /// known; counts only if the key was not held before. Of two failed rows the earlier one holds the key.
    pub(super) fn restrain(&mut self, hash: i64, hold: Hold, known: i64, keep: usize) {
        if let Some(&head) = self.keys.get(&hash).and_then(|key| key.waiting.front()) {
            self.unready(head);
        }
        let dropped = self.trim(hash, keep);
        let key = self.keys.entry(hash).or_insert_with(Key::new);
        let old = key.hold.replace(hold);
        if old.is_none() {
            self.held += 1;
            key.last_known = known;
        }
        if let Some(first) = dropped {
            key.last_known = key.last_known.min(first.saturating_sub(1));
        }
        if let (Some(old), Some(one)) = (old, hold.culprit())
            && let Some(other) = old.culprit()
            && one != other
        {
            key.hold = Some(if other < one { old } else { hold });
            key.missing(one.max(other));
        }
        self.refresh(hash);
    }

    pub(super) fn release(&mut self, hash: i64) {
        if let Some(key) = self.keys.get_mut(&hash)
            && key.hold.take().is_some()
        {
            key.has_failed = false;
            self.held -= 1;
            self.set_parked(hash, Parked::No);
        }
        self.refresh(hash);
    }

    /// Forgets the waiting rows of a key beyond the first `keep`; they will be read again. Returns the
    /// first one forgotten.
    pub(super) fn trim(&mut self, hash: i64, keep: usize) -> Option<i64> {
        let key = self.keys.get_mut(&hash)?;
        if key.waiting.len() <= keep {
            return None;
        }
        let dropped = key.waiting.split_off(keep);
        let mut failed = false;
        for seq in &dropped {
            self.unready(*seq);
            self.forget_suspect(*seq);
            if let Some(Slot::Waiting(item)) = self.slots.remove(seq) {
                self.bytes -= item.record.weight();
                failed |= item.retried;
            }
        }
        if failed && let Some(key) = self.keys.get_mut(&hash) {
            key.has_failed = true;
        }
        dropped.front().copied()
    }

    /// After a read: keys with too many rows waiting keep the first ones and are held. `hashes`: the
    /// keys the read touched.
    pub fn bound_keys(&mut self, hashes: impl IntoIterator<Item = i64>) {
        for hash in hashes {
            if let Some(key) = self.keys.get(&hash)
                && key.waiting.len() > self.key_cap
            {
                let hold = key.hold.unwrap_or(Hold::Lagging);
                let known =
                    key.waiting.iter().take(self.key_cap).rev().find_map(|seq| {
                        match self.slots.get(seq) {
                            Some(Slot::Waiting(item)) if !item.out_of_order => Some(*seq),
                            _ => None,
                        }
                    });
                self.restrain(hash, hold, known.unwrap_or(i64::MIN), self.key_cap);
            }
        }
    }

    /// Whether main reads will not bring everything of this key above their coverage.
    pub fn has_failed(&self, hash: i64) -> bool {
        self.keys.get(&hash).is_some_and(|key| key.has_failed)
    }

    /// Lagging keys that have room again, the furthest behind first: `(hash, last_known, room)`.
    pub fn wanting(&self, most: usize) -> Vec<(i64, i64, usize)> {
        if self.held == 0 {
            return Vec::new();
        }
        let mut wanting: Vec<(i64, i64, usize)> = self
            .keys
            .iter()
            .filter(|(_, key)| self.wants_rows(key))
            .map(|(hash, key)| (*hash, key.last_known, self.key_cap - key.waiting.len()))
            .collect();
        wanting.sort_unstable_by_key(|(hash, last_known, _)| (*last_known, *hash));
        wanting.truncate(most);
        wanting
    }

    /// Whether [`Window::wanting`] has anything to offer.
    pub fn has_wanting(&self) -> bool {
        self.held > 0 && self.keys.values().any(|key| self.wants_rows(key))
    }

    fn wants_rows(&self, key: &Key) -> bool {
        key.hold == Some(Hold::Lagging)
            && key.parked != Parked::Leaving
            && key.waiting.len() <= self.key_cap / 2
    }

    /// A catch-up read met a failed row that may not go yet: its key goes on up to it, and no further.
    pub fn stop_at(&mut self, hash: i64, hold: Hold) {
        if let Some(key) = self.keys.get_mut(&hash)
            && key.hold == Some(Hold::Lagging)
            && let Some(culprit) = hold.culprit()
        {
            key.hold = Some(hold);
            key.last_known = culprit;
        }
    }

    /// Whether a catch-up read of this key, begun when the key was known up to `last_known`, still
    /// continues where the key stands.
    pub fn continues(&self, hash: i64, last_known: i64) -> bool {
        self.keys
            .get(&hash)
            .is_some_and(|key| key.hold == Some(Hold::Lagging) && key.last_known == last_known)
    }

    /// Ends a catch-up read, before rows beyond the cap are dropped. If it was complete its keys are normal again;
    /// otherwise they are known a bit further.
    pub fn caught_up(&mut self, read: &CaughtUp) {
        for (&hash, &known_to) in &read.known_to {
            let Some(key) = self.keys.get_mut(&hash) else {
                continue;
            };
            if key.hold != Some(Hold::Lagging) {
                // Stopped at a failing row meanwhile.
            } else if read.complete && key.parked == Parked::No {
                self.release(hash);
            } else if read.complete {
                // Once more when the database does not leave it out any more.
                key.last_known = key.last_known.max(known_to);
                key.parked = Parked::Leaving;
            } else {
                key.last_known = key.last_known.max(known_to);
            }
        }
    }

    /// Takes in all failing rows, as `(hash, seq)`, of the keys for which `scope` says true, when
    /// partitions are taken over or records were changed from outside.
    pub fn reload_failing(&mut self, failing: &[(i64, i64)], scope: impl Fn(i64) -> bool) {
        let mut listed: HashMap<i64, Vec<i64>> = HashMap::new();
        for (hash, seq) in failing {
            listed.entry(*hash).or_default().push(*seq);
        }
        for (hash, key) in &mut self.keys {
            // The table decides about parked keys.
            let Some(culprit) = key
                .hold
                .and_then(Hold::culprit)
                .filter(|_| key.parked == Parked::No)
            else {
                continue;
            };
            let failing = listed.get(hash).is_some_and(|rows| rows.contains(&culprit));
            if scope(*hash) && !failing && !self.slots.contains_key(&culprit) {
                // The row that held it up is no longer failing. It may be gone, and its number drawn again.
                key.hold = Some(Hold::Lagging);
                key.last_known = i64::MIN;
            }
        }
        for (hash, rows) in listed {
            let culprit = self.hold_of(hash).and_then(Hold::culprit);
            let missing = rows
                .into_iter()
                .filter(|seq| !self.is_here(*seq) && Some(*seq) != culprit)
                .min();
            let Some(missing) = missing else {
                continue;
            };
            if self.ordering == Ordering::None {
                continue;
            }
            if self.hold_of(hash).is_none() {
                // Nothing is known about the key's other rows: a catch-up read brings them all.
                self.restrain(hash, Hold::Lagging, i64::MIN, 0);
            }
            if let Some(key) = self.keys.get_mut(&hash) {
                key.missing(missing);
            }
        }
    }

    /// The earliest retry among failing keys whose failing row is still to be read.
    pub fn next_retry(&self) -> Option<Time> {
        let is_back = |seq| {
            let slot = self.slots.get(&seq);
            matches!(slot, Some(Slot::Waiting(_) | Slot::InFlight))
        };
        self.keys
            .values()
            .filter_map(|key| match key.hold {
                Some(Hold::Failing { seq, retry_at }) if !is_back(seq) => Some(retry_at),
                _ => None,
            })
            .min()
    }
}
