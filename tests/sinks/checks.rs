//! The contract of a sink (`src/sink/mod.rs`), sentence by sentence.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;

use outrigger::error::{ReasonCode, Verdict};
use outrigger::event::Message;
use outrigger::sink::SinkState;

pub(crate) use crate::events::events_decode_in_every_mode;
use crate::harness::{
    Is, Running, assert_verdicts, first_times, ids, ids_of, message, messages, open, publish,
    publish_all, unique, within,
};
use crate::world::{Tuning, World};

/// `Confirmed` means that very message is there; a batch arrives in its order.
pub(crate) async fn confirmed_means_arrived_in_order(world: &impl World) {
    let place = open(world, "order").await;
    let mut running = Running::ready(world, &[&place]).await;
    assert_eq!(running.publish(&[]).await, []);
    let mut all = Vec::new();
    for round in 0..5 {
        let ids = ids(&format!("r{round}"), 200);
        let verdicts = running.publish(&messages(&ids, &place)).await;
        assert_verdicts("a good batch", &verdicts, |_| Is::Confirmed);
        all.extend(ids);
    }
    // Exactly once while nothing fails.
    assert_eq!(ids_of(&world.take(&place).await), all);
    running.close().await;
}

/// Only its own messages are refused, and as soon as it exists they go.
pub(crate) async fn an_unknown_destination_fails_alone(world: &impl World) {
    let known = open(world, "known").await;
    let unknown = world.place(&unique("unknown"));
    let mut running = Running::ready(world, &[&known]).await;
    let batch: Vec<Message> = (0..60)
        .map(|n| message(format!("m{n}"), if n % 10 == 3 { &unknown } else { &known }))
        .collect();
    let verdicts = running.publish(&batch).await;
    assert_verdicts("unknown destination", &verdicts, |index| match index % 10 {
        3 => Is::Rejected(ReasonCode::UnknownDestination),
        _ => Is::Confirmed,
    });
    for (_, verdict) in batch
        .iter()
        .zip(&verdicts)
        .filter(|(m, _)| m.destination == unknown.destination)
    {
        let Verdict::Rejected(reason) = verdict else {
            unreachable!("asserted just now")
        };
        assert!(reason.detail.contains(&unknown.destination), "{reason}");
    }
    assert!(
        running.state.borrow().is_ready(),
        "one missing place is no outage"
    );

    world.open(&unknown).await;
    let retry = [message("again", &unknown)];
    within("the new destination is found", async {
        while running.publish(&retry).await != [Verdict::Confirmed] {}
    })
    .await;
    assert_eq!(ids_of(&world.take(&unknown).await), ["again"]);
    running.close().await;
}

/// The destination exists, but nothing there takes the message.
pub(crate) async fn nobody_listening_is_a_failure(world: &impl World) {
    let place = open(world, "listened").await;
    let Some((deaf, code)) = world.nobody_listens(&place) else {
        return; // The protocol has no such thing.
    };
    let mut running = Running::ready(world, &[&place]).await;
    for round in 0..10 {
        let batch: Vec<Message> = (0..100)
            .map(|n| {
                let place = if n % 17 == round { &deaf } else { &place };
                message(format!("r{round}m{n}"), place)
            })
            .collect();
        let verdicts = running.publish(&batch).await;
        assert_verdicts("nobody listens", &verdicts, |index| {
            if index % 17 == round {
                Is::Rejected(code)
            } else {
                Is::Confirmed
            }
        });
    }
    running.close().await;
}

