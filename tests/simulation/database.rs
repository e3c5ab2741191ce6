//! A model of Postgres, as far as the relay can tell: transactions with row and table locks, snapshots,
//! sequence values drawn before the commit, leases on the database's clock.

mod outcomes;
mod ownership;
mod payloads;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use outrigger::event::Record;
use outrigger::store::{
    Failure, FailureState, Holder, Holders, Partitions, ReadKind, ReadRequest, partition_of,
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
    /// Which of several configurations it has.
    identity: u64,
    rank: i64,
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
    /// Settling changes nothing, as with a trigger in its way.
    pub inert: bool,
    /// Events whose rows somebody else has locked.
    pub locked: BTreeSet<i64>,
    /// How often the table was given another file.
    table_file: i64,
    pub txns: BTreeMap<u64, Txn>,
    next_txn: u64,
    pub next_xid: u32,
    pub server_start: i64,
    replicas: BTreeMap<Uuid, ReplicaState>,
    pub owners: Vec<(Option<Uuid>, Time)>,
    pub failures: BTreeMap<i64, FailureRow>,
    /// Events that an operator discarded.
    pub discarded: BTreeSet<i64>,
    /// Keys that main reads leave out, by hash.
    pub parked: BTreeSet<i64>,
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
            inert: false,
            locked: BTreeSet::new(),
            table_file: 0,
            txns: BTreeMap::new(),
            next_txn: 1,
            server_start: 0,
            next_xid: u32::MAX - 20, // wraps around under way
            replicas: BTreeMap::new(),
            owners: vec![(None, Time::ZERO); partitions as usize],
            failures: BTreeMap::new(),
            discarded: BTreeSet::new(),
            parked: BTreeSet::new(),
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
            published: failure.is_some_and(|row| row.failure.state == FailureState::Unsettled),
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
                && (self.mutation == Mutation::ReadParkedKeys
                    || !self.parked.contains(&self.row(seq).hash))
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
                    let failed = self.failure(*seq).is_some_and(|row| {
                        !matches!(
                            row.failure.state,
                            FailureState::Dead | FailureState::Unsettled
                        )
                    });
                    let due = self.row(*seq).available_at.is_none_or(|at| at <= now);
                    let failing = self.failure(*seq);
                    let new = failing.is_none_or(|row| row.failure.state == FailureState::Suspect);
                    keys.contains(&self.row(*seq).hash) && wanted(*seq) && (failed || new && due)
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
                            FailureState::Retrying | FailureState::Unsettled => {
                                row.next_attempt_at.is_none_or(|at| at <= now)
                            }
                            _ => false,
                        }
                })
                .map(|(seq, row)| (row.failure.state != FailureState::Unsettled, *seq))
                .filter(|(waits, seq)| {
                    let row = self.row(*seq);
                    wanted(*seq) || !waits && covers(row.hash) && !request.known.contains(seq)
                })
                .collect::<BTreeSet<_>>()
                .into_iter()
                .map(|(_, seq)| seq)
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
}
