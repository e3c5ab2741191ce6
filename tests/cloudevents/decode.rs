//! Reading messages with the CloudEvents SDK, which shares no code with the encoder.

use cloudevents::event::{ExtensionValue, SpecVersion};
use cloudevents::message::{
    BinaryDeserializer, BinarySerializer, MessageAttributeValue, Result as SdkResult,
};
use cloudevents::{AttributesReader, Data as SdkData, Event};
use outrigger::event::encode::{BATCH, Encoded, STRUCTURED};
use outrigger::event::{HeaderValue, Message};

/// The message of an encoding that must have gone well.
pub(crate) fn only(encoded: Encoded) -> Message {
    assert_eq!(encoded.rejected, []);
    assert_eq!(encoded.messages.len(), 1);
    encoded.messages.into_iter().next().unwrap()
}

pub(crate) fn structured(message: &Message) -> Event {
    assert_eq!(message.content_type.as_deref(), Some(STRUCTURED));
    serde_json::from_slice(&message.body).unwrap()
}

pub(crate) fn batch(message: &Message) -> Vec<Event> {
    assert_eq!(message.content_type.as_deref(), Some(BATCH));
    serde_json::from_slice(&message.body).unwrap()
}

pub(crate) fn binary(message: &Message, prefix: &'static str) -> Event {
    Binary { message, prefix }.into_event().unwrap()
}

struct Binary<'a> {
    message: &'a Message,
    prefix: &'static str,
}

impl BinaryDeserializer for Binary<'_> {
    fn deserialize_binary<R: Sized, V: BinarySerializer<R>>(self, visitor: V) -> SdkResult<R> {
        let mut visitor = visitor.set_spec_version(SpecVersion::V10)?;
        if let Some(content_type) = &self.message.content_type {
            let value = MessageAttributeValue::String(content_type.clone());
            visitor = visitor.set_attribute("datacontenttype", value)?;
        }
        for (name, value) in &self.message.headers {
            let Some(name) = name.strip_prefix(self.prefix) else {
                continue;
            };
            let HeaderValue::Text(text) = value else {
                panic!("attribute {name} is not in its string form: {value:?}");
            };
            let value = MessageAttributeValue::String(text.clone());
            visitor = match name {
                "specversion" => {
                    assert_eq!(text, "1.0");
                    visitor
                }
                "id" | "source" | "type" | "subject" | "time" | "dataschema" => {
                    visitor.set_attribute(name, value)?
                }
                "datacontenttype" => panic!("the content type must not be a header"),
                extension => visitor.set_extension(extension, value)?,
            };
        }
        match self.message.body.is_empty() {
            true => visitor.end(),
            false => visitor.end_with_data(self.message.body.to_vec()),
        }
    }
}

/// Compares a binary event with another, allowing for what binary mode does not carry: the types
/// of extensions, whether an empty payload is there, and an absent JSON content type.
pub(crate) fn assert_same(binary: &Event, other: &Event) {
    assert_eq!(binary.id(), other.id());
    assert_eq!(binary.source(), other.source());
    assert_eq!(binary.ty(), other.ty());
    assert_eq!(binary.subject(), other.subject());
    assert_eq!(binary.time(), other.time());
    assert_eq!(binary.dataschema(), other.dataschema());
    if let Some(content_type) = other.datacontenttype() {
        assert_eq!(binary.datacontenttype(), Some(content_type));
    } else {
        assert!(matches!(
            binary.datacontenttype(),
            None | Some("application/json")
        ));
    }
    let extensions = |event: &Event| {
        let mut all: Vec<(String, String)> = event
            .iter_extensions()
            .map(|(name, value)| {
                let text = match value {
                    ExtensionValue::String(text) => text.clone(),
                    ExtensionValue::Boolean(value) => value.to_string(),
                    ExtensionValue::Integer(value) => value.to_string(),
                };
                (name.to_owned(), text)
            })
            .collect();
        all.sort();
        all
    };
    assert_eq!(extensions(binary), extensions(other));
    match (binary.data(), other.data()) {
        (None, None) => {}
        (None, Some(SdkData::String(text))) => assert_eq!(text, ""),
        (None, Some(SdkData::Binary(bytes))) => assert!(bytes.is_empty()),
        (Some(SdkData::Binary(body)), Some(SdkData::String(text))) => {
            assert_eq!(body, text.as_bytes());
        }
        (Some(SdkData::Binary(body)), Some(SdkData::Binary(bytes))) => assert_eq!(body, bytes),
        (Some(SdkData::Binary(body)), Some(SdkData::Json(json))) => {
            assert_eq!(
                &serde_json::from_slice::<serde_json::Value>(body).unwrap(),
                json
            );
        }
        (binary, other) => panic!("payloads differ in kind: {binary:?}, {other:?}"),
    }
}
