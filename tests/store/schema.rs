//! Migrations, grants, emit.

use std::process::{Command, Stdio};

use outrigger::store::ReadKind;
use outrigger::store::postgres::{Mapping, OutboxSettings, StoreErrorKind, grants, print};

use crate::fixture::{Fixture, database, from_start, request, server, settled};

/// Everything that defines a schema, as text.
async fn shape(client: &tokio_postgres::Client) -> Vec<String> {
    let text = "select format('%s.%s %s %s %s %s', c.table_schema, c.table_name, c.column_name, c.data_type, c.is_nullable, \
                  c.column_default) as line from information_schema.columns c where c.table_schema in ('public', 'outrigger') \
                union all select indexdef from pg_indexes where schemaname in ('public', 'outrigger') \
                union all select pg_get_triggerdef(oid) from pg_trigger where not tgisinternal \
                union all select pg_get_functiondef(p.oid) from pg_proc p where p.pronamespace = 'outrigger'::regnamespace \
                union all select conrelid::regclass || ' ' || pg_get_constraintdef(oid) from pg_constraint \
                  where connamespace in ('public'::regnamespace, 'outrigger'::regnamespace) \
                union all select oid::regclass || ' ' || reloptions::text from pg_class where reloptions is not null \
                union all select format('%s %s %s', version, name, checksum) from outrigger.migrations \
                union all select objoid::regclass || ' ' || objsubid || ' ' || description from pg_description \
                  where classoid = 'pg_class'::regclass and objoid >= 16384 \
                union all select 'outbox ' || outbox from outrigger.outboxes \
                union all select 'sequence ' || sequencename || coalesce(last_value::text, '') from pg_sequences order by 1";
    let rows = client.query(text, &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn eight_runners_at_once_migrate_once() {
    let server = server().await;
    let name = server.create_database().await;
    let runners: Vec<_> = (0..8)
        .map(|_| {
            let database = database(&server.url(&name), &OutboxSettings::default());
            tokio::spawn(async move { database.migrate(true).await.unwrap() })
        })
        .collect();
    let mut applied = Vec::new();
    let mut created = 0;
    for runner in runners {
        let done = runner.await.unwrap();
        assert_eq!(done.outbox, "public.outbox");
        applied.extend(done.applied);
        created += i32::from(done.created_table);
    }
    assert_eq!((applied.as_slice(), created), (&[1][..], 1));
}

#[tokio::test]
async fn the_printed_sql_does_the_same() {
    let server = server().await;
    let migrated = Fixture::new().await;
    let name = server.create_database().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    let mapping = Mapping::new(&OutboxSettings::default()).unwrap();
    std::fs::write(file.path(), print(&mapping, true)).unwrap();
    let psql = Command::new(server.program("psql"))
        .args([
            "--no-psqlrc",
            "--quiet",
            "--single-transaction",
            "-v",
            "ON_ERROR_STOP=1",
            "-f",
        ])
        .arg(file.path())
        .arg(server.url(&name))
        .stdout(Stdio::null())
        .output()
        .unwrap();
    assert!(
        psql.status.success(),
        "{}",
        String::from_utf8_lossy(&psql.stderr)
    );
    let printed = server.client(&name).await;
    assert_eq!(shape(&printed).await, shape(&migrated.client).await);
    // And the binary agrees that nothing is left to do.
    let database = database(&server.url(&name), &OutboxSettings::default());
    assert!(database.migrate(true).await.unwrap().applied.is_empty());
    database.open().await.unwrap();
}

#[tokio::test]
async fn foreign_schemas_are_refused() {
    let f = Fixture::new().await;
    let database = database(&server().await.url(&f.name), &OutboxSettings::default());
    f.sql("insert into outrigger.migrations (version, name, checksum) values (99, 'future', 'x')")
        .await;
    for error in [
        database.open().await.map(|_| ()).unwrap_err(),
        database.migrate(true).await.map(|_| ()).unwrap_err(),
    ] {
        assert_eq!(error.kind(), StoreErrorKind::Schema);
        assert!(error.to_string().contains("upgrade the binary"), "{error}");
    }
    f.sql("delete from outrigger.migrations where version = 99; update outrigger.migrations set checksum = 'x'").await;
    let error = database.open().await.map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("different build"), "{error}");
    f.sql("drop schema outrigger cascade").await;
    let error = database.open().await.map(|_| ()).unwrap_err();
    assert!(
        error.to_string().contains("run `outrigger migrate`"),
        "{error}"
    );
}

#[tokio::test]
async fn the_trigger_can_be_left_out_and_put_back() {
    let f = Fixture::new().await;
    let database = database(&server().await.url(&f.name), &OutboxSettings::default());
    assert!(database.table_facts().await.unwrap().trigger);
    database.migrate(false).await.unwrap();
    assert!(!database.table_facts().await.unwrap().trigger);
    database.migrate(true).await.unwrap();
    assert!(database.table_facts().await.unwrap().trigger);
}

#[tokio::test]
async fn the_printed_grants_suffice_and_nothing_more_is_given() {
    let f = Fixture::new().await;
    let server = server().await;
    let (writer, relay) = (format!("{}_writer", f.name), format!("{}_relay", f.name));
    f.sql(&format!(
        "create role {writer} login; create role {relay} login"
    ))
    .await;
    let settings = OutboxSettings {
        table: Some("public.outbox".into()),
        ..Default::default()
    };
    let bare = database(&server.url_as(&relay, &f.name), &settings);
    let missing = bare.table_facts().await.unwrap().missing_grants;
    assert!(
        missing
            .iter()
            .any(|grant| grant.starts_with("grant select on public.outbox")),
        "{missing:?}"
    );
    let error = bare.open().await.map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Permission, "{error}");
    f.sql(&grants(&Mapping::new(&settings).unwrap(), &writer, &relay))
        .await;

    let client = tokio_postgres::connect(&server.url_as(&writer, &f.name), tokio_postgres::NoTls)
        .await
        .unwrap();
    tokio::spawn(client.1);
    let client = client.0;
    client
        .batch_execute("insert into outbox (type, key) values ('t', 'k')")
        .await
        .unwrap();
    let id: uuid::Uuid = client
        .query_one("select outrigger.emit('t', '{\"a\": 1}', key => 'k', available_at => now() - interval '1 second')", &[])
        .await
        .unwrap()
        .get(0);
    for denied in [
        "select * from outbox",
        "delete from outbox",
        "select * from outrigger.outboxes",
        "update outbox set type = ''",
    ] {
        assert!(client.batch_execute(denied).await.is_err(), "{denied}");
    }

    let store = bare.open().await.unwrap();
    assert_eq!(
        bare.table_facts().await.unwrap().missing_grants,
        Vec::<String>::new()
    );
    let me = store
        .register("a", std::time::Duration::from_secs(10), 4)
        .await
        .unwrap()
        .replica;
    store.tick(me, true).await.unwrap();
    assert_eq!(store.claim(me, &[0, 1, 2, 3]).await.unwrap().len(), 4);
    let rows = store.read(&from_start()).await.unwrap().rows;
    assert_eq!(rows.iter().map(|row| row.seq).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(rows[1].id, id.to_string());
    for kind in [
        ReadKind::Due,
        ReadKind::Retries,
        ReadKind::Sweep { after: 0, up_to: 9 },
    ] {
        store.read(&request(kind)).await.unwrap();
    }
    store
        .settle(&settled(&store, &[1, 2], &[1]).await)
        .await
        .unwrap();
    store
        .load_failing(&outrigger::store::Partitions::All, (1, 1))
        .await
        .unwrap();
    let park = outrigger::store::Park {
        park: vec![1],
        unpark: vec![2],
    };
    store.park(&park, uuid::Uuid::nil()).await.unwrap();
    store
        .extend_awake(std::time::Duration::from_secs(5))
        .await
        .unwrap();
    let step = store
        .retention_chunk(std::time::Duration::ZERO, None, 10)
        .await
        .unwrap();
    assert_eq!(step.deleted, 2);
    store.status().await.unwrap();
    store.retry(&Default::default()).await.unwrap();
    store.pause(Some("test")).await.unwrap();
    store.resume().await.unwrap();
    store.release(me, &[0]).await.unwrap();
    store.unregister(me).await.unwrap();
    // What was not granted names the next step.
    f.sql(&format!("revoke select on outbox from {relay}"))
        .await;
    let error = store.read(&from_start()).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Permission);
    assert!(
        error.to_string().contains("the relay's role needs"),
        "{error}"
    );
}

