//! The commands: one file each. A command parses, calls and prints; behaviour lives elsewhere.

pub mod args;
pub mod check;
pub mod completions;
pub mod config;
mod connect;
mod dead;
mod emit;
pub mod health;
pub mod man;
pub mod metrics;
mod migrate;
pub(crate) mod output;
mod partitions;
mod pause;
pub mod replay;
mod run;
mod status;
mod tail;
mod time;
mod version;

use std::error::Error;
use std::fmt;
use std::io;

use args::{Cli, Command};

use crate::settings::{Flag, Inputs, Need, Settings};

/// Exit code: done.
pub const DONE: u8 = 0;
/// Exit code: failed, or work was abandoned.
pub const FAILED: u8 = 1;
/// Exit code: wrong usage or configuration. The argument parser uses the same.
pub const USAGE: u8 = 2;
/// Exit code: a check found something wrong.
pub const CHECK_FAILED: u8 = 3;

/// Why a command did not do its work. Printed once, by `main`.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: u8,
    /// What happened, with its causes; `None` when the command has said it all.
    pub error: Option<Box<dyn Error + Send + Sync>>,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Failure {
    /// Ends with this exit code without another word.
    pub fn silent(exit: u8) -> Self {
        Self {
            exit,
            error: None,
            hint: None,
        }
    }

    /// Wrong usage or configuration.
    pub fn usage(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            exit: USAGE,
            ..Self::from(error)
        }
    }

    /// Adds what to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl<E: Into<Box<dyn Error + Send + Sync>>> From<E> for Failure {
    /// Any error means the command failed, except that a reader who has seen enough
    /// (`outrigger status | head`) is no failure.
    fn from(error: E) -> Self {
        let error = error.into();
        match error.downcast_ref::<io::Error>() {
            Some(cause) if cause.kind() == io::ErrorKind::BrokenPipe => Self::silent(DONE),
            _ => Self {
                exit: FAILED,
                error: Some(error),
                hint: None,
            },
        }
    }
}

impl fmt::Display for Failure {
    /// `error: what: cause: cause`, then the hint on a line of its own. Nothing for a silent one.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(error) = &self.error else {
            return Ok(());
        };
        write!(f, "error: {error}")?;
        let mut cause = error.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        match &self.hint {
            Some(hint) => write!(f, "\n  hint: {hint}"),
            None => Ok(()),
        }
    }
}

impl Cli {
    /// The sources of settings, flags included.
    pub fn inputs(&self) -> Inputs {
        let verbose = self.verbose.then(|| Flag {
            name: "--verbose",
            key: "log.level",
            value: "debug".into(),
        });
        Inputs::from_process(self.config.clone(), verbose.into_iter().collect())
    }
}

impl Command {
    /// What the command cannot do without.
    pub fn need(&self) -> Need {
        match self {
            Self::Run | Self::Check(_) => Need::Relay,
            Self::Migrate(migrate) if migrate.print => Need::Nothing,
            Self::Migrate(_)
            | Self::Status(_)
            | Self::Emit(_)
            | Self::Tail(_)
            | Self::Dead(_)
            | Self::Replay(_)
            | Self::Pause(_)
            | Self::Partitions(_)
            | Self::Resume(_) => Need::Database,
            Self::Health(_)
            | Self::Config(_)
            | Self::Metrics(_)
            | Self::Completions { .. }
            | Self::Man(_) => Need::Nothing,
        }
    }
}

/// Carries out a command that needs settings and a runtime.
pub async fn dispatch(command: Command, settings: Settings) -> Result<(), Failure> {
    let settings = &settings;
    // Boxed: what one command keeps while it waits should not make all of them large.
    match command {
        Command::Run => Box::pin(run::run(settings)).await,
        Command::Migrate(args) => Box::pin(migrate::run(&args, settings)).await,
        Command::Status(args) => Box::pin(status::run(&args, settings)).await,
        Command::Emit(args) => Box::pin(emit::run(args, settings)).await,
        Command::Tail(args) => Box::pin(tail::run(&args, settings)).await,
        Command::Dead(command) => Box::pin(dead::run(&command, settings)).await,
        Command::Replay(args) => Box::pin(replay::run(&args, settings)).await,
        Command::Pause(args) => Box::pin(pause::pause(&args, settings)).await,
        Command::Partitions(args) => Box::pin(partitions::run(&args, settings)).await,
        Command::Resume(args) => Box::pin(pause::resume(&args, settings)).await,
        // They must work however bad the settings are, so `main` calls them.
        Command::Check(_)
        | Command::Health(_)
        | Command::Config(_)
        | Command::Metrics(_)
        | Command::Completions { .. }
        | Command::Man(_) => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot connect to the database")]
    struct Outer(#[source] io::Error);

    #[test]
    fn failures_show_the_chain_and_the_hint() {
        let failure = Failure::from(Outer(io::Error::other("refused"))).hint("is it running?");
        assert_eq!(
            failure.to_string(),
            "error: cannot connect to the database: refused\n  hint: is it running?"
        );
        assert_eq!(failure.exit, FAILED);
        assert_eq!(Failure::usage("no").exit, USAGE);
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        let failure = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(failure.exit, DONE);
        assert_eq!(failure.to_string(), "");
    }
}
