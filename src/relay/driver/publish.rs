//! One batch on one lane: encode, publish, one verdict per row.

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::{Reason, ReasonCode, Verdict};
use crate::event::encode::{Encoded, Encoder};
use crate::event::route::DeadLetterRouter;
use crate::event::{Content, Message, Record};
use crate::relay::core::window::Item;
use crate::sink::Lane;
use crate::telemetry::trace::Tracer;

/// Publishes a batch. Rows that cannot be encoded are refused before anything is sent; rows that
/// must not share the batch come back unavailable and go with the next one.
pub(super) async fn publish(
    encoder: &Encoder,
    dead_letters: Option<&DeadLetterRouter>,
    lane: &mut dyn Lane,
    tracer: Option<&Tracer>,
    batch: Vec<Item>,
) -> Vec<(Item, Verdict)> {
    let mut verdicts: HashMap<i64, Verdict> = HashMap::with_capacity(batch.len());
    for item in batch.iter().filter(|item| item.dead_letter.is_none()) {
        if let Some(refusal) = item.record.content.refusal() {
            let reason = refusal.reason.clone();
            let verdict = match refusal.may_pass {
                true => Verdict::Rejected(reason),
                false => Verdict::Impossible(reason),
            };
            verdicts.insert(item.record.seq, verdict);
        }
    }
    let ordinary = batch
        .iter()
        .filter(|item| item.dead_letter.is_none() && item.record.content == Content::Whole);
    let encoded = encode(encoder, ordinary.map(|item| &item.record));
    for (seq, reason) in encoded.rejected {
        verdicts.insert(seq, Verdict::Impossible(reason));
    }
    let mut messages = encoded.messages;
    for item in &batch {
        if let Some(why) = &item.dead_letter {
            match dead_letter(encoder, dead_letters, &item.record, why) {
                Ok(message) => messages.push(message),
                Err(reason) => {
                    verdicts.insert(item.record.seq, Verdict::Impossible(reason));
                }
            }
        }
    }
    if !messages.is_empty() {
        let records = batch.iter().map(|item| &item.record);
        let sends = tracer.map(|tracer| tracer.sends(records, &mut messages));
        // Only a postponement leaves a record without an attempt.
        let waited: HashSet<i64> = batch
            .iter()
            .filter(|item| {
                let untried = item.record.attempts == 0 && item.record.crashes == 0;
                item.retried && untried && item.dead_letter.is_none()
            })
            .map(|item| item.record.seq)
            .collect();
        if !waited.is_empty() {
            let has_waited =
                |message: &&Message| message.seqs.iter().any(|seq| waited.contains(seq));
            for message in messages.iter().filter(has_waited) {
                lane.has_waited(message);
            }
        }
        let mut outcome = lane.publish(&messages).await;
        debug_assert_eq!(outcome.len(), messages.len());
        if let Some(sends) = sends {
            let (places, bare) = sends.without_hops(&messages, &outcome);
            if !bare.is_empty() {
                let again = lane.publish(&bare).await;
                for (place, verdict) in places.into_iter().zip(again) {
                    outcome[place] = verdict;
                }
            }
            sends.end(&outcome);
        }
        for (message, verdict) in messages.iter().zip(outcome) {
            for seq in &message.seqs {
                verdicts.insert(*seq, verdict.clone());
            }
        }
    }
    batch
        .into_iter()
        .map(|item| {
            let verdict = verdicts
                .remove(&item.record.seq)
                .unwrap_or(Verdict::Unavailable);
            (item, verdict)
        })
        .collect()
}

fn dead_letter(
    encoder: &Encoder,
    router: Option<&DeadLetterRouter>,
    record: &Record,
    why: &Reason,
) -> Result<Message, Reason> {
    match router {
        // As in its record: what cannot even be sent had its one attempt.
        Some(router) => encoder.dead_letter(record, router, why, record.attempts.max(1)),
        None => Err(Reason::new(
            ReasonCode::Other,
            "no dead-letter destination is set",
        )),
    }
}

/// Encodes, and keeps a row that makes the encoder panic from taking the relay with it.
fn encode<'a>(encoder: &Encoder, records: impl Iterator<Item = &'a Record> + Clone) -> Encoded {
    let all = records.clone();
    if let Ok(encoded) = catch_unwind(AssertUnwindSafe(|| encoder.encode(all))) {
        return encoded;
    }
    let mut encoded = Encoded::default();
    for record in records {
        match catch_unwind(AssertUnwindSafe(|| encoder.encode([record]))) {
            Ok(one) => {
                encoded.messages.extend(one.messages);
                encoded.rejected.extend(one.rejected);
            }
            Err(_) => {
                let reason = Reason::new(
                    ReasonCode::Poison,
                    "encoding this row failed by a defect of the relay; please report it",
                );
                encoded.rejected.push((record.seq, reason));
            }
        }
    }
    encoded
}
