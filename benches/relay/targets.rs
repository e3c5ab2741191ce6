//! The drains that have targets: many keys in all settings, to nowhere, one hot key, a held snapshot.

use crate::Result;
use crate::drain::{
    BATCH, BINARY, Cost, DELETE, Drain, Drained, PIPELINED, STDOUT, STRICT, UNORDERED,
    bare_publisher, bare_sql, drain,
};
use crate::outbox::{Seed, TEXT, message_size};
use crate::place::QueueKind;
use crate::processors::{self, Account, Processors};
use crate::report::sample::thousands;
use crate::report::{Curve, Curves, Figure, Line, Measured, Sample, Sweep, Target, Unit};
use crate::world::{Settings, World};

/// One number of each round's drain.
pub(crate) fn each(unit: Unit, drained: &[Drained], value: fn(&Drained) -> f64) -> Sample {
    Sample::new(unit, drained.iter().map(value))
}

pub(crate) fn rates(drained: &[Drained]) -> Sample {
    each(Unit::PerSecond, drained, |drained| drained.rate)
}

pub(crate) fn cpu(drained: &[Drained]) -> Sample {
    each(Unit::Microseconds, drained, Drained::cpu_us)
}

pub(crate) fn peak(drained: &[Drained]) -> Sample {
    each(Unit::Mebibytes, drained, |drained| drained.usage.peak_mib)
}

