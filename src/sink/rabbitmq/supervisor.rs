//! What the lanes share with the task that keeps them connected, and how that is done for RabbitMQ.
//!
//! Every connection is a fresh one; lapin's own recovery is not used.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use lapin::Event;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::endpoint::Endpoint;
use super::exchanges::{Standing, ask};
use super::lane::RabbitMqLane;
use super::link::{Link, explain};
use super::settings::RabbitMqSettings;
use super::suspects::Suspects;
use crate::sink::backoff::backoff;
use crate::sink::supervised::{Connect, Status, Supervised, keep_connected};
use crate::sink::{Lane, SinkState};

/// lapin reports most ends of a connection as an event, but not all, so its status is asked too.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// What the supervisor, the lanes and the sink have in common.
pub(super) struct Shared {
    pub(super) settings: RabbitMqSettings,
    pub(super) status: Status,
    pub(super) link: watch::Sender<Option<Arc<Link>>>,
    pub(super) suspects: Suspects,
    endpoints: Vec<Endpoint>,
}

impl Shared {
    pub(super) fn new(settings: RabbitMqSettings, endpoints: Vec<Endpoint>) -> Self {
        Self {
            settings,
            status: Status::new("RabbitMQ"),
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
        Ok(())
    }

    async fn watch(&self, link: &Link, events: &mut (impl Stream<Item = Event> + Unpin)) -> String {
        let mut status = tokio::time::interval(STATUS_INTERVAL);
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Event::ConnectionBlocked(reason)) => {
                        self.status.report(SinkState::Blocked(reason));
                    }
                    Some(Event::ConnectionUnblocked) => self.status.report(SinkState::Ready),
                    // Errors of single channels are reported here too.
                    Some(Event::Error(error)) if !link.is_alive() => {
                        return format!("connection lost: {}", explain(&error));
                    }
                    Some(_) => {}
                    None => return "connection lost".to_owned(),
                },
                reason = link.ended() => return reason,
                _ = status.tick() => {
                    if !link.is_alive() {
                        return "connection closed by the broker".to_owned();
                    }
                }
            }
        }
    }
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
        if let Err(reason) = self.await_destinations(link).await {
            return reason;
        }
        self.link.send_replace(Some(Arc::clone(link)));
        self.status.report(SinkState::Ready);
        self.watch(link, &mut events).await
    }

    async fn end(&self, link: &Link, lost: Option<&str>) {
        match lost {
            Some(reason) => link.end(reason),
            None => link.close().await,
        }
    }
}
