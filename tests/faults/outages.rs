//! A server that goes away costs time, and nothing else: no event, no attempt, no order.

use std::time::Duration;

use outrigger::store::postgres::OutboxSettings;

use crate::servers;
use crate::support::stage::migrated;
use crate::support::{Load, PATIENCE, Settings, Stage, Writers, seeded};

const IN_FLIGHT: usize = 400;

/// Keeps every failure record that ever was, also those that are gone in the end.
const AUDIT: &str = "create table audit (seq bigint, state text, attempts int, reason text);
    create function audit() returns trigger language plpgsql as $$
    begin insert into audit values (new.seq, new.state, new.attempts, new.reason); return null; end $$;
    create trigger audit after insert or update on outrigger.failures for each row execute function audit()";

fn settings(stage: &Stage, name: &str) -> Settings {
    stage
        .settings()
        .set("RELAY_NAME", name)
        .set("RELAY_LEASE_TTL", "3s")
        .set("RELAY_BATCH_SIZE", IN_FLIGHT)
        .set("RELAY_MAX_IN_FLIGHT", IN_FLIGHT)
        .set("RETRY_MAX_ATTEMPTS", 2)
        .set("RETRY_BACKOFF_INITIAL", "50ms")
}

fn load(test: &str) -> Load {
    Load {
        writers: 8,
        keys: 100,
        events: None,
        pause: Duration::from_millis(5),
        seed: seeded(test).0,
    }
}

/// Waits until the relays have published `more` further events.
async fn await_published(stage: &Stage, more: i64) {
    let published = "select count(*) from outbox where published_at is not null";
    let wanted = stage.count(published).await + more;
    stage
        .await_that(
            &format!("{more} more events are published"),
            published,
            Duration::from_secs(60),
            move |count| count >= wanted,
        )
        .await;
}

async fn assert_no_attempt_was_burned(stage: &Stage) {
    let burned = stage
        .texts("select format('%s %s %s %s', seq, state, attempts, reason) from audit limit 5")
        .await;
    assert_eq!(burned, Vec::<String>::new(), "failures were recorded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_crashes_and_comes_back() {
    let (_turn, servers) = servers().await;
    let stage = Stage::new(servers).await;
    stage.run(AUDIT).await;
    let relays = ["a", "b"].map(|name| settings(&stage, name).start());
    stage.await_owned(2).await;
    let writers = Writers::start(&stage, load("broker crash")).await;
    for _ in 0..2 {
        await_published(&stage, 500).await;
        stage.servers.rabbitmq.kill();
        writers.await_more(300).await;
        stage.servers.rabbitmq.revive().await;
    }
    await_published(&stage, 500).await;
    writers.stop().await;
    stage.await_settled().await;
    for relay in relays {
        relay.stop().await;
    }
    assert_no_attempt_was_burned(&stage).await;
    // Consumed only now, so every copy in the queue is the relay's own and none the broker's redelivery.
    let deliveries = stage.consumer().await.finish().await;
    let (events, report) = stage.check(&deliveries).await;
    // Two crashes, two relays, one window each.
    report.assert_delivered(events, 4 * IN_FLIGHT);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_crashes_and_comes_back() {
    let (_turn, servers) = servers().await;
    let mut stage = Stage::new(servers).await;
    stage.run(AUDIT).await;
    let consumer = stage.consumer().await;
    // Longer than a restart takes on a busy machine. A lease that lapses meanwhile looks like a crash of its owner,
    // whose events are then recorded as suspects: another test's concern.
    let relays = ["a", "b"].map(|name| {
        let settings = settings(&stage, name).set("RELAY_LEASE_TTL", "30s");
        settings.start()
    });
    stage.await_owned(2).await;
    let writers = Writers::start(&stage, load("database crash")).await;
    for _ in 0..2 {
        await_published(&stage, 500).await;
        let crashing = stage.servers.clone();
        tokio::task::spawn_blocking(move || crashing.postgres.restart())
            .await
            .unwrap();
        stage.sql = stage.servers.postgres.client(&stage.database).await;
    }
    await_published(&stage, 500).await;
    writers.stop().await;
    stage.await_settled().await;
    for relay in relays {
        relay.stop().await;
    }
    assert_no_attempt_was_burned(&stage).await;
    let (events, report) = stage.check(&consumer.finish().await).await;
    report.assert_delivered(events, 4 * IN_FLIGHT);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_longer_than_the_retry_budget_burns_no_attempt() {
    let (_turn, servers) = servers().await;
    let stage = Stage::new(servers).await;
    stage.run(AUDIT).await;
    let relay = settings(&stage, "a").start();
    stage.await_owned(1).await;
    let writers = Writers::start(&stage, load("long outage")).await;
    await_published(&stage, 200).await;
    stage.servers.rabbitmq.kill();
    // Two attempts 50 ms apart would be over long before.
    tokio::time::sleep(Duration::from_secs(3)).await;
    writers.await_more(100).await;
    stage.servers.rabbitmq.revive().await;
    writers.stop().await;
    stage.await_settled().await;
    relay.stop().await;
    assert_no_attempt_was_burned(&stage).await;
    let deliveries = stage.consumer().await.finish().await;
    let (events, report) = stage.check(&deliveries).await;
    report.assert_delivered(events, IN_FLIGHT);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_starts_before_its_servers_are_ready_waits_for_them() {
    let (_turn, servers) = servers().await;
    let stage = Stage::new(servers).await;
    let postgres = &stage.servers.postgres;
    let database = postgres.create_database().await;
    stage.servers.rabbitmq.kill();
    let mut relay = settings(&stage, "early")
        .set("DATABASE_URL", postgres.url(&database))
        .start();
    relay.await_log("waiting for it").await;
    migrated(&postgres.url(&database), &OutboxSettings::default()).await;
    let service = postgres.client(&database).await;
    let insert = "insert into outbox (type) values ('t') returning id::text";
    let id: String = service.query_one(insert, &[]).await.unwrap().get(0);
    stage.servers.rabbitmq.revive().await;
    let consumer = stage.consumer().await;
    consumer.await_id(&id, PATIENCE).await;
    relay.assert_running();
    relay.stop().await;
    assert_eq!(consumer.finish().await.len(), 1);
}
