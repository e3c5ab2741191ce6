//! Keeps a link: opens it, waits until EventBridge answers and has the buses of the settings, offers it, replaces it
//! when it has failed.
//!
//! HTTP has no connection that tells of an outage by itself: lanes find out, and say so ([`Link::fail`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::lane::EventBridgeLane;
use super::link::{Link, Trouble};
use super::outcome::absent;
use super::settings::EventBridgeSettings;
use crate::sink::Lane;
use crate::sink::SinkState;
use crate::sink::backoff::backoff;
use crate::sink::supervised::{Connect, Status, Supervised, keep_connected};

/// What the supervisor, the lanes and the sink have in common.
pub(super) struct Shared {
    pub(super) settings: EventBridgeSettings,
    pub(super) status: Status,
    /// The link, while it can be used.
    pub(super) link: watch::Sender<Option<Arc<Link>>>,
    /// Requests in a row that EventBridge could not take.
    failures: AtomicU32,
}

impl Shared {
    pub(super) fn new(settings: EventBridgeSettings) -> Self {
        Self {
            settings,
            status: Status::new("EventBridge"),
            link: watch::Sender::new(None),
            failures: AtomicU32::new(0),
        }
    }

    /// EventBridge took a request as a whole.
    pub(super) fn took(&self) {
        self.failures.store(0, Ordering::Relaxed);
    }

    /// EventBridge wants less, or is ill: everybody waits, longer each time.
    pub(super) fn busy(&self, reason: String) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        let wait = backoff(failures, rand::random());
        self.status.block_for(reason, wait);
    }

    /// Publishing to a missing bus would cost every event its attempts because of an account that is not set up yet.
    async fn ready(&self, link: &Link) -> Result<(), String> {
        for bus in &self.settings.known_destinations {
            match link.know(bus).await {
                Ok(()) => {}
                Err(Trouble::Absent) => return Err(absent(bus).detail),
                Err(
                    Trouble::Outage(text)
                    | Trouble::Busy(text)
                    | Trouble::Forbidden(text)
                    | Trouble::Refused(text),
                ) => return Err(text),
            }
        }
        if !self.settings.known_destinations.is_empty() {
            return Ok(());
        }
        // Any answer will do that is not about who we are.
        match link.look_up("").await {
            Err(Trouble::Outage(text) | Trouble::Busy(text)) => Err(text),
            _ => Ok(()),
        }
    }
}

impl Supervised for Shared {
    const KIND: &'static str = "eventbridge";

    fn status(&self) -> &Status {
        &self.status
    }

    fn lanes(self: &Arc<Self>) -> Vec<Box<dyn Lane>> {
        (0..self.settings.connections)
            .map(|_| Box::new(EventBridgeLane::new(Arc::clone(self))) as Box<dyn Lane>)
            .collect()
    }

    async fn keep(&self, stop: &CancellationToken) {
        keep_connected(self, stop).await;
    }
}

impl Connect for Shared {
    type Link = Link;
    type Place = ();

    fn links(&self) -> &watch::Sender<Option<Arc<Link>>> {
        &self.link
    }

    /// The region has one address.
    async fn places(&self) -> Result<Vec<()>, String> {
        Ok(vec![()])
    }

    async fn open(&self, _place: &()) -> Result<Arc<Link>, String> {
        let link = Link::open(&self.settings).await?;
        self.ready(&link).await?;
        Ok(Arc::new(link))
    }

    async fn serve(&self, link: &Arc<Link>) -> String {
        self.link.send_replace(Some(Arc::clone(link)));
        self.status.report(SinkState::Ready);
        link.failed().await
    }

    /// Its connections end when the last lane lets go of it.
    async fn end(&self, _link: &Link, _lost: Option<&str>) {}
}
