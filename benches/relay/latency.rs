//! From commit to consumer: an idle system beside direct publishing, and under load.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio_postgres::Client;
use uuid::Uuid;

use crate::Result;
use crate::outbox::{Seed, TEXT};
use crate::place::{QueueKind, SinkName};
use crate::report::sample::percentile;
use crate::report::{Figure, Line, Measured, Sample, Sweep, Target, Unit};
use crate::world::World;

/// Rows per second on the idle system.
const IDLE_RATE: u32 = 20;
/// How often the loaded system is written to.
const BURST: Duration = Duration::from_millis(10);
/// Load if the drain was not measured.
const DEFAULT_DRAIN: f64 = 10_000.0;
/// Shows that the relay is at work.
const ONE: Seed = Seed {
    rows: 1,
    keys: 1,
    text: TEXT,
};
/// Longest wait for the last message.
const ARRIVAL: Duration = Duration::from_secs(30);

/// Shares of the drain rate that are written while latency is measured.
const LOADS: [f64; 3] = [0.1, 0.5, 0.8];
/// What is told of latencies.
const SHARES: [(f64, &str); 4] = [(0.5, "p50"), (0.9, "p90"), (0.99, "p99"), (0.999, "p99.9")];

type Commits = HashMap<Uuid, Instant>;

/// What a direct publisher writes into: the outbox without relay, trigger and index.
const PLAIN_TABLE: &str = "create table plain (seq bigint generated always as identity primary key, \
     id uuid not null, type text not null, key text, data jsonb, created_at timestamptz default now())";

async fn insert(client: &Client, table: &str, ids: &[Uuid]) -> Result<()> {
    let statement = format!(
        "insert into {table} (id, type, key, data) \
         select id, 'order.changed', 'customer-' || (random() * 10000)::int, \
                jsonb_build_object('text', repeat('x', $2::int4)) from unnest($1::uuid[]) id"
    );
    let length = i32::try_from(TEXT)?;
    client.execute(&statement, &[&ids, &length]).await?;
    Ok(())
}

/// Latencies of all these commits in milliseconds, sorted; every one of them must have arrived.
fn latencies(commits: &Commits, arrivals: &Commits) -> Result<Vec<f64>> {
    let mut latencies = Vec::with_capacity(commits.len());
    for (id, commit) in commits {
        let arrival = arrivals
            .get(id)
            .ok_or_else(|| format!("event {id} never arrived"))?;
        // Commits are noted when the client learns of them, which the relay may even beat.
        let latency = arrival.saturating_duration_since(*commit);
        latencies.push(latency.as_secs_f64() * 1e3);
    }
    latencies.sort_by(f64::total_cmp);
    Ok(latencies)
}

pub(crate) async fn measure(world: &mut World) -> Result<Measured> {
    let [relayed, direct] = idle(world).await?;
    let of = |sorted: &[f64], share| Sample::one(Unit::Milliseconds, percentile(sorted, share));
    let name = format!("{IDLE_RATE}/s");
    let [half, tail] = [0.5, 0.99].map(|share| of(&relayed, share));
    let [direct_half, direct_tail] = [0.5, 0.99].map(|share| of(&direct, share));
    let in_relation = Figure::new(
        "commit to consumer, idle system: p50 in relation",
        half.clone(),
    )
    .beside("direct publish after commit", &direct_half)
    .with(&name);
    let mut figures = vec![
        Figure::new("commit to consumer, idle system: p50", half)
            .target(Target::AtMost(3.0))
            .with(&name),
        match world.sink {
            SinkName::Rabbitmq => in_relation.target(Target::TimesAtMost(2.0)),
            // What publishing itself takes there is so little that the database's answer is most of it.
            _ => in_relation,
        },
        Figure::new("commit to consumer, idle system: p99", tail.clone())
            .target(Target::AtMost(15.0))
            .with(&name),
        Figure::new("commit to consumer, idle system: p99 in relation", tail)
            .beside("direct publish after commit", &direct_tail)
            .with(&name),
    ];

    let mut lines = vec![
        line("direct", f64::from(IDLE_RATE), &direct),
        line("idle", f64::from(IDLE_RATE), &relayed),
    ];
    let drain = world.drain_rate.unwrap_or(DEFAULT_DRAIN);
    for load in LOADS {
        let (rate, latencies) = loaded(world, load * drain).await?;
        if load == 0.5 {
            figures.push(
                Figure::new(
                    "commit to consumer, half the drain rate: p99",
                    of(&latencies, 0.99),
                )
                .target(Target::AtMost(50.0))
                .with(Unit::PerSecond.write(rate)),
            );
        }
        lines.push(line(format!("{:.0} %", load * 100.0), rate, &latencies));
    }
    let mut columns = vec!["written".to_owned()];
    columns.extend(SHARES.map(|(_, name)| name.to_owned()));
    columns.push("longest".into());
    let sweep = Sweep {
        id: "latency",
        title: "Latency by load",
        about: format!(
            "From commit to consumer; loads are shares of the drain rate ({}), written in one transaction every {} ms by \
             one connection for {} s. Writer, broker, relay and consumer share the machine. *direct* publishes after each \
             commit, without a relay.",
            Unit::PerSecond.write(drain),
            BURST.as_millis(),
            world.sizes.load.as_secs()
        ),
        axis: "load",
        columns,
        lines,
        drawn: vec![1, 3],
    };
    Ok(Measured {
        figures,
        sweeps: vec![sweep],
        ..Measured::default()
    })
}

