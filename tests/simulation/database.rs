//! A model of Postgres, as far as the relay can tell: transactions with row and table locks, snapshots,
//! sequence values drawn before the commit, leases on the database's clock.

mod payloads;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use outrigger::event::Record;
use outrigger::store::{
    Claimed, Failing, Failure, FailureState, Holder, Holders, PartitionRow, Partitions, ReadKind,
    ReadRequest, ReplicaRow, Settle, Tick, partition_of,
};
use uuid::Uuid;

use crate::Mutation;
use crate::random::Random;

pub use payloads::Payload;

pub type Time = Duration;

#[derive(Debug, Clone)]
pub struct Row {
    /// The event: never drawn again.
    pub id: i64,
    /// Its number, which is another event's when the sequence was restarted.
    pub seq: i64,
    pub key: Option<u64>,
    pub hash: i64,
    pub committed_at: Option<Time>,
    pub available_at: Option<Time>,
    pub published: bool,
    /// The table was emptied.
    pub gone: bool,
}

/// A writing transaction that holds the outbox table's insert lock.
#[derive(Debug, Clone)]
pub struct Txn {
    pub virtual_transaction: String,
    pub xid: Option<u32>,
    /// Ended (its rows visible or gone), but its locks may linger for a moment.
    pub ended: bool,
    pub holds_table: bool,
    /// By id.
    pub rows: Vec<i64>,
}

#[derive(Debug, Clone)]
struct ReplicaState {
    name: String,
    lease_until: Time,
    visible_since: Option<Time>,
}

#[derive(Debug, Clone)]
pub struct FailureRow {
    pub failure: Failure,
    pub next_attempt_at: Option<Time>,
}

pub struct Database {
    /// By id: rows whose payload is not small and harmless.
    pub payloads: HashMap<i64, Payload>,
    /// All rows there ever were; the id is the place, from 1.
    pub rows: Vec<Row>,
    /// Those in the table now, by `seq`.
    present: BTreeMap<i64, i64>,
    /// By `seq`.
    pub pending: BTreeSet<i64>,
    next_seq: i64,
    /// How often the table was given another file.
    table_file: i64,
    pub txns: BTreeMap<u64, Txn>,
    next_txn: u64,
    pub next_xid: u32,
    pub server_start: i64,
    replicas: BTreeMap<Uuid, ReplicaState>,
    pub owners: Vec<(Option<Uuid>, Time)>,
    pub failures: BTreeMap<i64, FailureRow>,
    pub failures_version: i64,
    pub awake_until: Time,
    pub paused: bool,
    pub stand_down_until: Time,
    pub lease_ttl: Duration,
    pub mutation: Mutation,
    next_replica: u128,
    /// Highest number of attempts ever recorded per event.
    pub attempts: HashMap<i64, u32>,
}

fn mix(value: u64) -> i64 {
    Random::new(value.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1).next() as i64
}

impl Database {
    pub fn new(partitions: i32, lease_ttl: Duration, mutation: Mutation) -> Self {
        Self {
            payloads: HashMap::new(),
            rows: Vec::new(),
            present: BTreeMap::new(),
            pending: BTreeSet::new(),
            next_seq: 1,
            table_file: 0,
            txns: BTreeMap::new(),
            next_txn: 1,
            server_start: 0,
            next_xid: u32::MAX - 20, // wraps around under way
            replicas: BTreeMap::new(),
            owners: vec![(None, Time::ZERO); partitions as usize],
            failures: BTreeMap::new(),
            failures_version: 0,
            awake_until: Time::ZERO,
            paused: false,
            stand_down_until: Time::ZERO,
            lease_ttl,
            mutation,
            next_replica: 1,
            attempts: HashMap::new(),
        }
    }

    pub fn partitions(&self) -> i32 {
        self.owners.len() as i32
    }

    // ---- writers ----------------------------------------------------------------------------

    pub fn begin(&mut self) -> u64 {
        let id = self.next_txn;
        self.next_txn += 1;
        self.txns.insert(
            id,
            Txn {
                virtual_transaction: format!("{}/{}", id % 7 + 3, id),
                xid: None,
                ended: false,
                holds_table: false,
                rows: Vec::new(),
            },
        );
        id
    }

