//! What a sink is handed: an encoded event (or batch of events) with its destination.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;

/// A header value. Sinks map it to their own types; text is the canonical string form.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HeaderValue {
    /// A string.
    Text(String),
    /// A boolean.
    Bool(bool),
    /// A whole number.
    Int(i64),
}

/// One message to publish. Carries one event, or several in batch mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The rows inside, by `seq`, in publish order. Never empty; one element unless batch mode.
    pub seqs: Vec<i64>,
    /// What must exist and take the message: exchange, stream, topic or bus. May be empty, where the sink gives that a
    /// meaning (RabbitMQ's default exchange; whichever NATS stream takes the subject).
    pub destination: String,
    /// How the destination sorts the message: routing key, subject or record key.
    pub routing_key: String,
    /// The body as it goes on the wire.
    pub body: Bytes,
    /// Content type of the body (`application/cloudevents+json; charset=utf-8` in structured mode,
    /// the event's own in binary mode). `None`: the event declares none.
    pub content_type: Option<String>,
    /// Headers: CloudEvents attributes with the configured prefix (binary mode) and the row's
    /// transport headers. Names are unique.
    pub headers: Vec<(String, HeaderValue)>,
    /// Message id: the event's id (the first event's in a batch). Unique within one publish call.
    pub id: String,
    /// The event's type (the first event's in a batch).
    pub event_type: String,
    /// The event's time.
    pub time: Option<Timestamp>,
    /// Time left until the event expires, by the database's clock when the row was read; of several, until the last
    /// does, if all do.
    pub expires_in: Option<Duration>,
    /// The `correlationid` extension, if the event has one.
    pub correlation_id: Option<String>,
    /// The event's source, for the sink's application id.
    pub source: String,
    /// The ordering key, for sinks that partition by key.
    pub key: Option<String>,
}
