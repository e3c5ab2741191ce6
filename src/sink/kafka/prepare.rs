//! From [`Message`] to a Kafka record, with every limit checked *before* it is handed to librdkafka.
//!
//! The mapping is the CloudEvents Kafka binding: in binary mode each attribute is a header
//! `ce_<name>`, in UTF-8; the content type is the header `content-type`; the key is the event's
//! partition key. In the other modes one header is added, `id`: it spares a consumer that looks for
//! duplicates the reading of the body. The binding allows `ce_id` as well, but the official Python SDK takes any record
//! with a header `ce_…` for one in binary mode, and refuses it.
//!
//! No timestamp is set. Kafka deletes by it, so the time of an event that waited long for its
//! publication would shorten its life in the topic.

use rdkafka::message::{Header, OwnedHeaders};

use crate::error::{Reason, ReasonCode};
use crate::event::{HeaderValue, Message};

/// Kafka's own limit.
const TOPIC_MAX: usize = 249;

/// Prefix of attributes as the encoder writes them, which is that of HTTP.
const ENCODED: &str = "ce-";

/// Prefix of attributes in the Kafka binding.
const ATTRIBUTE: &str = "ce_";

/// The frame of a record and of the batch around it: at most this many bytes.
const BATCH_OVERHEAD: usize = 100;

/// The lengths before a header's name and value: at most this many bytes.
const HEADER_OVERHEAD: usize = 10;

/// The event's id beside a body that holds the event.
const ID: &str = "id";

const CONTENT_TYPE: &str = "content-type";

/// A record ready to be sent. Key and topic are the message's own.
pub(super) struct Prepared {
    /// Position in the batch.
    pub(super) index: usize,
    pub(super) headers: Option<OwnedHeaders>,
    /// No value at all, rather than an empty one: a tombstone in a compacted topic.
    pub(super) tombstone: bool,
}

/// Builds the record of `message`, or says why Kafka can never take it.
pub(super) fn prepare(
    index: usize,
    message: &Message,
    max_message_size: usize,
) -> Result<Prepared, Reason> {
    check_topic(&message.destination)?;
    let binary = message
        .headers
        .iter()
        .any(|(name, _)| name == "ce-specversion");
    let mut size =
        BATCH_OVERHEAD + message.key.as_ref().map_or(0, String::len) + message.body.len();
    let mut headers = Some(OwnedHeaders::new_with_capacity(message.headers.len() + 2));
    let mut add = |name: &str, value: &str| {
        size += name.len() + value.len() + HEADER_OVERHEAD;
        let header = Header {
            key: name,
            value: Some(value),
        };
        headers = headers.take().map(|headers| headers.insert(header));
    };
    if let Some(content_type) = &message.content_type {
        add(CONTENT_TYPE, content_type);
    }
    if !binary && message.headers.iter().all(|(name, _)| name != ID) {
        add(ID, &message.id);
    }
    for (name, value) in &message.headers {
        let number;
        let text = match value {
            HeaderValue::Text(text) => text.as_str(),
            HeaderValue::Bool(true) => "true",
            HeaderValue::Bool(false) => "false",
            HeaderValue::Int(value) => {
                number = value.to_string();
                number.as_str()
            }
        };
        match name.strip_prefix(ENCODED) {
            Some(attribute) if binary => add(&format!("{ATTRIBUTE}{attribute}"), text),
            _ => {
                check_header(name)?;
                add(name, text);
            }
        }
    }
    if size > max_message_size {
        return Err(Reason::new(
            ReasonCode::TooLarge,
            format!(
                "the record has {size} bytes with its headers, more than \
                 OUTRIGGER_KAFKA_MAX_MESSAGE_SIZE allows ({max_message_size} bytes); raise it together with \
                 the topic's `max.message.bytes`, or publish a reference instead of the data"
            ),
        ));
    }
    Ok(Prepared {
        index,
        headers,
        tombstone: binary && message.body.is_empty() && message.content_type.is_none(),
    })
}

fn check_topic(topic: &str) -> Result<(), Reason> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let fault = if topic.is_empty() {
        "is empty".to_owned()
    } else if topic.len() > TOPIC_MAX {
        format!("has {} bytes, more than Kafka's {TOPIC_MAX}", topic.len())
    } else if topic == "." || topic == ".." || !topic.bytes().all(legal) {
        "may have only ASCII letters, digits, `.`, `_` and `-`".to_owned()
    } else {
        return Ok(());
    };
    let shown: String = topic.chars().take(80).collect();
    Err(Reason::new(
        ReasonCode::InvalidRoute,
        format!(
            "the topic {shown:?} {fault}; correct the row's destination or OUTRIGGER_ROUTE_DESTINATION"
        ),
    ))
}

