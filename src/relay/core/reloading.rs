//! Failure records, loaded again: after an operator's command, and whenever they may have changed unnoticed.

use std::collections::HashSet;

use super::pace::WakeReason;
use super::{Command, Core, STORE_RETRY, StoreFailed, Time};
use crate::store::{FailureState, Loaded, partition_of};

/// Failing rows are being read again.
#[derive(Debug)]
pub(super) struct Reload {
    partitions: Vec<i32>,
    /// Keys whose failure may be missing in the answer.
    pub(super) failed_since: Vec<i64>,
    ticket: u64,
}

impl Core {
    /// Takes in the failing rows of `partitions`. Keys in `newer` failed after they were read.
    pub(super) fn take_failing(
        &mut self,
        now: Time,
        loaded: &Loaded,
        partitions: &[i32],
        newer: &[i64],
    ) {
        let newer: HashSet<i64> = newer.iter().copied().collect();
        let failing = &loaded.failing;
        let rows: Vec<(i64, i64)> = failing
            .iter()
            .filter(|failing| failing.keyed && !newer.contains(&failing.hash))
            .map(|failing| (failing.hash, failing.seq))
            .collect();
        let count = self.ownership.count();
        let scope =
            |hash: i64| partitions.contains(&partition_of(hash, count)) && !newer.contains(&hash);
        if loaded.cut {
            self.window.all_perhaps_parked(scope);
        }
        self.window.reload_failing(&rows, scope);
        let mut more = loaded.more;
        for hash in loaded.released.iter().filter(|hash| scope(**hash)) {
            if self.may_hold_more() {
                self.window.take_in(*hash);
            } else {
                more = true;
            }
        }
        self.parking.more = more;
        if let Some(soonest) = failing
            .iter()
            .filter(|failing| failing.state != FailureState::Blocked)
            .map(|failing| failing.retry_in)
            .min()
        {
            self.reading.retry_at(now + soonest);
        }
        // New partitions, or somebody changed rows below the bound: look from the beginning.
        self.reading.restart(now);
        self.pace.wake(now, WakeReason::Change);
    }

    pub(super) fn reloaded(&mut self, now: Time, result: Result<Loaded, StoreFailed>) {
        let Some(reload) = self.reload.take() else {
            return;
        };
        self.reading.end(reload.ticket);
        match result {
            Ok(loaded) => {
                self.reloaded_at = now;
                self.take_failing(now, &loaded, &reload.partitions, &reload.failed_since);
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
