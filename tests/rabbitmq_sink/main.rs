//! The RabbitMQ sink against a real broker.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod connection;
#[path = "../support/rabbitmq.rs"]
mod rabbitmq;
#[path = "../support/sink.rs"]
mod support;
mod surroundings;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use lapin::options::{
    BasicGetOptions, ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Connection, ConnectionProperties, ExchangeKind};
use outrigger::error::{ReasonCode, Verdict};
use outrigger::event::{HeaderValue, Message};
use outrigger::sink::SinkState;
use outrigger::sink::rabbitmq::RabbitMqSettings;
use outrigger::sink::rabbitmq::check::{Exchange, Probe};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use secrecy::SecretString;
use tokio::sync::OnceCell;

use self::rabbitmq::RabbitMq;
use self::support::{Is, Running, assert_verdicts, message, settings, within};

/// The node's own limit, below the sink's default.
const BROKER_MESSAGE_SIZE: usize = 1024 * 1024;

async fn node() -> &'static RabbitMq {
    static NODE: OnceCell<RabbitMq> = OnceCell::const_new();
    NODE.get_or_init(|| RabbitMq::start_with("max_message_size = 1048576"))
        .await
}

/// A second client that sets up and looks at the broker.
struct Admin {
    channel: Channel,
    _connection: Connection,
}

impl Admin {
    async fn connect(url: &str) -> Self {
        let connection = Connection::connect(url, ConnectionProperties::default())
            .await
            .unwrap();
        let channel = connection.create_channel().await.unwrap();
        Self {
            channel,
            _connection: connection,
        }
    }

    async fn exchange(&self, name: &str) {
        let options = ExchangeDeclareOptions {
            durable: true,
            ..ExchangeDeclareOptions::default()
        };
        self.channel
            .exchange_declare(
                name.into(),
                ExchangeKind::Topic,
                options,
                FieldTable::default(),
            )
            .await
            .unwrap();
    }

    async fn delete_exchange(&self, name: &str) {
        self.channel
            .exchange_delete(name.into(), ExchangeDeleteOptions::default())
            .await
            .unwrap();
    }

