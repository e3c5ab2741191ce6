//! One publishing lane: an inbox, used by one task, with one batch under way at a time.
//!
//! All messages of a batch are sent in order without waiting, then their answers are awaited, in
//! whatever order they come. Each names its message by the last part of its subject, so an answer to an
//! earlier batch cannot be mistaken for one to this.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::Subscriber;
use futures_util::StreamExt as _;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::link::Link;
use super::outcome::{Outcome, read};
use super::prepare::{Prepared, Server, prepare};
use super::streams::{Inquiry, why_silent};
use super::supervisor::{FULL_PAUSE, Shared};
use crate::error::{Reason, ReasonCode, Verdict};
use crate::event::Message;
use crate::sink::{BoxFuture, Lane};

/// Streams that are asked about after a batch was not answered.
const ASKED_MAX: usize = 4;

/// How long everything waits when the stream that takes its subjects acknowledges nothing.
const SILENT_PAUSE: Duration = Duration::from_secs(30);

/// See the module.
pub(super) struct NatsLane {
    shared: Arc<Shared>,
    links: watch::Receiver<Option<Arc<Link>>>,
    inbox: Option<Inbox>,
    /// Counts batches, also abandoned ones.
    batches: u64,
}

/// Where answers come in on one connection.
struct Inbox {
    link: u64,
    subject: String,
    answers: Subscriber,
}

/// A message that was sent and is not answered yet.
struct Pending {
    index: usize,
    size: usize,
}

impl Lane for NatsLane {
    fn publish<'a>(&'a mut self, batch: &'a [Message]) -> BoxFuture<'a, Vec<Verdict>> {
        Box::pin(self.publish_batch(batch))
    }
}

