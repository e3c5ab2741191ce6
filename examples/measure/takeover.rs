//! How soon a relay publishes: after its start, and after another one went.

use std::time::{Duration, Instant};

use crate::Result;
use crate::figures::{Figure, median, ms};
use crate::world::{Outbox, Relay, World};

/// Enough that every partition gets some.
const KEYS: i64 = 400;
const START_LIMIT: Duration = Duration::from_secs(20);

pub(crate) async fn measure(world: &mut World) -> Result<Vec<Figure>> {
    let mut figures = vec![start(world).await?];
    figures.extend(takeover(world).await?);
    Ok(figures)
}

async fn start(world: &mut World) -> Result<Figure> {
    let outbox = world.outbox().await?;
    world.broker.new_queue().await?;
    let mut times = Vec::new();
    for seq in 1..=world.sizes.starts as i64 {
        outbox.seed(1, 1).await?;
        let mut relay = world.relay(&outbox, &[])?;
        outbox.await_row(seq, &mut relay, START_LIMIT).await?;
        let sql = "select extract(epoch from published_at)::float8 from outbox where seq = $1";
        let published: f64 = outbox.row(sql, &[&seq]).await?.try_get(0)?;
        times.push(published - relay.spawned_at.as_microsecond() as f64 / 1e6);
        relay.stop().await?;
    }
    world.drop(outbox).await?;
    let time = Duration::try_from_secs_f64(median(&times))?;
    Ok(Figure::bound(
        "start: from exec to the first row published",
        ms(time),
        "<= 100 ms to reading",
        time <= Duration::from_millis(100),
    ))
}

async fn takeover(world: &mut World) -> Result<Vec<Figure>> {
    let lease = world.sizes.lease;
    let ttl = format!("{}s", lease.as_secs());
    let settings = [("OUTRIGGER_RELAY_LEASE_TTL", ttl.as_str())];
    let outbox = world.outbox().await?;
    world.broker.new_queue().await?;
    let mut stays = world.relay(&outbox, &settings)?;

    let mut victim = world.relay(&outbox, &settings)?;
    share(&outbox, &mut stays, &mut victim, 4 * lease).await?;
    let began = Instant::now();
    victim.kill();
    let crashed = published(&outbox, &mut stays, began, 3 * lease).await?;

    let mut victim = world.relay(&outbox, &settings)?;
    share(&outbox, &mut stays, &mut victim, 4 * lease).await?;
    let began = Instant::now();
    victim.terminate()?;
    let stopped = published(&outbox, &mut stays, began, 3 * lease).await?;
    victim.ended().await?;
    stays.stop().await?;
    world.drop(outbox).await?;

    let to_lease = crashed.as_secs_f64() / lease.as_secs_f64();
    Ok(vec![
        Figure::bound(
            format!("takeover after kill -9, LEASE_TTL={ttl}"),
            format!("{:.2} s", crashed.as_secs_f64()),
            "<= the lease time",
            to_lease <= 1.0,
        )
        .with_ratio(to_lease),
        Figure::bound(
            "takeover after a clean stop",
            ms(stopped),
            "< 1 s",
            stopped < Duration::from_secs(1),
        ),
    ])
}

/// Waits until both relays own partitions and none is free.
async fn share(outbox: &Outbox, one: &mut Relay, other: &mut Relay, limit: Duration) -> Result<()> {
    let began = Instant::now();
    let shared = "select count(distinct p.owner) = 2 and every(p.owner is not null and r.replica is not null) \
                  from outrigger.partitions p left join outrigger.replicas r on r.replica = p.owner";
    while !outbox
        .row(shared, &[])
        .await?
        .try_get::<_, Option<bool>>(0)?
        .unwrap_or(false)
    {
        one.check()?;
        other.check()?;
        if began.elapsed() > limit {
            return Err(format!("two relays did not share the partitions in {limit:?}").into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Writes a row for each of many keys, and tells when the last of them was published: all partitions have an
/// owner again that publishes.
async fn published(
    outbox: &Outbox,
    relay: &mut Relay,
    began: Instant,
    limit: Duration,
) -> Result<Duration> {
    let row = outbox.row(
        "with new as (insert into outbox (type, key, data) \
         select 'order.changed', 'customer-' || n, '{}' from generate_series(1, $1::int8) n returning seq) \
         select max(seq) from new",
        &[&KEYS],
    );
    let last: i64 = row.await?.try_get(0)?;
    outbox.await_all(last, relay, limit).await?;
    Ok(began.elapsed())
}
