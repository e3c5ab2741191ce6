//! `outrigger completions`: a completion script for a shell.

use std::io::{self, Write};

use clap::CommandFactory;
use clap_complete::{Shell, generate};

use super::Failure;
use super::args::Cli;

/// Prints the script.
pub fn run(shell: Shell) -> Result<(), Failure> {
    // The generator panics when it cannot write, so it writes to memory first.
    let mut script = Vec::new();
    generate(shell, &mut Cli::command(), "outrigger", &mut script);
    io::stdout().write_all(&script)?;
    Ok(())
}
