//! Numbers that are drawn again, for other events, while failure records of the first ones are still there.

use std::time::Duration;

use outrigger::event::Record;
use outrigger::store::postgres::OutboxSettings;
use outrigger::store::postgres::admin::FailureFilter;
use outrigger::store::{Failure, FailureState, Partitions, ReadKind, ReadRequest};
use uuid::Uuid;

use crate::fixture::{Fixture, database, failure, from_start, request, server, settled};

const STATES: [FailureState; 4] = [
    FailureState::Dead,
    FailureState::Blocked,
    FailureState::Retrying,
    FailureState::Suspect,
];

/// What a table is replaced by: its name, and the statements. `migrate` runs afterwards.
const WAYS: [(&str, &str); 5] = [
    ("truncate", "truncate outbox restart identity"),
    (
        "restart of the sequence",
        "delete from outbox; alter table outbox alter column seq restart",
    ),
    ("drop and migrate", "drop table outbox"),
    (
        "swap of tables",
        "create table fresh (like outbox including all); alter table outbox rename to old; alter table fresh rename to outbox",
    ),
    (
        "restore of the outbox alone",
        "create table kept as select * from outbox where seq < 3; truncate outbox; \
         insert into outbox (seq, id, type, key) overriding system value select seq, id, type, key from kept; \
         select setval(pg_get_serial_sequence('outbox', 'seq'), 2)",
    ),
];

async fn owner(f: &Fixture) -> Uuid {
    let me = f.store.register("a", Duration::from_secs(10), 4).await;
    let me = me.unwrap().replica;
    f.store.claim(me, &[0, 1, 2, 3]).await.unwrap();
    me
}

/// A table whose row 3 has a record, and then another row 3, of the same key.
async fn drawn_again(state: FailureState, way: &str) -> (Fixture, Uuid, Record) {
    let f = Fixture::new().await;
    f.insert(3, 1).await;
    let me = owner(&f).await;
    let rows = f.store.read(&from_start()).await.unwrap().rows;
    let failed = [failure(&rows[2], state)];
    assert_eq!(f.store.record_failures(&failed, me).await.unwrap(), [3]);
    f.sql(way).await;
    let url = server().await.url(&f.name);
    database(&url, &OutboxSettings::default())
        .migrate(true)
        .await
        .unwrap();
    let left = f.count("select count(*) from outbox").await;
    f.sql(&format!(
        "insert into outbox (type, key) select 't', 'k0' from generate_series({left} + 1, 3)"
    ))
    .await;
    (f, me, rows[2].clone())
}

#[tokio::test]
async fn a_record_says_nothing_about_the_next_event_with_its_number() {
    for state in STATES {
        for (name, way) in WAYS {
            let what = format!("{} after {name}", state.as_str());
            let (f, me, first) = drawn_again(state, way).await;
            let rows = f.store.read(&from_start()).await.unwrap().rows;
            let read: Vec<_> = rows
                .iter()
                .map(|row| (row.seq, row.attempts, row.crashes))
                .collect();
            assert_eq!(read, [(1, 0, 0), (2, 0, 0), (3, 0, 0)], "{what}");
            assert_ne!(rows[2].id, first.id, "{what}");
            let catch_up = ReadRequest {
                limit: 10,
                ..request(ReadKind::CatchUp {
                    after: 0,
                    up_to: 9,
                    keys: vec![rows[2].hash],
                })
            };
            let caught_up = f.store.read(&catch_up).await.unwrap().rows;
            assert_eq!(caught_up.len(), 3, "{what}");
            assert_eq!(caught_up[2].retry_in, None, "{what}");
            let retries = f.seqs(&request(ReadKind::Retries)).await;
            assert_eq!(retries, Vec::<i64>::new(), "{what}");
            let backlog = f.store.backlog(None).await.unwrap();
            assert_eq!(backlog.oldest_failing, None, "{what}");
            assert_eq!(f.store.status().await.unwrap().pending, 3, "{what}");
            let tail = f.store.tail(0, 10).await.unwrap();
            assert!(tail.iter().all(|row| row.failure.is_none()), "{what}");

            // The next event fails itself: its record takes the place of the old one, with nothing of it left.
            let next = Failure {
                attempts: 1,
                crashes: 0,
                event_type: "other".into(),
                key: Some("k0".into()),
                ..failure(&rows[2], FailureState::Dead)
            };
            f.sql("update outrigger.failures set first_failed_at = '2020-01-01', hash = hash + 1")
                .await;
            let stored = f.store.record_failures(&[next], me).await.unwrap();
            assert_eq!(stored, [3], "{what}");
            let replaced = format!(
                "select count(*) from outrigger.failures where seq = 3 and event_id = '{}' and hash = {} and attempts = 1 \
                 and event_type = 'other' and state = 'dead' and first_failed_at > '2020-01-02'",
                rows[2].id, rows[2].hash
            );
            assert_eq!(f.count(&replaced).await, 1, "{what}");
        }
    }
}

