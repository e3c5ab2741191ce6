//! How soon a relay publishes: after its start, and after another one went.

use std::time::{Duration, Instant};

use crate::Result;
use crate::outbox::{Outbox, Seed};
use crate::place::QueueKind;
use crate::process::Relay;
use crate::report::{Figure, Measured, Sample, Target, Unit};
use crate::world::World;

/// Enough that every partition gets some.
const KEYS: i64 = 400;
const START_LIMIT: Duration = Duration::from_secs(20);

pub(crate) async fn measure(world: &mut World) -> Result<Measured> {
    let mut figures = vec![start(world).await?];
    figures.extend(takeover(world).await?);
    Ok(Measured {
        figures,
        ..Measured::default()
    })
}

async fn start(world: &mut World) -> Result<Figure> {
    let outbox = world.outbox().await?;
    world.place.new_queue(QueueKind::Classic).await?;
    let mut times = Vec::new();
    for seq in 1..=world.sizes.starts as i64 {
        outbox
            .seed(Seed {
                rows: 1,
                keys: 1,
                text: 100,
            })
            .await?;
        let mut relay = world.relay(&outbox, &[])?;
        outbox.await_row(seq, &mut relay, START_LIMIT).await?;
        let sql = "select extract(epoch from published_at)::float8 from outbox where seq = $1";
        let published: f64 = outbox.row(sql, &[&seq]).await?.try_get(0)?;
        times.push((published - relay.spawned_at.as_microsecond() as f64 / 1e6) * 1e3);
        relay.stop().await?;
    }
    world.drop(outbox).await?;
    let name = "start: from exec to the first row published";
    Ok(Figure::new(name, Sample::new(Unit::Milliseconds, times)).target(Target::AtMost(100.0)))
}

async fn takeover(world: &mut World) -> Result<Vec<Figure>> {
    let lease = world.sizes.lease;
    let ttl = format!("{}s", lease.as_secs());
    let settings = [("OUTRIGGER_RELAY_LEASE_TTL", ttl.as_str())];
    let outbox = world.outbox().await?;
    world.place.new_queue(QueueKind::Classic).await?;
    let mut relays = vec![world.relay(&outbox, &settings)?];
    let [mut crashed, mut stopped] = [vec![], vec![]];
    for _ in 0..world.sizes.takeovers {
        relays.push(world.relay(&outbox, &settings)?);
        share(&outbox, &mut relays, 4 * lease).await?;
        let began = Instant::now();
        if let Some(mut victim) = relays.pop() {
            victim.kill();
        }
        crashed.push(published(&outbox, &mut relays[0], began, 3 * lease).await?);

        relays.push(world.relay(&outbox, &settings)?);
        share(&outbox, &mut relays, 4 * lease).await?;
        let began = Instant::now();
        if let Some(mut victim) = relays.pop() {
            victim.terminate()?;
            stopped.push(1e3 * published(&outbox, &mut relays[0], began, 3 * lease).await?);
            victim.ended().await?;
        }
    }
    for relay in relays {
        relay.stop().await?;
    }
    world.drop(outbox).await?;

    let leases = Sample::new(Unit::Seconds, crashed.iter().map(|_| lease.as_secs_f64()));
    Ok(vec![
        Figure::new(
            "takeover after kill -9",
            Sample::new(Unit::Seconds, crashed),
        )
        .beside("LEASE_TTL", &leases)
        .target(Target::TimesAtMost(1.0)),
        Figure::new(
            "takeover after a clean stop",
            Sample::new(Unit::Milliseconds, stopped),
        )
        .target(Target::AtMost(1000.0))
        .with(format!("LEASE_TTL={ttl}")),
    ])
}

/// Waits until each of the relays owns partitions and none is free.
pub(crate) async fn share(outbox: &Outbox, relays: &mut [Relay], limit: Duration) -> Result<()> {
    let began = Instant::now();
    let owners = "select case when every(p.owner is not null and r.replica is not null) then count(distinct p.owner) else 0 end \
                  from outrigger.partitions p left join outrigger.replicas r on r.replica = p.owner \
                    and r.lease_until > clock_timestamp()";
    while outbox.row(owners, &[]).await?.try_get::<_, i64>(0)? != relays.len() as i64 {
        for relay in &mut *relays {
            relay.check()?;
        }
        if began.elapsed() > limit {
            let relays = relays.len();
            return Err(
                format!("{relays} relays did not share the partitions in {limit:?}").into(),
            );
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Writes a row for each of many keys, and tells after how many seconds the last of them was published: all partitions have an
/// owner again that publishes.
async fn published(
    outbox: &Outbox,
    relay: &mut Relay,
    began: Instant,
    limit: Duration,
) -> Result<f64> {
    let row = outbox.row(
        "with new as (insert into outbox (type, key, data) \
         select 'order.changed', 'customer-' || n, '{}' from generate_series(1, $1::int8) n returning seq) \
         select max(seq) from new",
        &[&KEYS],
    );
    let last: i64 = row.await?.try_get(0)?;
    outbox.await_all(last, relay, limit).await?;
    Ok(began.elapsed().as_secs_f64())
}
