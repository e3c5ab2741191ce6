//! Questions to EventBridge for the `check` command.

use std::sync::Arc;

use super::lane::EventBridgeLane;
use super::link::{Link, Trouble};
use super::outcome::absent;
use super::settings::EventBridgeSettings;
use super::supervisor::Shared;
use crate::error::Verdict;
use crate::event::Message;
use crate::sink::{Lane as _, SinkState};

/// Whether a bus is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bus {
    /// It exists.
    Exists,
    /// It does not, for this reason.
    Missing(String),
    /// The user may not ask.
    Unknown,
}

/// A client for asking.
pub struct Probe {
    link: Arc<Link>,
    shared: Arc<Shared>,
}

impl Probe {
    /// Reaches EventBridge with the credentials that are there.
    pub async fn connect(settings: &EventBridgeSettings) -> Result<Self, String> {
        let link = Arc::new(Link::open(settings).await?);
        // Any answer will do, as long as it is not about who we are.
        if let Err(Trouble::Outage(text) | Trouble::Busy(text)) = link.look_up("").await {
            return Err(text);
        }
        let shared = Arc::new(Shared::new(settings.clone()));
        shared.link.send_replace(Some(Arc::clone(&link)));
        shared.status.set(SinkState::Ready);
        Ok(Self { link, shared })
    }

    /// The region.
    pub fn region(&self) -> String {
        self.link.region()
    }

    /// Whether a bus exists. `Err`: no answer.
    pub async fn bus(&self, name: &str) -> Result<Bus, String> {
        match self.link.look_up(name).await {
            Ok(()) => Ok(Bus::Exists),
            Err(Trouble::Absent) => Ok(Bus::Missing(absent(name).detail)),
            Err(Trouble::Forbidden(_)) => Ok(Bus::Unknown),
            Err(Trouble::Outage(text) | Trouble::Busy(text) | Trouble::Refused(text)) => Err(text),
        }
    }

    /// Publishes one message the way the sink does, and reports the answer.
    pub async fn publish(&self, message: Message) -> Verdict {
        let mut lane = EventBridgeLane::new(Arc::clone(&self.shared));
        let verdicts = lane.publish(&[message]).await;
        verdicts.into_iter().next().unwrap_or(Verdict::Unavailable)
    }

    /// Why nothing was taken just now, if it was said.
    pub fn trouble(&self) -> Option<String> {
        match self.shared.status.get() {
            SinkState::Ready => self.link.failure(),
            SinkState::Impaired(reason)
            | SinkState::Down(reason)
            | SinkState::Blocked(reason)
            | SinkState::Ended(reason) => Some(reason),
        }
    }
}
