//! Whatever becomes of what `migrate` installed: the service can write. At worst the relay has to poll.

use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use futures_util::SinkExt as _;
use outrigger::store::postgres::OutboxSettings;
use tokio_postgres::{Client, NoTls};

use crate::fixture::{Fixture, database, server};
use crate::postgres::Postgres;

/// A role that owns nothing and may insert into the outbox.
async fn writer(f: &Fixture, server: &Postgres) -> (Client, String) {
    let role = format!("writer_of_{}", f.name);
    f.sql(&format!(
        "create role {role} login; grant insert on outbox to {role}"
    ))
    .await;
    (connect(&server.url_as(&role, &f.name)).await, role)
}

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// What happens to the schema, and how the writer writes afterwards.
const MISHAPS: &[(&str, &str, &str)] = &[
    (
        "the grant on the sequence is lost",
        "revoke all on all sequences in schema outrigger from public",
        "insert into outbox (type) values ('t')",
    ),
    (
        "every grant and default is taken back",
        "revoke all on schema outrigger from public; revoke all on all functions in schema outrigger from public; \
         revoke all on all sequences in schema outrigger from public; \
         alter default privileges revoke execute on functions from public",
        "insert into outbox (type) values ('t')",
    ),
    (
        "hardening forbids pg_notify",
        "revoke execute on function pg_notify(text, text) from public",
        "insert into outbox (type) values ('t')",
    ),
    (
        "hardening forbids the look at the queue",
        "revoke execute on function pg_notification_queue_usage() from public",
        "insert into outbox (type) values ('t')",
    ),
    (
        "another role owns everything",
        "create role other_owner; alter schema outrigger owner to other_owner; \
         alter function outrigger.wake_up() owner to other_owner; \
         alter sequence outrigger.\"awake:public.outbox\" owner to other_owner; \
         revoke all on all sequences in schema outrigger from other_owner, public",
        "insert into outbox (type) values ('t')",
    ),
    (
        "the sequence is dropped",
        "drop sequence outrigger.\"awake:public.outbox\" cascade",
        "insert into outbox (type) values ('t')",
    ),
    (
        "the sequence is renamed and moved",
        "alter sequence outrigger.\"awake:public.outbox\" rename to elsewhere; \
         alter sequence outrigger.elsewhere set schema public",
        "insert into outbox (type) values ('t')",
    ),
    (
        "the function is dropped",
        "drop function outrigger.wake_up cascade",
        "insert into outbox (type) values ('t')",
    ),
    (
        "the schema is dropped",
        "drop schema outrigger cascade",
        "insert into outbox (type) values ('t')",
    ),
    (
        "the language is dropped",
        "drop extension plpgsql cascade",
        "insert into outbox (type) values ('t')",
    ),
    (
        "the search path is empty",
        "select",
        "set search_path = ''; insert into public.outbox (type) values ('t')",
    ),
    (
        "the table is renamed",
        "alter table outbox rename to events",
        "insert into events (type) values ('t')",
    ),
    (
        "the table is moved",
        "create schema shop; grant usage on schema shop to public; alter table outbox set schema shop",
        "insert into shop.outbox (type) values ('t')",
    ),
    (
        "the table becomes a partition",
        "create table everything (like outbox including all) partition by range (seq); \
         alter table everything attach partition outbox for values from (1) to (1000000); \
         grant insert on everything to public",
        "insert into outbox (type) values ('t'); insert into everything (seq, type) overriding system value values (500, 't')",
    ),
    (
        "row-level security is on",
        "alter table outbox enable row level security; create policy w on outbox for insert with check (true)",
        "insert into outbox (type) values ('t')",
    ),
    (
        "the trigger fires for replicated rows too",
        "alter table outbox enable always trigger outrigger_wake_up; \
         revoke all on all sequences in schema outrigger from public",
        "insert into outbox (type) values ('t')",
    ),
    (
        "the trigger is disabled",
        "alter table outbox disable trigger all",
        "insert into outbox (type) values ('t')",
    ),
    (
        "the promise is nonsense",
        "select setval('outrigger.\"awake:public.outbox\"', 9223372036854775807)",
        "insert into outbox (type) values ('t')",
    ),
    (
        "the transaction is serializable",
        "revoke all on all sequences in schema outrigger from public",
        "begin isolation level serializable; savepoint s; insert into outbox (type) values ('t'); \
         release savepoint s; commit",
    ),
];

#[tokio::test]
async fn writers_survive_every_mishap() {
    for (name, mishap, write) in MISHAPS {
        // Roles and grants on system functions end with their database or server.
        let own = Postgres::start_blocking(&[]);
        let f = Fixture::on(&own).await;
        let (writer, _) = writer(&f, &own).await;
        f.sql(mishap).await;
        let written = writer.batch_execute(write).await;
        assert!(written.is_ok(), "{name}: {written:?}");
    }
}

#[tokio::test]
async fn copies_replicated_rows_and_other_roles_are_written() {
    let server = server().await;
    let f = Fixture::new().await;
    let (writer, role) = writer(&f, server).await;
    f.sql("revoke all on all sequences in schema outrigger from public")
        .await;
    let sink = writer
        .copy_in::<_, Bytes>("copy outbox (type) from stdin")
        .await
        .unwrap();
    let mut sink = Box::pin(sink);
    sink.send(Bytes::from("a\nb\n")).await.unwrap();
    assert_eq!(sink.as_mut().finish().await.unwrap(), 2);
    f.sql("alter table outbox enable always trigger outrigger_wake_up; set session_replication_role = replica; \
           insert into outbox (type) values ('t'); reset session_replication_role")
        .await;
    f.sql(&format!(
        "create role second_of_{0}; grant insert on outbox to second_of_{0}; grant second_of_{0} to {role}",
        f.name
    ))
    .await;
    writer
        .batch_execute(&format!(
            "set role second_of_{}; insert into outbox (type) values ('t')",
            f.name
        ))
        .await
        .unwrap();
    assert_eq!(f.count("select count(*) from outbox").await, 4);
}

