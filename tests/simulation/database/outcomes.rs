//! What becomes of rows: settled, or failed and recorded.

use std::time::Duration;

use outrigger::store::{Failing, Failure, FailureState, Settle, Unsettled, partition_of};
use uuid::Uuid;

use super::{Database, FailureRow, Time};
use crate::Mutation;

impl Database {
    /// Returns the rows that are pending all the same.
    pub fn settle(&mut self, settle: &Settle) -> Vec<Unsettled> {
        let mut unsettled = Vec::new();
        for settled in &settle.rows {
            let seq = settled.seq;
            let Some(id) = self.present.get(&seq).copied() else {
                continue;
            };
            if id.to_string() != settled.id || !self.pending.contains(&seq) {
                continue;
            }
            if self.inert || self.locked.contains(&id) {
                let reason = "in the way".to_owned();
                unsettled.push(Unsettled { seq, reason });
                continue;
            }
            self.rows[id as usize - 1].published = true;
            self.pending.remove(&seq);
        }
        for seq in &settle.failed_before {
            let own = |record: &FailureRow| {
                settle
                    .rows
                    .iter()
                    .any(|row| row.id == record.failure.event_id)
            };
            if self.failures.get(seq).is_some_and(own) && !self.pending.contains(seq) {
                self.failures.remove(seq);
            }
        }
        unsettled
    }

    pub fn record_failures(&mut self, failures: &[Failure], replica: Uuid, now: Time) -> Vec<i64> {
        let mut stored = Vec::new();
        let mut seqs: Vec<i64> = failures.iter().map(|failure| failure.seq).collect();
        seqs.sort_unstable();
        // PostgreSQL refuses the whole statement then (SQLSTATE 21000), and would again and again.
        let twice = seqs.windows(2).find(|pair| pair[0] == pair[1]);
        assert_eq!(twice, None, "a row twice in one recording");
        for failure in failures {
            let partition = partition_of(failure.hash, self.partitions());
            let id = self.present.get(&failure.seq).map(i64::to_string);
            if self.owners[partition as usize].0 != Some(replica)
                || id.as_ref() != Some(&failure.event_id)
            {
                continue;
            }
            let mut failure = failure.clone();
            if self.mutation == Mutation::RetryBehindItsKey && failure.state == FailureState::Dead {
                failure.state = FailureState::Retrying;
                failure.retry_after = Some(Duration::from_millis(200));
            }
            stored.push(failure.seq);
            if failure.state != FailureState::Unsettled {
                let attempts = self
                    .attempts
                    .entry(failure.event_id.parse().unwrap())
                    .or_default();
                *attempts = (*attempts).max(failure.attempts);
            }
            let next_attempt_at = failure.retry_after.map(|after| now + after);
            self.failures.insert(
                failure.seq,
                FailureRow {
                    failure,
                    next_attempt_at,
                },
            );
        }
        stored
    }

    pub fn load_failing(&mut self, partitions: &[i32], now: Time) -> Vec<Failing> {
        let count = self.partitions();
        let over: Vec<i64> = self
            .failures
            .iter()
            .filter(|(seq, row)| {
                let dead = row.failure.state == FailureState::Dead;
                partitions.contains(&partition_of(row.failure.hash, count))
                    && (self.failure(**seq).is_none() || !dead && !self.pending.contains(seq))
            })
            .map(|(seq, _)| *seq)
            .collect();
        for seq in over {
            self.failures.remove(&seq);
        }
        self.failures
            .values()
            .filter(|row| {
                matches!(
                    row.failure.state,
                    FailureState::Retrying | FailureState::Blocked
                ) && self.pending.contains(&row.failure.seq)
                    && partitions.contains(&partition_of(row.failure.hash, self.partitions()))
            })
            .map(|row| Failing {
                seq: row.failure.seq,
                hash: row.failure.hash,
                keyed: row.failure.keyed,
                state: row.failure.state,
                retry_in: row.next_attempt_at.unwrap_or(now).saturating_sub(now),
            })
            .collect()
    }
}
