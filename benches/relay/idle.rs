//! What a relay costs that has nothing to do.

use std::time::{Duration, Instant};

use crate::Result;
use crate::counting_proxy::{CountingProxy, Protocol};
use crate::outbox::{Outbox, Seed};
use crate::place::QueueKind;
use crate::process::Relay;
use crate::report::{Figure, Measured, Sample, Target, Unit};
use crate::world::World;

/// After the last change, the server notes once more what is running: 15 s after it did so before, and up to 10 s
/// later if its background writer sleeps. It would look like work of the relay.
const LAST_NOTE: Duration = Duration::from_secs(26);

/// How long queries are counted: as long as whole numbers of all that an idle relay does now and then (every 0.8 s,
/// 4 s and 5 s), so that the count does not depend on where it begins.
const ASKED: Duration = Duration::from_secs(20);

pub(crate) async fn measure(world: &mut World) -> Result<Measured> {
    let outbox = world.outbox().await?;
    world.place.new_queue(QueueKind::Classic).await?;
    let host = outbox.url.host_str().unwrap_or("127.0.0.1").to_owned();
    let server = format!("{host}:{}", outbox.url.port().unwrap_or(5432));
    let proxy = CountingProxy::start(Protocol::Postgres, server).await?;
    let mut url = outbox.url.clone();
    // What is encrypted could not be counted.
    url.set_query(Some("sslmode=disable"));
    url.set_host(Some("127.0.0.1"))?;
    url.set_port(Some(proxy.port()))
        .map_err(|()| "the database's URL takes no port")?;

    let one = Seed {
        rows: 1,
        keys: 1,
        text: 100,
    };
    outbox.seed(one).await?;
    // Our own connection would count.
    let Outbox { name, client, .. } = outbox;
    drop(client);
    // What was measured before left work for the vacuum, which is not the relay's.
    set_autovacuum(world, false).await?;
    let without = written(world).await?;

    let mut relay = world.relay_at(&url, &[])?;
    await_published(&proxy, &mut relay).await?;
    let (before, usage) = (proxy.counts(), relay.usage()?);
    let began = Instant::now();
    let asked = async {
        tokio::time::sleep(ASKED).await;
        proxy.counts().since(&before)
    };
    let (with, asked) = tokio::join!(written(world), asked);
    let (with, seconds) = (with?, began.elapsed().as_secs_f64());
    let cpu = (relay.usage()?.cpu - usage.cpu).as_secs_f64() / seconds;
    relay.check()?;
    let connected = "select count(*) from pg_stat_activity where datname = $1 and backend_type = 'client backend'";
    let connections = world.admin.query_one(connected, &[&name]).await?;
    let connections: i64 = connections.try_get(0)?;
    let usage = relay.usage()?;
    relay.stop().await?;
    set_autovacuum(world, true).await?;
    world.drop_database(&name).await?;

    let one = Sample::one;
    let queries = asked.all_statements() as f64 / ASKED.as_secs_f64();
    let figures = vec![
        Figure::new(
            "memory of an idle relay",
            one(Unit::Mebibytes, usage.resident_mib),
        )
        .target(Target::AtMost(14.0))
        .with(format!(
            "{:.1} MiB without the program file",
            usage.anonymous_mib
        )),
        Figure::new(
            "WAL of an idle relay",
            one(Unit::Bytes, (with - without).max(0.0)),
        )
        .target(Target::AtMost(0.0))
        .with(format!(
            "in {} s; the server with it {}, without it {}",
            world.sizes.idle.as_secs(),
            Unit::Bytes.write(with),
            Unit::Bytes.write(without)
        )),
        Figure::new("queries of an idle relay", one(Unit::PerSecond, queries))
            .target(Target::AtMost(2.0))
            .with(format!(
                "{} in {} s",
                asked.all_statements(),
                ASKED.as_secs()
            )),
        Figure::new(
            "connections of an idle relay",
            one(Unit::Count, connections as f64),
        )
        .target(Target::AtMost(3.0)),
        Figure::new(
            "CPU of an idle relay per second",
            one(Unit::Microseconds, cpu * 1e6),
        ),
    ];
    Ok(Measured {
        figures,
        ..Measured::default()
    })
}

/// Waits until the row is settled, as seen on the wire: a connection to look for it would count.
async fn await_published(proxy: &CountingProxy, relay: &mut Relay) -> Result<()> {
    let began = Instant::now();
    let mut settled_at = None;
    loop {
        let counts = proxy.counts();
        let ticks = counts.statements_with("with me as");
        if settled_at.is_none() && counts.statements_with("set \"published_at\"") > 0 {
            settled_at = Some(ticks);
        }
        // That it was sent does not say that it is done. Two looks at the leases later, it is.
        if settled_at.is_some_and(|at| ticks >= at + 2) {
            return Ok(());
        }
        relay.check()?;
        if began.elapsed() > Duration::from_secs(20) {
            return Err("the relay settled nothing in 20 s".into());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Turns autovacuum on or off; returns when none is under way any more.
async fn set_autovacuum(world: &World, on: bool) -> Result<()> {
    let value = if on { "on" } else { "off" };
    let admin = &world.admin;
    admin
        .batch_execute(&format!("alter system set autovacuum = {value}"))
        .await?;
    admin.batch_execute("select pg_reload_conf()").await?;
    let workers = "select count(*) from pg_stat_activity where backend_type = 'autovacuum worker'";
    while !on && admin.query_one(workers, &[]).await?.try_get::<_, i64>(0)? > 0 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// How much the server writes in some time, once it has noted the work before.
async fn written(world: &World) -> Result<f64> {
    world.admin.batch_execute("checkpoint").await?;
    let noted = world.wal().await?;
    let began = Instant::now();
    while world.wal().await? == noted && began.elapsed() < LAST_NOTE {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let before = world.wal().await?;
    tokio::time::sleep(world.sizes.idle).await;
    Ok(world.wal().await? - before)
}
