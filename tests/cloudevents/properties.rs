//! Any row is either refused or decodes to exactly what it holds.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use outrigger::event::encode::Mode;
use outrigger::event::envelope::{Envelope, ExtensionValue, Payload};
use outrigger::event::sdk::to_event;
use outrigger::event::{Data, Message, Record};
use proptest::option;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::{DEFAULT_SOURCE, decode, encoder, minimal};

/// JSON text with the spellings that a parse tree would lose.
fn json_text() -> impl Strategy<Value = String> {
    let number = "-?(0|[1-9][0-9]{0,22})(\\.[0-9]{1,8})?([eE][+-]?[0-9]{1,2})?";
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        Just("12345678901234567890123".to_owned()),
        Just("0.10".to_owned()),
        Just("1e2".to_owned()),
        Just("\"\\u00e9\\/\\ud83d\\ude00\"".to_owned()),
        number,
        any::<String>().prop_map(|text| json!(text).to_string()),
    ];
    let space = prop_oneof![Just(""), Just(" "), Just("\n\t")];
    leaf.prop_recursive(3, 24, 4, move |inner| {
        let member = (any::<String>(), inner.clone());
        prop_oneof![
            (prop::collection::vec(inner, 0..4), space.clone()).prop_map(|(items, space)| {
                format!(
                    "[{space}{}{space}]",
                    items.join(&format!("{space},{space}"))
                )
            }),
            (prop::collection::vec(member, 0..4), space.clone()).prop_map(|(members, space)| {
                let members: Vec<_> = members
                    .iter()
                    .map(|(name, value)| format!("{}{space}:{space}{value}", json!(name)))
                    .collect();
                format!("{{{}}}", members.join(","))
            }),
        ]
    })
}

/// Mostly what a service would write, sometimes anything at all.
fn text(usual: &'static str) -> impl Strategy<Value = String> {
    prop_oneof![
        12 => usual,
        1 => "[ -~]{0,12}",
        1 => any::<String>(),
        1 => Just("é\"\\日本\u{1f600}".to_owned()),
    ]
}

fn data() -> impl Strategy<Value = Data> {
    prop_oneof![
        1 => Just(Data::None),
        4 => json_text().prop_map(|text| Data::Json(text.into())),
        2 => json_text().prop_map(|text| Data::Text(text.into())),
        2 => any::<String>().prop_map(|text| Data::Text(text.into())),
        1 => Just(Data::Text("x\u{0}\"\\é".repeat(20_000).into())),
        2 => prop::collection::vec(any::<u8>(), 0..64).prop_map(|b| Data::Binary(b.into())),
        2 => json_text().prop_map(|text| Data::Binary(text.into())),
    ]
}

fn content_type() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => prop::sample::select(vec![
            "application/json", "text/json", "application/vnd.x.v1+json",
            "Application/JSON; charset=utf-8", "application/problem+JSON ;charset=utf-8",
        ]).prop_map(str::to_owned),
        3 => prop::sample::select(vec!["text/plain", "application/xml", "application/protobuf"])
            .prop_map(str::to_owned),
        1 => "[a-z/+;= \"]{0,12}",
    ]
}

fn extensions() -> impl Strategy<Value = String> {
    let value = prop_oneof![
        6 => any::<i32>().prop_map(|value| json!(value)),
        6 => any::<bool>().prop_map(|value| json!(value)),
        12 => text("[a-z0-9-]{0,20}").prop_map(|value| json!(value)),
        3 => Just(Value::Null),
        1 => any::<i64>().prop_map(|value| json!(value)),
        1 => any::<f64>().prop_map(|value| json!(value)),
    ];
    let name = prop_oneof![
        20 => "[a-z][a-z0-9]{0,12}",
        2 => Just("partitionkey".to_owned()),
        2 => Just("correlationid".to_owned()),
        1 => any::<String>(),
    ];
    prop_oneof![
        12 => prop::collection::btree_map(name, value, 0..4)
            .prop_map(|members| json!(members).to_string()),
        1 => json_text(),
    ]
}

