//! A failing event holds its own key, and nothing else.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use lapin::ExchangeKind;
use outrigger::store::postgres::OutboxSettings;
use outrigger::store::postgres::admin::FailureFilter;

use crate::support::{Delivery, PATIENCE, Stage};
use crate::{alone, servers, shared};

/// A stage whose queue takes everything but the routing key `nowhere`.
async fn stage() -> Stage {
    let stage = Stage::bare(servers().await, "", &OutboxSettings::default()).await;
    stage.route("good").await;
    stage
}

fn ids<'a>(deliveries: &'a [Delivery], wanted: &[String]) -> Vec<&'a str> {
    let found = deliveries.iter().map(|delivery| delivery.id.as_str());
    found.filter(|id| wanted.iter().any(|w| w == id)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hot_key_that_fails_delays_no_other_key() {
    const HOT: usize = 3000;
    const OTHERS: usize = 300;
    let _turn = alone().await;
    let stage = stage().await;
    let consumer = stage.consumer().await;
    stage
        .run(&format!(
            "insert into outbox (type, key, routing_key) \
             select 'good', 'hot', 'nowhere' from generate_series(1, {HOT})"
        ))
        .await;
    let relay = stage
        .settings()
        .set("RETRY_MAX_ATTEMPTS", 1_000_000)
        .set("RETRY_BACKOFF_INITIAL", "20ms")
        .set("RETRY_BACKOFF_MAX", "100ms")
        .start();
    let failing =
        "select count(*) from outrigger.failures where key = 'hot' and state = 'retrying'";
    stage.await_count("the hot key fails", failing, 1).await;

    let mut committed = HashMap::new();
    for number in 0..OTHERS {
        let id = stage
            .insert("type, key", &format!("'good', 'k{}'", number % 20))
            .await;
        committed.insert(id, Instant::now());
        // A service that is not in a hurry: latency is measured, not throughput.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    consumer.await_different(OTHERS).await;
    let mut delays: Vec<Duration> = consumer
        .deliveries()
        .iter()
        .map(|delivery| {
            delivery
                .at
                .saturating_duration_since(committed[&delivery.id])
        })
        .collect();
    delays.sort_unstable();
    let (p50, p99) = (delays[OTHERS / 2], delays[OTHERS * 99 / 100]);
    println!("beside a failing key: p50 {p50:?}, p99 {p99:?}");
    assert!(p99 < Duration::from_millis(500), "p50 {p50:?}, p99 {p99:?}");
    assert_eq!(stage.count(failing).await, 1, "one event holds the key");

    stage
        .admin
        .bind(&stage.name, &stage.name, "nowhere", &[])
        .await;
    stage.await_settled().await;
    relay.stop().await;
    let hot = stage
        .texts("select id::text from outbox where key = 'hot' order by seq")
        .await;
    let deliveries = consumer.finish().await;
    assert_eq!(deliveries.len(), HOT + OTHERS);
    let arrived = ids(&deliveries, &hot);
    assert!(arrived.into_iter().eq(&hot), "order of the hot key");
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_events_go_to_the_dead_letter_destination_and_can_be_retried() {
    let _turn = shared().await;
    let stage = stage().await;
    let dead_letters = format!("{}-dead", stage.name);
    stage
        .admin
        .exchange(&dead_letters, ExchangeKind::Topic)
        .await;
    stage.admin.queue(&dead_letters, &[]).await;
    stage
        .admin
        .bind(&dead_letters, &dead_letters, "#", &[])
        .await;
    let (consumer, graveyard) = (
        stage.consumer().await,
        stage.consumer_of(&dead_letters).await,
    );
    let dead = stage
        .insert(
            "type, key, routing_key, headers, data",
            "'good', 'k', 'nowhere', '{\"x-tenant\":\"blue\"}', '{\"n\":1}'",
        )
        .await;
    let next = stage.insert("type, key", "'good', 'k'").await;
    let relay = stage
        .settings()
        .set("RETRY_MAX_ATTEMPTS", 3)
        .set("RETRY_BACKOFF_INITIAL", "20ms")
        .set("RETRY_DEAD_LETTER_DESTINATION", &dead_letters)
        .set("RETRY_DEAD_LETTER_KEY", "{{ routing_key }}.dlq")
        .start();
    let letter = graveyard.await_id(&dead, PATIENCE).await;
    assert_eq!(letter.routing_key, "nowhere.dlq");
    assert_eq!(letter.data(), r#"{"n": 1}"#);
    for (name, value) in [
        ("x-tenant", "blue"),
        ("x-outrigger-reason", "unroutable"),
        ("x-outrigger-attempts", "3"),
        ("x-outrigger-original-destination", stage.name.as_str()),
        ("x-outrigger-original-routing-key", "nowhere"),
    ] {
        assert_eq!(letter.header(name).as_deref(), Some(value), "{name}");
    }
    assert!(
        letter
            .header("x-outrigger-error")
            .is_some_and(|error| error.len() > 10)
    );
    // The key goes on without it.
    consumer.await_id(&next, PATIENCE).await;
    let is_dead = "select count(*) from outrigger.failures where state = 'dead' and attempts = 3";
    stage
        .await_count("the event is recorded as dead", is_dead, 1)
        .await;

    stage
        .admin
        .bind(&stage.name, &stage.name, "nowhere", &[])
        .await;
    assert_eq!(
        stage.store.retry(&FailureFilter::default()).await.unwrap(),
        1
    );
    let delivery = consumer.await_id(&dead, PATIENCE).await;
    assert_eq!(delivery.header("x-outrigger-reason"), None);
    stage.await_settled().await;
    let failures = "select count(*) from outrigger.failures";
    stage.await_count("its record is gone", failures, 0).await;
    relay.stop().await;
    assert_eq!(graveyard.finish().await.len(), 1, "one letter");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_key_waits_for_the_operator() {
    let _turn = shared().await;
    let stage = stage().await;
    let consumer = stage.consumer().await;
    for key in ["retried", "discarded"] {
        stage
            .insert(
                "type, key, routing_key",
                &format!("'good', '{key}', 'nowhere'"),
            )
            .await;
        for _ in 0..3 {
            stage.insert("type, key", &format!("'good', '{key}'")).await;
        }
    }
    let relay = stage
        .settings()
        .set("RETRY_MAX_ATTEMPTS", 2)
        .set("RETRY_BACKOFF_INITIAL", "20ms")
        .set("RETRY_ON_EXHAUSTED", "block")
        .start();
    let blocked =
        "select count(*) from outrigger.failures where state = 'blocked' and attempts = 2";
    stage.await_count("both keys are blocked", blocked, 2).await;
    // Others go on meanwhile; when this one is through, so many reads have passed the blocked rows.
    for _ in 0..20 {
        let id = stage.insert("type, key", "'good', 'other'").await;
        consumer.await_id(&id, PATIENCE).await;
    }
    assert_eq!(consumer.count(), 20, "a blocked key moved");

    let filter = |key: &str| FailureFilter {
        key: Some(key.to_owned()),
        ..FailureFilter::default()
    };
    assert_eq!(stage.store.discard(&filter("discarded")).await.unwrap(), 1);
    consumer.await_different(23).await;
    stage
        .admin
        .bind(&stage.name, &stage.name, "nowhere", &[])
        .await;
    assert_eq!(stage.store.retry(&filter("retried")).await.unwrap(), 1);
    consumer.await_different(27).await;
    stage.await_settled().await;
    relay.stop().await;

    let deliveries = consumer.finish().await;
    assert_eq!(deliveries.len(), 27);
    let of = async |key: &str| {
        stage
            .texts(&format!(
                "select id::text from outbox where key = '{key}' order by seq"
            ))
            .await
    };
    let retried = of("retried").await;
    assert!(ids(&deliveries, &retried).into_iter().eq(&retried));
    let discarded = of("discarded").await;
    assert!(ids(&deliveries, &discarded).into_iter().eq(&discarded[1..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_row_that_somebody_deletes_frees_its_key() {
    let _turn = shared().await;
    let stage = Stage::bare(servers().await, "", &Default::default()).await;
    stage.route("good").await;
    let consumer = stage.consumer().await;
    stage
        .insert("type, key, routing_key", "'good', 'k', 'nowhere'")
        .await;
    let behind = stage.insert("type, key", "'good', 'k'").await;
    let relay = stage
        .settings()
        .set("RETRY_BACKOFF_INITIAL", "20ms")
        .set("RETRY_BACKOFF_MAX", "100ms")
        .set("RETRY_MAX_ATTEMPTS", 100_000)
        .start();
    let failing = "select count(*) from outrigger.failures where attempts >= 2";
    stage.await_count("it was retried", failing, 1).await;
    stage
        .run("delete from outbox where routing_key = 'nowhere'")
        .await;
    consumer.await_id(&behind, PATIENCE).await;
    stage
        .await_count(
            "its record went, too",
            "select count(*) from outrigger.failures",
            0,
        )
        .await;
    relay.stop().await;
}

/// More than memory keeps: the database keeps the others, says so, and gives them back in order.
#[tokio::test(flavor = "multi_thread")]
async fn keys_beyond_those_that_memory_keeps_wait_in_the_table() {
    const KEYS: usize = 11_000;
    let _turn = alone().await;
    let stage = stage().await;
    let consumer = stage.consumer().await;
    stage
        .run(&format!(
            "insert into outbox (type, key, routing_key) select 'good', 'k' || g, 'nowhere' from generate_series(1, {KEYS}) g; \
             insert into outbox (type, key) select 'good', 'k' || g from generate_series(1, {KEYS}) g; \
             insert into outbox (type, key) select 'good', 'k' || g from generate_series(1, {KEYS}) g"
        ))
        .await;
    let settings = stage
        .settings()
        .set("RETRY_MAX_ATTEMPTS", 1)
        .set("RETRY_ON_EXHAUSTED", "block");
    let relay = settings.start();
    let blocked = "select count(*) from outrigger.failures where state = 'blocked'";
    let keys = KEYS as i64;
    stage
        .await_count("every key is blocked", blocked, keys)
        .await;
    relay
        .await_log("more keys fail or are blocked than are kept in memory")
        .await;
    let other = stage.insert("type, key", "'good', 'other'").await;
    consumer.await_id(&other, PATIENCE).await;
    assert_eq!(consumer.count(), 1, "a blocked key moved");
    let status = settings.run(&["status"]).await;
    assert!(
        status.contains("more fail than are kept in memory"),
        "{status}"
    );
    settings.run(&["dead", "discard", "--all", "--yes"]).await;
    stage.await_settled().await;
    let parked = "select count(*) from outrigger.parked";
    stage.await_count("no key is parked", parked, 0).await;
    relay
        .await_log("the failing keys fit in memory again")
        .await;
    relay.stop().await;
    let deliveries = consumer.finish().await;
    assert_eq!(deliveries.len(), 2 * KEYS + 1);
    let sent = stage
        .texts(
            "select id::text from outbox where key like 'k%' and routing_key is null order by seq",
        )
        .await;
    let place: HashMap<&str, usize> = deliveries
        .iter()
        .enumerate()
        .map(|(place, delivery)| (delivery.id.as_str(), place))
        .collect();
    let (first, second) = sent.split_at(KEYS);
    let pairs = first.iter().zip(second);
    let wrong = pairs.filter(|(one, two)| place[one.as_str()] > place[two.as_str()]);
    assert_eq!(wrong.count(), 0, "keys out of order");
}