#[tokio::test]
async fn emit_orders_by_commit_and_explains_itself() {
    let f = Fixture::new().await;
    let server = server().await;
    let (one, two) = (server.client(&f.name).await, server.client(&f.name).await);
    one.batch_execute("begin; select outrigger.emit('first', key => 'k')")
        .await
        .unwrap();
    let second = tokio::spawn(async move {
        two.batch_execute("select outrigger.emit('second', key => 'k')")
            .await
    });
    let waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted \
                   and database = (select oid from pg_database where datname = current_database())";
    tokio::time::timeout(std::time::Duration::from_secs(20), async {
        while f.count(waiting).await == 0 {}
    })
    .await
    .expect("the second writer waits for the first");
    // Another key does not wait, nor does who does not lock.
    f.sql("select outrigger.emit('other', key => 'x'), outrigger.emit('third', key => 'k', lock_key => false)").await;
    assert_eq!(f.seqs(&from_start()).await, [2, 3]);
    one.batch_execute("commit").await.unwrap();
    second.await.unwrap().unwrap();
    let types: Vec<_> = f
        .store
        .read(&from_start())
        .await
        .unwrap()
        .rows
        .into_iter()
        .map(|row| row.event_type)
        .collect();
    assert_eq!(types, ["first", "other", "third", "second"]);

    f.sql("create schema \"Shop\"; create table \"Shop\".\"Out Box\" (like outbox including all)")
        .await;
    f.sql("select outrigger.attach('\"Shop\".\"Out Box\"')")
        .await;
    let ambiguous = f
        .client
        .batch_execute("select outrigger.emit('t')")
        .await
        .unwrap_err();
    let message = ambiguous.as_db_error().unwrap().message().to_owned();
    assert!(
        message.contains("several outboxes") && message.contains("\"Shop\".\"Out Box\""),
        "{message}"
    );
    f.sql("select outrigger.emit('t', outbox => '\"Shop\".\"Out Box\"')")
        .await;
    assert_eq!(
        f.count("select count(*) from \"Shop\".\"Out Box\"").await,
        1
    );
    f.sql("delete from outrigger.outboxes").await;
    let none = f
        .client
        .batch_execute("select outrigger.emit('t')")
        .await
        .unwrap_err();
    assert_eq!(
        none.as_db_error().unwrap().message(),
        "no outbox is registered"
    );
}

