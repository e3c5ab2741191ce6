//! The binary with Kafka: `check`, and a relay from the table to the topic.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    unreachable_pub,
    dead_code
)]

#[path = "support/kafka.rs"]
mod kafka;
#[path = "support/postgres.rs"]
mod postgres;
#[path = "commands/tool.rs"]
mod tool;

use std::collections::HashMap;

use serde_json::Value;
use tokio::sync::OnceCell;

use self::kafka::Kafka;
use self::tool::{Tool, says};

async fn node() -> &'static Kafka {
    static NODE: OnceCell<Kafka> = OnceCell::const_new();
    NODE.get_or_init(Kafka::start).await
}

async fn with_kafka(topic: &str, more: &[(&str, &str)]) -> Tool {
    let address = node().await.address();
    let settings = [
        ("OUTRIGGER_SINK", "kafka"),
        ("OUTRIGGER_KAFKA_BROKERS", address.as_str()),
        ("OUTRIGGER_EVENT_SOURCE", "/t"),
        ("OUTRIGGER_ROUTE_DESTINATION", topic),
    ];
    let tool = Tool::new().await;
    tool.with(&[&settings, more].concat()).await
}

#[tokio::test]
async fn check_tells_what_is_there_and_what_is_not() {
    let tool = with_kafka("well", &[]).await;
    let found = tool.check_broker(3, &[]);
    says(
        &found,
        "ok",
        "Kafka cluster b3V0cmlnZ2VyLXRlc3RzIQ: 127.0.0.1:",
    );
    says(&found, "failed", "there is no topic `well`");
    node().await.topic("well", 3, &[]).await;
    let found = tool.check_broker(0, &["--probe=order.probed"]);
    says(&found, "warning", "topic `well`, 3 partitions, 1 replicas");
    says(&found, "ok", "idempotent producer");
    says(
        &found,
        "ok",
        "topic `well`: confirmed by all replicas in sync",
    );
    assert_eq!(node().await.read_all("well").await.len(), 1);

    let away = tool
        .with(&[("OUTRIGGER_KAFKA_BROKERS", "127.0.0.1:9")])
        .await;
    says(&away.check_broker(3, &[]), "failed", "Connection refused");
}

#[tokio::test]
async fn rows_become_records_in_the_order_of_their_keys() {
    node().await.topic("orders", 4, &[]).await;
    let tool = with_kafka("orders", &[("OUTRIGGER_EVENT_MODE", "binary")]).await;
    tool.sql(
        "insert into outbox (type, key, data) select 'order.placed', 'k' || g % 20, jsonb_build_object('n', g) \
         from generate_series(1, 2000) g",
    )
    .await;
    tool.drain().await;
    let records = node().await.read_all("orders").await;
    assert_eq!(records.len(), 2000, "once each");
    let mut last: HashMap<String, u64> = HashMap::new();
    for record in records {
        let key = String::from_utf8(record.key.unwrap()).unwrap();
        let data: Value = serde_json::from_slice(&record.value.unwrap()).unwrap();
        let n = data["n"].as_u64().unwrap();
        assert_eq!(key, format!("k{}", n % 20));
        let before = last.insert(key, n);
        assert!(
            before.is_none_or(|before| before < n),
            "{before:?} before {n}"
        );
        let header = |name: &str| {
            let found = record.headers.iter().find(|(found, _)| found == name);
            found.map(|(_, value)| value.clone())
        };
        assert_eq!(header("ce_specversion").as_deref(), Some("1.0"));
        assert_eq!(header("ce_type").as_deref(), Some("order.placed"));
        assert_eq!(header("content-type").as_deref(), Some("application/json"));
    }
}
