//! The `outrigger` binary.

use std::process::ExitCode;

use clap::Parser;
use outrigger::cli::args::{Cli, Command};
use outrigger::cli::{self, DONE, Failure};
use outrigger::{settings, telemetry};
use tokio::runtime::Builder;

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::from(DONE),
        Err(failure) => {
            if failure.error.is_some() {
                eprintln!("{failure}");
            }
            ExitCode::from(failure.exit)
        }
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    let inputs = cli.inputs();
    let command = cli.command.unwrap_or(Command::Run);
    // These must work however bad the settings are.
    match &command {
        Command::Config(args) => return cli::config::run(args, inputs),
        Command::Metrics(args) => return cli::metrics::run(args),
        Command::Completions { shell } => return cli::completions::run(*shell),
        Command::Man(args) => return cli::man::run(args),
        _ => {}
    }
    let loaded = settings::load(inputs);
    if let Command::Check(args) = &command {
        // It reports by itself what the parts would log, unless somebody wants to see more.
        let log = &loaded.provisional().log;
        let logging = (cli.verbose || log.filter.is_some()).then(|| telemetry::init(log));
        if matches!(logging, Some(Err(_))) {
            eprintln!("warning: RUST_LOG cannot be used");
        }
        return block_on(cli::check::run(args, &loaded));
    }
    if let Command::Health(args) = &command {
        return block_on(cli::health::run(args, &loaded));
    }
    let settings = loaded.settings(command.need()).map_err(Failure::usage)?;
    let _logging = telemetry::init(&settings.log)?;
    for warning in loaded.warnings() {
        tracing::warn!("{warning}");
    }
    block_on(cli::dispatch(command, settings))
}

/// One thread: the relay waits far more than it computes, and handing each event from thread to thread costs more
/// than all the rest. The broker's client brings its own thread.
fn block_on(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(work);
    // Don't wait for blocked threads, such as a write to a full pipe or a name server that does not answer.
    runtime.shutdown_background();
    result
}
