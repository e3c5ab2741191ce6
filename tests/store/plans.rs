//! The plans of statements, and statements that a session keeps.

use std::time::Duration;

use outrigger::store::postgres::{ListenState, OutboxSettings, PostgresStore, StoreErrorKind};
use outrigger::store::{ReadKind, ReadRequest};
use tokio::time::timeout;

use crate::fixture::{Fixture, database, from_start, request, server, settled};
use crate::pgbouncer::PgBouncer;
use crate::waking::listening;

/// A database whose server logs every statement, with or without its name.
async fn logged() -> Fixture {
    let mut f = Fixture::new().await;
    f.sql(&format!(
        "alter database {0} set log_statement = 'all'; alter database {0} set log_min_messages = 'log'",
        f.name
    ))
    .await;
    // The settings are those of new sessions.
    f.store = database(&server().await.url(&f.name), &OutboxSettings::default())
        .open()
        .await
        .unwrap();
    f
}

/// How often a statement with `text` in it ran, by name and without one.
async fn runs(f: &Fixture, text: &str) -> (usize, usize) {
    let log = server().await.log();
    let mine = format!("{}:", f.name);
    let lines = || {
        log.lines()
            .filter(|line| line.starts_with(&mine) && line.contains(text))
    };
    let unnamed = lines()
        .filter(|line| line.contains("execute <unnamed>: "))
        .count();
    let named = lines().filter(|line| line.contains("execute s")).count();
    (named, unnamed)
}

#[tokio::test]
async fn only_a_session_that_is_proven_to_be_ours_keeps_statements() {
    let f = logged().await;
    f.insert(10, 3).await;
    f.store.read(&from_start()).await.unwrap();
    let before = runs(&f, "pg_current_snapshot()").await;
    assert_eq!(before, (0, 1), "nothing is proven yet");
    let listening = listening(&f).await;
    for _ in 0..3 {
        f.store.read(&from_start()).await.unwrap();
    }
    assert_eq!(runs(&f, "pg_current_snapshot()").await, (3, 1));
    assert_eq!(runs(&f, "pg_locks").await, (3, 1));
    drop(listening);

    // The same database through a pooler: as long as one asks, nothing gets a name.
    let pooler = PgBouncer::start(server().await, 3).await;
    let store = database(&pooler.url(&f.name), &OutboxSettings::default())
        .open()
        .await
        .unwrap();
    let listener = store.listen();
    let mut state = listener.state();
    timeout(
        Duration::from_secs(20),
        state.wait_for(|state| matches!(state, ListenState::Refused(_))),
    )
    .await
    .unwrap()
    .unwrap();
    for _ in 0..3 {
        store.read(&from_start()).await.unwrap();
    }
    assert_eq!(runs(&f, "pg_current_snapshot()").await, (3, 4));
}

