//! The promises, checked against everything that happened.

use std::collections::HashMap;

use outrigger::error::ReasonCode;
use outrigger::relay::core::MAX_CRASHES;
use outrigger::relay::core::window::Ordering;
use outrigger::store::FailureState;

use super::{Fate, Outcome, World, ms};
use crate::database::Time;

impl World {
    pub(super) fn at_rest(&self) -> bool {
        self.transactions_left == 0
            && self.database.txns.is_empty()
            && self.batches.is_empty()
            && self.now > ms(14_000)
            && self.database.pending.iter().all(|seq| {
                self.database
                    .failure(*seq)
                    .is_some_and(|row| row.failure.state == FailureState::Dead)
            })
    }

    pub(super) fn describe(&self) -> String {
        let stuck: Vec<String> = self
            .database
            .pending
            .iter()
            .filter(|seq| {
                let failure = self.database.failure(**seq);
                failure.is_none_or(|row| row.failure.state != FailureState::Dead)
            })
            .take(5)
            .map(|seq| {
                let failure = self.database.failure(*seq).map(|row| row.failure.state);
                let row = self.database.row(*seq);
                format!("{row:?} {failure:?} {:?}", self.fates.get(&row.id))
            })
            .collect();
        format!(
            "{:?}, owners {:?}, pending {}: {stuck:?}",
            self.scenario,
            self.database.owners,
            self.database.pending.len()
        )
    }

    pub(super) fn judge(self) -> Result<Outcome, String> {
        let mut first: HashMap<i64, Time> = HashMap::new();
        let mut order: HashMap<u64, Vec<i64>> = HashMap::new();
        let mut duplicates = 0;
        for (id, at) in &self.deliveries {
            let row = &self.database.rows[*id as usize - 1];
            match row.committed_at {
                Some(committed) if committed <= *at => {}
                _ => return Err(format!("phantom: row {id} delivered at {at:?}: {row:?}")),
            }
            if first.insert(*id, *at).is_some() {
                duplicates += 1;
                first.insert(*id, first[id].min(*at));
                continue;
            }
            // A delayed event takes its place when it is due, not when it was committed.
            // One that was in memory when the table was emptied has none.
            if let (Some(key), None, false) = (row.key, row.available_at, row.gone) {
                order.entry(key).or_default().push(*id);
            }
        }
        let mut outcome = Outcome {
            faults: self.faults,
            duplicates,
            handovers: self.handovers,
            parked: self.parked,
            ..Outcome::default()
        };
        for row in &self.database.rows {
            let Some(committed) = row.committed_at else {
                continue;
            };
            outcome.committed += 1;
            if row.gone {
                continue;
            }
            let failure = self.database.failure_of(row.id);
            if let Some(left) = failure
                && row.published
                && left.failure.state != FailureState::Dead
                // One that was in flight is recorded afterwards; the next load removes that.
                && !self.database.discarded.contains(&row.id)
            {
                return Err(format!("a record outlived its row: {row:?} {left:?}"));
            }
            let dead = failure.is_some_and(|row| row.failure.state == FailureState::Dead);
            let delivered = first.get(&row.id);
            outcome.delivered += usize::from(delivered.is_some());
            outcome.dead += usize::from(dead);
            match (delivered, row.published, dead) {
                (None, true, _) if self.database.discarded.contains(&row.id) => continue,
                (None, true, _) => {
                    return Err(format!(
                        "lost: {row:?} is marked published, the broker never had it"
                    ));
                }
                (None, false, false) => {
                    return Err(format!("lost: {row:?} is neither delivered nor dead"));
                }
                (Some(_), false, false) => return Err(format!("unsettled: {row:?}")),
                _ => {}
            }
            let refusals = self.refusals.get(&row.id).copied().unwrap_or(0);
            let attempts = self.database.attempts.get(&row.id).copied().unwrap_or(0);
            let poison = failure.is_some_and(|row| {
                row.failure
                    .reason
                    .as_ref()
                    .is_some_and(|reason| reason.code == ReasonCode::Poison)
            });
            if attempts > refusals && !poison {
                return Err(format!(
                    "an outage burned attempts: row {} was refused {refusals} times, {attempts} counted",
                    row.seq
                ));
            }
            // The first crash finds no record, the second finds suspects, then they go alone.
            if poison && self.crashes < MAX_CRASHES {
                return Err(format!(
                    "row {} is called poison after {} crashes",
                    row.seq, self.crashes
                ));
            }
            let acceptable = matches!(self.fates[&row.id], Fate::Accept | Fate::RouteOut(_));
            if dead && acceptable && !poison {
                return Err(format!(
                    "row {} is dead though the broker would take it: {failure:?}",
                    row.seq
                ));
            }
            // In a quiet run nothing waits, least of all behind another key's failure.
            if let (Some(delivered), Fate::Accept, 0, false) = (
                delivered,
                self.fates[&row.id],
                self.faults,
                self.scenario.busy || self.scenario.emptied || self.scenario.inert,
            ) && !self.shares_a_failing_key(row.key)
            {
                let from = committed
                    .max(row.available_at.unwrap_or_default())
                    .max(ms(2_000));
                let waited = delivered.saturating_sub(from);
                if waited > ms(2_500) {
                    return Err(format!("row {} waited {waited:?}: {row:?}", row.seq));
                }
            }
        }
        let strict = self.scenario.ordering == Ordering::Strict;
        if !self.restarted_by_hand
            && (strict
                || (self.scenario.ordering == Ordering::Pipelined && !self.scenario.rejections))
        {
            for (key, seqs) in &order {
                if let Some(pair) = seqs.windows(2).find(|pair| pair[0] > pair[1]) {
                    return Err(format!(
                        "out of order on key {key}: {} before {}",
                        pair[0], pair[1]
                    ));
                }
            }
        }
        if !self.missed.is_empty() {
            return Err(format!("main reads passed over {:?}", self.missed));
        }
        let window = self.config.max_in_flight;
        let allowed = self.faults * window * self.scenario.replicas;
        if duplicates > allowed {
            return Err(format!(
                "{duplicates} duplicates, {} faults, window {window}",
                self.faults
            ));
        }
        Ok(outcome)
    }

    pub(super) fn shares_a_failing_key(&self, key: Option<u64>) -> bool {
        key.is_some_and(|key| {
            self.database.rows.iter().any(|row| {
                row.key == Some(key)
                    && self
                        .fates
                        .get(&row.id)
                        .is_some_and(|fate| *fate != Fate::Accept)
            })
        })
    }
}
