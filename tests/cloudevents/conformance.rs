//! The samples of cloudevents/conformance, each built as a row and encoded.

use outrigger::error::ReasonCode;
use outrigger::event::encode::Mode;
use outrigger::event::{Data, Record};
use serde_json::{Map, Value, json};

use crate::{decode, encoder, minimal};

const VALID_EVENTS: &str = include_str!("../data/cloudevents/valid-events.json");
const INVALID_EVENTS: &str = include_str!("../data/cloudevents/invalid-events.json");
const VALID_BATCHES: &str = include_str!("../data/cloudevents/valid-batches.json");
const INVALID_BATCHES: &str = include_str!("../data/cloudevents/invalid-batches.json");

fn tests(file: &str) -> Vec<Value> {
    let mut file: Value = serde_json::from_str(file).unwrap();
    serde_json::from_value(file["tests"].take()).unwrap()
}

/// The row that a service would write to emit `event`. Absent required attributes become empty
/// strings, which is as absent as a NOT NULL column can be.
fn row(event: &Value) -> Record {
    let mut members: Map<String, Value> = event.as_object().unwrap().clone();
    assert_eq!(members.remove("specversion"), Some(json!("1.0")));
    let mut take = |name: &str| match members.remove(name) {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(text),
        Some(other) => panic!("a text column cannot hold {other}"),
    };
    let mut record = Record {
        seq: 1,
        id: take("id").unwrap_or_default(),
        event_type: take("type").unwrap_or_default(),
        source: take("source"),
        subject: take("subject"),
        content_type: take("datacontenttype"),
        schema: take("dataschema"),
        created_at: take("time").map(|time| time.parse().unwrap()),
        ..Record::default()
    };
    if let Some(text) = take("data") {
        record.data = Data::Text(text.into());
    }
    if !members.is_empty() {
        record.extensions = Some(Value::Object(members).to_string());
    }
    record
}

/// An event with its irrelevant spellings removed: null members and the offset of `time`.
fn normalised(event: &Value) -> Value {
    let mut event = event.clone();
    let members = event.as_object_mut().unwrap();
    members.retain(|_, value| !value.is_null());
    if let Some(time) = members.get_mut("time") {
        let at: jiff::Timestamp = time.as_str().unwrap().parse().unwrap();
        *time = json!(at.to_string());
    }
    event
}

#[test]
fn valid_events_are_reproduced() {
    let tests = tests(VALID_EVENTS);
    assert_eq!(tests.len(), 10);
    for test in tests {
        let record = row(&test["event"]);
        let message = decode::only(encoder(Mode::Structured).encode([&record]));
        let body: Value = serde_json::from_slice(&message.body).unwrap();
        assert_eq!(body, normalised(&test["event"]), "{}", test["id"]);

        // The independent decoder understands all modes, and they agree.
        let structured = decode::structured(&message);
        let batch = decode::batch(&decode::only(encoder(Mode::Batch).encode([&record])));
        assert_eq!(batch, std::slice::from_ref(&structured), "{}", test["id"]);
        let binary = decode::only(encoder(Mode::Binary).encode([&record]));
        decode::assert_same(&decode::binary(&binary, "ce-"), &structured);
    }
}

/// What becomes of each invalid sample: refused for the named attribute, or (`None`) impossible to
/// write down in a row at all.
const INVALID: [(&str, Option<&str>); 25] = [
    // The encoder always writes `specversion: 1.0`.
    ("invalidNoSpecVersion", None),
    ("invalidEmptySpecVersion", None),
    ("invalidUnknownSpecVersion", None),
    ("invalidNoId", Some("`id`")),
    ("invalidNoType", Some("`type`")),
    // A null source means the configured one, which is checked when the encoder is built.
    ("invalidNoSource", None),
    // The column is a timestamp, which the database checks.
    ("invalidTimeGarbage", None),
    ("invalidTimeToMinute", None),
    ("invalidTimeOffsetX", None),
    ("invalidTimeOffsetOutOfRange", None),
    ("invalidTimeOffsetNonInteger", None),
    ("invalidTimeOffsetHourOnly", None),
    ("invalidEmptyId", Some("`id`")),
    ("invalidEmptyType", Some("`type`")),
    ("invalidEmptySource", Some("`source`")),
    ("invalidNonRfc2046DataContentType", Some("`content_type`")),
    ("invalidEmptyDataContentType", Some("`content_type`")),
    ("invalidEmptyDataSchema", Some("`schema`")),
    ("invalidEmptySubject", Some("`subject`")),
    // The column is text.
    ("invalidNumericId", None),
    ("invalidObjectId", None),
    ("invalidCapitalizedExtension", Some("`MyExtension`")),
    ("invalidPunctuatedExtension", Some("`my.extension`")),
    ("invalidNonIntegerExtensionValue", Some("`my.extension`")),
    // A row has one payload.
    ("invalidBothDataAndDataBase64", None),
];

