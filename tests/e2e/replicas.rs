//! Two relays share the work, and one of them leaves: politely, or not.

use std::time::{Duration, Instant};

use crate::support::{Consumer, Load, PATIENCE, Relay, Settings, Stage, Writers, seeded};
use crate::{alone, servers};

const IN_FLIGHT: usize = 400;

/// A takeover after a clean stop. The stopping relay hands its partitions over before it exits.
const TAKEOVER: Duration = Duration::from_secs(1);

struct Pair {
    stage: Stage,
    consumer: Consumer,
    a: Relay,
    b: Relay,
    writers: Writers,
}

fn settings(stage: &Stage, name: &str) -> Settings {
    stage
        .settings()
        .set("RELAY_NAME", name)
        .set("RELAY_LEASE_TTL", "2s")
        .set("RELAY_BATCH_SIZE", IN_FLIGHT)
        .set("RELAY_MAX_IN_FLIGHT", IN_FLIGHT)
}

impl Pair {
    /// Two relays under load.
    async fn start(test: &str) -> Self {
        let stage = Stage::new(servers().await).await;
        let consumer = stage.consumer().await;
        let [a, b] = ["a", "b"].map(|name| settings(&stage, name).start());
        stage.await_owned(2).await;
        let load = Load {
            writers: 8,
            keys: 200,
            events: None,
            pause: Duration::from_millis(2),
            seed: seeded(test).0,
        };
        let writers = Writers::start(&stage, load).await;
        writers.await_more(1000).await;
        Self {
            stage,
            consumer,
            a,
            b,
            writers,
        }
    }
}

