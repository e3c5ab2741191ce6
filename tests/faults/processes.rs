//! Processes that stop for a while, for good, or get little of the machine.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::play::{Counts, LEASE, Play, Run, WINDOW};
use crate::scenario::{Place, Scenario};
use crate::sink::Sink;
use crate::support::proxy::Act;
use crate::support::proxy::frames::Label;

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "freeze",
        row: "2",
        fault: "SIGSTOP in the middle of a batch, SIGCONT after the other has taken over",
        replicas: 2,
        place: Place::Shared,
        short: true,
        sinks: Sink::ALL,
        run: |run| Box::pin(frozen(run)),
    },
    Scenario {
        name: "freeze-late-bytes",
        row: "2",
        fault: "the same, and what it had sent reaches the broker only after the takeover",
        replicas: 2,
        place: Place::Shared,
        short: true,
        sinks: Sink::ALL,
        run: |run| Box::pin(frozen_with_late_bytes(run)),
    },
    Scenario {
        name: "rolling-restart",
        row: "3",
        fault: "SIGTERM under load, each replica in turn, and again",
        replicas: 2,
        place: Place::Shared,
        short: true,
        sinks: Sink::ALL,
        run: |run| Box::pin(rolling_restart(run)),
    },
    Scenario {
        name: "cpu-starved",
        row: "27",
        fault: "one replica runs 5 ms of every 100 ms",
        replicas: 2,
        place: Place::Shared,
        short: true,
        sinks: Sink::ALL,
        run: |run| Box::pin(starved(run)),
    },
    Scenario {
        name: "out-of-memory",
        row: "27",
        fault: "one replica gets no more memory from the system, and dies of it",
        replicas: 2,
        place: Place::Shared,
        short: true,
        sinks: Sink::ALL,
        run: |run| Box::pin(out_of_memory(run)),
    },
];

async fn frozen(run: Run) -> Counts {
    let mut play = Play::under_load(run).await;
    let nth = play.random(1..=150);
    let trap = play.replicas[0].at(Label::Publish, nth, Act::Hold);
    trap.sprung().await;
    play.replicas[0].relay().signal("STOP");
    play.replicas[0].broker.release();
    play.sole_owner("b").await;
    play.recovered().await;
    if play.run.full {
        // Up to two minutes; how long it sleeps is the fault.
        play.pause_ms(1_000..=118_000).await;
    }
    play.published(300).await;
    play.replicas[0].relay().signal("CONT");
    play.stage.await_owned(2).await;
    play.published(300).await;
    play.finish(WINDOW).await
}

async fn frozen_with_late_bytes(run: Run) -> Counts {
    let mut play = Play::under_load(run).await;
    let nth = play.random(1..=150);
    let trap = play.replicas[0].at(Label::Publish, nth, Act::Hold);
    trap.sprung().await;
    play.replicas[0].relay().signal("STOP");
    play.sole_owner("b").await;
    play.recovered().await;
    play.published(200).await;
    // Meanwhile all of it was published by the other.
    play.replicas[0].broker.release();
    play.published(200).await;
    play.replicas[0].relay().signal("CONT");
    play.stage.await_owned(2).await;
    play.published(200).await;
    play.finish(WINDOW).await
}

async fn rolling_restart(run: Run) -> Counts {
    let mut play = Play::under_load(run).await;
    for replica in [0, 1, 0, 1] {
        play.pause_ms(0..=300).await;
        play.replicas[replica].stop().await;
        play.recovered().await;
        play.replicas[replica].start();
        play.stage.await_owned(2).await;
    }
    play.published(100).await;
    play.finish(0).await
}

async fn starved(run: Run) -> Counts {
    let length = run.last(4, 30);
    let mut play = Play::under_load(run).await;
    let relay = play.replicas[0].relay();
    let began = Instant::now();
    while began.elapsed() < length {
        relay.signal("STOP");
        tokio::time::sleep(Duration::from_millis(95)).await;
        relay.signal("CONT");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    play.recovered().await;
    play.stage.await_owned(2).await;
    play.published(200).await;
    // Each time its lease ran out is a failure.
    let losses = (length.as_secs() / LEASE.as_secs()) as usize + 1;
    play.finish(losses * WINDOW).await
}

async fn out_of_memory(run: Run) -> Counts {
    let mut play = Play::under_load(run).await;
    let pid = play.replicas[0].relay().id().to_string();
    let limited = Command::new("prlimit")
        .args(["--pid", &pid, "--data=1048576"])
        .status()
        .expect("prlimit runs");
    assert!(limited.success(), "prlimit --data");
    // Rows far larger than what lies free in its heap.
    let big = "with event as (insert into outbox (type, key, data) \
        select 'big', 'big' || g, jsonb_build_object('p', repeat('x', 1000000)) \
        from generate_series(1, 16) g returning id, key, seq, data) \
        insert into ledger select id, key, seq, seq, data::text from event";
    play.stage.run(big).await;
    let relay = play.replicas[0].ended(Duration::from_secs(30)).await;
    println!(
        "the end of its log: {}",
        relay.log().lines().last().unwrap_or("")
    );
    play.recovered().await;
    play.replicas[0].start();
    play.stage.await_owned(2).await;
    play.published(200).await;
    play.finish(WINDOW).await
}
