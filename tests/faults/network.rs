//! Rows 10 and 15: the network between a relay and its servers.

use std::time::{Duration, Instant};

use crate::play::{Counts, Play, Replica, Run, WINDOW};
use crate::scenario::{Scenario, shared};
use crate::support::proxy::frames::Direction::{self, ToClient, ToServer};
use crate::support::proxy::frames::{Label, Statement};
use crate::support::proxy::{Act, Flow, Proxy};

pub(crate) const SCENARIOS: &[Scenario] = &[
    shared!(
        "confirms-swallowed",
        "10",
        "the broker's confirms vanish, everything else arrives",
        confirms_swallowed
    ),
    shared!(
        "broker-half-open-in",
        "10",
        "nothing the broker says arrives, and no connection ends",
        |run| broker_half_open(run, ToClient)
    ),
    shared!(
        "broker-half-open-out",
        "10",
        "nothing arrives at the broker, and no connection ends",
        |run| broker_half_open(run, ToServer)
    ),
    shared!(
        "broker-reset",
        "10",
        "the connection to the broker is reset in the middle of a batch, three times",
        |run| interrupted(run, Label::Publish, Act::Reset)
    ),
    shared!(
        "broker-cut",
        "10",
        "the connection to the broker ends just before a confirm, three times",
        |run| interrupted(run, Label::Confirm, Act::Cut)
    ),
    shared!(
        "single-bytes",
        "10",
        "both servers' connections pass byte by byte",
        single_bytes
    ),
    shared!(
        "slow-broker",
        "10",
        "every frame to and from the broker takes half a second (long form: 5 s)",
        slow_broker
    ),
    shared!(
        "slow-postgres",
        "10",
        "every frame to and from PostgreSQL takes 100 ms",
        slow_postgres
    ),
    shared!(
        "postgres-reset-settling",
        "13",
        "the connection to PostgreSQL is reset before rows are marked, three times",
        |run| interrupted(run, Label::Asked(Statement::Settle), Act::Reset)
    ),
    shared!(
        "postgres-reset-settled",
        "13",
        "the connection to PostgreSQL is reset when rows are marked and the relay does not know yet, three times",
        |run| interrupted(run, Label::Answered(Statement::Settle), Act::Reset)
    ),
    shared!(
        "postgres-half-open",
        "15",
        "PostgreSQL's connections fall silent; the relay must stop publishing before the other takes over",
        postgres_half_open
    ),
];

/// How long a confirm may take where confirms are held back. Far longer than a machine busy with everything else needs:
/// a broker that is slow by itself would add copies to those of the fault.
pub(crate) const CONFIRM_TIMEOUT: Duration = Duration::from_secs(8);

/// A relay that waits for an answer notices within this time that there will be none. NATS is asked for a sign of life
/// every 10 s, and given up at the third that is due.
const NOTICE: Duration = Duration::from_secs(60);

/// Two replicas under load that wait so long.
pub(crate) async fn under_load_with_timeout(run: Run) -> Play {
    let sink = run.sink();
    let timeout = |settings| sink.confirm_timeout(settings, CONFIRM_TIMEOUT);
    Play::under_load_with(run, timeout).await
}

/// How often what is in flight may be published again by a relay that heard nothing since `began`.
pub(crate) fn repeats(play: &Play, began: Instant) -> usize {
    if play.run.sink().reconnects_at_timeout() {
        return 1;
    }
    (began.elapsed().as_secs() / CONFIRM_TIMEOUT.as_secs()) as usize + 1
}

async fn confirms_swallowed(run: Run) -> Counts {
    let timeouts = run.rounds(1, 5) as u32;
    let mut play = under_load_with_timeout(run).await;
    let broker = &play.replicas[0].broker;
    broker.line(ToClient, |line| line.swallow = Some(Label::Confirm));
    // So many confirm timeouts are what is tested; the last ends before the next can.
    tokio::time::sleep(CONFIRM_TIMEOUT * timeouts + CONFIRM_TIMEOUT / 2).await;
    broker.heal();
    play.recovered().await;
    play.published(200).await;
    // One window at each timeout, and one for what was under way at the end.
    play.finish((timeouts as usize + 1) * WINDOW).await
}

async fn broker_half_open(run: Run, direction: Direction) -> Counts {
    let longer = run.last(0, 40);
    let complaint = run.sink().complaint();
    let mut play = under_load_with_timeout(run).await;
    let began = Instant::now();
    let broker = &play.replicas[0].broker;
    broker.line(direction, |line| line.flow = Flow::Blackhole);
    play.replicas[0]
        .relay()
        .await_log_for(complaint, NOTICE)
        .await;
    // Now attempts to connect fall silent, too.
    tokio::time::sleep(longer).await;
    play.replicas[0].broker.heal();
    let repeats = repeats(&play, began);
    play.recovered().await;
    play.published(200).await;
    play.finish(repeats * WINDOW).await
}

/// Three interruptions of one replica, each at a random frame of a kind.
async fn interrupted(run: Run, label: Label, act: Act) -> Counts {
    const TIMES: usize = 3;
    let mut play = Play::under_load(run).await;
    for _ in 0..TIMES {
        let nth = play.random(1..=20);
        let trap = play.replicas[0].at(label, nth, act);
        trap.sprung().await;
        play.recovered().await;
    }
    play.published(200).await;
    play.finish(TIMES * WINDOW).await
}

fn both(replica: &Replica) -> [&Proxy; 2] {
    [&replica.database, &replica.broker]
}

async fn single_bytes(run: Run) -> Counts {
    let mut play = Play::under_load(run).await;
    for proxy in play.replicas.iter().flat_map(both) {
        proxy.lines(|line| line.slice = true);
        // New connections, so that the handshakes are sliced, too.
        proxy.cut();
    }
    play.recovered().await;
    play.published(500).await;
    for proxy in play.replicas.iter().flat_map(both) {
        proxy.heal();
    }
    play.finish(2 * WINDOW).await
}

async fn slow_broker(run: Run) -> Counts {
    let delay = run.rounds(500, 5_000) as u64;
    let mut play = Play::under_load(run).await;
    for replica in &play.replicas {
        replica
            .broker
            .lines(|line| line.delay = Duration::from_millis(delay));
    }
    play.published(400).await;
    for replica in &play.replicas {
        replica.broker.heal();
    }
    play.recovered().await;
    play.published(200).await;
    play.finish(0).await
}

async fn slow_postgres(run: Run) -> Counts {
    let mut play = Play::under_load(run).await;
    for replica in &play.replicas {
        replica
            .database
            .lines(|line| line.delay = Duration::from_millis(100));
    }
    play.published(1_000).await;
    for replica in &play.replicas {
        replica.database.heal();
    }
    play.recovered().await;
    play.finish(0).await
}

async fn postgres_half_open(run: Run) -> Counts {
    let mut play = Play::under_load(run).await;
    let silent = &play.replicas[0].database;
    silent.lines(|line| line.flow = Flow::Blackhole);
    play.sole_owner("b").await;
    play.recovered().await;
    play.published(300).await;
    play.replicas[0].database.heal();
    play.stage.await_owned(2).await;
    play.published(200).await;
    play.finish(WINDOW).await
}
