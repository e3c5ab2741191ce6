//! Rows that cannot be marked as published: nothing is published twice for them, and nobody else waits.

use crate::support::{PATIENCE, Stage, until};
use crate::{servers, shared};

const UNSETTLED: &str = "select count(*) from outrigger.failures where state = 'unsettled'";

/// An update has no effect, or a trigger undoes it afterwards.
const WITHOUT_EFFECT: &str = "create function nothing() returns trigger language plpgsql as $$ begin return null; end $$; \
    create trigger t before update on outbox for each row execute function nothing()";
const UNDONE: &str = "create function undo() returns trigger language plpgsql as $$ begin \
    if pg_trigger_depth() = 1 then update outbox set published_at = null where seq = new.seq; end if; return null; end $$; \
    create trigger t after update on outbox for each row execute function undo()";

async fn is_published_once_and_stops_the_rest(trigger: &str) {
    let _turn = shared().await;
    let stage = Stage::new(servers().await).await;
    let consumer = stage.consumer().await;
    stage
        .run(&format!(
            "{trigger}; insert into outbox (type, key) select 't', 'k' || n from generate_series(1, 6000) n"
        ))
        .await;
    let relay = stage.settings().start();
    relay.await_log("published rows cannot be settled").await;
    assert!(relay.log().contains("look for a trigger"));
    // Only what was in flight is out. A restart publishes at most a few new ones, and none again.
    stage
        .await_that("they are recorded", UNSETTLED, PATIENCE, |count| count > 19)
        .await;
    // Everywhere a person looks.
    relay
        .await_answer("/readyz?verbose", &["[-]settling failed"])
        .await;
    let page = ["Not publishing", "settling", "\"state\":\"unsettled\""];
    relay.await_answer("/status", &page).await;
    let counted = until("the metric counts them", PATIENCE, || async {
        let metrics = relay.get("/metrics").unwrap_or_default();
        let count = metrics
            .lines()
            .find_map(|line| line.strip_prefix("outrigger_failed_events{state=\"unsettled\"} "));
        match count.and_then(|count| count.trim().parse::<f64>().ok()) {
            Some(count) if count > 19.0 => Ok(count),
            count => Err(format!("{count:?}")),
        }
    });
    counted.await;
    stage
        .await_that(
            "it tells why it waits",
            "select count(*) from outrigger.replicas where waits_for like 'published rows cannot be settled%'",
            PATIENCE,
            |count| count == 1,
        )
        .await;
    let status = stage.settings().run(&["status"]).await;
    for part in ["published rows cannot be settled", "\nunsettled  "] {
        assert!(status.contains(part), "{status}");
    }
    let check = stage.settings().output(&["check"]).await;
    let said = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(said.contains("trigger t of outbox"), "{said}");
    relay.stop().await;
    let before = consumer.count();
    assert!(before < 6000, "{before}");
    let relay = stage.settings().start();
    relay.await_log("published rows cannot be settled").await;
    assert!(consumer.count() <= before + 20);
    stage.run("drop trigger t on outbox").await;
    relay.await_log("published rows can be settled again").await;
    stage.await_settled().await;
    stage.await_count("no record stays", UNSETTLED, 0).await;
    relay.stop().await;
    let deliveries = consumer.finish().await;
    assert_eq!(deliveries.len(), 6000);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_settled_is_published_once_and_stops_the_rest() {
    is_published_once_and_stops_the_rest(WITHOUT_EFFECT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_trigger_makes_pending_again_is_published_once_and_stops_the_rest() {
    is_published_once_and_stops_the_rest(UNDONE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_row_holds_up_no_other_and_is_not_published_again() {
    let _turn = shared().await;
    let stage = Stage::new(servers().await).await;
    let consumer = stage.consumer().await;
    stage
        .run("insert into outbox (type, key) select 't', 'k' || n from generate_series(1, 50) n")
        .await;
    let other = stage.client().await;
    other
        .batch_execute("begin; select from outbox where seq = 7 for update")
        .await
        .unwrap();
    let relay = stage.settings().start();
    let pending = "select count(*) from outbox where published_at is null";
    stage
        .await_count("all but one are settled", pending, 1)
        .await;
    stage.await_count("it is recorded", UNSETTLED, 1).await;
    let next = stage.insert("type, key", "'t', 'k7'").await;
    consumer.await_id(&next, PATIENCE).await;
    relay.stop().await;
    let relay = stage.settings().start();
    let after = stage.insert("type, key", "'t', 'k7'").await;
    consumer.await_id(&after, PATIENCE).await;
    other.batch_execute("rollback").await.unwrap();
    stage.await_settled().await;
    stage.await_count("no record stays", UNSETTLED, 0).await;
    relay.stop().await;
    assert_eq!(consumer.finish().await.len(), 52);
}