    pub fn assign_xid(&mut self, id: u64) {
        let txn = self.txns.get_mut(&id).unwrap();
        if txn.xid.is_none() {
            txn.xid = Some(self.next_xid);
            self.next_xid = self.next_xid.wrapping_add(1);
        }
    }

    pub fn lock_table(&mut self, id: u64) {
        self.txns.get_mut(&id).unwrap().holds_table = true;
    }

    pub fn draw(&mut self, txn: u64, key: Option<u64>, available_at: Option<Time>) {
        let id = self.rows.len() as i64 + 1;
        let seq = self.next_seq;
        self.next_seq += 1;
        let hash = match key {
            Some(key) => mix(key + 1),
            None => mix(seq as u64 + (1 << 40)),
        };
        self.present.insert(seq, id);
        self.rows.push(Row {
            id,
            seq,
            key,
            hash,
            committed_at: None,
            available_at,
            published: false,
            gone: false,
        });
        self.txns.get_mut(&txn).unwrap().rows.push(id);
    }

    /// The row that has this number now.
    pub fn row(&self, seq: i64) -> &Row {
        &self.rows[self.present[&seq] as usize - 1]
    }

    /// The failure record of the row that has this number now.
    pub fn failure(&self, seq: i64) -> Option<&FailureRow> {
        let id = self.present.get(&seq)?.to_string();
        let by_number = self.mutation == Mutation::RecordsByNumber;
        let record = self.failures.get(&seq);
        record.filter(|record| by_number || record.failure.event_id == id)
    }

    /// The failure record of an event.
    pub fn failure_of(&self, id: i64) -> Option<&FailureRow> {
        let record = self.failures.get(&self.rows[id as usize - 1].seq);
        record.filter(|record| record.failure.event_id == id.to_string())
    }

    /// Empties the table and restarts its sequence. False if writers are in the way. `another_file`: as TRUNCATE and DROP do.
    pub fn empty(&mut self, another_file: bool) -> bool {
        if self.txns.values().any(|txn| txn.holds_table) {
            return false;
        }
        for id in std::mem::take(&mut self.present).into_values() {
            self.rows[id as usize - 1].gone = true;
        }
        self.pending.clear();
        self.next_seq = 1;
        self.table_file += i64::from(another_file);
        true
    }

    fn source(&self) -> i64 {
        self.server_start ^ self.table_file << 32
    }

    pub fn prepare(&mut self, id: u64) {
        let txn = self.txns.get_mut(&id).unwrap();
        txn.virtual_transaction = format!("-1/{}", txn.xid.unwrap_or(0));
    }

    pub fn end(&mut self, id: u64, now: Time, commit: bool) {
        let txn = self.txns.get_mut(&id).unwrap();
        txn.ended = true;
        if commit {
            for id in &txn.rows {
                let row = &mut self.rows[*id as usize - 1];
                row.committed_at = Some(now);
                self.pending.insert(row.seq);
            }
        }
    }

    pub fn release_locks(&mut self, id: u64) {
        self.txns.remove(&id);
    }

    // ---- reading ----------------------------------------------------------------------------

    pub fn snapshot(&self) -> Holders {
        Holders {
            holders: Vec::new(),
            in_progress: self
                .txns
                .values()
                .filter(|txn| !txn.ended)
                .filter_map(|txn| txn.xid)
                .collect(),
            next_xid: self.next_xid,
            source: self.source(),
        }
    }

    pub fn lock_holders(&self) -> Vec<Holder> {
        self.txns
            .values()
            .filter(|txn| txn.holds_table)
            .map(|txn| Holder {
                virtual_transaction: txn.virtual_transaction.clone(),
                xid: txn.xid,
            })
            .collect()
    }

    fn record(&self, seq: i64, now: Time) -> Record {
        let row = self.row(seq);
        let failure = self.failure(seq);
        Record {
            seq,
            hash: row.hash,
            keyed: row.key.is_some(),
            attempts: failure.map_or(0, |row| row.failure.attempts),
            crashes: failure.map_or(0, |row| row.failure.crashes),
            retry_in: failure.and_then(|row| match row.failure.state {
                FailureState::Blocked => Some(Duration::MAX),
                FailureState::Retrying => {
                    Some(row.next_attempt_at.unwrap_or(now).saturating_sub(now))
                }
                _ => None,
            }),
            id: row.id.to_string(),
            key: row.key.map(|key| key.to_string()),
            ..Record::default()
        }
    }

