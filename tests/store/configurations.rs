//! Replicas that send events to different places: who may claim, as the database decides.

use std::time::Duration;

use outrigger::store::configuration::{Configuration, SINK};
use outrigger::store::{Tick, Told};
use uuid::Uuid;

use crate::fixture::Fixture;

const TTL: Duration = Duration::from_secs(10);

fn to(sink: &str) -> Configuration {
    Configuration::new([(SINK, sink.to_owned())])
}

async fn join(f: &Fixture, name: &str, sink: &str) -> Uuid {
    let registered = f.store.register_as(name, TTL, 4, &to(sink)).await.unwrap();
    f.store.tick(registered.replica, true).await.unwrap();
    registered.replica
}

/// Claims everything and answers how many partitions that brought.
async fn claim(f: &Fixture, replica: Uuid) -> usize {
    f.store.claim(replica, &[0, 1, 2, 3]).await.unwrap().len()
}

async fn tick(f: &Fixture, replica: Uuid) -> Tick {
    f.store.tick(replica, false).await.unwrap()
}

/// Its lease is over, and everyone has been there for long enough to know.
async fn dies(f: &Fixture, replica: Uuid) {
    f.sql(&format!(
        "update outrigger.replicas set lease_until = clock_timestamp() - interval '1 second' where replica = '{replica}'; \
         update outrigger.replicas set visible_since = visible_since - interval '1 minute' where replica <> '{replica}'"
    ))
    .await;
}

#[tokio::test]
async fn the_second_place_gets_nothing_while_the_first_lives() {
    let f = Fixture::new().await;
    let first = join(&f, "first", "rabbitmq").await;
    let second = join(&f, "second", "stdout").await;
    // Free partitions, too: the first may take them any moment.
    assert_eq!(claim(&f, second).await, 0);
    assert_eq!(claim(&f, first).await, 4);
    let seen = tick(&f, second).await;
    assert!(seen.stands_aside(second, false));
    let other = seen
        .replicas
        .iter()
        .find(|row| row.replica == first)
        .unwrap();
    assert!(other.conflicts && other.differs.as_ref() == Some(&to("rabbitmq")));
    let seen = tick(&f, first).await;
    assert!(!seen.stands_aside(first, false));
    assert!(
        seen.replicas
            .iter()
            .all(|row| row.conflicts == (row.replica == second))
    );
    f.store.unregister(first).await.unwrap();
    assert!(!tick(&f, second).await.stands_aside(second, false));
    assert_eq!(claim(&f, second).await, 4);
}

#[tokio::test]
async fn a_replica_that_joins_its_own_kind_has_their_place() {
    let f = Fixture::new().await;
    let old = join(&f, "old-0", "rabbitmq").await;
    assert_eq!(claim(&f, old).await, 4);
    let new = join(&f, "new-0", "nats").await;
    // A restart of one of the old while a new one waits: the old ones go on.
    let again = join(&f, "old-1", "rabbitmq").await;
    f.store.unregister(old).await.unwrap();
    assert_eq!(claim(&f, new).await, 0);
    assert_eq!(claim(&f, again).await, 4);
    f.store.unregister(again).await.unwrap();
    // When none is left, the new ones begin, and the old would be newcomers.
    assert_eq!(claim(&f, new).await, 4);
    let late = join(&f, "old-2", "rabbitmq").await;
    assert_eq!(claim(&f, late).await, 0);
    assert!(tick(&f, late).await.stands_aside(late, false));
}

#[tokio::test]
async fn one_that_was_taken_for_dead_comes_back_as_a_newcomer() {
    let f = Fixture::new().await;
    let frozen = join(&f, "frozen", "rabbitmq").await;
    // It owns nothing, but came first.
    let idle = join(&f, "idle", "rabbitmq").await;
    assert_eq!(claim(&f, frozen).await, 4);
    let second = join(&f, "second", "stdout").await;
    dies(&f, frozen).await;
    assert_eq!(claim(&f, second).await, 0, "the other one of them lives");
    dies(&f, idle).await;
    assert_eq!(claim(&f, second).await, 4);
    for replica in [frozen, idle] {
        let seen = f.store.tick(replica, true).await.unwrap();
        assert!(!seen.registered, "it registers again, as the last");
    }
    assert!(!tick(&f, second).await.stands_aside(second, false));
}

#[tokio::test]
async fn a_restart_of_the_only_one_goes_on_where_it_was() {
    let f = Fixture::new().await;
    let crashed = join(&f, "crashed", "rabbitmq").await;
    assert_eq!(claim(&f, crashed).await, 4);
    let waits = join(&f, "waits", "stdout").await;
    dies(&f, crashed).await;
    let restarted = join(&f, "restarted", "rabbitmq").await;
    dies(&f, crashed).await;
    assert_eq!(claim(&f, waits).await, 0, "the restarted one came first");
    assert_eq!(claim(&f, restarted).await, 4);
}

#[tokio::test]
async fn what_publishes_nothing_conflicts_with_none() {
    let f = Fixture::new().await;
    let relay = join(&f, "relay", "rabbitmq").await;
    let tool = f
        .store
        .register("outrigger partitions", TTL, 4)
        .await
        .unwrap()
        .replica;
    f.store.tick(tool, true).await.unwrap();
    for replica in [relay, tool] {
        let seen = tick(&f, replica).await;
        assert!(seen.replicas.iter().all(|row| !row.conflicts));
        assert!(!seen.stands_aside(replica, false));
    }
}

#[tokio::test]
async fn registrations_at_once_agree_on_who_came_first() {
    let f = Fixture::new().await;
    let joins = (0..8).map(|n| {
        let store = f.store.clone();
        tokio::spawn(async move {
            let sink = format!("sink-{}", n % 4);
            let registered = store.register_as("r", TTL, 4, &to(&sink)).await.unwrap();
            store.tick(registered.replica, true).await.unwrap();
            registered.replica
        })
    });
    let joins: Vec<_> = joins.collect();
    let mut replicas = Vec::new();
    for join in joins {
        replicas.push(join.await.unwrap());
    }
    let mut owners = Vec::new();
    for replica in replicas {
        let aside = tick(&f, replica).await.stands_aside(replica, false);
        assert_eq!(claim(&f, replica).await == 0, aside || !owners.is_empty());
        if !aside {
            owners.push(replica);
        }
    }
    assert_eq!(owners.len(), 2, "both of one sink, and no other");
}

#[tokio::test]
async fn a_heartbeat_says_how_the_replica_stands() {
    let f = Fixture::new().await;
    let replica = join(&f, "pod-0", "rabbitmq").await;
    let told = Told {
        waits_for: Some("the broker: refused".into()),
        rate: 12.5,
        published_ago: Some(Duration::from_secs(60)),
    };
    f.store.tick_telling(replica, Some(&told)).await.unwrap();
    let status = f.store.status().await.unwrap();
    let row = &status.replicas[0];
    assert_eq!(row.waits_for.as_deref(), Some("the broker: refused"));
    assert_eq!((row.rate, &row.configuration), (12.5, &to("rabbitmq")));
    assert!(row.published_ago.unwrap() >= Duration::from_secs(60));
    assert!(row.sign_ago < Duration::from_secs(60) && status.lives(row));
    // Alone, and silent for long.
    f.sql("update outrigger.replicas set lease_until = clock_timestamp() - interval '80 seconds'")
        .await;
    let status = f.store.status().await.unwrap();
    assert!(!status.lives(&status.replicas[0]));
}
