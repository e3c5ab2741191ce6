//! The list of scenarios.

use std::future::Future;
use std::pin::Pin;

use crate::play::{Counts, Run};
use crate::sink::Sink;
use crate::{
    broker, database, failover, idle, kills, network, outages, processes, replicas, rows, trouble,
};

/// One fault, and how it is played.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// Its rows in the fault list.
    pub(crate) row: &'static str,
    /// What is done, in words.
    pub(crate) fault: &'static str,
    pub(crate) replicas: usize,
    pub(crate) place: Place,
    /// Whether the short form has it too.
    pub(crate) short: bool,
    /// What it can be played with.
    pub(crate) sinks: &'static [Sink],
    pub(crate) run: fn(Run) -> Pin<Box<dyn Future<Output = Counts>>>,
}

/// Which servers it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Servers that others use at the same time.
    Shared,
    /// Servers that break, so one scenario at a time.
    Turn,
}

/// Scenarios about what only RabbitMQ has.
pub(crate) const RABBITMQ: &[Sink] = &[Sink::RabbitMq];

/// Those that `cargo test` also plays with the other sinks: few, and each breaks another part.
pub(crate) const TELLING: &[&str] = &[
    "kill-confirming",
    "rolling-restart",
    "broker-cut",
    "broker-crash",
];

/// A scenario of two replicas on servers that others use as well, in both forms and with any sink: name, row, fault, and
/// how it is played.
macro_rules! shared {
    ($name:literal, $row:literal, $fault:literal, $run:expr) => {
        $crate::scenario::Scenario {
            name: $name,
            row: $row,
            fault: $fault,
            replicas: 2,
            place: $crate::scenario::Place::Shared,
            short: true,
            sinks: $crate::sink::Sink::ALL,
            run: |run| Box::pin($run(run)),
        }
    };
}
pub(crate) use shared;

/// All of them, in the order of the fault list.
pub(crate) fn all() -> Vec<&'static Scenario> {
    let parts = [
        kills::SCENARIOS,
        processes::SCENARIOS,
        broker::SCENARIOS,
        network::SCENARIOS,
        outages::SCENARIOS,
        database::SCENARIOS,
        failover::SCENARIOS,
        replicas::SCENARIOS,
        idle::SCENARIOS,
        rows::SCENARIOS,
        trouble::SCENARIOS,
    ];
    let mut all: Vec<&Scenario> = parts.into_iter().flatten().collect();
    all.sort_by_key(|scenario| {
        let digits = scenario.row.split(|c: char| !c.is_ascii_digit()).next();
        digits.and_then(|row| row.parse::<u32>().ok())
    });
    all
}
