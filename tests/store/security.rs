//! Row-level security: hidden rows are an error, unless policies are known to hide none.

use std::time::Duration;

use outrigger::store::postgres::{
    Mapping, OutboxSettings, PostgresStore, StoreError, StoreErrorKind, grants,
};

use crate::fixture::{Fixture, database, from_start, request, row_settled, server};
use outrigger::store::{Partitions, ReadKind, ReadRequest, Settle};

/// A relay's role with the documented grants.
async fn role(f: &Fixture) -> String {
    let role = format!("relay_{}", f.name);
    let mapping = Mapping::new(&OutboxSettings::default()).unwrap();
    f.sql(&format!(
        "create role {role} login; {}",
        grants(&mapping, &role, &role)
    ))
    .await;
    role
}

async fn open(f: &Fixture, role: &str) -> Result<PostgresStore, StoreError> {
    let url = server().await.url_as(role, &f.name);
    database(&url, &OutboxSettings::default()).open().await
}

/// Applies `sql`, with `@` for the role, and opens the outbox as the role.
async fn opened(sql: &str) -> (Fixture, String, Result<PostgresStore, StoreError>) {
    let f = Fixture::new().await;
    f.insert(3, 3).await;
    let role = role(&f).await;
    f.sql(&sql.replace('@', &role)).await;
    let opened = open(&f, &role).await;
    (f, role, opened)
}

const ON: &str = "alter table outbox enable row level security;";

#[tokio::test]
async fn policies_that_may_hide_rows_are_an_error_that_says_what_to_do() {
    for (policies, table, commands) in [
        ("", "public.outbox", "(select, update, delete)"),
        (
            "create policy p on outbox for select using (true);",
            "public.outbox",
            "(update, delete)",
        ),
        (
            "create policy p on outbox to postgres using (true);",
            "public.outbox",
            "(select, update, delete)",
        ),
        (
            "create policy p on outbox using (key = current_setting('app.tenant', true));",
            "public.outbox",
            "(select, update, delete)",
        ),
        (
            "create policy p on outbox using (true); \
             create policy r on outbox as restrictive using (key <> 'k1');",
            "public.outbox",
            "(select, update, delete)",
        ),
        (
            "create policy p on outbox using (true) with check (published_at is null);",
            "public.outbox",
            "(update)",
        ),
        (
            "alter table outbox owner to @; alter table outbox force row level security;",
            "public.outbox",
            "(select, update, delete)",
        ),
        (
            "create policy p on outbox using (true); \
             alter table outrigger.failures enable row level security;",
            "outrigger.failures",
            "(select, insert, update, delete)",
        ),
    ] {
        let (_, role, opened) = opened(&format!("{ON} {policies}")).await;
        let error = opened.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Schema, "{policies}: {error}");
        let text = error.to_string();
        for part in [table, &role, commands, "bypassrls", "create policy"] {
            assert!(text.contains(part), "{policies}: {text} lacks {part}");
        }
    }
}

#[tokio::test]
async fn policies_that_hide_nothing_are_as_good_as_none() {
    for policies in [
        "create policy p on outbox using (true);",
        "create policy p on outbox to @ using (true) with check (true);",
        "create role group_of_@; grant group_of_@ to @; create policy p on outbox to group_of_@ using (true);",
        "create policy a on outbox for select using (true); create policy b on outbox for update using (true); \
         create policy c on outbox for delete using (true); create policy d on outbox using (key = 'k1');",
        "create policy p on outbox using (true); create policy r on outbox as restrictive using (true); \
         create policy s on outbox as restrictive to postgres using (false);",
        "alter table outbox owner to @;",
        "alter role @ bypassrls;",
    ] {
        let (f, _, opened) = opened(&format!("{ON} {policies}")).await;
        let store = opened.unwrap_or_else(|error| panic!("{policies}: {error}"));
        let rows = store.read(&from_start()).await.unwrap().rows;
        assert_eq!(rows.len(), 3, "{policies}");
        let settle = Settle {
            rows: rows.iter().map(row_settled).collect(),
            ..Settle::default()
        };
        assert_eq!(store.settle(&settle).await.unwrap(), [], "{policies}");
        let left = "select count(*) from outbox where published_at is null";
        assert_eq!(f.count(left).await, 0);
    }
}

#[tokio::test]
async fn policies_of_a_partition_do_not_count_and_those_of_its_parent_do() {
    let f = Fixture::with(
        "create table outbox (seq bigint generated always as identity, id uuid default gen_random_uuid(), type text, \
           published_at timestamptz, primary key (seq)) partition by range (seq); \
         create table outbox_1 partition of outbox for values from (0) to (100); \
         insert into outbox (type) values ('t'); \
         alter table outbox_1 enable row level security",
        &OutboxSettings::default(),
    )
    .await;
    let role = role(&f).await;
    let store = open(&f, &role).await.unwrap();
    assert_eq!(store.read(&from_start()).await.unwrap().rows.len(), 1);
    f.sql(ON).await;
    let error = open(&f, &role).await.unwrap_err().to_string();
    assert!(error.contains("public.outbox"), "{error}");
}

#[tokio::test]
async fn policies_that_come_while_the_relay_runs_are_noticed_by_the_next_tick() {
    let f = Fixture::new().await;
    f.insert(3, 3).await;
    let role = role(&f).await;
    let store = open(&f, &role).await.unwrap();
    let lease = Duration::from_secs(10);
    let me = store.register("a", lease, 1).await.unwrap().replica;
    store.tick(me, true).await.unwrap();
    assert_eq!(store.read(&from_start()).await.unwrap().rows.len(), 3);
    f.sql(ON).await;
    // The lease is kept: it is the rows that cannot be seen.
    assert!(store.tick(me, true).await.unwrap().registered);
    let sweep = ReadRequest {
        partitions: Partitions::All,
        ..request(ReadKind::Sweep { after: 0, up_to: 9 })
    };
    for read in [from_start(), sweep] {
        let error = store.read(&read).await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Schema, "{error}");
        assert!(error.to_string().contains("row-level security"), "{error}");
    }
    // The relay opens a table anew that does not fit.
    f.sql("create policy p on outbox using (true)").await;
    let store = open(&f, &role).await.unwrap();
    store.tick(me, true).await.unwrap();
    assert_eq!(store.read(&from_start()).await.unwrap().rows.len(), 3);
}
