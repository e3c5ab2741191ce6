//! Leases, claims, release.

use std::collections::HashMap;
use std::time::Duration;

use uuid::Uuid;

use crate::fixture::{Fixture, server};

const TTL: Duration = Duration::from_secs(10);

async fn join(f: &Fixture, name: &str) -> Uuid {
    let replica = f.store.register(name, TTL, 16).await.unwrap().replica;
    f.store.tick(replica, true).await.unwrap();
    replica
}

/// Moves a replica's clock: its lease ended and it became visible `secs` ago.
async fn age(f: &Fixture, replica: Uuid, column: &str, secs: i32) {
    f.sql(&format!(
        "update outrigger.replicas set {column} = clock_timestamp() - {secs} * interval '1 second' where replica = '{replica}'"
    ))
    .await;
}

fn numbers(claimed: &[outrigger::store::Claimed]) -> Vec<i32> {
    claimed.iter().map(|c| c.partition).collect()
}

#[tokio::test]
async fn the_stored_number_of_partitions_wins() {
    let f = Fixture::new().await;
    assert_eq!(f.store.register("a", TTL, 4).await.unwrap().partitions, 4);
    assert_eq!(f.store.register("b", TTL, 32).await.unwrap().partitions, 4);
    assert_eq!(
        f.count("select count(*) from outrigger.partitions").await,
        4
    );
}

#[tokio::test]
async fn a_tick_shows_everything() {
    let f = Fixture::new().await;
    let a = f.store.register("pod-a", TTL, 4).await.unwrap().replica;
    let tick = f.store.tick(a, false).await.unwrap();
    assert!(tick.registered && !tick.may_take_over && !tick.paused);
    assert_eq!(tick.partitions.len(), 4);
    assert!(tick.partitions.iter().all(|p| p.owner.is_none()));
    assert_eq!(
        (tick.failures_version, tick.awake_for, tick.next_due_in),
        (0, Duration::ZERO, None)
    );
    // Reading alone writes nothing.
    assert_eq!(
        f.count("select count(*) from outrigger.replicas where visible_since is null")
            .await,
        1
    );
    let tick = f.store.tick(a, true).await.unwrap();
    assert_eq!(
        f.count("select count(*) from outrigger.replicas where visible_since is null")
            .await,
        0
    );
    assert_eq!(
        (tick.replicas[0].name.as_str(), tick.replicas[0].is_alive()),
        ("pod-a", true)
    );
    age(&f, a, "visible_since", 11).await;
    assert!(f.store.tick(a, false).await.unwrap().may_take_over);
    let stranger = f.store.tick(Uuid::new_v4(), true).await.unwrap();
    assert!(!stranger.registered && !stranger.may_take_over);
}

#[tokio::test]
async fn concurrent_claimers_never_share_a_partition() {
    let f = Fixture::new().await;
    for round in 0..5 {
        let mut replicas = Vec::new();
        for i in 0..8 {
            replicas.push(join(&f, &format!("r{round}-{i}")).await);
        }
        let all: Vec<i32> = (0..16).collect();
        let claims = replicas.iter().map(|replica| {
            let (store, all, replica) = (f.store.clone(), all.clone(), *replica);
            tokio::spawn(async move { (replica, store.claim(replica, &all).await.unwrap()) })
        });
        let claims: Vec<_> = claims.collect();
        let mut owners = HashMap::new();
        for claim in claims {
            let (replica, claimed) = claim.await.unwrap();
            for claimed in claimed {
                assert!(!claimed.unclean);
                assert_eq!(
                    owners.insert(claimed.partition, replica),
                    None,
                    "{claimed:?} was given out twice"
                );
            }
        }
        assert_eq!(owners.len(), 16, "every partition found an owner");
        for partition in f.store.tick(replicas[0], false).await.unwrap().partitions {
            assert_eq!(partition.owner, owners.get(&partition.partition).copied());
        }
        for replica in replicas {
            f.store.unregister(replica).await.unwrap();
        }
        assert_eq!(
            f.count("select count(*) from outrigger.partitions where owner is not null")
                .await,
            0
        );
    }
}

