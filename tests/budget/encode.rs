//! Allocations on the way from a row to a message.

use bytes::Bytes;
use outrigger::event::encode::{BatchLimits, Encoder, EncoderConfig, HeaderPrefix, Mode};
use outrigger::event::envelope::Fill;
use outrigger::event::route::Router;
use outrigger::event::{Data, Explained, Record};

use crate::at_most;

/// Rows of one call, as many as a lane takes at once.
const ROWS: u64 = 200;
/// Per structured event: the body (which grows a few times), and the message's own texts (exchange, routing key, content type, id,
/// type, source, key, rows).
const STRUCTURED: u64 = 17;
/// Per binary event: no body, which is shared with the row, but a name and a value for each header.
const BINARY: u64 = 32;
/// Per event of a batch: what decides its message; the body is shared.
const BATCH: u64 = 30;
/// Per call: the lists of messages and ids.
const CALL: u64 = 10;

fn record(seq: i64) -> Record {
    Record {
        seq,
        hash: seq,
        keyed: true,
        id: format!("00000000-0000-4000-8000-{seq:012}"),
        event_type: "order.changed".into(),
        key: Some(format!("customer-{seq}")),
        data: Data::Json(Bytes::from(format!(r#"{{"text": "{}"}}"#, "x".repeat(814)))),
        created_at: Some("2026-01-02T03:04:05.678901Z".parse().unwrap()),
        ..Record::default()
    }
}

fn allocations(mode: Mode) -> u64 {
    let encoder = Encoder::new(EncoderConfig {
        source: "/orders".into(),
        fill: Fill::default(),
        mode,
        header_prefix: HeaderPrefix::default(),
        router: Router::new("events", "{{ type }}").unwrap(),
        batch: BatchLimits::default(),
        explained: Explained::InHeaders,
    })
    .unwrap();
    let records: Vec<Record> = (1..=ROWS as i64).map(record).collect();
    // What is made once, however many events follow.
    drop(encoder.encode(&records));
    let mut encoded = None;
    let counted = allocation_counter::measure(|| encoded = Some(encoder.encode(&records)));
    let encoded = encoded.unwrap();
    let rows: usize = encoded
        .messages
        .iter()
        .map(|message| message.seqs.len())
        .sum();
    assert_eq!(rows as u64, ROWS, "{:?}", encoded.rejected);
    counted.count_total
}

#[test]
fn encoding_allocates_little() {
    for (mode, per_event) in [
        (Mode::Structured, STRUCTURED),
        (Mode::Binary, BINARY),
        (Mode::Batch, BATCH),
    ] {
        at_most(
            &format!("allocations for {ROWS} events, {mode:?}"),
            allocations(mode),
            per_event * ROWS + CALL,
        );
    }
}

#[test]
fn allocations_are_counted() {
    let [structured, batch] = [Mode::Structured, Mode::Batch].map(allocations);
    assert!(structured >= ROWS, "each message has a body of its own");
    assert!(batch > 0);
}
