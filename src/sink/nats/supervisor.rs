//! Keeps a connection: opens one, waits for what the settings name, watches it, opens the next.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::api::{Trouble, stream};
use super::link::Link;
use super::settings::{NatsSettings, Server};
use super::streams::missing;
use crate::sink::SinkState;
use crate::sink::backoff::{STABLE_AFTER, backoff};

/// Why a sink that was told to stop is not connected.
const STOPPED: &str = "stopped";

/// A full server is tried again after this long: nothing tells that it has room except publishing.
const FULL_PAUSE: Duration = Duration::from_secs(1);

/// What the supervisor, the lanes and the sink have in common.
pub(super) struct Shared {
    pub(super) settings: NatsSettings,
    pub(super) state: watch::Sender<SinkState>,
    pub(super) link: watch::Sender<Option<Arc<Link>>>,
}

impl Shared {
    pub(super) fn new(settings: NatsSettings) -> Self {
        Self {
            settings,
            state: watch::Sender::new(SinkState::Down(String::new())),
            link: watch::Sender::new(None),
        }
    }

    /// The server or the account has no room. Whoever connects or disconnects meanwhile is not overruled.
    pub(super) fn block(self: &Arc<Self>, reason: String) {
        let blocked = self.state.send_if_modified(|state| {
            let ready = state.is_ready();
            if ready {
                *state = SinkState::Blocked(reason.clone());
            }
            ready
        });
        if !blocked {
            return;
        }
        tracing::warn!(reason, "NATS has no room; events stay in the outbox");
        let shared = Arc::downgrade(self);
        tokio::spawn(async move {
            tokio::time::sleep(FULL_PAUSE).await;
            if let Some(shared) = shared.upgrade() {
                shared.state.send_if_modified(|state| {
                    let blocked = matches!(state, SinkState::Blocked(_));
                    if blocked {
                        *state = SinkState::Ready;
                    }
                    blocked
                });
            }
        });
    }

    pub(super) fn is_blocked(&self) -> bool {
        matches!(*self.state.borrow(), SinkState::Blocked(_))
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
            SinkState::Down(reason) if reason == STOPPED => {
                tracing::debug!("disconnected from NATS");
            }
            SinkState::Down(reason) => tracing::warn!(reason, "not connected to NATS"),
            SinkState::Ready | SinkState::Blocked(_) => tracing::info!("ready to publish to NATS"),
        }
    }
}

/// Runs until `stop`, then closes the connection.
pub(super) async fn run(shared: Arc<Shared>, servers: Vec<Server>, stop: CancellationToken) {
    let mut next = 0;
    let mut failures = 0;
    loop {
        let opened = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            opened = open_any(&shared, &servers, next) => opened,
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
                link.close().await;
                let Some(reason) = lost else { break };
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
    servers: &[Server],
    first: usize,
) -> Result<(Arc<Link>, usize), String> {
    let mut reasons = Vec::new();
    for offset in 0..servers.len() {
        let position = (first + offset) % servers.len();
        match Link::open(&servers[position], &shared.settings).await {
            Ok(link) => return Ok((link, position)),
            Err(reason) => reasons.push(reason),
        }
    }
    Err(reasons.join("; "))
}

/// Offers the connection to the lanes until it ends; returns why it did.
async fn serve(shared: &Shared, link: &Arc<Link>) -> String {
    tokio::select! {
        () = await_streams(shared, link) => {}
        reason = link.ended() => return reason,
    }
    shared.link.send_replace(Some(Arc::clone(link)));
    shared.report(SinkState::Ready);
    link.ended().await
}

/// Holds the sink back until all configured streams exist: publishing anyway would cost every
/// event its attempts because of a server that is not set up yet.
async fn await_streams(shared: &Shared, link: &Link) {
    for name in &shared.settings.known_destinations {
        let mut asked = 0;
        // An empty name means whichever stream takes the subject.
        while !name.is_empty() {
            let reason = match stream(link, name).await {
                // A user that may only publish cannot look, and finds out by publishing.
                Ok(Some(_)) | Err(Trouble::Forbidden) => break,
                Ok(None) => missing(name).detail,
                Err(Trouble::NoJetStream) => no_jetstream(),
                Err(Trouble::Other(text)) => format!("cannot look for stream `{name}`: {text}"),
            };
            shared.report(SinkState::Down(reason));
            asked += 1;
            tokio::time::sleep(backoff(asked, rand::random())).await;
        }
    }
}

/// Why nothing can be published at all.
pub(super) fn no_jetstream() -> String {
    "JetStream does not answer: it is not enabled for this server or account, or has no leader"
        .to_owned()
}
