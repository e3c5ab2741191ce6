//! Rows as [`cloudevents::Event`], for programs that embed this crate and for tests.
//!
//! Not used for publishing: the SDK holds JSON payloads as parsed trees (large numbers are
//! rounded) and normalises URLs.

use std::time::SystemTime;

use cloudevents::event::ExtensionValue as SdkExtension;
use cloudevents::{AttributesWriter, Data as SdkData, Event};
use jiff::Timestamp;
use url::Url;

use super::Record;
use super::envelope::{Envelope, ExtensionValue, Payload};
use crate::error::{Reason, ReasonCode};

/// Validates a row and gives it as the SDK's event type. `default_source` stands in for a null
/// `source`.
pub fn to_event(record: &Record, default_source: &str) -> Result<Event, Reason> {
    let envelope = Envelope::new(record, default_source)?;
    let refuse = |what: &str| Reason::new(ReasonCode::InvalidEvent, what);
    let schema = envelope
        .schema
        .map(Url::parse)
        .transpose()
        .map_err(|_| refuse("`dataschema` is not a URL that the CloudEvents SDK can hold"))?;

    // The default event invents an id, a source and a time; all are set below.
    let mut event = Event::default();
    event.set_id(envelope.id);
    event.set_source(envelope.source);
    event.set_type(envelope.event_type);
    event.set_subject(envelope.subject);
    // From the attribute, not the row, for the precision that is published.
    let time = envelope.time.as_deref().map(str::parse::<Timestamp>);
    let time = time
        .transpose()
        .map_err(|_| refuse("`time` is not a time that the CloudEvents SDK can hold"))?;
    event.set_time(time.map(SystemTime::from));
    event.set_datacontenttype(envelope.content_type);
    event.set_dataschema(schema);
    for (name, value) in &envelope.extensions {
        let value = match value {
            ExtensionValue::Text(text) => SdkExtension::String(text.to_string()),
            ExtensionValue::Bool(value) => SdkExtension::Boolean(*value),
            ExtensionValue::Int(value) => SdkExtension::Integer((*value).into()),
        };
        event.set_extension(name, value);
    }
    let data = match envelope.data {
        Payload::None => None,
        Payload::Json(json) => {
            Some(SdkData::Json(serde_json::from_str(json).map_err(|_| {
                refuse("`data` is JSON that the CloudEvents SDK cannot hold")
            })?))
        }
        Payload::Text(text) => Some(SdkData::String(text.into_owned())),
        Payload::Binary(bytes) => Some(SdkData::Binary(bytes.to_vec())),
    };
    if let Some(data) = data {
        event.set_data_unchecked(data);
    }
    Ok(event)
}
