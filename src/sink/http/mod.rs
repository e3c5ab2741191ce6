//! The http sink: events are posted to a service, and its 2xx is the confirm.
//!
//! ```text
//! supervisor   connects when the service was out of reach, and reports the SinkState
//! lane         one connection that is kept, one request at a time
//! ```
//!
//! A message's `destination` is the path below `OUTRIGGER_HTTP_URL` (empty: that URL itself). Rows cannot choose
//! the host. A routing key has no meaning here.
//!
//! * [`HttpSettings`]: what can be set, and everything wrong with it at once.
//! * `target`: the URL, taken apart.
//! * `prepare`: a message becomes a request, or is refused for what HTTP cannot carry.
//! * `outcome`: statuses become verdicts.
//! * `culprits`: telling an event that the service cannot digest from a service that is ill.
//! * [`check`]: questions for the `check` command.

pub mod check;
mod connection;
mod culprits;
mod lane;
mod outcome;
mod prepare;
mod settings;
mod supervisor;
mod target;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use settings::HttpSettings;

use self::lane::HttpLane;
use self::supervisor::Shared;
use super::{BoxFuture, Lane, Sink, SinkState};

/// Limit for closing.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// A service that takes events by HTTP.
pub struct HttpSink {
    shared: Arc<Shared>,
    supervisor: JoinHandle<()>,
    /// Stops the supervisor, at the latest when the sink is dropped.
    stop: DropGuard,
}

impl HttpSink {
    /// Starts connecting in the background. Fails only for settings that cannot work, with all
    /// problems at once; an unreachable service is a state, see [`Sink::state`].
    ///
    /// Must be called within a tokio runtime.
    pub fn start(settings: HttpSettings) -> Result<Self, Vec<String>> {
        let target = settings.target()?;
        let shared = Arc::new(Shared::new(settings, target));
        let stop = CancellationToken::new();
        let supervisor = tokio::spawn(supervisor::run(Arc::clone(&shared), stop.clone()));
        Ok(Self {
            shared,
            supervisor,
            stop: stop.drop_guard(),
        })
    }
}

impl Sink for HttpSink {
    fn kind(&self) -> &'static str {
        "http"
    }

    fn lanes(&mut self) -> Vec<Box<dyn Lane>> {
        (0..self.shared.settings.connections)
            .map(|_| Box::new(HttpLane::new(Arc::clone(&self.shared))) as Box<dyn Lane>)
            .collect()
    }

    fn state(&self) -> watch::Receiver<SinkState> {
        self.shared.state.subscribe()
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        let this = *self;
        Box::pin(async move {
            // Connections ended with their lanes.
            this.stop.disarm().cancel();
            let abort = this.supervisor.abort_handle();
            match tokio::time::timeout(CLOSE_TIMEOUT, this.supervisor).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "the http supervisor failed"),
                Err(_) => abort.abort(),
            }
        })
    }
}
