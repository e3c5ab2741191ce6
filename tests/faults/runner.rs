//! Runs scenarios, sink by sink: those that break servers take turns on servers of their own, the others share servers and
//! run side by side.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::command::{Options, Part};
use crate::play::{Counts, Run};
use crate::scenario::Place;
use crate::server::Servers;
use crate::sink::Sink;

/// Scenarios at a time on the shared servers.
const SIDE_BY_SIDE: usize = 3;

/// Far more than any scenario takes; reached only when one hangs.
const LIMIT: Duration = Duration::from_secs(900);

/// How one scenario went with one seed.
pub(crate) struct Outcome {
    pub(crate) part: Part,
    pub(crate) seed: u64,
    pub(crate) took: Duration,
    /// Or why it did not come to an end.
    pub(crate) counts: Result<Counts, String>,
}

impl Outcome {
    /// Everything that is wrong.
    pub(crate) fn problems(&self) -> Vec<String> {
        match &self.counts {
            Ok(counts) => counts.problems(),
            Err(problem) => vec![problem.clone()],
        }
    }
}

/// How all of them went, and on what.
pub(crate) struct Results {
    pub(crate) outcomes: Vec<Outcome>,
    pub(crate) seeds: Vec<u64>,
    pub(crate) full: bool,
    pub(crate) revision: Option<String>,
    pub(crate) servers: String,
    /// The one sink that was asked for.
    pub(crate) sink: Option<Sink>,
    /// Of the last sink's servers.
    pub(crate) versions: Option<Versions>,
}

impl Results {
    pub(crate) fn all_good(&self) -> bool {
        self.outcomes.iter().all(|o| o.problems().is_empty())
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Versions {
    pub(crate) postgres: String,
    pub(crate) broker: String,
}

/// Work that is left on one pair of servers.
type Queue = Mutex<VecDeque<(Part, u64)>>;

/// Runs every part with every seed.
pub(crate) fn run(parts: &[Part], options: &Options) -> Results {
    let first = options
        .seed
        .unwrap_or_else(|| rand::random_range(0..1_000_000));
    let seeds: Vec<u64> = (0..options.seeds).map(|n| first.wrapping_add(n)).collect();
    println!("\nrunning {} scenarios, seeds {seeds:?}", parts.len());
    let outcomes = Mutex::new(Vec::new());
    let versions = Mutex::new(None);
    for sink in Sink::ALL {
        let of_it = parts.iter().filter(|part| part.sink == *sink);
        let of_it: Vec<Part> = of_it.copied().collect();
        run_with(*sink, &of_it, &seeds, options.full, &outcomes, &versions);
    }
    let mut outcomes = outcomes.into_inner().unwrap();
    let place = |o: &Outcome| parts.iter().position(|part| part.name() == o.part.name());
    outcomes.sort_by_key(|outcome| (place(outcome), outcome.seed));
    Results {
        outcomes,
        seeds,
        full: options.full,
        revision: options.revision.clone(),
        servers: options.servers.clone(),
        sink: options.sink,
        versions: versions.into_inner().unwrap(),
    }
}

fn run_with(
    sink: Sink,
    parts: &[Part],
    seeds: &[u64],
    full: bool,
    outcomes: &Mutex<Vec<Outcome>>,
    versions: &Mutex<Option<Versions>>,
) {
    let queue = |place| -> Queue {
        let wanted = |seed: &u64| {
            let here = parts
                .iter()
                .filter(move |part| part.scenario.place == place);
            here.map(|part| (*part, *seed)).collect::<Vec<_>>()
        };
        Mutex::new(seeds.iter().flat_map(wanted).collect())
    };
    let (shared, turns) = (queue(Place::Shared), queue(Place::Turn));
    std::thread::scope(|scope| {
        for (queue, threads) in [(&shared, SIDE_BY_SIDE), (&turns, 1)] {
            if queue.lock().unwrap().is_empty() {
                continue;
            }
            scope.spawn(move || {
                let servers = runtime().block_on(Servers::start(sink));
                *versions.lock().unwrap() = Some(versions_of(&servers));
                std::thread::scope(|scope| {
                    for _ in 0..threads {
                        scope.spawn(|| work(queue, &servers, full, outcomes));
                    }
                });
            });
        }
    });
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
}

fn versions_of(servers: &Servers) -> Versions {
    runtime().block_on(async {
        let client = servers.postgres.client("postgres").await;
        let row = client.query_one("show server_version", &[]).await;
        Versions {
            postgres: row.expect("a version").get(0),
            broker: servers.broker.version().await,
        }
    })
}

/// Takes scenarios from the queue until it is empty.
fn work(queue: &Queue, servers: &Arc<Servers>, full: bool, outcomes: &Mutex<Vec<Outcome>>) {
    let mut servers = servers.clone();
    loop {
        let next = queue.lock().unwrap().pop_front();
        let Some((part, seed)) = next else { return };
        let run = Run {
            seed,
            full,
            servers: servers.clone(),
        };
        let began = Instant::now();
        // In the panicking thread itself, so that relays print their logs when they are dropped by it.
        let played = std::panic::catch_unwind(AssertUnwindSafe(|| {
            let runtime = runtime();
            runtime.block_on(async {
                let limited = tokio::time::timeout(LIMIT, (part.scenario.run)(run)).await;
                limited.unwrap_or_else(|_| panic!("not within {LIMIT:?}: the whole scenario"))
            })
        }));
        let outcome = Outcome {
            part,
            seed,
            took: began.elapsed(),
            counts: played.map_err(|panic| message(&*panic)),
        };
        crate::report::line(&outcome, full);
        if part.scenario.place == Place::Turn && outcome.counts.is_err() {
            // Whoever broke them did not come to mend them.
            servers = runtime().block_on(Servers::start(part.sink));
        }
        outcomes.lock().unwrap().push(outcome);
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "a panic without a message".to_owned())
}
