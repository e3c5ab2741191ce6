//! What the sinks that reach a server have in common: the state they report, and the task that keeps them connected.
//!
//! A sink brings one type, shared by its lanes and that task: [`Supervised`]. If it has one connection at a time, which
//! is opened, offered to the lanes and replaced when it ends, it is [`Connect`] too, and [`keep_connected`] does the rest.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::backoff::{STABLE_AFTER, backoff};
use super::{BoxFuture, Lane, Sink, SinkState};

/// Limit for closing connections.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How far the reported state may lag behind what a lane met with.
const STATE_LAG: Duration = Duration::from_millis(100);

/// How often it is said that a server which takes nothing still takes nothing.
const SAID_EVERY: Duration = Duration::from_secs(60);

/// Why a sink that was told to stop is not connected.
const STOPPED: &str = "stopped";

/// The state of a sink, with one log line for each change.
pub(super) struct Status {
    /// Whom it publishes to, in those lines.
    system: &'static str,
    /// The setting of the place, and the name that the user gave it by.
    renamed: Option<(&'static str, String)>,
    state: watch::Sender<SinkState>,
    /// What holds everybody back for a while, and when it was said last.
    said: Mutex<Option<(String, Instant)>>,
}

impl Status {
    pub(super) fn new(system: &'static str) -> Self {
        Self {
            system,
            renamed: None,
            state: watch::Sender::new(SinkState::Down(String::new())),
            said: Mutex::default(),
        }
    }

    /// Calls a setting by the name that the user gave it by; an empty one changes nothing.
    pub(super) fn calling(mut self, setting: &'static str, given: &str) -> Self {
        // Its own file's variable begins with it, and is named already.
        if !given.is_empty() && !given.starts_with(setting) {
            self.renamed = Some((setting, given.to_owned()));
        }
        self
    }

    fn in_their_words(&self, state: SinkState) -> SinkState {
        let Some((setting, given)) = &self.renamed else {
            return state;
        };
        let renamed = |reason: String| reason.replace(setting, given);
        match state {
            SinkState::Down(reason) => SinkState::Down(renamed(reason)),
            SinkState::Impaired(reason) => SinkState::Impaired(renamed(reason)),
            SinkState::Blocked(reason) => SinkState::Blocked(renamed(reason)),
            SinkState::Ready | SinkState::Ended(_) => state,
        }
    }

    pub(super) fn get(&self) -> SinkState {
        self.state.borrow().clone()
    }

    pub(super) fn is_ready(&self) -> bool {
        self.state.borrow().is_ready()
    }

    pub(super) fn is_blocked(&self) -> bool {
        matches!(*self.state.borrow(), SinkState::Blocked(_))
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<SinkState> {
        self.state.subscribe()
    }

    /// Without a log line.
    pub(super) fn set(&self, state: SinkState) {
        self.state.send_replace(state);
    }

    pub(super) fn report(&self, state: SinkState) {
        let state = self.in_their_words(state);
        let changed = self.state.send_if_modified(|current| {
            let changed = *current != state;
            current.clone_from(&state);
            changed
        });
        if changed {
            self.tell(state);
        }
    }

    fn tell(&self, state: SinkState) {
        let system = self.system;
        match state {
            SinkState::Ready => tracing::info!("ready to publish to {system}"),
            SinkState::Down(reason) if reason == STOPPED => {
                tracing::debug!("disconnected from {system}");
            }
            SinkState::Down(reason) => tracing::warn!(reason, "not connected to {system}"),
            SinkState::Ended(reason) => tracing::info!("{system} has ended: {reason}"),
            SinkState::Impaired(reason) => {
                tracing::warn!(reason, "publishing to {system}, but not all is well");
            }
            SinkState::Blocked(reason) => {
                tracing::warn!(
                    reason,
                    "{system} asks publishers to wait; events stay in the outbox"
                );
            }
        }
    }

    /// Says again what is not well though events flow, for those who read the log later.
    pub(super) fn remind(&self) {
        let state = self.get();
        if matches!(state, SinkState::Impaired(_)) {
            self.tell(state);
        }
    }

    /// Holds everybody back for a while, where nothing but publishing tells that it is over. Whoever connects or
    /// disconnects meanwhile is not overruled.
    pub(super) fn block_for(&self, reason: String, wait: Duration) {
        let blocked = SinkState::Blocked(reason.clone());
        let was_ready = self.state.send_if_modified(|state| {
            let ready = state.is_ready();
            if ready {
                state.clone_from(&blocked);
            }
            ready
        });
        if !was_ready {
            return;
        }
        if self.is_news(&reason) {
            self.tell(blocked);
        }
        let state = self.state.clone();
        tokio::spawn(async move {
            sleep(wait).await;
            state.send_if_modified(|state| {
                let still = *state == SinkState::Blocked(reason);
                if still {
                    *state = SinkState::Ready;
                }
                still
            });
        });
    }

    /// Whether this reason was not said within the last minute. Each try that is in vain blocks anew: one state, not many.
    fn is_news(&self, reason: &str) -> bool {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let known = said
            .as_ref()
            .is_some_and(|(known, at)| known == reason && at.elapsed() < SAID_EVERY);
        if !known {
            *said = Some((reason.to_owned(), Instant::now()));
        }
        !known
    }

    /// For a lane that cannot publish just now: the state follows at once. Waiting for it keeps a relay that trusts a
    /// state of a moment ago from spinning.
    pub(super) async fn catch_up(&self) {
        let mut state = self.state.subscribe();
        let _ = timeout(STATE_LAG, state.wait_for(|state| !state.is_ready())).await;
    }
}

/// What the lanes of a sink share with the task that keeps it connected.
pub(super) trait Supervised: Send + Sync + 'static {
    /// The kind, as in `OUTRIGGER_SINK`.
    const KIND: &'static str;

