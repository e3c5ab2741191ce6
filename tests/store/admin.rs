//! Operators' commands and replay.

use std::time::Duration;

use outrigger::store::FailureState;
use outrigger::store::postgres::admin::FailureFilter;
use outrigger::store::postgres::emit::NewEvent;
use outrigger::store::postgres::mapping::Field;
use outrigger::store::postgres::replay::{ReplayFilter, ReplayMode};

use crate::fixture::{Fixture, from_start, settled};

async fn fail(f: &Fixture, seq: i64, state: &str, age_secs: i64) {
    f.sql(&format!(
        "insert into outrigger.failures (outbox, seq, hash, keyed, event_id, event_type, key, state, attempts, crashes, reason, \
           error, last_failed_at) select 'public.outbox', seq, 1, true, id::text, type, key, '{state}', 5, 1, 'nack', 'full', \
           now() - {age_secs} * interval '1 second' from outbox where seq = {seq}"
    ))
    .await;
}

async fn version(f: &Fixture) -> i64 {
    f.count("select failures_version from outrigger.outboxes")
        .await
}

#[tokio::test]
async fn status_counts() {
    let f = Fixture::new().await;
    let empty = f.store.status().await.unwrap();
    assert_eq!(
        (empty.pending, empty.oldest_pending, empty.partitions),
        (0, None, None)
    );
    f.insert(5, 5).await;
    f.sql("update outbox set created_at = now() - interval '1 hour' where seq = 2")
        .await;
    f.store
        .settle(&settled(&f.store, &[1], &[]).await)
        .await
        .unwrap();
    fail(&f, 3, "dead", 0).await;
    fail(&f, 4, "blocked", 0).await;
    let me = f
        .store
        .register("pod-1", Duration::from_secs(10), 4)
        .await
        .unwrap()
        .replica;
    f.store.claim(me, &[1, 3]).await.unwrap();
    assert!(f.store.pause(Some("broker upgrade")).await.unwrap());
    assert!(
        !f.store.pause(None).await.unwrap(),
        "the first reason stays"
    );
    let status = f.store.status().await.unwrap();
    assert_eq!((status.pending, status.pending_capped), (3, false));
    assert!(status.oldest_pending.unwrap() >= Duration::from_secs(3600));
    assert_eq!((status.retrying, status.blocked, status.dead), (0, 1, 1));
    assert_eq!((status.partitions, status.unowned), (Some(4), 2));
    assert_eq!(status.replicas[0].partitions, [1, 3]);
    assert!(status.replicas[0].lease_left > Duration::from_secs(5));
    assert_eq!(status.paused.unwrap().1.as_deref(), Some("broker upgrade"));
    assert!(f.store.tick(me, false).await.unwrap().paused);
    assert!(f.store.resume().await.unwrap());
    assert!(!f.store.resume().await.unwrap());
    f.sql("insert into outbox (type) select 't' from generate_series(1, 100001)")
        .await;
    let status = f.store.status().await.unwrap();
    assert_eq!((status.pending, status.pending_capped), (100_000, true));
}

#[tokio::test]
async fn failures_are_selected_by_every_condition() {
    let f = Fixture::new().await;
    f.insert(4, 2).await;
    fail(&f, 1, "dead", 100).await;
    fail(&f, 2, "dead", 10).await;
    fail(&f, 3, "blocked", 10).await;
    // A suspect has not failed; nobody retries or discards it by accident.
    fail(&f, 4, "suspect", 10).await;
    let id = f.store.read(&from_start()).await.unwrap().rows[0]
        .id
        .clone();
    let filters: [(FailureFilter, &[i64]); 9] = [
        (
            FailureFilter {
                states: vec![FailureState::Suspect],
                ..Default::default()
            },
            &[4],
        ),
        (FailureFilter::default(), &[1, 2, 3]),
        (
            FailureFilter {
                states: vec![FailureState::Dead],
                ..Default::default()
            },
            &[1, 2],
        ),
        (
            FailureFilter {
                key: Some("k1".into()),
                ..Default::default()
            },
            &[1, 3],
        ),
        (
            FailureFilter {
                event_type: Some("none".into()),
                ..Default::default()
            },
            &[],
        ),
        (
            FailureFilter {
                events: vec![id],
                states: vec![FailureState::Suspect],
                ..Default::default()
            },
            &[4],
        ),
        (
            FailureFilter {
                older_than: Some(Duration::from_secs(60)),
                ..Default::default()
            },
            &[1],
        ),
        (
            FailureFilter {
                newer_than: Some(Duration::from_secs(60)),
                ..Default::default()
            },
            &[2, 3],
        ),
        (
            FailureFilter {
                limit: Some(1),
                reason: Some("nack".into()),
                ..Default::default()
            },
            &[1],
        ),
    ];
    for (filter, expected) in filters {
        let found = f.store.failures(&filter).await.unwrap();
        assert_eq!(
            found.iter().map(|row| row.seq).collect::<Vec<_>>(),
            expected,
            "{filter:?}"
        );
    }
    let row = &f.store.failures(&FailureFilter::default()).await.unwrap()[0];
    assert_eq!(
        (row.attempts, row.crashes, row.error.as_deref()),
        (5, 1, Some("full"))
    );
}

