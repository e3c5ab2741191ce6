//! Replicas, leases and partitions, as the database keeps them.

use std::time::Duration;

use outrigger::store::{Claimed, FailureState, PartitionRow, ReplicaRow, Tick};
use uuid::Uuid;

use super::{Database, ReplicaState, Time};
use crate::Mutation;

impl Database {
    pub fn register(&mut self, name: &str, identity: u64, now: Time) -> (Uuid, i32) {
        let id = Uuid::from_u128(self.next_replica);
        self.next_replica += 1;
        let there = self.replicas.iter().filter(|(id, state)| {
            let owns = self.owners.iter().any(|(owner, _)| *owner == Some(**id));
            state.identity == identity && (state.lease_until >= now || owns)
        });
        let highest = self.replicas.values().map(|state| state.rank).max();
        let rank = there.map(|(_, state)| state.rank).min();
        let state = ReplicaState {
            name: name.to_owned(),
            identity,
            rank: rank.unwrap_or(highest.unwrap_or(0) + 1),
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
            .filter(|row| {
                matches!(
                    row.failure.state,
                    FailureState::Retrying | FailureState::Unsettled
                )
            })
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
                    rank: state.rank,
                    conflicts: self.mutation != Mutation::MixConfigurations
                        && own.is_some_and(|own| own.identity != state.identity),
                    differs: None,
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
            parked: self.parked.len() as u64,
            unsettled: self
                .failures
                .values()
                .any(|row| row.failure.state == FailureState::Unsettled),
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
        let mine = self.replicas[&replica].identity;
        let lives = |id: &Uuid, state: &ReplicaState| {
            *id == replica || state.lease_until.max(visible_since + self.lease_ttl) >= now
        };
        let earliest = |own: bool| {
            let living = self.replicas.iter().filter(|(id, state)| lives(id, state));
            let of = living.filter(|(_, state)| (state.identity == mine) == own);
            of.map(|(_, state)| state.rank).min()
        };
        if self.mutation != Mutation::MixConfigurations
            && earliest(false).is_some_and(|theirs| earliest(true).is_none_or(|own| theirs < own))
        {
            return Vec::new();
        }
        let dead: Vec<Uuid> = self
            .replicas
            .iter()
            .filter(|(id, state)| {
                state.identity != mine
                    && state.rank < self.replicas[&replica].rank
                    && !lives(id, state)
            })
            .map(|(id, _)| *id)
            .collect();
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
        let forget = ![
            Mutation::MixConfigurations,
            Mutation::SleepersKeepTheirPlace,
        ]
        .contains(&self.mutation);
        if !claimed.is_empty() && forget {
            // One of them that wakes up is a newcomer.
            self.replicas.retain(|id, _| !dead.contains(id));
        }
        claimed
    }

    /// Owners whose lease lasts, while one of another configuration lives that came before.
    pub fn split(&self, now: Time) -> Option<String> {
        let living = || {
            let living = self.replicas.iter();
            living.filter(move |(_, state)| state.lease_until >= now)
        };
        let rank = |identity: u64| {
            let of = living().filter(|(_, state)| state.identity == identity);
            of.map(|(_, state)| state.rank).min()
        };
        let owners = self.owners.iter().filter_map(|(owner, _)| *owner);
        for owner in owners {
            let Some((_, own)) = living().find(|(id, _)| **id == owner) else {
                continue;
            };
            let earlier = living().find(|(_, other)| {
                other.identity != own.identity && rank(other.identity) < rank(own.identity)
            });
            if let Some((_, other)) = earlier {
                return Some(format!("{own:?} owns a partition beside {other:?}"));
            }
        }
        None
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
