//! Writing transactions, with the order of events that real ones have.

use outrigger::relay::core::Input;
use outrigger::relay::core::pace::WakeReason;
use outrigger::store::FailureState;

use super::{Event, Fate, World, Writer, ms};
use crate::database::{Database, Payload};
use std::time::Duration;

impl World {
    pub(super) fn write(&mut self, writer: usize) {
        let state = std::mem::replace(&mut self.writers[writer], Writer::Idle);
        let (next, wait) = match state {
            Writer::Idle => {
                if self.transactions_left == 0 {
                    return;
                }
                self.transactions_left -= 1;
                let mut keys: Vec<Option<u64>> = (0..self.random.between(1, 3))
                    .map(|_| {
                        if self.random.chance(15) {
                            None
                        } else {
                            Some(self.key())
                        }
                    })
                    .collect();
                keys.sort_unstable();
                keys.dedup_by(|a, b| a.is_some() && a == b);
                let txn = self.database.begin();
                if self.random.chance(50) {
                    self.database.assign_xid(txn);
                }
                (Writer::Locking { keys, txn }, self.random.below(20))
            }
            Writer::Locking { keys, txn } => {
                let free = keys
                    .iter()
                    .flatten()
                    .all(|key| self.locked.get(key).is_none_or(|owner| *owner == writer));
                if free {
                    for key in keys.iter().flatten() {
                        self.locked.insert(*key, writer);
                    }
                    self.database.lock_table(txn);
                    let left = keys.iter().copied().collect();
                    (Writer::Writing { keys, txn, left }, self.random.below(3))
                } else {
                    (Writer::Locking { keys, txn }, 5)
                }
            }
            Writer::Writing {
                keys,
                txn,
                mut left,
            } => {
                if let Some(key) = left.pop_front() {
                    let delayed = self.random.chance(3);
                    let until = self.now + ms(self.random.between(1, 4_000));
                    self.database.draw(txn, key, delayed.then_some(until));
                    // The transaction id comes after the number was drawn.
                    (Writer::Writing { keys, txn, left }, self.random.below(3))
                } else {
                    self.database.assign_xid(txn);
                    let wait = if self.random.chance(self.scenario.long_percent) {
                        self.random.between(500, 6_000)
                    } else {
                        self.random.below(15)
                    };
                    if self.random.chance(5) {
                        self.database.prepare(txn);
                    }
                    (Writer::Open { keys, txn }, wait)
                }
            }
            Writer::Open { keys, txn } => {
                let commit = !self.random.chance(10);
                self.database.end(txn, self.now, commit);
                self.log(|| {
                    format!(
                        "txn {txn} commits: {commit} {:?}",
                        self.database.txns[&txn].rows
                    )
                });
                if commit {
                    self.decide_fates(txn);
                    if self.now >= self.database.awake_until {
                        self.notify();
                    }
                }
                // Row locks no longer stop anybody once the transaction is over ...
                for key in keys.iter().flatten() {
                    self.locked.remove(key);
                }
                // ... but the table lock is released a moment later.
                (Writer::Lingering { txn }, self.random.below(4))
            }
            Writer::Lingering { txn } => {
                self.database.release_locks(txn);
                (
                    Writer::Idle,
                    self.random.below(if self.scenario.busy { 6 } else { 300 }),
                )
            }
        };
        self.writers[writer] = next;
        let us = wait * 1_000 + self.random.below(1_000);
        self.at(self.now + Duration::from_micros(us), Event::Writer(writer));
    }

    /// Busy writers prefer one key, so that it falls further behind than others.
    fn key(&mut self) -> u64 {
        if self.scenario.busy && self.random.chance(50) {
            0
        } else {
            self.random.below(5)
        }
    }

    pub(super) fn decide_fates(&mut self, txn: u64) {
        for id in self.database.txns[&txn].rows.clone() {
            let mut fate = Fate::Accept;
            if self.scenario.rejections {
                fate = match self.random.below(40) {
                    0 | 1 => Fate::RejectFirst(self.random.between(1, 2) as u32),
                    2 => Fate::RejectAlways,
                    3 => Fate::Unroutable,
                    4 => Fate::Impossible,
                    5 => Fate::RouteOut(self.random.between(1, 8) as u32),
                    _ => Fate::Accept,
                };
            }
            if self.scenario.faults && self.random.below(400) == 0 {
                fate = Fate::Poison;
            }
            let payload = match self.random.below(600) {
                0..30 => Some(Payload::Large),
                30..35 => Some(Payload::TooLarge),
                35..45 => Some(Payload::Unreadable),
                45 if self.scenario.faults => Some(Payload::Deadly),
                _ => None,
            };
            if let Some(payload) = payload {
                self.database.payloads.insert(id, payload);
                fate = match payload {
                    Payload::Large => fate,
                    Payload::TooLarge => Fate::TooLarge,
                    Payload::Unreadable => Fate::Unreadable,
                    Payload::Deadly => Fate::Deadly,
                };
            }
            self.fates.insert(id, fate);
        }
    }

    pub(super) fn notify(&mut self) {
        for replica in 0..self.replicas.len() {
            if self.replicas[replica].up {
                let life = self.replicas[replica].life;
                let input = Box::new(Input::Wake(WakeReason::Notify));
                self.after(
                    100,
                    2_000,
                    Event::Deliver {
                        replica,
                        life,
                        input,
                    },
                );
            }
        }
    }

    /// An operator discards some failing events, or none.
    pub(super) fn discard(&mut self) {
        let failing = |database: &Database, seq: &i64| {
            let state = database.failure(*seq).map(|row| row.failure.state);
            state == Some(FailureState::Retrying)
        };
        let mut seqs: Vec<i64> = self.database.pending.iter().copied().collect();
        seqs.retain(|seq| failing(&self.database, seq) && self.random.chance(50));
        self.log(|| format!("operator discards {seqs:?}"));
        for seq in seqs {
            self.database.discard(seq);
        }
        self.database.failures_version += 1;
    }
}
