//! The typed settings, section by section.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use tracing::level_filters::LevelFilter;

#[cfg(doc)]
use super::Need;
use super::Traces;
use crate::error::{OnExhausted, RetryPolicy};
use crate::secret_file::SecretFile;

/// Everything a command may need, checked.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The service's database.
    pub database: Database,
    /// The outbox table.
    pub outbox: Outbox,
    /// How rows become CloudEvents.
    pub event: Event,
    /// Where events go unless their row says otherwise.
    pub route: Route,
    /// Which sink publishes.
    pub sink: SinkKind,
    /// The RabbitMQ sink.
    pub rabbitmq: RabbitMq,
    /// The NATS sink.
    pub nats: Nats,
    /// The http sink.
    pub http: Http,
    /// The Kafka sink.
    pub kafka: Kafka,
    /// The EventBridge sink.
    pub eventbridge: EventBridge,
    /// The relay itself.
    pub relay: Relay,
    /// What happens to rejected events.
    pub retry: Retry,
    /// Health, metrics and the status page.
    pub admin: Admin,
    /// Logs.
    pub log: Log,
    /// Traces, by the variables of OpenTelemetry alone.
    pub traces: Traces,
}

/// How to reach the database.
#[derive(Clone)]
pub struct Database {
    /// A `postgres://` URL or a libpq keyword string. `None`: only [`pg`](Self::pg) is there.
    pub url: Option<SecretString>,
    /// What the user gave `url` by: a variable, a flag, or a key of the file.
    pub url_name: String,
    /// Where `url` was read from, to be read again.
    pub url_file: Option<SecretFile>,
    /// A direct connection for LISTEN, when `url` leads through a transaction pooler.
    pub listen_url: Option<SecretString>,
    /// What the user gave `listen_url` by.
    pub listen_url_name: String,
    /// Where `listen_url` was read from, to be read again.
    pub listen_url_file: Option<SecretFile>,
    /// What the `PG*` variables say, by libpq keyword (`host`, `dbname`, `sslmode`, ...). They
    /// fill in what a URL leaves open. May hold a password.
    pub pg: BTreeMap<String, String>,
    /// Most pooled connections; LISTEN has one of its own besides.
    pub pool_size: usize,
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database")
            .field("url", &self.url)
            .field("url_file", &self.url_file)
            .field("listen_url", &self.listen_url)
            .field("listen_url_file", &self.listen_url_file)
            // Names only: one of the values may be a password.
            .field("pg", &self.pg.keys().collect::<Vec<_>>())
            .field("pool_size", &self.pool_size)
            .finish()
    }
}

/// The outbox table and its life cycle.
#[derive(Debug, Clone)]
pub struct Outbox {
    /// Table name, optionally with its schema.
    pub table: String,
    /// The set of column names to start from.
    pub preset: Preset,
    /// Column names that differ from the preset.
    pub columns: Columns,
    /// The status of rows to publish; empty leaves the preset's.
    pub status_pending: Vec<String>,
    /// The status of published rows; `None` leaves the preset's.
    pub status_published: Option<String>,
    /// What happens to a published row.
    pub after_publish: AfterPublish,
    /// How long published rows are kept when they are marked.
    pub retention: Retention,
}

/// How long published rows are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    /// Not set: as long as suits whoever made the table.
    Unset,
    /// For ever.
    Off,
    /// This long.
    For(Duration),
}

impl Retention {
    /// Where `outrigger migrate` created the table and nothing is set.
    const OF_OUR_TABLE: Duration = Duration::from_secs(7 * 86_400);

    /// After which time rows are deleted. `None`: never. A table that was there before has a history that is not ours
    /// to delete.
    pub fn in_table(self, created_by_migrate: bool) -> Option<Duration> {
        match self {
            Self::Off => None,
            Self::For(time) => Some(time),
            Self::Unset => created_by_migrate.then_some(Self::OF_OUR_TABLE),
        }
    }
}

/// A known table layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// The layout `outrigger migrate` creates.
    Native,
    /// The layout of Debezium's outbox event router.
    Debezium,
    /// The layout that textbooks and blog posts show.
    Textbook,
    /// Spring Modulith's `event_publication`.
    Modulith,
}

/// What happens to a row once the broker has confirmed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterPublish {
    /// `published_at` is set; the row is removed after the retention time.
    Mark,
    /// The row is deleted.
    Delete,
}

