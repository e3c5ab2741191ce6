//! What the wake-up costs those who write.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Result;
use crate::outbox::{Outbox, TEXT};
use crate::place::QueueKind;
use crate::process::Relay;
use crate::processors::{self, Account, Processors};
use crate::report::{Figure, Measured, Sample, Target, Unit};
use crate::world::{Settings, World};

const CONNECTIONS: &str = "16";

/// One way of waking the relay, or not.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Neither trigger nor relay.
    Bare,
    /// A trigger that always notifies, with one listener.
    Naive,
    /// Our trigger while a relay says that it polls, but none runs: what the trigger alone costs.
    Awake,
    /// No trigger, and a relay that polls: what the relay's share of the machine costs.
    BarePolled,
    /// Our trigger and the relay.
    Relay,
    /// Our trigger, and a relay that throws everything away: no broker takes its share of processor and disk.
    NoBroker,
}

const WAYS: [Way; 6] = [
    Way::Bare,
    Way::Naive,
    Way::Awake,
    Way::BarePolled,
    Way::Relay,
    Way::NoBroker,
];

const NO_TRIGGER: &str = "drop trigger if exists outrigger_wake_up on outbox; \
                          drop trigger if exists naive on outbox; \
                          select setval('outrigger.\"awake:public.outbox\"', 1)";

impl Way {
    fn setup(self) -> &'static str {
        match self {
            Self::Bare | Self::BarePolled => "",
            Self::Naive => {
                "create or replace function naive() returns trigger language plpgsql as \
                 $$ begin perform pg_notify('naive', ''); return null; end $$; \
                 create trigger naive after insert on outbox for each statement execute function naive()"
            }
            Self::Awake => {
                "select outrigger.attach('outbox'); \
                 select setval('outrigger.\"awake:public.outbox\"', \
                   (extract(epoch from now() + interval '1 hour') * 1000)::int8)"
            }
            Self::Relay | Self::NoBroker => "select outrigger.attach('outbox')",
        }
    }

    /// The settings of its relay, if it has one.
    fn relay(self) -> Option<Settings<'static>> {
        match self {
            Self::BarePolled => Some(&[("OUTRIGGER_RELAY_WAKE", "poll")]),
            Self::Relay => Some(&[]),
            Self::NoBroker => Some(&[("OUTRIGGER_SINK", "stdout")]),
            Self::Bare | Self::Naive | Self::Awake => None,
        }
    }
}

pub(crate) async fn measure(world: &mut World) -> Result<Measured> {
    let outbox = world.outbox().await?;
    let script = world.work.join("insert.sql");
    let text = "x".repeat(TEXT);
    fs::write(
        &script,
        format!(
            "\\set key random(1, 10000)\n\
             INSERT INTO outbox (type, key, data) VALUES ('order.changed', 'customer-' || :key::bigint::text,\n\
             '{{\"text\": \"{text}\"}}');\n"
        ),
    )?;
    let mut rates: Vec<Vec<f64>> = vec![Vec::new(); WAYS.len()];
    let mut time: Vec<Vec<Account>> = vec![Vec::new(); WAYS.len()];
    for round in 0..world.sizes.rounds {
        for turn in 0..WAYS.len() {
            // Each round begins with another one: what comes first has the emptiest server.
            let index = (turn + 2 * round) % WAYS.len();
            let (rate, account) = one(world, &outbox, &script, WAYS[index]).await?;
            rates[index].push(rate);
            time[index].push(account);
        }
    }
    world.drop(outbox).await?;

    let of = |way: Way| {
        let index = WAYS.iter().position(|other| *other == way);
        let rounds = index.and_then(|index| rates.get(index)).cloned();
        Sample::new(Unit::PerSecond, rounds.unwrap_or_default())
    };
    let figure = |name: &str, way: Way| {
        Figure::new(format!("writers: {name}"), of(way)).beside("no trigger", &of(Way::Bare))
    };
    let goal = Target::ShareAtLeast(0.95);
    let figures = vec![
        figure("our trigger, relay awake but not running", Way::Awake).target(goal),
        figure("our trigger and relay", Way::Relay).target(goal),
        figure("our trigger and relay, SINK=stdout", Way::NoBroker).target(goal),
        Figure::new(
            "writers: our trigger and relay, without its share of the machine",
            of(Way::Relay),
        )
        .beside("no trigger, relay polling", &of(Way::BarePolled))
        .target(goal),
        figure("no trigger, relay polling", Way::BarePolled),
        figure("a trigger that always notifies", Way::Naive),
    ];
    let names = [
        (Way::Bare, "no trigger, no relay"),
        (Way::Awake, "our trigger, relay awake but not running"),
        (Way::Relay, "our trigger and relay"),
        (Way::NoBroker, "our trigger and relay, SINK=stdout"),
    ];
    let lines = names.map(|(way, name)| {
        let index = WAYS.iter().position(|other| *other == way);
        let rounds = index.map(|index| time[index].clone());
        (name.to_owned(), rounds.unwrap_or_default())
    });
    let time = processors::table(
        "processors-writers",
        "Where the processors' time goes: writers",
        "The same for each row written; pgbench is part of everything else. Writers and relay share the processors, so what \
         the relay and the broker do for a row is not there for the next one."
            .into(),
        lines.into(),
    );
    Ok(Measured {
        figures,
        sweeps: vec![time],
        ..Measured::default()
    })
}

