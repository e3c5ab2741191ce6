//! The RabbitMQ sink: AMQP 0-9-1 through lapin, persistent, mandatory, confirmed.
//!
//! ```text
//! supervisor   opens a Link, watches it, reconnects with backoff, reports the SinkState
//! Link         one connection, and the means to end it for certain
//! lane         one channel, one batch at a time: prepare, publish, await all confirms, decide
//! ```
//!
//! * [`RabbitMqSettings`]: what can be set, and everything wrong with it at once.
//! * `endpoint`: URLs.
//! * `exchanges`: which exchanges exist, asked before their first use.
//! * `prepare`: a message becomes AMQP properties, or is refused for what AMQP cannot carry.
//! * `outcome`: confirms and returns become verdicts. Its docs explain why a single confirm proves
//!   nothing in lapin.
//! * `suspects`: finding the message that makes the broker close a channel or a connection.
//! * [`check`]: questions for the `check` command.
//!
//! **Two tasks never share a channel**: lapin draws the delivery tag and queues the frames under
//! two different locks, so confirms would be swapped.
//!
//! **lapin logs every returned message with its payload** at WARN, target
//! `lapin::returned_messages`, and other broker errors at ERROR. The log filter of the program must
//! keep that target off; what matters about returns and errors is in the verdicts and states.

pub mod check;
mod endpoint;
mod exchanges;
mod lane;
mod link;
mod outcome;
mod prepare;
mod settings;
mod supervisor;
mod suspects;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use settings::RabbitMqSettings;

use self::lane::RabbitMqLane;
use self::supervisor::Shared;
use super::{BoxFuture, Lane, Sink, SinkState};

/// Limit for closing the connection.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A RabbitMQ broker or cluster.
pub struct RabbitMqSink {
    shared: Arc<Shared>,
    supervisor: JoinHandle<()>,
    /// Stops the supervisor, at the latest when the sink is dropped.
    stop: DropGuard,
}

impl RabbitMqSink {
    /// Starts connecting in the background. Fails only for settings that cannot work, with all
    /// problems at once; an unreachable broker is a state, see [`Sink::state`].
    ///
    /// Must be called within a tokio runtime.
    pub fn start(settings: RabbitMqSettings) -> Result<Self, Vec<String>> {
        let endpoints = settings.endpoints()?;
        let shared = Arc::new(Shared::new(settings));
        let stop = CancellationToken::new();
        let supervisor = tokio::spawn(supervisor::run(
            Arc::clone(&shared),
            endpoints,
            stop.clone(),
        ));
        Ok(Self {
            shared,
            supervisor,
            stop: stop.drop_guard(),
        })
    }
}

impl Sink for RabbitMqSink {
    fn kind(&self) -> &'static str {
        "rabbitmq"
    }

    fn lanes(&mut self) -> Vec<Box<dyn Lane>> {
        (0..self.shared.settings.channels)
            .map(|_| Box::new(RabbitMqLane::new(Arc::clone(&self.shared))) as Box<dyn Lane>)
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
                Ok(Err(error)) => tracing::error!(%error, "the RabbitMQ supervisor failed"),
                Err(_) => {
                    // Ends the connection too: it is closed when it is dropped.
                    abort.abort();
                    tracing::warn!("the RabbitMQ connection did not close in time");
                }
            }
        })
    }
}
