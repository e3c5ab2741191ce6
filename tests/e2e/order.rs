//! Order of keys, under concurrent writers and transactions that commit late.

use std::time::{Duration, Instant};

use rand::Rng as _;
use tokio_postgres::types::ToSql;

use crate::support::{Load, PATIENCE, Stage, Writers, seeded, writers};
use crate::{alone, servers};

/// A transaction that commits late is noticed after at most this time.
const LATE: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
async fn two_relays_and_64_writers_lose_nothing_repeat_nothing_and_keep_order() {
    let _turn = alone().await;
    let stage = Stage::new(servers().await).await;
    let consumer = stage.consumer().await;
    let relays = ["a", "b"].map(|name| stage.settings().set("RELAY_NAME", name).start());
    stage.await_owned(2).await;
    let load = Load {
        writers: 64,
        keys: 100,
        events: Some(20_000),
        pause: Duration::ZERO,
        seed: seeded("64 writers").0,
    };
    Writers::start(&stage, load).await.finish().await;
    stage.await_settled().await;
    for relay in relays {
        relay.stop().await;
    }
    let (events, report) = stage.check(&consumer.finish().await).await;
    assert!(events >= 20_000);
    report.assert_exact(events);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_commit_arrives_soon_although_later_rows_were_published() {
    let _turn = alone().await;
    let stage = Stage::new(servers().await).await;
    Writers::prepare(&stage).await;
    let consumer = stage.consumer().await;
    let relay = stage.settings().start();
    let late = stage.servers.postgres.client(&stage.database).await;
    late.batch_execute("begin").await.unwrap();
    let row = late
        .query_one(
            "insert into outbox (type) values ('late') returning id::text",
            &[],
        )
        .await
        .unwrap();
    let id: String = row.get(0);
    let load = Load {
        writers: 4,
        keys: 50,
        events: None,
        pause: Duration::from_millis(2),
        seed: seeded("late commit").0,
    };
    let writers = Writers::start(&stage, load).await;
    consumer.await_different(2000).await;
    assert!(!consumer.ids().contains(&id), "published before its commit");
    late.batch_execute("commit").await.unwrap();
    let committed = Instant::now();
    let delivery = consumer.await_id(&id, PATIENCE).await;
    let took = delivery.at.saturating_duration_since(committed);
    assert!(took < LATE, "took {took:?}");
    writers.stop().await;
    stage.await_settled().await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_stays_in_commit_order_when_its_first_transaction_commits_late() {
    const ROUNDS: usize = 50;
    let _turn = alone().await;
    let (seed, mut random) = seeded("late then next");
    let stage = Stage::new(servers().await).await;
    let consumer = stage.consumer().await;
    let relays = ["a", "b"].map(|name| stage.settings().set("RELAY_NAME", name).start());
    stage.await_owned(2).await;
    let load = Load {
        writers: 8,
        keys: 200,
        events: None,
        pause: Duration::from_millis(1),
        seed,
    };
    let background = Writers::start(&stage, load).await;
    let first = stage.servers.postgres.client(&stage.database).await;
    let second = stage.servers.postgres.client(&stage.database).await;
    for round in 0..ROUNDS {
        let key = format!("late{}", round % 5);
        first.batch_execute("begin").await.unwrap();
        let change: [&(dyn ToSql + Sync); 2] = [&key, &""];
        first.execute(writers::CHANGE, &change).await.unwrap();
        // The delay is what is tested.
        tokio::time::sleep(Duration::from_millis(random.random_range(0..120))).await;
        if random.random() {
            // Waits for the lock and goes in the very moment in which it is released.
            let (next, committed) = tokio::join!(
                second.execute(writers::CHANGE, &change),
                first.batch_execute("commit")
            );
            next.unwrap();
            committed.unwrap();
        } else {
            first.batch_execute("commit").await.unwrap();
            second.execute(writers::CHANGE, &change).await.unwrap();
        }
    }
    background.stop().await;
    stage.await_settled().await;
    for relay in relays {
        relay.stop().await;
    }
    let late = "select count(*) from ledger where key like 'late%'";
    assert_eq!(stage.count(late).await, 2 * ROUNDS as i64);
    let (events, report) = stage.check(&consumer.finish().await).await;
    report.assert_exact(events);
}
