//! What the relay publishes, read by the official CloudEvents SDKs: every mode, by every sink that carries bytes, from real
//! servers.
//!
//! `scripts/writers` prepares the readers that need a runtime of their own. (The Rust SDK reads in `tests/cloudevents` and
//! `tests/sinks`.)

#![cfg(all(feature = "rabbitmq", feature = "nats", feature = "http"))]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    unreachable_pub,
    dead_code
)]

mod consuming;
#[cfg(feature = "kafka")]
#[path = "../support/kafka.rs"]
mod kafka;
mod known;
#[path = "../support/nats.rs"]
mod nats_node;
#[path = "../support/postgres.rs"]
mod postgres;
#[path = "../support/rabbitmq.rs"]
mod rabbitmq;
mod rows;
#[path = "../support/service.rs"]
mod service;
#[path = "../commands/tool.rs"]
mod tool;
mod wire;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tokio::sync::OnceCell;

use self::known::{Known, Sdk};
use self::rows::{Event, Payload};
use self::wire::Wire;

/// All that was published, as it was on the wire.
async fn published() -> &'static [Wire] {
    static PUBLISHED: OnceCell<Vec<Wire>> = OnceCell::const_new();
    PUBLISHED.get_or_init(wire::publish).await
}

/// What `scripts/writers` has prepared for a language.
fn prepared(sdk: Sdk) -> Option<PathBuf> {
    let language = sdk.name();
    let run = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(".cache/readers")
        .join(language)
        .join("run");
    if run.is_file() {
        return Some(run);
    }
    let required = std::env::var("WRITERS_REQUIRED").unwrap_or_default();
    assert!(
        !required.split_whitespace().any(|name| name == language),
        "the {language} reader is required and not prepared: run scripts/writers"
    );
    eprintln!("skipped: the {language} reader is not prepared (scripts/writers does that)");
    None
}

/// What the SDK says about each message, in their order.
fn answers(run: &Path, wires: &[Wire]) -> Vec<Value> {
    let mut child = Command::new(run)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let lines: Vec<String> = wires.iter().map(Wire::line).collect();
    let writing = std::thread::spawn(move || {
        for line in lines {
            writeln!(stdin, "{line}").unwrap();
        }
    });
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    let answers = said.lines().map(|line| serde_json::from_str(line).unwrap());
    answers.collect()
}

async fn reads(sdk: Sdk) {
    let Some(run) = prepared(sdk) else { return };
    let wires = published().await;
    let answers = tokio::task::spawn_blocking(move || answers(&run, wires))
        .await
        .unwrap();
    assert_eq!(answers.len(), wires.len(), "one answer per message");
    let mut used = BTreeSet::new();
    let mut wrong = Vec::new();
    for (wire, answer) in wires.iter().zip(&answers) {
        let mut differences = Vec::new();
        match &answer["error"] {
            Value::Null => {
                let read: Vec<Event> = answer["events"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(rows::read)
                    .collect();
                if read.len() == wire.events.len() {
                    for (expected, read) in wire.events.iter().zip(&read) {
                        compare(expected, read, &mut differences);
                    }
                } else {
                    let text = format!("{} events of {}", read.len(), wire.events.len());
                    differences.push(("", "count".to_owned(), text));
                }
            }
            error => {
                let kind = wire.events[0].kind();
                differences.push((kind, "error".to_owned(), error.to_string()));
            }
        }
        for (kind, what, text) in differences {
            match known::find(sdk, wire, kind, &what) {
                Some(at) => {
                    used.insert(at);
                }
                None => wrong.push(format!(
                    "{} by {} in {}: {kind}: {what}: {text}",
                    sdk.name(),
                    wire.sink,
                    wire.mode
                )),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // What an SDK has learned is no exception any more. Without Kafka some cannot be met.
    if cfg!(feature = "kafka") {
        for (at, Known { why, .. }) in known::all(sdk) {
            assert!(used.contains(&at), "{}: not met: {why}", sdk.name());
        }
    }
}

/// Adds the type of the event, what differs and how.
fn compare<'a>(
    expected: &'a Event,
    read: &Event,
    differences: &mut Vec<(&'a str, String, String)>,
) {
    let names: BTreeSet<&String> = expected
        .attributes
        .keys()
        .chain(read.attributes.keys())
        .collect();
    for name in names {
        let (wanted, got) = (expected.attributes.get(name), read.attributes.get(name));
        let mut what = name.clone();
        let same = match (name.as_str(), wanted, got) {
            ("time" | "expirytime", Some(wanted), Some(got)) => {
                let at = |text: &str| text.parse::<jiff::Timestamp>().unwrap();
                if at(wanted) != at(got) && at(wanted).as_millisecond() == at(got).as_millisecond()
                {
                    "below milliseconds".clone_into(&mut what);
                }
                at(wanted) == at(got)
            }
            ("time", None, Some(_)) => {
                "invented time".clone_into(&mut what);
                false
            }
            _ => wanted == got,
        };
        if !same {
            let text = format!("{got:?} instead of {wanted:?}");
            differences.push((expected.kind(), what, text));
        }
    }
    if !same_payload(&expected.payload, &read.payload) {
        let text = format!("{:?} instead of {:?}", read.payload, expected.payload);
        differences.push((expected.kind(), "payload".to_owned(), text));
    }
}

/// Whether a consumer has what was sent, in whichever type its SDK hands it over.
fn same_payload(expected: &Payload, read: &Payload) -> bool {
    match (expected, read) {
        (Payload::Nothing, Payload::Nothing) => true,
        (Payload::Nothing, Payload::Bytes(bytes)) => bytes.is_empty() || bytes == b"null",
        // An empty body, as text.
        (Payload::Nothing, Payload::Json(Value::String(text))) => text.is_empty(),
        (Payload::Json(wanted), Payload::Json(got)) => same_json(wanted, got),
        (Payload::Json(wanted), Payload::Bytes(got)) => {
            serde_json::from_slice(got).is_ok_and(|got| same_json(wanted, &got))
        }
        (Payload::Text(wanted), Payload::Json(Value::String(got))) => wanted == got,
        (Payload::Text(wanted), Payload::Bytes(got)) => wanted.as_bytes() == got,
        (Payload::Bytes(wanted), Payload::Bytes(got)) => wanted == got,
        _ => false,
    }
}

/// Numbers as doubles: whether a consumer's language has more is its own affair.
fn same_json(wanted: &Value, got: &Value) -> bool {
    match (wanted, got) {
        (Value::Number(wanted), Value::Number(got)) => wanted.as_f64() == got.as_f64(),
        (Value::Array(wanted), Value::Array(got)) => {
            let mut pairs = wanted.iter().zip(got);
            wanted.len() == got.len() && pairs.all(|(wanted, got)| same_json(wanted, got))
        }
        (Value::Object(wanted), Value::Object(got)) => {
            let same = |(name, wanted): (&String, &Value)| {
                got.get(name).is_some_and(|got| same_json(wanted, got))
            };
            wanted.len() == got.len() && wanted.iter().all(same)
        }
        _ => wanted == got,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn python_reads_events() {
    reads(Sdk::Python).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn javascript_reads_events() {
    reads(Sdk::JavaScript).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn java_reads_events() {
    reads(Sdk::Java).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn go_reads_events() {
    reads(Sdk::Go).await;
}
