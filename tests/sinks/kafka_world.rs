//! Kafka: a topic of one partition is a place.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use outrigger::error::ReasonCode;
use outrigger::event::{HeaderValue, Message};
use outrigger::sink::Sink;
use outrigger::sink::kafka::{self, KafkaSettings};

use crate::kafka_node::{Kafka, Record};
use crate::world::{Arrived, Place, Tuning, World};

pub(crate) struct KafkaWorld {
    node: Kafka,
    /// How far each topic was read.
    taken: Mutex<HashMap<String, Arc<Mutex<Vec<i64>>>>>,
}

impl World for KafkaWorld {
    async fn start() -> Self {
        Self {
            node: Kafka::start().await,
            taken: Mutex::default(),
        }
    }

    fn sink(&self, tuning: Tuning, known: &[&Place]) -> Box<dyn Sink> {
        let settings = KafkaSettings {
            brokers: vec![self.node.address()],
            lanes: tuning.lanes,
            confirm_timeout: tuning.confirm_timeout,
            max_message_size: 64 * 1024,
            known_destinations: known
                .iter()
                .map(|place| place.destination.clone())
                .collect(),
            ..KafkaSettings::default()
        };
        kafka::start(settings).unwrap()
    }

    fn place(&self, name: &str) -> Place {
        Place {
            destination: name.to_owned(),
            routing_key: String::new(),
        }
    }

    async fn open(&self, place: &Place) {
        self.node.topic(&place.destination, 1, &[]).await;
    }

    fn nobody_listens(&self, _: &Place) -> Option<(Place, ReasonCode)> {
        None
    }

    fn impossible(&self, good: &Message) -> Vec<(Message, ReasonCode)> {
        let changed = |change: &dyn Fn(&mut Message)| {
            let mut message = good.clone();
            change(&mut message);
            message
        };
        let header = |name: &str| {
            let name = name.to_owned();
            changed(&move |m| m.headers = vec![(name.clone(), HeaderValue::Int(1))])
        };
        let (route, invalid) = (ReasonCode::InvalidRoute, ReasonCode::InvalidHeader);
        vec![
            (changed(&|m| m.destination = "x".repeat(250)), route),
            (changed(&|m| m.destination = "a b".into()), route),
            (changed(&|m| m.destination = String::new()), route),
            (header("a\0b"), invalid),
            (header("Content-Type"), invalid),
            (
                changed(&|m| m.body = vec![b'x'; 64 * 1024].into()),
                ReasonCode::TooLarge,
            ),
            (
                changed(&|m| m.key = Some("x".repeat(64 * 1024))),
                ReasonCode::TooLarge,
            ),
        ]
    }

    fn odd(&self, good: &Message) -> Vec<Message> {
        let with = |name: &str, value: HeaderValue| Message {
            headers: vec![(name.to_owned(), value)],
            ..good.clone()
        };
        vec![
            with("nul", HeaderValue::Text("a\0b".into())),
            with(
                "ünï\u{202e}",
                HeaderValue::Text("\u{10ffff}\u{fffe}".into()),
            ),
            with("", HeaderValue::Int(i64::MIN)),
            with("long", HeaderValue::Text("y".repeat(30_000))),
            Message {
                body: vec![0xff; 60 * 1024].into(),
                key: Some("\0".into()),
                ..good.clone()
            },
            Message {
                content_type: None,
                body: Vec::new().into(),
                key: Some(String::new()),
                ..good.clone()
            },
        ]
    }

    async fn take(&self, place: &Place) -> Vec<Arrived> {
        let offsets = {
            let mut taken = self.taken.lock().unwrap();
            Arc::clone(taken.entry(place.destination.clone()).or_default())
        };
        let records = self.node.read(&place.destination, &offsets).await;
        records.into_iter().map(arrived).collect()
    }

    async fn kill(&self) {
        self.node.kill();
    }

    async fn revive(&self) {
        self.node.revive().await;
    }

    /// It neither answers nor ends connections. (To demand more replicas than a topic has is of no effect.)
    async fn block(&self) {
        self.node.freeze();
    }

    async fn unblock(&self) {
        self.node.thaw();
    }

    /// Kafka has no way to ask publishers to wait: they notice that nothing is confirmed.
    fn tells_blocking(&self) -> bool {
        false
    }

    async fn connections(&self) -> usize {
        self.node.connections()
    }
}

fn arrived(record: Record) -> Arrived {
    let binary = record
        .headers
        .iter()
        .any(|(name, _)| name == "ce_specversion");
    let mut arrived = Arrived {
        body: record.value.unwrap_or_default(),
        ..Arrived::default()
    };
    let mut headers = BTreeMap::new();
    for (name, value) in record.headers {
        if name == if binary { "ce_id" } else { "id" } {
            arrived.id.clone_from(&value);
        }
        match name.as_str() {
            "content-type" => arrived.content_type = Some(value),
            "id" if !binary => {}
            name => {
                let name = match name.strip_prefix("ce_") {
                    Some(attribute) => format!("ce-{attribute}"),
                    None => name.to_lowercase(),
                };
                headers.insert(name, value);
            }
        }
    }
    arrived.headers = headers;
    arrived
}
