//! How fast a backlog goes out: many keys, one hot key, under a held snapshot.

use std::time::{Duration, Instant};

use tokio_postgres::types::{ToSql, Type};

use crate::Result;
use crate::figures::{Figure, median, per_second, thousands};
use crate::world::{Outbox, Usage, World};

/// Longest time one backlog may take.
const LIMIT: Duration = Duration::from_secs(150);
const STRICT: (&str, &str) = ("OUTRIGGER_RELAY_ORDERING", "strict");
const PIPELINED: (&str, &str) = ("OUTRIGGER_RELAY_ORDERING", "pipelined");
const UNORDERED: (&str, &str) = ("OUTRIGGER_RELAY_ORDERING", "none");
const DELETE: (&str, &str) = ("OUTRIGGER_OUTBOX_AFTER_PUBLISH", "delete");
const STDOUT: (&str, &str) = ("OUTRIGGER_SINK", "stdout");

struct Drain<'a> {
    rows: i64,
    keys: u32,
    setting: (&'a str, &'a str),
    held_snapshot: bool,
}

struct Drained {
    rate: f64,
    /// Rate of the last fifth over that of the first; unknown if rows are deleted.
    last_to_first: f64,
    /// Rows marked by one statement, on average; unknown if rows are deleted.
    per_settle: f64,
    usage: Usage,
    rows: i64,
    body: Option<usize>,
}

impl Drained {
    fn cpu_us(&self) -> f64 {
        self.usage.cpu.as_secs_f64() * 1e6 / self.rows as f64
    }
}

async fn drain(world: &mut World, what: Drain<'_>) -> Result<Drained> {
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
    outbox.seed(what.rows, what.keys).await?;
    world.broker.new_queue().await?;

    let mut relay = world.relay(&outbox, &[what.setting])?;
    outbox.await_row(1, &mut relay, LIMIT).await?;
    let first = Instant::now();
    outbox.await_all(what.rows, &mut relay, LIMIT).await?;
    let by_watch = what.rows as f64 / first.elapsed().as_secs_f64();
    let usage = relay.usage()?;
    relay.stop().await?;

    let body = if what.setting == STDOUT {
        None
    } else {
        let waiting = i64::from(world.broker.waiting().await?);
        if waiting != what.rows {
            return Err(format!("{waiting} messages for {} rows", what.rows).into());
        }
        Some(world.broker.body_size().await?)
    };
    let (rate, last_to_first, per_settle) = if what.setting == DELETE {
        (by_watch, f64::NAN, f64::NAN)
    } else {
        by_rows(&outbox).await?
    };
    drop(holder);
    world.drop(outbox).await?;
    Ok(Drained {
        rate,
        last_to_first,
        per_settle,
        usage,
        rows: what.rows,
        body,
    })
}

/// Rate over all, that of the last fifth in relation to the first, and rows per statement, by the times in the rows. A batch is marked at
/// one time, so each rate counts the rows that came after its first moment.
async fn by_rows(outbox: &Outbox) -> Result<(f64, f64, f64)> {
    let row = outbox
        .row(
            "with o as (select extract(epoch from published_at)::float8 as at, \
                               ntile(5) over (order by published_at) as fifth from outbox), \
             f as (select fifth, min(at) as first, max(at) as last from o group by fifth), \
             r as (select f.fifth, count(*) filter (where o.at > f.first) / nullif(f.last - f.first, 0) as rate \
                   from f join o using (fifth) group by f.fifth, f.first, f.last) \
             select (select count(*) filter (where at > (select min(at) from o)) / nullif(max(at) - min(at), 0) from o), \
                    (select rate from r where fifth = 5) / (select rate from r where fifth = 1), \
                    (select count(*)::float8 / count(distinct at) from o)",
            &[],
        )
        .await?;
    let rate: Option<f64> = row.try_get(0)?;
    let last_to_first: Option<f64> = row.try_get(1)?;
    Ok((
        rate.ok_or("all rows were published in one batch; measure more rows")?,
        last_to_first.unwrap_or(f64::NAN),
        row.try_get(2)?,
    ))
}

