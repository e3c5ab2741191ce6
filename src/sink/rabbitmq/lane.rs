//! One publishing lane: one batch at a time, on a channel that nobody else uses meanwhile.
//!
//! A batch is published in *runs*. Normally the whole batch is one run: all messages are issued in
//! order without waiting, then all confirms are awaited. A run ends early where two messages share
//! an id (returns are matched by id). A message under suspicion is a run of its own, and so is one whose route was
//! refused not long ago; that comes last.
//!
//! When the broker closes the channel under a run of several, its words mostly name the one it means. That one has its
//! verdict, and those that are not known to be confirmed are published again together. Where the words name none,
//! all are published again one at a time, each alone on its channel, so that a refusal has exactly one
//! cause and every innocent gets its own confirm.

use std::collections::{HashSet, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use lapin::protocol::{AMQPError, AMQPErrorKind};
use lapin::types::ShortString;
use lapin::{Channel, Error, ErrorKind};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::channels::Lent;
use super::exchanges::{Standing as Exists, ask};
use super::flight::{Flight, Landed, close, issue};
use super::link::Link;
use super::outcome::{decide, known_before_the_end};
use super::prepare::{Limits, Prepared, prepare};
use super::routes::Standing;
use super::supervisor::Shared;
use super::suspects::STRIKES;
use super::words::meant;
use crate::error::{Reason, ReasonCode, Verdict};
use crate::event::Message;
use crate::sink::{BoxFuture, Lane};

/// `connection-forced`: an operator or a shutdown closed the connection, not a message.
const CONNECTION_FORCED: u16 = 320;

/// Messages of refused routes that one batch tries, each alone: more would hold its other messages up.
const ALONE_MAX: usize = 4;

/// When the others are tried; spread by up to as much again.
const NOT_TRIED: Duration = Duration::from_secs(5);

/// See the module.
pub(super) struct RabbitMqLane {
    pub(super) shared: Arc<Shared>,
    links: watch::Receiver<Option<Arc<Link>>>,
    app_id: String,
}

/// How a run ended.
enum Run {
    /// Every message has its verdict.
    Settled(Vec<Verdict>),
    /// The broker closed the channel, for one of the messages. These are known to be confirmed nevertheless.
    Refused(AMQPError, Vec<bool>),
    /// The fate of the messages is unknown.
    Lost,
}

/// What to do after a run.
enum Next {
    /// All its messages have their verdicts.
    GoOn,
    /// These have not, and go again.
    Again(Vec<Prepared>),
    /// The connection is lost.
    Stop,
}

impl Lane for RabbitMqLane {
    fn publish<'a>(&'a mut self, batch: &'a [Message]) -> BoxFuture<'a, Vec<Verdict>> {
        Box::pin(self.publish_batch(batch))
    }

    fn has_waited(&self, message: &Message) {
        self.shared.routes.remember(message);
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
        let mut last = VecDeque::new();
        let mut ready = self.arrange(batch, ready, &mut last, &mut verdicts);
        let mut alone_left = ALONE_MAX;
        loop {
            let run = if ready.is_empty() {
                let Some(next) = self.next_alone(batch, &mut last, &mut alone_left, &mut verdicts)
                else {
                    return verdicts;
                };
                vec![next]
            } else {
                self.next_run(batch, &mut ready)
            };
            let settling = self.settle_run(&link, batch, run, &mut deadline, &mut verdicts);
            match settling.await {
                Next::GoOn => {}
                Next::Again(mut again) => {
                    // Asked again: the exchange may be what was missing.
                    if !self.drop_absent(&link, &mut again, &mut verdicts).await {
                        return verdicts;
                    }
                    for prepared in again.into_iter().rev() {
                        ready.push_front(prepared);
                    }
                    self.set_refused_aside(batch, &mut ready, &mut last, &mut verdicts);
                }
                Next::Stop => return verdicts,
            }
        }
    }

    /// Leaves out what waits for its route, and sets aside what goes alone.
    fn arrange(
        &self,
        batch: &[Message],
        mut ready: Vec<Prepared>,
        last: &mut VecDeque<Prepared>,
        verdicts: &mut [Verdict],
    ) -> VecDeque<Prepared> {
        ready.retain(|prepared| {
            let waits = self.shared.routes.waits(&batch[prepared.index]);
            let goes = waits.is_none();
            if let Some(verdict) = waits {
                verdicts[prepared.index] = verdict;
            }
            goes
        });
        let mut ready = ready.into();
        self.set_refused_aside(batch, &mut ready, last, verdicts);
        ready
    }

    /// Messages whose route was refused not long ago go last, and so do later ones of their keys: order is kept.
    fn set_refused_aside(
        &self,
        batch: &[Message],
        ready: &mut VecDeque<Prepared>,
        last: &mut VecDeque<Prepared>,
        verdicts: &mut [Verdict],
    ) {
        let mut behind: HashSet<&str> = HashSet::new();
        let mut go = VecDeque::with_capacity(ready.len());
        for prepared in ready.drain(..) {
            let message = &batch[prepared.index];
            let key = message.key.as_deref();
            match self.shared.routes.standing(message) {
                Standing::Refused(reason) => {
                    verdicts[prepared.index] = Verdict::Rejected(reason);
                }
                Standing::Open if key.is_none_or(|key| !behind.contains(key)) => {
                    go.push_back(prepared);
                }
                Standing::Open | Standing::Alone(_) => {
                    behind.extend(key);
                    last.push_back(prepared);
                }
            }
        }
        *ready = go;
    }

    /// The next of those that go alone.
    fn next_alone(
        &self,
        batch: &[Message],
        last: &mut VecDeque<Prepared>,
        alone_left: &mut usize,
        verdicts: &mut [Verdict],
    ) -> Option<Prepared> {
        while let Some(prepared) = last.pop_front() {
            let index = prepared.index;
            match self.shared.routes.standing(&batch[index]) {
                Standing::Open => return Some(prepared),
                Standing::Refused(reason) => verdicts[index] = Verdict::Rejected(reason),
                Standing::Alone(_) if *alone_left > 0 => {
                    *alone_left -= 1;
                    return Some(prepared);
                }
                Standing::Alone(reason) => {
                    let after = NOT_TRIED.mul_f64(1.0 + rand::random::<f64>());
                    verdicts[index] = Verdict::Postponed { reason, after };
                }
            }
        }
        None
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
            if standing == Exists::Unknown {
                standing = match ask(link, name, &self.shared.settings).await {
                    Ok(standing) => standing,
                    Err(reason) => {
                        link.give_up(&reason);
                        return false;
                    }
                };
            }
            if let Exists::Absent(reason) = standing {
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
    fn next_run(&self, batch: &[Message], ready: &mut VecDeque<Prepared>) -> Vec<Prepared> {
        let mut run = Vec::with_capacity(ready.len());
        let mut ids = HashSet::with_capacity(ready.len());
        while let Some(next) = ready.front() {
            let id = batch[next.index].id.as_str();
            let alone = self.shared.suspects.contains(id);
            if (alone && !run.is_empty()) || !ids.insert(id) {
                break;
            }
            run.extend(ready.pop_front());
            if alone {
                break;
            }
        }
        run
    }

    /// Publishes a run and records its verdicts.
    async fn settle_run(
        &mut self,
        link: &Arc<Link>,
        batch: &[Message],
        run: Vec<Prepared>,
        deadline: &mut Instant,
        verdicts: &mut [Verdict],
    ) -> Next {
        let mut indices: Vec<usize> = run.iter().map(|prepared| prepared.index).collect();
        match self.publish_run(link, batch, run, deadline).await {
            Run::Settled(settled) => {
                for (index, verdict) in indices.into_iter().zip(settled) {
                    self.shared.suspects.clear(&batch[index].id);
                    verdicts[index] = verdict;
                }
                Next::GoOn
            }
            Run::Refused(refusal, known) => {
                let confirmed = indices.iter().zip(&known).filter(|(_, known)| **known);
                for (index, _) in confirmed {
                    self.shared.suspects.clear(&batch[*index].id);
                    verdicts[*index] = Verdict::Confirmed;
                }
                let mut known = known.into_iter();
                indices.retain(|_| !known.next().unwrap_or_default());
                self.refused(link, batch, indices, &refusal, deadline, verdicts)
                    .await
            }
            Run::Lost => {
                if let [index] = indices[..]
                    && let Some(verdict) = self.exhausted(&batch[index])
                {
                    verdicts[index] = verdict;
                }
                Next::Stop
            }
        }
    }

    /// The broker closed the channel for one of these.
    async fn refused(
        &mut self,
        link: &Arc<Link>,
        batch: &[Message],
        indices: Vec<usize>,
        refusal: &AMQPError,
        deadline: &mut Instant,
        verdicts: &mut [Verdict],
    ) -> Next {
        let single = indices.len() == 1;
        let mut left = self.prepare_all(link, batch, indices.into_iter(), verdicts);
        let means =
            |prepared: &Prepared| meant(refusal, prepared, batch[prepared.index].body.len());
        // Messages are handled in order, so it is the first that fits.
        let culprit = left
            .iter()
            .position(|prepared| means(prepared).is_some())
            .or(single.then_some(0));
        if let Some(culprit) = culprit
            && culprit < left.len()
        {
            let culprit = left.remove(culprit);
            let message = &batch[culprit.index];
            self.shared.suspects.clear(&message.id);
            verdicts[culprit.index] = self.blame(link, message, refusal, means(&culprit));
            return Next::Again(left);
        }
        tracing::debug!(
            refusal = %refusal.get_message(),
            messages = left.len(),
            "the broker closed the channel; publishing its messages one at a time"
        );
        if refusal.get_id() == 404 {
            link.exchanges.doubt_all();
        }
        let ids = left
            .iter()
            .map(|prepared| batch[prepared.index].id.as_str());
        self.shared.suspects.add(ids);
        self.settle_singly(link, batch, left, deadline, verdicts)
            .await
    }

    async fn settle_singly(
        &mut self,
        link: &Arc<Link>,
        batch: &[Message],
        all: Vec<Prepared>,
        deadline: &mut Instant,
        verdicts: &mut [Verdict],
    ) -> Next {
        for prepared in all {
            let index = prepared.index;
            let mut one = vec![prepared];
            // Asked again each time: the exchange may be what was missing.
            if !self.drop_absent(link, &mut one, verdicts).await {
                return Next::Stop;
            }
            if one.is_empty() {
                self.shared.suspects.clear(&batch[index].id);
                continue;
            }
            let settling = Box::pin(self.settle_run(link, batch, one, deadline, verdicts));
            if let Next::Stop = settling.await {
                return Next::Stop;
            }
        }
        Next::GoOn
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
        let Some((lent, channel)) = self.take_channel(link, deadline).await else {
            return Run::Lost;
        };
        let indices: Vec<usize> = run.iter().map(|prepared| prepared.index).collect();
        let mut flight = Flight::new(link);
        let landing = flight.land(issue(&channel, batch, run));
        let Some(landed) = self.await_landing(link, landing, deadline).await else {
            self.give_up(link, &channel, flight).await;
            return Run::Lost;
        };
        flight.finish();
        let confirmations = match landed {
            Landed::All(confirmations) => confirmations,
            Landed::Partly(known, error) => {
                // Room for a channel again, before anything is asked.
                drop(lent);
                return self.judge(link, batch, &indices, &known_before_the_end(&known), &error);
            }
        };
        match decide(batch, &indices, confirmations) {
            Ok(mut verdicts) => {
                lent.give_back(channel);
                self.explain_returns(link, batch, &indices, &mut verdicts)
                    .await;
                self.shared.routes.learn(batch, &indices, &mut verdicts);
                Run::Settled(verdicts)
            }
            Err(contradiction) => {
                tracing::warn!(
                    contradiction = contradiction.0,
                    messages = indices.len(),
                    "confirms and returns do not add up; publishing the batch again"
                );
                close(link, &channel).await;
                Run::Lost
            }
        }
    }

    /// A channel to have alone for a while. Waiting for one does not count: others take their time with it.
    async fn take_channel<'a>(
        &self,
        link: &'a Arc<Link>,
        deadline: &mut Instant,
    ) -> Option<(Lent<'a>, Channel)> {
        let begun = Instant::now();
        tokio::select! {
            biased;
            taken = link.channels.take(link) => match taken {
                Ok(taken) => {
                    *deadline += begun.elapsed();
                    Some(taken)
                }
                Err(reason) => {
                    link.give_up(&reason);
                    None
                }
            },
            _ = link.ended() => None,
            () = sleep_until(*deadline) => None,
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

    fn judge(
        &self,
        link: &Link,
        batch: &[Message],
        run: &[usize],
        known: &[bool],
        error: &Error,
    ) -> Run {
        let ErrorKind::ProtocolError(refusal) = error.kind() else {
            return Run::Lost;
        };
        let soft = matches!(refusal.kind(), AMQPErrorKind::Soft(_));
        if soft && link.is_alive() {
            return Run::Refused(refusal.clone(), known.to_vec());
        }
        if !soft && refusal.get_id() == CONNECTION_FORCED {
            return Run::Lost;
        }
        let ids = run.iter().map(|index| batch[*index].id.as_str());
        match run {
            [index] => self.shared.suspects.strike(&batch[*index].id),
            _ => self.shared.suspects.add(ids),
        }
        Run::Lost
    }
}