    /// A queue bound to `exchange` for `key`.
    async fn queue(&self, name: &str, exchange: &str, key: &str, arguments: &[(&str, AMQPValue)]) {
        let mut table = FieldTable::default();
        for (name, value) in arguments {
            table.insert((*name).into(), value.clone());
        }
        let options = QueueDeclareOptions {
            durable: true,
            ..QueueDeclareOptions::default()
        };
        self.channel
            .queue_declare(name.into(), options, table)
            .await
            .unwrap();
        self.channel
            .queue_bind(
                name.into(),
                exchange.into(),
                key.into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await
            .unwrap();
    }

    /// Exchange and queue of one name, bound for `key`.
    async fn route(&self, name: &str, key: &str) {
        self.exchange(name).await;
        self.queue(name, name, key, &[]).await;
    }

    /// Takes everything from a queue: the message ids, in order.
    async fn drain(&self, queue: &str) -> Vec<String> {
        let mut ids = Vec::new();
        let options = BasicGetOptions { no_ack: true };
        while let Some(got) = self.channel.basic_get(queue.into(), options).await.unwrap() {
            let id = got.delivery.properties.message_id().clone().unwrap();
            ids.push(id.as_str().to_owned());
        }
        ids
    }
}

/// A name no other test uses.
fn name(test: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{test}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

fn ids(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

fn batch(exchange: &str, key: &str, size: usize) -> Vec<Message> {
    (0..size).map(|n| message(n, exchange, key)).collect()
}

#[tokio::test]
async fn an_unroutable_message_among_a_thousand_is_the_only_one_refused() {
    let node = node().await;
    let admin = Admin::connect(&node.url()).await;
    let exchange = name("unroutable");
    admin.route(&exchange, "good").await;
    let mut running = Running::ready(settings(&node.url())).await;
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for round in 0..100 {
        let bad = random.random_range(0..1000);
        let mut batch = batch(&exchange, "good", 1000);
        batch[bad].routing_key = "nobody.listens".into();
        let verdicts = running.publish(&batch).await;
        assert_verdicts(&format!("seed {seed}, round {round}"), &verdicts, |index| {
            if index == bad {
                Is::Rejected(ReasonCode::Unroutable)
            } else {
                Is::Confirmed
            }
        });
        let Verdict::Rejected(reason) = &verdicts[bad] else {
            unreachable!()
        };
        assert!(reason.detail.contains(&exchange) && reason.detail.contains("nobody.listens"));
    }
    running.close().await;
}

#[tokio::test]
async fn a_full_queue_refuses_exactly_what_does_not_fit() {
    let node = node().await;
    let admin = Admin::connect(&node.url()).await;
    let exchange = name("full");
    admin.route(&exchange, "roomy").await;
    let full = name("full-queue");
    let limits = [
        ("x-max-length", AMQPValue::LongInt(10)),
        ("x-overflow", AMQPValue::LongString("reject-publish".into())),
    ];
    admin.queue(&full, &exchange, "tight", &limits).await;
    let mut running = Running::ready(settings(&node.url())).await;
    let batch: Vec<_> = (0..300)
        .map(|n| message(n, &exchange, if n % 3 == 0 { "tight" } else { "roomy" }))
        .collect();
    let verdicts = running.publish(&batch).await;
    let kept = admin.drain(&full).await;
    // A classic queue learns of its length a little late, so how many it keeps varies.
    assert!((10..100).contains(&kept.len()), "{}", kept.len());
    assert_verdicts("full queue", &verdicts, |index| {
        if index % 3 == 0 && !kept.contains(&index.to_string()) {
            Is::Rejected(ReasonCode::Nack)
        } else {
            Is::Confirmed
        }
    });
    running.close().await;
}

#[tokio::test]
async fn an_unknown_exchange_costs_its_own_messages_only_and_is_found_once_it_exists() {
    let node = node().await;
    let admin = Admin::connect(&node.url()).await;
    let (known, unknown) = (name("known"), name("unknown"));
    admin.route(&known, "#").await;
    let mut running = Running::ready(settings(&node.url())).await;
    let batch: Vec<_> = (0..200)
        .map(|n| message(n, if n % 10 == 3 { &unknown } else { &known }, "k"))
        .collect();
    let verdicts = running.publish(&batch).await;
    assert_verdicts("unknown", &verdicts, |index| match index % 10 {
        3 => Is::Rejected(ReasonCode::UnknownDestination),
        _ => Is::Confirmed,
    });
    let good: Vec<_> = ids(0..200)
        .into_iter()
        .filter(|id| !id.ends_with('3'))
        .collect();
    assert_eq!(admin.drain(&known).await, good);

    admin.route(&unknown, "#").await;
    let retry = [message("again", &unknown, "k")];
    within("the new exchange is found", async {
        while running.publish(&retry).await != [Verdict::Confirmed] {}
    })
    .await;
    assert!(running.state.borrow().is_ready());
    running.close().await;
}

#[tokio::test]
async fn an_exchange_deleted_under_way_is_found_out_without_blaming_others() {
    let node = node().await;
    let admin = Admin::connect(&node.url()).await;
    let (stays, goes) = (name("stays"), name("goes"));
    admin.route(&stays, "#").await;
    admin.route(&goes, "#").await;
    let mut running = Running::ready(settings(&node.url())).await;
    let batch: Vec<_> = (0..100)
        .map(|n| message(n, if n % 7 == 5 { &goes } else { &stays }, "k"))
        .collect();
    // Both are remembered as existing.
    assert_verdicts("before", &running.publish(&batch).await, |_| Is::Confirmed);
    admin.delete_exchange(&goes).await;
    let verdicts = running.publish(&batch).await;
    assert_verdicts("after", &verdicts, |index| match index % 7 {
        5 => Is::Rejected(ReasonCode::UnknownDestination),
        _ => Is::Confirmed,
    });
    running.close().await;
}

#[tokio::test]
async fn what_amqp_cannot_carry_leaves_its_neighbours_alone() {
    let node = node().await;
    let admin = Admin::connect(&node.url()).await;
    let exchange = name("limits");
    admin.route(&exchange, "#").await;
    let mut running = Running::ready(settings(&node.url())).await;
    running.state.mark_unchanged();

    let mut batch = batch(&exchange, "k", 12);
    batch[1].routing_key = "k".repeat(256);
    batch[2].headers = vec![("big".into(), HeaderValue::Text("x".repeat(33_000)))];
    batch[3].body = vec![b'x'; 17 * 1024 * 1024].into();
    batch[4].id = "i".repeat(256);
    batch[5].headers = vec![("CC".into(), HeaderValue::Text("other".into()))];
    batch[6].destination = "x".repeat(256);
    batch[7].headers = vec![
        ("nul".into(), HeaderValue::Text("a\0b".into())),
        (
            "ünï\u{202e}".into(),
            HeaderValue::Text("\u{10ffff}\u{fffe}".into()),
        ),
        ("long".into(), HeaderValue::Text("y".repeat(30_000))),
        (String::new(), HeaderValue::Int(i64::MIN)),
    ];
    batch[8].routing_key = "\0\u{1f4a9}".into();
    batch[9].event_type = "t".repeat(300);
    let verdicts = running.publish(&batch).await;
    assert_verdicts("limits", &verdicts, |index| match index {
        1 | 6 => Is::Impossible(ReasonCode::InvalidRoute),
        2 | 4 | 5 => Is::Impossible(ReasonCode::InvalidHeader),
        3 => Is::Impossible(ReasonCode::TooLarge),
        _ => Is::Confirmed,
    });
    assert_eq!(
        admin.drain(&exchange).await,
        ["0", "7", "8", "9", "10", "11"]
    );
    assert!(
        !running.state.has_changed().unwrap(),
        "the connection was lost"
    );
    running.close().await;
}

/// Where the sink allows more than the broker, the broker closes the channel.
#[tokio::test]
async fn a_body_too_large_for_the_broker_is_singled_out_and_learned_from() {
    let node = node().await;
    let admin = Admin::connect(&node.url()).await;
    let exchange = name("large");
    admin.route(&exchange, "#").await;
    let mut running = Running::ready(settings(&node.url())).await;
    let mut batch = batch(&exchange, "k", 50);
    batch[20].body = vec![b'x'; BROKER_MESSAGE_SIZE + 1].into();
    for round in ["refused by the broker", "refused before it is sent"] {
        let verdicts = running.publish(&batch).await;
        assert_verdicts(round, &verdicts, |index| match index {
            20 => Is::Impossible(ReasonCode::TooLarge),
            _ => Is::Confirmed,
        });
    }
    batch[20].body = vec![b'x'; BROKER_MESSAGE_SIZE].into();
    assert_verdicts("fits", &running.publish(&batch).await, |_| Is::Confirmed);
    running.close().await;
}

#[tokio::test]
async fn a_forbidden_exchange_is_refused_message_by_message() {
    let node = node().await;
    let admin = Admin::connect(&node.url()).await;
    let (open, closed) = (name("open"), name("closed"));
    admin.route(&open, "#").await;
    admin.route(&closed, "#").await;
    node.ctl_ok(&["add_user", "limited", "l1mited"]);
    node.ctl_ok(&["set_permissions", "limited", "^$", "^open-", "^$"]);
    let url = format!("amqp://limited:l1mited@127.0.0.1:{}/%2f", node.port());
    let mut running = Running::ready(settings(&url)).await;
    for round in 0..3 {
        let batch: Vec<_> = (0..60)
            .map(|n| message(n, if n % 20 == 11 { &closed } else { &open }, "k"))
            .collect();
        let verdicts = running.publish(&batch).await;
        assert_verdicts(&format!("round {round}"), &verdicts, |index| {
            match index % 20 {
                11 => Is::Rejected(ReasonCode::Forbidden),
                _ => Is::Confirmed,
            }
        });
    }
    assert_eq!(admin.drain(&closed).await, Vec::<String>::new());
    running.close().await;
}

#[tokio::test]
async fn properties_arrive_as_they_should() {
    let node = node().await;
    let admin = Admin::connect(&node.url()).await;
    let exchange = name("properties");
    admin.route(&exchange, "#").await;
    let mut running = Running::ready(RabbitMqSettings {
        app_id: Some("shop".into()),
        ..settings(&node.url())
    })
    .await;
    let mut sent = message("id-1", &exchange, "order.placed");
    sent.event_type = "order.placed".into();
    sent.correlation_id = Some("c-1".into());
    sent.time = Some("2026-01-02T03:04:05.6Z".parse().unwrap());
    sent.headers = vec![("ce-key".into(), HeaderValue::Text("ü".into()))];
    assert_eq!(
        running.publish(std::slice::from_ref(&sent)).await,
        [Verdict::Confirmed]
    );
    let got = admin
        .channel
        .basic_get(exchange.as_str().into(), BasicGetOptions { no_ack: true })
        .await
        .unwrap()
        .unwrap()
        .delivery;
    let text = |value: &Option<ShortString>| value.as_ref().map(|v| v.as_str().to_owned());
    let properties = &got.properties;
    assert_eq!(text(properties.message_id()).as_deref(), Some("id-1"));
    assert_eq!(text(properties.kind()).as_deref(), Some("order.placed"));
    assert_eq!(text(properties.app_id()).as_deref(), Some("shop"));
    assert_eq!(text(properties.correlation_id()).as_deref(), Some("c-1"));
    assert_eq!(
        text(properties.content_type()).as_deref(),
        Some("application/json")
    );
    assert_eq!(*properties.delivery_mode(), Some(2));
    assert_eq!(*properties.timestamp(), Some(1_767_323_045));
    let headers = properties.headers().as_ref().unwrap().inner();
    assert_eq!(headers["ce-key"], AMQPValue::LongString("ü".into()));
    assert_eq!(got.routing_key.as_str(), "order.placed");
    assert_eq!(got.data, b"id-1");
    running.close().await;
}

#[tokio::test]
async fn lanes_overlap_and_each_keeps_its_order() {
    let node = node().await;
    let admin = Admin::connect(&node.url()).await;
    let exchange = name("lanes");
    admin.exchange(&exchange).await;
    let mut running = Running::ready(RabbitMqSettings {
        channels: 8,
        ..settings(&node.url())
    })
    .await;
    let mut tasks = Vec::new();
    for (number, mut lane) in running.lanes.drain(..).enumerate() {
        let key = format!("lane{number}");
        let queue = format!("{exchange}-{key}");
        admin.queue(&queue, &exchange, &key, &[]).await;
        let exchange = exchange.clone();
        tasks.push(tokio::spawn(async move {
            for round in 0..10 {
                let batch: Vec<_> = (0..200)
                    .map(|n| message(round * 200 + n, &exchange, &key))
                    .collect();
                let verdicts = within("publish", lane.publish(&batch)).await;
                assert_verdicts(&key, &verdicts, |_| Is::Confirmed);
            }
            queue
        }));
    }
    for task in tasks {
        let queue = task.await.unwrap();
        assert_eq!(admin.drain(&queue).await, ids(0..2000), "{queue}");
    }
    running.close().await;
}

#[tokio::test]
async fn repeated_ids_in_a_batch_are_each_decided() {
    let node = node().await;
    let admin = Admin::connect(&node.url()).await;
    let exchange = name("repeated");
    admin.route(&exchange, "good").await;
    let mut running = Running::ready(settings(&node.url())).await;
    let batch = [
        message("same", &exchange, "good"),
        message("same", &exchange, "bad"),
        message("same", &exchange, "good"),
        message("other", &exchange, "bad"),
    ];
    let verdicts = running.publish(&batch).await;
    assert_verdicts("repeated", &verdicts, |index| match index % 2 {
        0 => Is::Confirmed,
        _ => Is::Rejected(ReasonCode::Unroutable),
    });
    running.close().await;
}

#[tokio::test]
async fn the_default_exchange_needs_no_asking() {
    let node = node().await;
    let admin = Admin::connect(&node.url()).await;
    let exchange = name("default");
    admin.route(&exchange, "unused").await;
    let mut running = Running::ready(settings(&node.url())).await;
    let batch = [message(0, "", &exchange), message(1, "", "no-such-queue")];
    let verdicts = running.publish(&batch).await;
    assert_verdicts("default exchange", &verdicts, |index| match index {
        0 => Is::Confirmed,
        _ => Is::Rejected(ReasonCode::Unroutable),
    });
    assert_eq!(running.publish(&[]).await, []);
    running.close().await;
}