/// What the protocol cannot carry is refused before it can harm anybody, with its own reason.
pub(crate) async fn the_impossible_is_refused_alone(world: &impl World) {
    let place = open(world, "limits").await;
    let mut running = Running::ready(world, &[&place]).await;
    running.state.mark_unchanged();
    let bad = world.impossible(&message("bad", &place));
    let odd = world.odd(&message("odd", &place));
    assert!(bad.len() >= 3, "every protocol has limits");
    let mut batch = Vec::new();
    let mut expected = Vec::new();
    let mut good = Vec::new();
    let mut add = |mut message: Message, is: Is| {
        if !matches!(is, Is::Impossible(_)) {
            let old = message.id;
            message.id = format!("{old}-{}", batch.len());
            // Where the body is all that the server keeps, the id is in there.
            if message.body == crate::harness::message(old, &place).body {
                message.body = crate::harness::message(&message.id, &place).body;
            }
            good.push(message.id.clone());
        }
        expected.push(is);
        batch.push(message);
    };
    for (message, code) in bad {
        add(crate::harness::message("before", &place), Is::Confirmed);
        add(message, Is::Impossible(code));
    }
    for message in odd {
        add(message, Is::Confirmed);
    }
    add(message("last", &place), Is::Confirmed);
    let verdicts = running.publish(&batch).await;
    assert_verdicts("limits", &verdicts, |index| expected[index]);
    assert_eq!(ids_of(&world.take(&place).await), good);
    assert!(
        !running.state.has_changed().unwrap(),
        "the connection was lost: {:?}",
        *running.state.borrow()
    );
    running.close().await;
}

/// One key is on one lane at a time, but may change lanes from batch to batch.
pub(crate) async fn keys_keep_their_order(world: &impl World) {
    let place = open(world, "keys").await;
    let mut running = Running::ready(world, &[&place]).await;
    let lanes = running.lanes.len();
    for round in 0..8 {
        let mut publishing = Vec::new();
        for (number, lane) in running.lanes.iter_mut().enumerate() {
            let key = (number + round) % lanes;
            let place = &place;
            publishing.push(async move {
                let ids = ids(&format!("k{key}.{round}"), 30);
                let mut batch = messages(&ids, place);
                for message in &mut batch {
                    message.key = Some(format!("k{key}"));
                }
                let verdicts = publish(&mut **lane, &batch).await;
                assert_verdicts("lanes", &verdicts, |_| Is::Confirmed);
            });
        }
        futures_util::future::join_all(publishing).await;
    }
    let arrived = ids_of(&world.take(&place).await);
    for key in 0..lanes {
        let of_key: Vec<_> = arrived
            .iter()
            .filter(|id| id.starts_with(&format!("k{key}.")))
            .cloned()
            .collect();
        let expected: Vec<_> = (0..8)
            .flat_map(|round| ids(&format!("k{key}.{round}"), 30))
            .collect();
        assert_eq!(of_key, expected, "key {key}");
    }
    running.close().await;
}

/// The relay repeats what it is not sure of, so a duplicate that a server recognises is no failure.
pub(crate) async fn a_repeated_message_is_confirmed(world: &impl World) {
    let place = open(world, "repeated").await;
    let mut running = Running::ready(world, &[&place]).await;
    let ids = ids("m", 20);
    let batch = messages(&ids, &place);
    for _ in 0..3 {
        let verdicts = running.publish(&batch).await;
        assert_verdicts("repeated", &verdicts, |_| Is::Confirmed);
    }
    assert_eq!(first_times(ids_of(&world.take(&place).await)), ids);
    running.close().await;
}

