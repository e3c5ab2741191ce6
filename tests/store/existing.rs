//! Tables in the shapes that people have.

use outrigger::store::postgres::emit::NewEvent;
use outrigger::store::postgres::mapping::Field;
use outrigger::store::postgres::replay::{ReplayFilter, ReplayMode};
use outrigger::store::postgres::{OutboxSettings, Preset, StoreErrorKind};

use crate::fixture::{Fixture, database, from_start, row_settled, server};
use outrigger::store::Settle;

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

/// Reads everything, settles it, and reads again. The ids that came, in their order.
async fn drained(f: &Fixture) -> Vec<String> {
    let rows = f.store.read(&from_start()).await.unwrap().rows;
    let settle = Settle {
        rows: rows.iter().map(row_settled).collect(),
        ..Settle::default()
    };
    assert_eq!(f.store.settle(&settle).await.unwrap(), []);
    assert!(f.store.read(&from_start()).await.unwrap().rows.is_empty());
    rows.into_iter().map(|row| row.id).collect()
}

async fn facts(
    f: &Fixture,
    settings: &OutboxSettings,
) -> outrigger::store::postgres::probe::TableFacts {
    let database = database(&server().await.url(&f.name), settings);
    database.table_facts().await.unwrap()
}

#[tokio::test]
async fn one_column_is_id_and_order() {
    let settings = OutboxSettings {
        column_seq: some("id"),
        ..Default::default()
    };
    let f = Fixture::with(
        "create table outbox (id bigserial primary key, type text, data jsonb, published_at timestamptz); \
         insert into outbox (type) select 't' from generate_series(1, 3)",
        &settings,
    )
    .await;
    assert_eq!(drained(&f).await, ["1", "2", "3"]);
    let fields = vec![(Field::Type, "x".to_owned())];
    assert_eq!(f.store.emit(&NewEvent { fields }).await.unwrap(), "4");
    let filter = ReplayFilter {
        ids: vec!["2".into()],
        ..Default::default()
    };
    let replayed = f
        .store
        .replay(&filter, ReplayMode::NewIds, 10, |_| {})
        .await;
    assert_eq!(replayed.unwrap(), 1);
    assert_eq!(drained(&f).await, ["4", "5"]);
}

#[tokio::test]
async fn a_status_of_any_type_is_read_and_written() {
    for (kind, pending, done, other) in [
        ("text", "NEW", "SENT", "FAILED"),
        ("varchar(10)", "NEW", "SENT", "FAILED"),
        ("char(4)", "NEW", "SENT", "FAIL"),
        ("mood", "it's new", "SENT", "FAILED"),
        ("smallint", "0", "1", "2"),
    ] {
        let settings = OutboxSettings {
            column_status: some("status"),
            status_pending: vec![pending.into(), pending.into()],
            status_published: some(done),
            ..Default::default()
        };
        let quoted = pending.replace('\'', "''");
        let f = Fixture::with(
            &format!(
                "create type mood as enum ('it''s new', 'SENT', 'FAILED'); \
                 create table outbox (seq bigint generated always as identity primary key, id text, type text, \
                   created_at timestamptz default now() - interval '10 days', status {kind}); \
                 insert into outbox (id, type, status) values ('a', 't', '{quoted}'), ('b', 't', '{other}'), \
                   ('c', 't', '{done}'), ('d', 't', null), ('e', 't', '{quoted}')"
            ),
            &settings,
        )
        .await;
        assert!(f.store.capabilities().has_published, "{kind}");
        assert_eq!(drained(&f).await, ["a", "e"], "{kind}");
        let is = format!("select count(*) from outbox where status = '{done}'");
        assert_eq!(f.count(&is).await, 3, "{kind}");
        let filter = ReplayFilter {
            ids: vec!["a".into()],
            ..Default::default()
        };
        let replayed = f
            .store
            .replay(&filter, ReplayMode::SameIds, 10, |_| {})
            .await;
        assert_eq!(replayed.unwrap(), 1, "{kind}");
        assert_eq!(drained(&f).await, ["a"], "{kind}");
        // What is neither pending nor published is no history, however old.
        let week = std::time::Duration::from_secs(7 * 86_400);
        let step = f.store.retention_chunk(week, None, 100).await.unwrap();
        assert_eq!(step.deleted, 3, "{kind}");
        assert_eq!(f.count("select count(*) from outbox").await, 2, "{kind}");
    }
}