#[tokio::test]
async fn errors_carry_no_row_contents() {
    let f = Fixture::new().await;
    f.sql("alter table outrigger.failures add constraint odd check (event_type <> 'secret')")
        .await;
    f.sql("insert into outbox (type) values ('secret')").await;
    let me = f
        .store
        .register("a", std::time::Duration::from_secs(10), 1)
        .await
        .unwrap()
        .replica;
    f.store.claim(me, &[0]).await.unwrap();
    let row = f.store.read(&from_start()).await.unwrap().rows.remove(0);
    let failure = outrigger::store::Failure {
        seq: row.seq,
        hash: row.hash,
        keyed: row.keyed,
        event_id: row.id,
        event_type: row.event_type,
        key: row.key,
        state: outrigger::store::FailureState::Dead,
        attempts: 1,
        crashes: 0,
        reason: None,
        retry_after: None,
    };
    let error = f.store.record_failures(&[failure], me).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Fatal);
    assert!(
        error.to_string().contains("odd") && !error.to_string().contains("secret"),
        "{error}"
    );
    f.sql("alter table outbox rename column type to kind").await;
    let error = f.store.read(&from_start()).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.sqlstate()),
        (StoreErrorKind::Schema, Some("42703"))
    );
    assert!(
        error.to_string().contains("o.type does not exist"),
        "{error}"
    );
}

#[tokio::test]
async fn unreachable_servers_and_wrong_names_are_told_apart() {
    let server = server().await;
    let refused = database(
        "postgres://u:hunter2@127.0.0.1:1/d",
        &OutboxSettings::default(),
    );
    let error = refused.open().await.map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error}");
    assert!(
        error.to_string().contains("refused") && !error.to_string().contains("hunter2"),
        "{error}"
    );
    let nowhere = database(&server.url("nowhere"), &OutboxSettings::default());
    let error = nowhere.open().await.map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Schema, "{error}");
    let nobody = database(
        &server.url_as("nobody", "postgres"),
        &OutboxSettings::default(),
    );
    let error = nobody.open().await.map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Permission, "{error}");
}