#[tokio::test]
async fn records_of_rows_that_are_gone_do_not_stay() {
    for state in STATES {
        for (name, way) in WAYS {
            let what = format!("{} after {name}", state.as_str());
            let (f, _, _) = drawn_again(state, way).await;
            let loaded = f
                .store
                .load_failing(&Partitions::All, (10, 9))
                .await
                .unwrap();
            assert_eq!(loaded.failing, [], "{what}");
            let any = FailureFilter {
                states: STATES.to_vec(),
                ..FailureFilter::default()
            };
            assert_eq!(f.store.failures(&any).await.unwrap(), [], "{what}");
        }
    }
}

#[tokio::test]
async fn a_dead_event_keeps_its_record_as_long_as_its_row_is_there() {
    let f = Fixture::new().await;
    f.insert(2, 2).await;
    let me = owner(&f).await;
    let rows = f.store.read(&from_start()).await.unwrap().rows;
    let dead: Vec<_> = rows
        .iter()
        .map(|row| failure(row, FailureState::Dead))
        .collect();
    f.store.record_failures(&dead, me).await.unwrap();
    f.store
        .load_failing(&Partitions::All, (10, 9))
        .await
        .unwrap();
    assert_eq!(f.store.status().await.unwrap().dead, 2);
    f.sql("delete from outbox where seq = 1").await;
    f.store
        .load_failing(&Partitions::All, (10, 9))
        .await
        .unwrap();
    assert_eq!(f.store.status().await.unwrap().dead, 1);
}

#[tokio::test]
async fn settling_removes_no_record_of_another_event() {
    let (f, _, first) = drawn_again(FailureState::Retrying, WAYS[0].1).await;
    let mut settle = settled(&f.store, &[3], &[3]).await;
    f.store.settle(&settle).await.unwrap();
    let records = "select count(*) from outrigger.failures";
    assert_eq!(f.count(records).await, 1);
    // The event before, confirmed late: neither the row nor anything else is its own any more.
    f.sql("update outbox set published_at = null").await;
    settle.rows[0].id = first.id;
    f.store.settle(&settle).await.unwrap();
    let marked = "select count(*) from outbox where published_at is not null";
    assert_eq!(f.count(marked).await, 0);
}

#[tokio::test]
async fn ids_of_any_kind_name_a_row() {
    for (kind, first, second) in [
        ("text", "'a''b'", "'a''c'"),
        ("varchar(40)", "'é '", "'é'"),
        ("char(8)", "'x'", "'y'"),
        ("bigint", "7", "8"),
        ("uuid", "'00000000-0000-0000-0000-00000000000a'", "null"),
    ] {
        let ddl = format!(
            "create table outbox (seq bigserial primary key, id {kind}, type text not null default 't', key text default 'k', \
               data jsonb, published_at timestamptz); insert into outbox (id) values ({first})"
        );
        let f = Fixture::with(&ddl, &OutboxSettings::default()).await;
        let me = owner(&f).await;
        let rows = f.store.read(&from_start()).await.unwrap().rows;
        let dead = failure(&rows[0], FailureState::Dead);
        assert_eq!(f.store.record_failures(&[dead], me).await.unwrap(), [1]);
        assert_eq!(f.seqs(&from_start()).await, Vec::<i64>::new(), "{kind}");
        f.sql(&format!(
            "truncate outbox restart identity; insert into outbox (id) values ({second})"
        ))
        .await;
        assert_eq!(f.seqs(&from_start()).await, [1], "{kind}");
    }
}