/// Column names given by the user; `None` leaves the preset's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Columns {
    /// Order column.
    pub seq: Option<String>,
    /// CloudEvents `id`.
    pub id: Option<String>,
    /// CloudEvents `type`.
    pub event_type: Option<String>,
    /// CloudEvents `source`.
    pub source: Option<String>,
    /// CloudEvents `subject`.
    pub subject: Option<String>,
    /// Ordering key.
    pub key: Option<String>,
    /// Payload.
    pub data: Option<String>,
    /// Binary payload.
    pub data_binary: Option<String>,
    /// CloudEvents `datacontenttype`.
    pub content_type: Option<String>,
    /// CloudEvents `dataschema`.
    pub schema: Option<String>,
    /// CloudEvents extensions.
    pub extensions: Option<String>,
    /// Transport headers.
    pub headers: Option<String>,
    /// Per-row destination.
    pub destination: Option<String>,
    /// Per-row routing key.
    pub routing_key: Option<String>,
    /// CloudEvents `time`.
    pub created_at: Option<String>,
    /// Not before.
    pub available_at: Option<String>,
    /// Not after.
    pub expires_at: Option<String>,
    /// Set by the relay.
    pub published_at: Option<String>,
    /// Status of the row.
    pub status: Option<String>,
}

/// How rows become CloudEvents.
#[derive(Debug, Clone)]
pub struct Event {
    /// Default CloudEvents `source`. Never empty for [`Need::Relay`]; empty when unset otherwise.
    pub source: String,
    /// Content mode.
    pub mode: EventMode,
    /// Prefix of CloudEvents headers in binary mode.
    pub header_prefix: String,
    /// `datacontenttype` of payloads whose row names none.
    pub content_type: Option<String>,
    /// Adds the extension `sequence`.
    pub sequence: bool,
    /// Adds the extension `expirytime`.
    pub expirytime: bool,
}

/// CloudEvents content mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventMode {
    /// The whole event as one JSON document.
    Structured,
    /// Attributes in headers, the payload as the body.
    Binary,
    /// Several structured events in one message.
    Batch,
}

/// Route templates.
#[derive(Debug, Clone)]
pub struct Route {
    /// Where events go: an exchange, a stream, a path.
    pub destination: String,
    /// And by which name: a routing key, a subject.
    pub key: String,
}

/// Which sink publishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SinkKind {
    /// RabbitMQ, with publisher confirms.
    RabbitMq,
    /// NATS JetStream, with acknowledgements.
    Nats,
    /// A service that takes events by HTTP.
    Http,
    /// Kafka, with an idempotent producer.
    Kafka,
    /// AWS EventBridge, by PutEvents.
    EventBridge,
    /// One JSON line per event on standard output.
    Stdout,
}

impl SinkKind {
    /// The word for it, which is also the name of its cargo feature.
    pub fn name(self) -> &'static str {
        match self {
            Self::RabbitMq => "rabbitmq",
            Self::Nats => "nats",
            Self::Http => "http",
            Self::Kafka => "kafka",
            Self::EventBridge => "eventbridge",
            Self::Stdout => "stdout",
        }
    }

    /// Whether this program was built with it.
    pub fn is_built(self) -> bool {
        match self {
            Self::RabbitMq => cfg!(feature = "rabbitmq"),
            Self::Nats => cfg!(feature = "nats"),
            Self::Http => cfg!(feature = "http"),
            Self::Kafka => cfg!(feature = "kafka"),
            Self::EventBridge => cfg!(feature = "eventbridge"),
            Self::Stdout => true,
        }
    }
}

/// The RabbitMQ sink.
#[derive(Debug, Clone)]
pub struct RabbitMq {
    /// One URL per node, tried in turn. Empty only where no broker is needed.
    pub urls: Vec<SecretString>,
    /// What the user gave `urls` by: a variable, a flag, or a key of the file.
    pub url_name: String,
    /// Where `urls` were read from, to be read again.
    pub url_file: Option<SecretFile>,
    /// Declare a missing exchange instead of only checking that it exists.
    pub declare: bool,
    /// Type of exchanges to declare.
    pub exchange_type: ExchangeType,
    /// Queues that must be there before anything is published.
    pub queues: Vec<String>,
    /// How long events wait for a queue of a route that once had one.
    pub unroutable_patience: Duration,
    /// Channels publishing side by side.
    pub channels: usize,
    /// Longest wait for the confirms of a batch.
    pub confirm_timeout: Duration,
    /// PEM file of certificate authorities to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM file of the client certificate chain.
    pub cert_file: Option<PathBuf>,
    /// PEM file of the client certificate's private key.
    pub key_file: Option<PathBuf>,
    /// Largest body the broker accepts, in bytes.
    pub max_message_size: usize,
    /// Let a message expire when its row does.
    pub expiration: bool,
}