async fn one(
    world: &mut World,
    outbox: &Outbox,
    script: &Path,
    way: Way,
) -> Result<(f64, Account)> {
    let client = &outbox.client;
    client.batch_execute(NO_TRIGGER).await?;
    client.batch_execute("truncate outbox").await?;
    client.batch_execute(way.setup()).await?;
    client.batch_execute("checkpoint").await?;
    world.place.new_queue(QueueKind::Classic).await?;
    let listener = outbox.connect().await?;
    if way == Way::Naive {
        listener.batch_execute("listen naive").await?;
    }
    let relay = match way.relay() {
        Some(settings) => {
            let mut relay = world.relay(outbox, settings)?;
            let row = outbox.row(
                "insert into outbox (type) values ('order.changed') returning seq",
                &[],
            );
            let seq = row.await?.try_get(0)?;
            let limit = Duration::from_secs(20);
            outbox.await_row(seq, &mut relay, limit).await?;
            Some(relay)
        }
        None => None,
    };
    let used = |relay: &Option<Relay>| match relay {
        Some(relay) => Ok(relay.usage()?.cpu.as_secs_f64()),
        None => Result::Ok(0.0),
    };
    let (before, used_before) = (Processors::now(world).await?, used(&relay)?);
    let rate = pgbench(world, outbox, script).await;
    let used = used(&relay)? - used_before;
    let after = Processors::now(world).await?;
    if let Some(relay) = relay {
        relay.stop().await?;
    }
    let rate = rate?;
    let rows = rate * world.sizes.writers.as_secs_f64();
    Ok((rate, before.since(after, Some(used), rows as i64)))
}

/// Killed when dropped.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Transactions per second.
async fn pgbench(world: &World, outbox: &Outbox, script: &Path) -> Result<f64> {
    let seconds = world.sizes.writers.as_secs().to_string();
    let output = world.work.join("pgbench.out");
    let file = File::create(&output)?;
    let child = Command::new(&world.pgbench)
        .args(["--no-vacuum", "--protocol", "prepared", "--jobs", "2"])
        .args(["--client", CONNECTIONS, "--time", &seconds])
        .arg("--file")
        .arg(script)
        .arg(outbox.url.as_str())
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()?;
    let mut pgbench = Guard(child);
    let began = Instant::now();
    let status = loop {
        if let Some(status) = pgbench.0.try_wait()? {
            break status;
        }
        if began.elapsed() > world.sizes.writers + Duration::from_secs(30) {
            return Err("pgbench does not end".into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let text = fs::read_to_string(&output)?;
    let rate = text.lines().find_map(|line| {
        let (rate, _) = line.strip_prefix("tps = ")?.split_once(' ')?;
        rate.parse().ok()
    });
    match rate {
        Some(rate) if status.success() => Ok(rate),
        _ => Err(format!("pgbench ended with {status}: {text}").into()),
    }
}
