//! Keeps a producer: creates it, waits until the cluster answers and has the topics, watches it, replaces it
//! when it has failed, reports the state.
//!
//! librdkafka reconnects by itself, so an outage alone does not end a producer: batches that are with it
//! wait, and go without being repeated if the outage is shorter than the confirm timeout.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{RwLock, watch};
use tokio_util::sync::CancellationToken;

use super::link::{Link, Topic, Trouble};
use super::settings::KafkaSettings;
use crate::error::Verdict;
use crate::sink::SinkState;

const BACKOFF_INITIAL: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// A producer that lasted this long has proved itself: the next backoff starts afresh.
const STABLE_AFTER: Duration = Duration::from_secs(10);

/// Why a sink that was told to stop is not connected.
const STOPPED: &str = "stopped";

/// What the supervisor, the lanes and the sink have in common.
pub(super) struct Shared {
    pub(super) settings: KafkaSettings,
    pub(super) state: watch::Sender<SinkState>,
    /// The producer, while it can be used.
    pub(super) link: watch::Sender<Option<Arc<Link>>>,
    /// Shared by lanes that publish batches, held alone by one that tries its records one by one.
    pub(super) gate: RwLock<()>,
}

impl Shared {
    pub(super) fn new(settings: KafkaSettings) -> Self {
        Self {
            settings,
            state: watch::Sender::new(SinkState::Down(String::new())),
            link: watch::Sender::new(None),
            gate: RwLock::default(),
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
            SinkState::Ready => tracing::info!("ready to publish to Kafka"),
            SinkState::Down(reason) if reason == STOPPED => {
                tracing::debug!("disconnected from Kafka");
            }
            SinkState::Down(reason) | SinkState::Blocked(reason) => {
                tracing::warn!(reason, "not connected to Kafka");
            }
        }
    }

    fn down(&self, reason: String) {
        self.link.send_replace(None);
        self.report(SinkState::Down(reason));
    }
}

/// Runs until `stop`, then closes the connections.
pub(super) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    let mut failures = 0;
    loop {
        let opened_at = Instant::now();
        match Link::open(&shared.settings) {
            Ok(link) => {
                let link = Arc::new(link);
                let failed = tokio::select! {
                    biased;
                    () = stop.cancelled() => None,
                    reason = serve(&shared, &link) => Some(reason),
                };
                shared.link.send_replace(None);
                let stopped = failed.is_none();
                if let Some(reason) = failed {
                    shared.down(reason);
                }
                link.end().await;
                if stopped {
                    break;
                }
            }
            Err(reason) => shared.down(reason),
        }
        if opened_at.elapsed() >= STABLE_AFTER {
            failures = 0;
        }
        failures += 1;
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            () = tokio::time::sleep(backoff(failures, rand::random())) => {}
        }
    }
    shared.down(STOPPED.to_owned());
}

/// Offers the producer to the lanes whenever the cluster can be reached; returns why it must be replaced.
async fn serve(shared: &Shared, link: &Arc<Link>) -> String {
    let mut trouble = link.trouble();
    loop {
        let seen = match connect(shared, link, &mut trouble).await {
            Ok(seen) => seen,
            Err(failed) => return failed,
        };
        shared.link.send_replace(Some(Arc::clone(link)));
        shared.report(SinkState::Ready);
        match lost(link, &mut trouble, seen).await {
            Lost::Cluster(reason) => shared.down(reason),
            Lost::Producer(reason) => return reason,
        }
    }
}

/// Waits until a broker answers and all configured topics exist; returns how many outages there were before.
/// Publishing to a missing topic would cost every event its attempts because of a cluster that is not set up yet.
async fn connect(
    shared: &Shared,
    link: &Arc<Link>,
    trouble: &mut watch::Receiver<Trouble>,
) -> Result<u64, String> {
    let mut asked = 0;
    loop {
        let seen = trouble.borrow().outages;
        match ready(shared, link).await {
            Ok(()) => return Ok(seen),
            Err(reason) => shared.down(reason),
        }
        asked += 1;
        let pause = tokio::time::sleep(backoff(asked, rand::random()));
        tokio::select! {
            failed = trouble.wait_for(|trouble| trouble.failed.is_some()) => {
                return Err(reason(failed.ok().and_then(|trouble| trouble.failed.clone())));
            }
            () = pause => {}
        }
    }
}

async fn ready(shared: &Shared, link: &Arc<Link>) -> Result<(), String> {
    for name in &shared.settings.known_destinations {
        match link.look_up(name).await? {
            Topic::Known => {}
            Topic::Refused(Verdict::Rejected(reason) | Verdict::Impossible(reason)) => {
                return Err(reason.detail);
            }
            Topic::Refused(_) => return Err(format!("topic `{name}` cannot be looked up")),
        }
    }
    link.answers().await
}

enum Lost {
    /// No broker can be reached.
    Cluster(String),
    /// The producer is of no more use.
    Producer(String),
}

/// Waits for the end of a good state. A connection may go because it was idle, so a broker is asked before
/// it is called an outage.
async fn lost(link: &Arc<Link>, trouble: &mut watch::Receiver<Trouble>, mut seen: u64) -> Lost {
    loop {
        let changed = trouble
            .wait_for(|trouble| trouble.failed.is_some() || trouble.outages != seen)
            .await;
        match changed.map(|trouble| (trouble.failed.clone(), trouble.outages)) {
            Ok((None, outages)) => seen = outages,
            Ok((failed, _)) => return Lost::Producer(reason(failed)),
            Err(_) => return Lost::Producer(reason(None)),
        }
        if let Err(reason) = link.answers().await {
            return Lost::Cluster(reason);
        }
    }
}

fn reason(failed: Option<String>) -> String {
    failed.unwrap_or_else(|| "the producer has ended".to_owned())
}

/// The wait after this many failures in a row; `jitter` in `0.0..1.0`.
fn backoff(failures: u32, jitter: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let ceiling = BACKOFF_INITIAL
        .saturating_mul(1 << doublings)
        .min(BACKOFF_MAX);
    ceiling.mul_f64(0.5 + 0.5 * jitter)
}
