//! What a row looks like on the wire.

use cloudevents::{AttributesReader as _, Data as SdkData};
use lapin::types::AMQPValue;
use outrigger::event::{HeaderValue, Message};
use outrigger::store::postgres::OutboxSettings;

use crate::support::{Consumer, Delivery, PATIENCE, Stage};
use crate::{decode, servers, shared};

/// Numbers, spaces and member order that a careless relay would change.
const JSON: &str = r#"{"z": 12345678901234567890123, "a":0.10,  "e":1e2, "z2":[ ]}"#;

/// A delivery as the decoder takes it.
fn message(delivery: &Delivery) -> Message {
    let table = delivery.properties.headers().clone().unwrap_or_default();
    let headers = table.inner().iter().map(|(name, value)| {
        let value = match value {
            AMQPValue::LongString(text) => {
                HeaderValue::Text(String::from_utf8(text.as_bytes().to_vec()).unwrap())
            }
            AMQPValue::LongInt(number) => HeaderValue::Int((*number).into()),
            AMQPValue::LongLongInt(number) => HeaderValue::Int(*number),
            AMQPValue::Boolean(flag) => HeaderValue::Bool(*flag),
            other => panic!("header {name} is {other:?}"),
        };
        (name.as_str().to_owned(), value)
    });
    Message {
        seqs: vec![1],
        destination: delivery.exchange.clone(),
        routing_key: delivery.routing_key.clone(),
        body: delivery.body.clone().into(),
        content_type: delivery.content_type().map(str::to_owned),
        headers: headers.collect(),
        id: delivery.id.clone(),
        event_type: String::new(),
        time: None,
        expires_in: None,
        correlation_id: None,
        source: String::new(),
        key: None,
    }
}

