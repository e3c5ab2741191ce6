//! Logs: to standard error, as text for people or JSON for machines, by a thread of their own; [`lasting`]: what is said
//! again. Metrics: [`metrics`]. Traces: [`trace`].

pub mod lasting;
pub mod metrics;
#[cfg(feature = "otel")]
pub mod trace;
#[cfg(not(feature = "otel"))]
#[path = "trace/absent.rs"]
pub mod trace;
mod writer;

use std::io::{self, IsTerminal};

use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata};
use tracing_subscriber::filter::{FilterFn, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use crate::settings::{Log, LogFormat};
use writer::Lines;
pub use writer::Logging;

/// Starts logging for the whole process. Logging never blocks, even if nothing reads standard error.
///
/// # Errors
/// When `RUST_LOG` is not a filter, logging was started before, or the system gives no thread.
pub fn init(log: &Log) -> Result<Logging, Box<dyn std::error::Error + Send + Sync>> {
    let terminal = io::stderr().is_terminal();
    let filter = filter(log)?;
    let lines = Lines::to(io::stderr())?;
    Registry::default()
        .with(layer(log, terminal, filter, lines.clone()))
        .try_init()?;
    Ok(Logging(lines))
}

/// What is logged: `RUST_LOG` as it stands, or the level with chatty libraries held back.
fn filter(log: &Log) -> Result<EnvFilter, tracing_subscriber::filter::ParseError> {
    if let Some(filter) = &log.filter {
        return EnvFilter::builder().parse(filter);
    }
    let level = log.level;
    // The relay reports connection trouble itself, once per change of state; lapin and async_nats call a
    // connection that we close an error, and the pool warns of each that it replaces. The crates of AWS's SDK all begin
    // with `aws_`.
    let clients = LevelFilter::OFF;
    // Notices of the server arrive at level info.
    let quiet = level.min(LevelFilter::WARN);
    EnvFilter::builder().parse(format!(
        "{level},lapin={clients},async_nats={clients},aws_={clients},deadpool={clients},tokio_postgres={quiet},rustls={quiet},hyper={quiet}"
    ))
}

/// Keeps payloads and credentials out of the log, whatever `RUST_LOG` asks for: lapin logs every
/// returned message in full, and at level trace every frame; AWS's SDK, at that level, every request.
fn without_payloads() -> FilterFn<fn(&Metadata<'_>) -> bool> {
    filter_fn(|metadata| {
        let target = metadata.target();
        let lapin = target == "lapin" || target.starts_with("lapin::");
        let returned = target.starts_with("lapin::returned_messages");
        let aws = target.starts_with("aws_");
        !(returned || (lapin || aws) && *metadata.level() == Level::TRACE)
    })
}

fn layer<W>(
    log: &Log,
    terminal: bool,
    filter: EnvFilter,
    writer: W,
) -> Box<dyn Layer<Registry> + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    use tracing_subscriber::filter::FilterExt;
    let filter = filter.and(without_payloads());
    let base = tracing_subscriber::fmt::layer().with_writer(writer);
    let text = match log.format {
        LogFormat::Auto => terminal,
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    if text {
        base.with_ansi(terminal && log.color)
            .with_target(false)
            .compact()
            .with_filter(filter)
            .boxed()
    } else {
        base.json()
            .flatten_event(true)
            .with_span_list(false)
            .with_filter(filter)
            .boxed()
    }
}

#[cfg(test)]
mod tests;
