//! Rows are published by the relay to real servers, and fetched from there as they are on the wire.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lapin::options::{
    BasicGetOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, ConnectionProperties, ExchangeKind};
use serde_json::{Value, json};

#[cfg(feature = "kafka")]
use crate::kafka::Kafka;
use crate::nats_node::{NatsNode, RawClient, parse_headers};
use crate::rabbitmq::RabbitMq;
use crate::rows::{self, Event, Payload, SOURCE};
use crate::service::Service;
use crate::tool::Tool;

/// A message, and the events in it.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) sink: &'static str,
    pub(crate) mode: &'static str,
    content_type: Option<String>,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
    pub(crate) events: Vec<Event>,
}

/// As a server handed it over: content type, headers, body.
type Fetched = (Option<String>, BTreeMap<String, String>, Vec<u8>);

impl Wire {
    /// As a reader takes it.
    pub(crate) fn line(&self) -> String {
        json!({
            "sink": self.sink,
            "mode": self.mode,
            "content_type": self.content_type,
            "headers": self.headers,
            "body": STANDARD.encode(&self.body),
        })
        .to_string()
    }
}

pub(crate) async fn publish() -> Vec<Wire> {
    let mut wires = Vec::new();
    by_rabbitmq(&mut wires).await;
    by_nats(&mut wires).await;
    by_http(&mut wires).await;
    #[cfg(feature = "kafka")]
    by_kafka(&mut wires).await;
    wires
}

const MODES: [&str; 3] = ["structured", "binary", "batch"];

/// Runs a relay until everything is published.
async fn relay(sink: &str, mode: &str, more: &[(&str, &str)]) {
    let settings = [
        ("OUTRIGGER_SINK", sink),
        ("OUTRIGGER_EVENT_MODE", mode),
        ("OUTRIGGER_EVENT_SOURCE", SOURCE),
        ("OUTRIGGER_EVENT_SEQUENCE", "true"),
        ("OUTRIGGER_EVENT_EXPIRYTIME", "true"),
    ];
    let tool = Tool::new().await.with(&[&settings, more].concat()).await;
    tool.sql(&rows::insert()).await;
    tool.drain().await;
}

/// Puts events beside the messages. Rows without a key have no order, so messages are matched by the ids in them.
fn collect(wires: &mut Vec<Wire>, sink: &'static str, mode: &'static str, fetched: Vec<Fetched>) {
    let mut expected = rows::events();
    if mode == "binary" {
        // Nothing else tells there what the body is, so JSON is always named.
        for event in &mut expected {
            if matches!(event.payload, Payload::Json(_)) {
                let content_type = event.attributes.entry("datacontenttype".to_owned());
                content_type.or_insert_with(|| "application/json".to_owned());
            }
        }
    }
    for (content_type, headers, body) in fetched {
        let text = String::from_utf8_lossy(&body).into_owned();
        let mut found = Vec::new();
        expected.retain(|event| {
            let id = &event.attributes["id"];
            let here = text.contains(id.as_str()) || headers.values().any(|value| value == id);
            if here {
                found.push((text.find(id.as_str()), event.clone()));
            }
            !here
        });
        found.sort_by_key(|(at, _)| *at);
        assert!(!found.is_empty(), "a message of no row: {headers:?} {text}");
        wires.push(Wire {
            sink,
            mode,
            content_type,
            headers,
            body,
            events: found.into_iter().map(|(_, event)| event).collect(),
        });
    }
    assert!(expected.is_empty(), "not published: {expected:?}");
}

