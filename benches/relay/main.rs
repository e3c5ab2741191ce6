//! The relay's figures, beside references that are measured in the same run.
//!
//! Absolute rates depend on the machine; a ratio to what the same machine does without the relay says
//! more. So every figure here has its reference: a bare publisher, bare SQL, writers without a trigger.
//! `scripts/bench` builds, starts private servers and runs this program. `cargo bench --bench relay` does it by hand:
//! DATABASE_URL names a PostgreSQL server where it may create databases, AMQP_URL a RabbitMQ
//! where it may use the exchange `events` and queues named `bench-...`. With `--sink nats` it is NATS_URL instead, a server
//! where it may replace the stream `events`; with `--sink kafka` KAFKA_BROKERS, where it may make topics named `bench-...`.
//! For `http` and `eventbridge` it is itself the service.

mod arrivals;
#[path = "../../tests/support/counting_proxy.rs"]
#[allow(dead_code, missing_docs, unreachable_pub)]
mod counting_proxy;
mod drain;
mod idle;
mod latency;
mod outbox;
mod place;
mod process;
mod processors;
mod report;
mod sinks;
mod sizes;
mod sweeps;
mod takeover;
mod targets;
mod world;
mod writers;

use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use place::SinkName;
use report::sample::thousands;
use report::{Fact, Measured, Page, Report};
use world::World;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Measures the relay beside its references. `scripts/bench` starts the servers it needs.
#[derive(Parser)]
#[command(name = "relay")]
struct Args {
    /// The relay to measure; the one that was built with this program, if not given.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_outrigger"))]
    outrigger: PathBuf,
    /// pgbench, which plays the writers.
    #[arg(long, default_value = "pgbench")]
    pgbench: PathBuf,
    /// Where events go. Other sinks than RabbitMQ have fewer parts.
    #[arg(long, value_enum, default_value_t)]
    sink: SinkName,
    /// Smaller sizes and one round each.
    #[arg(long)]
    quick: bool,
    /// Rounds of each measurement: 3, or 1 with --quick.
    #[arg(long, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=20))]
    rounds: Option<usize>,
    /// Measure only these parts.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
    /// The broker's version, where it does not tell clients of ours.
    #[arg(long, default_value = "of unknown version")]
    broker_version: String,
    /// What was built, for the report.
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
    revision: String,
    /// The command that started it all, for the report.
    #[arg(long, default_value = "cargo bench --bench relay")]
    command: String,
    /// Folder for logs; a temporary one without it.
    #[arg(long)]
    work: Option<PathBuf>,
    /// Where to write the table; standard output without it.
    #[arg(long)]
    table: Option<PathBuf>,
    /// Where to write everything as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Folder in which to write the page, its data and its pictures: `benchmarks.md`, for another sink `benchmarks-SINK.md`.
    #[arg(long)]
    page: Option<PathBuf>,
    /// Given by `cargo bench`, and not by `cargo test`.
    #[arg(long, hide = true)]
    #[allow(dead_code, reason = "looked at before anything is parsed")]
    bench: bool,
    #[arg(skip)]
    database_url: String,
    /// Of the broker; empty where there is none.
    #[arg(skip)]
    address: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Drain,
    HotKey,
    Snapshot,
    Latency,
    Idle,
    Takeover,
    Writers,
    Backlog,
    Payload,
    Keys,
    Replicas,
    Queues,
}

impl Part {
    fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Whether it can be measured with this sink.
    fn fits(self, sink: SinkName) -> bool {
        sink == SinkName::Rabbitmq || matches!(self, Self::Drain | Self::Latency)
    }

