//! One partition: all rows are one sequence.

use outrigger::store::ReadRequest;

use crate::fixture::{Fixture, from_start};

#[tokio::test]
async fn with_one_partition_all_rows_are_one_sequence() {
    let f = Fixture::new().await;
    f.insert(4, 3).await;
    f.sql("insert into outbox (type) values ('without.key')")
        .await;
    let total = f.store.for_partitions(1);
    let rows = total.read(&from_start()).await.unwrap().rows;
    assert_eq!(rows.len(), 5);
    assert!(
        rows.iter().all(|row| row.keyed && row.hash == 0),
        "{rows:?}"
    );
    // The key itself is not touched.
    assert!(rows[0].key.is_some() && rows[4].key.is_none());
    let skipped = ReadRequest {
        skip_keys: vec![0],
        ..from_start()
    };
    assert!(total.read(&skipped).await.unwrap().rows.is_empty());
    let rows = f
        .store
        .for_partitions(2)
        .read(&from_start())
        .await
        .unwrap()
        .rows;
    assert!(rows.iter().any(|row| row.hash != rows[0].hash));
}
