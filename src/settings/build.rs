//! From texts to [`Settings`]: each value by its own rule. The rules between settings are in `rules`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use tracing::level_filters::LevelFilter;

use super::load::{Inputs, Sources, Text};
use super::otel;
use super::report::{Origin, Problem};
use super::secret::shown;
use super::table::{PG_VARIABLES, SETTINGS, Setting, setting};
use super::value::{Value, Violation};
use super::{
    Admin, AfterPublish, Columns, Compression, Database, Event, EventBridge, EventMode,
    ExchangeType, Http, Kafka, Log, LogFormat, Nats, Ordering, Outbox, Partitioner, Preset,
    RabbitMq, Relay, Retention, Retry, Route, Sasl, Settings, SinkKind, Wake,
};
use crate::error::OnExhausted;
use crate::secret_file::SecretFile;

/// Checked values by key. A value that broke its rule is replaced by the default, so that the
/// rules between settings can still be checked; its key is listed in `broken`.
pub(super) struct Values {
    pub(super) values: BTreeMap<&'static str, Value>,
    pub(super) broken: BTreeSet<&'static str>,
    pub(super) origins: BTreeMap<&'static str, Origin>,
    #[cfg(test)]
    pub(super) asked: std::cell::RefCell<BTreeSet<String>>,
}

/// Whether a variable's value is in quotes. A table may well be, and so may what is secret.
fn is_wrapped(setting: &Setting, text: &Text) -> bool {
    let quotes = ['"', '\''];
    matches!(text.origin, Origin::Variable(_))
        && !setting.secret
        && setting.key != "outbox.table"
        && text.text.len() > 1
        && quotes
            .iter()
            .any(|quote| text.text.starts_with(*quote) && text.text.ends_with(*quote))
}

impl Values {
    /// Checks every text against its kind and adds what is wrong to `problems`.
    pub(super) fn check(sources: &Sources, problems: &mut Vec<Problem>) -> Self {
        let mut values = BTreeMap::new();
        let mut broken: BTreeSet<_> = sources.broken.iter().copied().collect();
        let mut origins = BTreeMap::new();
        for setting in SETTINGS {
            let Some(text) = sources.texts.get(setting.key) else {
                continue;
            };
            origins.insert(setting.key, text.origin.clone());
            let parsed = match is_wrapped(setting, text) {
                true => Err(Violation::wrapped()),
                false => setting.kind.parse(&text.text),
            };
            match parsed {
                Ok(value) => {
                    values.insert(setting.key, value);
                }
                Err(violation) => {
                    broken.insert(setting.key);
                    let default = setting.default.map(|text| setting.kind.parse(text));
                    if let Some(Ok(value)) = default {
                        values.insert(setting.key, value);
                    }
                    problems.push(Problem {
                        name: name_in(setting.key, &text.origin),
                        value: (!setting.secret).then(|| shown(&text.text)),
                        origin: text.origin.clone(),
                        rule: violation.rule,
                        hint: violation.hint,
                    });
                }
            }
        }
        Self {
            values,
            broken,
            origins,
            #[cfg(test)]
            asked: Default::default(),
        }
    }

    /// Whether the user gave it, rather than the table.
    pub(super) fn is_given(&self, key: &str) -> bool {
        let origin = self.origins.get(key);
        origin.is_some_and(|origin| *origin != Origin::Default)
    }

    fn get(&self, key: &str) -> Option<&Value> {
        #[cfg(test)]
        self.asked.borrow_mut().insert(key.to_owned());
        self.values.get(key)
    }

    // The getters below fall back to an empty value for a key that has neither value nor default,
    // or another kind. A test proves that the table leaves no such case.

    fn text(&self, key: &str) -> String {
        self.optional_text(key).unwrap_or_default()
    }

    fn optional_text(&self, key: &str) -> Option<String> {
        match self.get(key) {
            Some(Value::Text(text)) => Some(text.clone()),
            _ => None,
        }
    }

    fn secret(&self, key: &str) -> Option<SecretString> {
        self.optional_text(key).map(SecretString::from)
    }

    fn path(&self, key: &str) -> Option<PathBuf> {
        self.optional_text(key).map(PathBuf::from)
    }

    pub(super) fn list(&self, key: &str) -> Vec<String> {
        match self.get(key) {
            Some(Value::List(list)) => list.clone(),
            _ => Vec::new(),
        }
    }

    fn bool(&self, key: &str) -> bool {
        matches!(self.get(key), Some(Value::Bool(true)))
    }

    fn number(&self, key: &str) -> u64 {
        match self.get(key) {
            Some(Value::Number(number)) => *number,
            _ => 0,
        }
    }

