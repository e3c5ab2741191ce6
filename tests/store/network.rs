//! A transaction pooler in between, and a network that breaks.

use std::time::Duration;

use outrigger::store::postgres::{ListenState, OutboxSettings, StoreErrorKind};
use outrigger::store::{ReadKind, ReadRequest};

use crate::fixture::{Fixture, database, from_start, request, server, settled};
use crate::pgbouncer::PgBouncer;
use crate::postgres::Postgres;

#[tokio::test]
async fn everything_but_listen_works_behind_a_transaction_pooler() {
    let f = Fixture::new().await;
    let pooler = PgBouncer::start(server().await, 3).await;
    let url = pooler.url(&f.name);
    let database = database(&url, &OutboxSettings::default());
    assert!(database.server_facts().await.unwrap().pooled);
    database.migrate(true).await.unwrap();
    let store = database.open().await.unwrap();
    // The pooler would accept LISTEN and deliver nothing; the listener says so instead.
    let listener = store.listen();
    let mut state = listener.state();
    let refused = state
        .wait_for(|state| matches!(state, ListenState::Refused(why) if why.contains("pooler")));
    tokio::time::timeout(Duration::from_secs(20), refused)
        .await
        .expect("LISTEN is off")
        .unwrap();
    f.insert(200, 20).await;
    // More clients than sessions, so statements of one client wander between them.
    let work = (0..6).map(|i| {
        let store = store.clone();
        tokio::spawn(async move {
            let me = store
                .register(&format!("r{i}"), Duration::from_secs(10), 6)
                .await
                .unwrap()
                .replica;
            for round in 0..20 {
                store.tick(me, true).await.unwrap();
                store.claim(me, &[i]).await.unwrap();
                let batch = store
                    .read(&ReadRequest {
                        limit: 5,
                        ..from_start()
                    })
                    .await
                    .unwrap();
                assert!(batch.holders.is_some());
                store.read(&request(ReadKind::Retries)).await.unwrap();
                store
                    .settle(&settled(&store, &[i64::from(i) * 20 + round + 1], &[]).await)
                    .await
                    .unwrap();
                store
                    .extend_awake(Duration::from_millis(100))
                    .await
                    .unwrap();
            }
            store.unregister(me).await.unwrap();
        })
    });
    for task in work.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    assert_eq!(
        f.count("select count(*) from outbox where published_at is not null")
            .await,
        120
    );
    let error = store
        .read(&ReadRequest {
            limit: 1,
            ..from_start()
        })
        .await
        .map(|batch| batch.rows.len());
    assert_eq!(error, Ok(1));
}

#[tokio::test]
async fn a_server_that_vanishes_is_unavailable_and_comes_back() {
    let own = Postgres::start().await;
    let f = Fixture::on(&own).await;
    let listener = f.store.listen();
    let mut state = listener.state();
    state
        .wait_for(|state| *state == ListenState::Listening)
        .await
        .unwrap();
    // A statement in flight when the server dies.
    f.sql("begin; lock table outbox").await;
    let stuck = tokio::spawn({
        let store = f.store.clone();
        async move { store.read(&from_start()).await }
    });
    let watcher = own.client(&f.name).await;
    let waiting = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    tokio::time::timeout(Duration::from_secs(20), async {
        while watcher
            .query_one(waiting, &[])
            .await
            .unwrap()
            .get::<_, i64>(0)
            == 0
        {}
    })
    .await
    .expect("the read waits for the lock");
    own.restart();
    assert_eq!(
        stuck.await.unwrap().unwrap_err().kind(),
        StoreErrorKind::Unavailable
    );
    let recovered = async {
        while let Err(error) = f.store.read(&from_start()).await {
            assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error}");
        }
    };
    tokio::time::timeout(Duration::from_secs(20), recovered)
        .await
        .expect("reads work again");
    tokio::time::timeout(
        Duration::from_secs(20),
        state.wait_for(|state| *state == ListenState::Listening),
    )
    .await
    .expect("listening again")
    .unwrap();
}

