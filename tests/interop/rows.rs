//! The rows that are published, and the events that they are.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// By the names of the columns. Texts are what a header can hardly hold; numbers are more than a double can.
pub(crate) const ROWS: &str = r#"[
    {"id": "00000000-0000-4000-8000-000000000001", "type": "bare"},
    {"id": "00000000-0000-4000-8000-000000000002", "type": "com.shop.order.placed.v1", "source": "https://shop.test/orders?a=b#c",
     "subject": "a \"b\" 100% Zoë € 🐇 %41,;=", "key": "order-42", "data": {"n": 12345678901234567890, "x": 0.10, "e": 1e3, "s": "Zoë 🐇 <&>\u2028", "a": [true, null]},
     "content_type": "application/json", "schema": "https://shop.test/order.json#/v1", "created_at": "2026-01-02T03:04:05.678901Z",
     "extensions": {"text": "Zoë", "yes": true, "no": false, "least": -2147483648, "most": 2147483647, "url": "https://shop.test/?a=b", "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}},
    {"id": "00000000-0000-4000-8000-000000000003", "type": "json.typeless", "data": {"a": 1}},
    {"id": "00000000-0000-4000-8000-000000000004", "type": "json.array", "data": [1, "two"], "content_type": "application/json"},
    {"id": "00000000-0000-4000-8000-000000000005", "type": "json.text", "data": "Zoë", "content_type": "application/json"},
    {"id": "00000000-0000-4000-8000-000000000006", "type": "json.number", "data": 17, "content_type": "application/json"},
    {"id": "00000000-0000-4000-8000-000000000007", "type": "json.boolean", "data": true, "content_type": "application/json"},
    {"id": "00000000-0000-4000-8000-000000000008", "type": "json.suffix", "data": {"a": 1}, "content_type": "application/vnd.shop.order.v1+json"},
    {"id": "00000000-0000-4000-8000-000000000009", "type": "json.charset", "data": {"a": "ü"}, "content_type": "application/json; charset=utf-8"},
    {"id": "00000000-0000-4000-8000-00000000000a", "type": "json.bytes", "data_binary": "\\x7b226122203a2022c3bc227d", "content_type": "application/json"},
    {"id": "00000000-0000-4000-8000-00000000000b", "type": "text.plain", "data": "Zoë \"🐇\" <a>\n100%", "content_type": "text/plain; charset=utf-8"},
    {"id": "00000000-0000-4000-8000-00000000000c", "type": "text.xml", "data": "<a b='c'>ü</a>", "content_type": "application/xml"},
    {"id": "00000000-0000-4000-8000-00000000000d", "type": "bytes.typed", "data_binary": "\\x00ff1f8b0d0a80", "content_type": "application/octet-stream"},
    {"id": "00000000-0000-4000-8000-00000000000e", "type": "bytes.typeless", "data_binary": "\\x00ff1f8b0d0a80"},
    {"id": "00000000-0000-4000-8000-00000000000f", "type": "bytes.protobuf", "data_binary": "\\x0a0361c3a9ff", "content_type": "application/protobuf; proto=shop.Order", "schema": "https://shop.test/order.proto"}
]"#;

/// Puts them into the table. A row without a time gets none.
pub(crate) fn insert() -> String {
    let columns = "id, type, source, subject, key, data, data_binary, content_type, schema, extensions, created_at";
    format!(
        "alter table outbox alter column created_at drop not null;
         insert into outbox ({columns}) select {columns} from jsonb_populate_recordset(null::outbox, $rows${ROWS}$rows$);
         insert into outbox (id, type, data, content_type, created_at, headers, extensions, expires_at)
         values ('00000000-0000-4000-8000-000000000010', 'json.null', 'null', 'application/json', null, 'null', 'null',
                 '2126-01-02T03:04:05Z')"
    )
}

/// The source of rows that name none.
pub(crate) const SOURCE: &str = "/services/orders";

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Payload {
    Nothing,
    Json(Value),
    Text(String),
    Bytes(Vec<u8>),
}

/// An event, its attributes in their canonical string forms.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) attributes: BTreeMap<String, String>,
    pub(crate) payload: Payload,
}

impl Event {
    pub(crate) fn kind(&self) -> &str {
        &self.attributes["type"]
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The events, in their order.
pub(crate) fn events() -> Vec<Event> {
    let mut rows: Vec<BTreeMap<String, Value>> = serde_json::from_str(ROWS).unwrap();
    let null = r#"{"id": "00000000-0000-4000-8000-000000000010", "type": "json.null", "data": null,
        "content_type": "application/json", "expires_at": "2126-01-02T03:04:05Z"}"#;
    rows.push(serde_json::from_str(null).unwrap());
    rows.into_iter().zip(1..).map(event).collect()
}

fn event((mut row, seq): (BTreeMap<String, Value>, u64)) -> Event {
    let content_type = row.get("content_type").map(text).unwrap_or_default();
    let payload = match (row.remove("data"), row.remove("data_binary")) {
        (None | Some(Value::Null), None) => Payload::Nothing,
        (Some(Value::String(text)), _) if !content_type.contains("json") => Payload::Text(text),
        (Some(json), _) => Payload::Json(json),
        (None, hex) => {
            let hex = text(&hex.unwrap());
            let digits = hex.trim_start_matches("\\x");
            let pairs = (0..digits.len()).step_by(2);
            let bytes: Vec<u8> = pairs
                .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap())
                .collect();
            match content_type.contains("json") {
                true => Payload::Json(serde_json::from_slice(&bytes).unwrap()),
                false => Payload::Bytes(bytes),
            }
        }
    };
    let mut attributes = BTreeMap::from([
        ("specversion".to_owned(), "1.0".to_owned()),
        ("source".to_owned(), SOURCE.to_owned()),
        ("sequence".to_owned(), format!("{seq:019}")),
    ]);
    if let Some(Value::Object(extensions)) = row.remove("extensions") {
        attributes.extend(
            extensions
                .iter()
                .map(|(name, value)| (name.clone(), text(value))),
        );
    }
    for (column, value) in row {
        let name = match column.as_str() {
            "content_type" => "datacontenttype",
            "created_at" => "time",
            "expires_at" => "expirytime",
            "key" => "partitionkey",
            "schema" => "dataschema",
            same => same,
        };
        attributes.insert(name.to_owned(), text(&value));
    }
    Event {
        attributes,
        payload,
    }
}

/// What an SDK made of an event, as its reader writes it.
pub(crate) fn read(shown: &Value) -> Event {
    let attributes = shown["attributes"].as_object().unwrap().iter();
    let payload = match (&shown["data"], &shown["bytes"]) {
        (Value::Null, Value::Null) => Payload::Nothing,
        (Value::Null, bytes) => Payload::Bytes(STANDARD.decode(text(bytes)).unwrap()),
        (data, _) => Payload::Json(data.clone()),
    };
    Event {
        attributes: attributes
            .map(|(name, value)| (name.clone(), text(value)))
            .collect(),
        payload,
    }
}
