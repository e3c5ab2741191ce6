//! One drain: a backlog, a relay, and what it took to publish it all.

use std::time::{Duration, Instant};

use tokio_postgres::types::{ToSql, Type};

use crate::Result;
use crate::outbox::{Outbox, Rates, Seed, TEXT};
use crate::place::QueueKind;
use crate::process::{Relay, Usage};
use crate::processors::{Account, Processors};
use crate::world::{Settings, World};

/// Longest time one backlog may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(150);
pub(crate) const STRICT: (&str, &str) = ("OUTRIGGER_RELAY_ORDERING", "strict");
pub(crate) const PIPELINED: (&str, &str) = ("OUTRIGGER_RELAY_ORDERING", "pipelined");
pub(crate) const UNORDERED: (&str, &str) = ("OUTRIGGER_RELAY_ORDERING", "none");
pub(crate) const DELETE: (&str, &str) = ("OUTRIGGER_OUTBOX_AFTER_PUBLISH", "delete");
pub(crate) const BINARY: (&str, &str) = ("OUTRIGGER_EVENT_MODE", "binary");
pub(crate) const BATCH: (&str, &str) = ("OUTRIGGER_EVENT_MODE", "batch");
pub(crate) const STDOUT: (&str, &str) = ("OUTRIGGER_SINK", "stdout");

/// What to drain, and with which settings.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Drain<'a> {
    pub(crate) seed: Seed,
    pub(crate) settings: Settings<'a>,
    pub(crate) queue: QueueKind,
    pub(crate) held_snapshot: bool,
}

impl<'a> Drain<'a> {
    /// Events of about 1 KiB into a classic queue.
    pub(crate) fn new(rows: i64, keys: i64, settings: Settings<'a>) -> Self {
        Self {
            seed: Seed {
                rows,
                keys,
                text: TEXT,
            },
            settings,
            queue: QueueKind::Classic,
            held_snapshot: false,
        }
    }