async fn by_rabbitmq(wires: &mut Vec<Wire>) {
    let node = RabbitMq::start().await;
    let url = node.url();
    let connection = Connection::connect(&url, ConnectionProperties::default())
        .await
        .unwrap();
    let channel = connection.create_channel().await.unwrap();
    for mode in MODES {
        let table = FieldTable::default();
        let declare = ExchangeDeclareOptions::default();
        channel
            .exchange_declare(mode.into(), ExchangeKind::Fanout, declare, table.clone())
            .await
            .unwrap();
        channel
            .queue_declare(mode.into(), QueueDeclareOptions::default(), table.clone())
            .await
            .unwrap();
        channel
            .queue_bind(
                mode.into(),
                mode.into(),
                "".into(),
                QueueBindOptions::default(),
                table,
            )
            .await
            .unwrap();
        let settings = [
            ("OUTRIGGER_RABBITMQ_URL", url.as_str()),
            ("OUTRIGGER_ROUTE_DESTINATION", mode),
            // Events of one batch share their route.
            ("OUTRIGGER_ROUTE_KEY", "all"),
        ];
        relay("rabbitmq", mode, &settings).await;
        let mut fetched = Vec::new();
        let get = BasicGetOptions { no_ack: true };
        while let Some(message) = channel.basic_get(mode.into(), get).await.unwrap() {
            let properties = &message.delivery.properties;
            let content_type = properties.content_type().as_ref();
            let headers = properties.headers().clone().unwrap_or_default();
            let headers = headers.inner().iter().map(|(name, value)| {
                let AMQPValue::LongString(text) = value else {
                    panic!("{name} is not a text: {value:?}");
                };
                (name.to_string(), text.to_string())
            });
            fetched.push((
                content_type.map(ToString::to_string),
                headers.collect(),
                message.delivery.data.clone(),
            ));
        }
        collect(wires, "rabbitmq", mode, fetched);
    }
}

async fn by_nats(wires: &mut Vec<Wire>) {
    let node = NatsNode::start_with(r#"jetstream { store_dir: "@DIR@/store" }"#).await;
    let mut client = RawClient::connect(node.port(), Value::Null).await;
    let url = format!("nats://127.0.0.1:{}", node.port());
    for mode in MODES {
        let config = json!({"name": mode, "subjects": [format!("{mode}.>")], "storage": "file"});
        client
            .api(&format!("STREAM.CREATE.{mode}"), config, 0)
            .await;
        let key = format!("{mode}.all");
        let settings = [
            ("OUTRIGGER_NATS_URL", url.as_str()),
            ("OUTRIGGER_ROUTE_DESTINATION", mode),
            ("OUTRIGGER_ROUTE_KEY", &key),
        ];
        relay("nats", mode, &settings).await;
        let mut fetched = Vec::new();
        for message in client.stored(mode).await {
            let mut headers = parse_headers(&message.headers);
            let content_type = headers.remove("Content-Type");
            headers.retain(|name, _| !name.starts_with("Nats-"));
            fetched.push((content_type, headers, message.body));
        }
        collect(wires, "nats", mode, fetched);
    }
}

async fn by_http(wires: &mut Vec<Wire>) {
    let service = Service::start();
    for mode in MODES {
        service.open(mode);
        let url = format!("http://127.0.0.1:{}", service.port());
        let settings = [
            ("OUTRIGGER_HTTP_URL", url.as_str()),
            ("OUTRIGGER_ROUTE_DESTINATION", mode),
        ];
        relay("http", mode, &settings).await;
        let taken = service.close(mode).into_iter();
        let fetched = taken.map(|mut taken| {
            let content_type = taken.headers.remove("content-type");
            (content_type, taken.headers, taken.body)
        });
        collect(wires, "http", mode, fetched.collect());
    }
}

#[cfg(feature = "kafka")]
async fn by_kafka(wires: &mut Vec<Wire>) {
    let node = Kafka::start().await;
    let address = node.address();
    // The sink makes no batches: the producer does.
    for mode in ["structured", "binary"] {
        node.topic(mode, 1, &[]).await;
        let settings = [
            ("OUTRIGGER_KAFKA_BROKERS", address.as_str()),
            ("OUTRIGGER_ROUTE_DESTINATION", mode),
        ];
        relay("kafka", mode, &settings).await;
        let records = node.read_all(mode).await.into_iter();
        let fetched = records.map(|record| {
            let mut headers: BTreeMap<String, String> = record.headers.into_iter().collect();
            let content_type = headers.remove("content-type");
            (content_type, headers, record.value.unwrap_or_default())
        });
        collect(wires, "kafka", mode, fetched.collect());
    }
}
