//! The broker: messages arrive in order, one after the other, and get their verdict.

use std::time::Duration;

use outrigger::error::{Reason, ReasonCode, Verdict};
use outrigger::event::Content;
use outrigger::relay::core::Input;
use outrigger::relay::core::window::Item;
use outrigger::store::{Settle, Settled};

use super::{Batch, Event, Fate, World};
use crate::Mutation;

/// Which event it is: its number may be drawn again.
fn event(item: &Item) -> i64 {
    item.record.id.parse().unwrap()
}

impl World {
    pub(super) fn publish(&mut self, replica: usize, life: u32, lane: usize, items: Vec<Item>) {
        let number = self.next_batch;
        self.next_batch += 1;
        self.log(|| {
            let seqs: Vec<_> = items.iter().map(|item| item.record.seq).collect();
            format!("replica {replica} publishes {seqs:?} on lane {lane}")
        });
        if items.iter().any(|item| {
            item.dead_letter.is_none() && self.fates.get(&event(item)) == Some(&Fate::Poison)
        }) {
            // The relay dies while it encodes; nothing of the batch was sent.
            return self.crash(replica);
        }
        if self.mutation == Mutation::SettleBeforeConfirm {
            let settled = |item: &Item| Settled {
                seq: item.record.seq,
                id: item.record.id.clone(),
            };
            self.database.settle(&Settle {
                rows: items.iter().map(settled).collect(),
                ..Settle::default()
            });
        }
        let mut at = self.now;
        for index in 0..items.len() {
            at += Duration::from_micros(self.random.between(20, 2_000));
            self.at(
                at,
                Event::Arrive {
                    batch: number,
                    index,
                },
            );
        }
        at += Duration::from_micros(self.random.between(200, 20_000));
        self.at(at, Event::BatchDone { batch: number });
        let verdicts = vec![Verdict::Unavailable; items.len()];
        let epoch = self.broker_epoch;
        self.batches.insert(
            number,
            Batch {
                replica,
                life,
                lane,
                items,
                verdicts,
                epoch,
            },
        );
    }

    pub(super) fn arrive(&mut self, number: u64, index: usize) -> Result<(), String> {
        let Some(batch) = self.batches.get_mut(&number) else {
            return Ok(());
        };
        if !self.broker_up || batch.epoch != self.broker_epoch {
            return Ok(());
        }
        let item = &batch.items[index];
        let id = event(item);
        let fate = self.fates.get(&id).copied();
        let out_for = match (&item.dead_letter, fate) {
            // Where dead letters go may be out of order as well.
            (Some(_), _) if id % 3 == 0 => 1,
            (None, Some(Fate::RouteOut(tries))) => tries,
            _ => 0,
        };
        let tried = self.postponements.entry(id).or_default();
        if *tried < out_for {
            *tried += 1;
            batch.verdicts[index] = Verdict::Postponed {
                reason: Reason::new(ReasonCode::Unroutable, "out of order"),
                after: Duration::from_millis(200),
            };
            return Ok(());
        }
        if item.dead_letter.is_some() {
            batch.verdicts[index] = Verdict::Confirmed;
            return Ok(());
        }
        if let Some(refusal) = item.record.content.refusal() {
            // Without being sent.
            *self.refusals.entry(id).or_default() += 1;
            batch.verdicts[index] = Verdict::Impossible(refusal.reason.clone());
            return Ok(());
        }
        if item.record.content != Content::Whole {
            return Err(format!("row {id} is published without its payload"));
        }
        let refuse = |code| Verdict::Rejected(Reason::new(code, "refused"));
        let count = self.refusals.entry(id).or_default();
        let verdict = match fate {
            None => {
                return Err(format!(
                    "phantom: row {id} was published but never committed"
                ));
            }
            Some(Fate::Accept | Fate::RouteOut(_) | Fate::Poison | Fate::Deadly) => {
                Verdict::Confirmed
            }
            Some(fate @ (Fate::Unreadable | Fate::TooLarge)) => {
                return Err(format!("row {id} is published: {fate:?}"));
            }
            Some(Fate::RejectFirst(times)) if *count >= times => Verdict::Confirmed,
            Some(Fate::RejectFirst(_) | Fate::RejectAlways) => refuse(ReasonCode::Nack),
            Some(Fate::Unroutable) => refuse(ReasonCode::Unroutable),
            Some(Fate::Impossible) => {
                Verdict::Impossible(Reason::new(ReasonCode::InvalidEvent, "impossible"))
            }
        };
        if verdict == Verdict::Confirmed {
            self.deliveries.push((id, self.now));
        } else {
            *count += 1;
        }
        batch.verdicts[index] = verdict;
        Ok(())
    }

    pub(super) fn batch_done(&mut self, number: u64) {
        let Some(mut batch) = self.batches.remove(&number) else {
            return;
        };
        if batch.epoch != self.broker_epoch || !self.broker_up {
            // Confirms that did not make it: the fate of the whole batch is unknown.
            batch.verdicts.fill(Verdict::Unavailable);
        }
        if self.mutation == Mutation::TrustEachConfirm {
            // A returned message is attached to whichever confirm completes next.
            let returned = batch.verdicts.iter().position(|verdict| {
                matches!(verdict, Verdict::Rejected(reason) if reason.code == ReasonCode::Unroutable)
            });
            if let Some(returned) = returned
                && batch.verdicts.len() > 1
            {
                let other = (returned + 1) % batch.verdicts.len();
                batch.verdicts.swap(returned, other);
            }
        }
        let results = batch
            .items
            .into_iter()
            .zip(batch.verdicts)
            .map(|(item, verdict)| match verdict {
                // The failing event goes to the back of the line instead of blocking its key.
                Verdict::Rejected(reason) if self.mutation == Mutation::RetryBehindItsKey => {
                    (item, Verdict::Impossible(reason))
                }
                verdict => (item, verdict),
            })
            .collect();
        let input = Box::new(Input::Published {
            lane: batch.lane,
            results,
        });
        let (replica, life) = (batch.replica, batch.life);
        self.at(
            self.now,
            Event::Deliver {
                replica,
                life,
                input,
            },
        );
    }
}
