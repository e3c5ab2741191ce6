//! The Kafka sink: librdkafka's idempotent producer with `acks=all`, through rdkafka.
//!
//! ```text
//! supervisor   keeps a Link, watches it, replaces it when it has failed, reports the SinkState
//! Link         one producer, and the means to end it for certain
//! lane         one batch at a time: prepare, look up topics, send, await all reports, decide
//! ```
//!
//! * [`KafkaSettings`]: what can be set, and everything wrong with it at once.
//! * `prepare`: a message becomes a record, or is refused for what Kafka cannot carry.
//! * `outcome`: delivery reports become verdicts.
//! * [`check`]: questions for the `check` command.
//!
//! **Order.** A key has one partition, librdkafka's queue keeps a partition's order through its own
//! repetitions, and no record is given up alone: without a confirm in time the whole producer goes.
//!
//! **Threads.** librdkafka has its own, one for each broker. Delivery reports come on the thread that polls it
//! and are written into the batch's place; the last one wakes the lane. Calls that block (metadata,
//! flush, the end of a producer) run on tokio's threads for that.

pub mod check;
mod lane;
mod link;
mod outcome;
mod prepare;
mod settings;
mod supervisor;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use settings::{Compression, KafkaSettings, Partitioner, SaslMechanism};

use self::lane::KafkaLane;
use self::supervisor::Shared;
use super::{BoxFuture, Lane, Sink, SinkState};

/// Limit for closing the connections.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A Kafka cluster.
pub struct KafkaSink {
    shared: Arc<Shared>,
    supervisor: JoinHandle<()>,
    /// Stops the supervisor, at the latest when the sink is dropped.
    stop: DropGuard,
}

impl KafkaSink {
    /// Starts connecting in the background. Fails only for settings that cannot work, with all
    /// problems at once; an unreachable cluster is a state, see [`Sink::state`].
    ///
    /// Must be called within a tokio runtime.
    pub fn start(settings: KafkaSettings) -> Result<Self, Vec<String>> {
        let problems = settings.validate();
        if !problems.is_empty() {
            return Err(problems);
        }
        let shared = Arc::new(Shared::new(settings));
        let stop = CancellationToken::new();
        let supervisor = tokio::spawn(supervisor::run(Arc::clone(&shared), stop.clone()));
        Ok(Self {
            shared,
            supervisor,
            stop: stop.drop_guard(),
        })
    }
}

impl Sink for KafkaSink {
    fn kind(&self) -> &'static str {
        "kafka"
    }

    fn lanes(&mut self) -> Vec<Box<dyn Lane>> {
        (0..self.shared.settings.lanes.max(1))
            .map(|_| Box::new(KafkaLane::new(Arc::clone(&self.shared))) as Box<dyn Lane>)
            .collect()
    }

    fn state(&self) -> watch::Receiver<SinkState> {
        self.shared.state.subscribe()
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        let this = *self;
        Box::pin(async move {
            this.stop.disarm().cancel();
            let abort = this.supervisor.abort_handle();
            match tokio::time::timeout(CLOSE_TIMEOUT, this.supervisor).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "the Kafka supervisor failed"),
                Err(_) => {
                    abort.abort();
                    tracing::warn!("the Kafka connections did not close in time");
                }
            }
        })
    }
}