#[tokio::test]
async fn a_plan_made_for_a_tiny_table_does_not_scan_the_full_one() {
    let f = Fixture::new().await;
    let _listening = listening(&f).await;
    // One page: reading it is cheaper than any index.
    f.insert(2, 1).await;
    f.sql("vacuum analyze outbox").await;
    let reads = |after| {
        [
            from_start(),
            request(ReadKind::Main { after: Some(after) }),
            ReadRequest {
                known: vec![after],
                ..request(ReadKind::Main { after: Some(after) })
            },
        ]
    };
    for _ in 0..12 {
        for read in reads(0) {
            f.store.read(&read).await.unwrap();
        }
        let nothing = settled(&f.store, &[0], &[]).await;
        f.store.settle(&nothing).await.unwrap();
    }
    f.insert(50_000, 1_000).await;
    let scans = "select sum(seq_tup_read)::int8 from pg_stat_user_tables where relname = 'outbox'";
    for seq in 1..=50 {
        for read in reads(seq) {
            assert_eq!(f.store.read(&read).await.unwrap().rows.len(), 1_000);
        }
        let one = settled(&f.store, &[seq], &[]).await;
        assert_eq!(f.store.settle(&one).await.unwrap(), []);
    }
    // A session reports what it did when it ends.
    f.store.close();
    timeout(Duration::from_secs(20), async {
        let reported =
            "select sum(idx_scan)::int8 from pg_stat_user_tables where relname = 'outbox'";
        while f.count(reported).await < 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("200 index scans");
    assert_eq!(f.count(scans).await, 0);
}

/// Has the server log the plan of every statement of new sessions, and gives such a store.
async fn explained(f: &Fixture) -> PostgresStore {
    let name = &f.name;
    f.sql(&format!(
        "alter database {name} set session_preload_libraries = 'auto_explain'; \
         alter database {name} set auto_explain.log_min_duration = 0; \
         alter database {name} set log_min_messages = 'log'"
    ))
    .await;
    let url = server().await.url(name);
    database(&url, &OutboxSettings::default())
        .open()
        .await
        .unwrap()
}

/// The logged plans of statements that touch the outbox.
async fn plans(f: &Fixture) -> Vec<String> {
    // An entry goes on in lines that begin with a tab; then other databases may have their say.
    let log = server().await.log();
    let ours = format!("{}:LOG:", f.name);
    let entries = log.split(&ours).map(|entry| {
        let rest = entry.lines().skip(1);
        let rest = rest.take_while(|line| line.starts_with('\t'));
        rest.collect::<Vec<_>>().join("\n")
    });
    let touching = |entry: &String| {
        entry.contains("Query Text:")
            && (entry.contains("outbox\" o") || entry.contains("public.outbox o"))
    };
    entries.filter(touching).collect()
}

#[tokio::test]
async fn a_plan_made_for_a_tiny_table_settles_many_rows_in_one_pass() {
    let mut f = Fixture::new().await;
    f.store = explained(&f).await;
    let _listening = listening(&f).await;
    // Nothing knows yet how large the table will be.
    let nothing = settled(&f.store, &[0], &[]).await;
    for _ in 0..12 {
        f.store.settle(&nothing).await.unwrap();
    }
    f.insert(2_000, 100).await;
    let seqs: Vec<i64> = (1..=1_000).collect();
    let failed = &seqs[..500];
    let many = settled(&f.store, &seqs[500..], &[]).await;
    assert_eq!(f.store.settle(&many).await.unwrap(), []);
    let many = settled(&f.store, failed, failed).await;
    assert_eq!(f.store.settle(&many).await.unwrap(), []);
    let settles = plans(&f).await;
    let settles = settles
        .iter()
        .filter(|plan| plan.contains("published_at\" = now()"));
    let settles: Vec<&String> = settles.collect();
    assert!(settles.len() >= 14, "{settles:?}");
    for plan in settles {
        assert!(plan.contains("(hashed SubPlan"), "{plan}");
        // Rows times ids: a second for three thousand of each.
        assert!(!plan.contains("Nested Loop"), "{plan}");
    }
}

#[tokio::test]
async fn rows_come_only_from_the_server_that_is_asked() {
    let f = Fixture::new().await;
    f.insert(3, 1).await;
    let holders = f.store.read(&from_start()).await.unwrap().holders.unwrap();
    let sweep = |source| ReadRequest {
        source: Some(source),
        ..request(ReadKind::Sweep { after: 0, up_to: 9 })
    };
    assert_eq!(f.seqs(&sweep(holders.source)).await, [1, 2, 3]);
    let elsewhere = f.seqs(&sweep(holders.source - 1)).await;
    assert_eq!(elsewhere, Vec::<i64>::new());
    // A main read comes from any, and says which.
    let main = ReadRequest {
        source: Some(holders.source - 1),
        ..from_start()
    };
    let batch = f.store.read(&main).await.unwrap();
    assert_eq!(batch.rows.len(), 3);
    assert_eq!(batch.holders.unwrap().source, holders.source);
}

#[tokio::test]
async fn a_table_that_changes_is_read_again_after_one_error() {
    let f = Fixture::new().await;
    let _listening = listening(&f).await;
    f.insert(3, 1).await;
    for _ in 0..7 {
        assert_eq!(f.seqs(&from_start()).await, [1, 2, 3]);
    }
    f.sql("alter table outbox alter column data type json using data::json")
        .await;
    // The kept statement would answer with another type than it promised.
    let error = f
        .store
        .read(&from_start())
        .await
        .map(|batch| batch.rows.len())
        .unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Schema, "{error}");
    let store = f.store.clone();
    let rows = store.read(&from_start()).await;
    // Looked at before the change, the columns are asked for by their old types; the relay opens the table anew.
    if let Err(error) = rows {
        assert_eq!(error.kind(), StoreErrorKind::Schema, "{error}");
    }
}

#[tokio::test]
async fn reads_walk_the_index_whatever_the_history() {
    let f = Fixture::new().await;
    f.sql(
        "insert into outbox (type, key, data, published_at) \
           select 't', 'k' || g % 100, '{}', now() from generate_series(1, 100000) g; \
         insert into outbox (type, key, data) select 't', 'k' || g, '{}' from generate_series(1, 50) g",
    )
    .await;
    f.sql("vacuum analyze outbox").await;
    let store = explained(&f).await;
    let known: Vec<i64> = (100_001..=100_010).collect();
    for kind in [
        ReadKind::Main { after: None },
        ReadKind::Main {
            after: Some(100_020),
        },
        ReadKind::Sweep {
            after: 0,
            up_to: 200_000,
        },
        ReadKind::CatchUp {
            after: 5,
            up_to: 200_000,
            keys: vec![1, 2],
        },
    ] {
        let request = ReadRequest {
            known: known.clone(),
            skip_keys: vec![7],
            ..request(kind)
        };
        assert!(!store.read(&request).await.unwrap().cut);
    }
    store
        .settle(&settled(&f.store, &known, &[]).await)
        .await
        .unwrap();
    let plans = plans(&f).await;
    assert_eq!(plans.len(), 5, "{plans:?}");
    for plan in plans {
        assert!(
            plan.contains("Index Scan using outbox_pending")
                || plan.contains("Index Scan using outbox_pkey"),
            "{plan}"
        );
        assert!(
            !plan.contains("Seq Scan on outbox") && !plan.contains("Sort"),
            "{plan}"
        );
    }
}
