//! A relay from the table to NATS: order, headers, the context of a trace, dead letters.

#![cfg(feature = "nats")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    unreachable_pub,
    dead_code
)]

#[path = "support/nats.rs"]
mod nats_node;
#[path = "support/postgres.rs"]
mod postgres;
#[path = "commands/tool.rs"]
mod tool;

use std::collections::{BTreeMap, HashMap};

use serde_json::{Value, json};

use self::nats_node::{NatsNode, RawClient, parse_headers};
use self::tool::Tool;

const JETSTREAM: &str = r#"jetstream { store_dir: "@DIR@/store" }"#;

struct Stored {
    subject: String,
    headers: BTreeMap<String, String>,
    body: Value,
}

async fn stream(client: &mut RawClient, name: &str, subject: &str) {
    let config = json!({"name": name, "subjects": [subject], "storage": "file"});
    let question = format!("STREAM.CREATE.{name}");
    client.api(&question, config, 0).await;
}

/// Everything a stream has kept, in its order.
async fn stored(client: &mut RawClient, name: &str) -> Vec<Stored> {
    let messages = client.stored(name).await;
    let read = messages.into_iter().map(|message| Stored {
        headers: parse_headers(&message.headers),
        body: serde_json::from_slice(&message.body).unwrap(),
        subject: message.subject,
    });
    read.collect()
}

async fn with_nats(node: &NatsNode, more: &[(&str, &str)]) -> Tool {
    let url = format!("nats://127.0.0.1:{}", node.port());
    let settings = [
        ("OUTRIGGER_SINK", "nats"),
        ("OUTRIGGER_NATS_URL", url.as_str()),
        ("OUTRIGGER_EVENT_SOURCE", "/t"),
        ("OUTRIGGER_ROUTE_DESTINATION", "E"),
        ("OUTRIGGER_ROUTE_KEY", "e.{{ type }}"),
    ];
    Tool::new().await.with(&[&settings, more].concat()).await
}

#[tokio::test]
async fn rows_become_messages_in_the_order_of_their_keys() {
    let node = NatsNode::start_with(JETSTREAM).await;
    let mut client = RawClient::connect(node.port(), Value::Null).await;
    stream(&mut client, "E", "e.>").await;
    let tool = with_nats(&node, &[("OUTRIGGER_EVENT_MODE", "binary")]).await;
    let context = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    tool.sql(&format!(
        "insert into outbox (type, key, data, extensions) select 'placed', 'k' || g % 20, jsonb_build_object('n', g), \
           '{{\"traceparent\": \"{context}\"}}' from generate_series(1, 1000) g"
    ))
    .await;
    tool.drain().await;

    let messages = stored(&mut client, "E").await;
    assert_eq!(messages.len(), 1000, "once each");
    let mut last: HashMap<String, u64> = HashMap::new();
    for message in messages {
        assert_eq!(message.subject, "e.placed");
        let header = |name: &str| message.headers[name].clone();
        assert_eq!(header("ce-type"), "placed");
        assert_eq!(header("ce-traceparent"), context);
        assert_eq!(header("Nats-Msg-Id"), format!("/t {}", header("ce-id")));
        let n = message.body["n"].as_u64().unwrap();
        let key = header("ce-partitionkey");
        assert_eq!(key, format!("k{}", n % 20));
        let before = last.insert(key, n);
        assert!(
            before.is_none_or(|before| before < n),
            "{before:?} before {n}"
        );
    }
}

#[tokio::test]
async fn what_cannot_be_published_goes_to_the_stream_of_dead_letters() {
    let node = NatsNode::start_with(JETSTREAM).await;
    let mut client = RawClient::connect(node.port(), Value::Null).await;
    stream(&mut client, "E", "e.good").await;
    stream(&mut client, "D", "dead.>").await;
    let tool = with_nats(
        &node,
        &[
            ("OUTRIGGER_RETRY_MAX_ATTEMPTS", "2"),
            ("OUTRIGGER_RETRY_BACKOFF_INITIAL", "10ms"),
            ("OUTRIGGER_RETRY_DEAD_LETTER_DESTINATION", "D"),
            ("OUTRIGGER_RETRY_DEAD_LETTER_KEY", "dead.{{ reason }}"),
        ],
    )
    .await;
    tool.sql(
        "insert into outbox (type, key, data) values ('good', 'k', '1'), ('unheard', 'k', '2'), ('no subject', 'k', '3'), \
         ('good', 'k', '4')",
    )
    .await;
    tool.drain().await;

    let data = |messages: &[Stored]| -> Vec<u64> {
        messages
            .iter()
            .map(|message| message.body["data"].as_u64().unwrap())
            .collect()
    };
    assert_eq!(data(&stored(&mut client, "E").await), [1, 4]);
    let dead = stored(&mut client, "D").await;
    assert_eq!(data(&dead), [2, 3]);
    for (letter, reason, attempts, subject) in [
        (&dead[0], "unroutable", "2", "e.unheard"),
        (&dead[1], "invalid_route", "1", "e.no subject"),
    ] {
        assert_eq!(letter.subject, format!("dead.{reason}"));
        assert_eq!(letter.headers["x-outrigger-reason"], reason);
        assert_eq!(letter.headers["x-outrigger-attempts"], attempts);
        assert_eq!(letter.headers["x-outrigger-original-destination"], "E");
        assert_eq!(letter.headers["x-outrigger-original-routing-key"], subject);
        assert_eq!(letter.body["source"], "/t");
    }
}
