//! RabbitMQ: an exchange and a queue of one name are a place.

use std::collections::BTreeMap;

use lapin::options::{
    BasicGetOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ConnectionProperties, ExchangeKind};
use outrigger::error::ReasonCode;
use outrigger::event::{HeaderValue, Message};
use outrigger::sink::Sink;
use outrigger::sink::rabbitmq::{self, RabbitMqSettings};
use secrecy::SecretString;

use crate::rabbitmq_node::RabbitMq;
use crate::world::{Arrived, Place, Tuning, World};

/// What the connections of sinks are called; the tests' own have no name.
const NAME: &str = "sink-under-test";

pub(crate) struct RabbitMqWorld {
    node: RabbitMq,
}

impl RabbitMqWorld {
    async fn client(&self) -> (Connection, Channel) {
        let properties = ConnectionProperties::default();
        let connection = Connection::connect(&self.node.url(), properties)
            .await
            .unwrap();
        let channel = connection.create_channel().await.unwrap();
        (connection, channel)
    }
}

impl World for RabbitMqWorld {
    async fn start() -> Self {
        let node = RabbitMq::start().await;
        Self { node }
    }

    fn sink(&self, tuning: Tuning, known: &[&Place]) -> Box<dyn Sink> {
        let settings = RabbitMqSettings {
            urls: vec![SecretString::from(self.node.url())],
            channels: tuning.lanes,
            confirm_timeout: tuning.confirm_timeout,
            max_message_size: 64 * 1024,
            connection_name: NAME.into(),
            known_destinations: known
                .iter()
                .map(|place| place.destination.clone())
                .collect(),
            ..RabbitMqSettings::default()
        };
        rabbitmq::start(settings).unwrap()
    }

    fn place(&self, name: &str) -> Place {
        Place {
            destination: name.to_owned(),
            routing_key: "heard".into(),
        }
    }

    async fn open(&self, place: &Place) {
        let (connection, channel) = self.client().await;
        let name = place.destination.as_str();
        let none = FieldTable::default;
        let exchange = ExchangeDeclareOptions {
            durable: true,
            ..ExchangeDeclareOptions::default()
        };
        let queue = QueueDeclareOptions {
            durable: true,
            ..QueueDeclareOptions::default()
        };
        // The queue first: whoever sees the exchange may publish to it at once.
        channel
            .queue_declare(name.into(), queue, none())
            .await
            .unwrap();
        channel
            .exchange_declare(name.into(), ExchangeKind::Topic, exchange, none())
            .await
            .unwrap();
        channel
            .queue_bind(
                name.into(),
                name.into(),
                place.routing_key.as_str().into(),
                QueueBindOptions::default(),
                none(),
            )
            .await
            .unwrap();
        connection.close(200, "OK".into()).await.unwrap();
    }

    fn nobody_listens(&self, place: &Place) -> Option<(Place, ReasonCode)> {
        let deaf = Place {
            routing_key: "unheard".into(),
            ..place.clone()
        };
        Some((deaf, ReasonCode::Unroutable))
    }

    fn impossible(&self, good: &Message) -> Vec<(Message, ReasonCode)> {
        let long = || "x".repeat(256);
        let (route, header) = (ReasonCode::InvalidRoute, ReasonCode::InvalidHeader);
        let changed = |change: &dyn Fn(&mut Message)| {
            let mut message = good.clone();
            change(&mut message);
            message
        };
        vec![
            (changed(&|m| m.routing_key = long()), route),
            (changed(&|m| m.destination = long()), route),
            (changed(&|m| m.id = long()), header),
            (
                changed(&|m| {
                    m.headers = vec![("big".into(), HeaderValue::Text("x".repeat(33_000)))]
                }),
                header,
            ),
            (
                changed(&|m| m.headers = vec![("CC".into(), HeaderValue::Text("other".into()))]),
                header,
            ),
            (
                changed(&|m| m.body = vec![b'x'; 64 * 1024 + 1].into()),
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
                body: vec![0xff; 64 * 1024].into(),
                ..good.clone()
            },
            Message {
                content_type: None,
                body: Vec::new().into(),
                ..good.clone()
            },
        ]
    }

    async fn take(&self, place: &Place) -> Vec<Arrived> {
        let (connection, channel) = self.client().await;
        let mut all = Vec::new();
        let options = BasicGetOptions { no_ack: true };
        let queue = place.destination.as_str();
        while let Some(got) = channel.basic_get(queue.into(), options).await.unwrap() {
            let properties = &got.delivery.properties;
            let text = |value: &Option<lapin::types::ShortString>| {
                value.as_ref().map(|value| value.as_str().to_owned())
            };
            all.push(Arrived {
                id: text(properties.message_id()).unwrap(),
                content_type: text(properties.content_type()),
                headers: properties
                    .headers()
                    .as_ref()
                    .map(headers)
                    .unwrap_or_default(),
                body: got.delivery.data,
            });
        }
        connection.close(200, "OK".into()).await.unwrap();
        all
    }

    async fn kill(&self) {
        self.node.kill();
    }

    async fn revive(&self) {
        self.node.revive().await;
    }

    async fn block(&self) {
        self.node.ctl_ok(&["set_vm_memory_high_watermark", "0"]);
    }

    async fn unblock(&self) {
        self.node.ctl_ok(&["set_vm_memory_high_watermark", "0.6"]);
    }

    async fn connections(&self) -> usize {
        let listed = self
            .node
            .ctl_ok(&["list_connections", "--quiet", "client_properties"]);
        listed.matches(NAME).count()
    }
}

fn headers(table: &FieldTable) -> BTreeMap<String, String> {
    let text = |value: &AMQPValue| match value {
        AMQPValue::LongString(text) => String::from_utf8(text.as_bytes().to_vec()).unwrap(),
        AMQPValue::LongInt(number) => number.to_string(),
        AMQPValue::LongLongInt(number) => number.to_string(),
        AMQPValue::Boolean(flag) => flag.to_string(),
        other => panic!("{other:?}"),
    };
    let entries = table.inner().iter();
    entries
        .map(|(name, value)| (name.as_str().to_lowercase(), text(value)))
        .collect()
}