    pub fn read(&self, request: &ReadRequest, now: Time) -> (Vec<Record>, bool) {
        let covers = |hash: i64| match &request.partitions {
            Partitions::All => true,
            Partitions::Some { owned, count } => owned.contains(&partition_of(hash, *count)),
        };
        let wanted = |seq: i64| {
            let row = self.row(seq);
            covers(row.hash)
                && !request.known.contains(&seq)
                && !request.skip_keys.contains(&row.hash)
        };
        let fresh = |seq: i64| {
            self.failure(seq)
                .is_none_or(|row| row.failure.state == FailureState::Suspect)
                && self.row(seq).available_at.is_none_or(|at| at <= now)
        };
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let range = |after: Option<i64>, up_to: Option<i64>| {
            let from = after.map_or(Unbounded, Excluded);
            let to = up_to.map_or(Unbounded, Included);
            let empty = matches!((after, up_to), (Some(a), Some(b)) if a >= b);
            self.pending
                .range((from, if empty { Unbounded } else { to }))
                .filter(move |_| !empty)
        };
        let elsewhere = request.source.is_some_and(|source| source != self.source());
        let seqs: Vec<i64> = match &request.kind {
            kind if elsewhere && !matches!(kind, ReadKind::Main { .. }) => Vec::new(),
            ReadKind::Main { after } => range(*after, None)
                .copied()
                .filter(|seq| wanted(*seq) && fresh(*seq))
                .collect(),
            ReadKind::CatchUp { after, up_to, keys } => range(Some(*after), Some(*up_to))
                .copied()
                .filter(|seq| {
                    let failed = self
                        .failure(*seq)
                        .is_some_and(|row| row.failure.state != FailureState::Dead);
                    keys.contains(&self.row(*seq).hash) && wanted(*seq) && (failed || fresh(*seq))
                })
                .collect(),
            ReadKind::Sweep { .. } if self.mutation == Mutation::CursorWithoutSweep => Vec::new(),
            ReadKind::Sweep { after, up_to } => range(Some(*after), Some(*up_to))
                .copied()
                .filter(|seq| wanted(*seq) && fresh(*seq))
                .collect(),
            ReadKind::Retries => self
                .failures
                .iter()
                .filter(|(seq, row)| {
                    self.pending.contains(seq)
                        && self.failure(**seq).is_some()
                        && match row.failure.state {
                            FailureState::Retrying => {
                                row.next_attempt_at.is_none_or(|at| at <= now)
                            }
                            _ => false,
                        }
                })
                .map(|(seq, _)| *seq)
                .filter(|seq| wanted(*seq))
                .collect(),
            ReadKind::Due => {
                let mut due: Vec<(Time, i64)> = self
                    .pending
                    .iter()
                    .filter_map(|seq| self.row(*seq).available_at.map(|at| (at, *seq)))
                    .filter(|(at, seq)| *at <= now && wanted(*seq) && fresh(*seq))
                    .collect();
                due.sort_unstable();
                due.into_iter().map(|(_, seq)| seq).collect()
            }
        };
        let cut = seqs.len() >= request.limit;
        let seqs: Vec<i64> = seqs.into_iter().take(request.limit).collect();
        let rows = self.handed_out(request, &seqs, now);
        (rows, cut)
    }

