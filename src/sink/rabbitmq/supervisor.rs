//! What the lanes share with the task that keeps them connected, and how that is done for RabbitMQ.
//!
//! Every connection is a fresh one; lapin's own recovery is not used.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use lapin::Event;
use tokio::sync::{Notify, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::channels::ChannelLimit;
use super::endpoint::Endpoint;
use super::exchanges::{Standing, ask};
use super::lane::RabbitMqLane;
use super::link::{Link, TOO_MANY_CHANNELS};
use super::queues::missing;
use super::routes::Routes;
use super::settings::RabbitMqSettings;
use super::suspects::Suspects;
use crate::sink::backoff::backoff;
use crate::sink::supervised::{Connect, Status, Supervised, keep_connected};
use crate::sink::{Lane, SinkState};

/// lapin reports most ends of a connection as an event, but not all, so its status is asked too.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// How often the queues of the settings are asked for.
const QUEUES_INTERVAL: Duration = Duration::from_secs(2);

/// How often it is said again that not all is well.
const REMIND_INTERVAL: Duration = Duration::from_secs(60);

/// What the supervisor, the lanes and the sink have in common.
pub(super) struct Shared {
    pub(super) settings: RabbitMqSettings,
    pub(super) status: Status,
    pub(super) link: watch::Sender<Option<Arc<Link>>>,
    pub(super) suspects: Suspects,
    pub(super) routes: Routes,
    /// A message came back while a queue of the settings was away: look at once.
    pub(super) doubt_queues: Notify,
    limit: ChannelLimit,
    endpoints: Vec<Endpoint>,
}

impl Shared {
    pub(super) fn new(settings: RabbitMqSettings, endpoints: Vec<Endpoint>) -> Self {
        Self {
            routes: Routes::new(settings.unroutable_patience),
            doubt_queues: Notify::new(),
            limit: ChannelLimit::default(),
            status: Status::new("RabbitMQ").calling("OUTRIGGER_RABBITMQ_URL", &settings.url_name),
            settings,
            link: watch::Sender::new(None),
            suspects: Suspects::default(),
            endpoints,
        }
    }

    /// Holds the sink back until all configured exchanges exist: publishing anyway would cost every
    /// event its attempts because of a broker that is not set up yet.
    async fn await_destinations(&self, link: &Link) -> Result<(), String> {
        for name in &self.settings.known_destinations {
            let mut asked = 0;
            // The default exchange always exists.
            while !name.is_empty() {
                match ask(link, name, &self.settings).await? {
                    Standing::Absent(reason) => {
                        self.status.report(SinkState::Down(reason.detail));
                        asked += 1;
                        tokio::time::sleep(backoff(asked, rand::random())).await;
                    }
                    _ => break,
                }
            }
        }
        let mut asked = 0;
        while let Some(reason) = missing(link, &self.settings.queues).await? {
            self.status.report(SinkState::Down(reason));
            asked += 1;
            tokio::time::sleep(backoff(asked, rand::random())).await;
        }
        Ok(())
    }

    /// Ready, with what is not as it should be.
    fn ready(&self, link: &Link) -> SinkState {
        let limited = link.channels.plan().and_then(|plan| plan.limited.clone());
        let all: Vec<String> = limited.into_iter().chain(self.routes.trouble()).collect();
        match all.is_empty() {
            true => SinkState::Ready,
            false => SinkState::Impaired(all.join("; ")),
        }
    }

    /// Watches a connection that the lanes use, until it ends or they must not use it for a while.
    async fn watch(
        &self,
        link: &Link,
        events: &mut (impl Stream<Item = Event> + Unpin),
    ) -> Watched {
        let mut status = interval(STATUS_INTERVAL);
        let mut queues = interval(QUEUES_INTERVAL);
        queues.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut remind = interval(REMIND_INTERVAL);
        remind.reset();
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Event::ConnectionBlocked(reason)) => {
                        self.status.report(SinkState::Blocked(reason));
                    }
                    Some(Event::ConnectionUnblocked) => self.status.report(self.ready(link)),
                    // Errors of single channels are reported here too.
                    Some(Event::Error(error)) if !link.is_alive() => {
                        return Watched::Ended(format!("connection lost: {}", link.explain(&error)));
                    }
                    Some(_) => {}
                    None => return Watched::Ended("connection lost".to_owned()),
                },
                reason = link.ended() => return Watched::Ended(reason),
                () = link.retiring() => return Watched::Retiring,
                _ = status.tick() => {
                    if !link.is_alive() {
                        return Watched::Ended("connection closed by the broker".to_owned());
                    }
                    if !link.is_blocked() {
                        self.status.report(self.ready(link));
                    }
                }
                _ = remind.tick() => self.status.remind(),
                () = async {
                    tokio::select! {
                        _ = queues.tick() => {}
                        () = self.doubt_queues.notified() => {}
                    }
                }, if !self.settings.queues.is_empty() => {
                    match missing(link, &self.settings.queues).await {
                        Ok(None) => {}
                        Ok(Some(reason)) => return Watched::Held(reason),
                        Err(reason) => return Watched::Ended(reason),
                    }
                }
            }
        }
    }
}