/// The NATS sink.
#[derive(Debug, Clone)]
pub struct Nats {
    /// One URL per server, tried in turn. Empty only where no server is needed.
    pub urls: Vec<SecretString>,
    /// What the user gave `urls` by.
    pub url_name: String,
    /// Where `urls` were read from, to be read again.
    pub url_file: Option<SecretFile>,
    /// Credentials file with JWT and seed.
    pub credentials_file: Option<PathBuf>,
    /// Seed of the NKey to log in with.
    pub nkey_seed: Option<SecretString>,
    /// Where `nkey_seed` was read from, to be read again.
    pub nkey_seed_file: Option<SecretFile>,
    /// Batches published side by side.
    pub lanes: usize,
    /// Longest wait for the acknowledgements of a batch.
    pub confirm_timeout: Duration,
    /// PEM file of certificate authorities to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM file of the client certificate chain.
    pub cert_file: Option<PathBuf>,
    /// PEM file of the client certificate's private key.
    pub key_file: Option<PathBuf>,
    /// First part of the subjects of acknowledgements.
    pub inbox_prefix: String,
}

/// The http sink.
#[derive(Debug, Clone)]
pub struct Http {
    /// Where events are posted. `None` only where no service is needed.
    pub url: Option<SecretString>,
    /// Where `url` was read from, to be read again.
    pub url_file: Option<SecretFile>,
    /// Value of the `Authorization` header.
    pub authorization: Option<SecretString>,
    /// Where `authorization` was read from, to be read again.
    pub authorization_file: Option<SecretFile>,
    /// Connections, each with one request at a time.
    pub connections: usize,
    /// Longest wait for an answer.
    pub timeout: Duration,
    /// PEM file of certificate authorities to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM file of the client certificate chain.
    pub cert_file: Option<PathBuf>,
    /// PEM file of the client certificate's private key.
    pub key_file: Option<PathBuf>,
    /// Largest body the service accepts, in bytes.
    pub max_message_size: usize,
}

/// Type of a declared exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExchangeType {
    /// Routed by pattern.
    Topic,
    /// Routed by equality.
    Direct,
    /// Routed to every queue.
    Fanout,
    /// Routed by headers.
    Headers,
    /// Routed by pattern after a delay, by a plugin.
    Delayed,
}

impl ExchangeType {
    /// The name as AMQP spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Topic => "topic",
            Self::Direct => "direct",
            Self::Fanout => "fanout",
            Self::Headers => "headers",
            Self::Delayed => "x-delayed-message",
        }
    }
}

/// The EventBridge sink.
#[derive(Debug, Clone)]
pub struct EventBridge {
    /// The region, unless AWS's own variables say it.
    pub region: Option<String>,
    /// A URL to use instead of AWS's.
    pub endpoint: Option<String>,
    /// A credentials file to use instead of AWS's chain of providers.
    pub credentials_file: Option<PathBuf>,
    /// Requests under way side by side.
    pub connections: usize,
    /// Longest wait for an answer.
    pub timeout: Duration,
    /// What the entries of a request together must stay below, in bytes as AWS counts them.
    pub max_request_size: usize,
}

/// The Kafka sink.
#[derive(Debug, Clone)]
pub struct Kafka {
    /// `host:port` of some brokers. Empty only where no broker is needed.
    pub brokers: Vec<String>,
    /// Whether connections are encrypted.
    pub tls: bool,
    /// PEM file of certificate authorities to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM file of the client certificate chain.
    pub cert_file: Option<PathBuf>,
    /// PEM file of the client certificate's private key.
    pub key_file: Option<PathBuf>,
    /// How to log in.
    pub sasl: Sasl,
    /// The user name for SASL.
    pub username: Option<String>,
    /// The password for SASL.
    pub password: Option<SecretString>,
    /// Where `password` was read from, to be read again.
    pub password_file: Option<SecretFile>,
    /// Batches published side by side.
    pub lanes: usize,
    /// Longest wait for the confirms of a batch.
    pub confirm_timeout: Duration,
    /// Largest record the brokers accept, in bytes.
    pub max_message_size: usize,
    /// How records are compressed.
    pub compression: Compression,
    /// Which partition a key belongs to.
    pub partitioner: Partitioner,
}

