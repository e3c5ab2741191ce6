//! Rows to messages: structured, binary and batched CloudEvents.
//!
//! Encoding is a pure function of the rows and the configuration: the same row gives the same
//! bytes every time, in every replica, so a duplicate is byte-identical.

use std::collections::HashSet;

use bytes::Bytes;

use super::batch::Batcher;
use super::envelope::{self, Envelope, Fill, Payload};
use super::headers::{Headers, attribute_headers, parse_headers};
use super::json_format::write_event;
use super::message::Message;
use super::route::Router;
use super::{Data, Explained, Record};
use crate::error::Reason;

/// Content type of a structured message. The charset is in lower case: the official JavaScript SDK compares the whole
/// text.
pub const STRUCTURED: &str = "application/cloudevents+json; charset=utf-8";
/// Content type of a batch.
pub const BATCH: &str = "application/cloudevents-batch+json; charset=utf-8";

/// How an event becomes a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// One JSON document per event, attributes and payload together.
    #[default]
    Structured,
    /// The payload is the body, the attributes are headers.
    Binary,
    /// Several events of one route in one JSON array.
    Batch,
}

/// What precedes an attribute's name in binary mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HeaderPrefix {
    /// `ce-`: the spelling of Knative's RabbitMQ binding and of the Python SDK.
    #[default]
    Ce,
    /// `cloudEvents:`: the AMQP 1.0 binding up to version 1.0.2.
    Colon,
    /// `cloudEvents_`: the AMQP 1.0 binding, as it is now preferred.
    Underscore,
}

impl HeaderPrefix {
    /// Every prefix.
    pub const ALL: [HeaderPrefix; 3] = [Self::Ce, Self::Colon, Self::Underscore];

    /// The prefix as written.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ce => "ce-",
            Self::Colon => "cloudEvents:",
            Self::Underscore => "cloudEvents_",
        }
    }
}

/// Bounds of one batch message. A single event larger than `bytes` still travels, alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// Most events in a message. Zero counts as one.
    pub events: usize,
    /// Most bytes in a message body.
    pub bytes: usize,
}

impl Default for BatchLimits {
    fn default() -> Self {
        Self {
            events: 100,
            bytes: 256 * 1024,
        }
    }
}

/// What an [`Encoder`] is made of.
#[derive(Debug)]
pub struct EncoderConfig {
    /// The event source of rows that have none.
    pub source: String,
    /// What else rows are given that they do not have.
    pub fill: Fill,
    /// How an event becomes a message.
    pub mode: Mode,
    /// Prefix of attribute headers; used in binary mode.
    pub header_prefix: HeaderPrefix,
    /// Where messages go.
    pub router: Router,
    /// Bounds of a batch message; used in batch mode.
    pub batch: BatchLimits,
    /// Where a dead letter says why it is one.
    pub explained: Explained,
}

/// What is configured for every event cannot be used: the setting, and a sentence without its subject.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} {1}")]
pub struct UnusableSetting(&'static str, &'static str);

/// What became of the rows of one [`Encoder::encode`] call; each row is in exactly one place.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Encoded {
    /// Messages, in the order in which they must be published.
    pub messages: Vec<Message>,
    /// Rows that can never be published as they are, with the reason.
    pub rejected: Vec<(i64, Reason)>,
    /// Rows to hand in again after this call's messages are published: their event id is already
    /// among them (message ids are unique within a publish call), or they follow such a row of
    /// the same key.
    pub deferred: Vec<i64>,
}

/// Turns rows into messages.
#[derive(Debug)]
pub struct Encoder {
    source: String,
    fill: Fill,
    pub(super) mode: Mode,
    header_prefix: HeaderPrefix,
    pub(super) router: Router,
    batch: BatchLimits,
    pub(super) explained: Explained,
}

impl Encoder {
    /// Fails when the configured source is not a non-empty URI-reference, or the content type is no media type.
    pub fn new(config: EncoderConfig) -> Result<Self, UnusableSetting> {
        envelope::check_source(&config.source)
            .map_err(|rule| UnusableSetting("OUTRIGGER_EVENT_SOURCE", rule))?;
        let content_type = config.fill.content_type.as_deref();
        content_type
            .map_or(Ok(()), envelope::check_content_type)
            .map_err(|rule| UnusableSetting("OUTRIGGER_EVENT_CONTENT_TYPE", rule))?;
        Ok(Self {
            router: config
                .router
                .with_source(&config.source)
                .with_content_type(config.fill.content_type.as_deref()),
            source: config.source,
            fill: config.fill,
            mode: config.mode,
            header_prefix: config.header_prefix,
            batch: config.batch,
            explained: config.explained,
        })
    }

    /// The router, with the default source filled in.
    pub fn router(&self) -> &Router {
        &self.router
    }

