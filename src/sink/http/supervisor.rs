//! The state of the sink: lanes say what they met with, and the supervisor finds out when it is over.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::connection::Connection;
use super::culprits::Culprits;
use super::settings::HttpSettings;
use super::target::Target;
use crate::sink::SinkState;
use crate::sink::backoff::backoff;

/// Failures in a row, of whatever events, after which the service itself is taken to be ill.
const FAILURES_TO_PAUSE: u32 = 3;

/// Why a sink that was told to stop is not connected.
const STOPPED: &str = "stopped";

/// What the supervisor, the lanes and the sink have in common.
pub(super) struct Shared {
    pub(super) settings: HttpSettings,
    pub(super) target: Target,
    pub(super) state: watch::Sender<SinkState>,
    pub(super) culprits: Culprits,
    /// A connection ended or could not be made: time to look.
    pub(super) ended: Arc<Notify>,
    /// Answers in a row that were no good, whatever the event.
    failures: AtomicU32,
}

impl Shared {
    pub(super) fn new(settings: HttpSettings, target: Target) -> Self {
        Self {
            settings,
            target,
            state: watch::Sender::new(SinkState::Down(String::new())),
            culprits: Culprits::default(),
            ended: Arc::new(Notify::new()),
            failures: AtomicU32::new(0),
        }
    }

    /// The service took an event.
    pub(super) fn took(&self, id: &str) {
        self.failures.store(0, Ordering::Relaxed);
        self.culprits.took(id);
    }

    /// The service failed at an event. After a few in a row everybody waits.
    pub(super) fn failed(self: &Arc<Self>, what: &str) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        if failures >= FAILURES_TO_PAUSE {
            let pause = backoff(failures - FAILURES_TO_PAUSE + 1, rand::random());
            self.pause(format!("{what}, {failures} times in a row"), pause);
        }
    }

    /// The service asks for a pause.
    pub(super) fn busy(self: &Arc<Self>, what: &str, wait: Option<Duration>) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        let wait = wait.unwrap_or_else(|| backoff(failures, rand::random()));
        self.pause(what.to_owned(), wait);
    }

    /// Holds everybody back for a while. Whoever is out of reach meanwhile is not overruled.
    fn pause(self: &Arc<Self>, reason: String, wait: Duration) {
        let paused = self.state.send_if_modified(|state| {
            let ready = state.is_ready();
            if ready {
                *state = SinkState::Blocked(reason.clone());
            }
            ready
        });
        if !paused {
            return;
        }
        tracing::warn!(
            reason,
            ?wait,
            "the service is not able to take events; they stay in the outbox"
        );
        let shared = Arc::downgrade(self);
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
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

    /// No connection can be made. The supervisor finds out when one can.
    pub(super) fn unreachable(&self, reason: String) {
        self.report(SinkState::Down(reason));
        self.ended.notify_one();
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
                tracing::debug!("no longer publishing by http");
            }
            SinkState::Down(reason) => tracing::warn!(reason, "cannot reach the service"),
            SinkState::Ready | SinkState::Blocked(_) => tracing::info!("ready to publish by http"),
        }
    }
}

/// Runs until `stop`.
pub(super) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = watch_over(&shared) => {}
    }
    shared.report(SinkState::Down(STOPPED.to_owned()));
}

/// Looks whether the service can be reached, at the begin and whenever there is doubt.
async fn watch_over(shared: &Shared) {
    let mut failures = 0;
    loop {
        // A look is no reason to look again.
        let unheard = Arc::new(Notify::new());
        match Connection::open(&shared.target, &shared.settings, unheard).await {
            Ok(_) => {
                if matches!(*shared.state.borrow(), SinkState::Down(_)) {
                    shared.report(SinkState::Ready);
                }
                failures = 0;
                shared.ended.notified().await;
            }
            Err(reason) => {
                shared.report(SinkState::Down(reason));
                failures += 1;
                tokio::time::sleep(backoff(failures, rand::random())).await;
            }
        }
    }
}