#[test]
fn invalid_events_are_refused() {
    let tests = tests(INVALID_EVENTS);
    assert_eq!(tests.len(), INVALID.len());
    for test in tests {
        let id = test["id"].as_str().unwrap();
        let (_, expected) = INVALID
            .iter()
            .find(|(known, _)| *known == id)
            .unwrap_or_else(|| panic!("{id} is new; decide what becomes of it"));
        let Some(named) = expected else { continue };
        let record = row(&test["event"]);
        for mode in [Mode::Structured, Mode::Binary, Mode::Batch] {
            let encoded = encoder(mode).encode([&record]);
            assert!(encoded.messages.is_empty(), "{id} {mode:?}");
            let (seq, reason) = &encoded.rejected[0];
            assert_eq!((*seq, reason.code), (1, ReasonCode::InvalidEvent), "{id}");
            assert!(reason.detail.contains(named), "{id}: {reason}");
        }
    }
}

/// The sample above fails by its name alone; this one by its value.
#[test]
fn fractions_are_no_extension_values() {
    for value in ["1.5", "1.0", "1e2", "2147483648", "-2147483649", "[]", "{}"] {
        let record = Record {
            extensions: Some(format!(r#"{{"myextension":{value}}}"#)),
            ..minimal("fraction")
        };
        let encoded = encoder(Mode::Structured).encode([&record]);
        assert!(encoded.messages.is_empty(), "{value}");
        let reason = &encoded.rejected[0].1;
        assert!(reason.detail.contains("`myextension`"), "{reason}");
    }
}

#[test]
fn valid_batches_are_reproduced() {
    let tests = tests(VALID_BATCHES);
    assert_eq!(tests.len(), 5);
    for test in tests {
        let id = test["id"].as_str().unwrap();
        let events: Vec<Value> = serde_json::from_value(test["batch"].clone()).unwrap();
        let rows: Vec<Record> = events
            .iter()
            .zip(1..)
            .map(|(event, seq)| Record { seq, ..row(event) })
            .collect();
        let encoded = encoder(Mode::Batch).encode(&rows);
        assert!(encoded.rejected.is_empty(), "{id}");
        if id == "validBatchEmpty" {
            assert!(encoded.messages.is_empty());
            continue;
        }
        assert_eq!(encoded.messages.len(), 1, "{id}");
        let body: Vec<Value> = serde_json::from_slice(&encoded.messages[0].body).unwrap();
        if id == "validBatchMinimal2" {
            // Allowed by the format, but never written: the copy waits for the next call.
            assert_eq!(encoded.deferred, [2]);
            assert_eq!(body, events[..1]);
            continue;
        }
        assert!(encoded.deferred.is_empty(), "{id}");
        let expected: Vec<Value> = events.iter().map(normalised).collect();
        assert_eq!(body, expected, "{id}");
        assert_eq!(decode::batch(&encoded.messages[0]).len(), events.len());
    }
}

/// Of the invalid batches a set of rows can only express the one with a missing id: the bad row
/// is refused and its neighbours travel.
#[test]
fn an_invalid_row_does_not_spoil_its_batch() {
    let tests = tests(INVALID_BATCHES);
    let test = tests
        .iter()
        .find(|test| test["id"] == "invalidBatchContainingInvalidCloudEvent")
        .unwrap();
    let invalid = Record {
        seq: 2,
        ..row(&test["batch"][0])
    };
    let rows = [
        minimal("one"),
        invalid,
        Record {
            seq: 3,
            ..minimal("three")
        },
    ];
    let encoded = encoder(Mode::Batch).encode(&rows);
    assert_eq!(encoded.rejected.len(), 1);
    assert_eq!(encoded.rejected[0].0, 2);
    assert_eq!(encoded.messages[0].seqs, [1, 3]);
    assert_eq!(decode::batch(&encoded.messages[0]).len(), 2);
}