impl NatsLane {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let links = shared.link.subscribe();
        Self {
            shared,
            links,
            inbox: None,
            batches: 0,
        }
    }

    async fn publish_batch(&mut self, batch: &[Message]) -> Vec<Verdict> {
        let mut verdicts = vec![Verdict::Unavailable; batch.len()];
        let link = self.links.borrow_and_update().clone();
        let Some(link) = link.filter(|link| link.is_alive() && !self.shared.status.is_blocked())
        else {
            self.shared.status.catch_up().await;
            return verdicts;
        };
        let server = Server {
            max_payload: link.client().max_payload(),
            knows_ttl: link.knows_ttl(),
        };
        let mut ready = Vec::with_capacity(batch.len());
        for (index, message) in batch.iter().enumerate() {
            match prepare(index, message, server) {
                Ok(prepared) => ready.push(prepared),
                Err(reason) => verdicts[index] = Verdict::Impossible(reason),
            }
        }
        self.drop_unfit(&link, batch, &mut ready, &mut verdicts)
            .await;
        if ready.is_empty() {
            return verdicts;
        }
        let deadline = Instant::now() + self.shared.settings.confirm_timeout;
        let mut unclaimed = Vec::new();
        let flight = self.fly(&link, batch, ready, &mut verdicts, &mut unclaimed);
        tokio::select! {
            biased;
            () = flight => {}
            _ = link.ended() => return verdicts,
            () = sleep_until(deadline) => {
                tracing::warn!(
                    timeout = ?self.shared.settings.confirm_timeout,
                    "NATS did not acknowledge a batch in time; publishing it again"
                );
                self.look_for_silence(&link, batch, &verdicts).await;
                return verdicts;
            }
        }
        let mut inquiry = Inquiry::default();
        for index in unclaimed {
            let Message {
                destination,
                routing_key,
                ..
            } = &batch[index];
            verdicts[index] = inquiry.verdict(&link, destination, routing_key).await;
        }
        verdicts
    }

    /// Takes out what goes to streams by which nothing can be confirmed.
    async fn drop_unfit(
        &self,
        link: &Link,
        batch: &[Message],
        ready: &mut Vec<Prepared>,
        verdicts: &mut [Verdict],
    ) {
        let mut asked: HashMap<&str, Option<Verdict>> = HashMap::new();
        let mut left = Vec::with_capacity(ready.len());
        for prepared in ready.drain(..) {
            let name = batch[prepared.index].destination.as_str();
            // An empty name means whichever stream takes the subject.
            if !name.is_empty() && !asked.contains_key(name) {
                asked.insert(name, self.shared.streams.unfit(link, name).await);
            }
            match asked.get(name) {
                Some(Some(verdict)) => verdicts[prepared.index] = verdict.clone(),
                _ => left.push(prepared),
            }
        }
        *ready = left;
    }

    /// Some messages were not answered: is that how their streams are?
    async fn look_for_silence(&self, link: &Link, batch: &[Message], verdicts: &[Verdict]) {
        self.shared.streams.doubt();
        let mut silent: Vec<&Message> = Vec::new();
        for (message, verdict) in batch.iter().zip(verdicts) {
            let asked = |other: &&Message| {
                other.destination == message.destination
                    && (!message.destination.is_empty() || other.routing_key == message.routing_key)
            };
            if *verdict == Verdict::Unavailable
                && silent.len() < ASKED_MAX
                && !silent.iter().any(asked)
            {
                silent.push(message);
            }
        }
        for message in silent {
            let (name, subject) = (&message.destination, &message.routing_key);
            let Some(reason) = why_silent(link, name, subject).await else {
                continue;
            };
            if self.shared.settings.known_destinations.contains(name) && !name.is_empty() {
                // The next connection waits until it is as it should be.
                link.end(&reason);
                return;
            }
            if name.is_empty() {
                self.shared.status.block_for(reason, SILENT_PAUSE);
                return;
            }
        }
    }

    /// Sends everything and takes in the answers. Dropped at any time, it leaves the verdicts
    /// that are known.
    async fn fly(
        &mut self,
        link: &Link,
        batch: &[Message],
        ready: Vec<Prepared>,
        verdicts: &mut [Verdict],
        unclaimed: &mut Vec<usize>,
    ) {
        self.batches += 1;
        let number = self.batches;
        let mut forbidden = link.forbidden();
        forbidden.mark_unchanged();
        let known_forbidden = forbidden.borrow().len();
        let shared = Arc::clone(&self.shared);
        let Some(inbox) = self.inbox(link).await else {
            return;
        };
        let mut pending: HashMap<String, Pending> = HashMap::with_capacity(ready.len());
        for prepared in ready {
            let message = &batch[prepared.index];
            let token = format!("{number}-{}", prepared.index);
            let reply = format!("{}.{token}", inbox.subject);
            let sending = link.client().publish_with_reply_and_headers(
                message.routing_key.clone(),
                reply,
                prepared.headers,
                message.body.clone(),
            );
            if sending.await.is_err() {
                // The connection is gone; what was sent before has no answer either.
                return;
            }
            let Prepared { index, size, .. } = prepared;
            pending.insert(token, Pending { index, size });
        }
        while !pending.is_empty() {
            tokio::select! {
                biased;
                answer = inbox.answers.next() => {
                    let Some(answer) = answer else { return };
                    let token = answer.subject.rsplit('.').next().unwrap_or_default();
                    let Some(Pending { index, size }) = pending.remove(token) else {
                        continue;
                    };
                    let stream = &batch[index].destination;
                    match read(answer.status, &answer.payload, stream, size) {
                        Outcome::Verdict(verdict) => verdicts[index] = verdict,
                        Outcome::NobodyTook => unclaimed.push(index),
                        Outcome::Full(text) => shared.status.block_for(text, FULL_PAUSE),
                    }
                }
                Ok(()) = forbidden.changed() => {
                    let known = forbidden.borrow_and_update();
                    let new = known.get(known_forbidden..).unwrap_or(&known);
                    pending.retain(|_, Pending { index, .. }| {
                        let subject = &batch[*index].routing_key;
                        let refused = new.contains(subject);
                        if refused {
                            verdicts[*index] = Verdict::Rejected(not_allowed(subject));
                        }
                        !refused
                    });
                }
            }
        }
        unclaimed.sort_unstable();
    }

    /// The inbox on this connection, opened if there is none.
    async fn inbox(&mut self, link: &Link) -> Option<&mut Inbox> {
        if self
            .inbox
            .as_ref()
            .is_none_or(|inbox| inbox.link != link.id())
        {
            let subject = link.client().new_inbox();
            let answers = link.client().subscribe(format!("{subject}.*")).await.ok()?;
            self.inbox = Some(Inbox {
                link: link.id(),
                subject,
                answers,
            });
        }
        self.inbox.as_mut()
    }
}

fn not_allowed(subject: &str) -> Reason {
    Reason::new(
        ReasonCode::Forbidden,
        format!(
            "this user may not publish to the subject `{subject}`; grant it, or correct the route"
        ),
    )
}
