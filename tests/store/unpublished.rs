//! Events that are over without having been published: their rows look like published ones, so a record says otherwise.

use std::time::Duration;

use outrigger::store::postgres::admin::FailureFilter;
use outrigger::store::postgres::replay::{ReplayFilter, ReplayMode};
use outrigger::store::postgres::{AfterPublish, OutboxSettings, Preset};
use outrigger::store::{FailureState, Settle};

use crate::fixture::{Fixture, from_start, settled};

const WEEK: Duration = Duration::from_secs(7 * 86_400);
const RECORDS: &str = "select count(*) from outrigger.unpublished";

fn deleting() -> OutboxSettings {
    OutboxSettings {
        after_publish: Some(AfterPublish::Delete),
        ..OutboxSettings::default()
    }
}

async fn dead(f: &Fixture, seq: i64, state: &str) {
    f.sql(&format!(
        "insert into outrigger.failures (outbox, seq, hash, keyed, event_id, event_type, key, state, attempts, crashes, reason, \
           error, first_failed_at) select 'public.outbox', seq, 1, true, id::text, type, key, '{state}', 5, 1, 'nack', 'full', \
           now() - interval '1 hour' from outbox where seq = {seq}"
    ))
    .await;
}

/// Settles rows of which some expired.
async fn expire(f: &Fixture, seqs: &[i64], expired: &[i64], careful: bool) -> Vec<i64> {
    let settle = Settle {
        expired: expired.to_vec(),
        careful,
        ..settled(&f.store, seqs, seqs).await
    };
    let left = f.store.settle(&settle).await.unwrap();
    left.into_iter().map(|row| row.seq).collect()
}

async fn over(f: &Fixture, state: FailureState) -> Vec<(i64, u32, Option<String>)> {
    let filter = FailureFilter {
        states: vec![state],
        ..FailureFilter::default()
    };
    let rows = f.store.failures(&filter).await.unwrap();
    rows.into_iter()
        .inspect(|row| assert!(row.ended_by.is_some() && row.next_attempt_at.is_none()))
        .map(|row| (row.seq, row.attempts, row.error))
        .collect()
}

#[tokio::test]
async fn what_was_discarded_stays_known_and_is_not_replayed() {
    let f = Fixture::new().await;
    f.insert(4, 2).await;
    dead(&f, 2, "dead").await;
    // Published, and its row would not be marked: to give that up is not to discard an event.
    dead(&f, 3, "unsettled").await;
    f.store
        .settle(&settled(&f.store, &[1], &[]).await)
        .await
        .unwrap();
    let both = FailureFilter {
        states: vec![FailureState::Dead, FailureState::Unsettled],
        ..FailureFilter::default()
    };
    assert_eq!(f.store.discard(&both).await.unwrap(), 2);
    assert_eq!(
        over(&f, FailureState::Discarded).await,
        [(2, 5, Some("full".into()))]
    );
    assert_eq!(
        f.store.failures(&FailureFilter::default()).await.unwrap(),
        []
    );
    let status = f.store.status().await.unwrap();
    assert_eq!(
        (
            status.dead,
            status.discarded,
            status.expired,
            status.pending
        ),
        (0, 1, 0, 1)
    );
    // The core takes none of it for a failing row: what is pending is read, and its key waits for nothing.
    assert_eq!(f.seqs(&from_start()).await, [4]);
    let seen = f.store.tail(0, 10).await.unwrap();
    let states: Vec<_> = seen.iter().map(|row| row.failure).collect();
    assert_eq!(states, [None, Some(FailureState::Discarded), None, None]);

    let all = ReplayFilter {
        from_seq: Some(1),
        ..ReplayFilter::default()
    };
    let count = f.store.replay_count(&all).await.unwrap();
    assert_eq!((count.matching, count.discarded, count.expired), (2, 1, 0));
    f.store
        .replay(&all, ReplayMode::SameIds, 10, |_| {})
        .await
        .unwrap();
    assert_eq!(f.seqs(&from_start()).await, [1, 3, 4]);
    let discarded = ReplayFilter {
        discarded: true,
        ..all
    };
    assert_eq!(f.store.replay_count(&discarded).await.unwrap().matching, 1);
    f.store
        .replay(&discarded, ReplayMode::SameIds, 10, |_| {})
        .await
        .unwrap();
    assert_eq!(f.seqs(&from_start()).await, [1, 2, 3, 4]);
    assert_eq!(
        f.count(RECORDS).await,
        0,
        "what is pending again is not over"
    );
}