    /// A number whose limits keep it well inside every integer type that is asked for.
    fn count<T: TryFrom<u64> + Default>(&self, key: &str) -> T {
        T::try_from(self.number(key)).unwrap_or_default()
    }

    fn duration(&self, key: &str) -> Duration {
        match self.get(key) {
            Some(Value::Duration(duration)) => *duration,
            _ => Duration::ZERO,
        }
    }

    fn retention(&self) -> Retention {
        match self.get("outbox.retention") {
            Some(Value::Duration(time)) => Retention::For(*time),
            // The only word that the table lets through.
            Some(Value::Text(_)) => Retention::Off,
            _ => Retention::Unset,
        }
    }

    /// The variant that goes with the word; the last one also stands for a word that is missing,
    /// which the table rules out.
    fn choice<T: Copy, const N: usize>(&self, key: &str, words: [(&str, T); N], last: T) -> T {
        let text = self.text(key);
        words
            .iter()
            .find(|(word, _)| *word == text)
            .map_or(last, |(_, variant)| *variant)
    }
}

/// How the user names a setting there: the variable, the flag, or the key in the file.
pub(super) fn name_in(key: &str, origin: &Origin) -> String {
    match origin {
        Origin::Variable(name) | Origin::Flag(name) => name.clone(),
        Origin::File(_) => key.to_owned(),
        Origin::Default => setting(key).map_or_else(|| key.to_owned(), |s| s.variable()),
    }
}

/// The typed settings. Always complete; worth something only if no problem was found.
pub(super) fn settings(values: &Values, inputs: &Inputs) -> Settings {
    let v = values;
    Settings {
        database: Database {
            url: v.secret("database.url"),
            url_name: match v.is_given("database.url") {
                false
                    if inputs
                        .variable("PGHOST")
                        .or(inputs.variable("PGSERVICE"))
                        .is_some() =>
                {
                    "the PG* variables".to_owned()
                }
                _ => given_by(v, "database.url"),
            },
            url_file: secret_file(v, inputs, "database.url"),
            listen_url: v.secret("database.listen_url"),
            listen_url_name: given_by(v, "database.listen_url"),
            listen_url_file: secret_file(v, inputs, "database.listen_url"),
            pg: pg(inputs),
            pool_size: v.count("database.pool_size"),
        },
        outbox: outbox(v),
        event: Event {
            source: v.text("event.source"),
            mode: v.choice(
                "event.mode",
                [("binary", EventMode::Binary), ("batch", EventMode::Batch)],
                EventMode::Structured,
            ),
            header_prefix: v.text("event.header_prefix"),
            content_type: v.optional_text("event.content_type"),
            sequence: v.bool("event.sequence"),
            expirytime: v.bool("event.expirytime"),
        },
        route: route(v),
        sink: sink(v),
        rabbitmq: rabbitmq(v, inputs),
        nats: nats(v, inputs),
        http: http(v, inputs),
        kafka: kafka(v, inputs),
        eventbridge: eventbridge(v),
        relay: relay(v, inputs),
        retry: Retry {
            max_attempts: v.count("retry.max_attempts"),
            backoff_initial: v.duration("retry.backoff_initial"),
            backoff_max: v.duration("retry.backoff_max"),
            on_exhausted: v.choice(
                "retry.on_exhausted",
                [("block", OnExhausted::Block)],
                OnExhausted::Dead,
            ),
            dead_letter_destination: v.optional_text("retry.dead_letter_destination"),
            dead_letter_key: v.optional_text("retry.dead_letter_key"),
        },
        admin: Admin {
            // The only other word that the table lets through is `off`.
            listen: v.text("admin.listen").parse().ok(),
        },
        log: log(v, inputs),
        traces: otel::traces(inputs),
    }
}

/// How the user named a setting, or would.
fn given_by(values: &Values, key: &str) -> String {
    name_in(key, values.origins.get(key).unwrap_or(&Origin::Default))
}

/// The file that a secret's value comes from, if it comes from one of its own.
fn secret_file(values: &Values, inputs: &Inputs, key: &str) -> Option<SecretFile> {
    let variable = setting(key)?.file_variable()?;
    let path = match values.origins.get(key)? {
        Origin::Variable(name) if *name == variable => inputs.variable(&variable)?,
        _ => return None,
    };
    Some(SecretFile::new(&variable, path))
}

