#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::Write;
use std::sync::{Arc, Mutex};

use super::*;

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn log(level: LevelFilter, filter: Option<&str>, format: LogFormat) -> Log {
    Log {
        level,
        filter: filter.map(str::to_owned),
        format,
        color: true,
    }
}

/// What is written while `events` runs.
fn captured(log: &Log, terminal: bool, events: impl FnOnce()) -> String {
    let captured = Captured::default();
    let writer = captured.clone();
    let layer = layer(log, terminal, filter(log).unwrap(), move || writer.clone());
    tracing::subscriber::with_default(Registry::default().with(layer), events);
    let bytes = captured.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap()
}

fn everything() {
    tracing::info!("ours");
    tracing::debug!("ours in detail");
    tracing::warn!(target: "lapin::channel", "lapin warns");
    tracing::error!(target: "lapin::channel", "lapin fails");
    tracing::trace!(target: "lapin::channels", "frame with payload");
    tracing::error!(target: "lapin::returned_messages", "returned payload");
    tracing::trace!(target: "aws_smithy_runtime::client", "request with payload");
    tracing::warn!(target: "aws_config::imds", "no instance");
    tracing::warn!(target: "deadpool::managed", "a connection was replaced");
    tracing::info!(target: "tokio_postgres", "notice");
    tracing::warn!(target: "rustls::msgs", "alert");
}

#[test]
fn libraries_are_quiet_by_default() {
    let text = captured(
        &log(LevelFilter::INFO, None, LogFormat::Text),
        false,
        everything,
    );
    for kept in ["ours", "alert"] {
        assert!(text.contains(kept), "{kept}: {text}");
    }
    assert_eq!(text.lines().count(), 2, "{text}");
}

#[test]
fn a_library_is_never_louder_than_the_level() {
    let text = captured(
        &log(LevelFilter::OFF, None, LogFormat::Text),
        false,
        everything,
    );
    assert_eq!(text, "");
}

#[test]
fn rust_log_wins_but_cannot_reveal_payloads() {
    for filter in [
        "trace",
        "lapin=trace",
        "trace,lapin::returned_messages=trace,lapin::channels=trace",
    ] {
        let text = captured(
            &log(LevelFilter::OFF, Some(filter), LogFormat::Text),
            false,
            everything,
        );
        assert!(text.contains("lapin warns"), "{filter}: {text}");
        assert!(!text.contains("payload"), "{filter}: {text}");
    }
}

#[test]
fn auto_is_text_on_a_terminal_and_json_elsewhere() {
    let log = log(LevelFilter::INFO, None, LogFormat::Auto);
    let event = || tracing::info!(partition = 3, "taken over");
    let text = captured(&log, true, event);
    assert!(text.contains("taken over"), "{text}");
    assert!(text.contains('\u{1b}'), "coloured: {text:?}");
    let json: serde_json::Value = serde_json::from_str(&captured(&log, false, event)).unwrap();
    assert_eq!(json["message"], "taken over");
    assert_eq!(json["partition"], 3);
    assert_eq!(json["level"], "INFO");
}

#[test]
fn colours_can_be_turned_off() {
    let plain = Log {
        color: false,
        ..log(LevelFilter::INFO, None, LogFormat::Auto)
    };
    let text = captured(&plain, true, everything);
    assert!(
        text.contains("ours") && !text.contains('\u{1b}'),
        "{text:?}"
    );
}

#[test]
fn a_bad_filter_is_an_error() {
    let bad = log(LevelFilter::INFO, Some("lapin=loud"), LogFormat::Text);
    assert!(filter(&bad).is_err());
}