#[tokio::test]
async fn a_word_that_the_type_does_not_know_is_refused() {
    let settings = OutboxSettings {
        column_status: some("status"),
        status_published: some("SENT"),
        ..Default::default()
    };
    let f = Fixture::new().await;
    f.sql(
        "create type mood as enum ('NEW', 'SENT'); drop table outbox; \
           create table outbox (seq bigint primary key, id uuid, type text, status mood)",
    )
    .await;
    let opened = database(&server().await.url(&f.name), &settings)
        .open()
        .await;
    let error = opened.map(|_| ()).unwrap_err().to_string();
    for part in [
        "`pending` is not a value",
        "`status`",
        "OUTRIGGER_OUTBOX_STATUS_PENDING",
    ] {
        assert!(error.contains(part), "{error}");
    }
}

#[tokio::test]
async fn spring_modulith_of_both_versions() {
    let settings = OutboxSettings {
        preset: Preset::Modulith,
        unordered: true,
        table: some("event_publication"),
        ..Default::default()
    };
    for (more, values) in [
        ("", ""),
        (
            ", status text, completion_attempts int, last_resubmission_date timestamptz",
            ", 'PUBLISHED', 0, null",
        ),
    ] {
        let f = Fixture::with(
            &format!(
                "create table event_publication (id uuid primary key, listener_id text not null, event_type text not null, \
                   serialized_event text not null, publication_date timestamptz not null, completion_date timestamptz{more}); \
                 insert into event_publication values (gen_random_uuid(), 'l', 'e', '{{}}', now(), null{values}), \
                   (gen_random_uuid(), 'l', 'e', '{{}}', now(), now(){values})"
            ),
            &settings,
        )
        .await;
        assert_eq!(drained(&f).await.len(), 1, "{more}");
        if !more.is_empty() {
            let completed = "select count(*) from event_publication where status = 'COMPLETED'";
            assert_eq!(f.count(completed).await, 1);
        }
    }
}

#[tokio::test]
async fn domains_over_domains_are_what_they_are_made_of() {
    let f = Fixture::with(
        "create domain d1 as jsonb; create domain d2 as d1; create domain no1 as bigint; create domain no2 as no1 check (value > 0); \
         create domain no3 as no2; \
         create table outbox (seq no3 primary key, id uuid default gen_random_uuid(), type text, data d2, published_at timestamptz); \
         insert into outbox (seq, type, data) values (1, 't', '[1]')",
        &OutboxSettings::default(),
    )
    .await;
    let rows = f.store.read(&from_start()).await.unwrap().rows;
    assert_eq!(rows[0].data, outrigger::event::Data::Json("[1]".into()));
}

#[tokio::test]
async fn what_is_no_table_is_refused_by_its_name() {
    let f = Fixture::new().await;
    f.sql("create view v as select * from outbox; create materialized view m as select * from outbox; \
           create extension if not exists postgres_fdw; create server s foreign data wrapper postgres_fdw; \
           create foreign table f (id uuid) server s")
        .await;
    for (name, what) in [
        ("v", "a view"),
        ("m", "a materialized view"),
        ("f", "a foreign table"),
    ] {
        let settings = OutboxSettings {
            table: some(name),
            ..Default::default()
        };
        let opened = database(&server().await.url(&f.name), &settings)
            .open()
            .await;
        let error = opened.map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Schema);
        assert!(error.to_string().contains(what), "{error}");
    }
}