fn record() -> impl Strategy<Value = Record> {
    let attributes = (
        text("[a-z0-9-]{1,20}"),
        text("[a-z.]{1,20}"),
        option::of(text("(https://[a-z]{1,8}\\.io)?/[a-z0-9#?%&=]{0,8}")),
        option::of(text("[a-zA-Z ]{1,10}")),
        option::weighted(0.3, text("https://[a-z]{1,8}/[a-z.]{0,8}(#[a-z]{1,4})?")),
        option::of(content_type()),
        option::of(-62_200_000_000_i64..253_000_000_000),
    );
    let rest = (
        option::of(text("[a-z0-9-]{1,10}")),
        data(),
        option::of(extensions()),
        any::<u32>(),
    );
    (attributes, rest).prop_map(|(attributes, (key, data, extensions, nanos))| {
        let (id, event_type, source, subject, schema, content_type, second) = attributes;
        Record {
            seq: 7,
            keyed: key.is_some(),
            id,
            event_type,
            source,
            subject,
            key,
            data,
            content_type,
            schema,
            extensions,
            created_at: second.map(|second| {
                jiff::Timestamp::new(second, (nanos % 1_000_000_000) as i32).unwrap()
            }),
            // The usual template would refuse types that the envelope has to refuse.
            routing_key: Some("key".to_owned()),
            ..Record::default()
        }
    })
}

/// The JSON object that the row must become, built from the row alone.
fn expected(record: &Record, json_data: bool) -> Value {
    let mut object = Map::new();
    let mut put = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            object.insert(name.to_owned(), value);
        }
    };
    let text = |value: &Option<String>| value.as_ref().map(|value| json!(value));
    put("specversion", Some(json!("1.0")));
    put("id", Some(json!(record.id)));
    put("type", Some(json!(record.event_type)));
    put(
        "source",
        text(&record.source).or(Some(json!(DEFAULT_SOURCE))),
    );
    put("subject", text(&record.subject));
    put("dataschema", text(&record.schema));
    put("datacontenttype", text(&record.content_type));
    put("partitionkey", text(&record.key));
    put(
        "time",
        record.created_at.map(|at| {
            let at = jiff::Timestamp::from_microsecond(at.as_microsecond()).unwrap();
            json!(at.to_string())
        }),
    );
    if let Some(extensions) = &record.extensions {
        let members: Option<Map<String, Value>> = serde_json::from_str(extensions).unwrap();
        for (name, value) in members.unwrap_or_default() {
            put(&name, Some(value).filter(|value| !value.is_null()));
        }
    }
    match &record.data {
        Data::None => {}
        Data::Json(json) => put("data", Some(serde_json::from_slice(json).unwrap())),
        Data::Text(text) | Data::Binary(text) if json_data => {
            put("data", Some(serde_json::from_slice(text).unwrap()));
        }
        Data::Text(text) => put("data", Some(json!(std::str::from_utf8(text).unwrap()))),
        Data::Binary(bytes) => put("data_base64", Some(json!(STANDARD.encode(bytes)))),
    }
    Value::Object(object)
}

fn encode(mode: Mode, record: &Record) -> Option<Message> {
    let first = encoder(mode).encode([record]);
    let second = encoder(mode).encode([&record.clone()]);
    assert_eq!(first, second, "encoding is not deterministic");
    assert_eq!(first.messages.len() + first.rejected.len(), 1);
    first.messages.into_iter().next()
}

/// Whether the SDK recognises a JSON content type that we recognise; it overlooks letter case
/// and parameters after `+json`.
fn known_to_sdk(content_type: Option<&str>) -> bool {
    content_type.is_none_or(|value| {
        value.starts_with("application/json")
            || value.starts_with("text/json")
            || value.ends_with("+json")
    })
}

