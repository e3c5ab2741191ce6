//! Relays of one outbox that do not have the same settings: events are never split between two places.

use std::time::Duration;

use crate::support::{Load, Relay, Settings, Stage, Writers, seeded, until};
use crate::{alone, servers};

fn settings(stage: &Stage, name: &str) -> Settings {
    stage
        .settings()
        .set("RELAY_NAME", name)
        .set("RELAY_LEASE_TTL", "3s")
        .set("ADMIN_LISTEN", "127.0.0.1:0")
}

/// Waits until these replicas own all partitions, each some.
async fn await_owners(stage: &Stage, names: &[&str]) {
    let list = names.join("', '");
    let foreign = format!(
        "select count(*) from outrigger.partitions p where not exists (select from outrigger.replicas r \
         where r.replica = p.owner and r.name in ('{list}'))"
    );
    let what = format!("{names:?} own everything");
    stage.await_count(&what, &foreign, 0).await;
    let owners = "select count(distinct owner) from outrigger.partitions";
    stage.await_count(&what, owners, names.len() as i64).await;
}

async fn insert(stage: &Stage, count: u32) {
    stage
        .run(&format!(
            "insert into outbox (type, key, data) select 't', 'k' || n, to_jsonb(n) from generate_series(1, {count}) n"
        ))
        .await;
}

/// What `/readyz?verbose` answers.
fn readyz(relay: &Relay) -> String {
    relay.get("/readyz?verbose").unwrap_or_default()
}

async fn await_readyz(relay: &Relay, part: &str) {
    until(
        &format!("readiness says {part:?}"),
        Duration::from_secs(20),
        || async {
            let text = readyz(relay);
            if text.contains(part) {
                Ok(())
            } else {
                Err(text)
            }
        },
    )
    .await;
}

/// A relay with other settings beside one that runs: it stands aside, says so, and begins when the other stops.
async fn stands_aside(test: &str, name: &str, value: &str, difference: &str) {
    let _turn = alone().await;
    println!("{test}");
    let stage = Stage::new(servers().await).await;
    let consumer = stage.consumer().await;
    let first = settings(&stage, "first").start();
    await_owners(&stage, &["first"]).await;
    let other = settings(&stage, "other").set(name, value);
    let newcomer = other.start();
    newcomer
        .await_log("this replica takes no partition while another one")
        .await;
    newcomer.await_log(difference).await;
    first
        .await_log("has other settings and takes no partition")
        .await;
    insert(&stage, 20).await;
    stage.await_settled().await;
    consumer.await_different(20).await;
    assert_eq!(consumer.count(), 20, "each of them once");

    // It is ready, so that a rolling update ends the others.
    await_readyz(&newcomer, "[!]replicas degraded: takes no partition").await;
    let text = readyz(&newcomer);
    assert!(text.contains("readyz check passed"), "{text}");
    await_readyz(&first, "[!]replicas degraded: another replica would").await;
    let metrics = newcomer.get("/metrics").unwrap_or_default();
    let line = "outrigger_replicas_disagree{effect=\"stands_aside\"} 1";
    assert!(metrics.contains(line), "{metrics}");
    let checked = String::from_utf8(other.output(&["check"]).await.stdout).unwrap();
    assert!(
        checked.contains("would take no partition while `first` runs"),
        "{checked}"
    );
    let status = other.run(&["status"]).await;
    assert!(status.contains("stands aside for `first`"), "{status}");

    first.stop().await;
    newcomer.await_log("this one begins").await;
    await_owners(&stage, &["other"]).await;
    await_readyz(&newcomer, "[+]replicas ok").await;
    insert(&stage, 5).await;
    stage.await_settled().await;

    // And the other way round: the first is a newcomer now, and takes over from one that was killed.
    let first = settings(&stage, "first").start();
    first
        .await_log("this replica takes no partition while another one")
        .await;
    newcomer.kill();
    await_owners(&stage, &["first"]).await;
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_prints_takes_nothing_from_one_that_publishes() {
    stands_aside(
        "sink",
        "SINK",
        "stdout",
        "sink `rabbitmq` there, `stdout` here",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_with_another_source_takes_nothing() {
    stands_aside(
        "source",
        "EVENT_SOURCE",
        "/another",
        "there, `/another` here",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_with_another_mode_shares_and_both_say_so() {
    let _turn = alone().await;
    let stage = Stage::new(servers().await).await;
    let first = settings(&stage, "first").start();
    await_owners(&stage, &["first"]).await;
    let second = settings(&stage, "second")
        .set("EVENT_MODE", "binary")
        .start();
    second
        .await_log("event mode `structured` there, `binary` here")
        .await;
    first
        .await_log("event mode `binary` there, `structured` here")
        .await;
    await_owners(&stage, &["first", "second"]).await;
    await_readyz(
        &first,
        "[!]replicas degraded: another replica has other settings: second",
    )
    .await;
    let status = settings(&stage, "tool").run(&["status"]).await;
    assert!(status.contains("has different settings"), "{status}");
    second.stop().await;
    first.await_log("the same settings again").await;
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_update_that_changes_the_source_is_a_hand_over() {
    let _turn = alone().await;
    let stage = Stage::new(servers().await).await;
    let consumer = stage.consumer().await;
    let old: Vec<Relay> = ["old-0", "old-1"]
        .map(|name| settings(&stage, name).start())
        .into();
    await_owners(&stage, &["old-0", "old-1"]).await;
    let load = Load {
        writers: 4,
        keys: 50,
        events: None,
        pause: Duration::from_millis(5),
        seed: seeded("rolling update").0,
    };
    let writers = Writers::start(&stage, load).await;
    writers.await_more(300).await;
    let mut new = Vec::new();
    for (number, old) in old.into_iter().enumerate() {
        let name = format!("new-{number}");
        let relay = settings(&stage, &name).set("EVENT_SOURCE", "/new").start();
        await_readyz(&relay, "readyz check passed").await;
        new.push(relay);
        writers.await_more(100).await;
        old.stop().await;
    }
    await_owners(&stage, &["new-0", "new-1"]).await;
    writers.await_more(300).await;
    writers.stop().await;
    stage.await_settled().await;
    for relay in new {
        relay.stop().await;
    }
    let deliveries = consumer.finish().await;
    let sources: Vec<bool> = deliveries
        .iter()
        .map(|delivery| delivery.text().contains("\"source\":\"/new\""))
        .collect();
    let first_new = sources
        .iter()
        .position(|new| *new)
        .expect("the new ones publish");
    assert!(first_new > 0, "the old ones published");
    assert!(
        sources[first_new..].iter().all(|new| *new),
        "nothing of the old source after the first of the new"
    );
    let (events, report) = stage.check(&deliveries).await;
    report.assert_exact(events);
}
