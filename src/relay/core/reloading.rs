//! Failure records, loaded again: after an operator's command, and whenever they may have changed unnoticed.

use super::{Command, Core, Reload, STORE_RETRY, StoreFailed, Time};
use crate::store::Failing;

impl Core {
    pub(super) fn reloaded(&mut self, now: Time, result: Result<Vec<Failing>, StoreFailed>) {
        let Some(reload) = self.reload.take() else {
            return;
        };
        self.reading.end(reload.ticket);
        match result {
            Ok(failing) => {
                self.reloaded_at = now;
                self.take_failing(now, &failing, &reload.partitions, &reload.failed_since);
            }
            Err(StoreFailed) => self.reload_after = Some(now + STORE_RETRY),
        }
    }

    pub(super) fn next_reload(&mut self, now: Time) -> Option<Command> {
        if self.reload_due().is_none_or(|due| due > now) {
            return None;
        }
        let partitions: Vec<i32> = (0..self.ownership.count())
            .filter(|partition| self.ownership.active(i64::from(*partition)))
            .collect();
        self.reload_after = None;
        if partitions.is_empty() {
            return None;
        }
        let unrecorded = self.to_record.values().chain(&self.recording);
        self.reload = Some(Reload {
            partitions: partitions.clone(),
            failed_since: unrecorded.map(|failure| failure.hash).collect(),
            ticket: self.reading.begin(),
        });
        Some(Command::Reload(partitions))
    }
}