    fn status(&self) -> &Status;

    /// New lanes, as many as the settings say.
    fn lanes(self: &Arc<Self>) -> Vec<Box<dyn Lane>>;

    /// Keeps the sink connected until `stop`, then disconnects.
    fn keep(&self, stop: &CancellationToken) -> impl Future<Output = ()> + Send;
}

/// Starts connecting in the background. Must be called within a tokio runtime.
pub(super) fn start<S: Supervised>(shared: S) -> Box<dyn Sink> {
    let shared = Arc::new(shared);
    let stop = CancellationToken::new();
    let (kept, stopping) = (Arc::clone(&shared), stop.clone());
    let supervisor = tokio::spawn(async move {
        kept.keep(&stopping).await;
        let stopped = SinkState::Down(STOPPED.to_owned());
        kept.status().report(stopped);
    });
    Box::new(Running {
        shared,
        supervisor,
        stop: stop.drop_guard(),
    })
}

struct Running<S> {
    shared: Arc<S>,
    supervisor: JoinHandle<()>,
    /// Stops the supervisor, at the latest when the sink is dropped.
    stop: DropGuard,
}

impl<S: Supervised> Sink for Running<S> {
    fn kind(&self) -> &'static str {
        S::KIND
    }

    fn lanes(&mut self) -> Vec<Box<dyn Lane>> {
        self.shared.lanes()
    }

    fn state(&self) -> watch::Receiver<SinkState> {
        self.shared.status().subscribe()
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            self.stop.disarm().cancel();
            let abort = self.supervisor.abort_handle();
            let system = self.shared.status().system;
            match timeout(CLOSE_TIMEOUT, self.supervisor).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "the supervisor of {system} failed"),
                Err(_) => {
                    // Ends connections too: they are closed when they are dropped.
                    abort.abort();
                    tracing::warn!("the connection to {system} did not close in time");
                }
            }
        })
    }
}

/// A sink with one connection at a time.
pub(super) trait Connect: Supervised {
    type Link: Send + Sync + 'static;

    /// Where to connect to.
    type Place: Send + Sync;

    /// The connection the lanes use.
    fn links(&self) -> &watch::Sender<Option<Arc<Self::Link>>>;

    /// The places to connect to, as they are now.
    fn places(&self) -> impl Future<Output = Result<Vec<Self::Place>, String>> + Send;

    /// A fresh connection to one of them.
    fn open(
        &self,
        place: &Self::Place,
    ) -> impl Future<Output = Result<Arc<Self::Link>, String>> + Send;

    /// Offers the connection to the lanes as soon as it is of use, until it ends; returns why it did.
    fn serve(&self, link: &Arc<Self::Link>) -> impl Future<Output = String> + Send;

