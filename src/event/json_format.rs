//! The CloudEvents JSON format, written in one fixed order so that equal rows give equal bytes.
//!
//! Attributes come first, extensions sorted by name, the payload last. JSON payloads are
//! copied as they are: no number is rounded, no key moves.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::envelope::{Envelope, ExtensionValue, Payload};

/// Appends `event` as one JSON object.
pub(super) fn write_event(out: &mut Vec<u8>, event: &Envelope<'_>) {
    out.reserve(size_hint(event));
    out.extend_from_slice(br#"{"specversion":"1.0","id":"#);
    write_string(out, event.id);
    write_member(out, "source", event.source);
    write_member(out, "type", event.event_type);
    let optional = [
        ("subject", event.subject),
        ("time", event.time.as_deref()),
        ("datacontenttype", event.content_type),
        ("dataschema", event.schema),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            write_member(out, name, value);
        }
    }
    for (name, value) in &event.extensions {
        write_name(out, name);
        match value {
            ExtensionValue::Text(text) => write_string(out, text),
            ExtensionValue::Bool(true) => out.extend_from_slice(b"true"),
            ExtensionValue::Bool(false) => out.extend_from_slice(b"false"),
            ExtensionValue::Int(value) => out.extend_from_slice(value.to_string().as_bytes()),
        }
    }
    match &event.data {
        Payload::None => {}
        Payload::Json(json) => {
            write_name(out, "data");
            out.extend_from_slice(json.as_bytes());
        }
        Payload::Text(text) => write_member(out, "data", text),
        Payload::Binary(bytes) => {
            write_name(out, "data_base64");
            write_base64(out, bytes);
        }
    }
    out.push(b'}');
}

/// Room for everything but escapes, so that the buffer is allocated once.
fn size_hint(event: &Envelope<'_>) -> usize {
    /// Member names, quotes and punctuation of all attributes.
    const FRAME: usize = 160;
    let text = |value: Option<&str>| value.map_or(0, str::len);
    let extensions: usize = event
        .extensions
        .iter()
        .map(|(name, value)| {
            name.len()
                + match value {
                    ExtensionValue::Text(text) => text.len() + 6,
                    ExtensionValue::Bool(_) | ExtensionValue::Int(_) => 16,
                }
        })
        .sum();
    let data = match &event.data {
        Payload::None => 0,
        Payload::Json(json) => json.len(),
        Payload::Text(text) => text.len(),
        Payload::Binary(bytes) => bytes.len().div_ceil(3) * 4,
    };
    FRAME
        + event.id.len()
        + event.source.len()
        + event.event_type.len()
        + text(event.subject)
        + text(event.time.as_deref())
        + text(event.content_type)
        + text(event.schema)
        + extensions
        + data
}

fn write_member(out: &mut Vec<u8>, name: &str, value: &str) {
    write_name(out, name);
    write_string(out, value);
}

/// Writes the comma before a further member and its name. Names need no escapes: they are ours, or
/// extension names, which are checked to be letters and digits.
fn write_name(out: &mut Vec<u8>, name: &str) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
}

fn write_string(out: &mut Vec<u8>, text: &str) {
    // Serialising a string fails only when the writer does, and a Vec does not.
    #[allow(clippy::expect_used)]
    serde_json::to_writer(out, text).expect("a Vec takes every write");
}

fn write_base64(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'"');
    let start = out.len();
    out.resize(start + bytes.len().div_ceil(3) * 4, 0);
    // The slice was just made as long as padded base64 is: 4 bytes for every 3 begun.
    #[allow(clippy::expect_used)]
    STANDARD
        .encode_slice(bytes, &mut out[start..])
        .expect("the buffer has the exact size");
    out.push(b'"');
}