#[tokio::test]
async fn what_expired_is_recorded_with_the_settle() {
    for careful in [false, true] {
        let f = Fixture::new().await;
        f.insert(4, 2).await;
        dead(&f, 2, "retrying").await;
        assert_eq!(
            expire(&f, &[1, 2, 3], &[2, 3], careful).await,
            [] as [i64; 0]
        );
        assert_eq!(
            over(&f, FailureState::Expired).await,
            [(2, 5, Some("full".into())), (3, 0, None)],
            "careful: {careful}"
        );
        assert_eq!(f.count("select count(*) from outrigger.failures").await, 0);
        // Whoever settled a row before had published it.
        assert_eq!(expire(&f, &[1, 4], &[1, 4], careful).await, [] as [i64; 0]);
        assert_eq!(over(&f, FailureState::Expired).await.len(), 3);
        let all = ReplayFilter {
            from_seq: Some(1),
            ..ReplayFilter::default()
        };
        let count = f.store.replay_count(&all).await.unwrap();
        assert_eq!((count.matching, count.discarded, count.expired), (1, 0, 3));
        let copies = ReplayFilter {
            expired: true,
            ..all
        };
        let copied = f
            .store
            .replay(&copies, ReplayMode::NewIds, 10, |_| {})
            .await;
        assert_eq!(copied.unwrap(), 4);
        assert_eq!(f.count(RECORDS).await, 3, "the originals stay expired");
    }
}

#[tokio::test]
async fn a_row_that_cannot_be_marked_has_expired_all_the_same() {
    let f = Fixture::new().await;
    f.insert(2, 2).await;
    f.sql(
        "create function nothing() returns trigger language plpgsql as $$ begin return null; end $$; \
         create trigger t before update on outbox for each row execute function nothing()",
    )
    .await;
    assert_eq!(expire(&f, &[1, 2], &[1], true).await, [1, 2]);
    assert_eq!(over(&f, FailureState::Expired).await, [(1, 0, None)]);
    f.sql("drop trigger t on outbox").await;
    // As a row that was published before.
    assert_eq!(expire(&f, &[1, 2], &[], true).await, [] as [i64; 0]);
    assert_eq!(over(&f, FailureState::Expired).await, [(1, 0, None)]);
}

#[tokio::test]
async fn records_go_with_their_rows() {
    let f = Fixture::new().await;
    f.insert(3, 3).await;
    expire(&f, &[1, 2], &[1, 2], false).await;
    f.sql("update outbox set published_at = now() - interval '10 days' where seq = 1")
        .await;
    f.sql("update outrigger.unpublished set ended_at = now() - interval '10 days'")
        .await;
    assert_eq!(f.store.forget_unpublished(WEEK, 10).await.unwrap(), 0);
    assert_eq!(
        f.store
            .retention_chunk(WEEK, None, 10)
            .await
            .unwrap()
            .deleted,
        1
    );
    assert_eq!(over(&f, FailureState::Expired).await, [(2, 0, None)]);
    f.sql("delete from outbox where seq = 2").await;
    assert_eq!(f.store.forget_unpublished(WEEK, 10).await.unwrap(), 1);
}

#[tokio::test]
async fn where_rows_are_deleted_the_record_is_what_stays() {
    let f = Fixture::with("", &deleting()).await;
    f.insert(3, 3).await;
    dead(&f, 3, "dead").await;
    expire(&f, &[1, 2], &[2], false).await;
    assert_eq!(f.store.discard(&FailureFilter::default()).await.unwrap(), 1);
    assert_eq!(f.count("select count(*) from outbox").await, 0);
    assert_eq!(over(&f, FailureState::Expired).await, [(2, 0, None)]);
    assert_eq!(over(&f, FailureState::Discarded).await.len(), 1);
    assert_eq!(f.store.forget_unpublished(WEEK, 10).await.unwrap(), 0);
    f.sql("update outrigger.unpublished set ended_at = now() - interval '10 days'")
        .await;
    assert_eq!(f.store.forget_unpublished(WEEK, 1).await.unwrap(), 1);
    assert_eq!(f.store.forget_unpublished(WEEK, 10).await.unwrap(), 1);
}

#[tokio::test]
async fn tables_of_others_have_them_too() {
    let mapped = OutboxSettings {
        preset: Preset::Debezium,
        after_publish: Some(AfterPublish::Mark),
        column_published_at: Some("sent".into()),
        ..OutboxSettings::default()
    };
    let f = Fixture::with(
        "create table outbox (id uuid primary key default gen_random_uuid(), type text, sent boolean)",
        &mapped,
    )
    .await;
    f.sql("insert into outbox (type) select 't' from generate_series(1, 3)")
        .await;
    let rows = f.store.read(&from_start()).await.unwrap().rows;
    let settle = Settle {
        rows: rows.iter().map(crate::fixture::row_settled).collect(),
        expired: vec![rows[1].seq],
        ..Settle::default()
    };
    assert_eq!(f.store.settle(&settle).await.unwrap(), []);
    let expired = over(&f, FailureState::Expired).await;
    assert_eq!(expired, [(rows[1].seq, 0, None)]);
    assert_eq!(
        f.store
            .forget_unpublished(Duration::ZERO, 10)
            .await
            .unwrap(),
        0
    );
    f.sql("truncate outbox").await;
    assert_eq!(
        f.store
            .forget_unpublished(Duration::ZERO, 10)
            .await
            .unwrap(),
        1
    );
}
