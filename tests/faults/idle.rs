//! Relays that can do nothing but wait, for whatever reason: they must leave the processor to others.

use std::net::TcpListener;
use std::time::Duration;

use crate::play::{Counts, LEASE, Play, Run, WINDOW};
use crate::scenario::{Place, Scenario};
use crate::sink::Sink;
use crate::support::proxy::{Flow, Proxy};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "idle-in-outages",
        row: "4, 13, 15",
        fault: "database refused, silent, its table renamed, the broker away, both away, paused: for longer than the lease, \
                while the processor time of the relays is watched",
        replicas: 2,
        place: Place::Shared,
        short: true,
        sinks: Sink::ALL,
        run: |run| Box::pin(both(run)),
    },
    Scenario {
        name: "idle-in-outages-alone",
        row: "4, 13, 15",
        fault: "the same with one relay, which polls",
        replicas: 1,
        place: Place::Shared,
        short: true,
        sinks: Sink::ALL,
        run: |run| Box::pin(alone(run)),
    },
];

async fn both(run: Run) -> Counts {
    let play = Play::under_load(run).await;
    waits(play).await
}

async fn alone(run: Run) -> Counts {
    let mut play = Play::open(run).await;
    let polls = |settings: crate::support::Settings| settings.set("RELAY_WAKE", "poll");
    play.add("a", polls).await.start();
    play.stage.await_owned(1).await;
    play.write().await;
    play.published(200).await;
    waits(play).await
}

/// Nobody listens on the other side, and what was connected is cut.
fn refuse(proxies: &[&Proxy]) {
    let nobody = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = nobody.local_addr().expect("bound").port();
    drop(nobody);
    for proxy in proxies {
        proxy.lead_to(port);
        proxy.cut();
    }
}

async fn waits(mut play: Play) -> Counts {
    play.silence().await;
    play.stage.await_settled().await;
    let watched = play.run.last(3, 20);
    let (database_port, broker_port) = (play.database_port, play.broker().port());

    for silent in [false, true] {
        let databases: Vec<&Proxy> = play.replicas.iter().map(|r| &r.database).collect();
        if silent {
            for proxy in &databases {
                proxy.lines(|line| line.flow = Flow::Blackhole);
            }
        } else {
            refuse(&databases);
        }
        out_of_action(&play, watched).await;
        for replica in &play.replicas {
            replica.database.lead_to(database_port);
            replica.database.heal();
            replica.database.cut();
        }
        works(&mut play).await;
    }

    play.stage.run("alter table outbox rename to away").await;
    out_of_action(&play, watched).await;
    play.stage.run("alter table away rename to outbox").await;
    works(&mut play).await;

    refuse(&play.replicas.iter().map(|r| &r.broker).collect::<Vec<_>>());
    play.backlog(1_000).await;
    out_of_action(&play, watched).await;
    refuse(
        &play
            .replicas
            .iter()
            .map(|r| &r.database)
            .collect::<Vec<_>>(),
    );
    out_of_action(&play, watched).await;
    for replica in &play.replicas {
        replica.broker.lead_to(broker_port);
        replica.database.lead_to(database_port);
    }
    works(&mut play).await;

    play.stage
        .run("update outrigger.outboxes set paused_at = now()")
        .await;
    play.backlog(100).await;
    out_of_action(&play, watched).await;
    play.stage
        .run("update outrigger.outboxes set paused_at = null")
        .await;
    works(&mut play).await;
    play.finish(4 * WINDOW).await
}

/// Beyond the lease, so that no proof of ownership is left where it cannot be renewed.
async fn out_of_action(play: &Play, length: Duration) {
    tokio::time::sleep(LEASE * 2).await;
    play.idle_through(length).await;
}

/// The fault is over.
async fn works(play: &mut Play) {
    play.backlog(50).await;
    play.recovered().await;
    // One that is alone renews nothing that others could see.
    if play.replicas.len() > 1 {
        play.stage.await_owned(2).await;
    }
}
