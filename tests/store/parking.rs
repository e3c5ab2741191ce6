//! Keys that the database holds because they are too many for memory.

use std::time::Duration;

use outrigger::event::Record;
use outrigger::store::postgres::admin::FailureFilter;
use outrigger::store::{Failure, FailureState, Park, Partitions, ReadKind, partition_of};
use uuid::Uuid;

use crate::fixture::{Fixture, failure, from_start, request, settled};

fn blocked(row: &Record) -> Failure {
    Failure {
        retry_after: None,
        ..failure(row, FailureState::Blocked)
    }
}

fn park(keys: &[i64]) -> Park {
    Park {
        park: keys.to_vec(),
        unpark: Vec::new(),
    }
}

fn unpark(keys: &[i64]) -> Park {
    Park {
        park: Vec::new(),
        unpark: keys.to_vec(),
    }
}

/// Rows 1 to 6 of the keys 1, 2, 0, 1, 2, 0, and the owner of all partitions.
async fn begin() -> (Fixture, Vec<Record>, Uuid) {
    let f = Fixture::new().await;
    f.insert(6, 3).await;
    let me = f.store.register("a", Duration::from_secs(10), 4).await;
    let me = me.unwrap().replica;
    assert_eq!(f.store.claim(me, &[0, 1, 2, 3]).await.unwrap().len(), 4);
    let rows = f.store.read(&from_start()).await.unwrap().rows;
    (f, rows, me)
}

#[tokio::test]
async fn reads_of_new_rows_leave_parked_keys_out_and_others_do_not() {
    let (f, rows, me) = begin().await;
    f.sql("update outbox set available_at = now() - interval '1 s' where seq > 3")
        .await;
    let key = rows[0].hash;
    assert_eq!(f.store.park(&park(&[key]), me).await.unwrap(), [key]);
    assert_eq!(f.store.park(&park(&[key]), me).await.unwrap(), [key]);
    assert_eq!(f.seqs(&from_start()).await, [2, 3, 5, 6]);
    let sweep = ReadKind::Sweep { after: 0, up_to: 9 };
    assert_eq!(f.seqs(&request(sweep)).await, [2, 3, 5, 6]);
    assert_eq!(f.seqs(&request(ReadKind::Due)).await, [5, 6]);
    let catch_up = ReadKind::CatchUp {
        after: 0,
        up_to: 9,
        keys: vec![key],
    };
    assert_eq!(f.seqs(&request(catch_up)).await, [1, 4]);
    assert_eq!(f.store.tick(me, false).await.unwrap().parked, 1);
    assert_eq!(f.store.status().await.unwrap().parked, 1);

    assert_eq!(f.store.park(&unpark(&[key]), me).await.unwrap(), [key]);
    assert_eq!(f.seqs(&from_start()).await, [1, 2, 3, 4, 5, 6]);
    assert_eq!(f.store.tick(me, false).await.unwrap().parked, 0);
}

#[tokio::test]
async fn only_the_owner_of_its_partition_unparks_a_key() {
    let (f, rows, me) = begin().await;
    let key = rows[0].hash;
    f.store.park(&park(&[key]), me).await.unwrap();
    let other = f.store.register("b", Duration::from_secs(10), 4).await;
    let other = other.unwrap().replica;
    assert_eq!(
        f.store.park(&unpark(&[key]), other).await.unwrap(),
        [0_i64; 0]
    );
    f.store.release(me, &[partition_of(key, 4)]).await.unwrap();
    assert_eq!(f.store.park(&unpark(&[key]), me).await.unwrap(), [0_i64; 0]);
    assert_eq!(f.seqs(&from_start()).await, [2, 3, 5, 6]);
}

