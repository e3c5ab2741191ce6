//! A broker that takes connections and blocks publishers, while the backlog grows.

use std::sync::Mutex;
use std::time::Duration;

use crate::servers;
use crate::support::{Load, Relay, Stage, Writers, seeded};

/// A backlog far larger than the relay may hold.
const ROUNDS: i64 = 4;
const ROWS_PER_ROUND: i64 = 10_000;
const RESIDENT_MAX_KIB: u64 = 64 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn memory_stays_bounded_while_the_broker_blocks_and_everything_arrives_after() {
    let (_turn, servers) = servers().await;
    let stage = Stage::new(servers).await;
    let relays = ["a", "b"].map(|name| {
        let settings = stage.settings().set("RELAY_NAME", name);
        settings.set("RELAY_LEASE_TTL", "2s").start()
    });
    stage.await_owned(2).await;
    let consumer = stage.consumer().await;
    let id = stage.insert("type", "'t'").await;
    consumer.await_id(&id, Duration::from_secs(20)).await;

    let rabbitmq = &stage.servers.rabbitmq;
    rabbitmq.ctl_ok(&["set_vm_memory_high_watermark", "0"]);
    let mut highest = None;
    for _ in 0..ROUNDS {
        stage
            .run(&format!(
                "insert into outbox (type, key, data) select 't', 'k' || g % 500, jsonb_build_object('p', repeat('x', 1000)) \
                 from generate_series(1, {ROWS_PER_ROUND}) g"
            ))
            .await;
        // Both are alive, not stuck: they renew their leases.
        let began = stage
            .texts("select clock_timestamp()::text")
            .await
            .remove(0);
        let renewed = format!(
            "select count(*) from outrigger.replicas where lease_until - lease_ttl > '{began}'"
        );
        stage
            .await_count("a heartbeat of each relay", &renewed, 2)
            .await;
        highest = relays.iter().map(Relay::resident_kib).max().max(highest);
    }
    let blocked = rabbitmq.ctl_ok(&["list_connections", "state"]);
    assert!(blocked.contains("blocked"), "{blocked}");
    rabbitmq.ctl_ok(&["set_vm_memory_high_watermark", "0.6"]);
    let open = "select count(*) from outbox where published_at is null";
    let resident = Mutex::new(highest);
    stage
        .await_that(
            "everything is published",
            open,
            Duration::from_secs(120),
            |count| {
                let mut highest = resident.lock().unwrap();
                *highest = relays.iter().map(Relay::resident_kib).max().max(*highest);
                count == 0
            },
        )
        .await;
    let highest = resident.into_inner().unwrap().unwrap();
    println!("at most {highest} KiB resident");
    assert!(highest < RESIDENT_MAX_KIB, "{highest} KiB resident");
    assert_eq!(
        stage.count("select count(*) from outrigger.failures").await,
        0
    );
    for mut relay in relays {
        relay.assert_running();
        relay.stop().await;
    }
    let rows = (ROUNDS * ROWS_PER_ROUND + 1) as usize;
    consumer
        .await_different_for(rows, Duration::from_secs(60))
        .await;
    assert_eq!(consumer.finish().await.len(), rows, "copies");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_much_longer_than_the_confirm_timeout_repeats_nothing() {
    const WINDOW: usize = 200;
    let (_turn, servers) = servers().await;
    let stage = Stage::new(servers).await;
    Writers::prepare(&stage).await;
    let consumer = stage.consumer().await;
    let relay = stage
        .settings()
        .set("RABBITMQ_CONFIRM_TIMEOUT", "1s")
        .set("RELAY_BATCH_SIZE", WINDOW)
        .set("RELAY_MAX_IN_FLIGHT", WINDOW)
        .start();
    let load = Load {
        writers: 4,
        keys: 100,
        events: None,
        pause: Duration::from_millis(5),
        seed: seeded("long block").0,
    };
    let writers = Writers::start(&stage, load).await;
    consumer.await_different(200).await;
    let rabbitmq = &stage.servers.rabbitmq;
    rabbitmq.ctl_ok(&["set_vm_memory_high_watermark", "0"]);
    // Many confirm timeouts: the length of the block is what is tested.
    tokio::time::sleep(Duration::from_secs(6)).await;
    rabbitmq.ctl_ok(&["set_vm_memory_high_watermark", "0.6"]);
    writers.stop().await;
    stage.await_settled().await;
    relay.stop().await;
    let (events, report) = stage.check(&consumer.finish().await).await;
    report.assert_exact(events);
}
