//! Any row is refused, or every mode yields a message that others can read, and that says what the row says.

use arbitrary::Arbitrary;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use outrigger::error::{Reason, ReasonCode};
use outrigger::event::encode::{BatchLimits, Encoder, EncoderConfig, HeaderPrefix, Mode};
use outrigger::event::envelope::Fill;
use outrigger::event::route::{DeadLetterRouter, Router};
use outrigger::event::{Data, Explained, Message, Record};
use serde_json::Value;

/// A payload, as the types of columns have it.
#[derive(Debug, Clone, Arbitrary)]
pub enum Payload {
    /// Neither column is set.
    None,
    /// From `json` or `jsonb`.
    Json(String),
    /// From `text`.
    Text(String),
    /// From `bytea`.
    Binary(Vec<u8>),
}

/// What a writer may put into a row.
#[derive(Debug, Clone, Arbitrary)]
pub struct Input {
    id: String,
    event_type: String,
    source: Option<String>,
    subject: Option<String>,
    key: Option<String>,
    payload: Payload,
    content_type: Option<String>,
    schema: Option<String>,
    extensions: Option<String>,
    headers: Option<String>,
    destination: Option<String>,
    routing_key: Option<String>,
    microsecond: Option<i64>,
}

impl Input {
    /// `None` if the database could not hold such a row.
    fn into_record(self) -> Option<Record> {
        let data = match self.payload {
            Payload::None => Data::None,
            Payload::Json(text) => {
                serde_json::from_str::<Value>(&text).ok()?;
                Data::Json(text.into())
            }
            Payload::Text(text) => Data::Text(text.into()),
            Payload::Binary(bytes) => Data::Binary(bytes.into()),
        };
        let created_at = match self.microsecond {
            Some(at) => Some(jiff::Timestamp::from_microsecond(at).ok()?),
            None => None,
        };
        Some(Record {
            seq: 1,
            keyed: self.key.is_some(),
            id: self.id,
            event_type: self.event_type,
            source: self.source,
            subject: self.subject,
            key: self.key,
            data,
            content_type: self.content_type,
            schema: self.schema,
            extensions: self.extensions,
            headers: self.headers,
            destination: self.destination,
            routing_key: self.routing_key,
            created_at,
            ..Record::default()
        })
    }
}

fn encode(mode: Mode, record: &Record) -> Option<Message> {
    let encoder = Encoder::new(EncoderConfig {
        source: "/fuzz".to_owned(),
        fill: Fill::default(),
        mode,
        header_prefix: HeaderPrefix::Ce,
        router: Router::new("events", "key").expect("the templates are constant"),
        batch: BatchLimits::default(),
        explained: Explained::InAttributes,
    })
    .expect("the source is valid");
    let encoded = encoder.encode([record]);
    assert_eq!(encoded, encoder.encode([record]), "not deterministic");
    assert_eq!(encoded.messages.len() + encoded.rejected.len(), 1);

    let router = DeadLetterRouter::new("dlx", "dead").expect("the templates are constant");
    let reason = Reason::new(ReasonCode::Nack, "full");
    let dead = encoder.dead_letter(record, &router, &reason, 1);
    // A row's own route may be what was refused; dead letters go elsewhere.
    assert!(dead.is_ok() || !encoded.rejected.is_empty());
    if mode == Mode::Structured
        && let Ok(dead) = dead
        && let Ok(event) = serde_json::from_slice::<Value>(&dead.body)
    {
        // Whatever attributes the row brings along.
        assert_eq!(event["outriggerreason"], "nack");
    }

    let message = encoded.messages.into_iter().next()?;
    let mut names: Vec<_> = message.headers.iter().map(|(name, _)| name).collect();
    names.sort();
    assert!(
        names.windows(2).all(|pair| pair[0] != pair[1]),
        "a header twice"
    );
    Some(message)
}

/// See the module.
pub fn check(input: Input) {
    let Some(record) = input.into_record() else {
        return;
    };
    let binary = encode(Mode::Binary, &record);
    let Some(structured) = encode(Mode::Structured, &record) else {
        assert!(binary.is_none());
        assert!(encode(Mode::Batch, &record).is_none());
        return;
    };
    let binary = binary.expect("the modes accept the same rows");
    let batch = encode(Mode::Batch, &record).expect("the modes accept the same rows");
    for message in [&structured, &binary, &batch] {
        let route = [&message.destination, &message.routing_key];
        assert!(!route.iter().any(|text| text.contains(char::is_control)));
    }

    let body = std::str::from_utf8(&structured.body).expect("JSON is UTF-8");
    assert_eq!(batch.body, format!("[{body}]"));
    let Ok(event) = serde_json::from_str::<Value>(body) else {
        // Columns of text and bytes may hold JSON that serde_json checks but cannot hold in a tree.
        assert!(matches!(record.data, Data::Text(_) | Data::Binary(_)));
        return;
    };
    decodes_to(&event, &record);
    if let Data::Binary(bytes) = &record.data {
        assert_eq!(binary.body, bytes);
    }
    // The SDK's decoder may refuse what its types cannot hold, but must not panic.
    let _ = serde_json::from_str::<cloudevents::Event>(body);
    let _ = outrigger::event::sdk::to_event(&record, "/fuzz");
}

/// Insists that the event says what the row says.
fn decodes_to(event: &Value, record: &Record) {
    let text = |value: &Option<String>| value.clone().map_or(Value::Null, Value::String);
    assert_eq!(event["specversion"], "1.0");
    assert_eq!(event["id"], *record.id);
    assert_eq!(event["type"], *record.event_type);
    assert_eq!(
        event["source"],
        *record.source.as_deref().unwrap_or("/fuzz")
    );
    assert_eq!(event["subject"], text(&record.subject));
    assert_eq!(event["datacontenttype"], text(&record.content_type));
    assert_eq!(event["dataschema"], text(&record.schema));
    if let Some(key) = &record.key {
        assert_eq!(event["partitionkey"], **key);
    }
    match &record.data {
        Data::None => {
            assert!(event.get("data").is_none() && event.get("data_base64").is_none());
        }
        Data::Json(json) => {
            let value: Value = serde_json::from_slice(json).expect("checked above");
            assert_eq!(event["data"], value);
        }
        // JSON if the content type says so, else a string.
        Data::Text(text) => {
            let same = event["data"].as_str().map(str::as_bytes) == Some(text);
            assert!(same || serde_json::from_slice(text).ok().as_ref() == event.get("data"));
        }
        // JSON if the content type says so and it is, else base64.
        Data::Binary(bytes) => match event.get("data") {
            None => assert_eq!(event["data_base64"], STANDARD.encode(bytes)),
            Some(value) => assert_eq!(
                serde_json::from_slice::<Value>(bytes).ok().as_ref(),
                Some(value)
            ),
        },
    }
}
