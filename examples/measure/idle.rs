//! What a relay costs that has nothing to do.

use std::time::Duration;

use crate::Result;
use crate::figures::{Figure, thousands};
use crate::world::{Outbox, World};

struct Counters {
    wal_bytes: f64,
    transactions: i64,
    connections: i64,
}

pub(crate) async fn measure(world: &mut World) -> Result<Vec<Figure>> {
    let outbox = world.outbox().await?;
    world.broker.new_queue().await?;
    outbox.seed(1, 1).await?;
    let mut relay = world.relay(&outbox, &[])?;
    outbox
        .await_row(1, &mut relay, Duration::from_secs(20))
        .await?;
    // Our own connection would count, and so would what the start has left to write.
    let Outbox { name, client, .. } = outbox;
    drop(client);
    world.admin.batch_execute("checkpoint").await?;
    tokio::time::sleep(world.sizes.settle_down).await;
    relay.check()?;
    let before = counters(world, &name).await?;
    let usage_before = relay.usage()?;
    tokio::time::sleep(world.sizes.idle).await;
    relay.check()?;
    let after = counters(world, &name).await?;
    let usage = relay.usage()?;
    relay.stop().await?;
    world.drop_database(&name).await?;

    let seconds = world.sizes.idle.as_secs_f64();
    let wal = after.wal_bytes - before.wal_bytes;
    let queries = (after.transactions - before.transactions) as f64 / seconds;
    let connections = before.connections.max(after.connections);
    let memory = usage_before.resident_mib;
    let cpu = (usage.cpu - usage_before.cpu).as_secs_f64() / seconds;
    Ok(vec![
        Figure::bound(
            format!(
                "memory of an idle relay after {:?}",
                world.sizes.settle_down
            ),
            format!(
                "{memory:.1} MiB ({:.1} MiB without the program file)",
                usage_before.anonymous_mib
            ),
            "<= 14 MiB",
            memory <= 14.0,
        ),
        Figure::bound(
            format!("WAL of the idle server in {:?}", world.sizes.idle),
            format!("{} bytes", thousands(wal)),
            "none",
            wal == 0.0,
        ),
        Figure::bound(
            "queries of an idle relay",
            format!("{queries:.1}/s"),
            "<= 2/s",
            queries <= 2.0,
        ),
        Figure::bound(
            "connections of an idle relay",
            connections.to_string(),
            "<= 3",
            connections <= 3,
        ),
        Figure::fact("CPU of an idle relay", format!("{:.2} %", cpu * 100.0)),
    ])
}

/// Asked from another database, so that asking does not count.
async fn counters(world: &World, database: &str) -> Result<Counters> {
    let row = world
        .admin
        .query_one(
            "select (pg_current_wal_lsn() - '0/0')::float8, xact_commit + xact_rollback, \
                    (select count(*) from pg_stat_activity where datname = $1 and backend_type = 'client backend') \
             from pg_stat_database where datname = $1",
            &[&database],
        )
        .await?;
    Ok(Counters {
        wal_bytes: row.try_get(0)?,
        transactions: row.try_get(1)?,
        connections: row.try_get(2)?,
    })
}
