//! Row 1: a relay is killed at exactly the frame that matters, and the other takes over.

use crate::play::{Counts, Play, Run, WINDOW};
use crate::scenario::{Place, Scenario};
use crate::sink::Sink;
use crate::support::proxy::Act;
use crate::support::proxy::frames::{Label, Statement};

macro_rules! killed_at {
    ($name:literal, $fault:literal, $label:expr, $nth:expr) => {
        Scenario {
            name: $name,
            row: "1",
            fault: concat!("kill -9 ", $fault),
            replicas: 2,
            place: Place::Shared,
            short: true,
            sinks: Sink::ALL,
            run: |run| Box::pin(killed_at(run, $label, $nth)),
        }
    };
}

pub(crate) const SCENARIOS: &[Scenario] = &[
    killed_at!(
        "kill-reading",
        "while rows are on their way to the relay",
        Label::Row(Statement::Read),
        100
    ),
    killed_at!(
        "kill-publishing",
        "in the middle of a batch, at the n-th message",
        Label::Publish,
        150
    ),
    killed_at!(
        "kill-confirming",
        "when the broker has confirmed and the relay does not know yet",
        Label::Confirm,
        5
    ),
    killed_at!(
        "kill-settling",
        "after the confirms, before the rows are marked",
        Label::Asked(Statement::Settle),
        5
    ),
    killed_at!(
        "kill-settled",
        "when the rows are marked and the relay does not know yet",
        Label::Answered(Statement::Settle),
        5
    ),
    killed_at!(
        "kill-heartbeat",
        "while it renews its lease",
        Label::Asked(Statement::Heartbeat),
        3
    ),
    Scenario {
        name: "kill-recording",
        row: "1",
        fault: "kill -9 while it records that events were refused, before and after the commit",
        replicas: 2,
        place: Place::Shared,
        short: true,
        sinks: &[Sink::RabbitMq, Sink::Nats, Sink::Http, Sink::EventBridge],
        run: |run| Box::pin(killed_recording(run)),
    },
    Scenario {
        name: "kill-claiming",
        row: "1",
        fault: "kill -9 while it takes partitions over",
        replicas: 2,
        place: Place::Shared,
        short: true,
        sinks: Sink::ALL,
        run: |run| Box::pin(killed_claiming(run)),
    },
    Scenario {
        name: "kill-repeatedly",
        row: "1",
        fault: "kill -9 three times at random moments, each relay in turn",
        replicas: 2,
        place: Place::Shared,
        short: true,
        sinks: Sink::ALL,
        run: |run| Box::pin(killed_repeatedly(run)),
    },
];

async fn killed_at(run: Run, label: Label, nth_max: usize) -> Counts {
    let mut play = Play::under_load(run).await;
    let nth = play.random(1..=nth_max);
    let trap = play.replicas[0].at(label, nth, Act::Hold);
    trap.sprung().await;
    play.replicas[0].kill();
    play.recovered().await;
    play.replicas[0].start();
    play.stage.await_owned(2).await;
    play.published(200).await;
    play.finish(WINDOW).await
}

async fn killed_recording(run: Run) -> Counts {
    let patient = |settings: crate::support::Settings| settings.set("RETRY_MAX_ATTEMPTS", 100_000);
    let mut play = Play::under_load_with(run, patient).await;
    play.refusals = true;
    let nth = play.random(1..=3);
    for (replica, label) in [(0, Label::Asked as fn(_) -> _), (1, Label::Answered)] {
        let trap = play.replicas[replica].at(label(Statement::Record), nth, Act::Hold);
        // Every event comes back.
        play.refuse().await;
        trap.sprung().await;
        play.replicas[replica].kill();
        play.accept().await;
        play.recovered().await;
        play.replicas[replica].start();
        play.stage.await_owned(2).await;
    }
    play.finish(2 * WINDOW).await
}

async fn killed_claiming(run: Run) -> Counts {
    let mut play = Play::open(run).await;
    play.add("b", |settings| settings).await.start();
    play.stage.await_owned(1).await;
    play.write().await;
    play.published(200).await;
    let a = play.add("a", |settings| settings).await;
    let trap = a.at(Label::Answered(Statement::Claim), 1, Act::Hold);
    a.start();
    trap.sprung().await;
    a.kill();
    play.recovered().await;
    play.sole_owner("b").await;
    play.replicas[1].start();
    play.stage.await_owned(2).await;
    play.published(200).await;
    play.finish(WINDOW).await
}

/// Three deaths: after more of them, a row that was alone in flight each time is rightly suspected.
async fn killed_repeatedly(run: Run) -> Counts {
    const DEATHS: usize = 3;
    let mut play = Play::under_load(run).await;
    for death in 0..DEATHS {
        play.pause_ms(0..=700).await;
        play.replicas[death % 2].kill();
        play.recovered().await;
        play.replicas[death % 2].start();
        // A takeover while the other still arrives would be a fault of another kind.
        play.stage.await_owned(2).await;
    }
    play.finish(DEATHS * WINDOW).await
}