/// Inserts a row with every attribute; answers its id.
async fn full_row(stage: &Stage) -> String {
    stage
        .insert(
            "type, source, subject, key, data, content_type, schema, extensions, headers, created_at",
            "'order.placed', '/shop', 'order 7', 'o-7', '{\"n\":1}', 'application/json', 'https://shop.test/order.json', \
             '{\"correlationid\":\"c-1\",\"traceparent\":\"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\",\
               \"hops\":3,\"test\":true}', \
             '{\"x-tenant\":\"blue\",\"x-try\":2}', '2026-01-02T03:04:05.678901Z'",
        )
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_becomes_a_structured_event_and_is_marked_only_then() {
    let _turn = shared().await;
    let stage = Stage::new(servers().await).await;
    let consumer = stage.consumer().await;
    let id = full_row(&stage).await;

    // Whoever holds the row's lock keeps the relay from marking it, not from publishing it.
    let holder = stage.servers.postgres.client(&stage.database).await;
    holder
        .batch_execute("begin; select from outbox for update")
        .await
        .unwrap();
    let relay = stage.settings().start();
    let delivery = consumer.await_id(&id, PATIENCE).await;
    let marked = "select count(*) from outbox where published_at is not null";
    assert_eq!(
        stage.count(marked).await,
        0,
        "marked before it was published"
    );
    holder.batch_execute("rollback").await.unwrap();
    stage.await_settled().await;

    let event = decode::structured(&message(&delivery));
    assert_eq!(event.id(), id);
    assert_eq!(event.source(), "/shop");
    assert_eq!(event.ty(), "order.placed");
    assert_eq!(event.subject(), Some("order 7"));
    assert_eq!(
        event.time().unwrap().to_rfc3339(),
        "2026-01-02T03:04:05.678901+00:00"
    );
    assert_eq!(event.datacontenttype(), Some("application/json"));
    assert_eq!(
        event.dataschema().unwrap().as_str(),
        "https://shop.test/order.json"
    );
    let extension = |name: &str| event.extension(name).unwrap().to_string();
    assert_eq!(extension("partitionkey"), "o-7");
    assert_eq!(extension("correlationid"), "c-1");
    assert_eq!(extension("hops"), "3");
    assert_eq!(extension("test"), "true");
    assert!(extension("traceparent").starts_with("00-4bf92f"));
    assert_eq!(
        event.data(),
        Some(&SdkData::Json(serde_json::json!({"n": 1})))
    );

    let properties = &delivery.properties;
    assert_eq!(properties.message_id().as_ref().unwrap().as_str(), id);
    assert_eq!(properties.kind().as_ref().unwrap().as_str(), "order.placed");
    assert_eq!(*properties.timestamp(), Some(1_767_323_045));
    assert!(!properties.app_id().as_ref().unwrap().as_str().is_empty());
    assert_eq!(
        delivery.content_type(),
        Some("application/cloudevents+json; charset=utf-8")
    );
    assert_eq!(
        properties.correlation_id().as_ref().unwrap().as_str(),
        "c-1"
    );
    assert_eq!(*properties.delivery_mode(), Some(2));
    assert_eq!(delivery.header("x-tenant").as_deref(), Some("blue"));
    assert_eq!(delivery.header("x-try").as_deref(), Some("2"));
    assert_eq!(delivery.routing_key, "order.placed");
    assert_eq!(delivery.exchange, stage.name);

    relay.stop().await;
    assert_eq!(consumer.finish().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn binary_mode_with_every_prefix_says_the_same() {
    let _turn = shared().await;
    let stage = Stage::new(servers().await).await;
    let consumer = stage.consumer().await;
    let id = full_row(&stage).await;
    let relay = stage.settings().start();
    let structured = consumer.await_id(&id, PATIENCE).await;
    stage.await_settled().await;
    relay.stop().await;
    let structured = decode::structured(&message(&structured));

    for (round, prefix) in ["ce-", "cloudEvents:", "cloudEvents_"]
        .into_iter()
        .enumerate()
    {
        stage.run("update outbox set published_at = null").await;
        let relay = stage
            .settings()
            .set("EVENT_MODE", "binary")
            .set("EVENT_HEADER_PREFIX", prefix)
            .start();
        let delivery = consumer.await_count(round + 2).await.pop().unwrap();
        relay.stop().await;
        let event = decode::binary(&message(&delivery), prefix);
        decode::assert_same(&event, &structured);
        assert_eq!(delivery.text(), r#"{"n": 1}"#, "jsonb's own spelling");
        assert_eq!(delivery.content_type(), Some("application/json"));
        assert_eq!(delivery.header("x-tenant").as_deref(), Some("blue"));
        assert_eq!(*delivery.properties.delivery_mode(), Some(2));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_hold_every_event_once_and_in_order() {
    let _turn = shared().await;
    let stage = Stage::new(servers().await).await;
    let consumer = stage.consumer().await;
    stage
        .run(
            "insert into outbox (type, key, data) \
             select 't', 'k' || g % 3, jsonb_build_object('n', g) from generate_series(1, 300) g",
        )
        .await;
    let relay = stage.settings().set("EVENT_MODE", "batch").start();
    stage.await_settled().await;
    relay.stop().await;
    let messages = consumer.finish().await;
    assert!(messages.len() < 300, "nothing was batched");
    let events: Vec<_> = messages
        .iter()
        .flat_map(|delivery| decode::batch(&message(delivery)))
        .collect();
    let written = stage
        .texts("select id::text from outbox order by seq")
        .await;
    let mut ids: Vec<_> = events.iter().map(|event| event.id().to_owned()).collect();
    for key in ["k0", "k1", "k2"] {
        let of_key = format!("select id::text from outbox where key = '{key}' order by seq");
        let expected = stage.texts(&of_key).await;
        let found: Vec<_> = ids.iter().filter(|id| expected.contains(id)).collect();
        assert!(found.into_iter().eq(&expected), "order of {key}");
    }
    let mut written = written;
    written.sort();
    ids.sort();
    assert_eq!(ids, written);
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_stay_bytes() {
    let _turn = shared().await;
    let stage = Stage::new(servers().await).await;
    let consumer = stage.consumer().await;
    // Not UTF-8, with a zero byte: what protobuf looks like.
    let bytes = [0x08, 0x96, 0x01, 0x00, 0xff, 0xfe, 0x12];
    let row = "'t', '\\x08960100fffe12', 'application/x-protobuf; proto=\"shop.Order\"'";
    let id = stage.insert("type, data_binary, content_type", row).await;
    let relay = stage.settings().start();
    let delivery = consumer.await_id(&id, PATIENCE).await;
    stage.await_settled().await;
    relay.stop().await;
    let event = decode::structured(&message(&delivery));
    assert_eq!(event.data(), Some(&SdkData::Binary(bytes.to_vec())));

    stage.run("update outbox set published_at = null").await;
    let relay = stage.settings().set("EVENT_MODE", "binary").start();
    let delivery = consumer.await_count(2).await.pop().unwrap();
    relay.stop().await;
    assert_eq!(delivery.body, bytes);
    assert_eq!(
        delivery.content_type(),
        Some("application/x-protobuf; proto=\"shop.Order\"")
    );
}

/// The payload of the only row, in both modes.
async fn payload_in_both_modes(stage: &Stage, consumer: &Consumer) -> [Delivery; 2] {
    let relay = stage.settings().start();
    let structured = consumer.await_count(1).await.pop().unwrap();
    stage.await_settled().await;
    relay.stop().await;
    stage.run("update outbox set published_at = null").await;
    let relay = stage.settings().set("EVENT_MODE", "binary").start();
    let binary = consumer.await_count(2).await.pop().unwrap();
    stage.await_settled().await;
    relay.stop().await;
    [structured, binary]
}

#[tokio::test(flavor = "multi_thread")]
async fn json_text_is_not_touched() {
    let _turn = shared().await;
    for column_type in ["json", "text"] {
        let stage = Stage::bare(servers().await, "", &OutboxSettings::default()).await;
        stage.route("#").await;
        let consumer = stage.consumer().await;
        stage
            .run(&format!(
                "alter table outbox alter column data type {column_type} using data::text::{column_type}"
            ))
            .await;
        stage.insert("type, data", &format!("'t', '{JSON}'")).await;
        let [structured, binary] = payload_in_both_modes(&stage, &consumer).await;
        assert_eq!(structured.data(), JSON, "{column_type}");
        assert_eq!(binary.text(), JSON, "{column_type}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn jsonb_numbers_keep_all_their_digits() {
    let _turn = shared().await;
    let stage = Stage::new(servers().await).await;
    let consumer = stage.consumer().await;
    stage
        .insert(
            "type, data",
            "'t', '{\"n\": 12345678901234567890123, \"f\": 0.10}'",
        )
        .await;
    let [structured, binary] = payload_in_both_modes(&stage, &consumer).await;
    let stored = stage.texts("select data::text from outbox").await.remove(0);
    assert!(stored.contains("12345678901234567890123") && stored.contains("0.10"));
    assert_eq!(structured.data(), stored);
    assert_eq!(binary.text(), stored);
}
