//! From commit to consumer: an idle system beside direct publishing, and under load.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio_postgres::Client;
use uuid::Uuid;

use crate::Result;
use crate::figures::{Figure, ms, per_second, percentile};
use crate::world::{TEXT, World};

/// Rows per second on the idle system.
const IDLE_RATE: u32 = 20;
/// How often the loaded system is written to.
const BURST: Duration = Duration::from_millis(10);
/// Load if the drain was not measured.
const DEFAULT_DRAIN: f64 = 10_000.0;
/// Longest wait for the last message.
const ARRIVAL: Duration = Duration::from_secs(30);

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
    client.execute(&statement, &[&ids, &TEXT]).await?;
    Ok(())
}

/// Latencies of all these commits; every one of them must have arrived.
fn latencies(commits: &Commits, arrivals: &Commits) -> Result<Vec<Duration>> {
    commits
        .iter()
        .map(|(id, commit)| {
            let arrival = arrivals
                .get(id)
                .ok_or_else(|| format!("event {id} never arrived"))?;
            // Commits are noted when the client learns of them, which the relay may even beat.
            Ok(arrival.saturating_duration_since(*commit))
        })
        .collect()
}

pub(crate) async fn measure(world: &mut World) -> Result<Vec<Figure>> {
    let mut figures = idle(world).await?;
    figures.extend(loaded(world).await?);
    Ok(figures)
}

async fn idle(world: &mut World) -> Result<Vec<Figure>> {
    let rows = world.sizes.latency_rows;
    let outbox = world.outbox().await?;
    outbox.client.batch_execute(PLAIN_TABLE).await?;
    world.broker.new_queue().await?;
    let receipts = world.broker.receive().await?;
    let direct = world.broker.direct().await?;
    outbox.seed(1, 1).await?;
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

    let mut relayed = latencies(&relayed, &arrivals)?;
    let mut published = latencies(&published, &arrivals)?;
    let [half, tail] = [0.5, 0.99].map(|share| percentile(&mut relayed, share));
    let [direct_half, direct_tail] = [0.5, 0.99].map(|share| percentile(&mut published, share));
    let ratio = half.as_secs_f64() / direct_half.as_secs_f64();
    Ok(vec![
        Figure::reference(
            format!("direct publish after commit, {IDLE_RATE}/s: p50, p99"),
            format!("{}, {}", ms(direct_half), ms(direct_tail)),
        ),
        Figure::bound(
            format!("commit to consumer, {IDLE_RATE}/s: p50"),
            ms(half),
            "<= 3 ms",
            half <= Duration::from_millis(3),
        ),
        Figure::bound(
            "  the same, in relation to direct",
            "",
            "<= 2 of direct",
            ratio <= 2.0,
        )
        .with_ratio(ratio),
        Figure::bound(
            format!("commit to consumer, {IDLE_RATE}/s: p99"),
            ms(tail),
            "<= 15 ms",
            tail <= Duration::from_millis(15),
        )
        .with_ratio(tail.as_secs_f64() / direct_tail.as_secs_f64()),
    ])
}

async fn loaded(world: &mut World) -> Result<Vec<Figure>> {
    let target = world.drain_rate.unwrap_or(DEFAULT_DRAIN) / 2.0;
    let burst = (target * BURST.as_secs_f64()).ceil() as usize;
    let outbox = world.outbox().await?;
    world.broker.new_queue().await?;
    let receipts = world.broker.receive().await?;
    outbox.seed(1, 1).await?;
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

    let mut latencies = latencies(&commits, &arrivals)?;
    let [half, tail] = [0.5, 0.99].map(|share| percentile(&mut latencies, share));
    Ok(vec![
        Figure::fact(
            "commit to consumer at half the drain rate: p50",
            format!("{} at {}", ms(half), per_second(rate)),
        ),
        Figure::bound(
            "commit to consumer at half the drain rate: p99",
            format!("{} at {}", ms(tail), per_second(rate)),
            "<= 50 ms",
            tail <= Duration::from_millis(50),
        ),
    ])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_event_that_never_arrived_is_an_error() {
        let [here, lost] = [Uuid::new_v4(), Uuid::new_v4()];
        let now = Instant::now();
        let later = now + Duration::from_millis(5);
        let arrivals = Commits::from([(here, later)]);
        let measured = latencies(&Commits::from([(here, now)]), &arrivals).unwrap();
        assert_eq!(measured, [Duration::from_millis(5)]);
        assert!(latencies(&Commits::from([(here, now), (lost, now)]), &arrivals).is_err());
    }
}
