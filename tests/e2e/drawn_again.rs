//! The table is emptied while a relay runs, and its numbers are drawn again: no old failure swallows a new event.

use outrigger::store::postgres::OutboxSettings;

use crate::support::{PATIENCE, Stage};
use crate::{servers, shared};

const RECORDS: &str = "select count(*) from outrigger.failures";

/// One event fails and is dealt with as `on_exhausted` says; then the table is emptied, and the next two events take over its
/// number and its key.
async fn emptied(on_exhausted: &str, by: &str) {
    let _turn = shared().await;
    let stage = Stage::bare(servers().await, "", &OutboxSettings::default()).await;
    stage.route("good").await;
    let consumer = stage.consumer().await;
    let settings = stage
        .settings()
        .set(
            "RETRY_MAX_ATTEMPTS",
            if on_exhausted == "retry" {
                1_000_000
            } else {
                1
            },
        )
        .set("RETRY_BACKOFF_INITIAL", "1s")
        .set(
            "RETRY_ON_EXHAUSTED",
            if on_exhausted == "block" {
                "block"
            } else {
                "dead"
            },
        );
    let relay = settings.start();
    stage
        .insert("type, key, routing_key", "'bad', 'k', 'nowhere'")
        .await;
    stage.await_count("the event fails", RECORDS, 1).await;
    stage.run(by).await;
    let first = stage.insert("type, key", "'good', 'k'").await;
    let second = stage.insert("type, key", "'good', 'other'").await;
    assert_eq!(stage.count("select min(seq) from outbox").await, 1);
    consumer.await_id(&second, PATIENCE).await;
    consumer.await_id(&first, PATIENCE).await;
    stage.await_settled().await;
    if by == TRUNCATE {
        // Otherwise within a minute.
        stage.await_count("no record stays", RECORDS, 0).await;
    }
    // Numbers go on from there, and events as fast as ever.
    let third = stage.insert("type, key", "'good', 'k'").await;
    consumer.await_id(&third, PATIENCE).await;
    stage.await_settled().await;
    relay.stop().await;
    let arrived: Vec<_> = consumer.finish().await.into_iter().map(|d| d.id).collect();
    assert_eq!(arrived.len(), 3, "{arrived:?}");
}

const TRUNCATE: &str = "truncate outbox restart identity";
const RESTART: &str = "delete from outbox; alter table outbox alter column seq restart";

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_event_is_forgotten_with_its_table() {
    emptied("dead", TRUNCATE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_key_goes_on_when_its_table_is_emptied() {
    emptied("block", TRUNCATE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retrying_key_goes_on_when_its_table_is_emptied() {
    emptied("retry", TRUNCATE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_event_is_forgotten_when_the_sequence_is_restarted() {
    emptied("dead", RESTART).await;
}
