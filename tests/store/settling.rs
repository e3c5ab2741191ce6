//! Settling is not believed: what stays pending is told, with the reason, and keeps nobody else from being settled.

use std::time::{Duration, Instant};

use outrigger::store::postgres::{AfterPublish, OutboxSettings};
use outrigger::store::{Failure, FailureState, ReadKind, Settle};

use crate::fixture::{Fixture, from_start, request, server, settled};

const MARKED: &str = "select count(*) from outbox where published_at is not null";

const NOTHING: &str =
    "create function nothing() returns trigger language plpgsql as $$ begin return null; end $$;";

fn deleting() -> OutboxSettings {
    OutboxSettings {
        after_publish: Some(AfterPublish::Delete),
        ..OutboxSettings::default()
    }
}

async fn first(f: &Fixture, rows: i64) -> Settle {
    settled(&f.store, &(1..=rows).collect::<Vec<_>>(), &[]).await
}

/// The rows that were not settled, and the reason of the first.
async fn unsettled(f: &Fixture, settle: &Settle) -> (Vec<i64>, String) {
    let answer = f.store.settle(settle).await.unwrap();
    let reason = answer.first().map(|row| row.reason.clone());
    let rows = answer.into_iter().map(|row| row.seq).collect();
    (rows, reason.unwrap_or_default())
}

/// With this in the database, five rows cannot be settled, and the reason names the command.
async fn assert_unsettled(settings: &OutboxSettings, ddl: &str, command: &str) {
    let f = Fixture::with("", settings).await;
    f.insert(5, 5).await;
    f.sql(&format!("{NOTHING} {UNDO} {ddl}")).await;
    for careful in [false, true] {
        let settle = Settle {
            careful,
            ..first(&f, 5).await
        };
        let (rows, reason) = unsettled(&f, &settle).await;
        assert_eq!(rows, [1, 2, 3, 4, 5], "{ddl}");
        assert!(reason.contains(&format!("{command} of")), "{ddl}: {reason}");
    }
    assert_eq!(f.seqs(&from_start()).await, [1, 2, 3, 4, 5], "{ddl}");
}

#[tokio::test]
async fn a_settle_that_changes_nothing_is_noticed() {
    for ddl in [
        "create trigger t before update on outbox for each row execute function nothing()",
        "create rule r as on update to outbox do instead nothing",
        "create function reset() returns trigger language plpgsql as $$ begin new.published_at := null; return new; end $$; \
         create trigger t before update on outbox for each row execute function reset()",
    ] {
        assert_unsettled(&OutboxSettings::default(), ddl, "UPDATE").await;
    }
    for ddl in [
        "create trigger t before delete on outbox for each row execute function nothing()",
        "create rule r as on delete to outbox do instead nothing",
    ] {
        assert_unsettled(&deleting(), ddl, "DELETE").await;
    }
}

/// Undoes the mark of the rows that were just marked, but not what it did itself.
const UNDO: &str = "create function undo() returns trigger language plpgsql as $$ begin \
    if pg_trigger_depth() = 1 then update outbox set published_at = null where published_at is not null; end if; \
    return null; end $$;";

#[tokio::test]
async fn a_mark_that_is_undone_afterwards_is_noticed() {
    for ddl in [
        "create trigger t after update on outbox for each row execute function undo()",
        "create trigger t after update on outbox for each statement execute function undo()",
        "create constraint trigger t after update on outbox deferrable initially deferred for each row execute function undo()",
    ] {
        assert_unsettled(&OutboxSettings::default(), ddl, "UPDATE").await;
    }
    assert_unsettled(
        &deleting(),
        "create function again() returns trigger language plpgsql as $$ begin \
           insert into outbox overriding system value select old.*; return null; end $$; \
         create trigger t after delete on outbox for each row execute function again()",
        "DELETE",
    )
    .await;
}