    /// Ends the connection. `lost`: why; `None` if it is fine and no longer wanted.
    fn end(&self, link: &Self::Link, lost: Option<&str>) -> impl Future<Output = ()> + Send;
}

/// Keeps a connection until `stop`. Places are tried in the order given, starting, after a connection was lost, with the
/// one after it: what just went away is the least likely to be back. After a round without success the wait grows
/// from 100 ms to 5 s, spread by up to a half so that replicas do not return together.
pub(super) async fn keep_connected<S: Connect>(shared: &S, stop: &CancellationToken) {
    let (mut next, mut failures) = (0, 0);
    loop {
        let opened = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            opened = open_any(shared, next) => opened,
        };
        match opened {
            Ok((link, place)) => {
                next = place + 1;
                let opened_at = Instant::now();
                let lost = tokio::select! {
                    biased;
                    () = stop.cancelled() => None,
                    reason = shared.serve(&link) => Some(reason),
                };
                shared.links().send_replace(None);
                let Some(reason) = lost else {
                    return shared.end(&link, None).await;
                };
                shared.status().report(SinkState::Down(reason.clone()));
                shared.end(&link, Some(&reason)).await;
                if opened_at.elapsed() >= STABLE_AFTER {
                    failures = 0;
                    continue;
                }
            }
            Err(reason) => shared.status().report(SinkState::Down(reason)),
        }
        failures += 1;
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = sleep(backoff(failures, rand::random())) => {}
        }
    }
}

async fn open_any<S: Connect>(shared: &S, first: usize) -> Result<(Arc<S::Link>, usize), String> {
    let places = shared.places().await?;
    let mut reasons = Vec::new();
    for offset in 0..places.len() {
        let place = (first + offset) % places.len();
        match shared.open(&places[place]).await {
            Ok(link) => return Ok((link, place)),
            Err(reason) => reasons.push(reason),
        }
    }
    Err(reasons.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(5);

    #[test]
    fn only_changes_are_announced() {
        let status = Status::new("nobody");
        let mut state = status.subscribe();
        status.report(SinkState::Ready);
        assert!(state.has_changed().is_ok_and(|changed| changed));
        assert_eq!(*state.borrow_and_update(), SinkState::Ready);
        status.report(SinkState::Ready);
        assert!(state.has_changed().is_ok_and(|changed| !changed));
    }

    #[test]
    fn a_pause_that_comes_again_and_again_is_said_once_a_minute() {
        let status = Status::new("nobody");
        assert!(status.is_news("full"));
        assert!(!status.is_news("full"));
        assert!(status.is_news("silent"));
        if let Some((_, at)) = &mut *status.said.lock().unwrap_or_else(PoisonError::into_inner) {
            *at -= SAID_EVERY;
        }
        assert!(status.is_news("silent"));
    }

    #[test]
    fn the_setting_goes_by_the_name_it_was_given_by() {
        let status = Status::new("nobody").calling("OUTRIGGER_X_URL", "X_URL");
        status.report(SinkState::Down("check OUTRIGGER_X_URL".to_owned()));
        assert_eq!(status.get(), SinkState::Down("check X_URL".to_owned()));
        let file = Status::new("nobody").calling("OUTRIGGER_X_URL", "OUTRIGGER_X_URL_FILE");
        file.report(SinkState::Down("check OUTRIGGER_X_URL".to_owned()));
        assert_eq!(
            file.get(),
            SinkState::Down("check OUTRIGGER_X_URL".to_owned())
        );
    }

    #[tokio::test]
    async fn a_pause_ends_by_itself_and_overrules_nobody() {
        let status = Status::new("nobody");
        status.block_for("full".to_owned(), SOON);
        assert_eq!(status.get(), SinkState::Down(String::new()));
        status.report(SinkState::Ready);
        status.block_for("full".to_owned(), SOON);
        assert_eq!(status.get(), SinkState::Blocked("full".to_owned()));
        let mut state = status.subscribe();
        assert!(state.wait_for(SinkState::is_ready).await.is_ok());
        status.block_for("full".to_owned(), SOON);
        status.report(SinkState::Down("gone".to_owned()));
        sleep(10 * SOON).await;
        assert_eq!(status.get(), SinkState::Down("gone".to_owned()));
    }
}
