//! Rows that may have crashed a relay: recorded before they go, few at a time, and in the end alone.

use super::{Item, Ordering, Slot, Suspect, Window};

/// Suspects recorded and not yet done with. If the relay dies too, each of them must go alone.
pub(super) const TRIAL_MAX: usize = 64;

impl Window {
    /// While a suspect goes alone, nothing else goes, except what its key must send before it.
    pub(super) fn fits(&self, seq: i64) -> bool {
        self.only().is_none_or(|only| only == seq)
    }

    /// The one row that may go, if only one may.
    fn only(&self) -> Option<i64> {
        let waits_for_its_key = |alone: i64| {
            let is_next = self.ready.contains(&alone) || self.unfetched.contains(&alone);
            self.may_go(alone) && !is_next
        };
        self.alone.filter(|alone| !waits_for_its_key(*alone))
    }

    /// Whether [`Window::take_batch`] would take anything.
    pub fn can_send(&self) -> bool {
        let ready = match self.only() {
            None => !self.ready.is_empty(),
            Some(only) => self.ready.contains(&only),
        };
        ready && !self.wants_quiet()
    }

    /// Whether a suspect is to go alone as soon as nothing is in flight. Until then nothing else may leave: where there
    /// is much to do, something is always in flight.
    pub fn wants_quiet(&self) -> bool {
        self.alone.is_none() && self.next_accused().is_some()
    }

    /// Picks the suspects that are to go next; their records must be written first. Those that were on trial at a
    /// crash go first and one at a time, when nothing is in flight (`quiet`), so that another crash points at exactly one
    /// row. The others go together, along with everything else.
    pub fn next_suspects(&mut self, quiet: bool) -> Vec<i64> {
        self.step_back();
        if self.alone.is_some() {
            return Vec::new();
        }
        let mut next = Vec::new();
        if let Some(seq) = self.next_accused() {
            if quiet {
                self.accused.remove(&seq);
                self.alone = Some(seq);
                next.push(seq);
            }
        } else if self.trial.len() <= TRIAL_MAX / 2 {
            let heads = self.queued.iter().filter(|seq| self.is_head(**seq));
            next.extend(heads.take(TRIAL_MAX - self.trial.len()));
            for seq in &next {
                self.queued.remove(seq);
                self.trial.insert(*seq);
            }
        }
        let alone = self.alone.is_some();
        for seq in &next {
            if let Some(Slot::Waiting(item)) = self.slots.get_mut(seq) {
                item.suspect = Suspect::Recording { alone };
            }
        }
        next
    }

    /// The oldest suspect that was on trial at a crash and could go now.
    fn next_accused(&self) -> Option<i64> {
        self.accused.iter().copied().find(|seq| self.is_head(*seq))
    }

    /// A row that waits here.
    pub fn waiting(&self, seq: i64) -> Option<&Item> {
        match self.slots.get(&seq) {
            Some(Slot::Waiting(item)) => Some(item),
            _ => None,
        }
    }

    /// If a row of its key has come in before a recorded one, that one waits for another turn.
    pub(super) fn step_back(&mut self) {
        let recorded = self.alone.into_iter().chain(self.trial.iter().copied());
        let overtaken: Vec<i64> = recorded.filter(|seq| !self.is_head(*seq)).collect();
        for seq in overtaken {
            let Some(Slot::Waiting(item)) = self.slots.get_mut(&seq) else {
                continue;
            };
            if !matches!(item.suspect, Suspect::Recorded { .. }) {
                continue;
            }
            item.suspect = Suspect::Queued;
            // Its record counts a turn it did not have; the next one writes the same number.
            item.record.crashes = item.record.crashes.saturating_sub(1);
            let crashes = item.record.crashes;
            self.forget_suspect(seq);
            self.unready(seq);
            self.queue(seq, crashes);
        }
    }

    /// Lines a suspect up that counts so many crashes.
    pub(super) fn queue(&mut self, seq: i64, crashes: u32) {
        if crashes > 0 {
            self.accused.insert(seq);
        } else {
            self.queued.insert(seq);
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
        self.accused.remove(&seq);
        self.trial.remove(&seq);
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
        self.unready(seq);
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