#[tokio::test]
async fn a_partition_whose_trigger_undoes_the_mark_is_noticed() {
    let f = Fixture::with(
        "create table parted (id uuid default gen_random_uuid(), seq bigint generated always as identity, type text, \
           published_at timestamptz) partition by range (seq); \
         create table parted_1 partition of parted for values from (0) to (3); \
         create table parted_2 partition of parted for values from (3) to (100)",
        &OutboxSettings {
            table: Some("parted".into()),
            ..OutboxSettings::default()
        },
    )
    .await;
    f.sql(
        "insert into parted (type) select 't' from generate_series(1, 5); \
         create function undo() returns trigger language plpgsql as $$ begin \
           if pg_trigger_depth() = 1 then update parted set published_at = null where seq = new.seq; end if; \
           return null; end $$; \
         create trigger t after update on parted_2 for each row execute function undo()",
    )
    .await;
    let settle = first(&f, 5).await;
    assert_eq!(unsettled(&f, &settle).await.0, [3, 4, 5]);
}

#[tokio::test]
async fn a_slow_settle_is_waited_for() {
    let f = Fixture::new().await;
    f.insert(5, 5).await;
    // Longer than a settle waits for a lock.
    f.sql(
        "create sequence tried; create function slow() returns trigger language plpgsql as $$ begin \
           perform nextval('tried'); perform pg_sleep(1.5); return null; end $$; \
         create trigger t before update on outbox for each statement execute function slow()",
    )
    .await;
    let settle = first(&f, 5).await;
    assert_eq!(unsettled(&f, &settle).await.0, Vec::<i64>::new());
    assert_eq!(f.count(MARKED).await, 5);
    let tried = "select last_value from tried";
    assert_eq!(f.count(tried).await, 1, "it was begun once");
}

#[tokio::test]
async fn a_locked_table_is_an_outage_and_says_nothing_about_rows() {
    let f = Fixture::new().await;
    f.insert(5, 5).await;
    let settle = first(&f, 5).await;
    let other = server().await.client(&f.name).await;
    other
        .batch_execute("begin; lock table outbox in access exclusive mode")
        .await
        .unwrap();
    let answer = f.store.settle(&settle);
    let unlock = async {
        let waits =
            "select count(*) from pg_locks where not granted and relation = 'outbox'::regclass";
        while f.count(waits).await == 0 {
            tokio::task::yield_now().await;
        }
        // Longer than a settle waits for the lock of a row.
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        other.batch_execute("rollback").await.unwrap();
    };
    let (answer, ()) = tokio::join!(answer, unlock);
    assert_eq!(answer.unwrap(), []);
    assert_eq!(f.count(MARKED).await, 5);
}

#[tokio::test]
async fn a_trigger_that_only_watches_and_rules_that_add_are_no_trouble() {
    for ddl in [
        "create function touch() returns trigger language plpgsql as $$ begin new.subject := 'seen'; return new; end $$; \
         create trigger t before update on outbox for each row execute function touch()",
        "create table log (n bigint); create rule r as on update to outbox do also insert into log values (new.seq)",
    ] {
        let f = Fixture::new().await;
        f.insert(5, 5).await;
        f.sql(ddl).await;
        let settle = first(&f, 5).await;
        assert_eq!(unsettled(&f, &settle).await.0, Vec::<i64>::new(), "{ddl}");
        assert_eq!(f.count(MARKED).await, 5, "{ddl}");
    }
}

#[tokio::test]
async fn row_level_security_without_a_policy_for_updates_is_refused() {
    let f = Fixture::new().await;
    f.insert(3, 3).await;
    let role = format!("relay_{}", f.name);
    f.sql(&format!(
        "create role {role} login; grant select, update, delete on outbox to {role}; \
         grant usage on schema outrigger to {role}; grant all on all tables in schema outrigger to {role}; \
         grant all on all sequences in schema outrigger to {role}; \
         alter table outbox enable row level security; create policy p on outbox for select using (true)"
    ))
    .await;
    let url = server().await.url(&f.name);
    let separator = if url.contains('?') { '&' } else { '?' };
    let url = format!("{url}{separator}options=-c%20role%3D{role}");
    let opened = crate::fixture::database(&url, &OutboxSettings::default())
        .open()
        .await;
    let error = opened.unwrap_err().to_string();
    assert!(
        error.contains("row-level security") && error.contains("update"),
        "{error}"
    );
}