/// Why a connection is not watched any more.
enum Watched {
    /// It is over, for this reason.
    Ended(String),
    /// It has no channels left, and is replaced.
    Retiring,
    /// Nothing may be published on it, for this reason.
    Held(String),
}

impl Supervised for Shared {
    const KIND: &'static str = "rabbitmq";

    fn status(&self) -> &Status {
        &self.status
    }

    fn lanes(self: &Arc<Self>) -> Vec<Box<dyn Lane>> {
        (0..self.settings.channels)
            .map(|_| Box::new(RabbitMqLane::new(Arc::clone(self))) as Box<dyn Lane>)
            .collect()
    }

    async fn keep(&self, stop: &CancellationToken) {
        keep_connected(self, stop).await;
    }
}

impl Connect for Shared {
    type Link = Link;
    type Place = Endpoint;

    fn links(&self) -> &watch::Sender<Option<Arc<Link>>> {
        &self.link
    }

    async fn places(&self) -> Result<Vec<Endpoint>, String> {
        self.settings.endpoints_now(&self.endpoints).await
    }

    async fn open(&self, place: &Endpoint) -> Result<Arc<Link>, String> {
        Link::open(place, &self.settings).await
    }

    async fn serve(&self, link: &Arc<Link>) -> String {
        // Listen before anything can happen: events are not kept for later listeners.
        let mut events = std::pin::pin!(link.connection().events_listener());
        if let Err(reason) = link.set_up(&self.settings, &self.limit).await {
            return reason;
        }
        loop {
            if let Err(reason) = self.await_destinations(link).await {
                return reason;
            }
            self.link.send_replace(Some(Arc::clone(link)));
            self.status.report(self.ready(link));
            match self.watch(link, &mut events).await {
                Watched::Ended(reason) => {
                    if reason.contains(TOO_MANY_CHANNELS)
                        && let Some(plan) = link.channels.plan()
                    {
                        // Somebody took what a lane had lost.
                        self.limit.learn(plan.publishing, &reason);
                    }
                    return reason;
                }
                Watched::Retiring => {
                    self.link.send_replace(None);
                    let reason =
                        "the numbers of its channels are used up, so the connection is replaced";
                    self.status.report(SinkState::Down(reason.to_owned()));
                    let drained = timeout(self.settings.confirm_timeout, link.channels.drained());
                    // What takes longer goes again.
                    let _ = drained.await;
                    return reason.to_owned();
                }
                Watched::Held(reason) => {
                    self.link.send_replace(None);
                    self.status.report(SinkState::Down(reason));
                }
            }
        }
    }

    async fn end(&self, link: &Link, lost: Option<&str>) {
        match lost {
            Some(reason) => link.end(reason),
            None => link.close().await,
        }
    }
}
