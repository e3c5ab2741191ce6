//! Ways to the database: through a transaction pooler, and with the least privileges.

use std::time::Duration;

use outrigger::store::postgres::{Mapping, OutboxSettings, grants};

use crate::support::pgbouncer::PgBouncer;
use crate::support::{Load, PATIENCE, Stage, Writers, seeded};
use crate::{servers, shared};

#[tokio::test(flavor = "multi_thread")]
async fn everything_arrives_through_a_transaction_pooler() {
    let _turn = shared().await;
    let stage = Stage::new(servers().await).await;
    let consumer = stage.consumer().await;
    // Fewer sessions than the relays want, so statements of one relay wander between them.
    let pooler = PgBouncer::start(&stage.servers.postgres, 3).await;
    // One polls because it was told to, the other finds out that LISTEN does not work here.
    let relays = ["poll", "listen"].map(|wake| {
        stage
            .settings()
            .set("DATABASE_URL", pooler.url(&stage.database))
            .set("RELAY_WAKE", wake)
            .set("RELAY_POLL_INTERVAL", "50ms")
            .start()
    });
    stage.await_owned(2).await;
    let load = Load {
        writers: 4,
        keys: 50,
        events: Some(2000),
        pause: Duration::from_millis(1),
        seed: seeded("pooler").0,
    };
    Writers::start(&stage, load).await.finish().await;
    stage.await_settled().await;
    // Idle now: polling finds a row by itself.
    let id = stage
        .texts("insert into outbox (type, data) values ('t', '{}') returning id::text")
        .await
        .remove(0);
    consumer.await_id(&id, Duration::from_secs(5)).await;
    stage.await_settled().await;
    for relay in relays {
        relay.stop().await;
    }
    let mut deliveries = consumer.finish().await;
    deliveries.retain(|delivery| delivery.id != id);
    let (events, report) = stage.check(&deliveries).await;
    report.assert_exact(events);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_printed_grants_are_enough() {
    let _turn = shared().await;
    let outbox = OutboxSettings::default();
    let stage = Stage::bare(servers().await, "", &outbox).await;
    stage.route("good").await;
    let consumer = stage.consumer().await;
    // Roles belong to the whole server.
    let (writer, relay) = (
        format!("writer_{}", stage.database),
        format!("relay_{}", stage.database),
    );
    stage
        .run(&format!(
            "create role {writer} login; create role {relay} login"
        ))
        .await;
    stage
        .run(&grants(&Mapping::new(&outbox).unwrap(), &writer, &relay))
        .await;

    let url = stage.servers.postgres.url_as(&writer, &stage.database);
    let (service, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    service
        .batch_execute(
            "insert into outbox (type, key) select 'good', 'k' || g % 10 from generate_series(1, 200) g; \
             insert into outbox (type, available_at) values ('good', now() + interval '500 ms'); \
             insert into outbox (type, key) values ('nowhere', 'k1'); \
             select outrigger.emit('good', key => 'k1')",
        )
        .await
        .unwrap();
    assert!(
        service.batch_execute("select from outbox").await.is_err(),
        "writers cannot read"
    );

    let url = stage.servers.postgres.url_as(&relay, &stage.database);
    let relays = ["a", "b"].map(|name| {
        stage
            .settings()
            .set("DATABASE_URL", &url)
            .set("RELAY_NAME", name)
            .set("OUTBOX_RETENTION", "1s")
            .set("RETRY_MAX_ATTEMPTS", 2)
            .set("RETRY_BACKOFF_INITIAL", "20ms")
            .start()
    });
    consumer.await_different(202).await;
    let dead = "select count(*) from outrigger.failures where state = 'dead'";
    stage.await_count("failures are recorded", dead, 1).await;
    stage
        .await_count("retention works", "select count(*) from outbox", 1)
        .await;
    // Woken by the writer, who knows nothing of the relay's tables.
    service
        .batch_execute("insert into outbox (type) values ('good')")
        .await
        .unwrap();
    consumer.await_different_for(203, PATIENCE).await;
    stage.await_owned(2).await;
    for relay in relays {
        let log = relay.log();
        assert!(
            !log.contains("permission") && !log.contains("refuses a statement"),
            "{log}"
        );
        relay.stop().await;
    }
}
