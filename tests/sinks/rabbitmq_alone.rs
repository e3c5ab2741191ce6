//! What only the RabbitMQ sink does: properties that a row sets for its message.

use std::time::Duration;

use lapin::message::Delivery;
use lapin::options::{
    BasicGetOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, Connection, ConnectionProperties, ExchangeKind};
use outrigger::error::{ReasonCode, Verdict};
use outrigger::event::{HeaderValue, Message, REASON_HEADER};
use outrigger::sink::SinkState;
use outrigger::sink::rabbitmq::{self, RabbitMqSettings};
use secrecy::SecretString;

use crate::harness::{Is, Running, assert_verdicts, message};
use crate::rabbitmq_node::RabbitMq;
use crate::world::Place;

/// An exchange with a queue of the same name.
async fn open(node: &RabbitMq, name: &str) -> (Channel, Place) {
    let connection = Connection::connect(&node.url(), ConnectionProperties::default())
        .await
        .unwrap();
    let channel = connection.create_channel().await.unwrap();
    let none = FieldTable::default;
    let exchange = ExchangeDeclareOptions::default();
    channel
        .exchange_declare(name.into(), ExchangeKind::Fanout, exchange, none())
        .await
        .unwrap();
    channel
        .queue_declare(name.into(), QueueDeclareOptions::default(), none())
        .await
        .unwrap();
    channel
        .queue_bind(
            name.into(),
            name.into(),
            "".into(),
            QueueBindOptions::default(),
            none(),
        )
        .await
        .unwrap();
    let place = Place {
        destination: name.into(),
        routing_key: "any".into(),
    };
    (channel, place)
}

async fn get(channel: &Channel, queue: &str) -> Option<Delivery> {
    let get = BasicGetOptions { no_ack: true };
    let got = channel.basic_get(queue.into(), get).await.unwrap();
    got.map(|message| message.delivery)
}

async fn ready(node: &RabbitMq, expiration: bool) -> Running {
    let settings = RabbitMqSettings {
        urls: vec![SecretString::from(node.url())],
        channels: 1,
        expiration,
        ..RabbitMqSettings::default()
    };
    let mut running = Running::start(rabbitmq::start(settings).unwrap());
    running.await_state("ready", SinkState::is_ready).await;
    running
}

fn with(id: &str, place: &Place, headers: &[(&str, HeaderValue)]) -> Message {
    let headers = headers.iter();
    Message {
        headers: headers
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect(),
        ..message(id, place)
    }
}

fn text(text: &str) -> HeaderValue {
    HeaderValue::Text(text.to_owned())
}

