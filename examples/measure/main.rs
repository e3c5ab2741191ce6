//! The relay's figures, beside references that are measured in the same run.
//!
//! Absolute rates depend on the machine; a ratio to what the same machine does without the relay says
//! more. So every figure here has its reference: a bare publisher, bare SQL, writers without a trigger.
//! `scripts/measure` builds, starts private servers and runs this program; by hand it needs a PostgreSQL
//! where it may create databases and a RabbitMQ where it may use the exchange `events`.

mod broker;
mod drain;
mod figures;
mod idle;
mod latency;
mod takeover;
mod world;
mod writers;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use figures::{Figure, Report};
use world::World;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Measures the relay.
#[derive(Parser)]
struct Args {
    /// The relay to measure.
    #[arg(long)]
    outrigger: PathBuf,
    /// pgbench, which plays the writers.
    #[arg(long)]
    pgbench: PathBuf,
    /// Folder for logs.
    #[arg(long)]
    work: PathBuf,
    /// Smaller sizes and one round each.
    #[arg(long)]
    quick: bool,
    /// Measure only these parts.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
    /// The broker's version, which it does not tell clients of ours.
    #[arg(long, default_value = "of unknown version")]
    rabbitmq_version: String,
    /// What was built, for the report.
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
    revision: String,
    /// Where to write the table; standard output without it.
    #[arg(long)]
    table: Option<PathBuf>,
    /// Where to write the report as Markdown.
    #[arg(long)]
    markdown: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Drain,
    HotKey,
    Snapshot,
    Idle,
    Latency,
    Writers,
    Takeover,
}

impl Part {
    const ALL: [Self; 7] = [
        Self::Drain,
        Self::HotKey,
        Self::Snapshot,
        Self::Latency,
        Self::Idle,
        Self::Takeover,
        Self::Writers,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::HotKey => "one hot key",
            Self::Snapshot => "held snapshot",
            Self::Idle => "idle",
            Self::Latency => "latency",
            Self::Writers => "writers",
            Self::Takeover => "start and takeover",
        }
    }

    async fn measure(self, world: &mut World) -> Result<Vec<Figure>> {
        match self {
            Self::Drain => drain::many_keys(world).await,
            Self::HotKey => drain::hot_key(world).await,
            Self::Snapshot => drain::held_snapshot(world).await,
            Self::Idle => idle::measure(world).await,
            Self::Latency => latency::measure(world).await,
            Self::Writers => writers::measure(world).await,
            Self::Takeover => takeover::measure(world).await,
        }
    }
}

/// A part gives up after this long, so that it cannot keep the others from running.
const PART_LIMIT: Duration = Duration::from_secs(400);
/// No part runs on after this long.
const RUN_LIMIT: Duration = Duration::from_secs(1200);

async fn run(args: Args) -> Result<bool> {
    let mut world = World::open(&args).await?;
    let mut report = Report::new(&world, &args);
    let mut complete = true;
    let end = Instant::now() + RUN_LIMIT;
    for part in Part::ALL {
        if !args.only.is_empty() && !args.only.contains(&part) {
            continue;
        }
        let began = Instant::now();
        eprintln!("{} ...", part.name());
        let limit = PART_LIMIT.min(end.saturating_duration_since(began));
        let measured = tokio::time::timeout(limit, part.measure(&mut world)).await;
        match measured.unwrap_or_else(|_| Err(format!("not done in {limit:?}").into())) {
            Ok(figures) => report.add(figures),
            Err(error) => {
                eprintln!("{}: failed: {error}\n{}", part.name(), world.log_tails());
                report.add(vec![Figure::failed(part.name())]);
                complete = false;
            }
        }
        eprintln!("{}: {:.1} s", part.name(), began.elapsed().as_secs_f64());
    }
    match &args.table {
        Some(path) => std::fs::write(path, report.text())?,
        None => print!("{}", report.text()),
    }
    if let Some(path) = &args.markdown {
        std::fs::write(path, report.markdown())?;
    }
    Ok(complete)
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
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
        result = run(args) => match result {
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
