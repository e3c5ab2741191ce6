//! Kafka: a topic of four partitions.

use super::arrival;
use crate::kafka_node::{Kafka, Record};
use crate::support::Arrival;
use crate::support::poison::Poison;

pub(super) const POISON: &[Poison] = &[
    ("destination", "'nowhere'", "unknown_destination"),
    ("destination", "repeat('x', 250)", "invalid_route"),
    ("destination", "'a b'", "invalid_route"),
    ("headers", "'{\"Content-Type\":\"x\"}'", "invalid_header"),
    ("headers", "'{\"ce_id\":\"x\"}'", "invalid_header"),
];

/// More than relays send, in bytes.
const RECORD_MAX: &str = "17000000";

/// The node.
pub(crate) struct KafkaTopics {
    pub(crate) node: Kafka,
}

impl KafkaTopics {
    pub(super) async fn start() -> Self {
        Self {
            node: Kafka::start().await,
        }
    }

    /// As its jars are called.
    pub(super) fn version(&self) -> String {
        let version = self.node.version();
        format!("Apache Kafka {version}")
    }

    pub(super) async fn open(&self, place: &str) {
        let config = [("max.message.bytes", RECORD_MAX)];
        self.node.topic(place, 4, &config).await;
    }

    pub(super) async fn arrivals(&self, place: &str) -> Vec<Arrival> {
        let records = self.node.read_all(place).await;
        records.into_iter().map(arrived).collect()
    }
}

fn arrived(record: Record) -> Arrival {
    let mut headers = record.headers.iter();
    let id = headers.find(|(name, _)| name == "id" || name == "ce_id");
    let id = id.expect("an id").1.clone();
    let beside = format!("{:?}{:?}{}", record.headers, record.key, record.partition);
    arrival(id, &record.value.expect("a value"), beside.as_bytes())
}