/// Many keys, beside the bare publisher and bare SQL.
pub(crate) async fn many_keys(world: &mut World) -> Result<Vec<Figure>> {
    let (backlog, keys, variant) = (world.sizes.backlog, world.sizes.keys, world.sizes.variant);
    let mut bare = Vec::new();
    let mut strict = Vec::new();
    // In turns, so that a busy neighbour meets both.
    for _ in 0..world.sizes.rounds {
        bare.push(world.broker.publish_many(backlog as usize).await?);
        let what = Drain {
            rows: backlog,
            keys,
            setting: STRICT,
            held_snapshot: false,
        };
        strict.push(drain(world, what).await?);
    }
    let ratios: Vec<f64> = bare
        .iter()
        .zip(&strict)
        .map(|(bare, strict)| strict.rate / bare)
        .collect();
    let of = |value: fn(&Drained) -> f64| median(&strict.iter().map(value).collect::<Vec<_>>());
    let bare = median(&bare);
    let rate = of(|drained| drained.rate);
    world.drain_rate = Some(rate);
    let body = strict.iter().find_map(|drained| drained.body).unwrap_or(0);

    let mut figures = vec![
        Figure::reference("B: bare publisher, 8 channels x 200", per_second(bare)),
        Figure::share(
            format!("drain, strict, many keys ({body} bytes a message)"),
            per_second(rate),
            "B",
            median(&ratios),
            Some(0.8),
        ),
    ];
    for (name, setting) in [
        ("drain, strict, AFTER_PUBLISH=delete", DELETE),
        ("drain, ORDERING=pipelined", PIPELINED),
        ("drain, ORDERING=none", UNORDERED),
    ] {
        let what = Drain {
            rows: variant,
            keys,
            setting,
            held_snapshot: false,
        };
        let drained = drain(world, what).await?;
        if setting == PIPELINED {
            world.pipelined_rate = Some(drained.rate);
        }
        let measured = format!(
            "{}, {:.0} us CPU, {:.0} MiB",
            per_second(drained.rate),
            drained.cpu_us(),
            drained.usage.peak_mib
        );
        figures.push(Figure::share(
            name,
            measured,
            "B",
            drained.rate / bare,
            None,
        ));
    }
    let cpu = of(Drained::cpu_us);
    figures.push(Figure::bound(
        "CPU of the relay per event, strict drain",
        format!("{cpu:.1} us"),
        "<= 15 us",
        cpu <= 15.0,
    ));
    let peak = of(|drained| drained.usage.peak_mib);
    figures.push(Figure::bound(
        "memory of the relay, peak of the strict drain",
        format!("{peak:.1} MiB"),
        "<= 32 MiB",
        peak <= 32.0,
    ));

    figures.push(Figure::fact(
        "rows marked by one statement, strict drain",
        thousands(of(|drained| drained.per_settle)),
    ));

    let sql = bare_sql(world, backlog, true).await?;
    let sql_delete = bare_sql(world, variant, false).await?;
    let what = Drain {
        rows: backlog,
        keys,
        setting: STDOUT,
        held_snapshot: false,
    };
    let stdout = drain(world, what).await?;
    figures.extend([
        Figure::reference("S: bare SQL, read 1,000 and mark", per_second(sql)),
        Figure::reference("bare SQL, read 1,000 and delete", per_second(sql_delete)),
        Figure::share(
            format!(
                "drain to SINK=stdout, thrown away ({:.0} us CPU)",
                stdout.cpu_us()
            ),
            per_second(stdout.rate),
            "S",
            stdout.rate / sql,
            Some(0.9),
        ),
    ]);
    Ok(figures)
}

/// Reads and marks (or deletes) like the relay, on one connection and with nothing in between.
async fn bare_sql(world: &mut World, rows: i64, mark: bool) -> Result<f64> {
    let outbox = world.outbox().await?;
    outbox.seed(rows, world.sizes.keys).await?;
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
        let batch = outbox
            .client
            .query_typed(read, &[(&after, Type::INT8)])
            .await?;
        let seqs: Vec<i64> = batch
            .iter()
            .map(|row| row.try_get(0))
            .collect::<std::result::Result<_, _>>()?;
        let Some(last) = seqs.last() else { break };
        after = *last;
        let seqs = (&seqs as &(dyn ToSql + Sync), Type::INT8_ARRAY);
        done += outbox.client.execute_typed(settle, &[seqs]).await?;
    }
    let rate = rows as f64 / began.elapsed().as_secs_f64();
    if done != rows as u64 {
        return Err(format!("{done} rows settled of {rows}").into());
    }
    world.drop(outbox).await?;
    Ok(rate)
}

/// One key: nothing can be published side by side in strict order.
pub(crate) async fn hot_key(world: &mut World) -> Result<Vec<Figure>> {
    let rows = world.sizes.hot_key;
    let window = world.broker.publish_one_by_one(rows as usize).await?;
    let what = Drain {
        rows,
        keys: 1,
        setting: STRICT,
        held_snapshot: false,
    };
    let strict = drain(world, what).await?;
    // Once before and once after, because this is the figure closest to its reference.
    let window = median(&[
        window,
        world.broker.publish_one_by_one(rows as usize).await?,
    ]);
    let what = Drain {
        rows: world.sizes.variant,
        keys: 1,
        setting: PIPELINED,
        held_snapshot: false,
    };
    let pipelined = drain(world, what).await?;
    let mut figures = vec![
        Figure::reference("window 1: one confirm at a time", per_second(window)),
        Figure::share(
            format!("one hot key, strict ({:.0} us CPU)", strict.cpu_us()),
            per_second(strict.rate),
            "window 1",
            strict.rate / window,
            Some(0.9),
        ),
    ];
    figures.push(match world.pipelined_rate {
        Some(many) => Figure::share(
            "one hot key, pipelined",
            per_second(pipelined.rate),
            "pipelined, many keys",
            pipelined.rate / many,
            Some(0.9),
        ),
        None => Figure::fact("one hot key, pipelined", per_second(pipelined.rate)),
    });
    Ok(figures)
}

/// What the relay leaves behind cannot be removed; reading must not get slower all the same.
pub(crate) async fn held_snapshot(world: &mut World) -> Result<Vec<Figure>> {
    let mut drained = Vec::new();
    for held_snapshot in [false, true] {
        let what = Drain {
            rows: world.sizes.snapshot,
            keys: world.sizes.keys,
            setting: STRICT,
            held_snapshot,
        };
        drained.push(drain(world, what).await?);
    }
    let [free, held] = [&drained[0], &drained[1]];
    Ok(vec![
        Figure::reference(
            "no snapshot: last 20 % to first 20 %",
            per_second(free.rate),
        )
        .with_ratio(free.last_to_first),
        Figure::share(
            "held snapshot: last 20 % to first 20 %",
            per_second(held.rate),
            "its first 20 %",
            held.last_to_first,
            Some(0.9),
        ),
    ])
}
