//! What the lanes share with the task that keeps them connected, and how that is done for NATS.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::api::{Trouble, stream};
use super::lane::NatsLane;
use super::link::Link;
use super::settings::{NatsSettings, Server};
use super::streams::{Streams, missing};
use crate::sink::backoff::backoff;
use crate::sink::supervised::{Connect, Status, Supervised, keep_connected};
use crate::sink::{Lane, SinkState};

/// A full server is tried again after this long: nothing tells that it has room except publishing.
pub(super) const FULL_PAUSE: Duration = Duration::from_secs(1);

/// What the supervisor, the lanes and the sink have in common.
pub(super) struct Shared {
    pub(super) settings: NatsSettings,
    pub(super) status: Status,
    pub(super) link: watch::Sender<Option<Arc<Link>>>,
    pub(super) streams: Streams,
    servers: Vec<Server>,
}

impl Shared {
    pub(super) fn new(settings: NatsSettings, servers: Vec<Server>) -> Self {
        Self {
            status: Status::new("NATS").calling("OUTRIGGER_NATS_URL", &settings.url_name),
            settings,
            link: watch::Sender::new(None),
            streams: Streams::default(),
            servers,
        }
    }

    /// Holds the sink back until all configured streams exist: publishing anyway would cost every
    /// event its attempts because of a server that is not set up yet.
    async fn await_streams(&self, link: &Link) {
        for name in &self.settings.known_destinations {
            let mut asked = 0;
            // An empty name means whichever stream takes the subject.
            while !name.is_empty() {
                let reason = match stream(link, name).await {
                    Ok(Some(stream)) => match stream.unfit {
                        Some(unfit) => unfit.of(name),
                        None => break,
                    },
                    // A user that may only publish cannot look, and finds out by publishing.
                    Err(Trouble::Forbidden) => break,
                    Ok(None) => missing(name).detail,
                    Err(Trouble::NoJetStream) => no_jetstream(),
                    Err(Trouble::Other(text)) => format!("cannot look for stream `{name}`: {text}"),
                };
                self.status.report(SinkState::Down(reason));
                asked += 1;
                tokio::time::sleep(backoff(asked, rand::random())).await;
            }
        }
    }
}

impl Supervised for Shared {
    const KIND: &'static str = "nats";

    fn status(&self) -> &Status {
        &self.status
    }

    fn lanes(self: &Arc<Self>) -> Vec<Box<dyn Lane>> {
        (0..self.settings.lanes)
            .map(|_| Box::new(NatsLane::new(Arc::clone(self))) as Box<dyn Lane>)
            .collect()
    }

    async fn keep(&self, stop: &CancellationToken) {
        keep_connected(self, stop).await;
    }
}

impl Connect for Shared {
    type Link = Link;
    type Place = Server;

    fn links(&self) -> &watch::Sender<Option<Arc<Link>>> {
        &self.link
    }

    async fn places(&self) -> Result<Vec<Server>, String> {
        self.settings.servers_now(&self.servers).await
    }

    async fn open(&self, place: &Server) -> Result<Arc<Link>, String> {
        Link::open(place, &self.settings).await
    }

    async fn serve(&self, link: &Arc<Link>) -> String {
        tokio::select! {
            () = self.await_streams(link) => {}
            reason = link.ended() => return reason,
        }
        self.link.send_replace(Some(Arc::clone(link)));
        self.status.report(SinkState::Ready);
        link.ended().await
    }

    async fn end(&self, link: &Link, _lost: Option<&str>) {
        link.close().await;
    }
}

/// Why nothing can be published at all.
pub(super) fn no_jetstream() -> String {
    "JetStream does not answer: it is not enabled for this server or account, or has no leader"
        .to_owned()
}
