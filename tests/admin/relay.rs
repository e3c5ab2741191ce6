//! The listener of real relays: what it says against what happened.

use std::net::TcpListener;
use std::time::Duration;

use outrigger::telemetry::metrics::METRICS;

use crate::client::{Answer, address_of, await_answer, get, get_as};
use crate::scrape::Scrape;
use crate::servers;
use crate::support::{Settings, Stage};

#[tokio::test(flavor = "multi_thread")]
async fn a_scrape_says_what_happened() {
    let stage = Stage::bare(servers().await, "", &Default::default()).await;
    stage.route("good").await;
    stage
        .run(
            "insert into outbox (type, key) select 'good', 'k' || g % 50 from generate_series(1, 500) g; \
             insert into outbox (type, key) select 'nowhere', 'n' || g from generate_series(1, 10) g; \
             insert into outbox (type, expires_at) values ('good', now() - interval '1 hour')",
        )
        .await;
    let relay = stage
        .settings()
        .set("RETRY_MAX_ATTEMPTS", 2)
        .set("RETRY_BACKOFF_INITIAL", "10ms")
        .start();
    let address = address_of(&relay).await;
    let seen = await_answer(address, "/metrics", "everything is counted", |answer| {
        let scrape = Scrape::parse(&answer.body);
        let dead = [("state", "dead")];
        scrape.find("outrigger_failed_events", &dead) == Some(10.0)
            && scrape.value("outrigger_published_total", &[]) == 500.0
            && scrape.value("outrigger_backlog_events", &[]) == 0.0
            && scrape.find("outrigger_table_bytes", &[]).is_some()
            // Seen by the tick that follows the claim.
            && scrape.find("outrigger_partitions_unowned", &[]) == Some(0.0)
    })
    .await;
    assert!(
        seen.head
            .contains("content-type: text/plain; version=0.0.4"),
        "{}",
        seen.head
    );
    let scrape = Scrape::parse(&seen.body);
    for metric in METRICS {
        assert!(
            scrape.kinds.contains_key(metric.name),
            "{} is missing",
            metric.name
        );
    }
    assert_eq!(scrape.kinds.len(), METRICS.len(), "{:?}", scrape.kinds);

    let unroutable = [("reason", "unroutable")];
    let value = |name| scrape.value(name, &[]);
    assert_eq!(
        scrape.value("outrigger_publish_failures_total", &unroutable),
        20.0
    );
    assert_eq!(scrape.sum("outrigger_publish_failures_total"), 20.0);
    assert_eq!(value("outrigger_retries_total"), 10.0);
    assert_eq!(scrape.value("outrigger_dead_total", &unroutable), 10.0);
    assert_eq!(scrape.sum("outrigger_dead_total"), 10.0);
    assert_eq!(scrape.sum("outrigger_blocked_total"), 0.0);
    assert_eq!(value("outrigger_expired_total"), 1.0);
    // Every published event has its latency; the first few only if the database's clock was known in time.
    let timed = value("outrigger_end_to_end_latency_seconds_count");
    assert!(timed <= 500.0, "{timed}");
    assert_eq!(
        scrape.value("outrigger_batch_events_sum", &[("step", "publish")]),
        520.0
    );
    assert_eq!(
        scrape.value("outrigger_batch_events_sum", &[("step", "settle")]),
        501.0
    );
    assert!(
        scrape.value(
            "outrigger_database_duration_seconds_count",
            &[("operation", "settle")]
        ) >= 1.0
    );
    assert_eq!(scrape.sum("outrigger_database_errors_total"), 0.0);
    assert!(scrape.sum("outrigger_wakeups_total") >= 1.0);
    for (name, wanted) in [
        ("outrigger_oldest_pending_age_seconds", 0.0),
        ("outrigger_in_flight_events", 0.0),
        ("outrigger_partitions", 16.0),
        ("outrigger_partitions_owned", 16.0),
        ("outrigger_partitions_unowned", 0.0),
        ("outrigger_replicas", 1.0),
        ("outrigger_ownership_proven", 1.0),
        ("outrigger_paused", 0.0),
        ("outrigger_database_up", 1.0),
        ("outrigger_broker_connected", 1.0),
        ("outrigger_broker_blocked", 0.0),
        ("outrigger_listener_connected", 1.0),
    ] {
        assert_eq!(value(name), wanted, "{name}");
    }

    // Once the clock is known, an event counts, and in seconds that can be true.
    stage.run("insert into outbox (type) values ('good')").await;
    let later = await_answer(address, "/metrics", "one more event is timed", |answer| {
        let scrape = Scrape::parse(&answer.body);
        scrape.value("outrigger_end_to_end_latency_seconds_count", &[]) > timed
    })
    .await;
    let later = Scrape::parse(&later.body);
    let took = later.value("outrigger_end_to_end_latency_seconds_sum", &[])
        - value("outrigger_end_to_end_latency_seconds_sum");
    assert!((0.0..60.0).contains(&took), "{took}");

    let open = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5";
    let open = get_as(address, "/metrics", open).await;
    assert!(
        open.head
            .contains("application/openmetrics-text; version=1.0.0"),
        "{}",
        open.head
    );
    assert!(open.body.ends_with("# EOF\n"));
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_relay_is_ready_and_its_page_shows_no_payload() {
    let stage = Stage::bare(servers().await, "", &Default::default()).await;
    stage.route("good").await;
    stage
        .run("insert into outbox (type, key, data) values ('nowhere', 'key-of-a-person', '{\"secret\": \"payload\"}')")
        .await;
    let relay = stage.settings().set("RETRY_MAX_ATTEMPTS", 1).start();
    let address = address_of(&relay).await;
    let ready = await_answer(address, "/readyz?verbose", "the relay is ready", |answer| {
        answer.status == 200 && answer.body.contains("16 of 16")
    })
    .await;
    for line in [
        "relay ok",
        "database ok",
        "schema ok",
        "broker ok",
        "leases ok",
        "listener ok",
    ] {
        assert!(ready.body.contains(&format!("[+]{line}")), "{}", ready.body);
    }
    assert_eq!(get(address, "/readyz").await.body, "ok\n");
    assert_eq!(get(address, "/livez").await.status, 200);
    let status = await_answer(
        address,
        "/status",
        "failure and owner are shown",
        |answer| {
            answer.body.contains("outrigger dead retry 1\"") && answer.body.contains("\"owns\":16")
        },
    )
    .await;
    let parsed: serde_json::Value = serde_json::from_str(&status.body).unwrap();
    assert_eq!(parsed["failures"][0]["reason"], "unroutable");
    assert_eq!(parsed["failures"][0]["state"], "dead");
    assert_eq!(parsed["backlog"]["dead"], 1);
    assert_eq!(parsed["replicas"][0]["owns"], 16);
    for secret in ["payload", "key-of-a-person", "guest:guest"] {
        assert!(!status.body.contains(secret), "{secret}: {}", status.body);
    }
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_away_makes_a_relay_unready_and_its_backlog_visible() {
    let stage = Stage::new(servers().await).await;
    stage
        .run("insert into outbox (type, key, created_at) select 't', 'k' || g, now() - interval '1 hour' from generate_series(1, 50) g")
        .await;
    let relay = stage
        .settings()
        .set("RABBITMQ_URL", format!("amqp://127.0.0.1:{}", free_port()))
        .start();
    let address = address_of(&relay).await;
    let counts = |answer: &Answer| {
        let scrape = Scrape::parse(&answer.body);
        scrape.value("outrigger_backlog_events", &[]) == 50.0
            && scrape.find("outrigger_oldest_pending_age_seconds", &[]) > Some(3_599.0)
            && scrape.value("outrigger_broker_connected", &[]) == 0.0
    };
    await_answer(address, "/metrics", "the backlog is counted", counts).await;
    let ready = await_answer(address, "/readyz", "only the broker is away", |answer| {
        answer.body.matches("[-]").count() == 1
    })
    .await;
    assert_eq!(ready.status, 503);
    assert!(ready.body.contains("[-]broker failed: "), "{}", ready.body);
    assert_eq!(get(address, "/livez").await.status, 200);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_waits_for_its_database_says_so() {
    let relay = Settings::default()
        .set(
            "DATABASE_URL",
            format!("postgres://u@127.0.0.1:{}/d", free_port()),
        )
        .set("RABBITMQ_URL", "amqp://127.0.0.1:1")
        .set("EVENT_SOURCE", "/test")
        .set("ADMIN_LISTEN", "127.0.0.1:0")
        .start();
    let address = address_of(&relay).await;
    let ready = await_answer(
        address,
        "/readyz?verbose",
        "the database is named",
        |answer| {
            answer.body.contains("[-]database failed: ")
                && !answer.body.contains("not connected yet\n[-]schema")
        },
    )
    .await;
    assert_eq!(ready.status, 503);
    assert!(
        ready.body.contains("[-]relay failed: starting"),
        "{}",
        ready.body
    );
    assert_eq!(get(address, "/livez").await.status, 200);
    Scrape::parse(&get(address, "/metrics").await.body);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_named_and_off_serves_nothing() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let stage = Stage::new(servers().await).await;
    let mut relay = stage.settings().set("ADMIN_LISTEN", address).start();
    let status = relay.exit(Duration::from_secs(60)).await;
    assert_eq!(status.code(), Some(2), "{}", relay.log());
    let log = relay.log();
    assert!(
        log.contains(&format!(
            "OUTRIGGER_ADMIN_LISTEN={address}: cannot listen there"
        )),
        "{log}"
    );
    let relay = stage.settings().set("ADMIN_LISTEN", "off").start();
    relay.await_log("registered").await;
    assert!(!relay.log().contains("admin listener"), "{}", relay.log());
    relay.stop().await;
}

/// A port where nobody listens.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}
