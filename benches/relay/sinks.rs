//! Drains to another sink than RabbitMQ, beside both halves of the work, each of them without the other.

use crate::Result;
use crate::drain::{BATCH, BINARY, Drain, Drained, STRICT, bare_publisher, bare_sql, drain};
use crate::outbox::{Seed, TEXT, message_size};
use crate::place::{QueueKind, SinkName};
use crate::processors;
use crate::report::{Figure, Measured, Sample, Target, Unit};
use crate::targets::{
    B, MODES, S, TIME, beside_the_rate, configuration, cpu, memory, message, modes, of, peak, rates,
};
use crate::world::{Settings, World};

/// The reference: reading and marking as fast as SQL alone, then publishing as fast as the client alone.
const HALVES: &str = "S then B: bare SQL, then the bare publisher";

/// The settings that this sink can be measured with: a record of Kafka holds one event, an entry of EventBridge a structured one.
fn settings(sink: SinkName) -> impl Iterator<Item = (&'static str, Settings<'static>)> {
    MODES.into_iter().filter(move |(_, settings)| match sink {
        SinkName::Kafka => !settings.contains(&BATCH),
        SinkName::Eventbridge => !settings.contains(&BATCH) && !settings.contains(&BINARY),
        _ => true,
    })
}

/// Many keys, in each setting.
pub(crate) async fn many_keys(world: &mut World) -> Result<Measured> {
    let (backlog, keys, sink) = (world.sizes.backlog, world.sizes.keys, world.sink);
    let size = message_size(TEXT);
    let seed = Seed {
        rows: backlog,
        keys,
        text: TEXT,
    };
    let names: Vec<&str> = settings(sink).map(|(name, _)| name).collect();
    let mut drained: Vec<Vec<Drained>> = vec![Vec::new(); names.len()];
    let [mut bare, mut sql] = [vec![], vec![]];
    let [mut bare_accounts, mut sql_accounts] = [vec![], vec![]];
    // Servers that have just started are slower: their first work does not count.
    let warm_up = backlog / 4;
    bare_publisher(world, warm_up, size, QueueKind::default()).await?;
    drain(world, Drain::new(warm_up, keys, &[STRICT])).await?;
    for _ in 0..world.sizes.rounds {
        let (rate, account) = bare_publisher(world, backlog, size, QueueKind::default()).await?;
        bare.push(rate);
        bare_accounts.push(account);
        let alone = bare_sql(world, seed, true).await?;
        sql.push(alone.rate);
        sql_accounts.push(alone.account);
        for (rounds, (_, settings)) in drained.iter_mut().zip(settings(sink)) {
            rounds.push(drain(world, Drain::new(backlog, keys, settings)).await?);
        }
    }
    let [bare, sql] = [bare, sql].map(|rounds| Sample::new(Unit::PerSecond, rounds));
    let strict = &drained[0];
    let rate = rates(strict);
    world.drain_rate = Some(rate.median());
    let (title, configuration) = (sink.title(), configuration(world));

    let mut figures = vec![
        Figure::new(format!("drain to {title}, strict order"), rate.clone())
            .beside(HALVES, &sql.then(&bare))
            .target(Target::ShareAtLeast(0.8))
            .with(format!("{configuration}, {}", message(strict))),
        Figure::new("the same drain beside the bare publisher", rate).beside(B, &bare),
        Figure::new("bare SQL that marks", sql),
        Figure::new("CPU of the relay per event", cpu(strict)),
        Figure::new("memory of the relay at its peak, draining", peak(strict)),
    ];
    figures.extend(beside_the_rate(strict));

    let mut time = vec![(B.to_owned(), bare_accounts), (S.to_owned(), sql_accounts)];
    let relays = names.iter().zip(&drained);
    time.extend(relays.map(|(name, drained)| ((*name).to_owned(), of(drained))));
    Ok(Measured {
        figures,
        sweeps: vec![
            modes(&configuration, sink.end(), &bare, &drained),
            processors::table(
                "processors",
                "Where the processors' time goes",
                TIME.into(),
                time,
            ),
        ],
        curves: vec![memory(&configuration, &drained)],
    })
}
