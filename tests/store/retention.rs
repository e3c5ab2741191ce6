//! What is deleted after its time, and what is not.

use std::time::Duration;

use outrigger::store::postgres::{AfterPublish, OutboxSettings, Preset};

use crate::fixture::{Fixture, database, from_start, server};

const WEEK: Duration = Duration::from_secs(7 * 86_400);

#[tokio::test]
async fn goes_in_order_and_stops_at_young_rows() {
    let f = Fixture::new().await;
    f.insert(10, 5).await;
    f.sql("update outbox set published_at = now() - interval '10 days' where seq in (1, 2, 4, 5)")
        .await;
    f.sql("update outbox set published_at = now() where seq > 6")
        .await;
    let step = f.store.retention_chunk(WEEK, None, 3).await.unwrap();
    assert_eq!((step.deleted, step.next_after), (2, Some(3)));
    let step = f
        .store
        .retention_chunk(WEEK, step.next_after, 3)
        .await
        .unwrap();
    assert_eq!((step.deleted, step.next_after), (2, Some(6)));
    let step = f
        .store
        .retention_chunk(WEEK, step.next_after, 3)
        .await
        .unwrap();
    assert_eq!((step.deleted, step.next_after), (0, None));
    assert_eq!(f.count("select count(*) from outbox").await, 6);
    assert_eq!(f.seqs(&from_start()).await, [3, 6]);
}

#[tokio::test]
async fn rows_that_wait_at_the_front_do_not_end_it() {
    let f = Fixture::new().await;
    f.insert(9, 3).await;
    f.sql("update outbox set published_at = now() - interval '10 days' where seq > 6")
        .await;
    let (mut after, mut deleted) = (None, 0);
    loop {
        let step = f.store.retention_chunk(WEEK, after, 2).await.unwrap();
        deleted += step.deleted;
        after = step.next_after;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(deleted, 3);
}

#[tokio::test]
async fn a_row_that_cannot_be_deleted_is_counted_and_keeps_no_other() {
    let f = Fixture::new().await;
    f.insert(6, 3).await;
    f.sql("update outbox set published_at = now() - interval '10 days'")
        .await;
    let other = server().await.client(&f.name).await;
    other
        .batch_execute("begin; select from outbox where seq = 2 for update")
        .await
        .unwrap();
    let step = f.store.retention_chunk(WEEK, None, 3).await.unwrap();
    assert_eq!((step.deleted, step.kept), (2, 1), "locked");
    other.batch_execute("rollback").await.unwrap();
    f.sql("create function keep() returns trigger language plpgsql as $$ begin return null; end $$; \
           create trigger keep before delete on outbox for each row when (old.seq = 5) execute function keep()")
        .await;
    let step = f.store.retention_chunk(WEEK, None, 9).await.unwrap();
    assert_eq!((step.deleted, step.kept), (3, 1), "a trigger keeps it");
    assert_eq!(f.count("select sum(seq)::int8 from outbox").await, 5);
}

#[tokio::test]
async fn a_table_without_order_is_kept_as_well() {
    let settings = OutboxSettings {
        preset: Preset::Debezium,
        after_publish: Some(AfterPublish::Mark),
        column_published_at: Some("sent".into()),
        ..Default::default()
    };
    let f = Fixture::with(
        "create table outbox (id uuid primary key default gen_random_uuid(), type text, sent timestamptz); \
         insert into outbox (type, sent) select 't', now() - interval '10 days' from generate_series(1, 5); \
         insert into outbox (type, sent) values ('young', now()), ('pending', null)",
        &settings,
    )
    .await;
    let step = f.store.retention_chunk(WEEK, None, 3).await.unwrap();
    assert!(step.deleted == 3 && step.next_after.is_some(), "{step:?}");
    let step = f
        .store
        .retention_chunk(WEEK, step.next_after, 3)
        .await
        .unwrap();
    assert_eq!((step.deleted, step.next_after), (2, None));
    assert_eq!(f.count("select count(*) from outbox").await, 2);
}

/// Whether published rows go by default, if the table was made like this before `migrate`.
async fn is_ours(ddl: &str) -> bool {
    let f = Fixture::with(ddl, &OutboxSettings::default()).await;
    f.store.capabilities().created_by_migrate
}

#[tokio::test]
async fn only_a_table_that_migrate_created_has_a_history_that_is_ours() {
    assert!(is_ours("").await);
    let by_hand = "create table outbox (seq bigint generated always as identity primary key, id uuid not null default \
                   gen_random_uuid(), type text not null, key text, data jsonb, created_at timestamptz default now(), \
                   published_at timestamptz)";
    assert!(!is_ours(by_hand).await, "it only looks like ours");
    // Whatever made another table take the place of ours.
    let f = Fixture::new().await;
    f.sql(&format!("drop table outbox; {by_hand}")).await;
    let again = database(&server().await.url(&f.name), &OutboxSettings::default());
    again.migrate(true).await.unwrap();
    let store = again.open().await.unwrap();
    assert!(!store.capabilities().created_by_migrate);
}

#[tokio::test]
async fn what_is_about_to_be_deleted_can_be_counted() {
    let f = Fixture::new().await;
    let database = database(&server().await.url(&f.name), &OutboxSettings::default());
    assert_eq!(database.history(WEEK).await.unwrap().rows, 0);
    f.insert(6, 3).await;
    f.sql("update outbox set published_at = now() - interval '400 days' where seq < 4")
        .await;
    f.sql("update outbox set published_at = '-infinity' where seq = 4; update outbox set published_at = now() where seq = 5")
        .await;
    let history = database.history(WEEK).await.unwrap();
    assert_eq!((history.rows, history.more), (4, false));
    assert_eq!(history.oldest.unwrap().as_secs() / 86_400, 400);
}