/// The settings that are compared, each by its name.
pub(crate) const MODES: [(&str, Settings<'_>); 6] = [
    ("strict (the defaults)", &[STRICT]),
    ("ORDERING=pipelined", &[PIPELINED]),
    ("ORDERING=none", &[UNORDERED]),
    ("AFTER_PUBLISH=delete", &[DELETE]),
    ("MODE=binary", &[BINARY]),
    ("MODE=batch: up to 100 events in a message", &[BATCH]),
];
pub(crate) const B: &str = "B: bare publisher";
pub(crate) const S: &str = "S: bare SQL";
pub(crate) const TIME: &str = "Time of one processor for each event, in the rounds above, from what the kernel counts for the whole machine. Where \
    all processors are in use, a rate is what is left of them: no relay is faster than the last column.";

/// Many keys, in each setting, beside the bare publisher.
pub(crate) async fn many_keys(world: &mut World) -> Result<Measured> {
    let (backlog, keys) = (world.sizes.backlog, world.sizes.keys);
    let (mut bare, mut bare_accounts) = (Vec::new(), Vec::new());
    let mut drained: Vec<Vec<Drained>> = vec![Vec::new(); MODES.len()];
    let size = message_size(TEXT);
    // Servers that have just started are slower: their first work does not count.
    let warm_up = backlog / 4;
    bare_publisher(world, warm_up, size, QueueKind::Classic).await?;
    drain(world, Drain::new(warm_up, keys, &[STRICT])).await?;
    for _ in 0..world.sizes.rounds {
        let (rate, account) = bare_publisher(world, backlog, size, QueueKind::Classic).await?;
        bare.push(rate);
        bare_accounts.push(account);
        for (rounds, (_, settings)) in drained.iter_mut().zip(MODES) {
            rounds.push(drain(world, Drain::new(backlog, keys, settings)).await?);
        }
    }
    let bare = Sample::new(Unit::PerSecond, bare);
    let strict = &drained[0];
    let rate = rates(strict);
    world.drain_rate = Some(rate.median());
    let configuration = configuration(world);
    let mut figures = vec![
        Figure::new("drain to RabbitMQ, strict order", rate)
            .beside(B, &bare)
            .target(Target::ShareAtLeast(0.8))
            .with(format!("{configuration}, {}", message(strict))),
        Figure::new("CPU of the relay per event", cpu(strict)).target(Target::AtMost(15.0)),
        Figure::new("memory of the relay at its peak, draining", peak(strict))
            .target(Target::AtMost(32.0)),
    ];
    figures.extend(beside_the_rate(strict));
    let curves = memory(&configuration, &drained);
    let sweep = modes(&configuration, world.sink.end(), &bare, &drained);
    let (more, [sql, stdout]) = discarded(world, strict, &drained[3]).await?;
    figures.extend(more);
    let time = processors::table(
        "processors",
        "Where the processors' time goes",
        TIME.into(),
        vec![
            (B.to_owned(), bare_accounts),
            (MODES[0].0.to_owned(), of(strict)),
            (MODES[2].0.to_owned(), of(&drained[2])),
            (MODES[5].0.to_owned(), of(&drained[5])),
            (S.to_owned(), sql),
            ("SINK=stdout".to_owned(), stdout),
        ],
    );
    Ok(Measured {
        figures,
        sweeps: vec![sweep, time],
        curves: vec![curves],
    })
}

/// Rows and keys of the drains in all settings.
pub(crate) fn configuration(world: &World) -> String {
    let [rows, keys] = [world.sizes.backlog, world.sizes.keys].map(|n| thousands(n as f64));
    format!("{rows} rows, {keys} keys")
}

/// What one message of these drains was.
pub(crate) fn message(drained: &[Drained]) -> String {
    let body = drained.iter().find_map(|drained| drained.body).unwrap_or(0);
    format!("{} bytes a message", thousands(body as f64))
}

/// What else a drain tells, without targets.
pub(crate) fn beside_the_rate(drained: &[Drained]) -> [Figure; 2] {
    [
        Figure::new(
            "memory of the relay at the end of the drain",
            each(Unit::Mebibytes, drained, |drained| {
                drained.usage.resident_mib
            }),
        ),
        Figure::new(
            "rows marked by one statement",
            each(Unit::Count, drained, |drained| drained.per_settle),
        ),
    ]
}

pub(crate) fn of(drained: &[Drained]) -> Vec<Account> {
    drained.iter().map(|drained| drained.account).collect()
}

/// In each setting, beside the bare publisher. `end` is what the events end in.
pub(crate) fn modes(
    configuration: &str,
    end: &str,
    bare: &Sample,
    drained: &[Vec<Drained>],
) -> Sweep {
    let line = |((name, _), drained): (&(&str, Settings<'_>), &Vec<Drained>)| Line {
        label: (*name).into(),
        cells: vec![
            bare.clone(),
            rates(drained),
            rates(drained).over(bare),
            cpu(drained),
            peak(drained),
            each(Unit::Count, drained, |drained| match drained.messages {
                Some(messages) => drained.rows as f64 / messages as f64,
                None => f64::NAN,
            }),
        ],
    };
    Sweep {
        id: "modes",
        title: "By order, mode and what happens to published rows",
        about: format!(
            "{configuration}, {end}. B publishes messages of {} bytes in each round; rates count events, not messages.",
            message_size(TEXT)
        ),
        axis: "setting",
        columns: [
            "B",
            "relay",
            "ratio",
            "CPU per event",
            "peak memory",
            "events per message",
        ]
        .map(str::to_owned)
        .into(),
        lines: MODES.iter().zip(drained).map(line).collect(),
        drawn: vec![0, 1],
    }
}

pub(crate) fn memory(configuration: &str, drained: &[Vec<Drained>]) -> Curves {
    let curve = |((name, _), drained): (&(&str, Settings<'_>), &Vec<Drained>)| Curve {
        label: (*name).split(':').next().unwrap_or_default().into(),
        points: drained
            .last()
            .map(|drained| drained.memory.clone())
            .unwrap_or_default(),
    };
    Curves {
        id: "memory",
        title: "Resident memory while draining",
        about: format!(
            "From the start of the relay to its last event; the last round. {configuration}."
        ),
        unit: Unit::Mebibytes,
        curves: MODES.iter().zip(drained).take(3).map(curve).collect(),
    }
}

/// To nowhere, beside bare SQL, and what both and the drains to RabbitMQ cost the database.
async fn discarded(
    world: &mut World,
    marked: &[Drained],
    deleted: &[Drained],
) -> Result<(Vec<Figure>, [Vec<Account>; 2])> {
    let seed = Seed {
        rows: world.sizes.discarded,
        keys: world.sizes.keys,
        text: TEXT,
    };
    let ([mut marking, mut deleting], mut drained) = ([vec![], vec![]], vec![]);
    let mut costs: [Vec<Cost>; 2] = [vec![], vec![]];
    let mut time = vec![];
    for _ in 0..world.sizes.rounds {
        let bare = bare_sql(world, seed, true).await?;
        marking.push(bare.rate);
        costs[0].push(bare.cost);
        time.push(bare.account);
        let what = Drain::new(seed.rows, seed.keys, &[STDOUT]);
        drained.push(drain(world, what).await?);
        let bare = bare_sql(world, seed, false).await?;
        deleting.push(bare.rate);
        costs[1].push(bare.cost);
    }
    let marking = Sample::new(Unit::PerSecond, marking);
    let mut figures = vec![
        Figure::new("drain to SINK=stdout, thrown away", rates(&drained))
            .beside(S, &marking)
            .target(Target::ShareAtLeast(0.9))
            .with(format!("{} rows", thousands(seed.rows as f64))),
        Figure::new("CPU of the relay per event, SINK=stdout", cpu(&drained)),
        Figure::new(
            "bare SQL that deletes instead of marking",
            Sample::new(Unit::PerSecond, deleting),
        )
        .beside("bare SQL that marks", &marking),
    ];
    for (what, relay, bare) in [("mark", marked, &costs[0]), ("delete", deleted, &costs[1])] {
        let wal = Sample::new(Unit::Bytes, bare.iter().map(|cost| cost.wal_bytes));
        let buffers = Sample::new(Unit::Count, bare.iter().map(|cost| cost.buffers));
        let name = format!("bare SQL, {what}");
        figures.extend([
            Figure::new(
                format!("WAL per event, AFTER_PUBLISH={what}"),
                each(Unit::Bytes, relay, |drained| drained.cost.wal_bytes),
            )
            .beside(&name, &wal),
            Figure::new(
                format!("buffers per event, AFTER_PUBLISH={what}"),
                each(Unit::Count, relay, |drained| drained.cost.buffers),
            )
            .beside(&name, &buffers),
        ]);
    }
    Ok((figures, [time, of(&drained)]))
}

/// One key: nothing can be published side by side in strict order.
pub(crate) async fn hot_key(world: &mut World) -> Result<Measured> {
    let (rows, many) = (world.sizes.hot_key, world.sizes.sweep);
    let (mut windows, mut window_accounts) = (Vec::new(), Vec::new());
    let [mut strict, mut spread, mut pipelined] = [vec![], vec![], vec![]];
    for _ in 0..world.sizes.rounds {
        let idle = Processors::now(world).await?;
        windows.push(world.place.rabbitmq()?.publish_one_by_one(rows).await?);
        window_accounts.push(idle.since(Processors::now(world).await?, None, rows));
        strict.push(drain(world, Drain::new(rows, 1, &[STRICT])).await?);
        let keys = world.sizes.keys;
        spread.push(drain(world, Drain::new(many, keys, &[PIPELINED])).await?);
        pipelined.push(drain(world, Drain::new(many, 1, &[PIPELINED])).await?);
    }
    let windows = Sample::new(Unit::PerSecond, windows);
    let figures = vec![
        Figure::new("one hot key, strict order", rates(&strict))
            .beside("window 1: one confirm at a time", &windows)
            .target(Target::ShareAtLeast(0.9))
            .with(format!("{} rows", thousands(rows as f64))),
        Figure::new("CPU per event of one hot key, strict order", cpu(&strict)),
        Figure::new("one hot key, ORDERING=pipelined", rates(&pipelined))
            .beside("many keys, pipelined", &rates(&spread))
            .target(Target::ShareAtLeast(0.9))
            .with(format!("{} rows", thousands(many as f64))),
    ];
    let time = processors::table(
        "processors-hot-key",
        "Where the processors' time goes: one hot key",
        "The same for one event at a time. What counts here is how long each step takes, one after the other.".into(),
        vec![
            ("window 1".to_owned(), window_accounts),
            ("strict".to_owned(), of(&strict)),
            ("pipelined".to_owned(), of(&pipelined)),
        ],
    );
    Ok(Measured {
        figures,
        sweeps: vec![time],
        ..Measured::default()
    })
}

/// What the relay leaves behind cannot be removed; reading must not get slower all the same. Without a broker, whose queue
/// grows and slows down too, and whose share of the time would hide what reading costs.
pub(crate) async fn held_snapshot(world: &mut World) -> Result<Measured> {
    let [mut free, mut held] = [vec![], vec![]];
    for _ in 0..world.sizes.snapshot_rounds {
        for held_snapshot in [false, true] {
            let mut what = Drain::new(world.sizes.snapshot, world.sizes.keys, &[STDOUT]);
            what.seed.text = 100;
            what.held_snapshot = held_snapshot;
            let drained = drain(world, what).await?;
            if held_snapshot { &mut held } else { &mut free }.push(drained);
        }
    }
    let change = |drained: &[Drained]| each(Unit::Ratio, drained, |drained| drained.last_to_first);
    let rows = thousands(world.sizes.snapshot as f64);
    let configuration = format!("{rows} rows of about 300 bytes, SINK=stdout");
    let figures = vec![
        Figure::new(
            "held snapshot: the last tenth's rate to the first tenth's",
            change(&held),
        )
        .target(Target::AtLeast(0.9))
        .with(&configuration),
        Figure::new(
            "no snapshot: the last tenth's rate to the first tenth's",
            change(&free),
        )
        .with(&configuration),
        Figure::new("drain under a held snapshot", rates(&held))
            .beside("no snapshot", &rates(&free))
            .with(&configuration),
    ];
    Ok(Measured {
        figures,
        ..Measured::default()
    })
}
