//! From INSERT to removal: delays, expiry, retention, pauses, replays.

use std::time::Duration;

use outrigger::store::postgres::OutboxSettings;
use outrigger::store::postgres::replay::{ReplayFilter, ReplayMode};

use crate::support::{PATIENCE, Stage};
use crate::{servers, shared};

#[tokio::test(flavor = "multi_thread")]
async fn delayed_events_wait_and_expired_ones_are_dropped() {
    let _turn = shared().await;
    let stage = Stage::new(servers().await).await;
    let consumer = stage.consumer().await;
    let relay = stage.settings().start();
    let expired = stage
        .insert("type, expires_at", "'t', now() - interval '1 second'")
        .await;
    let delayed = stage
        .insert(
            "type, key, available_at",
            "'t', 'k', now() + interval '1500 ms'",
        )
        .await;
    // Would be published after it expires.
    let stale = stage
        .insert(
            "type, available_at, expires_at",
            "'t', now() + interval '1 second', now() + interval '500 ms'",
        )
        .await;
    let plain = stage.insert("type", "'t'").await;
    consumer.await_id(&plain, PATIENCE).await;
    assert!(!consumer.ids().contains(&delayed), "too early");
    consumer.await_id(&delayed, PATIENCE).await;
    stage.await_settled().await;
    let early = format!(
        "select count(*) from outbox where id = '{delayed}' and published_at < available_at"
    );
    assert_eq!(stage.count(&early).await, 0);
    let late = format!(
        "select count(*) from outbox where id = '{delayed}' and published_at > available_at + interval '2 seconds'"
    );
    assert_eq!(stage.count(&late).await, 0);
    relay.stop().await;
    let ids: Vec<_> = consumer.finish().await.into_iter().map(|d| d.id).collect();
    assert_eq!(ids, [plain, delayed]);
    assert!(!ids.contains(&expired) && !ids.contains(&stale));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_history_of_a_table_that_was_there_is_kept() {
    let _turn = shared().await;
    let outbox = OutboxSettings {
        column_published_at: Some("published".into()),
        ..OutboxSettings::default()
    };
    let ddl = "create table outbox (seq bigserial primary key, id uuid default gen_random_uuid(), type text, \
          created_at timestamptz default now(), published boolean not null default false); \
        insert into outbox (type, created_at, published) \
          select 'old', now() - interval '400 days', true from generate_series(1, 1000)";
    let stage = Stage::bare(servers().await, ddl, &outbox).await;
    stage.route("#").await;
    let settings = stage
        .settings()
        .set("OUTBOX_COLUMN_PUBLISHED_AT", "published");
    let relay = settings.clone().start();
    relay.await_log("published rows are kept for ever").await;
    stage.run("insert into outbox (type) values ('t')").await;
    let published = "select count(*) from outbox where published";
    stage
        .await_count("the new row is marked", published, 1001)
        .await;
    relay.stop().await;
    // Who wants them deleted says so.
    let relay = settings.set("OUTBOX_RETENTION", "1s").start();
    stage.await_count("all are gone", published, 0).await;
    relay.await_log("old published rows deleted").await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_removes_published_rows_and_nothing_else() {
    let _turn = shared().await;
    let stage = Stage::bare(servers().await, "", &Default::default()).await;
    stage.route("good").await;
    let consumer = stage.consumer().await;
    stage
        .run(
            "insert into outbox (type, created_at) select 'good', now() - interval '1 day' from generate_series(1, 500); \
             insert into outbox (type, created_at) values ('nowhere', now() - interval '1 day'); \
             insert into outbox (type, created_at, available_at) values ('good', now() - interval '1 day', now() + interval '1 day')",
        )
        .await;
    let relay = stage
        .settings()
        .set("OUTBOX_RETENTION", "1s")
        .set("RETRY_MAX_ATTEMPTS", 1)
        .start();
    consumer.await_different(500).await;
    let published = "select count(*) from outbox where published_at is not null or available_at is null and type = 'good'";
    stage
        .await_count("published rows are removed", published, 0)
        .await;
    let left = stage.texts("select type from outbox order by seq").await;
    assert_eq!(
        left,
        ["nowhere", "good"],
        "the dead and the delayed row stay"
    );
    relay.stop().await;
    assert_eq!(consumer.finish().await.len(), 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_deleted_right_away_when_asked_for() {
    let _turn = shared().await;
    let stage = Stage::new(servers().await).await;
    let consumer = stage.consumer().await;
    let relay = stage
        .settings()
        .set("OUTBOX_AFTER_PUBLISH", "delete")
        .start();
    stage
        .run("insert into outbox (type, key) select 't', 'k' || g % 10 from generate_series(1, 1000) g")
        .await;
    consumer.await_different(1000).await;
    stage
        .await_count("the table is empty", "select count(*) from outbox", 0)
        .await;
    relay.stop().await;
    assert_eq!(consumer.finish().await.len(), 1000);
}

/// Waits until both relays have looked at the ownership tables twice more, and so at the pause flag. A lone relay would
/// not do: it looks without leaving a trace.
async fn two_heartbeats(stage: &Stage) {
    for _ in 0..2 {
        let before = stage
            .texts("select clock_timestamp()::text from outrigger.replicas")
            .await;
        assert_eq!(before.len(), 2, "two relays");
        // The lease lasts two seconds from each heartbeat.
        let renewed = format!(
            "select count(*) from outrigger.replicas where lease_until - lease_ttl > '{}'",
            before[0]
        );
        stage
            .await_count("a heartbeat of each relay", &renewed, 2)
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_relay_publishes_nothing_until_it_resumes() {
    let _turn = shared().await;
    let stage = Stage::new(servers().await).await;
    let consumer = stage.consumer().await;
    let relays = ["a", "b"].map(|name| {
        let settings = stage.settings().set("RELAY_NAME", name);
        settings.set("RELAY_LEASE_TTL", "2s").start()
    });
    stage.await_owned(2).await;
    let before = stage.insert("type", "'t'").await;
    consumer.await_id(&before, PATIENCE).await;
    assert!(stage.store.pause(Some("maintenance")).await.unwrap());
    two_heartbeats(&stage).await;
    stage
        .run("insert into outbox (type, key) select 't', 'k' || g % 10 from generate_series(1, 100) g")
        .await;
    two_heartbeats(&stage).await;
    assert_eq!(consumer.count(), 1, "published while paused");
    assert!(stage.store.resume().await.unwrap());
    consumer
        .await_different_for(101, Duration::from_secs(5))
        .await;
    stage.await_settled().await;
    for relay in relays {
        relay.stop().await;
    }
    assert_eq!(consumer.finish().await.len(), 101);
}

#[tokio::test(flavor = "multi_thread")]
async fn replays_repeat_events_byte_for_byte_or_as_new_ones() {
    let _turn = shared().await;
    let stage = Stage::new(servers().await).await;
    let consumer = stage.consumer().await;
    let relay = stage.settings().start();
    stage
        .run(
            "insert into outbox (type, key, data) select 't', 'k' || g % 10, jsonb_build_object('n', g) \
             from generate_series(1, 200) g",
        )
        .await;
    let first = consumer.await_count(200).await;
    stage.await_settled().await;

    let filter = ReplayFilter {
        from_seq: Some(51),
        to_seq: Some(150),
        ..ReplayFilter::default()
    };
    let replayed = stage
        .store
        .replay(&filter, ReplayMode::SameIds, 30, |_| {})
        .await;
    assert_eq!(replayed.unwrap(), 100);
    let copies = consumer.await_count(300).await.split_off(200);
    let mut ids: Vec<_> = copies.iter().map(|copy| copy.id.clone()).collect();
    ids.sort();
    let mut expected = stage
        .texts("select id::text from outbox where seq between 51 and 150")
        .await;
    expected.sort();
    assert_eq!(ids, expected);
    for copy in &copies {
        let original = first.iter().find(|d| d.id == copy.id).unwrap();
        assert_eq!(copy.arrival(), original.arrival(), "a duplicate differs");
    }
    stage.await_settled().await;

    let replayed = stage
        .store
        .replay(&filter, ReplayMode::NewIds, 30, |_| {})
        .await;
    assert_eq!(replayed.unwrap(), 100);
    let new = consumer.await_count(400).await.split_off(300);
    assert!(new.iter().all(|copy| first.iter().all(|d| d.id != copy.id)));
    let data = |deliveries: &[crate::support::Delivery]| {
        let mut data: Vec<_> = deliveries.iter().map(|d| d.data().to_owned()).collect();
        data.sort();
        data
    };
    assert_eq!(data(&new), data(&copies));
    stage.await_settled().await;
    relay.stop().await;
    assert_eq!(consumer.finish().await.len(), 400);
}
