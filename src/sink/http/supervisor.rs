//! The state of the sink: lanes say what they met with, and the supervisor finds out when it is over.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::connection::Connection;
use super::culprits::{Attempt, Culprits};
use super::lane::HttpLane;
use super::settings::HttpSettings;
use super::target::Target;
use crate::sink::backoff::backoff;
use crate::sink::supervised::{Status, Supervised};
use crate::sink::{Lane, SinkState};

/// Failures in a row, of whatever events, after which the service itself is taken to be ill.
const FAILURES_TO_PAUSE: u32 = 3;

/// What the supervisor, the lanes and the sink have in common.
pub(super) struct Shared {
    pub(super) settings: HttpSettings,
    /// As last read; see [`Self::reread`].
    target: Mutex<Arc<Target>>,
    pub(super) status: Status,
    pub(super) culprits: Culprits,
    /// A connection ended or could not be made: time to look.
    pub(super) ended: Arc<Notify>,
    /// Answers in a row that were no good, whatever the event.
    failures: AtomicU32,
    /// After how many of them everybody waits.
    patience: u32,
}

impl Shared {
    pub(super) fn new(settings: HttpSettings, target: Target) -> Self {
        Self {
            settings,
            target: Mutex::new(Arc::new(target)),
            status: Status::new("the service"),
            culprits: Culprits::default(),
            ended: Arc::new(Notify::new()),
            failures: AtomicU32::new(0),
            patience: FAILURES_TO_PAUSE,
        }
    }

    /// The first failure is reported: for whoever sends one event and wants to know.
    pub(super) fn without_patience(settings: HttpSettings, target: Target) -> Self {
        Self {
            patience: 1,
            ..Self::new(settings, target)
        }
    }

    /// Where requests go, and with which credentials.
    pub(super) fn target(&self) -> Arc<Target> {
        let target = self.target.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&target)
    }

    /// Reads the files with URL and credentials again. The error says what is wrong with them; what was read before
    /// stays in use.
    pub(super) async fn reread(&self) -> Result<(), String> {
        if let Some(target) = self.settings.target_now().await? {
            *self.target.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(target);
        }
        Ok(())
    }

    /// The service took an event.
    pub(super) fn took(&self, id: &str, attempt: Attempt) {
        self.failures.store(0, Ordering::Relaxed);
        self.culprits.took(id, attempt);
    }

    /// The service failed at an event. After a few in a row everybody waits.
    pub(super) fn failed(&self, what: &str) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        if failures >= self.patience {
            let pause = backoff(failures - self.patience + 1, rand::random());
            self.status.block_for(what.to_owned(), pause);
        }
    }

    /// The service asks for a pause.
    pub(super) fn busy(&self, what: &str, wait: Option<Duration>) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        let wait = wait.unwrap_or_else(|| backoff(failures, rand::random()));
        self.status.block_for(what.to_owned(), wait);
    }

    /// No connection can be made. The supervisor finds out when one can.
    pub(super) fn unreachable(&self, reason: String) {
        self.status.report(SinkState::Down(reason));
        self.ended.notify_one();
    }

    async fn look(&self) -> Result<(), String> {
        self.reread().await?;
        // A look is no reason to look again.
        let unheard = Arc::new(Notify::new());
        Connection::open(&self.target(), &self.settings, unheard)
            .await
            .map(drop)
    }

    /// Looks whether the service can be reached, at the begin and whenever there is doubt.
    async fn watch_over(&self) {
        let mut failures = 0;
        loop {
            match self.look().await {
                Ok(()) => {
                    if matches!(self.status.get(), SinkState::Down(_)) {
                        self.status.report(SinkState::Ready);
                    }
                    failures = 0;
                    self.ended.notified().await;
                }
                Err(reason) => {
                    self.status.report(SinkState::Down(reason));
                    failures += 1;
                    tokio::time::sleep(backoff(failures, rand::random())).await;
                }
            }
        }
    }
}

impl Supervised for Shared {
    const KIND: &'static str = "http";

    fn status(&self) -> &Status {
        &self.status
    }

    fn lanes(self: &Arc<Self>) -> Vec<Box<dyn Lane>> {
        (0..self.settings.connections)
            .map(|_| Box::new(HttpLane::new(Arc::clone(self))) as Box<dyn Lane>)
            .collect()
    }

    /// Connections end with their lanes.
    async fn keep(&self, stop: &CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.watch_over() => {}
        }
    }
}