    /// Encodes rows in the given order. Rows of one key keep their order in and across messages.
    pub fn encode<'r>(&self, records: impl IntoIterator<Item = &'r Record>) -> Encoded {
        let records = records.into_iter();
        let mut encoded = Encoded::default();
        let mut ids = HashSet::with_capacity(records.size_hint().0);
        let mut deferred_keys = HashSet::new();
        let mut batcher = Batcher::new(self.batch);

        for record in records {
            let follows_deferred = record.keyed && deferred_keys.contains(&record.hash);
            if follows_deferred || ids.contains(record.id.as_str()) {
                encoded.deferred.push(record.seq);
                if record.keyed {
                    deferred_keys.insert(record.hash);
                }
                continue;
            }
            let result = match self.mode {
                Mode::Batch => self.add_to_batch(record, &mut batcher),
                Mode::Structured | Mode::Binary => self
                    .encode_one(record)
                    .map(|message| encoded.messages.push(message)),
            };
            match result {
                Ok(()) => {
                    ids.insert(record.id.as_str());
                }
                Err(reason) => encoded.rejected.push((record.seq, reason)),
            }
        }
        encoded.messages.append(&mut batcher.finish());
        encoded
    }

    pub(super) fn envelope<'a>(&'a self, record: &'a Record) -> Result<Envelope<'a>, Reason> {
        Envelope::filled(record, &self.source, &self.fill)
    }

    fn encode_one(&self, record: &Record) -> Result<Message, Reason> {
        let event = self.envelope(record)?;
        let headers = parse_headers(record.headers.as_deref(), self.mode == Mode::Binary)?;
        let route = self.router.route(record)?;
        Ok(self.message(record, &event, headers, route))
    }

    fn add_to_batch(&self, record: &Record, batcher: &mut Batcher) -> Result<(), Reason> {
        let event = self.envelope(record)?;
        let headers = parse_headers(record.headers.as_deref(), false)?;
        let route = self.router.route(record)?;
        batcher.push(record, &event, route, headers);
        Ok(())
    }

    /// The message of one event, whatever the mode: in batch mode a batch of one.
    pub(super) fn message(
        &self,
        record: &Record,
        event: &Envelope<'_>,
        headers: Headers,
        route: (String, String),
    ) -> Message {
        let mut message = message_without_body(record, event, headers, route);
        match self.mode {
            Mode::Structured => {
                let mut body = Vec::new();
                write_event(&mut body, event);
                message.body = body.into();
                message.content_type = Some(STRUCTURED.to_owned());
            }
            Mode::Batch => {
                let mut body = vec![b'['];
                write_event(&mut body, event);
                body.push(b']');
                message.body = body.into();
                message.content_type = Some(BATCH.to_owned());
            }
            Mode::Binary => {
                message.body = binary_body(&event.data, &record.data);
                message.content_type = binary_content_type(event);
                let mut headers = attribute_headers(event, self.header_prefix);
                headers.append(&mut message.headers);
                message.headers = headers;
            }
        }
        message
    }
}

/// Everything of a message that does not depend on the mode.
pub(super) fn message_without_body(
    record: &Record,
    event: &Envelope<'_>,
    headers: Headers,
    (destination, routing_key): (String, String),
) -> Message {
    Message {
        seqs: vec![record.seq],
        destination,
        routing_key,
        body: Bytes::new(),
        content_type: None,
        headers,
        id: event.id.to_owned(),
        event_type: event.event_type.to_owned(),
        time: record.created_at,
        expires_in: record.expires_in,
        correlation_id: event
            .extension("correlationid")
            .map(|value| value.to_text())
            .filter(|text| !text.is_empty()),
        source: event.source.to_owned(),
        key: record.key.clone(),
    }
}

/// The payload as the row holds it; shared, not copied, unless it had to be unescaped.
fn binary_body(payload: &Payload<'_>, data: &Data) -> Bytes {
    use std::borrow::Cow;
    match (payload, data) {
        (Payload::None, _) | (_, Data::None) => Bytes::new(),
        (Payload::Text(Cow::Owned(text)), _) => Bytes::copy_from_slice(text.as_bytes()),
        // The text between the quotes of a JSON string, or the whole column.
        (Payload::Text(Cow::Borrowed(text)), Data::Json(bytes) | Data::Text(bytes)) => {
            bytes.slice_ref(text.as_bytes())
        }
        (_, Data::Json(bytes) | Data::Text(bytes) | Data::Binary(bytes)) => bytes.clone(),
    }
}

/// In binary mode nothing but the content type tells what the body is, so JSON is always named.
fn binary_content_type(event: &Envelope<'_>) -> Option<String> {
    match (event.content_type, &event.data) {
        (Some(content_type), _) => Some(content_type.to_owned()),
        (None, Payload::Json(_)) => Some("application/json".to_owned()),
        (None, _) => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests;