    async fn measure(self, world: &mut World) -> Result<Measured> {
        match self {
            Self::Drain if world.sink != SinkName::Rabbitmq => sinks::many_keys(world).await,
            Self::Drain => targets::many_keys(world).await,
            Self::HotKey => targets::hot_key(world).await,
            Self::Snapshot => targets::held_snapshot(world).await,
            Self::Latency => latency::measure(world).await,
            Self::Idle => idle::measure(world).await,
            Self::Takeover => takeover::measure(world).await,
            Self::Writers => writers::measure(world).await,
            Self::Backlog => sweeps::backlog(world).await,
            Self::Payload => sweeps::payload(world).await,
            Self::Keys => sweeps::keys(world).await,
            Self::Replicas => sweeps::replicas(world).await,
            Self::Queues => sweeps::queues(world).await,
        }
    }
}

/// A part gives up after this long, so that it cannot keep the others from running.
const PART_LIMIT: Duration = Duration::from_secs(900);
/// No part runs on after this long.
const RUN_LIMIT: Duration = Duration::from_secs(3600);

async fn run(args: &Args) -> Result<bool> {
    let temporary = tempfile::Builder::new()
        .prefix("outrigger-bench-")
        .tempdir()?;
    let work = args.work.clone();
    let work = work.unwrap_or_else(|| temporary.path().to_owned());
    let mut world = World::open(args, work).await?;
    let mut report = Report {
        command: args.command.clone(),
        facts: facts(&world, args),
        page: page(world.sink),
        ..Report::default()
    };
    let end = Instant::now() + RUN_LIMIT;
    for part in Part::value_variants() {
        if !part.fits(args.sink) || !(args.only.is_empty() || args.only.contains(part)) {
            continue;
        }
        let (name, began) = (part.name(), Instant::now());
        eprintln!("{name} ...");
        let limit = PART_LIMIT.min(end.saturating_duration_since(began));
        let measured = tokio::time::timeout(limit, Box::pin(part.measure(&mut world))).await;
        match measured.unwrap_or_else(|_| Err(format!("not done in {limit:?}").into())) {
            Ok(measured) => report.add(measured),
            Err(error) => {
                eprintln!("{name}: failed: {error}\n{}", world.log_tails());
                report.failed.push(name.clone());
                world.recover().await?;
            }
        }
        eprintln!("{name}: {:.1} s", began.elapsed().as_secs_f64());
    }
    match &args.table {
        Some(path) => fs::write(path, report.text())?,
        None => print!("{}", report.text()),
    }
    if let Some(path) = &args.json {
        fs::write(path, json(&report)?)?;
    }
    if let Some(folder) = &args.page {
        let name = report.page.name.as_str();
        fs::create_dir_all(folder.join(name))?;
        fs::write(folder.join(format!("{name}.md")), report.markdown())?;
        fs::write(folder.join(format!("{name}.json")), json(&report)?)?;
        for (picture, content) in report.pictures() {
            fs::write(folder.join(name).join(picture), content)?;
        }
    }
    world.place.clear().await?;
    Ok(report.failed.is_empty())
}

fn json(report: &Report) -> Result<String> {
    Ok(serde_json::to_string_pretty(report)? + "\n")
}

/// How the page is called, and what it says about the reference.
fn page(sink: SinkName) -> Page {
    match sink {
        SinkName::Rabbitmq => Page::default(),
        other => Page::of_sink(other.name(), other.title(), other.bare_publisher()),
    }
}

/// The broker or service, as this run has it.
fn receiver(world: &World, args: &Args) -> String {
    let version = world.place.version();
    let version = version.as_deref().unwrap_or(&args.broker_version);
    match world.sink {
        SinkName::Rabbitmq => format!("RabbitMQ {version} (defaults)"),
        SinkName::Nats => format!(
            "NATS {version} (one server, JetStream with file storage, one replica; by default a server flushes to the disk \
             every two minutes, `sync_interval`, not before it acknowledges)"
        ),
        SinkName::Http => {
            "a service that reads each request and answers 204 at once, storing nothing \
             (HTTP/1.1, connections are kept; one thread of the program that measures)"
                .into()
        }
        SinkName::Eventbridge => {
            "a service that reads each request of PutEvents and gives its entries event ids at once, storing nothing and checking no \
             signature (HTTP/1.1 without TLS, connections are kept; one thread of the program that measures)"
                .into()
        }
        SinkName::Kafka => format!(
            "Kafka {version} (one node, broker and controller in one, one replica; the Java options of its start script; by \
             default nothing is flushed before it is confirmed, `log.flush.interval.messages`)"
        ),
    }
}