/// A row's own header must not pass for something the binding writes.
fn check_header(name: &str) -> Result<(), Reason> {
    let is_attribute = |name: &str| {
        let start = name.as_bytes().get(..ATTRIBUTE.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(ATTRIBUTE.as_bytes()))
    };
    let fault = if name.contains('\0') {
        "has a NUL character in its name, which Kafka clients cannot read"
    } else if name.eq_ignore_ascii_case(CONTENT_TYPE) {
        "is the event's content type in Kafka; use the column `content_type`, or another name"
    } else if is_attribute(name) {
        "is spelled like a CloudEvents attribute header; use `extensions` for event attributes, or \
         another name"
    } else {
        return Ok(());
    };
    let shown: String = name.chars().take(80).collect();
    Err(Reason::new(
        ReasonCode::InvalidHeader,
        format!("header {shown:?} {fault}"),
    ))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use bytes::Bytes;
    use rdkafka::message::Headers;

    use super::*;

    fn message() -> Message {
        Message {
            seqs: vec![1],
            destination: "orders".into(),
            routing_key: "ignored".into(),
            body: Bytes::from_static(b"{}"),
            content_type: Some("application/json".into()),
            headers: vec![("x-try".into(), HeaderValue::Int(-2))],
            id: "id-1".into(),
            event_type: "t".into(),
            time: None,
            expires_in: None,
            correlation_id: None,
            source: "/s".into(),
            key: Some("k".into()),
        }
    }

    fn shown(prepared: &Prepared) -> Vec<(String, String)> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let headers = prepared.headers.as_ref().unwrap().iter();
        headers
            .map(|header| (header.key.to_owned(), text(header.value.unwrap())))
            .collect()
    }

    #[test]
    fn structured_events_name_their_id() {
        let prepared = prepare(3, &message(), 1_000).unwrap();
        assert_eq!(prepared.index, 3);
        let expected = [
            ("content-type", "application/json"),
            ("id", "id-1"),
            ("x-try", "-2"),
        ];
        assert_eq!(
            shown(&prepared),
            expected.map(|(name, value)| (name.to_owned(), value.to_owned()))
        );
        assert!(!prepared.tombstone);
        let mut own = message();
        own.headers.push(("id".into(), HeaderValue::Int(7)));
        let ids = shown(&prepare(0, &own, 1_000).unwrap());
        let ids: Vec<_> = ids.iter().filter(|(name, _)| name == "id").collect();
        assert_eq!(ids, [&("id".to_owned(), "7".to_owned())]);
    }

    #[test]
    fn attributes_are_spelled_as_in_kafka() {
        let mut binary = message();
        binary.headers = vec![
            ("ce-specversion".into(), HeaderValue::Text("1.0".into())),
            ("ce-subject".into(), HeaderValue::Text("ü %".into())),
            ("x".into(), HeaderValue::Bool(true)),
        ];
        let expected = [
            ("content-type", "application/json"),
            ("ce_specversion", "1.0"),
            ("ce_subject", "ü %"),
            ("x", "true"),
        ];
        assert_eq!(
            shown(&prepare(0, &binary, 1_000).unwrap()),
            expected.map(|(name, value)| (name.to_owned(), value.to_owned()))
        );
        // An empty body of a named type is a value; no data at all is a tombstone.
        binary.body = Bytes::new();
        assert!(!prepare(0, &binary, 1_000).unwrap().tombstone);
        binary.content_type = None;
        assert!(prepare(0, &binary, 1_000).unwrap().tombstone);
    }

    #[test]
    fn what_kafka_cannot_carry_is_refused() {
        let changed = |change: &dyn Fn(&mut Message)| {
            let mut message = message();
            change(&mut message);
            prepare(0, &message, 1_000).map(|_| ()).unwrap_err().code
        };
        for topic in ["", ".", "..", "a b", "ü", "a\0b", &"x".repeat(250)] {
            let code = changed(&|m| m.destination = topic.to_owned());
            assert_eq!(code, ReasonCode::InvalidRoute, "{topic:?}");
        }
        for name in ["a\0b", "Content-Type", "ce_id", "CE_ID", "ce_other"] {
            let code = changed(&|m| m.headers = vec![(name.into(), HeaderValue::Int(1))]);
            assert_eq!(code, ReasonCode::InvalidHeader, "{name:?}");
        }
        let code = changed(&|m| {
            let version = HeaderValue::Text("1.0".into());
            m.headers = vec![
                ("ce-specversion".into(), version),
                ("Ce_custom".into(), HeaderValue::Int(1)),
            ];
        });
        assert_eq!(code, ReasonCode::InvalidHeader);
        for big in [
            changed(&|m| m.body = vec![b'x'; 900].into()),
            changed(&|m| m.key = Some("x".repeat(1_000))),
            changed(&|m| m.headers = vec![("x".repeat(1_000), HeaderValue::Int(1))]),
        ] {
            assert_eq!(big, ReasonCode::TooLarge);
        }
        let mut fine = message();
        fine.destination = "x".repeat(249);
        fine.headers = vec![("x-ce_other".into(), HeaderValue::Int(1))];
        assert!(prepare(0, &fine, 1_000).is_ok());
    }
}
