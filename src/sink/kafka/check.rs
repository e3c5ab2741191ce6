//! Questions to a cluster for the `check` command. Everything returned is plain data.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::lane::KafkaLane;
use super::link::{ASK_TIMEOUT, Link};
use super::outcome;
use super::settings::KafkaSettings;
use super::supervisor::Shared;
use crate::error::{Reason, Verdict};
use crate::event::Message;
use crate::sink::Lane;

/// Longest wait for a first answer.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Longest wait for a producer id.
const ID_LIMIT: Duration = Duration::from_secs(10);

/// What a cluster says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cluster {
    /// Its id, if it tells.
    pub id: Option<String>,
    /// `host:port` of its brokers, as they want to be reached.
    pub brokers: Vec<String>,
}

/// Whether a topic is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TopicStatus {
    /// It exists.
    Exists {
        /// How many partitions it has.
        partitions: usize,
        /// Copies of the partition that has fewest.
        replicas: usize,
    },
    /// It does not, or the cluster will not say, for this reason.
    Missing(Reason),
}

/// A producer for asking.
pub struct Probe {
    cluster: Cluster,
    link: Arc<Link>,
    shared: Arc<Shared>,
}

impl Probe {
    /// Connects to the cluster.
    pub async fn connect(settings: &KafkaSettings) -> Result<Self, String> {
        let problems = settings.validate();
        if !problems.is_empty() {
            return Err(problems.join("; "));
        }
        let link = Link::open(settings, |config| {
            // The only way to learn of the producer id.
            config.set("statistics.interval.ms", "100");
        });
        let link = Arc::new(link.await?);
        let deadline = Instant::now() + CONNECT_LIMIT;
        let cluster = loop {
            match cluster(&link).await {
                Ok(cluster) => break cluster,
                Err(error) if Instant::now() >= deadline => {
                    link.end().await;
                    return Err(error);
                }
                Err(_) => {}
            }
        };
        let shared = Arc::new(Shared::new(settings.clone()));
        shared.link.send_replace(Some(Arc::clone(&link)));
        Ok(Self {
            cluster,
            link,
            shared,
        })
    }

    /// What the cluster says about itself.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Whether a topic exists. `Err`: no answer.
    pub async fn topic(&self, name: &str) -> Result<TopicStatus, String> {
        let facts = self.link.ask(Some(name)).await?;
        let fact = facts.into_iter().find(|facts| facts.name == name);
        let verdict = match fact {
            Some(facts) => match facts.error {
                None => {
                    return Ok(TopicStatus::Exists {
                        partitions: facts.partitions,
                        replicas: facts.replicas.unwrap_or_default(),
                    });
                }
                Some(code) => outcome::verdict(code, name),
            },
            None => outcome::unknown_topic(name),
        };
        match verdict {
            Verdict::Rejected(reason) | Verdict::Impossible(reason) => {
                Ok(TopicStatus::Missing(reason))
            }
            _ => Err(format!(
                "topic `{name}` has no leader at the moment; see the brokers' logs"
            )),
        }
    }

    /// Whether the cluster lets this user have an idempotent producer. `Err` says why not.
    pub async fn idempotence(&self) -> Result<(), String> {
        let mut trouble = self.link.trouble();
        let decided = trouble.wait_for(|trouble| trouble.has_id || trouble.failed.is_some());
        match timeout(ID_LIMIT, decided).await {
            Ok(Ok(trouble)) => trouble.failed.clone().map_or(Ok(()), Err),
            Ok(Err(_)) => Err("the producer has ended".to_owned()),
            Err(_) => Err(format!(
                "the cluster gave no producer id within {ID_LIMIT:?}"
            )),
        }
    }

    /// Publishes a message like the relay does.
    pub async fn publish(&self, message: Message) -> Verdict {
        let mut lane = KafkaLane::new(Arc::clone(&self.shared));
        let verdicts = lane.publish(std::slice::from_ref(&message)).await;
        verdicts.into_iter().next().unwrap_or(Verdict::Unavailable)
    }

    /// Closes the connections.
    pub async fn close(self) {
        self.link.end().await;
    }
}

async fn cluster(link: &Arc<Link>) -> Result<Cluster, String> {
    link.with_client(|client| {
        let metadata = client.fetch_metadata(None, ASK_TIMEOUT)?;
        let brokers = metadata.brokers().iter();
        Ok(Cluster {
            id: client.fetch_cluster_id(ASK_TIMEOUT),
            brokers: brokers
                .map(|broker| format!("{}:{}", broker.host(), broker.port()))
                .collect(),
        })
    })
    .await
}