fn line(label: impl Into<String>, rate: f64, sorted: &[f64]) -> Line {
    let mut cells = vec![Sample::one(Unit::PerSecond, rate)];
    let values = SHARES.iter().map(|(share, _)| percentile(sorted, *share));
    let values = values.chain([percentile(sorted, 1.0)]);
    cells.extend(values.map(|value| Sample::one(Unit::Milliseconds, value)));
    Line {
        label: label.into(),
        cells,
    }
}

/// An event now and then, relayed and published directly in turns.
async fn idle(world: &mut World) -> Result<[Vec<f64>; 2]> {
    let rows = world.sizes.latency_rows;
    let outbox = world.outbox().await?;
    outbox.client.batch_execute(PLAIN_TABLE).await?;
    world.place.new_queue(QueueKind::Classic).await?;
    let receipts = world.place.receive().await?;
    let mut direct = world.place.direct().await?;
    outbox.seed(ONE).await?;
    let mut relay = world.relay(&outbox, &[])?;
    outbox
        .await_row(1, &mut relay, Duration::from_secs(20))
        .await?;

    let [mut relayed, mut published] = [Commits::new(), Commits::new()];
    let mut tick = tokio::time::interval(Duration::from_secs(1) / IDLE_RATE / 2);
    for _ in 0..rows {
        tick.tick().await;
        let id = Uuid::new_v4();
        insert(&outbox.client, "outbox", &[id]).await?;
        relayed.insert(id, Instant::now());
        // Half a period later, so that neither disturbs the other.
        tick.tick().await;
        let id = Uuid::new_v4();
        insert(&outbox.client, "plain", &[id]).await?;
        published.insert(id, Instant::now());
        direct.publish(id).await?;
    }
    let arrivals = receipts.take(2 * rows + 1, ARRIVAL).await?;
    relay.stop().await?;
    world.drop(outbox).await?;
    Ok([
        latencies(&relayed, &arrivals)?,
        latencies(&published, &arrivals)?,
    ])
}

/// Writes at a rate; tells the rate it reached, and the latencies.
async fn loaded(world: &mut World, target: f64) -> Result<(f64, Vec<f64>)> {
    let burst = (target * BURST.as_secs_f64()).ceil() as usize;
    let outbox = world.outbox().await?;
    world.place.new_queue(QueueKind::Classic).await?;
    let receipts = world.place.receive().await?;
    outbox.seed(ONE).await?;
    let mut relay = world.relay(&outbox, &[])?;
    outbox
        .await_row(1, &mut relay, Duration::from_secs(20))
        .await?;

    let mut commits = Commits::new();
    let mut tick = tokio::time::interval(BURST);
    // A late burst is not made up for by several at once.
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let began = Instant::now();
    while began.elapsed() < world.sizes.load {
        tick.tick().await;
        let ids: Vec<Uuid> = (0..burst).map(|_| Uuid::new_v4()).collect();
        insert(&outbox.client, "outbox", &ids).await?;
        let commit = Instant::now();
        commits.extend(ids.into_iter().map(|id| (id, commit)));
    }
    let rate = commits.len() as f64 / began.elapsed().as_secs_f64();
    let arrivals = receipts.take(commits.len() + 1, ARRIVAL).await?;
    relay.stop().await?;
    world.drop(outbox).await?;
    Ok((rate, latencies(&commits, &arrivals)?))
}