#[tokio::test]
async fn a_statement_that_hangs_times_out_and_its_connection_is_thrown_away() {
    let f = Fixture::new().await;
    let mut settings = crate::fixture::connect_settings(&server().await.url(&f.name));
    settings.timeout = Duration::from_millis(300);
    settings.pool_size = 1;
    let mapping = outrigger::store::postgres::Mapping::new(&OutboxSettings::default()).unwrap();
    let store = outrigger::store::postgres::PostgresStore::connect(&settings, mapping)
        .await
        .unwrap();
    f.sql("begin; lock table outbox").await;
    let error = store.read(&from_start()).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    assert!(error.to_string().contains("in time"), "{error}");
    // The server is told, and stops waiting for the lock although it is still held.
    let waiting = "select count(*) from pg_locks where not granted \
        and database = (select oid from pg_database where datname = current_database())";
    tokio::time::timeout(Duration::from_secs(20), async {
        while f.count(waiting).await > 0 {}
    })
    .await
    .expect("the statement is cancelled");
    f.sql("rollback").await;
    store.read(&from_start()).await.unwrap();
    // A cancelled call leaves no open transaction behind in the only connection either.
    f.sql("begin; lock table outrigger.partitions").await;
    let me = store.register("a", Duration::from_secs(10), 4);
    let _ = tokio::time::timeout(Duration::from_millis(50), me).await;
    f.sql("rollback").await;
    store.read(&from_start()).await.unwrap();
    let open = "select count(*) from pg_stat_activity where datname = current_database() and state like 'idle in%'";
    assert_eq!(f.count(open).await, 0);
}

/// A pooler with one session left, or none for a while, is where asking about it could hurt: whoever holds the one and
/// waits for another keeps the service from writing.
#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_of_one_session_is_recognised_while_a_service_writes_through_it() {
    let f = Fixture::new().await;
    let pooler = PgBouncer::start(server().await, 1).await;
    let url = pooler.url(&f.name);
    let (service, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    let writing = tokio::spawn(async move {
        let mut slowest = Duration::ZERO;
        loop {
            let began = std::time::Instant::now();
            let insert = "insert into outbox (type, data) values ('t', '1')";
            service.batch_execute(insert).await.unwrap();
            slowest = slowest.max(began.elapsed());
            // Half of what one look used to take from the service.
            assert!(slowest < Duration::from_secs(5), "{slowest:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let database = database(&url, &OutboxSettings::default());
    assert!(database.server_facts().await.unwrap().pooled);
    let store = database.open().await.unwrap();
    let mut state = store.listen().state();
    let refused = state
        .wait_for(|state| matches!(state, ListenState::Refused(why) if why.contains("pooler")));
    let refused = tokio::time::timeout(Duration::from_secs(20), refused).await;
    assert!(
        refused.is_ok(),
        "the listener says that a pooler is in between"
    );
    assert!(!writing.is_finished(), "{:?}", writing.await);
    writing.abort();
    // None of its questions was a transaction that stayed open.
    let open = "select count(*) from pg_stat_activity where datname = current_database() and state like 'idle in%'";
    assert_eq!(f.count(open).await, 0);
}

#[tokio::test]
async fn a_server_that_takes_no_writes_retires_its_sessions() {
    let own = Postgres::start().await;
    let f = Fixture::on(&own).await;
    let me = f
        .store
        .register("a", Duration::from_secs(10), 4)
        .await
        .unwrap()
        .replica;
    f.store.tick(me, true).await.unwrap();
    let sessions = "select count(*) from pg_stat_activity where application_name = 'outrigger'";
    assert_eq!(f.count(sessions).await, 1);
    f.sql("set default_transaction_read_only = off").await;
    f.sql("alter system set default_transaction_read_only = on")
        .await;
    f.sql("select pg_reload_conf()").await;
    // One that only reads notices as well.
    let refused = async {
        loop {
            if let Err(error) = f.store.tick(me, false).await {
                return error;
            }
        }
    };
    let error = tokio::time::timeout(Duration::from_secs(20), refused)
        .await
        .unwrap();
    assert!(error.is_read_only(), "{error}");
    // The session is gone, and no other is to be had.
    let error = f.store.read(&from_start()).await.unwrap_err();
    assert!(error.is_read_only(), "{error}");
    tokio::time::timeout(Duration::from_secs(20), async {
        while f.count(sessions).await > 0 {}
    })
    .await
    .expect("no session is left");
    f.sql("alter system reset default_transaction_read_only")
        .await;
    f.sql("select pg_reload_conf()").await;
    let again = async { while f.store.tick(me, true).await.is_err() {} };
    tokio::time::timeout(Duration::from_secs(20), again)
        .await
        .expect("it goes on by itself");
}
