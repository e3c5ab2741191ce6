//! One publishing lane: a channel used by one task, with one batch on it at a time.
//!
//! A batch is published in *runs*. Normally the whole batch is one run: all messages are issued in
//! order without waiting, then all confirms are awaited. A run ends early where two messages share
//! an id (returns are matched by id), and a message under suspicion is a run of its own.
//!
//! When the broker closes the channel under a run of several, none of them is blamed. They are all
//! published again one at a time, each alone on its channel, so that a refusal has exactly one
//! cause and every innocent gets its own confirm.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;

use lapin::protocol::{AMQPError, AMQPErrorKind};
use lapin::types::ShortString;
use lapin::{Channel, Error, ErrorKind};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::exchanges::{Standing, absent, ask, forbidden};
use super::flight::{Flight, close, issue};
use super::link::Link;
use super::outcome::decide;
use super::prepare::{Limits, Prepared, prepare};
use super::supervisor::Shared;
use super::suspects::STRIKES;
use crate::error::{Reason, ReasonCode, Verdict};
use crate::event::Message;
use crate::sink::{BoxFuture, Lane};

/// `connection-forced`: an operator or a shutdown closed the connection, not a message.
const CONNECTION_FORCED: u16 = 320;

/// See the module.
pub(super) struct RabbitMqLane {
    shared: Arc<Shared>,
    links: watch::Receiver<Option<Arc<Link>>>,
    app_id: String,
    /// Taken out while a run is on it, so that a run that does not end well, or whose future is
    /// dropped, leaves no channel behind for the next one.
    channel: Option<(Arc<Link>, Channel)>,
}

/// How a run ended.
enum Run {
    /// Every message has its verdict.
    Settled(Vec<Verdict>),
    /// The broker closed the channel, for one of the messages.
    Refused(AMQPError),
    /// The fate of the messages is unknown.
    Lost,
}

impl Lane for RabbitMqLane {
    fn publish<'a>(&'a mut self, batch: &'a [Message]) -> BoxFuture<'a, Vec<Verdict>> {
        Box::pin(self.publish_batch(batch))
    }
}

