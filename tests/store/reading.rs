//! Reading and settling.

use std::collections::HashSet;
use std::time::Duration;

use outrigger::error::{Reason, ReasonCode};
use outrigger::event::{Data, Record};
use outrigger::store::{
    Failing, Failure, FailureState, Partitions, ReadKind, ReadRequest, partition_of,
};

use crate::fixture::{self, Fixture, from_start, request, server, settled};

#[tokio::test]
async fn rows_come_back_as_they_were_written() {
    let f = Fixture::new().await;
    f.sql(
        r#"insert into outbox (id, type, source, subject, key, data, content_type, schema, extensions, headers,
             destination, routing_key, created_at, expires_at)
           values ('6ba7b810-9dad-11d1-80b4-00c04fd430c8', 'order.placed', '/shop', 'order/1', 'o1', '{"a": [1, null]}',
             'application/json', 'https://x/s', '{"traceparent": "00-1"}', '{"h": 1}', 'dest', 'rk',
             '2026-01-02 03:04:05.678901+02', now() + interval '1 hour'),
            ('6ba7b811-9dad-11d1-80b4-00c04fd430c8', 'bin', null, null, null, null, null, null, null, null, null, null,
             'infinity', 'infinity');
           update outbox set data_binary = '\x00ff' where seq = 2"#,
    )
    .await;
    let batch = f.store.read(&from_start()).await.unwrap();
    assert!(!batch.cut);
    let [first, second] = batch.rows.as_slice() else {
        panic!("{batch:?}")
    };
    assert_eq!(first.seq, 1);
    assert_eq!(first.id, "6ba7b810-9dad-11d1-80b4-00c04fd430c8");
    assert_eq!(first.event_type, "order.placed");
    assert_eq!(first.source.as_deref(), Some("/shop"));
    assert_eq!(first.subject.as_deref(), Some("order/1"));
    assert_eq!(first.key.as_deref(), Some("o1"));
    assert_eq!(first.data, Data::Json(r#"{"a": [1, null]}"#.into()));
    assert_eq!(first.content_type.as_deref(), Some("application/json"));
    assert_eq!(first.schema.as_deref(), Some("https://x/s"));
    assert_eq!(
        first.extensions.as_deref(),
        Some(r#"{"traceparent": "00-1"}"#)
    );
    assert_eq!(first.headers.as_deref(), Some(r#"{"h": 1}"#));
    assert_eq!(first.destination.as_deref(), Some("dest"));
    assert_eq!(first.routing_key.as_deref(), Some("rk"));
    assert_eq!(
        first.created_at.unwrap().to_string(),
        "2026-01-02T01:04:05.678901Z"
    );
    let left = first.expires_in.unwrap();
    assert!(
        left > Duration::from_secs(3500) && left <= Duration::from_secs(3600),
        "{left:?}"
    );
    assert!(first.keyed);
    assert_eq!(second.data, Data::Binary(vec![0, 255].into()));
    assert!(!second.keyed);
    assert_eq!(
        (second.created_at, second.expires_in, second.key.clone()),
        (None, None, None)
    );
    let hash = f.count("select hashtextextended('o1', 0)").await;
    assert_eq!(first.hash, hash);
}

#[tokio::test]
async fn an_empty_read_still_carries_the_snapshot() {
    let f = Fixture::new().await;
    let batch = f.store.read(&from_start()).await.unwrap();
    assert!(batch.rows.is_empty() && !batch.cut);
    assert!(batch.holders.unwrap().next_xid > 0);
    let other = f
        .store
        .read(&request(ReadKind::Sweep { after: 0, up_to: 9 }))
        .await
        .unwrap();
    assert_eq!(other.holders, None);
}

#[tokio::test]
async fn open_and_prepared_writers_are_seen_and_their_late_rows_arrive() {
    let f = Fixture::new().await;
    // A transaction that has notified cannot be prepared, so two-phase writers go without the trigger.
    f.sql("select outrigger.attach('outbox', with_trigger => false)")
        .await;
    let server = server().await;
    let writer = server.client(&f.name).await;
    writer
        .batch_execute("begin; insert into outbox (type) values ('late')")
        .await
        .unwrap();
    let xid: i64 = writer
        .query_one("select pg_current_xact_id()::text::int8", &[])
        .await
        .unwrap()
        .get(0);
    let preparer = server.client(&f.name).await;
    preparer
        .batch_execute(
            "begin; insert into outbox (type) values ('prepared'); prepare transaction 'p1'",
        )
        .await
        .unwrap();
    // Holds the lock, but has no transaction id yet.
    let locker = server.client(&f.name).await;
    locker
        .batch_execute("begin; lock table outbox in row exclusive mode")
        .await
        .unwrap();
    // Savepoints have ids of their own; only the outermost counts.
    let nested = server.client(&f.name).await;
    nested
        .batch_execute("begin; select pg_current_xact_id(); savepoint a; insert into outbox (type) values ('n')")
        .await
        .unwrap();
    let nested_xid: i64 = nested
        .query_one("select pg_current_xact_id()::text::int8", &[])
        .await
        .unwrap()
        .get(0);
    // A reader is no holder.
    let reader = server.client(&f.name).await;
    reader
        .batch_execute("begin; select * from outbox")
        .await
        .unwrap();
    f.insert(1, 1).await;

    let batch = f.store.read(&from_start()).await.unwrap();
    assert_eq!(batch.rows.len(), 1, "{batch:?}");
    let holders = batch.holders.unwrap();
    assert_eq!(holders.holders.len(), 4, "{holders:?}");
    assert!(holders.in_progress.contains(&(xid as u32)), "{holders:?}");
    assert!(holders.holders.iter().any(|h| h.xid == Some(xid as u32)));
    assert!(
        holders
            .holders
            .iter()
            .any(|h| h.xid == Some(nested_xid as u32)),
        "{holders:?}"
    );
    assert!(holders.holders.iter().any(|h| h.xid.is_none()));
    let prepared = holders
        .holders
        .iter()
        .find(|h| h.virtual_transaction.starts_with("-1/"))
        .unwrap();
    assert_eq!(
        prepared.virtual_transaction,
        format!("-1/{}", prepared.xid.unwrap())
    );
    assert!(
        holders.in_progress.contains(&prepared.xid.unwrap()),
        "{holders:?}"
    );
    assert!(
        holders
            .in_progress
            .iter()
            .all(|xid| *xid < holders.next_xid)
    );

    let seen = batch.rows[0].seq;
    writer.batch_execute("commit").await.unwrap();
    preparer
        .batch_execute("commit prepared 'p1'")
        .await
        .unwrap();
    for client in [&locker, &nested, &reader] {
        client.batch_execute("rollback").await.unwrap();
    }
    let above = f.seqs(&request(ReadKind::Main { after: Some(seen) })).await;
    assert!(above.is_empty(), "late rows lie below");
    let batch = f.store.read(&from_start()).await.unwrap();
    assert_eq!(batch.rows.len(), 3);
    assert!(batch.rows[0].seq < seen && batch.rows[1].seq < seen);
    assert!(batch.holders.unwrap().holders.is_empty());
}

#[tokio::test]
async fn holders_of_a_partitioned_table_include_writers_of_its_partitions() {
    let f = Fixture::with(
        "create table outbox (seq bigint generated always as identity, id uuid default gen_random_uuid(), type text, \
           published_at timestamptz, primary key (seq)) partition by range (seq); \
         create table outbox_1 partition of outbox for values from (0) to (100)",
        &Default::default(),
    )
    .await;
    let writer = server().await.client(&f.name).await;
    // Since PostgreSQL 17 a partition has its parent's identity column; before, it has a plain one.
    writer
        .batch_execute(
            "begin; insert into outbox_1 (seq, type) overriding system value values (5, 'x')",
        )
        .await
        .unwrap();
    let holders = f.store.read(&from_start()).await.unwrap().holders.unwrap();
    assert_eq!(holders.holders.len(), 1, "{holders:?}");
}

#[tokio::test]
async fn exclusions_bounds_and_partitions() {
    let f = Fixture::new().await;
    f.insert(40, 8).await;
    f.sql("insert into outbox (type, available_at) values ('later', now() + interval '1 hour')")
        .await;
    let all = f.store.read(&from_start()).await.unwrap().rows;
    assert_eq!(
        all.iter().map(|r| r.seq).collect::<Vec<_>>(),
        (1..=40).collect::<Vec<_>>()
    );

    let main = |after| ReadRequest {
        ..request(ReadKind::Main { after })
    };
    assert_eq!(f.seqs(&main(Some(38))).await, [39, 40]);
    assert_eq!(
        f.seqs(&request(ReadKind::Sweep { after: 3, up_to: 5 }))
            .await,
        [4, 5]
    );
    let known = ReadRequest {
        known: vec![1, 2, 4],
        limit: 2,
        ..from_start()
    };
    assert_eq!(f.seqs(&known).await, [3, 5]);
    let skip = ReadRequest {
        skip_keys: vec![all[0].hash, all[1].hash],
        limit: 3,
        ..from_start()
    };
    assert_eq!(f.seqs(&skip).await, [3, 4, 5]);
    let catch_up = request(ReadKind::CatchUp {
        after: 1,
        up_to: 32,
        keys: vec![all[0].hash],
    });
    assert_eq!(f.seqs(&catch_up).await, [9, 17, 25]);

    let mut seen = HashSet::new();
    for partition in 0..3 {
        let request = ReadRequest {
            partitions: Partitions::Some {
                owned: vec![partition],
                count: 3,
            },
            ..from_start()
        };
        for row in f.store.read(&request).await.unwrap().rows {
            assert_eq!(partition_of(row.hash, 3), partition);
            assert!(seen.insert(row.seq));
        }
    }
    assert_eq!(seen.len(), 40);
    assert!(
        all.iter().any(|row| row.hash < 0),
        "the negative remainder is covered"
    );
}

#[tokio::test]
async fn limits_cut_and_say_so() {
    let f = Fixture::new().await;
    f.sql("insert into outbox (type, data) select 't', to_jsonb(repeat('x', 10000)) from generate_series(1, 20)").await;
    let weight = f.store.read(&from_start()).await.unwrap().rows[0].weight();
    let bytes = |byte_limit| ReadRequest {
        byte_limit,
        ..from_start()
    };
    for (limit, rows) in [(1, 1), (weight * 3, 3), (weight * 3 - 1, 2)] {
        let batch = f.store.read(&bytes(limit)).await.unwrap();
        assert_eq!((batch.rows.len(), batch.cut), (rows, true), "{limit}");
        assert!(batch.holders.is_some());
    }
    let batch = f
        .store
        .read(&ReadRequest {
            limit: 20,
            ..from_start()
        })
        .await
        .unwrap();
    assert!(batch.cut);
    let batch = f
        .store
        .read(&ReadRequest {
            limit: 21,
            ..from_start()
        })
        .await
        .unwrap();
    assert_eq!((batch.rows.len(), batch.cut), (20, false));
}

async fn failing_rows(f: &Fixture, of: &Partitions) -> Vec<Failing> {
    f.store.load_failing(of, (100, 9)).await.unwrap().failing
}

fn failure(row: &Record, state: FailureState, retry_after: Option<Duration>) -> Failure {
    Failure {
        reason: Some(Reason::new(ReasonCode::Nack, "queue full\0")),
        retry_after,
        ..fixture::failure(row, state)
    }
}

#[tokio::test]
async fn failing_rows_leave_the_main_reads_and_come_back_as_retries() {
    let f = Fixture::new().await;
    f.insert(6, 6).await;
    let rows = f.store.read(&from_start()).await.unwrap().rows;
    let me = f
        .store
        .register("a", Duration::from_secs(10), 4)
        .await
        .unwrap();
    f.store.claim(me.replica, &[0, 1, 2, 3]).await.unwrap();
    let mut stored = f
        .store
        .record_failures(
            &[
                failure(&rows[0], FailureState::Retrying, Some(Duration::ZERO)),
                failure(
                    &rows[1],
                    FailureState::Retrying,
                    Some(Duration::from_secs(3600)),
                ),
                failure(&rows[2], FailureState::Blocked, None),
                failure(&rows[3], FailureState::Dead, None),
                failure(&rows[4], FailureState::Suspect, None),
            ],
            me.replica,
        )
        .await
        .unwrap();
    stored.sort_unstable();
    assert_eq!(stored, [1, 2, 3, 4, 5]);
    let batch = f.store.read(&from_start()).await.unwrap();
    // The suspect is read in its place, with its counts.
    let read: Vec<_> = batch
        .rows
        .iter()
        .map(|r| (r.seq, r.attempts, r.crashes))
        .collect();
    assert_eq!(read, [(5, 3, 2), (6, 0, 0)]);
    let retries = f.store.read(&request(ReadKind::Retries)).await.unwrap();
    let read: Vec<_> = retries
        .rows
        .iter()
        .map(|r| (r.seq, r.attempts, r.crashes))
        .collect();
    assert_eq!(read, [(1, 3, 2)]);
    let due = f.store.tick(me.replica, false).await.unwrap().next_due_in;
    assert_eq!(due, Some(Duration::ZERO));

    // A catch-up read brings failed rows in the order of their key, and says when they may go; dead ones
    // are over.
    let catch_up = request(ReadKind::CatchUp {
        after: 0,
        up_to: i64::MAX,
        keys: rows.iter().map(|row| row.hash).collect(),
    });
    let caught_up = f.store.read(&catch_up).await.unwrap().rows;
    let seqs: Vec<i64> = caught_up.iter().map(|row| row.seq).collect();
    assert_eq!(seqs, [1, 2, 3, 5, 6]);
    assert_eq!(caught_up[0].retry_in, Some(Duration::ZERO));
    assert!(caught_up[1].retry_in > Some(Duration::from_secs(3500)));
    assert!(caught_up[1].retry_in <= Some(Duration::from_secs(3600)));
    assert_eq!(caught_up[2].retry_in, Some(Duration::MAX));
    assert_eq!((caught_up[3].retry_in, caught_up[3].crashes), (None, 2));
    assert_eq!((caught_up[4].retry_in, caught_up[4].attempts), (None, 0));

    let failing = failing_rows(&f, &Partitions::All).await;
    let states: Vec<_> = failing.iter().map(|x| (x.seq, x.state)).collect();
    assert_eq!(
        states,
        [
            (1, FailureState::Retrying),
            (2, FailureState::Retrying),
            (3, FailureState::Blocked)
        ]
    );
    assert_eq!(failing[0].retry_in, Duration::ZERO);
    assert!(failing[1].retry_in > Duration::from_secs(3500));
    let mine = Partitions::Some {
        owned: vec![partition_of(rows[2].hash, 4)],
        count: 4,
    };
    let loaded = failing_rows(&f, &mine).await;
    assert!(loaded.iter().any(|x| x.seq == 3));
    assert!(
        loaded
            .iter()
            .all(|x| partition_of(x.hash, 4) == partition_of(rows[2].hash, 4))
    );

    // A second failure keeps the first time.
    f.sql("update outrigger.failures set first_failed_at = '2020-01-01', last_failed_at = '2020-01-01' where seq = 1").await;
    f.store
        .record_failures(&[failure(&rows[0], FailureState::Dead, None)], me.replica)
        .await
        .unwrap();
    let kept = "select count(*) from outrigger.failures where seq = 1 and state = 'dead' and reason = 'nack' \
                and error = 'queue full' and first_failed_at = '2020-01-01' and last_failed_at > '2020-01-02'";
    assert_eq!(f.count(kept).await, 1);

    f.store
        .settle(&settled(&f.store, &[1, 6], &[1]).await)
        .await
        .unwrap();
    assert_eq!(
        f.count("select count(*) from outrigger.failures where seq = 1")
            .await,
        0
    );
    assert_eq!(
        f.count("select count(*) from outbox where published_at is not null")
            .await,
        2
    );
}

#[tokio::test]
async fn a_record_ends_with_its_row() {
    let f = Fixture::new().await;
    f.insert(6, 6).await;
    let me = f
        .store
        .register("a", Duration::from_secs(10), 4)
        .await
        .unwrap();
    f.store.claim(me.replica, &[0, 1, 2, 3]).await.unwrap();
    let rows = f.store.read(&from_start()).await.unwrap().rows;
    let states = [
        FailureState::Retrying,
        FailureState::Retrying,
        FailureState::Blocked,
        FailureState::Suspect,
        FailureState::Dead,
        FailureState::Retrying,
    ];
    let failures: Vec<_> = rows
        .iter()
        .zip(states)
        .map(|(row, state)| failure(row, state, Some(Duration::ZERO)))
        .collect();
    f.store
        .record_failures(&failures, me.replica)
        .await
        .unwrap();
    // By hand, behind the relay's back.
    f.sql(
        "delete from outbox where seq in (1, 5); \
         update outbox set published_at = now() where seq in (2, 3, 4)",
    )
    .await;
    let nobody = Partitions::Some {
        owned: Vec::new(),
        count: 4,
    };
    assert_eq!(failing_rows(&f, &nobody).await, []);
    let left = "select count(*) from outrigger.failures";
    assert_eq!(
        f.count(left).await,
        6,
        "other partitions are others' business"
    );
    let loaded = failing_rows(&f, &Partitions::All).await;
    let seqs: Vec<i64> = loaded.iter().map(|failing| failing.seq).collect();
    assert_eq!(seqs, [6]);
    let left = "select count(*) from outrigger.failures where (seq, state) <> (6, 'retrying')";
    assert_eq!(f.count(left).await, 0);
}

#[tokio::test]
async fn failures_are_fenced_by_ownership() {
    let f = Fixture::new().await;
    f.insert(20, 20).await;
    let rows = f.store.read(&from_start()).await.unwrap().rows;
    let me = f
        .store
        .register("a", Duration::from_secs(10), 4)
        .await
        .unwrap()
        .replica;
    let other = f
        .store
        .register("b", Duration::from_secs(10), 4)
        .await
        .unwrap()
        .replica;
    f.store.claim(me, &[0, 1]).await.unwrap();
    f.store.claim(other, &[2, 3]).await.unwrap();
    let all: Vec<_> = rows
        .iter()
        .map(|row| failure(row, FailureState::Dead, None))
        .collect();
    let mut stored = f.store.record_failures(&all, me).await.unwrap();
    stored.sort_unstable();
    let expected: Vec<_> = rows
        .iter()
        .filter(|r| partition_of(r.hash, 4) < 2)
        .map(|r| r.seq)
        .collect();
    assert!(!expected.is_empty() && expected.len() < 20);
    assert_eq!(stored, expected);
    assert_eq!(
        f.count("select count(*) from outrigger.failures").await,
        expected.len() as i64
    );
}

#[tokio::test]
async fn a_number_that_is_drawn_again_is_another_row() {
    let f = Fixture::new().await;
    f.insert(3, 3).await;
    let me = f
        .store
        .register("a", Duration::from_secs(10), 4)
        .await
        .unwrap()
        .replica;
    f.store.tick(me, true).await.unwrap();
    f.store.claim(me, &[0, 1, 2, 3]).await.unwrap();
    let rows = f.store.read(&from_start()).await.unwrap().rows;
    let settle = settled(&f.store, &[1, 2, 3], &[]).await;
    // A failover loses the last two rows, and the new primary draws their numbers for other events.
    f.sql("delete from outbox where seq > 1; alter table outbox alter column seq restart with 2")
        .await;
    f.insert(2, 2).await;
    let failures = [1, 2].map(|row: usize| failure(&rows[row], FailureState::Dead, None));
    assert_eq!(
        f.store.record_failures(&failures, me).await.unwrap(),
        Vec::<i64>::new()
    );
    assert_eq!(f.store.settle(&settle).await.unwrap(), []);
    assert_eq!(f.seqs(&from_start()).await, [2, 3]);
}

#[tokio::test]
async fn delayed_rows_become_due_in_their_order() {
    let f = Fixture::new().await;
    f.sql(
        "insert into outbox (type, available_at) values ('b', now() - interval '1 second'), \
         ('a', now() - interval '2 seconds'), ('c', now() + interval '1 hour'), ('d', null)",
    )
    .await;
    assert_eq!(f.seqs(&request(ReadKind::Due)).await, [2, 1]);
    assert_eq!(f.seqs(&from_start()).await, [1, 2, 4]);
    let me = f
        .store
        .register("a", Duration::from_secs(10), 4)
        .await
        .unwrap()
        .replica;
    assert_eq!(
        f.store.tick(me, true).await.unwrap().next_due_in,
        Some(Duration::ZERO)
    );
    f.store
        .settle(&settled(&f.store, &[1, 2], &[]).await)
        .await
        .unwrap();
    let due = f.store.tick(me, true).await.unwrap().next_due_in.unwrap();
    assert!(due > Duration::from_secs(3500), "{due:?}");
}