#[tokio::test]
async fn rows_that_others_have_settled_are_settled() {
    let f = Fixture::new().await;
    f.insert(3, 3).await;
    let settle = first(&f, 3).await;
    f.sql("update outbox set published_at = now() where seq = 1; delete from outbox where seq = 2")
        .await;
    assert_eq!(unsettled(&f, &settle).await.0, Vec::<i64>::new());
    assert_eq!(f.count(MARKED).await, 2);
}

#[tokio::test]
async fn a_locked_row_keeps_no_other_from_being_settled() {
    for settings in [OutboxSettings::default(), deleting()] {
        let f = Fixture::with("", &settings).await;
        f.insert(500, 500).await;
        let settle = first(&f, 500).await;
        let other = server().await.client(&f.name).await;
        other
            .batch_execute("begin; select from outbox where seq = 123 for update")
            .await
            .unwrap();
        let began = Instant::now();
        let (rows, reason) = unsettled(&f, &settle).await;
        assert!(rows.contains(&123) && rows.len() < 20, "{rows:?}");
        assert!(reason.contains("lock"), "{reason}");
        // Not for as long as a statement may take.
        assert!(began.elapsed() < Duration::from_secs(15));
        other.batch_execute("rollback").await.unwrap();
        assert_eq!(unsettled(&f, &settle).await.0, Vec::<i64>::new());
        assert_eq!(f.seqs(&from_start()).await, Vec::<i64>::new());
    }
}

#[tokio::test]
async fn a_row_that_the_database_refuses_to_change_keeps_no_other_from_being_settled() {
    const RAISE: &str = "create function refuse() returns trigger language plpgsql as $$ begin \
        if new.seq in (77, 400) then raise 'not this one'; end if; return new; end $$; \
        create trigger t before update on outbox for each row execute function refuse()";
    const DEFERRED: &str = "create function refuse() returns trigger language plpgsql as $$ begin \
        if new.seq in (77, 400) then raise 'not this one'; end if; return null; end $$; \
        create constraint trigger t after update on outbox deferrable initially deferred for each row execute function refuse()";
    const REFERENCED: &str =
        "create table note (o bigint references outbox(seq)); insert into note values (77), (400)";
    for (ddl, settings, says) in [
        (RAISE, OutboxSettings::default(), "not this one"),
        (DEFERRED, OutboxSettings::default(), "not this one"),
        (REFERENCED, deleting(), "foreign key"),
    ] {
        let f = Fixture::with("", &settings).await;
        f.insert(500, 500).await;
        f.sql(ddl).await;
        let settle = first(&f, 500).await;
        let (rows, reason) = unsettled(&f, &settle).await;
        assert_eq!(rows, [77, 400], "{ddl}");
        assert!(reason.contains(says), "{reason}");
        assert_eq!(f.seqs(&from_start()).await, [77, 400], "{ddl}");
    }
}

#[tokio::test]
async fn what_hits_every_row_is_not_tried_with_each() {
    let f = Fixture::new().await;
    f.insert(900, 900).await;
    f.sql(
        "create sequence tried; create function refuse() returns trigger language plpgsql as $$ begin \
           perform nextval('tried'); raise 'none of them'; end $$; \
         create trigger t before update on outbox for each row execute function refuse()",
    )
    .await;
    let settle = first(&f, 900).await;
    assert_eq!(unsettled(&f, &settle).await.0.len(), 900);
    assert!(f.count("select last_value from tried").await < 30);
}

