//! Another server or another table than before: its numbers are others.

use super::super::pace::WakeReason;
use super::super::{Core, Time};
use super::Reading;

/// Whether another server answers than before, or another table, and how far the relay is with following it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SourceChange {
    None,
    /// Rows from there are still on their way.
    Emptying,
    /// The failing rows are being loaded.
    Reloading,
}

impl Reading {
    /// Empties the memory and begins at the beginning.
    pub(in crate::relay::core) fn start_over(&mut self, now: Time) {
        self.forget(now);
        self.change = SourceChange::Emptying;
    }
}

impl Core {
    /// Another server may have lost the last commits of the one before, and then draws their numbers again; so does a
    /// table that was emptied or made anew. What is in memory could hide its rows, so it is emptied before anything is
    /// read: waiting rows at once, others when their fate is known. Then the failing rows are loaded, as after a
    /// takeover.
    pub(in crate::relay::core) fn follow_source(&mut self, now: Time) {
        match self.reading.change {
            SourceChange::None => {}
            SourceChange::Emptying => {
                self.window.drop_waiting(|_| true);
                let recorded = self.to_record.is_empty() && self.recording.is_empty();
                if self.window.is_empty() && recorded && self.reload.is_none() {
                    self.reload_after = Some(now);
                    self.reading.change = SourceChange::Reloading;
                }
            }
            SourceChange::Reloading if self.reload.is_none() && self.reload_after.is_none() => {
                self.reading.change = SourceChange::None;
                self.pace.wake(now, WakeReason::Change);
            }
            SourceChange::Reloading => {}
        }
    }
}