/// Dropping `publish` under way leaves its fate open, and the lane fit for the next batch.
pub(crate) async fn an_abandoned_batch_does_no_harm(world: &impl World) {
    let place = open(world, "abandoned").await;
    let mut running = Running::ready(world, &[&place]).await;
    let lost = ids("lost", 50);
    for polls in [1, 2, 20] {
        let batch = messages(&lost, &place);
        let mut publishing = running.lanes[0].publish(&batch);
        for _ in 0..polls {
            let mut nobody = Context::from_waker(Waker::noop());
            if publishing.as_mut().poll(&mut nobody).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(publishing);
        let kept = ids(&format!("kept{polls}"), 50);
        let state = running.state.clone();
        publish_all(&mut *running.lanes[0], state, &messages(&kept, &place)).await;
    }
    let arrived = first_times(ids_of(&world.take(&place).await));
    let kept: Vec<_> = arrived
        .into_iter()
        .filter(|id| id.starts_with("kept"))
        .collect();
    let expected: Vec<_> = [1, 2, 20]
        .iter()
        .flat_map(|polls| ids(&format!("kept{polls}"), 50))
        .collect();
    assert_eq!(kept, expected);
    running.close().await;
}

/// A destination that the settings name is awaited: publishing anyway would cost every event its attempts.
pub(crate) async fn a_missing_set_up_is_an_outage(world: &impl World) {
    if !world.awaits_destinations() {
        return;
    }
    let place = world.place(&unique("awaited"));
    let mut running = Running::start(world.sink(Tuning::default(), &[&place]));
    running
        .await_state(
            "what is missing is named",
            |state| matches!(state, SinkState::Down(reason) if reason.contains(&place.destination)),
        )
        .await;
    assert_eq!(
        running.publish(&[message("early", &place)]).await,
        [Verdict::Unavailable]
    );
    world.open(&place).await;
    running.await_state("ready", SinkState::is_ready).await;
    let state = running.state.clone();
    publish_all(&mut *running.lanes[0], state, &[message("then", &place)]).await;
    assert_eq!(ids_of(&world.take(&place).await), ["then"]);
    running.close().await;
}

/// `Confirmed` means on disk.
pub(crate) async fn confirmed_survives_a_crash(world: &impl World) {
    let place = open(world, "durable").await;
    let mut running = Running::ready(world, &[&place]).await;
    let ids = ids("m", 200);
    let verdicts = running.publish(&messages(&ids, &place)).await;
    assert_verdicts("before the crash", &verdicts, |_| Is::Confirmed);
    world.kill().await;
    if !world.notices_silently() {
        let verdicts = running.publish(&[message("lost", &place)]).await;
        assert_verdicts("after the crash", &verdicts, |_| Is::Unavailable);
    }
    running
        .await_state("the loss is noticed", |state| !state.is_ready())
        .await;
    world.revive().await;
    assert_eq!(ids_of(&world.take(&place).await), ids);
    running.close().await;
}

/// All lanes under load while the server is killed and comes back: nothing is refused, nothing confirmed is
/// lost, and the first times of each key are in order.
pub(crate) async fn an_outage_is_not_a_rejection(world: &impl World) {
    let place = open(world, "outage").await;
    let running = Running::ready(world, &[&place]).await;
    let (batch_done, mut done) = tokio::sync::mpsc::unbounded_channel();
    let Running { sink, lanes, state } = running;
    let revived = Arc::new(AtomicBool::new(false));
    let mut tasks = Vec::new();
    for (key, mut lane) in lanes.into_iter().enumerate() {
        let (mut state, place, batch_done) = (state.clone(), place.clone(), batch_done.clone());
        let back = Arc::clone(&revived);
        tasks.push(tokio::spawn(async move {
            let (mut sent, mut after) = (Vec::new(), 0);
            for round in 0.. {
                let mut left: Vec<Message> = ids(&format!("k{key}.{round}"), 50)
                    .iter()
                    .map(|id| Message {
                        key: Some(format!("k{key}")),
                        ..message(id, &place)
                    })
                    .collect();
                sent.extend(left.iter().map(|message| message.id.clone()));
                while !left.is_empty() {
                    within("ready", state.wait_for(SinkState::is_ready))
                        .await
                        .unwrap();
                    let verdicts = publish(&mut *lane, &left).await;
                    let mut verdicts = verdicts.into_iter();
                    left.retain(|message| match verdicts.next() {
                        Some(Verdict::Confirmed) => false,
                        Some(Verdict::Unavailable) => true,
                        refused => panic!("{}: an outage is no rejection: {refused:?}", message.id),
                    });
                }
                let _ = batch_done.send(());
                after += usize::from(back.load(Ordering::Relaxed));
                if after == 3 {
                    break;
                }
            }
            sent
        }));
    }
    for _ in 0..20 {
        within("load", done.recv()).await.unwrap();
    }
    world.kill().await;
    let mut watching = state.clone();
    within(
        "the loss is noticed",
        watching.wait_for(|state| !state.is_ready()),
    )
    .await
    .unwrap();
    world.revive().await;
    revived.store(true, Ordering::Relaxed);
    let mut sent = Vec::new();
    for task in tasks {
        sent.push(within("a lane goes on", task).await.unwrap());
    }
    let arrived = first_times(ids_of(&world.take(&place).await));
    for (key, sent) in sent.into_iter().enumerate() {
        let of_key: Vec<_> = arrived
            .iter()
            .filter(|id| id.starts_with(&format!("k{key}.")))
            .cloned()
            .collect();
        assert_eq!(of_key, sent, "key {key}");
    }
    within("the sink closes", sink.close()).await;
}

/// A sink starts without its server, says why it waits, and connects when the server comes.
pub(crate) async fn an_absent_server_is_awaited(world: &impl World) {
    let place = open(world, "late").await;
    world.kill().await;
    let mut running = Running::start(world.sink(Tuning::default(), &[&place]));
    running
        .await_state(
            "down, with a reason",
            |state| matches!(state, SinkState::Down(reason) if !reason.is_empty()),
        )
        .await;
    let batch = messages(&ids("m", 10), &place);
    let verdicts = running.publish(&batch).await;
    assert_verdicts("no server", &verdicts, |_| Is::Unavailable);
    world.revive().await;
    let state = running.state.clone();
    publish_all(&mut *running.lanes[0], state, &batch).await;
    assert_eq!(ids_of(&world.take(&place).await), ids("m", 10));
    running.close().await;
}

/// Back-pressure is no rejection, and the sink says so. What was on its way may wait or come back unpublished.
pub(crate) async fn a_blocked_server_holds_events_back(world: &impl World) {
    let place = open(world, "blocked").await;
    let tuning = Tuning {
        confirm_timeout: Duration::from_millis(500),
        ..Tuning::default()
    };
    let mut running = Running::start(world.sink(tuning, &[&place]));
    running.await_state("ready", SinkState::is_ready).await;
    let before = messages(&ids("before", 10), &place);
    let state = running.state.clone();
    publish_all(&mut *running.lanes[0], state.clone(), &before).await;

    world.block().await;
    let mut watching = state.clone();
    let mut lane = running.lanes.remove(0);
    let held = messages(&ids("held", 10), &place);
    let publishing = tokio::spawn(async move { publish_all(&mut *lane, state, &held).await });
    within(
        "blocked is reported",
        watching.wait_for(|state| match world.tells_blocking() {
            true => matches!(state, SinkState::Blocked(_)),
            false => !state.is_ready(),
        }),
    )
    .await
    .unwrap();
    assert!(!publishing.is_finished(), "a blocked server confirmed");
    world.unblock().await;
    within("what was held is confirmed", publishing)
        .await
        .unwrap();
    let arrived = first_times(ids_of(&world.take(&place).await));
    assert_eq!(arrived, [ids("before", 10), ids("held", 10)].concat());
    running.close().await;
}

/// `close` ends every connection, also while the server is away.
pub(crate) async fn closing_leaves_no_connection(world: &impl World) {
    let place = open(world, "closing").await;
    for _ in 0..3 {
        let mut running = Running::ready(world, &[&place]).await;
        let batch = messages(&ids("m", 5), &place);
        let verdicts = running.publish(&batch).await;
        assert_verdicts("before closing", &verdicts, |_| Is::Confirmed);
        assert!(world.connections().await > 0, "nothing to close");
        running.close().await;
        within("the server sees the end", async {
            while world.connections().await > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    }
    let running = Running::ready(world, &[&place]).await;
    world.kill().await;
    running.close().await;
}