#[tokio::test]
async fn the_partitions_of_a_dead_owner_go_to_one_heir_each() {
    let f = Fixture::new().await;
    let all: Vec<i32> = (0..16).collect();
    for round in 0..5 {
        let dead = join(&f, "dead").await;
        assert_eq!(f.store.claim(dead, &all).await.unwrap().len(), 16);
        age(&f, dead, "lease_until", 60).await;
        let mut heirs = Vec::new();
        for i in 0..6 {
            let heir = join(&f, &format!("h{round}-{i}")).await;
            age(&f, heir, "visible_since", 60).await;
            heirs.push(heir);
        }
        let claims: Vec<_> = heirs
            .iter()
            .map(|heir| {
                let (store, all, heir) = (f.store.clone(), all.clone(), *heir);
                tokio::spawn(async move { store.claim(heir, &all).await.unwrap() })
            })
            .collect();
        let mut taken = Vec::new();
        for claim in claims {
            let claimed = claim.await.unwrap();
            assert!(claimed.iter().all(|claimed| claimed.unclean));
            taken.extend(numbers(&claimed));
        }
        taken.sort_unstable();
        assert_eq!(taken, all);
        for replica in heirs.into_iter().chain([dead]) {
            f.store.unregister(replica).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_tick_shows_the_claim_its_heartbeat_waited_for() {
    let f = Fixture::new().await;
    let (owner, other) = (join(&f, "owner").await, join(&f, "other").await);
    f.store.claim(owner, &[0]).await.unwrap();
    let claim = server().await.client(&f.name).await;
    claim
        .batch_execute(&format!(
            "begin; select from outrigger.replicas where replica = '{owner}' for update; \
             update outrigger.partitions set owner = '{other}' where partition = 0"
        ))
        .await
        .unwrap();
    let tick = tokio::spawn({
        let store = f.store.clone();
        async move { store.tick(owner, true).await.unwrap() }
    });
    let waiting = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    tokio::time::timeout(Duration::from_secs(20), async {
        while f.count(waiting).await == 0 {}
    })
    .await
    .expect("the heartbeat waits for the claim");
    claim.batch_execute("commit").await.unwrap();
    assert_eq!(tick.await.unwrap().partitions[0].owner, Some(other));
}

#[tokio::test]
async fn a_living_owner_keeps_its_partitions_and_a_dead_one_does_not() {
    let f = Fixture::new().await;
    let owner = join(&f, "owner").await;
    assert_eq!(f.store.claim(owner, &[0, 1]).await.unwrap().len(), 2);
    let other = join(&f, "other").await;
    assert!(f.store.claim(other, &[0, 1]).await.unwrap().is_empty());
    // The lease is over, but the newcomer has not been visible for a lease time: a lone owner renews by reading.
    age(&f, owner, "lease_until", 60).await;
    assert!(f.store.claim(other, &[0]).await.unwrap().is_empty());
    assert!(
        f.store
            .tick(other, false)
            .await
            .unwrap()
            .replicas
            .iter()
            .all(|r| r.is_alive())
    );
    age(&f, other, "visible_since", 9).await;
    assert!(f.store.claim(other, &[0]).await.unwrap().is_empty());
    // Visible long enough, but the lease lasts.
    age(&f, other, "visible_since", 60).await;
    age(&f, owner, "lease_until", -5).await;
    assert!(f.store.claim(other, &[0]).await.unwrap().is_empty());
    age(&f, owner, "lease_until", 1).await;
    let dead = f.store.tick(other, false).await.unwrap();
    assert_eq!(
        dead.replicas
            .iter()
            .filter(|r| !r.is_alive())
            .map(|r| r.replica)
            .collect::<Vec<_>>(),
        [owner]
    );
    let claimed = f.store.claim(other, &[0, 5]).await.unwrap();
    assert_eq!(numbers(&claimed), [0, 5]);
    assert_eq!(
        claimed.iter().map(|c| c.unclean).collect::<Vec<_>>(),
        [true, false]
    );
    // An owner that had been working for a while was not killed by the rows it had just taken.
    f.sql(
        "update outrigger.partitions set owned_since = now() - interval '3 minutes' where partition = 2",
    )
    .await;
    let claimed = f.store.claim(other, &[2]).await.unwrap();
    assert_eq!((numbers(&claimed), claimed[0].unclean), (vec![2], false));
    // An owner whose row is gone is dead at once.
    f.sql(&format!(
        "delete from outrigger.replicas where replica = '{owner}'"
    ))
    .await;
    let claimed = f.store.claim(other, &[1]).await.unwrap();
    assert!(claimed[0].unclean);
    // And it may not claim any more itself.
    assert!(f.store.claim(owner, &[9]).await.unwrap().is_empty());
    assert!(!f.store.tick(owner, true).await.unwrap().registered);
}

/// Sets the database's clock back, as far as replicas can tell: what it gave them before is further ahead.
async fn clock_goes_back(f: &Fixture, secs: i32) {
    f.sql(&format!(
        "update outrigger.replicas set lease_until = lease_until + {secs} * interval '1 second', \
         visible_since = visible_since + {secs} * interval '1 second'"
    ))
    .await;
}

#[tokio::test]
async fn a_dead_owner_does_not_outlive_a_clock_that_is_set_back() {
    let f = Fixture::new().await;
    let (dead, alive) = (join(&f, "dead").await, join(&f, "alive").await);
    f.store.claim(dead, &[0]).await.unwrap();
    f.store.claim(alive, &[1]).await.unwrap();
    let newcomer = join(&f, "newcomer").await;
    age(&f, newcomer, "visible_since", 60).await;
    clock_goes_back(&f, 3600).await;
    // Nobody is dead before a lease time by the new clock is over, however long the newcomer had been there by the old one.
    assert!(f.store.claim(newcomer, &[0, 1]).await.unwrap().is_empty());
    f.store.tick(newcomer, true).await.unwrap();
    assert!(f.store.claim(newcomer, &[0, 1]).await.unwrap().is_empty());
    // In that time a living owner renews.
    f.store.tick(alive, true).await.unwrap();
    age(&f, newcomer, "visible_since", 11).await;
    let tick = f.store.tick(newcomer, true).await.unwrap();
    let living = tick.replicas.iter().filter(|r| r.is_alive());
    assert!(tick.may_take_over);
    assert_eq!(living.filter(|r| r.replica == dead).count(), 0);
    let claimed = f.store.claim(newcomer, &[0, 1]).await.unwrap();
    assert_eq!(numbers(&claimed), [0]);
}

#[tokio::test]
async fn a_clock_that_goes_back_by_less_than_a_lease_costs_no_living_owner_anything() {
    let f = Fixture::new().await;
    let (owner, other) = (join(&f, "owner").await, join(&f, "other").await);
    f.store.claim(owner, &[0]).await.unwrap();
    age(&f, other, "visible_since", 60).await;
    // The other's last heartbeat is longer ago than the step; it cannot notice, and the owner has just renewed.
    for (replica, ahead) in [(owner, 19), (other, 9)] {
        age(&f, replica, "lease_until", -ahead).await;
    }
    f.store.tick(other, true).await.unwrap();
    assert!(f.store.claim(other, &[0]).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_newcomer_without_a_heartbeat_takes_nothing_from_anybody() {
    let f = Fixture::new().await;
    let owner = join(&f, "owner").await;
    f.store.claim(owner, &[0]).await.unwrap();
    age(&f, owner, "lease_until", 60).await;
    let newcomer = f.store.register("new", TTL, 16).await.unwrap().replica;
    assert_eq!(
        numbers(&f.store.claim(newcomer, &[0, 1]).await.unwrap()),
        [1]
    );
}

#[tokio::test]
async fn a_heartbeat_in_progress_wins_against_a_claim() {
    let f = Fixture::new().await;
    let (owner, other) = (join(&f, "owner").await, join(&f, "other").await);
    f.store.claim(owner, &[0]).await.unwrap();
    age(&f, owner, "lease_until", 60).await;
    age(&f, other, "visible_since", 60).await;
    let beat = server().await.client(&f.name).await;
    beat.batch_execute(&format!(
        "begin; update outrigger.replicas set lease_until = clock_timestamp() + lease_ttl where replica = '{owner}'"
    ))
    .await
    .unwrap();
    let claim = tokio::spawn({
        let store = f.store.clone();
        async move { store.claim(other, &[0]).await.unwrap() }
    });
    // The claim waits for the heartbeat's row.
    let waiting = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    tokio::time::timeout(Duration::from_secs(20), async {
        while f.count(waiting).await == 0 {}
    })
    .await
    .expect("the claim waits for the heartbeat");
    beat.batch_execute("commit").await.unwrap();
    assert!(claim.await.unwrap().is_empty());
}

#[tokio::test]
async fn release_frees_only_what_is_owned_and_wakes_the_others() {
    let f = Fixture::new().await;
    let (a, b) = (join(&f, "a").await, join(&f, "b").await);
    f.store.claim(a, &[0, 1]).await.unwrap();
    f.store.claim(b, &[2]).await.unwrap();
    let mut listener = crate::waking::listening(&f).await;
    f.store.release(a, &[1, 2]).await.unwrap();
    crate::waking::woken(&mut listener).await;
    let owners: Vec<_> = f
        .store
        .tick(a, false)
        .await
        .unwrap()
        .partitions
        .iter()
        .map(|p| p.owner)
        .collect();
    assert_eq!(owners[..3], [Some(a), None, Some(b)]);
    assert!(!f.store.claim(b, &[1]).await.unwrap()[0].unclean);
}

#[tokio::test]
async fn long_dead_rows_are_swept_unless_they_own_something() {
    let f = Fixture::new().await;
    let (idle, owner, me) = (
        join(&f, "idle").await,
        join(&f, "owner").await,
        join(&f, "me").await,
    );
    f.store.claim(owner, &[0]).await.unwrap();
    for replica in [idle, owner] {
        age(&f, replica, "lease_until", 101).await;
    }
    f.store.unregister(me).await.unwrap();
    let left = f.store.tick(owner, false).await.unwrap().replicas;
    assert_eq!(left.iter().map(|r| r.replica).collect::<Vec<_>>(), [owner]);
}