/// What the figures hold for.
fn facts(world: &World, args: &Args) -> Vec<Fact> {
    let (sizes, sink) = (&world.sizes, world.sink);
    let fact = |name, value| Fact { name, value };
    // They are built together, unless another program was named.
    let build = match cfg!(debug_assertions) {
        true => "development",
        false => "release",
    };
    let (end, rounds) = match sink {
        SinkName::Rabbitmq => (
            "a classic queue",
            format!(
                "{} of each drain, sweep and writer, {} of the held snapshot, {} takeovers, {} starts, {} events for latency",
                sizes.rounds,
                sizes.snapshot_rounds,
                sizes.takeovers,
                sizes.starts,
                sizes.latency_rows
            ),
        ),
        other => (
            other.end(),
            format!(
                "{} of each drain, {} events for latency",
                sizes.rounds, sizes.latency_rows
            ),
        ),
    };
    vec![
        fact("outrigger", format!("{}, {build} build", args.revision)),
        fact(
            "servers",
            format!(
                "PostgreSQL {} (fsync, synchronous_commit and full_page_writes on, 128 MB shared_buffers) and \
                 {}, both on the same machine as the relay and everything that measures",
                world.postgres_version,
                receiver(world, args)
            ),
        ),
        fact("machine", machine()),
        fact(
            "events",
            format!(
                "structured mode, about 1 KiB each on the wire, {} keys, {end}, unless the figure says otherwise",
                thousands(sizes.keys as f64)
            ),
        ),
        fact(
            "configuration",
            "the defaults, except where a figure names a setting (without its prefix `OUTRIGGER_...`)".into(),
        ),
        fact("rounds", rounds),
    ]
}

fn machine() -> String {
    let field = |path: &str, name: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let cpu = field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown processor".into());
    let memory = field("/proc/meminfo", "MemTotal")
        .and_then(|kb| kb.split(' ').next()?.parse::<f64>().ok())
        .map_or(0.0, |kb| kb / 1024.0 / 1024.0);
    format!("{cores} cores ({cpu}), {memory:.0} GiB memory")
}

#[tokio::main]
async fn main() -> ExitCode {
    // Before anything is parsed: `cargo test` hands over what is meant for tests.
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("nothing is measured: that takes scripts/bench, or `cargo bench --bench relay`");
        return ExitCode::SUCCESS;
    }
    let mut args = Args::parse();
    if let Some(part) = args.only.iter().find(|part| !part.fits(args.sink)) {
        eprintln!(
            "error: the part `{}` is measured with RabbitMQ only",
            part.name()
        );
        return ExitCode::from(2);
    }
    let mut wanted = vec!["DATABASE_URL"];
    wanted.extend(args.sink.variable());
    let found: Vec<String> = wanted.iter().flat_map(std::env::var).collect();
    if found.len() < wanted.len() {
        eprintln!(
            "error: {} must be set\n\
             hint: run scripts/bench, which starts private servers and then this; or name servers that may be loaded \
             and filled",
            wanted.join(" and ")
        );
        return ExitCode::from(2);
    }
    let mut found = found.into_iter();
    args.database_url = found.next().unwrap_or_default();
    args.address = found.next().unwrap_or_default();
    // Returning, instead of dying, drops the relays and so ends them.
    let stopped = async {
        match (
            signal(SignalKind::terminate()),
            signal(SignalKind::interrupt()),
        ) {
            (Ok(mut terminate), Ok(mut interrupt)) => tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            },
            _ => std::future::pending().await,
        }
    };
    tokio::select! {
        result = run(&args) => match result {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("error: {error}");
                ExitCode::FAILURE
            }
        },
        () = stopped => ExitCode::FAILURE,
    }
}
