//! Questions to a server for the `check` command. Everything returned is plain data.

use std::sync::Arc;
use std::time::Duration;

use super::api::{self, Trouble};
use super::lane::NatsLane;
use super::link::Link;
use super::settings::NatsSettings;
use super::streams::missing;
use super::supervisor::{Shared, no_jetstream};
use crate::error::Verdict;
use crate::event::Message;
use crate::sink::Lane as _;

/// What a server says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Scheme, host and port.
    pub address: String,
    /// Its version.
    pub version: String,
    /// The cluster it belongs to.
    pub cluster: Option<String>,
    /// Whether the connection is encrypted.
    pub encrypted: bool,
    /// Largest message in bytes, headers included.
    pub max_payload: usize,
}

/// Whether a stream is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stream {
    /// It exists.
    Exists {
        /// The subjects it takes.
        subjects: Vec<String>,
        /// Copies of each message.
        replicas: usize,
        /// `file` or `memory`.
        storage: String,
        /// How long repetitions are recognised.
        duplicate_window: Duration,
        /// Whether it drops what no consumer is interested in.
        needs_interest: bool,
        /// Why nothing that is published to it can be confirmed.
        unfit: Option<String>,
    },
    /// It does not exist, for this reason.
    Missing(String),
    /// The user may not ask.
    Unknown,
}

/// A connection for asking.
pub struct Probe {
    link: Arc<Link>,
    settings: NatsSettings,
    encrypted: bool,
}

impl Probe {
    /// Connects to the server of URL number `position`, from 0.
    pub async fn connect(settings: &NatsSettings, position: usize) -> Result<Self, String> {
        let servers = settings.servers().map_err(|problems| problems.join("; "))?;
        let server = servers
            .get(position)
            .ok_or_else(|| format!("OUTRIGGER_NATS_URL has no URL number {}", position + 1))?;
        let link = Link::open(server, settings).await?;
        Ok(Self {
            encrypted: server.tls || link.client().server_info().tls_required,
            link,
            settings: settings.clone(),
        })
    }

    /// What answered.
    pub fn server(&self) -> Server {
        let info = self.link.client().server_info();
        Server {
            address: self.link.server().to_owned(),
            version: info.version,
            cluster: info.cluster,
            encrypted: self.encrypted,
            max_payload: info.max_payload,
        }
    }

    /// Whether a stream exists. An error means that JetStream does not answer.
    pub async fn stream(&self, name: &str) -> Result<Stream, String> {
        match api::stream(&self.link, name).await {
            Ok(Some(stream)) => Ok(Stream::Exists {
                subjects: stream.subjects,
                replicas: stream.replicas,
                storage: stream.storage,
                duplicate_window: stream.duplicate_window,
                needs_interest: stream.needs_interest,
                unfit: stream.unfit.map(|unfit| unfit.of(name)),
            }),
            Ok(None) => Ok(Stream::Missing(missing(name).detail)),
            Err(Trouble::Forbidden) => Ok(Stream::Unknown),
            Err(Trouble::NoJetStream) => Err(no_jetstream()),
            Err(Trouble::Other(text)) => Err(text),
        }
    }

    /// Publishes one message the way the sink does, and reports the answer.
    pub async fn publish(&self, message: Message) -> Verdict {
        let shared = Shared::new(self.settings.clone(), Vec::new());
        shared.link.send_replace(Some(Arc::clone(&self.link)));
        let mut lane = NatsLane::new(Arc::new(shared));
        let verdicts = lane.publish(&[message]).await;
        verdicts.into_iter().next().unwrap_or(Verdict::Unavailable)
    }

    /// Closes the connection, within a few seconds at most.
    pub async fn close(self) {
        self.link.close().await;
    }
}
