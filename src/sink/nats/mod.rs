//! The NATS JetStream sink: acknowledged by the stream, pipelined, de-duplicated by the server.
//!
//! ```text
//! supervisor   opens a Link, awaits the stream of the settings, watches, reconnects, reports the SinkState
//! Link         one connection that never comes back by itself
//! lane         an inbox for acknowledgements, one batch at a time: prepare, publish all, await all
//! ```
//!
//! A message's `destination` is the stream it must end in (empty: whichever takes the subject), its
//! `routing_key` the subject.
//!
//! * [`NatsSettings`]: what can be set, and everything wrong with it at once.
//! * `credentials`: token, password, NKey or credentials file.
//! * `prepare`: a message becomes subject and headers, or is refused for what NATS cannot carry.
//! * `outcome`: acknowledgements become verdicts.
//! * `api`: questions to JetStream; `streams` uses them to tell a missing stream from one without a leader.
//! * [`check`]: questions for the `check` command.
//!
//! **The client library reconnects by itself and sends what it still has buffered.** That would let
//! a batch that was given up appear later, behind its own repetition. So a link lives as long as its one
//! connection: the second authentication fails on purpose, and the library gives up.

mod api;
pub mod check;
mod credentials;
mod lane;
mod link;
mod outcome;
mod prepare;
mod settings;
mod streams;
mod supervisor;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use settings::NatsSettings;

use self::lane::NatsLane;
use self::supervisor::Shared;
use super::{BoxFuture, Lane, Sink, SinkState};

/// Limit for closing the connection.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A NATS server or cluster with JetStream.
pub struct NatsSink {
    shared: Arc<Shared>,
    supervisor: JoinHandle<()>,
    /// Stops the supervisor, at the latest when the sink is dropped.
    stop: DropGuard,
}

impl NatsSink {
    /// Starts connecting in the background. Fails only for settings that cannot work, with all
    /// problems at once; an unreachable server is a state, see [`Sink::state`].
    ///
    /// Must be called within a tokio runtime.
    pub fn start(settings: NatsSettings) -> Result<Self, Vec<String>> {
        let servers = settings.servers()?;
        let shared = Arc::new(Shared::new(settings));
        let stop = CancellationToken::new();
        let supervisor = tokio::spawn(supervisor::run(Arc::clone(&shared), servers, stop.clone()));
        Ok(Self {
            shared,
            supervisor,
            stop: stop.drop_guard(),
        })
    }
}

impl Sink for NatsSink {
    fn kind(&self) -> &'static str {
        "nats"
    }

    fn lanes(&mut self) -> Vec<Box<dyn Lane>> {
        (0..self.shared.settings.lanes)
            .map(|_| Box::new(NatsLane::new(Arc::clone(&self.shared))) as Box<dyn Lane>)
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
                Ok(Err(error)) => tracing::error!(%error, "the NATS supervisor failed"),
                Err(_) => {
                    // Ends the connection too: it is closed when it is dropped.
                    abort.abort();
                    tracing::warn!("the NATS connection did not close in time");
                }
            }
        })
    }
}