impl RabbitMqLane {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let links = shared.link.subscribe();
        let app_id = shared.settings.app_id.clone();
        Self {
            shared,
            links,
            app_id: app_id.unwrap_or_else(|| "outrigger".to_owned()),
            channel: None,
        }
    }

    async fn publish_batch(&mut self, batch: &[Message]) -> Vec<Verdict> {
        let mut verdicts = vec![Verdict::Unavailable; batch.len()];
        let link = self.links.borrow_and_update().clone();
        // Also while blocked: otherwise lapin's queue would grow by one batch after the other.
        let Some(link) = link.filter(|link| link.is_alive() && !link.is_blocked()) else {
            self.shared.status.catch_up().await;
            return verdicts;
        };
        let mut deadline = Instant::now() + self.shared.settings.confirm_timeout;
        let mut ready = self.prepare_all(&link, batch, 0..batch.len(), &mut verdicts);
        if !self.drop_absent(&link, &mut ready, &mut verdicts).await {
            return verdicts;
        }
        let mut ready = ready.into_iter().peekable();
        while ready.peek().is_some() {
            let run = self.next_run(&link, batch, &mut ready);
            if !self
                .settle_run(&link, batch, run, &mut deadline, &mut verdicts)
                .await
            {
                break;
            }
        }
        verdicts
    }

    /// Refuses what can never be sent; the rest is ready.
    fn prepare_all(
        &self,
        link: &Link,
        batch: &[Message],
        indices: impl Iterator<Item = usize>,
        verdicts: &mut [Verdict],
    ) -> Vec<Prepared> {
        let limits = Limits {
            frame_max: link.frame_max(),
            max_message_size: self.shared.settings.max_message_size,
            refused_size: link.refused_size(),
            user: link.login(),
            expiration: self.shared.settings.expiration,
        };
        let mut ready = Vec::with_capacity(batch.len());
        for index in indices {
            match prepare(index, &batch[index], &self.app_id, limits) {
                Ok(prepared) => ready.push(prepared),
                Err(reason) => {
                    self.shared.suspects.clear(&batch[index].id);
                    verdicts[index] = Verdict::Impossible(reason);
                }
            }
        }
        ready
    }

    /// Takes out what goes to exchanges that do not exist. False if the broker cannot be asked.
    async fn drop_absent(
        &self,
        link: &Link,
        ready: &mut Vec<Prepared>,
        verdicts: &mut [Verdict],
    ) -> bool {
        let mut absent: Vec<(ShortString, Reason)> = Vec::new();
        let mut last: Option<&str> = None;
        for prepared in ready.iter() {
            let name = prepared.exchange.as_str();
            // Neighbours mostly share their exchange.
            if last == Some(name) {
                continue;
            }
            last = Some(name);
            let mut standing = link.exchanges.standing(name);
            if standing == Standing::Unknown {
                standing = match ask(link, name, &self.shared.settings).await {
                    Ok(standing) => standing,
                    Err(reason) => {
                        link.end(&reason);
                        return false;
                    }
                };
            }
            if let Standing::Absent(reason) = standing {
                absent.push((prepared.exchange.clone(), reason));
            }
        }
        if !absent.is_empty() {
            ready.retain(|prepared| {
                let Some((_, reason)) = absent.iter().find(|(name, _)| *name == prepared.exchange)
                else {
                    return true;
                };
                verdicts[prepared.index] = Verdict::Rejected(reason.clone());
                false
            });
        }
        true
    }

    /// The longest stretch that can be in flight together.
    fn next_run(
        &self,
        link: &Link,
        batch: &[Message],
        ready: &mut std::iter::Peekable<std::vec::IntoIter<Prepared>>,
    ) -> Vec<Prepared> {
        let mut run = Vec::with_capacity(ready.len());
        let mut ids = HashSet::with_capacity(ready.len());
        let mut last: Option<(ShortString, bool)> = None;
        while let Some(next) = ready.peek() {
            let id = batch[next.index].id.as_str();
            let careful = match &last {
                Some((name, careful)) if *name == next.exchange => *careful,
                _ => {
                    let standing = link.exchanges.standing(next.exchange.as_str());
                    let careful = standing == Standing::Careful;
                    last = Some((next.exchange.clone(), careful));
                    careful
                }
            };
            let alone = careful || self.shared.suspects.contains(id);
            if (alone && !run.is_empty()) || !ids.insert(id) {
                break;
            }
            run.extend(ready.next());
            if alone {
                break;
            }
        }
        run
    }

    /// Publishes a run and records its verdicts. False if the connection is lost.
    async fn settle_run(
        &mut self,
        link: &Arc<Link>,
        batch: &[Message],
        run: Vec<Prepared>,
        deadline: &mut Instant,
        verdicts: &mut [Verdict],
    ) -> bool {
        let indices: Vec<usize> = run.iter().map(|prepared| prepared.index).collect();
        match self.publish_run(link, batch, run, deadline).await {
            Run::Settled(settled) => {
                for (index, verdict) in indices.into_iter().zip(settled) {
                    self.shared.suspects.clear(&batch[index].id);
                    verdicts[index] = verdict;
                }
                true
            }
            Run::Refused(refusal) if indices.len() == 1 => {
                let message = &batch[indices[0]];
                self.shared.suspects.clear(&message.id);
                verdicts[indices[0]] = blame(link, message, &refusal);
                true
            }
            Run::Refused(refusal) => {
                tracing::debug!(
                    refusal = %refusal.get_message(),
                    messages = indices.len(),
                    "the broker closed the channel; publishing its messages one at a time"
                );
                self.settle_singly(link, batch, indices, deadline, verdicts)
                    .await
            }
            Run::Lost => {
                if let [index] = indices[..]
                    && let Some(verdict) = self.exhausted(&batch[index])
                {
                    verdicts[index] = verdict;
                }
                false
            }
        }
    }

    async fn settle_singly(
        &mut self,
        link: &Arc<Link>,
        batch: &[Message],
        indices: Vec<usize>,
        deadline: &mut Instant,
        verdicts: &mut [Verdict],
    ) -> bool {
        for index in indices {
            let mut one = self.prepare_all(link, batch, std::iter::once(index), verdicts);
            // Asked again each time: the exchange may be what was missing.
            if !self.drop_absent(link, &mut one, verdicts).await {
                return false;
            }
            if one.is_empty() {
                self.shared.suspects.clear(&batch[index].id);
                continue;
            }
            if !Box::pin(self.settle_run(link, batch, one, deadline, verdicts)).await {
                return false;
            }
        }
        true
    }

    /// The verdict on a message that was alone in flight at too many failures.
    fn exhausted(&self, message: &Message) -> Option<Verdict> {
        let suspects = &self.shared.suspects;
        if !suspects.has_struck_out(&message.id, STRIKES) {
            return None;
        }
        suspects.clear(&message.id);
        Some(Verdict::Rejected(Reason::new(
            ReasonCode::Other,
            format!(
                "the broker closed the connection {STRIKES} times while this message was alone in \
                 flight; look for the cause in the broker's log"
            ),
        )))
    }

    async fn publish_run(
        &mut self,
        link: &Arc<Link>,
        batch: &[Message],
        run: Vec<Prepared>,
        deadline: &mut Instant,
    ) -> Run {
        let channel = match self.take_channel(link).await {
            Ok(channel) => channel,
            Err(reason) => {
                link.end(&reason);
                return Run::Lost;
            }
        };
        let ids: Vec<&str> = run
            .iter()
            .map(|prepared| batch[prepared.index].id.as_str())
            .collect();
        let mut flight = Flight::new(link);
        let landing = flight.land(issue(&channel, batch, run));
        let Some(result) = self.await_landing(link, landing, deadline).await else {
            self.give_up(link, &channel, flight).await;
            return Run::Lost;
        };
        flight.finish();
        match result.map(|confirmations| decide(&ids, confirmations)) {
            Ok(Ok(verdicts)) => {
                self.channel = Some((Arc::clone(link), channel));
                Run::Settled(verdicts)
            }
            Ok(Err(contradiction)) => {
                tracing::warn!(
                    contradiction = contradiction.0,
                    messages = ids.len(),
                    "confirms and returns do not add up; publishing the batch again"
                );
                close(link, &channel).await;
                Run::Lost
            }
            Err(error) => self.judge(link, &ids, &error),
        }
    }

    /// Waits for the confirms of a run; `None` when they do not come in time.
    ///
    /// A broker that blocks publishers answers when its alarm ends, so that time does not count. Giving up
    /// would help nobody: the next connection is blocked as well, after it has taken one more copy of everything.
    /// Should the broker vanish meanwhile, heartbeats end the connection.
    async fn await_landing<T>(
        &self,
        link: &Link,
        landing: impl Future<Output = T>,
        deadline: &mut Instant,
    ) -> Option<T> {
        let mut landing = std::pin::pin!(landing);
        let mut state = self.shared.status.subscribe();
        loop {
            tokio::select! {
                biased;
                landed = &mut landing => return Some(landed),
                // A block began or ended; a broker that has just woken up gets its full time.
                Ok(()) = state.changed() => {}
                () = sleep_until(*deadline) => {
                    if !link.is_alive() || !link.is_blocked() {
                        return None;
                    }
                }
            }
            *deadline = Instant::now() + self.shared.settings.confirm_timeout;
        }
    }

    /// The channel of this lane, opened if there is none on this connection.
    async fn take_channel(&mut self, link: &Arc<Link>) -> Result<Channel, String> {
        match self.channel.take() {
            Some((of, channel)) if of.id() == link.id() && channel.status().connected() => {
                Ok(channel)
            }
            _ => link.open_confirm_channel().await,
        }
    }

    /// The confirms did not come in time. If everything had been written, the broker has received
    /// all of it before the close that follows, and a fresh channel will do. Otherwise the rest is
    /// still queued and would be sent some time later: only ending the connection prevents that.
    async fn give_up(&self, link: &Arc<Link>, channel: &Channel, flight: Flight<'_>) {
        let timeout = self.shared.settings.confirm_timeout;
        if flight.written {
            tracing::warn!(
                ?timeout,
                "the broker did not confirm a batch in time; publishing it again"
            );
            flight.finish();
            close(link, channel).await;
        } else {
            flight.finish();
            link.end(&format!(
                "the broker did not take a batch within {timeout:?}"
            ));
        }
    }

    fn judge(&self, link: &Link, ids: &[&str], error: &Error) -> Run {
        let ErrorKind::ProtocolError(refusal) = error.kind() else {
            return Run::Lost;
        };
        let soft = matches!(refusal.kind(), AMQPErrorKind::Soft(_));
        if !soft && refusal.get_id() == CONNECTION_FORCED {
            return Run::Lost;
        }
        if let [id] = ids {
            if soft && link.is_alive() {
                return Run::Refused(refusal.clone());
            }
            self.shared.suspects.strike(id);
            return Run::Lost;
        }
        self.shared.suspects.add(ids.iter().copied());
        if !soft || !link.is_alive() {
            return Run::Lost;
        }
        if refusal.get_id() == 404 {
            link.exchanges.doubt_all();
        }
        Run::Refused(refusal.clone())
    }
}

/// The verdict on the one message whose publishing closed its channel.
fn blame(link: &Link, message: &Message, refusal: &AMQPError) -> Verdict {
    let text = refusal.get_message();
    match refusal.get_id() {
        404 => {
            link.exchanges.doubt_all();
            Verdict::Rejected(absent(link, &message.destination))
        }
        403 => {
            link.exchanges.be_careful_with(&message.destination);
            Verdict::Rejected(forbidden(link, &message.destination))
        }
        406 if text.as_str().contains("message size") => {
            link.note_refused_size(message.body.len());
            Verdict::Impossible(Reason::new(
                ReasonCode::TooLarge,
                format!(
                    "the broker refused a body of {} bytes: {text}; raise its `max_message_size`, \
                     or lower OUTRIGGER_RABBITMQ_MAX_MESSAGE_SIZE to match it",
                    message.body.len()
                ),
            ))
        }
        code => Verdict::Rejected(Reason::new(
            ReasonCode::Other,
            format!("the broker refused the message: {text} ({code})"),
        )),
    }
}
