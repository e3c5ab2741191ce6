//! The same drain for several values of one thing: payload, keys, replicas, kind of queue, size of the backlog.

use crate::Result;
use crate::drain::{Drain, Drained, LIMIT, STDOUT, STRICT, bare_publisher, drain, drain_part};
use crate::outbox::{Outbox, Seed, TEXT, message_size};
use crate::place::QueueKind;
use crate::process::Relay;
use crate::processors;
use crate::report::sample::thousands;
use crate::report::{Curve, Curves, Figure, Line, Measured, Sample, Sweep, Target, Unit};
use crate::takeover::share;
use crate::targets::{cpu, of, peak, rates};
use crate::world::World;

const COLUMNS: [&str; 5] = ["B", "relay", "ratio", "CPU per event", "peak memory"];

fn columns(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn line(label: impl Into<String>, bare: &Sample, drained: &[Drained]) -> Line {
    let rate = rates(drained);
    let ratio = rate.over(bare);
    Line {
        label: label.into(),
        cells: vec![bare.clone(), rate, ratio, cpu(drained), peak(drained)],
    }
}

pub(crate) async fn payload(world: &mut World) -> Result<Measured> {
    let payloads = world.sizes.payloads;
    let mut bare = vec![Vec::new(); payloads.len()];
    let mut drained = vec![Vec::new(); payloads.len()];
    for _ in 0..world.sizes.rounds {
        for (index, (text, rows)) in payloads.iter().enumerate() {
            let size = message_size(*text);
            bare[index].push(
                world
                    .place
                    .publish_many(*rows, size, QueueKind::Classic)
                    .await?,
            );
            let mut what = Drain::new(*rows, world.sizes.keys, &[STRICT]);
            what.seed.text = *text;
            drained[index].push(drain(world, what).await?);
        }
    }
    let megabytes = |rates: &Sample, text: usize| {
        let rates = rates.rounds.iter();
        Sample::new(
            Unit::MegabytesPerSecond,
            rates.map(|rate| rate * message_size(text) as f64 / 1e6),
        )
    };
    let lines = payloads.iter().zip(&bare).zip(&drained);
    let lines = lines.map(|(((text, rows), bare), drained)| {
        let bare = Sample::new(Unit::PerSecond, bare.iter().copied());
        let mut line = line(size_name(*text), &bare, drained);
        line.cells.push(megabytes(&bare, *text));
        line.cells.push(megabytes(&rates(drained), *text));
        line.cells.push(Sample::one(Unit::Count, *rows as f64));
        line
    });
    let mut names = columns(&COLUMNS);
    names.extend(columns(&["B, bytes", "relay, bytes", "rows"]));
    Ok(only(Sweep {
        id: "payload",
        title: "By payload",
        about: format!(
            "Strict order, {} keys, structured mode; B publishes messages of the same size, about 200 bytes more than the payload.",
            thousands(world.sizes.keys as f64)
        ),
        axis: "payload",
        columns: names,
        lines: lines.collect(),
        drawn: vec![5, 6],
    }))
}

fn size_name(bytes: usize) -> String {
    match bytes {
        b if b >= 1_000_000 => format!("{} MB", b / 1_000_000),
        b if b >= 1 << 10 => format!("{} KiB", b >> 10),
        b => format!("{b} B"),
    }
}

fn only(sweep: Sweep) -> Measured {
    Measured {
        sweeps: vec![sweep],
        ..Measured::default()
    }
}

pub(crate) async fn keys(world: &mut World) -> Result<Measured> {
    const KEYS: [i64; 4] = [1, 100, 10_000, 1_000_000];
    let (mut bare, mut drained) = (Vec::new(), vec![Vec::new(); KEYS.len()]);
    for _ in 0..world.sizes.rounds {
        let (rows, size) = (world.sizes.sweep, message_size(TEXT));
        bare.push(
            world
                .place
                .publish_many(rows, size, QueueKind::Classic)
                .await?,
        );
        for (rounds, keys) in drained.iter_mut().zip(KEYS) {
            // One key takes a round trip for each event.
            let rows = if keys == 1 { world.sizes.hot_key } else { rows };
            rounds.push(drain(world, Drain::new(rows, keys, &[STRICT])).await?);
        }
    }
    let bare = Sample::new(Unit::PerSecond, bare);
    let lines = KEYS.iter().zip(&drained);
    let lines = lines.map(|(keys, drained)| line(thousands(*keys as f64), &bare, drained));
    Ok(only(Sweep {
        id: "keys",
        title: "By number of keys",
        about: format!(
            "Strict order, events of 1 KiB, {} rows ({} for one key), keys in turn. In strict order a key has one event in flight, so one \
             key is compared with window 1 above.",
            thousands(world.sizes.sweep as f64),
            thousands(world.sizes.hot_key as f64)
        ),
        axis: "keys",
        columns: columns(&COLUMNS),
        lines: lines.collect(),
        drawn: vec![0, 1],
    }))
}

pub(crate) async fn queues(world: &mut World) -> Result<Measured> {
    let mut bare = vec![Vec::new(); QueueKind::ALL.len()];
    let mut accounts = vec![Vec::new(); QueueKind::ALL.len()];
    let mut drained = vec![Vec::new(); QueueKind::ALL.len()];
    let (rows, keys) = (world.sizes.sweep, world.sizes.keys);
    for _ in 0..world.sizes.rounds {
        for (index, queue) in QueueKind::ALL.into_iter().enumerate() {
            let (rate, account) = bare_publisher(world, rows, message_size(TEXT), queue).await?;
            bare[index].push(rate);
            accounts[index].push(account);
            let mut what = Drain::new(rows, keys, &[STRICT]);
            what.queue = queue;
            drained[index].push(drain(world, what).await?);
        }
    }
    let lines = QueueKind::ALL.iter().zip(&bare).zip(&drained);
    let lines = lines.map(|((queue, bare), drained)| {
        let bare = Sample::new(Unit::PerSecond, bare.iter().copied());
        line(queue.name(), &bare, drained)
    });
    let time = QueueKind::ALL.iter().zip(accounts).zip(&drained);
    let time = time.flat_map(|((queue, bare), drained)| {
        let relay = format!("relay, {}", queue.name());
        [(format!("B, {}", queue.name()), bare), (relay, of(drained))]
    });
    let time = processors::table(
        "processors-queues",
        "Where the processors' time goes: kinds of queues",
        "As above.".into(),
        time.collect(),
    );
    let queues = Sweep {
        id: "queues",
        title: "By kind of queue",
        about: format!(
            "Strict order, {} keys, events of 1 KiB, {} rows, one broker; B publishes into the same kind of queue.",
            thousands(keys as f64),
            thousands(rows as f64)
        ),
        axis: "x-queue-type",
        columns: columns(&COLUMNS),
        lines: lines.collect(),
        drawn: vec![0, 1],
    };
    Ok(Measured {
        sweeps: vec![queues, time],
        ..Measured::default()
    })
}

pub(crate) async fn replicas(world: &mut World) -> Result<Measured> {
    const REPLICAS: [usize; 3] = [1, 2, 4];
    let (mut bare, mut rates) = (Vec::new(), vec![Vec::new(); REPLICAS.len()]);
    let mut cpu = vec![Vec::new(); REPLICAS.len()];
    let rows = world.sizes.sweep;
    for _ in 0..world.sizes.rounds {
        bare.push(
            world
                .place
                .publish_many(rows, message_size(TEXT), QueueKind::Classic)
                .await?,
        );
        for (index, replicas) in REPLICAS.into_iter().enumerate() {
            let (rate, used) = together(world, replicas, rows).await?;
            rates[index].push(rate);
            cpu[index].push(used);
        }
    }
    let bare = Sample::new(Unit::PerSecond, bare);
    let sample = |unit, rounds: &Vec<f64>| Sample::new(unit, rounds.iter().copied());
    let lines = REPLICAS.iter().enumerate().map(|(index, replicas)| {
        let rate = sample(Unit::PerSecond, &rates[index]);
        let alone = sample(Unit::PerSecond, &rates[0]);
        Line {
            label: replicas.to_string(),
            cells: vec![
                bare.clone(),
                rate.clone(),
                rate.over(&bare),
                rate.over(&alone),
                sample(Unit::Microseconds, &cpu[index]),
            ],
        }
    });
    Ok(only(Sweep {
        id: "replicas",
        title: "By number of replicas",
        about: format!(
            "Strict order, {} keys, events of 1 KiB, {} rows in one transaction, committed while the replicas share the 16 partitions; \
             all on the one machine.",
            thousands(world.sizes.keys as f64),
            thousands(rows as f64)
        ),
        axis: "replicas",
        columns: columns(&[
            "B",
            "together",
            "ratio",
            "to one replica",
            "CPU per event, all",
        ]),
        lines: lines.collect(),
        drawn: vec![0, 1],
    }))
}

/// The rate of several replicas together, and the CPU they used per event.
async fn together(world: &mut World, replicas: usize, rows: i64) -> Result<(f64, f64)> {
    let outbox = world.outbox().await?;
    world.place.new_queue(QueueKind::Classic).await?;
    let mut relays: Vec<Relay> = Vec::new();
    for _ in 0..replicas {
        relays.push(world.relay(&outbox, &[STRICT])?);
    }
    share(&outbox, &mut relays, LIMIT).await?;
    let used = |relays: &[Relay]| -> Result<f64> {
        let mut sum = 0.0;
        for relay in relays {
            sum += relay.usage()?.cpu.as_secs_f64();
        }
        Ok(sum)
    };
    let before = used(&relays)?;
    let seed = Seed {
        rows,
        keys: world.sizes.keys,
        text: TEXT,
    };
    outbox.insert(seed).await?;
    outbox.await_all(rows, &mut relays[0], LIMIT).await?;
    let cpu = (used(&relays)? - before) * 1e6 / rows as f64;
    for relay in relays {
        relay.stop().await?;
    }
    world.place.await_waiting(rows, true).await?;
    let rate = outbox.rates(0, rows).await?.all;
    world.drop(outbox).await?;
    Ok((rate, cpu))
}

/// An outbox with a backlog, of which each round drains a part.
struct Backlog {
    rows: i64,
    outbox: Outbox,
    /// Up to where it is drained.
    done: i64,
}

impl Backlog {
    async fn new(world: &mut World, rows: i64) -> Result<Self> {
        let outbox = world.outbox().await?;
        let seed = Seed {
            rows,
            keys: world.sizes.keys,
            text: SMALL,
        };
        outbox.seed(seed).await?;
        Ok(Self {
            rows,
            outbox,
            done: 0,
        })
    }

    /// Drains so many more rows; starts over with a fresh outbox if too few are left.
    async fn drain(
        &mut self,
        world: &mut World,
        most: i64,
        settings: crate::world::Settings<'_>,
    ) -> Result<(f64, Vec<(f64, f64)>)> {
        let rows = most.min(self.rows);
        if self.done + rows > self.rows {
            let fresh = Self::new(world, self.rows).await?;
            let used = std::mem::replace(self, fresh);
            world.drop(used.outbox).await?;
        }
        let part = (self.done, self.done + rows);
        let drained = drain_part(world, &self.outbox, part, settings).await?;
        // A relay goes on until it is stopped, as fast as it can, which is far less than this. Without an upper bound all
        // that is pending would be looked through.
        let sql = "select coalesce(max(seq), $1) from outbox where published_at is not null and seq <= $1 + 1000000";
        self.done = self.outbox.row(sql, &[&part.1]).await?.try_get(0)?;
        Ok(drained)
    }
}

/// Text of the rows of large backlogs: ten million of them must fit on a disk.
const SMALL: usize = 40;
/// Times as many rows are drained to nowhere, which is faster.
const DISCARDED: i64 = 3;

pub(crate) async fn backlog(world: &mut World) -> Result<Measured> {
    let mut backlogs = Vec::new();
    for rows in world.sizes.backlogs {
        backlogs.push(Backlog::new(world, *rows).await?);
    }
    let [mut rabbitmq, mut discarded] = [(); 2].map(|()| vec![Vec::new(); backlogs.len()]);
    let mut memory = vec![Vec::new(); backlogs.len()];
    let most = world.sizes.drained;
    for _ in 0..world.sizes.rounds {
        for (index, backlog) in backlogs.iter_mut().enumerate() {
            let (rate, used) = backlog.drain(world, most, &[STRICT]).await?;
            rabbitmq[index].push(rate);
            memory[index] = used;
            let (rate, _) = backlog
                .drain(world, DISCARDED * most, &[STRICT, STDOUT])
                .await?;
            discarded[index].push(rate);
        }
    }
    let sizes: Vec<i64> = backlogs.iter().map(|backlog| backlog.rows).collect();
    for backlog in backlogs {
        world.drop(backlog.outbox).await?;
    }

    let sample = |rounds: &Vec<f64>| Sample::new(Unit::PerSecond, rounds.iter().copied());
    let with_100k = sizes.iter().position(|rows| *rows == 100_000).unwrap_or(0);
    let reference = sample(&rabbitmq[with_100k]);
    let discarded_reference = sample(&discarded[with_100k]);
    let line = |(index, rows): (usize, &i64)| {
        let [rate, thrown] = [&rabbitmq[index], &discarded[index]].map(sample);
        Line {
            label: thousands(*rows as f64),
            cells: vec![
                rate.clone(),
                rate.over(&reference),
                thrown.clone(),
                thrown.over(&discarded_reference),
            ],
        }
    };
    let about = format!(
        "Strict order, {} keys, rows with payloads of about 70 bytes, so that all fit on a disk. Of each backlog {} rows are drained to \
         RabbitMQ and then {} to SINK=stdout (of smaller ones all), and the next round goes on behind them; the rest stays \
         pending all the time. What is drained is marked and not vacuumed away.",
        thousands(world.sizes.keys as f64),
        thousands(most as f64),
        thousands((DISCARDED * most) as f64),
    );
    let mut measured = only(Sweep {
        id: "backlog",
        title: "By size of the backlog",
        about: about.clone(),
        axis: "pending rows",
        columns: columns(&[
            "to RabbitMQ",
            "to 100,000 rows",
            "SINK=stdout",
            "to 100,000 rows",
        ]),
        lines: sizes.iter().enumerate().map(line).collect(),
        drawn: vec![0],
    });
    if let (Some(largest), Some(rows)) = (rabbitmq.last(), sizes.last()) {
        measured.figures.push(
            Figure::new(
                format!("drain from a backlog of {}", thousands(*rows as f64)),
                sample(largest),
            )
            .beside("backlog of 100,000", &reference)
            .target(Target::ShareAtLeast(0.9))
            .with(format!("{} rows drained", thousands(most as f64))),
        );
    }
    measured.curves.push(Curves {
        id: "backlog-memory",
        title: "Resident memory by size of the backlog",
        about: "The same drains to RabbitMQ, the last round.".into(),
        unit: Unit::Mebibytes,
        curves: sizes
            .iter()
            .zip(memory)
            .map(|(rows, points)| Curve {
                label: thousands(*rows as f64),
                points,
            })
            .collect(),
    });
    Ok(measured)
}
