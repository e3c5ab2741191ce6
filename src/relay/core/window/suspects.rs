//! Rows that may have crashed a relay: recorded before they go, and in the end alone.

use super::{Item, Ordering, Slot, Suspect, Window};

impl Window {
    /// While a suspect goes alone, nothing else goes, except what its key must send before it.
    pub(super) fn fits(&self, seq: i64) -> bool {
        let Some(alone) = self.alone else {
            return true;
        };
        let waits_for_its_key = self.may_go(alone) && !self.ready.contains(&alone);
        alone == seq || waits_for_its_key
    }

    /// Picks the next suspect that is to go alone and could go now; its record must be written first.
    /// One at a time, so that a crash points at exactly one row.
    pub fn next_suspect(&mut self) -> Option<&Item> {
        self.step_back();
        if self.alone.is_some() {
            return None;
        }
        let seq = *self.queued.iter().find(|seq| self.is_head(**seq))?;
        self.queued.remove(&seq);
        self.alone = Some(seq);
        match self.slots.get_mut(&seq) {
            Some(Slot::Waiting(item)) => {
                item.suspect = Suspect::Recording { alone: true };
                Some(item)
            }
            _ => None,
        }
    }

    /// If a row has come in before the one that is to go alone, that one waits for another turn.
    pub(super) fn step_back(&mut self) {
        let Some(alone) = self.alone.filter(|alone| !self.is_head(*alone)) else {
            return;
        };
        if let Some(Slot::Waiting(item)) = self.slots.get_mut(&alone)
            && item.suspect == (Suspect::Recorded { alone: true })
        {
            item.suspect = Suspect::Queued;
            // Its record counts a turn it did not have; the next one writes the same number.
            item.record.crashes = item.record.crashes.saturating_sub(1);
            self.alone = None;
            self.queued.insert(alone);
            self.ready.remove(&alone);
        }
    }

    /// Whether nothing of its key keeps this waiting row from going.
    pub(super) fn is_head(&self, seq: i64) -> bool {
        let Some(Slot::Waiting(item)) = self.slots.get(&seq) else {
            return false;
        };
        if !self.ordered(&item.record) {
            return true;
        }
        self.keys
            .get(&item.record.hash)
            .is_some_and(|key| key.head() == Some(seq))
    }

    pub(super) fn forget_suspect(&mut self, seq: i64) {
        self.queued.remove(&seq);
        if self.alone == Some(seq) {
            self.alone = None;
        }
    }

    /// A suspect's record was written: it may go.
    pub fn cleared(&mut self, seq: i64, crashes: u32) {
        let Some(Slot::Waiting(item)) = self.slots.get_mut(&seq) else {
            return;
        };
        let Suspect::Recording { alone } = item.suspect else {
            return;
        };
        item.record.crashes = crashes;
        item.suspect = Suspect::Recorded { alone };
        item.retried = true;
        let (hash, ordered) = (item.record.hash, item.record.keyed);
        if ordered && self.ordering != Ordering::None {
            self.refresh(hash);
        } else {
            self.refresh_unordered(seq);
        }
    }

    /// Takes a waiting row out of its key's queue.
    pub(super) fn withdraw(&mut self, seq: i64) -> Option<Box<Item>> {
        if !matches!(self.slots.get(&seq), Some(Slot::Waiting(_))) {
            return None;
        }
        let Some(Slot::Waiting(item)) = self.slots.remove(&seq) else {
            return None;
        };
        self.bytes -= item.record.weight();
        self.forget_suspect(seq);
        self.ready.remove(&seq);
        if let Some(key) = self.keys.get_mut(&item.record.hash) {
            key.waiting.retain(|waiting| *waiting != seq);
        }
        Some(item)
    }

    /// Drops a waiting row: its partition is no longer ours.
    pub fn drop_row(&mut self, seq: i64) {
        if let Some(item) = self.withdraw(seq) {
            self.refresh(item.record.hash);
        }
    }

    /// A waiting row was given up without ever going out. False if it is not waiting.
    pub fn give_up_waiting(&mut self, seq: i64) -> bool {
        let Some(item) = self.withdraw(seq) else {
            return false;
        };
        self.slots.insert(seq, Slot::Finished);
        if self.ordered(&item.record) {
            self.after_finish(item.record.hash, item.record.seq);
        }
        true
    }
}
