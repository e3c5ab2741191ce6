//! The `outrigger` binary.

use std::process::ExitCode;

use clap::Parser;
use outrigger::cli::args::{Cli, Command};
use outrigger::cli::{self, DONE, Failure};
use outrigger::{settings, telemetry};

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
    // These two must work however bad the settings are.
    match &command {
        Command::Config(args) => return cli::config::run(args, inputs),
        Command::Completions { shell } => return cli::completions::run(*shell),
        _ => {}
    }
    let loaded = settings::load(inputs);
    let settings = loaded.settings(command.need()).map_err(Failure::usage)?;
    telemetry::init(&settings.log)?;
    for warning in loaded.warnings() {
        tracing::warn!("{warning}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(cli::dispatch(command, settings))
}