fn shown(value: &Option<ShortString>) -> Option<String> {
    value.as_ref().map(ToString::to_string)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_sets_properties_of_its_message() {
    let node = RabbitMq::start().await;
    let (channel, place) = open(&node, "properties").await;
    let mut running = ready(&node, false).await;
    let asked = [
        ("amqp-app-id", text("shop")),
        ("amqp-content-encoding", text("gzip")),
        ("amqp-correlation-id", text("question-7")),
        ("amqp-expiration", HeaderValue::Int(3_600_000)),
        ("amqp-priority", HeaderValue::Int(7)),
        ("amqp-reply-to", text("answers")),
        ("amqp-type", text("Order")),
        ("amqp-user-id", text("guest")),
        ("x-tenant", text("blue")),
    ];
    let verdicts = running.publish(&[with("all", &place, &asked)]).await;
    assert_verdicts("properties", &verdicts, |_| Is::Confirmed);
    let properties = get(&channel, "properties").await.unwrap().properties;
    assert_eq!(shown(properties.app_id()).as_deref(), Some("shop"));
    assert_eq!(
        shown(properties.content_encoding()).as_deref(),
        Some("gzip")
    );
    assert_eq!(
        shown(properties.correlation_id()).as_deref(),
        Some("question-7")
    );
    assert_eq!(shown(properties.expiration()).as_deref(), Some("3600000"));
    assert_eq!(*properties.priority(), Some(7));
    assert_eq!(shown(properties.reply_to()).as_deref(), Some("answers"));
    assert_eq!(shown(properties.kind()).as_deref(), Some("Order"));
    assert_eq!(shown(properties.user_id()).as_deref(), Some("guest"));
    assert_eq!(shown(properties.message_id()).as_deref(), Some("all"));
    let headers = properties.headers().clone().unwrap();
    let names: Vec<_> = headers.inner().keys().map(ToString::to_string).collect();
    assert_eq!(names, ["x-tenant"], "properties are no headers");

    // A dead letter has them as headers, and expires as little as any other.
    let reason = [(REASON_HEADER, text("nack"))];
    let dead = with("dead", &place, &[&asked[..], &reason].concat());
    let verdicts = running.publish(&[dead]).await;
    assert_verdicts("a dead letter", &verdicts, |_| Is::Confirmed);
    let properties = get(&channel, "properties").await.unwrap().properties;
    assert_eq!(*properties.expiration(), None);
    let headers = properties.headers().clone().unwrap();
    assert!(headers.inner().contains_key("amqp-expiration"));
    running.close().await;
}

/// Whatever is let through must not close the channel, which has other messages on it.
#[tokio::test(flavor = "multi_thread")]
async fn the_broker_takes_every_value_that_is_let_through() {
    let node = RabbitMq::start().await;
    let (channel, place) = open(&node, "limits").await;
    let mut running = ready(&node, false).await;
    let long = "x".repeat(255);
    let odd = [
        ("amqp-priority", HeaderValue::Int(0)),
        ("amqp-priority", HeaderValue::Int(255)),
        ("amqp-expiration", HeaderValue::Int(0)),
        ("amqp-expiration", text("4294967295")),
        ("amqp-reply-to", text(&long)),
        ("amqp-reply-to", text("amq.rabbitmq.reply-to.unknown")),
        ("amqp-correlation-id", text(&long)),
        ("amqp-content-encoding", text("Zoë")),
        ("amqp-app-id", text(&long)),
    ];
    let wrong = [
        ("amqp-expiration", text("4294967296")),
        ("amqp-expiration", text("soon")),
        ("amqp-reply-to", text("amq.rabbitmq.reply-to")),
        ("amqp-user-id", text("somebody")),
    ];
    let all = odd.iter().chain(&wrong).enumerate();
    let batch: Vec<Message> = all
        .map(|(n, header)| with(&format!("m-{n}"), &place, std::slice::from_ref(header)))
        .collect();
    let verdicts = running.publish(&batch).await;
    for (n, verdict) in verdicts.iter().enumerate() {
        match verdict {
            Verdict::Confirmed => assert!(n < odd.len(), "m-{n} is confirmed"),
            Verdict::Impossible(reason) => {
                assert_eq!(reason.code, ReasonCode::InvalidHeader);
                assert!(n >= odd.len(), "m-{n}: {reason}");
                let name = wrong[n - odd.len()].0;
                assert!(reason.detail.contains(name), "m-{n}: {reason}");
            }
            other => panic!("m-{n}: {other:?}"),
        }
    }
    // All but the one that may not wait, each once.
    let mut arrived = Vec::new();
    while let Some(delivery) = get(&channel, "limits").await {
        arrived.push(shown(delivery.properties.message_id()).unwrap());
    }
    let expected: Vec<String> = (0..odd.len())
        .filter(|n| *n != 2)
        .map(|n| format!("m-{n}"))
        .collect();
    assert_eq!(arrived, expected);
    running.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_expires_with_its_row_where_that_is_asked_for() {
    let node = RabbitMq::start().await;
    let (channel, place) = open(&node, "expiring").await;
    let in_an_hour = Duration::from_secs(3600);
    let expiring = |id: &str, left| Message {
        expires_in: left,
        ..message(id, &place)
    };
    let mut own = with("own", &place, &[("amqp-expiration", text("9000000"))]);
    own.expires_in = Some(in_an_hour);
    let batch = [
        expiring("in-an-hour", Some(in_an_hour)),
        expiring("never", None),
        own,
        expiring("in-a-century", Some(100 * 365 * 24 * in_an_hour)),
        expiring("past", Some(Duration::ZERO)),
    ];
    for (asked, expected) in [(true, 4), (false, 5)] {
        let mut running = ready(&node, asked).await;
        let verdicts = running.publish(&batch).await;
        assert_verdicts("expiring", &verdicts, |_| Is::Confirmed);
        running.close().await;
        for n in 0..expected {
            let properties = get(&channel, "expiring").await.unwrap().properties;
            let id = shown(properties.message_id()).unwrap();
            let left = shown(properties.expiration()).map(|left| left.parse::<u64>().unwrap());
            match (id.as_str(), asked) {
                ("own", _) => assert_eq!(left, Some(9_000_000)),
                ("in-an-hour", true) => assert_eq!(left, Some(3_600_000)),
                _ => assert_eq!(left, None, "{id} ({n})"),
            }
        }
        assert!(get(&channel, "expiring").await.is_none());
    }
}