fn outbox(v: &Values) -> Outbox {
    let column = |name: &str| v.optional_text(&format!("outbox.column_{name}"));
    Outbox {
        table: v.text("outbox.table"),
        preset: v.choice(
            "outbox.preset",
            [
                ("debezium", Preset::Debezium),
                ("textbook", Preset::Textbook),
                ("modulith", Preset::Modulith),
            ],
            Preset::Native,
        ),
        columns: Columns {
            seq: column("seq"),
            id: column("id"),
            event_type: column("type"),
            source: column("source"),
            subject: column("subject"),
            key: column("key"),
            data: column("data"),
            data_binary: column("data_binary"),
            content_type: column("content_type"),
            schema: column("schema"),
            extensions: column("extensions"),
            headers: column("headers"),
            destination: column("destination"),
            routing_key: column("routing_key"),
            created_at: column("created_at"),
            available_at: column("available_at"),
            expires_at: column("expires_at"),
            published_at: column("published_at"),
            status: column("status"),
        },
        status_pending: v
            .optional_text("outbox.status_pending")
            .map(|words| {
                words
                    .split(',')
                    .map(|word| word.trim().to_owned())
                    .collect()
            })
            .unwrap_or_default(),
        status_published: v.optional_text("outbox.status_published"),
        after_publish: v.choice(
            "outbox.after_publish",
            [("delete", AfterPublish::Delete)],
            AfterPublish::Mark,
        ),
        retention: v.retention(),
    }
}

fn rabbitmq(v: &Values, inputs: &Inputs) -> RabbitMq {
    RabbitMq {
        urls: v
            .list("rabbitmq.url")
            .into_iter()
            .map(SecretString::from)
            .collect(),
        url_name: given_by(v, "rabbitmq.url"),
        url_file: secret_file(v, inputs, "rabbitmq.url"),
        declare: v.bool("rabbitmq.declare"),
        expiration: v.bool("rabbitmq.expiration"),
        exchange_type: v.choice(
            "rabbitmq.exchange_type",
            [
                ("direct", ExchangeType::Direct),
                ("fanout", ExchangeType::Fanout),
                ("headers", ExchangeType::Headers),
                ("x-delayed-message", ExchangeType::Delayed),
            ],
            ExchangeType::Topic,
        ),
        queues: v
            .text("rabbitmq.queues")
            .split(',')
            .map(|name| name.trim().to_owned())
            .filter(|name| !name.is_empty())
            .collect(),
        unroutable_patience: v.duration("rabbitmq.unroutable_patience"),
        channels: v.count("rabbitmq.channels"),
        confirm_timeout: v.duration("rabbitmq.confirm_timeout"),
        ca_file: v.path("rabbitmq.ca_file"),
        cert_file: v.path("rabbitmq.cert_file"),
        key_file: v.path("rabbitmq.key_file"),
        max_message_size: v.count("rabbitmq.max_message_size"),
    }
}

fn sink(v: &Values) -> SinkKind {
    v.choice(
        "sink",
        [
            SinkKind::Nats,
            SinkKind::Http,
            SinkKind::Kafka,
            SinkKind::EventBridge,
            SinkKind::Stdout,
        ]
        .map(|kind| (kind.name(), kind)),
        SinkKind::RabbitMq,
    )
}

fn route(v: &Values) -> Route {
    let mut destination = v.text("route.destination");
    // A URL is complete without a path below it.
    if sink(v) == SinkKind::Http && !v.is_given("route.destination") {
        destination.clear();
    }
    Route {
        destination,
        key: v.text("route.key"),
    }
}

fn http(v: &Values, inputs: &Inputs) -> Http {
    Http {
        url: v.secret("http.url"),
        url_file: secret_file(v, inputs, "http.url"),
        authorization: v.secret("http.authorization"),
        authorization_file: secret_file(v, inputs, "http.authorization"),
        connections: v.count("http.connections"),
        timeout: v.duration("http.timeout"),
        ca_file: v.path("http.ca_file"),
        cert_file: v.path("http.cert_file"),
        key_file: v.path("http.key_file"),
        max_message_size: v.count("http.max_message_size"),
    }
}

fn nats(v: &Values, inputs: &Inputs) -> Nats {
    let urls = v.list("nats.url");
    Nats {
        urls: urls.into_iter().map(SecretString::from).collect(),
        url_name: given_by(v, "nats.url"),
        url_file: secret_file(v, inputs, "nats.url"),
        credentials_file: v.path("nats.credentials_file"),
        nkey_seed: v.secret("nats.nkey_seed"),
        nkey_seed_file: secret_file(v, inputs, "nats.nkey_seed"),
        lanes: v.count("nats.lanes"),
        confirm_timeout: v.duration("nats.confirm_timeout"),
        ca_file: v.path("nats.ca_file"),
        cert_file: v.path("nats.cert_file"),
        key_file: v.path("nats.key_file"),
        inbox_prefix: v.text("nats.inbox_prefix"),
    }
}