/// `pg_dump` with these options, played into a fresh database.
async fn restored(f: &Fixture, options: &str) -> String {
    let server = server().await;
    let copy = server.create_database().await;
    // Without ON_ERROR_STOP, as people do it: what cannot be restored is left out.
    let command = format!(
        "'{}' {options} '{}' | '{}' --no-psqlrc --quiet '{}'",
        server.program("pg_dump").display(),
        server.url(&f.name),
        server.program("psql").display(),
        server.url(&copy)
    );
    let done = Command::new("/bin/sh")
        .args(["-c", &command])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
    copy
}

#[tokio::test]
async fn writers_survive_every_kind_of_restore() {
    let server = server().await;
    let f = Fixture::new().await;
    f.insert(3, 1).await;
    f.store.extend_awake(Duration::from_secs(60)).await.unwrap();
    let (_, role) = writer(&f, server).await;
    for (options, whole) in [
        ("", true),
        ("-O", true),
        ("-x", true),
        ("-O -x", true),
        ("-x --no-comments", true),
        ("-n public -x", false),
        ("-t outbox -x", false),
        ("--exclude-schema=outrigger", false),
        ("--section=pre-data", false),
    ] {
        let copy = restored(&f, options).await;
        let owner = server.client(&copy).await;
        owner
            .batch_execute(&format!(
                "grant usage on schema public to {role}; grant insert on all tables in schema public to {role}"
            ))
            .await
            .unwrap();
        let client = connect(&server.url_as(&role, &copy)).await;
        let written = client
            .batch_execute("insert into outbox (type, key, data) values ('t', 'k', '1')")
            .await;
        assert!(written.is_ok(), "pg_dump {options}: {written:?}");
        let database = database(&server.url(&copy), &OutboxSettings::default());
        if whole {
            let facts = database.table_facts().await.unwrap();
            assert!(facts.trigger, "pg_dump {options}");
            let in_the_dark = options.contains("-x");
            assert_eq!(
                facts.writers_in_the_dark.contains(&role),
                in_the_dark,
                "pg_dump {options}"
            );
            database.open().await.unwrap();
        }
        // And `migrate` makes it whole again, whatever was left out.
        if options != "--section=pre-data" {
            database.migrate(true).await.unwrap();
            let facts = database.table_facts().await.unwrap();
            assert!(
                facts.trigger && facts.writers_in_the_dark.is_empty(),
                "{options}"
            );
        }
    }
}

#[tokio::test]
async fn a_subscriber_takes_what_the_publisher_sends() {
    let server = Postgres::start_with(&["wal_level=logical".to_owned()]).await;
    let (from, to) = (Fixture::on(&server).await, Fixture::on(&server).await);
    to.sql(
        "alter table outbox enable always trigger outrigger_wake_up; \
            revoke all on all sequences in schema outrigger from public",
    )
    .await;
    from.insert(3, 1).await;
    from.sql("create publication p for table outbox").await;
    from.sql("select pg_create_logical_replication_slot('s', 'pgoutput')")
        .await;
    to.sql(&format!(
        "create subscription s connection '{}' publication p with (create_slot = false, slot_name = 's')",
        server.url(&from.name)
    ))
    .await;
    from.insert(2, 1).await;
    let arrived = async {
        while to.count("select count(*) from outbox").await < 5 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), arrived)
        .await
        .expect("all rows are replicated");
    // Its own sequence did not move, so the first insert after a cut-over would fail: that is told.
    let facts = database(&server.url(&to.name), &OutboxSettings::default())
        .table_facts()
        .await
        .unwrap();
    assert_eq!(facts.sequence_behind, Some((0, 5)));
    to.sql("alter subscription s disable; alter subscription s set (slot_name = none); drop subscription s")
        .await;
}

#[tokio::test]
async fn writers_do_not_wait_behind_migrate() {
    let server = server().await;
    let f = Fixture::new().await;
    f.sql("drop trigger outrigger_wake_up on outbox").await;
    let (slow, quick) = (server.client(&f.name).await, server.client(&f.name).await);
    slow.batch_execute("begin; insert into outbox (type) values ('slow')")
        .await
        .unwrap();
    let migrating = {
        let database = database(&server.url(&f.name), &OutboxSettings::default());
        tokio::spawn(async move { database.migrate(true).await })
    };
    let waiting = "select count(*) from pg_locks where not granted and locktype = 'relation' \
                   and database = (select oid from pg_database where datname = current_database())";
    tokio::time::timeout(Duration::from_secs(60), async {
        while f.count(waiting).await == 0 {}
    })
    .await
    .expect("migrate waits for the open transaction");
    // It gives way, though the slow transaction is still open.
    tokio::time::timeout(
        Duration::from_secs(60),
        quick.batch_execute("insert into outbox (type) values ('quick')"),
    )
    .await
    .expect("the writer does not wait for the slow transaction")
    .unwrap();
    slow.batch_execute("commit").await.unwrap();
    migrating.await.unwrap().unwrap();
    let trigger = "select count(*) from pg_trigger where tgname = 'outrigger_wake_up'";
    assert_eq!(f.count(trigger).await, 1);
}
