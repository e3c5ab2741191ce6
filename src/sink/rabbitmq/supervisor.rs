//! Keeps a connection open: connects, watches, reconnects with backoff, reports the state.
//!
//! Every connection is a fresh one; lapin's own recovery is not used. The URLs are tried in the
//! order given, starting, after a connection was lost, with the one after it: the node that just
//! went away is the least likely to be back. After a round without success the wait grows from
//! 100 ms to 5 s, spread by up to a half so that replicas do not return together.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{Stream, StreamExt};
use lapin::Event;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::endpoint::Endpoint;
use super::exchanges::{Standing, ask};
use super::link::{Link, explain};
use super::settings::RabbitMqSettings;
use super::suspects::Suspects;
use crate::sink::SinkState;
use crate::sink::backoff::{STABLE_AFTER, backoff};

/// lapin reports most ends of a connection as an event, but not all, so its status is asked too.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// What the supervisor, the lanes and the sink have in common.
pub(super) struct Shared {
    pub(super) settings: RabbitMqSettings,
    pub(super) state: watch::Sender<SinkState>,
    pub(super) link: watch::Sender<Option<Arc<Link>>>,
    pub(super) suspects: Suspects,
}

impl Shared {
    pub(super) fn new(settings: RabbitMqSettings) -> Self {
        Self {
            settings,
            state: watch::Sender::new(SinkState::Down(String::new())),
            link: watch::Sender::new(None),
            suspects: Suspects::default(),
        }
    }

    /// Changes the state, with one log line if it is a change.
    fn report(&self, state: SinkState) {
        let changed = self.state.send_if_modified(|current| {
            let changed = *current != state;
            current.clone_from(&state);
            changed
        });
        if !changed {
            return;
        }
        match state {
            SinkState::Ready => tracing::info!("ready to publish to RabbitMQ"),
            SinkState::Down(reason) if reason == STOPPED => {
                tracing::debug!("disconnected from RabbitMQ");
            }
            SinkState::Down(reason) => tracing::warn!(reason, "not connected to RabbitMQ"),
            SinkState::Blocked(reason) => tracing::warn!(
                reason,
                "RabbitMQ asks publishers to wait (memory or disk alarm); events stay in the outbox"
            ),
        }
    }
}

/// Why a sink that was told to stop is not connected.
const STOPPED: &str = "stopped";

/// Runs until `stop`, then closes the connection.
pub(super) async fn run(shared: Arc<Shared>, endpoints: Vec<Endpoint>, stop: CancellationToken) {
    let mut next = 0;
    let mut failures = 0;
    loop {
        let opened = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            opened = open_any(&shared, &endpoints, next) => opened,
        };
        match opened {
            Ok((link, position)) => {
                next = position + 1;
                let opened_at = Instant::now();
                let lost = tokio::select! {
                    biased;
                    () = stop.cancelled() => None,
                    reason = serve(&shared, &link) => Some(reason),
                };
                shared.link.send_replace(None);
                let Some(reason) = lost else {
                    link.close().await;
                    break;
                };
                link.end(&reason);
                shared.report(SinkState::Down(reason));
                if opened_at.elapsed() >= STABLE_AFTER {
                    failures = 0;
                    continue;
                }
            }
            Err(reason) => shared.report(SinkState::Down(reason)),
        }
        failures += 1;
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            () = tokio::time::sleep(backoff(failures, rand::random())) => {}
        }
    }
    shared.report(SinkState::Down(STOPPED.to_owned()));
}

async fn open_any(
    shared: &Shared,
    endpoints: &[Endpoint],
    first: usize,
) -> Result<(Arc<Link>, usize), String> {
    let mut reason = String::new();
    for offset in 0..endpoints.len() {
        let position = (first + offset) % endpoints.len();
        match Link::open(&endpoints[position], &shared.settings).await {
            Ok(link) => return Ok((link, position)),
            Err(error) if reason.is_empty() => reason = error,
            Err(error) => reason = format!("{reason}; {error}"),
        }
    }
    Err(reason)
}

/// Offers the connection to the lanes until it ends; returns why it did.
async fn serve(shared: &Shared, link: &Arc<Link>) -> String {
    // Listen before anything can happen: events are not kept for later listeners.
    let mut events = std::pin::pin!(link.connection().events_listener());
    if let Err(reason) = await_destinations(shared, link).await {
        return reason;
    }
    shared.link.send_replace(Some(Arc::clone(link)));
    shared.report(SinkState::Ready);
    watch(shared, link, &mut events).await
}

/// Holds the sink back until all configured exchanges exist: publishing anyway would cost every
/// event its attempts because of a broker that is not set up yet.
async fn await_destinations(shared: &Shared, link: &Link) -> Result<(), String> {
    for name in &shared.settings.known_destinations {
        let mut asked = 0;
        // The default exchange always exists.
        while !name.is_empty() {
            match ask(link, name, &shared.settings).await? {
                Standing::Absent(reason) => {
                    shared.report(SinkState::Down(reason.detail));
                    asked += 1;
                    tokio::time::sleep(backoff(asked, rand::random())).await;
                }
                _ => break,
            }
        }
    }
    Ok(())
}

async fn watch(
    shared: &Shared,
    link: &Link,
    events: &mut (impl Stream<Item = Event> + Unpin),
) -> String {
    let mut status = tokio::time::interval(STATUS_INTERVAL);
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Event::ConnectionBlocked(reason)) => {
                    shared.report(SinkState::Blocked(reason));
                }
                Some(Event::ConnectionUnblocked) => shared.report(SinkState::Ready),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changes_are_announced() {
        let shared = Shared::new(RabbitMqSettings::default());
        let mut state = shared.state.subscribe();
        shared.report(SinkState::Ready);
        assert!(state.has_changed().is_ok_and(|changed| changed));
        assert_eq!(*state.borrow_and_update(), SinkState::Ready);
        shared.report(SinkState::Ready);
        assert!(state.has_changed().is_ok_and(|changed| !changed));
    }
}
