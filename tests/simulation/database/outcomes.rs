//! What becomes of rows: settled, or failed and recorded.

use std::time::Duration;

use outrigger::store::{
    Failing, Failure, FailureState, Loaded, Park, Settle, Unsettled, partition_of,
};
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
                if self.mutation == Mutation::UnparkWhenSettled {
                    self.parked.remove(&self.failures[seq].failure.hash);
                }
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

    pub fn load_failing(
        &mut self,
        partitions: &[i32],
        (limit, released): (usize, usize),
        now: Time,
    ) -> Loaded {
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
        let ours = |hash: i64| partitions.contains(&partition_of(hash, count));
        let holds = |row: &&FailureRow| {
            let state = row.failure.state;
            matches!(state, FailureState::Retrying | FailureState::Blocked)
        };
        let failing: Vec<Failing> = self
            .failures
            .values()
            .filter(holds)
            .filter(|row| ours(row.failure.hash))
            .filter(|row| !row.failure.keyed || !self.parked.contains(&row.failure.hash))
            .take(limit)
            .map(|row| Failing {
                seq: row.failure.seq,
                hash: row.failure.hash,
                keyed: row.failure.keyed,
                state: row.failure.state,
                retry_in: row.next_attempt_at.unwrap_or(now).saturating_sub(now),
            })
            .collect();
        let cut = failing.len() >= limit;
        if cut {
            let others: Vec<i64> = self
                .failures
                .values()
                .filter(holds)
                .map(|row| &row.failure)
                .filter(|failure| failure.keyed && ours(failure.hash))
                .map(|failure| failure.hash)
                .filter(|hash| failing.iter().all(|row| row.hash != *hash))
                .collect();
            self.parked.extend(others);
        }
        let mut without: Vec<i64> = self.parked.iter().copied().collect();
        without.retain(|hash| {
            let mut holding = self.failures.values().filter(holds);
            ours(*hash) && !holding.any(|row| row.failure.hash == *hash)
        });
        let more = without.len() > released;
        without.truncate(released);
        Loaded {
            failing,
            cut,
            released: without,
            more,
        }
    }

    /// What an operator does with a failed row.
    pub fn discard(&mut self, seq: i64) {
        let id = self.present[&seq];
        self.rows[id as usize - 1].published = true;
        self.pending.remove(&seq);
        self.failures.remove(&seq);
        self.discarded.insert(id);
    }

    /// Parks and unparks the keys of partitions that the replica owns, and returns them.
    pub fn park(&mut self, park: &Park, replica: Uuid) -> Vec<i64> {
        let mut done = Vec::new();
        for (keys, parks) in [(&park.park, true), (&park.unpark, false)] {
            for hash in keys {
                let partition = partition_of(*hash, self.partitions());
                if self.owners[partition as usize].0 != Some(replica) {
                    continue;
                }
                done.push(*hash);
                if parks {
                    self.parked.insert(*hash);
                } else {
                    self.parked.remove(hash);
                }
            }
        }
        done
    }
}