#[tokio::test]
async fn retry_and_discard_tell_the_relays() {
    let f = Fixture::new().await;
    f.insert(3, 3).await;
    for seq in 1..=3 {
        fail(&f, seq, "dead", 0).await;
    }
    let none = FailureFilter {
        key: Some("none".into()),
        ..Default::default()
    };
    assert_eq!(
        (
            f.store.retry(&none).await.unwrap(),
            f.store.discard(&none).await.unwrap()
        ),
        (0, 0)
    );
    assert_eq!(version(&f).await, 0);
    let first = FailureFilter {
        limit: Some(1),
        ..Default::default()
    };
    assert_eq!(f.store.retry(&first).await.unwrap(), 1);
    assert_eq!(version(&f).await, 1);
    let retried = "select count(*) from outrigger.failures where seq = 1 and state = 'retrying' and attempts = 0 \
                   and next_attempt_at <= clock_timestamp()";
    assert_eq!(f.count(retried).await, 1);
    let dead = FailureFilter {
        states: vec![FailureState::Dead],
        limit: Some(1),
        ..Default::default()
    };
    assert_eq!(f.store.discard(&dead).await.unwrap(), 1);
    assert_eq!(version(&f).await, 2);
    assert_eq!(
        f.count("select count(*) from outbox where published_at is not null and seq = 2")
            .await,
        1
    );
    assert_eq!(f.count("select count(*) from outrigger.failures").await, 2);
}

#[tokio::test]
async fn replay_reopens_or_copies() {
    let f = Fixture::new().await;
    f.insert(10, 5).await;
    f.sql("update outbox set published_at = now() where seq <= 8")
        .await;
    let filter = ReplayFilter {
        from_seq: Some(2),
        to_seq: Some(9),
        ..Default::default()
    };
    assert_eq!(f.store.replay_count(&filter).await.unwrap().matching, 7);
    let mut heard = Vec::new();
    let total = f
        .store
        .replay(&filter, ReplayMode::SameIds, 3, |n| heard.push(n))
        .await
        .unwrap();
    assert_eq!((total, heard.as_slice()), (7, &[3, 6, 7][..]));
    assert!(version(&f).await > 0);
    assert_eq!(f.seqs(&from_start()).await, (2..=10).collect::<Vec<_>>());

    f.sql("update outbox set published_at = now()").await;
    let keyed = ReplayFilter {
        key: Some("k1".into()),
        event_type: Some("t".into()),
        ..Default::default()
    };
    assert_eq!(
        f.store
            .replay(&keyed, ReplayMode::NewIds, 1, |_| {})
            .await
            .unwrap(),
        2
    );
    let copies = f.store.read(&from_start()).await.unwrap().rows;
    assert_eq!(
        copies.iter().map(|row| row.seq).collect::<Vec<_>>(),
        [11, 12]
    );
    assert!(copies.iter().all(|row| row.key.as_deref() == Some("k1")));
    assert_eq!(f.count("select count(distinct id) from outbox").await, 12);
    let future = ReplayFilter {
        from: Some("2100-01-01T00:00:00Z".parse().unwrap()),
        ..Default::default()
    };
    assert_eq!(f.store.replay_count(&future).await.unwrap().matching, 0);
    let id = ReplayFilter {
        ids: vec![copies[0].id.clone()],
        ..Default::default()
    };
    assert_eq!(
        f.store.replay_count(&id).await.unwrap().matching,
        0,
        "pending rows are not replayed"
    );
}

#[tokio::test]
async fn emit_and_tail() {
    let f = Fixture::new().await;
    let start = f.store.last_seq().await.unwrap();
    let fields = vec![
        (Field::Type, "order.placed".to_owned()),
        (Field::Data, r#"{"a":1}"#.to_owned()),
        (Field::AvailableAt, "2020-01-01T00:00:00Z".to_owned()),
    ];
    let id = f.store.emit(&NewEvent { fields }).await.unwrap();
    let given = vec![(Field::Id, id.clone()), (Field::Type, "x".to_owned())];
    assert_eq!(f.store.emit(&NewEvent { fields: given }).await.unwrap(), id);
    f.store
        .settle(&settled(&f.store, &[1], &[]).await)
        .await
        .unwrap();
    fail(&f, 2, "dead", 0).await;
    let rows = f.store.tail(start, 10).await.unwrap();
    let seen: Vec<_> = rows
        .iter()
        .map(|row| (row.record.seq, row.published, row.failure))
        .collect();
    assert_eq!(
        seen,
        [(1, true, None), (2, false, Some(FailureState::Dead))]
    );
    assert_eq!(rows[0].record.id, id);
    let broken = NewEvent {
        fields: vec![(Field::Type, "t".into()), (Field::Data, "{secret".into())],
    };
    let error = f.store.emit(&broken).await.unwrap_err().to_string();
    assert!(!error.contains("secret"), "{error}");
}

#[tokio::test]
async fn an_emitted_event_waits_for_other_writers_of_its_key() {
    let f = Fixture::new().await;
    let writer = crate::fixture::server().await.client(&f.name).await;
    writer
        .batch_execute("begin; select outrigger.emit('first', key => 'k')")
        .await
        .unwrap();
    let emit = tokio::spawn({
        let store = f.store.clone();
        let fields = vec![
            (Field::Type, "second".to_owned()),
            (Field::Key, "k".to_owned()),
        ];
        async move { store.emit(&NewEvent { fields }).await.unwrap() }
    });
    let waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted \
                   and database = (select oid from pg_database where datname = current_database())";
    tokio::time::timeout(Duration::from_secs(20), async {
        while f.count(waiting).await == 0 {}
    })
    .await
    .expect("the second event waits");
    writer
        .batch_execute("select outrigger.emit('also first', key => 'k'); commit")
        .await
        .unwrap();
    emit.await.unwrap();
    let types: Vec<_> = f
        .store
        .read(&from_start())
        .await
        .unwrap()
        .rows
        .into_iter()
        .map(|row| row.event_type)
        .collect();
    assert_eq!(types, ["first", "also first", "second"]);
}