/// Waits until the relay of this name owns everything; answers how long that took.
async fn await_sole_owner(stage: &Stage, name: &str) -> Duration {
    let began = Instant::now();
    let not_owned = format!(
        "select count(*) from outrigger.partitions p where not exists \
         (select from outrigger.replicas r where r.replica = p.owner and r.name = '{name}')"
    );
    let what = format!("{name} owns every partition");
    stage.await_count(&what, &not_owned, 0).await;
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn after_kill_9_the_other_relay_takes_over() {
    let _turn = alone().await;
    let Pair {
        stage,
        consumer,
        a,
        b,
        writers,
    } = Pair::start("kill -9").await;
    a.kill();
    let took = await_sole_owner(&stage, "b").await;
    // Lease time, and what a takeover may take on top of it.
    assert!(took < Duration::from_secs(5), "{took:?}");
    writers.await_more(500).await;
    writers.stop().await;
    stage.await_settled().await;
    b.stop().await;
    let (events, report) = stage.check(&consumer.finish().await).await;
    report.assert_delivered(events, IN_FLIGHT);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_froze_does_no_harm_when_it_thaws() {
    let _turn = alone().await;
    let Pair {
        stage,
        consumer,
        mut a,
        b,
        writers,
    } = Pair::start("freeze").await;
    a.signal("STOP");
    await_sole_owner(&stage, "b").await;
    writers.await_more(500).await;
    a.signal("CONT");
    stage.await_owned(2).await;
    writers.await_more(500).await;
    writers.stop().await;
    stage.await_settled().await;
    a.assert_running();
    a.stop().await;
    b.stop().await;
    let (events, report) = stage.check(&consumer.finish().await).await;
    report.assert_delivered(events, IN_FLIGHT);
}

#[tokio::test(flavor = "multi_thread")]
async fn stops_and_rolling_restarts_repeat_nothing() {
    let _turn = alone().await;
    let Pair {
        stage,
        consumer,
        a,
        b,
        writers,
    } = Pair::start("rolling restart").await;
    a.stop().await;
    let took = await_sole_owner(&stage, "b").await;
    assert!(took < TAKEOVER, "{took:?} after the exit");
    writers.await_more(300).await;

    let again = settings(&stage, "a2").start();
    stage.await_owned(2).await;
    writers.await_more(300).await;
    b.stop().await;
    let took = await_sole_owner(&stage, "a2").await;
    assert!(took < TAKEOVER, "{took:?} after the exit");
    let b = settings(&stage, "b2").start();
    stage.await_owned(2).await;
    writers.await_more(300).await;
    writers.stop().await;
    stage.await_settled().await;
    again.stop().await;
    b.stop().await;
    let (events, report) = stage.check(&consumer.finish().await).await;
    report.assert_exact(events);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_partitions_changes_under_load_and_repeats_nothing() {
    let _turn = alone().await;
    let Pair {
        stage,
        consumer,
        a,
        b,
        writers,
    } = Pair::start("partitions").await;
    let tool = settings(&stage, "tool");
    let shown = tool.run(&["partitions"]).await;
    assert!(shown.contains("16 partitions"), "{shown}");
    // Fewer, more, and one: a total order, read in another way.
    for number in ["3", "40", "1", "8"] {
        let said = tool.run(&["partitions", number]).await;
        assert!(said.contains(&format!("to {number}\n")), "{said}");
        let unowned = "select count(*) from outrigger.partitions where owner is null";
        stage
            .await_count("all partitions are owned", unowned, 0)
            .await;
        let number: i64 = number.parse().unwrap();
        assert_eq!(
            stage
                .count("select count(*) from outrigger.partitions")
                .await,
            number
        );
        writers.await_more(100).await;
    }
    let again = tool.run(&["partitions", "8"]).await;
    assert!(again.contains("already"), "{again}");
    writers.stop().await;
    stage.await_settled().await;
    a.stop().await;
    b.stop().await;
    let left = "select count(*) from outrigger.replicas";
    assert_eq!(
        stage.count(left).await,
        0,
        "the command leaves no registration behind"
    );
    let (events, report) = stage.check(&consumer.finish().await).await;
    report.assert_exact(events);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_relay_that_stops_under_load_leaves_the_rest_for_the_next() {
    let _turn = alone().await;
    let Pair {
        stage,
        consumer,
        a,
        b,
        writers,
    } = Pair::start("stop all").await;
    tokio::join!(a.stop(), b.stop());
    let owned = "select count(*) from outrigger.partitions where owner is not null";
    assert_eq!(stage.count(owned).await, 0, "partitions are handed over");
    writers.await_more(200).await;
    writers.stop().await;
    let next = settings(&stage, "next").start();
    stage.await_settled().await;
    next.stop().await;
    let (events, report) = stage.check(&consumer.finish().await).await;
    report.assert_exact(events);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_just_before_a_stop_is_published() {
    let stage = Stage::new(servers().await).await;
    let consumer = stage.consumer().await;
    // Nobody wakes it, and it would look again in half a minute.
    let relay = stage
        .settings()
        .set("RELAY_WAKE", "poll")
        .set("RELAY_POLL_INTERVAL", "30s")
        .start();
    let first = stage.insert("type", "'t'").await;
    consumer.await_id(&first, PATIENCE).await;
    stage.await_settled().await;
    let mut last = String::new();
    for n in 0..40 {
        let key = ["a", "b"][n % 2];
        last = stage.insert("type, key", &format!("'t', '{key}'")).await;
    }
    relay.stop().await;
    let left = "select count(*) from outbox where published_at is null";
    assert_eq!(stage.count(left).await, 0);
    consumer.await_id(&last, PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_that_cannot_finish_does_not_claim_success() {
    let _turn = alone().await;
    let stage = Stage::new(servers().await).await;
    let consumer = stage.consumer().await;
    let id = stage.insert("type", "'t'").await;
    // Published, but settling waits for the row's lock for longer than the stop may take.
    let holder = stage.servers.postgres.client(&stage.database).await;
    holder
        .batch_execute("begin; select from outbox for update")
        .await
        .unwrap();
    let mut relay = stage
        .settings()
        .set("RELAY_SHUTDOWN_TIMEOUT", "500ms")
        .start();
    consumer.await_id(&id, PATIENCE).await;
    relay.signal("TERM");
    let status = relay.exit(Duration::from_secs(10)).await;
    assert_eq!(status.code(), Some(1), "{status}");
    holder.batch_execute("rollback").await.unwrap();
}
