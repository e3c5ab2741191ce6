//! What only the EventBridge sink does.

use outrigger::error::{ReasonCode, Verdict};
use outrigger::event::{HeaderValue, Message};
use outrigger::sink::SinkState;
use outrigger::sink::eventbridge;
use outrigger::sink::eventbridge::check::{Bus, Probe};
use serde_json::json;

use crate::eventbridge_world::{EventBridgeWorld, Mood};
use crate::harness::{
    Is, Running, assert_verdicts, ids, ids_of, message, messages, open, publish, publish_all,
    unique, within,
};
use crate::world::{Tuning, World as _};

#[tokio::test(flavor = "multi_thread")]
async fn ten_entries_make_a_request_and_only_the_failed_ones_go_again() {
    let world = Box::new(EventBridgeWorld::start().await);
    let place = open(&*world, "partial").await;
    let mut running = Running::ready(&*world, &[&place]).await;
    let ids = ids("m", 25);
    let batch = messages(&ids, &place);
    assert_verdicts("well", &running.publish(&batch).await, |_| Is::Confirmed);
    assert_eq!(world.requests(), [10, 10, 5]);
    assert_eq!(ids_of(&world.take(&place).await), ids);

    // A fault of one entry is a verdict for it alone.
    world.mood(Mood::RefusesEntry("MalformedDetail", "m-13\""));
    assert_verdicts("malformed", &running.publish(&batch).await, |n| match n {
        13 => Is::Impossible(ReasonCode::InvalidEvent),
        _ => Is::Confirmed,
    });
    assert_eq!(world.take(&place).await.len(), 24);

    // One that was throttled stops what comes behind it, and everybody waits.
    world.mood(Mood::RefusesEntry("ThrottlingException", "m-13\""));
    world.requests();
    running.state.mark_unchanged();
    assert_verdicts("throttled", &running.publish(&batch).await, |n| match n {
        13 | 20.. => Is::Unavailable,
        _ => Is::Confirmed,
    });
    assert_eq!(world.requests(), [10, 10]);
    assert!(running.state.has_changed().unwrap(), "nobody else waits");
    world.mood(Mood::Well);
    let left: Vec<Message> = [13, 20, 21].map(|n| batch[n].clone()).into();
    let state = running.state.clone();
    publish_all(&mut *running.lanes[0], state, &left).await;
    running.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_allowed_is_refused_and_a_culprit_is_found() {
    let world = Box::new(EventBridgeWorld::start().await);
    let place = open(&*world, "denied").await;
    let mut running = Running::ready(&*world, &[&place]).await;
    let batch = messages(&ids("m", 3), &place);
    world.mood(Mood::Refuses("AccessDeniedException"));
    assert_verdicts("denied", &running.publish(&batch).await, |_| {
        Is::Rejected(ReasonCode::Forbidden)
    });
    assert_eq!(world.requests(), [3]);
    // A whole request is refused for one of its entries: each goes alone.
    world.mood(Mood::Refuses("ValidationException"));
    assert_verdicts("invalid", &running.publish(&batch).await, |_| {
        Is::Rejected(ReasonCode::Other)
    });
    assert_eq!(world.requests(), [3, 1, 1, 1]);
    assert!(running.state.borrow().is_ready());
    running.close().await;
}

/// Credentials that are not accepted are an outage, which new ones end without a restart.
#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_read_again() {
    let world = Box::new(EventBridgeWorld::start().await);
    let place = open(&*world, "rotated").await;
    let mut running = Running::ready(&*world, &[&place]).await;
    let batch = messages(&ids("m", 3), &place);
    assert_verdicts("old", &running.publish(&batch).await, |_| Is::Confirmed);
    world.mood(Mood::Knows("k2"));
    assert_verdicts("unknown", &running.publish(&batch).await, |_| {
        Is::Unavailable
    });
    let down = running
        .await_state("the credentials are blamed", |state| {
            matches!(state, SinkState::Down(reason) if reason.contains("credentials are not accepted"))
        })
        .await;
    assert!(!format!("{down:?}").contains("s3cret"));
    world.credentials("k2");
    running.await_state("ready", SinkState::is_ready).await;
    assert_verdicts("new", &running.publish(&batch).await, |_| Is::Confirmed);
    running.close().await;

    // One that is not there names the setting.
    let mut settings = world.settings(Tuning::default(), &[]);
    settings.credentials_file = Some("/nowhere/aws".into());
    let mut running = Running::start(eventbridge::start(settings).unwrap());
    running
        .await_state("the file is named", |state| {
            matches!(state, SinkState::Down(reason)
                if reason.contains("OUTRIGGER_EVENTBRIDGE_CREDENTIALS_FILE=/nowhere/aws"))
        })
        .await;
    running.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_has_everything_a_rule_may_ask_for() {
    let world = Box::new(EventBridgeWorld::start().await);
    let place = open(&*world, "entry").await;
    let mut running = Running::ready(&*world, &[&place]).await;
    let mut event = message("1", &place);
    event.time = Some("2026-01-02T03:04:05.678901Z".parse().unwrap());
    event.headers = vec![(
        "resources".into(),
        HeaderValue::Text("arn:aws:s3:::a, arn:aws:s3:::b".into()),
    )];
    assert_eq!(running.publish(&[event]).await, [Verdict::Confirmed]);
    let [arrived] = &world.moto.take(&place.destination).await[..] else {
        panic!("not one event")
    };
    for (field, value) in [
        ("source", json!("/test")),
        ("detail-type", json!("order.placed")),
        ("time", json!("2026-01-02T03:04:05Z")),
        ("resources", json!(["arn:aws:s3:::a", "arn:aws:s3:::b"])),
        ("detail", json!({"n": "1"})),
    ] {
        assert_eq!(arrived[field], value, "{field}");
    }
    running.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lanes_ask_for_a_bus_once() {
    let world = Box::new(EventBridgeWorld::start().await);
    let place = open(&*world, "shared").await;
    let mut running = Running::ready(&*world, &[]).await;
    world.questions();
    for _ in 0..2 {
        let publishing = running.lanes.iter_mut().map(|lane| {
            let batch = messages(&ids("m", 3), &place);
            async move { publish(&mut **lane, &batch).await }
        });
        for verdicts in futures_util::future::join_all(publishing).await {
            assert_verdicts("well", &verdicts, |_| Is::Confirmed);
        }
    }
    assert_eq!(world.questions(), 1);
    running.close().await;
}

/// EventBridge itself would go on to take its events. Lasts as long as a bus is believed to be there.
#[tokio::test(flavor = "multi_thread")]
async fn a_bus_that_was_deleted_is_noticed() {
    let world = Box::new(EventBridgeWorld::start().await);
    let place = world.place(&unique("deleted"));
    world.moto.bus("CreateEventBus", &place.destination).await;
    let mut running = Running::ready(&*world, &[&place]).await;
    let batch = [message("1", &place)];
    assert_eq!(running.publish(&batch).await, [Verdict::Confirmed]);
    world.moto.bus("DeleteEventBus", &place.destination).await;
    assert_eq!(
        running.publish(&batch).await,
        [Verdict::Confirmed],
        "the gate is not what EventBridge is: this test proves nothing"
    );
    let verdict = within("the loss is noticed", async {
        loop {
            match running.publish(&batch).await.remove(0) {
                Verdict::Confirmed => {
                    tokio::time::sleep(std::time::Duration::from_millis(200)).await
                }
                other => return other,
            }
        }
    });
    assert_verdicts("deleted", &[verdict.await], |_| {
        Is::Rejected(ReasonCode::UnknownDestination)
    });
    running.close().await;
}

/// Who may only publish must trust the route; `check` says so.
#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_ask_may_publish() {
    let world = Box::new(EventBridgeWorld::start().await);
    let place = open(&*world, "trusted").await;
    world.mood(Mood::TellsNothing);
    let mut running = Running::ready(&*world, &[&place]).await;
    let verdicts = running.publish(&[message("1", &place)]).await;
    assert_eq!(verdicts, [Verdict::Confirmed]);
    let probe = Probe::connect(&world.settings(Tuning::default(), &[])).await;
    let bus = probe.unwrap().bus(&place.destination).await;
    assert_eq!(bus, Ok(Bus::Unknown));
    running.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn check_asks_the_same_questions() {
    let world = Box::new(EventBridgeWorld::start().await);
    let place = open(&*world, "asked").await;
    let settings = world.settings(Tuning::default(), &[]);
    let probe = Probe::connect(&settings).await.unwrap();
    assert_eq!(probe.region(), "eu-west-1");
    assert_eq!(probe.bus(&place.destination).await, Ok(Bus::Exists));
    let missing = probe.bus("nowhere").await.unwrap();
    assert!(
        matches!(&missing, Bus::Missing(reason) if reason.contains("nowhere")),
        "{missing:?}"
    );
    let published = probe.publish(message("probe", &place)).await;
    assert_eq!(published, Verdict::Confirmed);
    assert_eq!(probe.trouble(), None);
    world.mood(Mood::Refuses("ThrottlingException"));
    let published = probe.publish(message("probe", &place)).await;
    assert_eq!(published, Verdict::Unavailable);
    assert!(probe.trouble().unwrap().contains("ThrottlingException"));
    world.kill().await;
    assert!(Probe::connect(&settings).await.is_err());
}
