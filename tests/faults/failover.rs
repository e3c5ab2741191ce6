//! Row 14: PostgreSQL fails over to an asynchronous standby that has not got the last transactions.

use std::collections::HashSet;

use tokio_postgres::Client;

use crate::play::{Counts, Play, Run, WINDOW};
use crate::scenario::{Place, Scenario};
use crate::sink::Sink;
use crate::support::proxy::frames::{Label, Protocol, Statement};
use crate::support::proxy::{Act, Flow, Proxy};
use crate::support::{PATIENCE, within};

pub(crate) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "failover",
    row: "14",
    fault: "an asynchronous standby takes over without the last events, which were published and not yet marked; \
            their sequence numbers are drawn again",
    replicas: 2,
    place: Place::Turn,
    short: true,
    sinks: Sink::ALL,
    run: |run| Box::pin(failover(run)),
}];

/// Commits events at once, in outbox and ledger.
async fn burst(client: &Client, prefix: &str, events: usize) {
    let text = format!(
        "with event as (insert into outbox (type, key, data) \
           select 'burst', '{prefix}' || g % 50, jsonb_build_object('n', g) \
           from generate_series(1, {events}) g returning id, key, seq, data) \
         insert into ledger select id, key, seq, seq, data::text from event"
    );
    client.batch_execute(&text).await.expect("a burst");
}

async fn failover(run: Run) -> Counts {
    let mut play = Play::open(run).await;
    let servers = play.run.servers.clone();
    for name in ["a", "b"] {
        play.add(name, |settings| settings).await.start();
    }
    play.stage.await_owned(2).await;
    burst(&play.stage.sql, "k", 500).await;
    play.recovered().await;

    let replication = Proxy::start(Protocol::Postgres, servers.postgres.port()).await;
    let standby = servers.postgres.standby(replication.port()).await;
    let behind = "select count(*) from (select) x where not exists \
        (select from pg_stat_replication where replay_lsn = pg_current_wal_lsn())";
    let what = "the standby has everything";
    play.stage.await_count(what, behind, 0).await;
    replication.lines(|line| line.flow = Flow::Held);

    // The tail: committed here, published, and never marked.
    let tail = play.random(150..=400);
    let traps: Vec<_> = play
        .replicas
        .iter()
        .map(|replica| replica.at(Label::Asked(Statement::Settle), 1, Act::Hold))
        .collect();
    burst(&play.stage.sql, "k", tail).await;
    for trap in traps {
        trap.sprung().await;
    }
    // Sometimes longer than a lease: then the standby knows of no heartbeat that still counts.
    play.pause_ms(0..=6_000).await;
    let known = play.stage.texts("select id::text from ledger").await;
    let known: HashSet<String> = known.into_iter().collect();
    servers.postgres.crash();
    standby.promote();
    play.stage.sql = standby.client(&play.stage.database).await;
    // Before the relays come, so that they meet other rows under numbers they know.
    burst(&play.stage.sql, "n", 2 * tail).await;
    for replica in &play.replicas {
        replica.database.lead_to(standby.port());
        replica.database.cut();
    }
    play.recovered().await;
    within("ownership", PATIENCE, play.stage.await_owned(2)).await;
    let mut counts = play.finish(2 * WINDOW).await;
    // Committed, and taken back by the failover: nothing a relay could know.
    let report = &mut counts.report;
    report.phantom.retain(|id| !known.contains(id));
    servers.postgres.revive();
    counts
}
