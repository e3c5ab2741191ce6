//! Servers that give no statement much time.

use std::time::Duration;

use outrigger::store::postgres::OutboxSettings;
use outrigger::store::{ReadKind, ReadRequest};

use crate::fixture::{Fixture, database, request, server};

#[tokio::test]
async fn a_server_that_cuts_reads_short_hands_out_smaller_ones() {
    let f = Fixture::new().await;
    // Twenty megabytes of text to unpack and send, and two milliseconds for a row.
    f.sql(
        "insert into outbox (type, key, data) \
         select 't', 'k', to_jsonb(repeat(md5(g::text), 320)) from generate_series(1, 2000) g; analyze outbox",
    )
    .await;
    let url = format!(
        "{}&options=-c%20statement_timeout%3D15",
        server().await.url(&f.name)
    );
    let hurried = database(&url, &OutboxSettings::default());
    let patience = Duration::from_secs(60);
    let (rows, failures) = tokio::time::timeout(patience, async {
        let store = loop {
            match hurried.open().await {
                Ok(store) => break store,
                // A busy machine may be too slow even for this.
                Err(error) => assert_eq!(error.sqlstate(), Some("57014"), "{error}"),
            }
        };
        let (mut rows, mut failures, mut after) = (0, 0, None);
        while rows < 2000 {
            let whole = ReadRequest {
                limit: 2000,
                byte_limit: 1 << 30,
                ..request(ReadKind::Main { after })
            };
            match store.read(&whole).await {
                Ok(batch) => {
                    assert!(batch.cut || rows + batch.rows.len() == 2000);
                    rows += batch.rows.len();
                    after = batch.rows.last().map(|row| row.seq).or(after);
                }
                Err(error) => {
                    assert_eq!(error.sqlstate(), Some("57014"), "{error}");
                    failures += 1;
                }
            }
        }
        (rows, failures)
    })
    .await
    .expect("all rows are read");
    assert_eq!(rows, 2000);
    assert!(failures > 0, "a full read is cut short");
}
