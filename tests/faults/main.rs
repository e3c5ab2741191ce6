//! Faults, injected one by one between real relays and real servers, and what came of them: committed, delivered,
//! lost, phantom, duplicated, out of order, altered, and how long the recovery took.
//!
//! A test binary with a small harness of its own, since its scenarios take parameters (seeds, length), share servers
//! and end in a table. `cargo test` runs the short form of each, once; `scripts/faults` runs the long form with
//! three seeds and writes `docs/reliability.md`. `--sink` plays those that are not about RabbitMQ alone with another sink.
//!
//! A scenario is a function that plays on a [`play::Play`]. What is broken is between the relay and its servers
//! (`support/proxy`), in the servers or in the processes; the relay itself knows nothing of it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../support/end_to_end/mod.rs"]
mod support;

#[cfg(feature = "kafka")]
#[path = "../support/kafka.rs"]
mod kafka_node;
#[path = "../support/nats.rs"]
mod nats_node;
#[path = "../support/service.rs"]
mod service;

mod broker;
mod command;
mod database;
mod failover;
mod idle;
mod kills;
mod network;
mod outages;
mod play;
mod processes;
mod replicas;
mod report;
mod rows;
mod runner;
mod scenario;
mod server;
mod sink;
mod trouble;

use std::process::ExitCode;

fn main() -> ExitCode {
    let options = match command::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(problem) => {
            eprintln!("error: {problem}\n\n{}", command::USAGE);
            return ExitCode::from(2);
        }
    };
    let parts = options.select(&scenario::all());
    if options.list {
        command::list(&parts, &options);
        return ExitCode::SUCCESS;
    }
    let results = runner::run(&parts, &options);
    if let Some(path) = &options.report {
        let text = report::render(&results);
        std::fs::write(path, text).expect("the report can be written");
    }
    report::summary(&results);
    if results.all_good() {
        ExitCode::SUCCESS
    } else {
        // The exit code of a failed test binary.
        ExitCode::from(101)
    }
}