fn kafka(v: &Values, inputs: &Inputs) -> Kafka {
    Kafka {
        brokers: v.list("kafka.brokers"),
        tls: v.bool("kafka.tls"),
        ca_file: v.path("kafka.ca_file"),
        cert_file: v.path("kafka.cert_file"),
        key_file: v.path("kafka.key_file"),
        sasl: v.choice(
            "kafka.sasl_mechanism",
            [
                ("plain", Sasl::Plain),
                ("scram-sha-256", Sasl::ScramSha256),
                ("scram-sha-512", Sasl::ScramSha512),
            ],
            Sasl::None,
        ),
        username: v.optional_text("kafka.username"),
        password: v.secret("kafka.password"),
        password_file: secret_file(v, inputs, "kafka.password"),
        lanes: v.count("kafka.lanes"),
        confirm_timeout: v.duration("kafka.confirm_timeout"),
        max_message_size: v.count("kafka.max_message_size"),
        compression: v.choice(
            "kafka.compression",
            [
                ("gzip", Compression::Gzip),
                ("snappy", Compression::Snappy),
                ("lz4", Compression::Lz4),
                ("zstd", Compression::Zstd),
            ],
            Compression::None,
        ),
        partitioner: v.choice(
            "kafka.partitioner",
            [("crc32", Partitioner::Crc32)],
            Partitioner::Murmur2,
        ),
    }
}

fn eventbridge(v: &Values) -> EventBridge {
    EventBridge {
        region: v.optional_text("eventbridge.region"),
        endpoint: v.optional_text("eventbridge.endpoint"),
        credentials_file: v.path("eventbridge.credentials_file"),
        connections: v.count("eventbridge.connections"),
        timeout: v.duration("eventbridge.timeout"),
        max_request_size: v.count("eventbridge.max_request_size"),
    }
}

fn relay(v: &Values, inputs: &Inputs) -> Relay {
    let name = v.optional_text("relay.name").unwrap_or_else(|| {
        let host = inputs.variable("HOSTNAME").unwrap_or("outrigger");
        format!("{host}-{}", inputs.process_id)
    });
    Relay {
        name,
        target: v.optional_text("relay.target"),
        ordering: v.choice(
            "relay.ordering",
            [("pipelined", Ordering::Pipelined), ("none", Ordering::None)],
            Ordering::Strict,
        ),
        partitions: v.count("relay.partitions"),
        batch_size: v.count("relay.batch_size"),
        max_in_flight: v.count("relay.max_in_flight"),
        max_in_flight_bytes: v.count("relay.max_in_flight_bytes"),
        max_event_size: v.count("relay.max_event_size"),
        wake: v.choice("relay.wake", [("poll", Wake::Poll)], Wake::Listen),
        poll_interval: v.duration("relay.poll_interval"),
        lease_ttl: v.duration("relay.lease_ttl"),
        shutdown_timeout: v.duration("relay.shutdown_timeout"),
    }
}

fn log(v: &Values, inputs: &Inputs) -> Log {
    // A flag is typed for this very run, so it beats a variable that was set for many.
    let level_by_flag = matches!(v.origins.get("log.level"), Some(Origin::Flag(_)));
    let filter = inputs.variable("RUST_LOG").filter(|_| !level_by_flag);
    Log {
        level: v.choice(
            "log.level",
            [
                ("off", LevelFilter::OFF),
                ("error", LevelFilter::ERROR),
                ("warn", LevelFilter::WARN),
                ("debug", LevelFilter::DEBUG),
                ("trace", LevelFilter::TRACE),
            ],
            LevelFilter::INFO,
        ),
        filter: filter.map(str::to_owned),
        format: v.choice(
            "log.format",
            [("text", LogFormat::Text), ("json", LogFormat::Json)],
            LogFormat::Auto,
        ),
        color: inputs.variable("NO_COLOR").is_none(),
    }
}

fn pg(inputs: &Inputs) -> BTreeMap<String, String> {
    // Where libpq looks for files that nobody named.
    let home = inputs.variable("HOME").map(|home| ("home", home));
    PG_VARIABLES
        .iter()
        .filter_map(|(variable, keyword)| Some((*keyword, inputs.variable(variable)?)))
        .chain(home)
        .map(|(keyword, text)| (keyword.to_owned(), text.to_owned()))
        .collect()
}
