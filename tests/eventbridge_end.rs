//! The binary with EventBridge: `check`, and a relay from the table through a rule to a queue.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    unreachable_pub,
    dead_code
)]

#[path = "support/moto.rs"]
mod moto;
#[path = "support/postgres.rs"]
mod postgres;
#[path = "commands/tool.rs"]
mod tool;

use std::collections::HashMap;

use tokio::sync::OnceCell;

use self::moto::Moto;
use self::tool::{Tool, says};

async fn aws() -> &'static Moto {
    static SERVER: OnceCell<Moto> = OnceCell::const_new();
    SERVER.get_or_init(Moto::start).await
}

/// Region and credentials come by AWS's own variables.
async fn with_eventbridge(bus: &str, more: &[(&str, &str)]) -> Tool {
    let url = aws().await.url();
    let settings = [
        ("OUTRIGGER_SINK", "eventbridge"),
        ("OUTRIGGER_EVENTBRIDGE_ENDPOINT", url.as_str()),
        ("AWS_REGION", "eu-west-1"),
        ("AWS_ACCESS_KEY_ID", "k"),
        ("AWS_SECRET_ACCESS_KEY", "s3cret"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("OUTRIGGER_EVENT_SOURCE", "/t"),
        ("OUTRIGGER_ROUTE_DESTINATION", bus),
    ];
    let tool = Tool::new().await;
    tool.with(&[&settings, more].concat()).await
}

async fn without(variable: &str, tool: &Tool) -> Tool {
    let mut less = tool.with(&[]).await;
    less.variables.retain(|(name, _)| name != variable);
    less
}

#[tokio::test]
async fn check_tells_what_is_there_and_what_is_not() {
    let tool = with_eventbridge("well", &[]).await;
    let found = tool.check_broker(3, &[]);
    says(
        &found,
        "ok",
        "EventBridge in eu-west-1, by http://127.0.0.1:",
    );
    says(&found, "failed", "there is no event bus `well`");
    aws().await.open("well").await;
    let found = tool.check_broker(0, &["--probe=order.probed"]);
    says(&found, "ok", "events: bus `well`");
    says(
        &found,
        "ok",
        "bus `well` with detail-type `order.probed`: taken by EventBridge",
    );
    assert_eq!(aws().await.take("well").await.len(), 1);

    let nobody = without("AWS_ACCESS_KEY_ID", &tool).await;
    says(&nobody.check_broker(3, &[]), "failed", "credential");
    let nowhere = without("AWS_REGION", &tool).await;
    says(&nowhere.check_broker(3, &[]), "failed", "no region");
    let away = ("OUTRIGGER_EVENTBRIDGE_ENDPOINT", "http://127.0.0.1:9");
    let away = tool.with(&[away]).await;
    says(&away.check_broker(3, &[]), "failed", "Connection refused");
}

#[tokio::test]
async fn rows_become_events_that_a_rule_sends_to_a_queue() {
    aws().await.open("orders").await;
    let tool = with_eventbridge("orders", &[]).await;
    tool.sql(
        "insert into outbox (type, key, data, headers) select 'order.placed', 'k' || g % 20, \
         jsonb_build_object('n', g), '{\"resources\": \"arn:aws:s3:::orders\"}' from generate_series(1, 500) g",
    )
    .await;
    tool.drain().await;
    let events = aws().await.take("orders").await;
    assert_eq!(events.len(), 500, "once each");
    // moto delivers in the order of its calls; EventBridge promises no order.
    let mut last: HashMap<String, u64> = HashMap::new();
    for event in events {
        assert_eq!(event["detail-type"], "order.placed");
        assert_eq!(event["source"], "/t");
        assert_eq!(event["resources"][0], "arn:aws:s3:::orders");
        let detail = &event["detail"];
        assert_eq!(detail["specversion"], "1.0");
        let n = detail["data"]["n"].as_u64().unwrap();
        let key = detail["partitionkey"].as_str().unwrap().to_owned();
        assert_eq!(key, format!("k{}", n % 20));
        let before = last.insert(key, n);
        assert!(
            before.is_none_or(|before| before < n),
            "{before:?} before {n}"
        );
    }
}

#[tokio::test]
async fn dead_letters_say_why_in_the_detail() {
    aws().await.open("lettered").await;
    aws().await.open("dead").await;
    let settings = [
        ("OUTRIGGER_RETRY_DEAD_LETTER_DESTINATION", "dead"),
        ("OUTRIGGER_RETRY_DEAD_LETTER_KEY", "order.dead"),
    ];
    let tool = with_eventbridge("lettered", &settings).await;
    let long = "x".repeat(129);
    tool.sql(&format!(
        "insert into outbox (type, key, data, routing_key) values ('order.placed', 'k', '{{\"n\": 1}}', '{long}')"
    ))
    .await;
    tool.drain().await;
    assert!(aws().await.take("lettered").await.is_empty());
    let letters = aws().await.take("dead").await;
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0]["detail-type"], "order.dead");
    let detail = &letters[0]["detail"];
    assert_eq!(detail["outriggerreason"], "invalid_route");
    let why = detail["outriggererror"].as_str().unwrap();
    assert!(why.contains("has 129 characters"), "{why}");
    assert_eq!(detail["outriggerattempts"], 1);
    assert_eq!(detail["outriggerdestination"], "lettered");
    assert_eq!(detail["outriggerroutingkey"], long);
    // The rest is the event as it was.
    assert_eq!(detail["type"], "order.placed");
    assert_eq!(detail["partitionkey"], "k");
    assert_eq!(detail["data"]["n"], 1);
}