#[tokio::test]
async fn an_unsettled_row_is_not_read_again_and_comes_back_to_be_settled() {
    let f = Fixture::new().await;
    f.insert(3, 1).await;
    let me = f.store.register("a", Duration::from_secs(10), 4).await;
    let me = me.unwrap().replica;
    f.store.claim(me, &[0, 1, 2, 3]).await.unwrap();
    assert!(!f.store.tick(me, false).await.unwrap().unsettled);
    let rows = f.store.read(&from_start()).await.unwrap().rows;
    let record = |after| Failure {
        seq: 1,
        hash: rows[0].hash,
        keyed: true,
        event_id: rows[0].id.clone(),
        event_type: "t".into(),
        key: rows[0].key.clone(),
        state: FailureState::Unsettled,
        attempts: 4,
        crashes: 0,
        reason: None,
        retry_after: Some(after),
    };
    let hour = Duration::from_secs(3600);
    f.store.record_failures(&[record(hour)], me).await.unwrap();
    // Its key goes on, by whatever way.
    assert_eq!(f.seqs(&from_start()).await, [2, 3]);
    let catch_up = request(ReadKind::CatchUp {
        after: 0,
        up_to: 9,
        keys: vec![rows[0].hash],
    });
    assert_eq!(f.seqs(&catch_up).await, [2, 3]);
    assert_eq!(f.store.status().await.unwrap().pending, 2);
    let mut retries = request(ReadKind::Retries);
    assert_eq!(f.seqs(&retries).await, Vec::<i64>::new());
    f.store
        .record_failures(&[record(Duration::ZERO)], me)
        .await
        .unwrap();
    let tick = f.store.tick(me, false).await.unwrap();
    assert!(tick.unsettled && tick.next_due_in == Some(Duration::ZERO));
    // Its key need not be free.
    retries.skip_keys = vec![rows[0].hash];
    let due = f.store.read(&retries).await.unwrap().rows;
    assert!(due.len() == 1 && due[0].published && due[0].attempts == 4);
    // An operator's retry settles it again, and does not publish it.
    f.store.retry(&Default::default()).await.unwrap();
    assert_eq!(f.seqs(&from_start()).await, [2, 3]);

    // Its record stays until it is settled.
    let settle = Settle {
        careful: true,
        ..settled(&f.store, &[1], &[1]).await
    };
    f.sql(&format!(
        "{NOTHING} create trigger t before update on outbox for each row execute function nothing()"
    ))
    .await;
    let records = "select count(*) from outrigger.failures";
    for careful in [true, false] {
        let settle = Settle {
            careful,
            ..settle.clone()
        };
        assert_eq!(unsettled(&f, &settle).await.0, [1]);
        assert_eq!(f.count(records).await, 1);
    }
    // Discarding is no more believed than settling.
    assert_eq!(f.store.discard(&Default::default()).await.unwrap(), 0);
    assert_eq!(f.count(records).await, 1);
    f.sql("drop trigger t on outbox").await;
    assert_eq!(unsettled(&f, &settle).await.0, Vec::<i64>::new());
    assert_eq!(f.count(records).await, 0);
    assert!(!f.store.tick(me, false).await.unwrap().unsettled);
}

#[tokio::test]
async fn settling_twice_changes_nothing() {
    let f = Fixture::new().await;
    f.insert(3, 3).await;
    let settle = settled(&f.store, &[1, 2, 99], &[]).await;
    assert_eq!(f.store.settle(&settle).await.unwrap(), []);
    let first = "select count(distinct published_at) from outbox where published_at < now()";
    assert_eq!(f.count(first).await, 1);
    assert_eq!(f.store.settle(&settle).await.unwrap(), []);
    assert_eq!(f.store.settle(&Settle::default()).await.unwrap(), []);
    assert_eq!(f.count(first).await, 1);
    assert_eq!(f.seqs(&from_start()).await, [3]);
}