#[tokio::test]
async fn rows_without_a_number_hold_up_no_other() {
    let settings = OutboxSettings {
        column_published_at: some("sent"),
        ..Default::default()
    };
    let f = Fixture::with(
        "create table outbox (seq bigint unique, id text, type text, sent boolean); \
         insert into outbox values (null, 'a', 't', false), (1, 'b', 't', null), (null, 'c', 't', true)",
        &settings,
    )
    .await;
    assert_eq!(drained(&f).await, ["b"]);
    assert_eq!(facts(&f, &settings).await.unnumbered, 1);
}

/// An index counts only if the relay's own question can use it.
#[tokio::test]
async fn an_index_counts_only_if_it_can_be_used() {
    let by = |column: &str| OutboxSettings {
        column_published_at: some(column),
        ..Default::default()
    };
    let status = OutboxSettings {
        column_status: some("status"),
        ..Default::default()
    };
    let f = Fixture::new().await;
    f.sql("drop table outbox; \
           create table outbox (seq bigint generated always as identity primary key, id uuid default gen_random_uuid(), \
             type text, sent boolean not null default false, maybe boolean, done timestamptz, status varchar(20))")
        .await;
    let database = database(&server().await.url(&f.name), &by("sent"));
    database.migrate(true).await.unwrap();
    for (settings, condition, usable) in [
        (by("sent"), "not sent", true),
        (by("sent"), "sent = false", true),
        (by("sent"), "sent is not true", true),
        (by("sent"), "sent is false", true),
        (by("sent"), "sent", false),
        (by("sent"), "not sent and type = 'x'", false),
        (by("maybe"), "not maybe", false),
        (by("maybe"), "maybe is not true", true),
        (by("done"), "done is null", true),
        (by("done"), "done is null and type is not null", false),
        (by("done"), "done is not null", false),
        (status.clone(), "status = 'pending'", true),
        (status.clone(), "status in ('pending', 'failed')", true),
        (status.clone(), "status <> 'published'", true),
        (status.clone(), "status = 'published'", false),
    ] {
        f.sql(&format!(
            "create index candidate on outbox (seq) where {condition}"
        ))
        .await;
        let found = facts(&f, &settings).await;
        assert_eq!(found.pending_index, usable, "{condition}");
        f.sql("drop index candidate").await;
        if !usable {
            // And what is printed instead is one.
            let statement = &facts(&f, &settings).await.missing_indexes[..];
            let [statement] = statement else {
                panic!("{condition}: {statement:?}")
            };
            f.sql(statement).await;
            let found = facts(&f, &settings).await;
            assert!(found.pending_index, "{statement}");
            f.sql("drop index outbox_seq_idx").await;
        }
    }
}

#[tokio::test]
async fn columns_that_are_left_out_in_silence_are_named() {
    let settings = OutboxSettings {
        column_type: some("eventType"),
        column_published_at: some("sent"),
        ..Default::default()
    };
    let f = Fixture::with(
        "create table outbox (seq bigserial primary key, id uuid, \"eventType\" text, payload jsonb, aggregate_id text, \
           \"occurredOn\" timestamptz, sent boolean)",
        &settings,
    )
    .await;
    let pair = |setting: &str, column: &str| {
        (
            format!("OUTRIGGER_OUTBOX_COLUMN_{setting}"),
            column.to_owned(),
        )
    };
    assert_eq!(
        facts(&f, &settings).await.looks_like,
        [
            pair("DATA", "payload"),
            pair("KEY", "aggregate_id"),
            pair("CREATED_AT", "occurredOn"),
        ]
    );
    let meant = OutboxSettings {
        column_data: some("payload"),
        column_key: some("none"),
        column_created_at: some("none"),
        ..settings
    };
    assert!(facts(&f, &meant).await.looks_like.is_empty());
}
