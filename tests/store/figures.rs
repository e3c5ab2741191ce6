//! Figures for metrics, against what is in the tables.

use std::time::Duration;

use outrigger::store::postgres::figures::BACKLOG_COUNTED_MAX;
use outrigger::store::postgres::{AfterPublish, OutboxSettings, Preset};
use tokio_postgres::SimpleQueryMessage;

use crate::fixture::Fixture;

/// A failure record of this row, as a relay would write it.
async fn failed(f: &Fixture, seq: i64, state: &str) {
    f.sql(&format!(
        "insert into outrigger.failures (outbox, seq, hash, keyed, event_id, event_type, state, attempts, crashes, reason) \
         select 'public.outbox', seq, 0, key is not null, id::text, type, '{state}', 1, 0, 'nack' from outbox where seq = {seq}"
    ))
    .await;
}

#[tokio::test]
async fn the_backlog_is_what_is_due_and_not_settled() {
    let f = Fixture::new().await;
    let none = f.store.backlog(None).await.unwrap();
    assert_eq!(
        (none.rows, none.oldest, none.oldest_failing),
        (0, None, None)
    );
    let now = f
        .count("select (extract(epoch from clock_timestamp()) * 1000000)::int8")
        .await;
    let apart = Duration::from_micros(none.clock.abs_diff(now));
    assert!(apart < Duration::from_secs(300), "{apart:?}");

    f.insert(10, 3).await;
    f.sql(
        "update outbox set published_at = now() where seq <= 2; \
         update outbox set created_at = now() - interval '1 hour' where seq = 4; \
         update outbox set created_at = now() - interval '2 hours' where seq = 5; \
         update outbox set created_at = now() - interval '3 hours' where seq = 6; \
         update outbox set available_at = now() + interval '1 hour' where seq = 7; \
         update outbox set created_at = now() - interval '9 hours', available_at = now() - interval '1 minute' where seq = 3",
    )
    .await;
    failed(&f, 5, "retrying").await;
    failed(&f, 6, "dead").await;
    failed(&f, 8, "blocked").await;
    failed(&f, 9, "suspect").await;
    let all = f.store.backlog(None).await.unwrap();
    // 3, 4, 9, 10 and the two that failed; neither the dead nor the delayed one.
    assert_eq!((all.rows, all.estimated), (6, false));
    assert_eq!((all.retrying, all.blocked, all.dead), (1, 1, 1));
    let within = |age: Option<Duration>, minutes: u64| {
        let age = age.unwrap().as_secs();
        assert!(
            (60 * minutes..60 * minutes + 300).contains(&age),
            "{age} s, not {minutes} min"
        );
    };
    // The first in order, which became due a minute ago.
    within(all.oldest, 1);
    within(all.oldest_failing, 120);
    let above = f.store.backlog(Some(3)).await.unwrap();
    assert_eq!(above.rows, 5);
    within(above.oldest, 60);
}

#[tokio::test]
async fn a_large_backlog_is_estimated_by_the_numbers_above() {
    let f = Fixture::new().await;
    f.insert(BACKLOG_COUNTED_MAX + 5_000, 100).await;
    let all = f.store.backlog(None).await.unwrap();
    assert_eq!(
        (all.rows, all.estimated),
        (BACKLOG_COUNTED_MAX as u64 + 5_000, true)
    );
    let above = f.store.backlog(Some(5_000)).await.unwrap();
    assert_eq!(
        (above.rows, above.estimated),
        (BACKLOG_COUNTED_MAX as u64, false)
    );
}

#[tokio::test]
async fn counting_touches_neither_history_nor_more_than_its_limit() {
    let f = Fixture::new().await;
    // Published history below, a backlog far beyond what is counted above.
    f.sql(
        "insert into outbox (type, published_at) select 't', now() from generate_series(1, 50000); \
         insert into outbox (type) select 't' from generate_series(1, 50000)",
    )
    .await;
    // As autovacuum does.
    f.sql("analyze outbox").await;
    f.sql("select pg_stat_reset()").await;
    let rows = f.store.backlog(Some(50_000)).await.unwrap().rows;
    assert_eq!(rows, 50_000);
    // What a session did is told when it is idle for a while; asked for until it is there.
    let fetched = "select coalesce(idx_tup_fetch, 0) + coalesce(seq_tup_read, 0) from pg_stat_user_tables where relname = 'outbox'";
    let mut seen = 0;
    let began = std::time::Instant::now();
    while seen == 0 && began.elapsed() < Duration::from_secs(60) {
        // Another statement of the same pool hands the figures in.
        f.store.upkeep().await.unwrap();
        seen = f.count(fetched).await;
    }
    let most = 2 * BACKLOG_COUNTED_MAX + 100;
    assert!(
        (1..=most).contains(&seen),
        "{seen} rows looked at, at most {most} expected"
    );
}

#[tokio::test]
async fn a_table_without_order_or_times_is_counted_as_far_as_it_goes() {
    let ddl = "create table outbox (id uuid primary key default gen_random_uuid(), aggregatetype text not null default 'a', \
               aggregateid text not null default '1', type text not null, payload jsonb)";
    let settings = OutboxSettings {
        preset: Preset::Debezium,
        after_publish: Some(AfterPublish::Delete),
        ..OutboxSettings::default()
    };
    let f = Fixture::with(ddl, &settings).await;
    assert!(!f.store.capabilities().has_order);
    f.sql("insert into outbox (type) select 't' from generate_series(1, 5)")
        .await;
    let backlog = f.store.backlog(None).await.unwrap();
    assert_eq!(
        (backlog.rows, backlog.estimated, backlog.oldest),
        (5, false, None)
    );
}

#[tokio::test]
async fn upkeep_names_who_holds_old_rows() {
    let f = Fixture::new().await;
    f.insert(100, 1).await;
    let quiet = f.store.upkeep().await.unwrap();
    assert!(quiet.bytes > 0);
    let holder = crate::fixture::server().await.client(&f.name).await;
    holder
        .batch_execute("begin isolation level repeatable read; select 1")
        .await
        .unwrap();
    f.insert(1, 1).await;
    f.insert(1, 1).await;
    let held = f.store.upkeep().await.unwrap();
    assert!(held.session.transactions >= 2, "{held:?}");
    assert!(held.session.age > Duration::ZERO, "{held:?}");
    let ended = holder.simple_query("rollback").await.unwrap();
    assert!(matches!(ended[0], SimpleQueryMessage::CommandComplete(_)));
}