/// How to log in to Kafka.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sasl {
    /// Not by SASL.
    None,
    /// Name and password as they are.
    Plain,
    /// SCRAM with SHA-256.
    ScramSha256,
    /// SCRAM with SHA-512.
    ScramSha512,
}

/// How Kafka records are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip.
    Gzip,
    /// Snappy.
    Snappy,
    /// LZ4.
    Lz4,
    /// Zstandard.
    Zstd,
}

/// Which Kafka partition a key belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Partitioner {
    /// As Kafka's Java client has it.
    Murmur2,
    /// As librdkafka's clients have it.
    Crc32,
}

/// The relay.
#[derive(Debug, Clone)]
pub struct Relay {
    /// Name of this replica, for people.
    pub name: String,
    /// Stands for where the sink leads, where replicas reach one place by different names.
    pub target: Option<String>,
    /// How strictly events of one key keep their order.
    pub ordering: Ordering,
    /// Partitions that replicas share.
    pub partitions: i32,
    /// Most rows per read and per publish.
    pub batch_size: usize,
    /// Most events read and not yet settled.
    pub max_in_flight: usize,
    /// Most bytes of such events.
    pub max_in_flight_bytes: usize,
    /// Most bytes of a row; a larger one is given up unread.
    pub max_event_size: usize,
    /// How the relay learns of new rows.
    pub wake: Wake,
    /// Longest wait between polls while `wake` is [`Wake::Poll`].
    pub poll_interval: Duration,
    /// How long a replica that vanished keeps its partitions.
    pub lease_ttl: Duration,
    /// How long a stop waits for events in flight.
    pub shutdown_timeout: Duration,
}

/// How strictly events of one key keep their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ordering {
    /// One unconfirmed event per key.
    Strict,
    /// Many per key in flight; order holds unless the broker rejects one.
    Pipelined,
    /// Keys are ignored.
    None,
}

impl Ordering {
    /// As in `OUTRIGGER_RELAY_ORDERING`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Pipelined => "pipelined",
            Self::None => "none",
        }
    }
}

/// How the relay learns of new rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// NOTIFY, with polling as the guarantee.
    Listen,
    /// Polling alone.
    Poll,
}

/// What happens to rejected events.
#[derive(Debug, Clone)]
pub struct Retry {
    /// Attempts in all, the first included.
    pub max_attempts: u32,
    /// Wait after the first failed attempt.
    pub backoff_initial: Duration,
    /// Ceiling of the wait.
    pub backoff_max: Duration,
    /// What happens when the attempts are used up.
    pub on_exhausted: OnExhausted,
    /// Template: where dead events are published. `None`: nowhere.
    pub dead_letter_destination: Option<String>,
    /// Template: routing key of dead events. `None`: the event's own.
    pub dead_letter_key: Option<String>,
}

impl Retry {
    /// The part of it that decides.
    pub fn policy(&self) -> RetryPolicy {
        RetryPolicy {
            max_attempts: self.max_attempts,
            backoff_initial: self.backoff_initial,
            backoff_max: self.backoff_max,
            on_exhausted: self.on_exhausted,
        }
    }
}

/// Health, metrics and the status page.
#[derive(Debug, Clone)]
pub struct Admin {
    /// Where they are served; `None`: nowhere.
    pub listen: Option<SocketAddr>,
}

/// Logs.
#[derive(Debug, Clone)]
pub struct Log {
    /// Least severe level that is written.
    pub level: LevelFilter,
    /// `RUST_LOG`: filter directives that take the place of `level`.
    pub filter: Option<String>,
    /// How lines look.
    pub format: LogFormat,
    /// Whether colours may be used (`NO_COLOR` is not set).
    pub color: bool,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// One short line per event, for people.
    Text,
    /// One JSON object per line.
    Json,
}
