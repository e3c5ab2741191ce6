//! What only the http sink does: telling an ill service from an event that it cannot digest.

use outrigger::error::{ReasonCode, Verdict};
use outrigger::sink::SinkState;

use crate::harness::{
    Is, Running, assert_verdicts, ids, ids_of, message, messages, open, publish_all, within,
};
use crate::http_world::HttpWorld;
use crate::world::World as _;

#[tokio::test]
async fn an_event_that_the_service_cannot_digest_costs_only_itself() {
    let world = HttpWorld::start().await;
    let place = open(&world, "digest").await;
    let mut running = Running::ready(&world, &[]).await;
    world.poison("bad", 500);
    let batch = [
        message("a", &place),
        message("bad", &place),
        message("b", &place),
    ];
    let verdicts = running.publish(&batch).await;
    assert_verdicts(
        "at first nobody is blamed",
        &verdicts,
        |index| match index {
            1 => Is::Unavailable,
            _ => Is::Confirmed,
        },
    );
    let verdicts = running.publish(&[message("bad", &place)]).await;
    assert_verdicts("another was taken meanwhile", &verdicts, |_| {
        Is::Rejected(ReasonCode::Other)
    });
    let verdicts = running.publish(&[message("bad", &place)]).await;
    assert_verdicts("none was taken since", &verdicts, |_| Is::Unavailable);
    running.close().await;
}

#[tokio::test]
async fn a_key_stops_at_an_event_without_an_answer() {
    let world = HttpWorld::start().await;
    let place = open(&world, "keys").await;
    let mut running = Running::ready(&world, &[]).await;
    world.poison("k-1", 502);
    let mut batch = messages(&ids("k", 4), &place);
    batch.push(message("other", &place));
    for message in &mut batch[..4] {
        message.key = Some("k".into());
    }
    let verdicts = running.publish(&batch).await;
    assert_verdicts("nothing overtakes", &verdicts, |index| match index {
        0 | 4 => Is::Confirmed,
        _ => Is::Unavailable,
    });
    assert_eq!(ids_of(&world.take(&place).await), ["k-0", "other"]);
    running.close().await;
}

#[tokio::test]
async fn an_ill_service_is_left_in_peace_and_blames_nobody() {
    let world = HttpWorld::start().await;
    let place = open(&world, "ill").await;
    for (status, headers) in [(500, ""), (429, ""), (401, ""), (503, "retry-after: 1\r\n")] {
        let mut running = Running::ready(&world, &[]).await;
        world.trouble(Some((status, headers)));
        let before = world.requests();
        let batch = messages(&ids("m", 40), &place);
        let verdicts = running.publish(&batch).await;
        assert_verdicts("ill", &verdicts, |_| Is::Unavailable);
        let asked = world.requests() - before;
        assert!(
            asked <= 3,
            "{asked} requests to a service that answers {status}"
        );
        let state = running.state.clone();
        let SinkState::Blocked(reason) = state.borrow().clone() else {
            panic!("{status}: {:?}", *state.borrow());
        };
        assert!(reason.contains(&status.to_string()), "{reason}");
        world.trouble(None);
        publish_all(&mut *running.lanes[0], state, &batch).await;
        assert_eq!(world.take(&place).await.len(), 40);
        running.close().await;
    }
}

#[tokio::test]
async fn refusals_are_told_apart() {
    let world = HttpWorld::start().await;
    let place = open(&world, "refused").await;
    let mut running = Running::ready(&world, &[]).await;
    for (status, expected) in [
        (400, Is::Rejected(ReasonCode::Other)),
        (301, Is::Rejected(ReasonCode::Other)),
        (403, Is::Rejected(ReasonCode::Forbidden)),
        (410, Is::Rejected(ReasonCode::UnknownDestination)),
        (413, Is::Impossible(ReasonCode::TooLarge)),
    ] {
        world.poison("bad", status);
        let verdicts = running.publish(&[message("bad", &place)]).await;
        assert_verdicts(&status.to_string(), &verdicts, |_| expected);
        let (Verdict::Rejected(reason) | Verdict::Impossible(reason)) = &verdicts[0] else {
            unreachable!("asserted just now")
        };
        assert!(reason.detail.contains(&status.to_string()), "{reason}");
    }
    running.close().await;
}

/// A service may close a kept connection whenever it likes; that is no failure.
#[tokio::test]
async fn a_kept_connection_that_was_closed_costs_nothing() {
    let world = HttpWorld::start().await;
    let place = open(&world, "kept").await;
    let mut running = Running::ready(&world, &[]).await;
    for round in 0..3 {
        let verdicts = running.publish(&[message(round, &place)]).await;
        assert_verdicts("on a fresh connection", &verdicts, |_| Is::Confirmed);
        world.kill().await;
        running
            .await_state("noticed", |state| !state.is_ready())
            .await;
        world.revive().await;
        within("ready", running.state.wait_for(SinkState::is_ready))
            .await
            .unwrap();
    }
    running.close().await;
}
