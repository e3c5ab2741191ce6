//! Keeps a producer: creates it, waits until the cluster answers and has the topics, watches it, replaces it
//! when it has failed, reports the state.
//!
//! librdkafka reconnects by itself, so an outage alone does not end a producer: batches that are with it
//! wait, and go without being repeated if the outage is shorter than the confirm timeout.

use std::sync::Arc;
use tokio::sync::{RwLock, watch};
use tokio_util::sync::CancellationToken;

use super::lane::KafkaLane;
use super::link::{Link, Topic, Trouble};
use super::settings::KafkaSettings;
use crate::error::Verdict;
use crate::sink::backoff::backoff;
use crate::sink::supervised::{Connect, Status, Supervised, keep_connected};
use crate::sink::{Lane, SinkState};

/// What the supervisor, the lanes and the sink have in common.
pub(super) struct Shared {
    pub(super) settings: KafkaSettings,
    pub(super) status: Status,
    /// The producer, while it can be used.
    pub(super) link: watch::Sender<Option<Arc<Link>>>,
    /// Shared by lanes that publish batches, held alone by one that tries its records one by one.
    pub(super) gate: RwLock<()>,
}

impl Shared {
    pub(super) fn new(settings: KafkaSettings) -> Self {
        Self {
            settings,
            status: Status::new("Kafka"),
            link: watch::Sender::new(None),
            gate: RwLock::default(),
        }
    }

    fn down(&self, reason: String) {
        self.link.send_replace(None);
        self.status.report(SinkState::Down(reason));
    }
}

impl Supervised for Shared {
    const KIND: &'static str = "kafka";

    fn status(&self) -> &Status {
        &self.status
    }

    fn lanes(self: &Arc<Self>) -> Vec<Box<dyn Lane>> {
        (0..self.settings.lanes.max(1))
            .map(|_| Box::new(KafkaLane::new(Arc::clone(self))) as Box<dyn Lane>)
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

    /// The brokers are tried by librdkafka.
    async fn places(&self) -> Result<Vec<()>, String> {
        Ok(vec![()])
    }

    async fn open(&self, _place: &()) -> Result<Arc<Link>, String> {
        Link::open(&self.settings, |_| {}).await.map(Arc::new)
    }

    /// Offers the producer whenever the cluster can be reached.
    async fn serve(&self, link: &Arc<Link>) -> String {
        let mut trouble = link.trouble();
        loop {
            let seen = match connect(self, link, &mut trouble).await {
                Ok(seen) => seen,
                Err(failed) => return failed,
            };
            self.link.send_replace(Some(Arc::clone(link)));
            self.status.report(SinkState::Ready);
            match lost(link, &mut trouble, seen).await {
                Lost::Cluster(reason) => self.down(reason),
                Lost::Producer(reason) => return reason,
            }
        }
    }

    async fn end(&self, link: &Link, _lost: Option<&str>) {
        link.end().await;
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
        if link.is_outdated(&shared.settings).await {
            return Err("the password was replaced".to_owned());
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
            Topic::Refused(_) => {
                return Err(format!(
                    "topic `{name}` cannot be looked up at the moment; see the brokers' logs"
                ));
            }
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
