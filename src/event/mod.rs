//! The event: an outbox row as it was read, the CloudEvent made of it, and where it goes.
//!
//! Everything here is pure: no clock, no I/O, no runtime. A row becomes a [`Record`]
//! (this file), is validated into an envelope ([`envelope`]), encoded into a
//! sink-neutral [`Message`] ([`encode`]) and given a destination ([`route`]).

mod batch;
mod content;
mod dead_letter;
pub mod encode;
pub mod envelope;
mod flat_json;
mod headers;
mod json_format;
pub mod message;
pub mod route;
mod rules;
pub mod sdk;
mod template;
pub mod trace;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;

pub use content::{Content, Refusal};
pub use dead_letter::{Explained, REASON_HEADER};
pub use message::{HeaderValue, Message};

/// The payload of a row, as its column type delivers it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Data {
    /// No payload: both data columns are null.
    #[default]
    None,
    /// JSON text exactly as Postgres prints it (`json` keeps the writer's bytes, `jsonb` is
    /// normalised by the database). Known to be valid JSON; never parsed into a tree here.
    Json(Bytes),
    /// Text from a `text` column. JSON if the content type says so or is absent, which in
    /// CloudEvents means JSON.
    Text(Bytes),
    /// Raw bytes from a `bytea` column (protobuf, Avro, images, ...).
    Binary(Bytes),
}

impl Data {
    /// Payload size in bytes, before encoding.
    pub fn len(&self) -> usize {
        match self {
            Data::None => 0,
            Data::Json(b) | Data::Text(b) | Data::Binary(b) => b.len(),
        }
    }

    /// Whether there is no payload at all (a JSON `null` is a payload).
    pub fn is_none(&self) -> bool {
        matches!(self, Data::None)
    }

    /// Whether the payload is absent or zero bytes long.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One pending outbox row, as read.
///
/// `seq` and `hash` are all the relay core looks at; the rest is cargo for the encoder.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Record {
    /// The order column: drawn by the database at INSERT, immutable. For a table without an
    /// order column this is a 64-bit hash of the id, used as identity only.
    pub seq: i64,
    /// Hash of the ordering key, computed by the database (`hashtextextended(key, 0)`), or of
    /// `seq` when the row has no key. Decides the partition; two keys that collide are merely
    /// ordered together.
    pub hash: i64,
    /// Whether the row has an ordering key. Rows without one are never ordered.
    pub keyed: bool,
    /// Publish attempts already counted against this row.
    pub attempts: u32,
    /// Times this row was in flight, alone or in a small group, when a relay died.
    pub crashes: u32,
    /// Time left until a failed row may be tried again: zero if it may be now, `Duration::MAX` if only
    /// an operator can release it. `None`: it has not failed.
    pub retry_in: Option<Duration>,
    /// It was published, and its row could not be marked or deleted so far: only that is missing.
    pub published: bool,
    /// Time left until the row expires, by the database's clock when it was read.
    /// `None`: never expires. Zero: already expired.
    pub expires_in: Option<Duration>,
    /// When that is. `None` also for times that RFC 3339 cannot write.
    pub expires_at: Option<Timestamp>,

    /// CloudEvents `id`, as text.
    pub id: String,
    /// CloudEvents `type`.
    pub event_type: String,
    /// CloudEvents `source`; `None` means the configured default.
    pub source: Option<String>,
    /// CloudEvents `subject`.
    pub subject: Option<String>,
    /// Ordering key; becomes the `partitionkey` extension.
    pub key: Option<String>,
    /// The payload.
    pub data: Data,
    /// CloudEvents `datacontenttype`.
    pub content_type: Option<String>,
    /// CloudEvents `dataschema`.
    pub schema: Option<String>,
    /// CloudEvents extensions: JSON object text.
    pub extensions: Option<String>,
    /// Transport headers outside the envelope: JSON object text.
    pub headers: Option<String>,
    /// Per-row destination (exchange, stream, topic, bus), overriding the template.
    pub destination: Option<String>,
    /// Per-row routing key (routing key, subject, record key), overriding the template.
    pub routing_key: Option<String>,
    /// CloudEvents `time`.
    pub created_at: Option<Timestamp>,
    /// How much of the row was read. Unless it is all, only what is above and id, type and key mean something.
    pub content: Content,
    /// Other columns of the row that a route template names, as text, in the order the
    /// mapping lists them.
    pub extra: Vec<(Arc<str>, Option<String>)>,
}

impl Record {
    /// Rough memory held by this row, in bytes; the relay bounds the sum of these.
    pub fn weight(&self) -> usize {
        size_of::<Self>()
            + self.bytes()
            + self.content.outstanding()
            + self.extra.len() * size_of::<(Arc<str>, Option<String>)>()
    }

    /// Bytes of its values.
    pub fn bytes(&self) -> usize {
        let text = |t: &Option<String>| t.as_ref().map_or(0, String::len);
        self.id.len()
            + self.event_type.len()
            + text(&self.source)
            + text(&self.subject)
            + text(&self.key)
            + self.data.len()
            + text(&self.content_type)
            + text(&self.schema)
            + text(&self.extensions)
            + text(&self.headers)
            + text(&self.destination)
            + text(&self.routing_key)
            + self.extra.iter().map(|(_, v)| text(v)).sum::<usize>()
    }
}