fn check(record: &Record) -> bool {
    let structured = encode(Mode::Structured, record);
    let binary = encode(Mode::Binary, record);
    let batch = encode(Mode::Batch, record);
    let envelope = Envelope::new(record, DEFAULT_SOURCE);
    let (Some(structured), Some(binary), Some(batch), Ok(envelope)) =
        (&structured, &binary, &batch, &envelope)
    else {
        assert!(structured.is_none() && binary.is_none() && batch.is_none() && envelope.is_err());
        return false;
    };

    let json_data = matches!(envelope.data, Payload::Json(_));
    let body = std::str::from_utf8(&structured.body).unwrap();
    let decoded: Value = serde_json::from_str(body).unwrap();
    assert_eq!(decoded, expected(record, json_data));
    if let (true, Data::Json(raw) | Data::Text(raw) | Data::Binary(raw)) = (json_data, &record.data)
    {
        let raw = std::str::from_utf8(raw).unwrap();
        assert!(
            body.ends_with(&format!(",\"data\":{raw}}}")),
            "JSON text changed: {body}"
        );
        assert_eq!(binary.body, raw);
    }
    assert_eq!(batch.body, format!("[{body}]"));
    assert_eq!(structured.id, record.id);
    let correlation = envelope
        .extension("correlationid")
        .map(ExtensionValue::to_text);
    assert_eq!(
        structured.correlation_id,
        correlation.filter(|id| !id.is_empty())
    );

    // RFC 3986 allows URIs that the SDK's URL type does not; it cannot judge those.
    let Ok(event) = to_event(record, DEFAULT_SOURCE) else {
        return true;
    };
    decode::assert_same(&decode::binary(binary, "ce-"), &event);
    let sdk_agrees_on_json = known_to_sdk(record.content_type.as_deref());
    let is_binary = matches!(record.data, Data::Binary(_));
    // The SDK turns base64 under a JSON content type into JSON, where it parses.
    if (json_data && sdk_agrees_on_json) || (!json_data && !is_binary) {
        assert_eq!(decode::structured(structured), event);
        assert_eq!(decode::batch(batch), [event]);
    }
    true
}

#[test]
fn any_row_is_refused_or_decodes_to_itself() {
    let cases = ProptestConfig::with_cases(3000);
    let accepted = std::cell::Cell::new(0_u32);
    proptest!(cases, |(record in record())| {
        accepted.set(accepted.get() + u32::from(check(&record)));
    });
    // A generator that only makes refused rows would prove nothing, and the reverse.
    assert!(
        (300..2900).contains(&accepted.get()),
        "{} accepted",
        accepted.get()
    );
}

#[test]
fn nasty_json_travels_untouched() {
    for raw in [
        "12345678901234567890123",
        "0.10",
        "1e2",
        "-0",
        r#"{"b":1,"a":{"z":0.10,"y":1E+2},"b":2}"#,
        r#"{ "k" : "\u0000 \ud800 \/ é" , "n":[1.0,100000000000000000000000.0] }"#,
        "null",
        "\"\"",
        " [\n1 ]",
    ] {
        for data in [Data::Json(raw.into()), Data::Text(raw.into())] {
            let record = Record {
                data,
                ..minimal("nasty")
            };
            let body = encode(Mode::Structured, &record).unwrap().body;
            let expected = format!(
                r#"{{"specversion":"1.0","id":"nasty","source":"{DEFAULT_SOURCE}","type":"io.cloudevents.test","data":{raw}}}"#
            );
            assert_eq!(body, expected);
            let binary = encode(Mode::Binary, &record).unwrap();
            assert_eq!(binary.body, raw);
            assert_eq!(binary.content_type.as_deref(), Some("application/json"));
        }
        // Bytes are JSON only if something says so.
        let record = Record {
            data: Data::Binary(raw.into()),
            content_type: Some("application/json".into()),
            ..minimal("nasty")
        };
        let body = encode(Mode::Structured, &record).unwrap().body;
        let expected = format!(
            r#"{{"specversion":"1.0","id":"nasty","source":"{DEFAULT_SOURCE}","type":"io.cloudevents.test","datacontenttype":"application/json","data":{raw}}}"#
        );
        assert_eq!(body, expected);
        assert_eq!(encode(Mode::Binary, &record).unwrap().body, raw);
    }
}

#[test]
fn extra_columns_do_not_touch_the_event() {
    let plain = minimal("x");
    let with_extra = Record {
        extra: vec![(Arc::from("service"), Some("orders".to_owned()))],
        ..plain.clone()
    };
    assert_eq!(
        encode(Mode::Structured, &plain),
        encode(Mode::Structured, &with_extra)
    );
}