    pub fn settle(&mut self, settle: &Settle) {
        for settled in &settle.rows {
            let Some(id) = self.present.get(&settled.seq).copied() else {
                continue;
            };
            if id.to_string() == settled.id {
                self.rows[id as usize - 1].published = true;
                self.pending.remove(&settled.seq);
            }
        }
        for seq in &settle.failed_before {
            let ids: Vec<&str> = settle.rows.iter().map(|row| row.id.as_str()).collect();
            if let Some(record) = self.failures.get(seq)
                && ids.contains(&record.failure.event_id.as_str())
            {
                self.failures.remove(seq);
            }
        }
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
            let attempts = self
                .attempts
                .entry(failure.event_id.parse().unwrap())
                .or_default();
            *attempts = (*attempts).max(failure.attempts);
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

    // ---- ownership --------------------------------------------------------------------------

    pub fn register(&mut self, name: &str, now: Time) -> (Uuid, i32) {
        let id = Uuid::from_u128(self.next_replica);
        self.next_replica += 1;
        let state = ReplicaState {
            name: name.to_owned(),
            lease_until: now + self.lease_ttl,
            visible_since: None,
        };
        self.replicas.insert(id, state);
        (id, self.partitions())
    }

    pub fn beat(&mut self, replica: Uuid, now: Time) {
        let ttl = self.lease_ttl;
        if let Some(state) = self.replicas.get_mut(&replica) {
            state.lease_until = now + ttl;
            state.visible_since.get_or_insert(now);
        }
    }

    pub fn tick(&self, replica: Uuid, now: Time) -> Tick {
        let own = self.replicas.get(&replica);
        let due = self
            .failures
            .values()
            .filter(|row| row.failure.state == FailureState::Retrying)
            .map(|row| row.next_attempt_at.unwrap_or(now))
            .chain(
                self.pending
                    .iter()
                    .filter_map(|seq| self.row(*seq).available_at),
            )
            .min();
        Tick {
            server_start: self.server_start,
            partitions: self
                .owners
                .iter()
                .enumerate()
                .map(|(partition, (owner, _))| PartitionRow {
                    partition: partition as i32,
                    owner: *owner,
                })
                .collect(),
            replicas: self
                .replicas
                .iter()
                .map(|(id, state)| ReplicaRow {
                    replica: *id,
                    name: state.name.clone(),
                    alive_for: state.lease_until.saturating_sub(now),
                })
                .collect(),
            registered: own.is_some(),
            may_take_over: own
                .and_then(|state| state.visible_since)
                .is_some_and(|since| since + self.lease_ttl < now),
            paused: self.paused,
            standing_down: self.stand_down_until > now,
            failures_version: self.failures_version,
            awake_for: self.awake_until.saturating_sub(now),
            next_due_in: due.map(|at| at.saturating_sub(now)),
        }
    }

    pub fn claim(&mut self, replica: Uuid, partitions: &[i32], now: Time) -> Vec<Claimed> {
        let Some(visible_since) = self
            .replicas
            .get(&replica)
            .and_then(|own| own.visible_since)
        else {
            return Vec::new();
        };
        let mut claimed = Vec::new();
        for partition in partitions {
            // Their number may have changed since.
            let Some(&(owner, since)) = self.owners.get(*partition as usize) else {
                continue;
            };
            let free = match owner {
                None => true,
                Some(owner) => match self.replicas.get(&owner) {
                    None => true,
                    Some(state) => {
                        self.mutation == Mutation::TwoOwners
                            || state.lease_until.max(visible_since + self.lease_ttl) < now
                    }
                },
            };
            if free {
                self.owners[*partition as usize] = (Some(replica), now);
                let unclean = owner.is_some() && since + Duration::from_secs(120) > now;
                claimed.push(Claimed {
                    partition: *partition,
                    unclean,
                });
            }
        }
        claimed
    }

    pub fn release(&mut self, replica: Uuid, partitions: &[i32]) {
        for partition in partitions {
            let owner = &mut self.owners[*partition as usize].0;
            if *owner == Some(replica) {
                *owner = None;
            }
        }
    }

    pub fn unregister(&mut self, replica: Uuid) {
        self.replicas.remove(&replica);
        for (owner, _) in &mut self.owners {
            if *owner == Some(replica) {
                *owner = None;
            }
        }
    }

    /// What the command does that changes the number of partitions: only when nobody owns any.
    pub fn repartition(&mut self, partitions: usize, now: Time) -> bool {
        let owned = self.owners.iter().any(|(owner, _)| {
            owner.is_some_and(|owner| {
                self.replicas.get(&owner).is_some_and(|state| {
                    // Seen by everybody for as long as the mark is set.
                    state.lease_until.max(self.stand_down_until) >= now
                })
            })
        });
        if !owned {
            self.owners = vec![(None, Time::ZERO); partitions];
            self.stand_down_until = Time::ZERO;
        }
        !owned
    }
}