    fn has(&self, setting: (&str, &str)) -> bool {
        self.settings.contains(&setting)
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Drained {
    pub(crate) rate: f64,
    /// Rate of the last tenth over that of the first; unknown if rows are deleted.
    pub(crate) last_to_first: f64,
    /// Rows marked by one statement, on average; unknown if rows are deleted.
    pub(crate) per_settle: f64,
    pub(crate) usage: Usage,
    /// Resident memory: seconds since the start, and MiB.
    pub(crate) memory: Vec<(f64, f64)>,
    pub(crate) cost: Cost,
    pub(crate) account: Account,
    pub(crate) rows: i64,
    /// Bytes of one message's body, where it can be looked at.
    pub(crate) body: Option<usize>,
    /// Messages that came of the rows, where they can be counted.
    pub(crate) messages: Option<i64>,
}

impl Drained {
    pub(crate) fn cpu_us(&self) -> f64 {
        self.usage.cpu.as_secs_f64() * 1e6 / self.rows as f64
    }
}

/// What an event cost the database.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    pub(crate) wal_bytes: f64,
    pub(crate) buffers: f64,
}

/// Drains a new outbox and checks that all of it arrived.
pub(crate) async fn drain(world: &mut World, what: Drain<'_>) -> Result<Drained> {
    let outbox = world.outbox().await?;
    let holder = if what.held_snapshot {
        let holder = outbox.connect().await?;
        holder
            .batch_execute("begin isolation level repeatable read; select 1")
            .await?;
        Some(holder)
    } else {
        None
    };
    let rows = what.seed.rows;
    outbox.seed(what.seed).await?;
    world.place.new_queue(what.queue).await?;

    let before = Counters::read(world, &outbox).await?;
    let idle = Processors::now(world).await?;
    let mut relay = world.relay(&outbox, what.settings)?;
    outbox.await_row(1, &mut relay, LIMIT).await?;
    let first = Instant::now();
    outbox.await_all(rows, &mut relay, LIMIT).await?;
    let by_watch = rows as f64 / first.elapsed().as_secs_f64();
    let (usage, memory) = (relay.usage()?, relay.memory());
    let drained = Processors::now(world).await?;
    let account = idle.since(drained, Some(usage.cpu.as_secs_f64()), rows);
    relay.stop().await?;
    // A holder is no relay: it goes before the wait for those that are left.
    drop(holder);
    outbox.await_alone().await?;
    let cost = before.cost(&Counters::read(world, &outbox).await?, rows);

    let (mut body, mut messages) = (None, None);
    // A stream neither counts at once nor hands out single messages.
    if !what.has(STDOUT) && what.queue != QueueKind::Stream {
        messages = Some(world.place.await_waiting(rows, !what.has(BATCH)).await?);
        body = Some(world.place.body_size().await?);
    }
    let rates = if what.has(DELETE) {
        Rates {
            all: by_watch,
            last_to_first: f64::NAN,
            per_settle: f64::NAN,
        }
    } else {
        outbox.rates(0, rows).await?
    };
    world.drop(outbox).await?;
    Ok(Drained {
        rate: rates.all,
        last_to_first: rates.last_to_first,
        per_settle: rates.per_settle,
        usage,
        memory,
        cost,
        account,
        rows,
        body,
        messages,
    })
}

/// Drains rows above `after` up to `up_to` of an outbox that may hold many more.
pub(crate) async fn drain_part(
    world: &mut World,
    outbox: &Outbox,
    (after, up_to): (i64, i64),
    settings: Settings<'_>,
) -> Result<(f64, Vec<(f64, f64)>)> {
    world.place.new_queue(QueueKind::Classic).await?;
    let mut relay: Relay = world.relay(outbox, settings)?;
    outbox.await_all(up_to, &mut relay, LIMIT).await?;
    let memory = relay.memory();
    relay.stop().await?;
    outbox.await_alone().await?;
    Ok((outbox.rates(after, up_to).await?.all, memory))
}

/// Publishes messages of this size with the client library alone: how many a second, and what each costs.
pub(crate) async fn bare_publisher(
    world: &World,
    messages: i64,
    size: usize,
    queue: QueueKind,
) -> Result<(f64, Account)> {
    let idle = Processors::now(world).await?;
    let rate = world.place.publish_many(messages, size, queue).await?;
    let done = Processors::now(world).await?;
    Ok((rate, idle.since(done, None, messages)))
}

/// How fast SQL alone is, and what it costs.
pub(crate) struct BareSql {
    pub(crate) rate: f64,
    pub(crate) cost: Cost,
    pub(crate) account: Account,
}

/// Reads and marks (or deletes) like the relay, on one connection and with nothing in between.
pub(crate) async fn bare_sql(world: &mut World, seed: Seed, mark: bool) -> Result<BareSql> {
    let outbox = world.outbox().await?;
    outbox.seed(seed).await?;
    let before = Counters::read(world, &outbox).await?;
    let idle = Processors::now(world).await?;
    // One of its own, which has told the server's statistics everything once it has ended.
    let client = outbox.connect().await?;
    let read = "select o.seq, hashtextextended(o.key::text, 0), o.key is not null, \
                case when o.expires_at < now() then 0::int8 end, o.id::text, o.type, o.source, o.subject, o.key, \
                o.content_type, o.schema, o.destination, o.routing_key, o.extensions::text, o.headers::text, o.data, \
                o.data_binary, o.created_at \
                from outbox o where o.published_at is null and o.seq > $1 \
                and (o.available_at is null or o.available_at <= now()) order by o.seq limit 1000";
    let settle = if mark {
        "update outbox o set published_at = now() where o.seq = any($1) and o.published_at is null"
    } else {
        "delete from outbox o where o.seq = any($1)"
    };
    let mut after = 0_i64;
    let mut done = 0;
    let began = Instant::now();
    loop {
        let batch = client.query_typed(read, &[(&after, Type::INT8)]).await?;
        let seqs: Vec<i64> = batch
            .iter()
            .map(|row| row.try_get(0))
            .collect::<std::result::Result<_, _>>()?;
        let Some(last) = seqs.last() else { break };
        after = *last;
        let seqs = (&seqs as &(dyn ToSql + Sync), Type::INT8_ARRAY);
        done += client.execute_typed(settle, &[seqs]).await?;
    }
    let rate = seed.rows as f64 / began.elapsed().as_secs_f64();
    let account = idle.since(Processors::now(world).await?, None, seed.rows);
    if done != seed.rows as u64 {
        return Err(format!("{done} rows settled of {}", seed.rows).into());
    }
    drop(client);
    outbox.await_alone().await?;
    let cost = before.cost(&Counters::read(world, &outbox).await?, seed.rows);
    world.drop(outbox).await?;
    Ok(BareSql {
        rate,
        cost,
        account,
    })
}

/// The server's counters at one moment.
struct Counters {
    wal: f64,
    buffers: f64,
}

impl Counters {
    /// Asked from another database, so that asking does not count.
    async fn read(world: &World, outbox: &Outbox) -> Result<Self> {
        let sql = "select (blks_hit + blks_read)::float8 from pg_stat_database where datname = $1";
        let row = world.admin.query_one(sql, &[&outbox.name]).await?;
        Ok(Self {
            wal: world.wal().await?,
            buffers: row.try_get(0)?,
        })
    }

    fn cost(&self, later: &Self, rows: i64) -> Cost {
        Cost {
            wal_bytes: (later.wal - self.wal) / rows as f64,
            buffers: (later.buffers - self.buffers) / rows as f64,
        }
    }
}
