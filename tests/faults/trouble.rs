//! Trouble that only some sinks can meet with.

use std::time::Instant;

use crate::network::{CONFIRM_TIMEOUT, repeats, under_load_with_timeout};
use crate::play::{Counts, Play, Run, WINDOW};
use crate::scenario::{Place, Scenario};
use crate::sink::Sink;
use crate::support::proxy::Act;
use crate::support::proxy::frames::Label;

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "broker-frozen",
        row: "10",
        fault: "the broker's process stands still for longer than a confirm may take, with its connections open",
        replicas: 2,
        place: Place::Turn,
        short: true,
        sinks: &[Sink::Nats, Sink::Http, Sink::Kafka, Sink::EventBridge],
        run: |run| Box::pin(broker_frozen(run)),
    },
    Scenario {
        name: "repetitions-recognised",
        row: "10",
        fault: "the connection ends just before a confirm, three times, and the stream recognises repetitions for the \
                usual two minutes",
        replicas: 2,
        place: Place::Shared,
        short: true,
        sinks: &[Sink::Nats],
        run: |run| Box::pin(repetitions_recognised(run)),
    },
    Scenario {
        name: "service-ill",
        row: "5",
        fault: "the service answers 500 to every event, for much longer than all retries of an event would take, twice",
        replicas: 2,
        place: Place::Shared,
        short: true,
        sinks: &[Sink::Http],
        run: |run| Box::pin(service_ill(run)),
    },
];

async fn broker_frozen(run: Run) -> Counts {
    let length = run.last(12, 60);
    let mut play = under_load_with_timeout(run).await;
    let began = Instant::now();
    play.broker().freeze();
    assert!(length > CONFIRM_TIMEOUT);
    // Its length is the fault.
    tokio::time::sleep(length).await;
    play.broker().thaw();
    let repeats = repeats(&play, began);
    play.recovered().await;
    play.published(200).await;
    play.finish(2 * repeats * WINDOW).await
}

async fn repetitions_recognised(run: Run) -> Counts {
    const TIMES: usize = 3;
    let mut play = Play::under_load(run).await;
    let servers = play.run.servers.clone();
    servers.nats().recognise(&play.place).await;
    for _ in 0..TIMES {
        let nth = play.random(1..=20);
        let trap = play.replicas[0].at(Label::Confirm, nth, Act::Cut);
        trap.sprung().await;
        play.recovered().await;
    }
    play.published(200).await;
    play.finish(0).await
}

async fn service_ill(run: Run) -> Counts {
    let length = run.last(3, 30);
    let mut play = Play::under_load(run).await;
    for _ in 0..2 {
        let servers = play.run.servers.clone();
        let service = &servers.http().service;
        service.refuse(&play.place, Some((500, "")));
        // Two attempts 50 ms apart would be over long before.
        tokio::time::sleep(length).await;
        play.writers().await_more(100).await;
        service.refuse(&play.place, None);
        play.recovered().await;
        play.published(100).await;
    }
    // What was refused was not taken.
    play.finish(0).await
}
