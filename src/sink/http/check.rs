//! Questions to a service for the `check` command.

use std::sync::Arc;

use tokio::sync::Notify;

use super::connection::Connection;
use super::lane::HttpLane;
use super::settings::HttpSettings;
use super::supervisor::Shared;
use crate::error::Verdict;
use crate::event::Message;
use crate::sink::{Lane as _, SinkState};

/// A service that was reached.
pub struct Probe {
    shared: Arc<Shared>,
}

impl Probe {
    /// Connects, without posting anything.
    pub async fn connect(settings: &HttpSettings) -> Result<Self, String> {
        let target = settings.target().map_err(|problems| problems.join("; "))?;
        Connection::open(&target, settings, Arc::new(Notify::new())).await?;
        let shared = Arc::new(Shared::without_patience(settings.clone(), target));
        shared.status.set(SinkState::Ready);
        Ok(Self { shared })
    }

    /// Scheme, host and port.
    pub fn address(&self) -> String {
        self.shared.target().to_string()
    }

    /// Whether the connection is encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.shared.target().tls
    }

    /// Posts one message the way the sink does, and reports the answer.
    pub async fn publish(&self, message: Message) -> Verdict {
        let mut lane = HttpLane::new(Arc::clone(&self.shared));
        let verdicts = lane.publish(&[message]).await;
        verdicts.into_iter().next().unwrap_or(Verdict::Unavailable)
    }

    /// Why the service takes nothing just now, if it said so.
    pub fn trouble(&self) -> Option<String> {
        match self.shared.status.get() {
            SinkState::Ready => None,
            SinkState::Impaired(reason)
            | SinkState::Down(reason)
            | SinkState::Blocked(reason)
            | SinkState::Ended(reason) => Some(reason),
        }
    }
}