#[tokio::test]
async fn keys_beyond_those_that_are_loaded_are_parked() {
    let (f, rows, me) = begin().await;
    let failures: Vec<Failure> = rows[..3].iter().map(blocked).collect();
    f.store.record_failures(&failures, me).await.unwrap();
    let loaded = f
        .store
        .load_failing(&Partitions::All, (2, 9))
        .await
        .unwrap();
    let seqs: Vec<i64> = loaded.failing.iter().map(|row| row.seq).collect();
    assert_eq!((seqs, loaded.cut), (vec![1, 2], true));
    assert_eq!((loaded.released, loaded.more), (vec![], false));
    // The keys of the first two are held in memory, and the third key's rows come to nobody.
    assert_eq!(f.seqs(&from_start()).await, [4, 5]);
    let again = f
        .store
        .load_failing(&Partitions::All, (9, 9))
        .await
        .unwrap();
    let seqs: Vec<i64> = again.failing.iter().map(|row| row.seq).collect();
    assert_eq!((seqs, again.cut), (vec![1, 2], false), "not the parked one");
}

#[tokio::test]
async fn a_parked_key_stays_so_when_its_failed_row_is_over_and_is_handed_to_its_owner() {
    let (f, rows, me) = begin().await;
    let keys: Vec<i64> = rows[..3].iter().map(|row| row.hash).collect();
    let failures: Vec<Failure> = rows[..3].iter().map(blocked).collect();
    f.store.record_failures(&failures, me).await.unwrap();
    f.store.park(&park(&keys), me).await.unwrap();
    let load = async |limit| f.store.load_failing(&Partitions::All, (9, limit)).await;
    assert_eq!(load(9).await.unwrap().released, [0_i64; 0]);

    // By an operator, by a replica that settles late, and by hand.
    let first = FailureFilter {
        events: vec!["1".to_owned()],
        ..FailureFilter::default()
    };
    assert_eq!(f.store.discard(&first).await.unwrap(), 1);
    let late = settled(&f.store, &[2], &[2]).await;
    f.store.settle(&late).await.unwrap();
    f.sql("delete from outbox where seq = 3").await;

    assert_eq!(f.seqs(&from_start()).await, [0_i64; 0], "rows 4 to 6 wait");
    let mut released = load(9).await.unwrap().released;
    released.sort_unstable();
    let mut wanted = keys.clone();
    wanted.sort_unstable();
    assert_eq!(released, wanted);
    let some = load(2).await.unwrap();
    assert_eq!((some.released.len(), some.more), (2, true));
    let mine = Partitions::Some {
        owned: vec![partition_of(keys[0], 64)],
        count: 64,
    };
    let mine = f.store.load_failing(&mine, (9, 9)).await.unwrap();
    let ours = |hash: &&i64| partition_of(**hash, 64) == partition_of(keys[0], 64);
    assert_eq!(mine.released.len(), keys.iter().filter(ours).count());
}

#[tokio::test]
async fn a_key_is_parked_or_not_only_if_the_table_says_so() {
    let (f, rows, me) = begin().await;
    let keys = [rows[0].hash, rows[1].hash];
    assert_eq!(
        f.store.park(&park(&keys[..1]), me).await.unwrap(),
        keys[..1]
    );
    f.store
        .record_failures(&[blocked(&rows[0]), blocked(&rows[1])], me)
        .await
        .unwrap();
    f.sql(
        "create function nothing() returns trigger language plpgsql as $$ begin return null; end $$; \
         create trigger t before insert or delete on outrigger.parked for each row execute function nothing()",
    )
    .await;
    for (wanted, what) in [(park(&keys), "INSERT"), (unpark(&keys), "DELETE")] {
        let error = f.store.park(&wanted, me).await.unwrap_err().to_string();
        assert!(
            error.contains(what) && error.contains("outrigger.parked"),
            "{error}"
        );
    }
    // More keys fail than may be loaded.
    f.sql("drop trigger t on outrigger.parked").await;
    assert_eq!(f.store.park(&unpark(&keys), me).await.unwrap().len(), 2);
    f.sql("create trigger t before insert on outrigger.parked for each row execute function nothing()")
        .await;
    let loaded = f.store.load_failing(&Partitions::All, (1, 9)).await;
    let error = loaded.unwrap_err().to_string();
    assert!(error.contains("INSERT"), "{error}");
    f.sql("drop trigger t on outrigger.parked").await;
    let loaded = f
        .store
        .load_failing(&Partitions::All, (1, 9))
        .await
        .unwrap();
    assert!(loaded.cut && loaded.failing.len() == 1);
}
