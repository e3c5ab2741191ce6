//! One batch at a time: prepare, look up topics, send, await all reports, decide.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::types::RDKafkaErrorCode as Code;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::link::{Link, Topic, ticket};
use super::outcome::{self, Report, Reports};
use super::prepare::{Prepared, prepare};
use super::supervisor::Shared;
use crate::error::Verdict;
use crate::event::Message;
use crate::sink::{BoxFuture, Lane};

/// How soon a full queue is tried again; it empties as records are confirmed.
const ROOM_PAUSE: Duration = Duration::from_millis(5);

/// Lanes share a producer, which puts their records together as it likes.
pub(super) struct KafkaLane {
    shared: Arc<Shared>,
}

impl KafkaLane {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

impl Lane for KafkaLane {
    fn publish<'a>(&'a mut self, batch: &'a [Message]) -> BoxFuture<'a, Vec<Verdict>> {
        Box::pin(async move {
            let mut verdicts = vec![None; batch.len()];
            let link = self.shared.link.borrow().clone();
            if let Some(link) = link {
                publish(&self.shared, &link, batch, &mut verdicts).await;
            } else {
                self.shared.status.catch_up().await;
            }
            let open = |verdict: Option<Verdict>| verdict.unwrap_or(Verdict::Unavailable);
            verdicts.into_iter().map(open).collect()
        })
    }
}

/// Fills in verdicts. What is left open is unavailable.
async fn publish(
    shared: &Shared,
    link: &Arc<Link>,
    batch: &[Message],
    verdicts: &mut [Option<Verdict>],
) {
    let size = shared.settings.max_message_size;
    let mut prepared = Vec::with_capacity(batch.len());
    for (index, message) in batch.iter().enumerate() {
        match prepare(index, message, size) {
            Ok(record) => prepared.push(record),
            Err(reason) => verdicts[index] = Some(Verdict::Impossible(reason)),
        }
    }
    if let Err(reason) = keep_known(link, batch, &mut prepared, verdicts).await {
        tracing::debug!(reason, "topics could not be looked up");
        return;
    }

    let deadline = Instant::now() + shared.settings.confirm_timeout;
    let reports = {
        let _others_too = shared.gate.read().await;
        send(shared, link, batch, &mut prepared, deadline).await
    };
    let mut together = Vec::new();
    for (record, report) in prepared.iter().zip(reports) {
        match report {
            Some(Report::Shared(_)) => together.push(record.index),
            report => settle(
                link,
                &batch[record.index],
                report,
                &mut verdicts[record.index],
            ),
        }
    }
    if !together.is_empty() {
        one_by_one(shared, link, batch, &together, verdicts).await;
    }
}

/// Drops the records whose topic cannot take them. `Err`: no answer.
async fn keep_known(
    link: &Arc<Link>,
    batch: &[Message],
    prepared: &mut Vec<Prepared>,
    verdicts: &mut [Option<Verdict>],
) -> Result<(), String> {
    let mut refused: HashMap<&str, Option<Verdict>> = HashMap::new();
    for record in prepared.iter() {
        let topic = batch[record.index].destination.as_str();
        if !refused.contains_key(topic) {
            let standing = match link.topic(topic).await? {
                Topic::Known => None,
                Topic::Refused(verdict) => Some(verdict),
            };
            refused.insert(topic, standing);
        }
    }
    prepared.retain(|record| {
        let topic = batch[record.index].destination.as_str();
        let Some(Some(verdict)) = refused.get(topic) else {
            return true;
        };
        verdicts[record.index] = Some(verdict.clone());
        false
    });
    Ok(())
}

/// Sends records in order and awaits their reports, one for each; `None` is an open fate.
async fn send(
    shared: &Shared,
    link: &Arc<Link>,
    batch: &[Message],
    prepared: &mut [Prepared],
    deadline: Instant,
) -> Vec<Option<Report>> {
    let reports = Arc::new(Reports::new(prepared.len()));
    let mut complete = true;
    'records: for (position, record) in prepared.iter_mut().enumerate() {
        let message = &batch[record.index];
        loop {
            match link.send(record, message, ticket(&reports, position)) {
                Ok(()) => break,
                Err(Code::QueueFull) if Instant::now() < deadline => sleep(ROOM_PAUSE).await,
                Err(code @ (Code::QueueFull | Code::PurgeQueue | Code::Fatal)) => {
                    if code == Code::Fatal {
                        link.fail("the producer has failed for good");
                    }
                    complete = false;
                    break 'records;
                }
                Err(code) => {
                    reports.set(position, outcome::report(code, &message.destination));
                    break;
                }
            }
        }
    }
    tokio::select! {
        () = reports.complete(), if complete => {}
        () = link.ended() => {}
        () = sleep_until(deadline) => {
            let limit = shared.settings.confirm_timeout;
            link.fail(&format!("no confirm within {limit:?} (OUTRIGGER_KAFKA_CONFIRM_TIMEOUT)"));
        }
    }
    reports.take()
}

/// Finds out which records made the broker refuse a batch: each goes alone, while all other lanes wait.
async fn one_by_one(
    shared: &Shared,
    link: &Arc<Link>,
    batch: &[Message],
    indexes: &[usize],
    verdicts: &mut [Option<Verdict>],
) {
    let deadline = Instant::now() + shared.settings.confirm_timeout;
    let Ok(_alone) = timeout_at(deadline, shared.gate.write()).await else {
        return;
    };
    if indexes.len() > 1 {
        tracing::warn!(
            topic = batch[indexes[0]].destination,
            records = indexes.len(),
            "the broker refused a batch of records; they are sent one at a time. If this is frequent, set \
             OUTRIGGER_KAFKA_MAX_MESSAGE_SIZE to the topic's max.message.bytes"
        );
    }
    for &index in indexes {
        let message = &batch[index];
        let Ok(record) = prepare(index, message, shared.settings.max_message_size) else {
            continue;
        };
        let mut reports = send(shared, link, batch, &mut [record], deadline).await;
        let report = match reports.pop().flatten() {
            Some(Report::Shared(verdict)) => Some(Report::Own(verdict)),
            report => report,
        };
        let open = report.is_none();
        settle(link, message, report, &mut verdicts[index]);
        if open {
            // The producer is at its end; those behind it must not go first.
            return;
        }
    }
}

fn settle(link: &Link, message: &Message, report: Option<Report>, verdict: &mut Option<Verdict>) {
    *verdict = report.map(|report| match report {
        Report::Own(verdict) | Report::Shared(verdict) => verdict,
        Report::Missing(verdict) => {
            link.forget(&message.destination);
            verdict
        }
    });
}
