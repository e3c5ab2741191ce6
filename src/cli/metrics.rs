//! `outrigger metrics`: what a monitoring system needs to know, made from the table of metrics.

use std::io::{self, Write as _};

use super::Failure;
use super::args::Metrics;
use crate::telemetry::metrics;

/// Prints what was asked for.
pub fn run(args: &Metrics) -> Result<(), Failure> {
    let text = if args.reference {
        metrics::markdown()
    } else if args.dashboard {
        metrics::dashboard()
    } else {
        metrics::rules(args.runbook.as_deref())
    };
    io::stdout().write_all(text.as_bytes())?;
    Ok(())
}
