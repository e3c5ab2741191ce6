//! The table of settings: the one place where a setting's name, default, limits and
//! description are written down.

mod eventbridge;
mod http;
mod kafka;
mod nats;
mod outbox;
mod rabbitmq;

use super::value::Kind;

/// The prefix of every variable.
pub(super) const PREFIX: &str = "OUTRIGGER_";

/// The variable that names the configuration file.
pub const CONFIG_VARIABLE: &str = "OUTRIGGER_CONFIG";

/// One setting.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Its place: `section.name`, or just a name at the top level. As in the TOML file.
    pub key: &'static str,
    /// Type and limits.
    pub kind: Kind,
    /// The default, as a user would write it.
    pub default: Option<&'static str>,
    /// What happens without a value, when there is no fixed default.
    pub unset: &'static str,
    /// Variables of other tools that are honoured when ours is not set, best first.
    pub aliases: &'static [&'static str],
    /// May hold a password: never shown, and can be read from a file named by `<VAR>_FILE`.
    pub secret: bool,
    /// What it does, in Markdown.
    pub description: &'static str,
    /// A value to show in the reference, where the default does not tell enough.
    pub example: &'static str,
}

impl Setting {
    /// The section; empty at the top level.
    pub fn section(&self) -> &'static str {
        self.key.split_once('.').map_or("", |(section, _)| section)
    }

    /// The name within its section.
    pub fn name(&self) -> &'static str {
        self.key.split_once('.').map_or(self.key, |(_, name)| name)
    }

    /// The environment variable.
    pub fn variable(&self) -> String {
        let mut variable = String::from(PREFIX);
        variable.push_str(&self.key.replace('.', "_").to_ascii_uppercase());
        variable
    }

    /// The variable that names a file holding the value; only secrets have one.
    pub fn file_variable(&self) -> Option<String> {
        self.secret.then(|| self.variable() + "_FILE")
    }
}

/// The setting with this key.
pub(super) fn setting(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key)
}

/// What each section is about, in the order of the reference.
pub const SECTIONS: &[(&str, &str)] = &[
    ("", "General"),
    ("database", "The service's Postgres database."),
    (
        "outbox",
        "The outbox table and what happens to published rows.",
    ),
    ("event", "How rows become CloudEvents."),
    (
        "route",
        "Where events go. Templates may name any column of the row, for example `{{ type }}`; \
         a row's own `destination` and `routing_key` win.",
    ),
    ("rabbitmq", "The RabbitMQ sink."),
    ("nats", "The NATS JetStream sink."),
    ("http", "The http sink."),
    (
        "kafka",
        "The Kafka sink, in a build with the feature `kafka`.",
    ),
    (
        "eventbridge",
        "The EventBridge sink, in a build with the feature `eventbridge`.",
    ),
    ("relay", "Ordering, sharing between replicas, and limits."),
    (
        "retry",
        "What happens to an event that the broker rejects. Outages do not count as attempts.",
    ),
    (
        "admin",
        "Health, metrics and the status page, over HTTP. Read-only, without a password.",
    ),
    ("log", "Logs go to standard error."),
];

const BASE: Setting = Setting {
    key: "",
    kind: Kind::Text,
    default: None,
    unset: "",
    aliases: &[],
    secret: false,
    description: "",
    example: "",
};

/// Every setting, in the order of the reference. A sink's settings are in a file of their own.
pub const SETTINGS: &[Setting] = &{
    const PARTS: &[&[Setting]] = &[
        GENERAL,
        outbox::SETTINGS,
        EVENTS,
        rabbitmq::SETTINGS,
        nats::SETTINGS,
        http::SETTINGS,
        kafka::SETTINGS,
        eventbridge::SETTINGS,
        RELAY,
    ];
    joined::<{ count(PARTS) }>(PARTS)
};

const fn count(parts: &[&[Setting]]) -> usize {
    let (mut part, mut all) = (0, 0);
    while part < parts.len() {
        all += parts[part].len();
        part += 1;
    }
    all
}

const fn joined<const N: usize>(parts: &[&[Setting]]) -> [Setting; N] {
    let mut all = [BASE; N];
    let (mut part, mut at) = (0, 0);
    while part < parts.len() {
        let mut index = 0;
        while index < parts[part].len() {
            all[at] = parts[part][index];
            at += 1;
            index += 1;
        }
        part += 1;
    }
    all
}

const GENERAL: &[Setting] = &[
    Setting {
        key: "sink",
        kind: Kind::Choice {
            allowed: &["rabbitmq", "nats", "http", "kafka", "eventbridge", "stdout"],
        },
        default: Some("rabbitmq"),
        description: "Where events are published. `stdout` prints one JSON line per event, for demos and debugging.",
        ..BASE
    },
    Setting {
        key: "database.url",
        kind: Kind::PostgresUrl,
        unset: "the `PG*` variables",
        aliases: &["DATABASE_URL"],
        secret: true,
        description: "Connection URL or libpq keyword string. `sslmode`, `sslrootcert`, `sslcert` and `sslkey` \
                      mean what they mean to libpq. `service=`, `~/.pg_service.conf` and `~/.pgpass` are read as libpq \
                      does. The URLs of other libraries (SQLAlchemy, Prisma, Rails, JDBC, Npgsql and more) are \
                      understood, without what concerns their own pools.",
        example: "postgres://orders:secret@db.internal/orders?sslmode=verify-full",
        ..BASE
    },
    Setting {
        key: "database.listen_url",
        kind: Kind::PostgresUrl,
        unset: "`database.url`",
        secret: true,
        description: "Direct connection for LISTEN. Needed only when `database.url` leads through a connection pooler \
                      in transaction mode.",
        example: "postgres://orders:secret@db-direct.internal/orders",
        ..BASE
    },
    Setting {
        key: "database.pool_size",
        kind: Kind::Integer { min: 2, max: 100 },
        default: Some("2"),
        description: "Most pooled connections. LISTEN uses one more.",
        ..BASE
    },
];

const EVENTS: &[Setting] = &[
    Setting {
        key: "event.source",
        kind: Kind::UriReference,
        unset: "required by `outrigger run`",
        description: "CloudEvents `source` of rows that name none: a URI reference that identifies the service. \
                      Consumers tell duplicates by source and id, so do not change it later.",
        example: "/services/orders",
        ..BASE
    },
    Setting {
        key: "event.mode",
        kind: Kind::Choice {
            allowed: &["structured", "binary", "batch"],
        },
        default: Some("structured"),
        description: "CloudEvents content mode: `structured` is one JSON document, `binary` has the attributes in \
                      headers and the payload as the body, `batch` puts several structured events in one message.",
        ..BASE
    },
    Setting {
        key: "event.header_prefix",
        kind: Kind::Choice {
            allowed: &["ce-", "cloudEvents:", "cloudEvents_"],
        },
        default: Some("ce-"),
        description: "Prefix of CloudEvents headers in binary mode. Consumer libraries disagree: take the one yours reads.",
        ..BASE
    },
    Setting {
        key: "event.content_type",
        kind: Kind::Text,
        unset: "none: a payload without one is JSON, except bytes",
        description: "CloudEvents `datacontenttype` of payloads whose row names none, for a table without such a column. \
                      With a JSON type, bytes that are JSON go into the event as JSON.",
        example: "application/json",
        ..BASE
    },
    Setting {
        key: "event.sequence",
        kind: Kind::Bool,
        default: Some("false"),
        description: "Gives each event the CloudEvents extension `sequence`: the order column, with leading zeros, so \
                      that consumers can compare as text.",
        ..BASE
    },
    Setting {
        key: "event.expirytime",
        kind: Kind::Bool,
        default: Some("false"),
        description: "Gives each event of a row with `expires_at` that time as the CloudEvents extension `expirytime`.",
        ..BASE
    },
    Setting {
        key: "route.destination",
        kind: Kind::Template,
        default: Some("events"),
        description: "RabbitMQ: exchange. NATS: stream that must take the event. Kafka: topic. EventBridge: event bus. http: path below `http.url` \
                      (by default none: the URL itself).",
        example: "orders.{{ type }}",
        ..BASE
    },
    Setting {
        key: "route.key",
        kind: Kind::Template,
        default: Some("{{ type }}"),
        description: "RabbitMQ: routing key. NATS: subject. EventBridge: detail-type. Without a meaning for http and Kafka, whose record key is the row's \
                      `key`.",
        ..BASE
    },
];

const RELAY: &[Setting] = &[
    Setting {
        key: "relay.name",
        unset: "`HOSTNAME` and the process id",
        aliases: &["POD_NAME"],
        description: "Name of this replica in logs and in `outrigger status`.",
        example: "orders-0",
        ..BASE
    },
    Setting {
        key: "relay.target",
        unset: "the sink's hosts, as its settings name them",
        description: "What replicas compare to know that they publish to the same place. Set it, to the same name on all replicas, \
                      if they reach one broker or service by different host names.",
        example: "orders-rabbitmq",
        ..BASE
    },
    Setting {
        key: "relay.ordering",
        kind: Kind::Choice {
            allowed: &["strict", "pipelined", "none"],
        },
        default: Some("strict"),
        description: "`strict`: one unconfirmed event per key, so that a rejected event cannot be overtaken. `pipelined`: \
                      many per key in flight; order holds unless the broker rejects one. `none`: keys are ignored.",
        ..BASE
    },
    Setting {
        key: "relay.partitions",
        kind: Kind::Integer { min: 1, max: 1024 },
        default: Some("16"),
        description: "Partitions that replicas share. 1 is total order: all rows are one sequence, whatever their key. Fixed at the first start; replicas that \
                      disagree follow the stored number.",
        ..BASE
    },
    Setting {
        key: "relay.batch_size",
        kind: Kind::Integer {
            min: 1,
            max: 100_000,
        },
        default: Some("1000"),
        description: "Most rows per read. At most `relay.max_in_flight`.",
        ..BASE
    },
    Setting {
        key: "relay.max_in_flight",
        kind: Kind::Integer {
            min: 1,
            max: 1_000_000,
        },
        default: Some("4000"),
        description: "Most events that are read and not yet settled. Bounds memory, and the duplicates after a crash.",
        ..BASE
    },
    Setting {
        key: "relay.max_in_flight_bytes",
        kind: Kind::Size {
            min: "64KiB",
            max: "1GiB",
        },
        default: Some("16MiB"),
        description: "Most bytes of such events. One larger event still goes, alone.",
        ..BASE
    },
    Setting {
        key: "relay.max_event_size",
        kind: Kind::Size {
            min: "1KiB",
            max: "1GiB",
        },
        default: Some("16MiB"),
        description: "A row of more bytes, all its values together, is given up as `too_large` without being read. Memory \
                      must hold a few times as much.",
        ..BASE
    },
    Setting {
        key: "relay.wake",
        kind: Kind::Choice {
            allowed: &["listen", "poll"],
        },
        default: Some("listen"),
        description: "How an idle relay learns of new rows. `listen` uses NOTIFY with polling as the fallback; `poll` \
                      needs no direct connection.",
        ..BASE
    },
    Setting {
        key: "relay.poll_interval",
        kind: Kind::Duration {
            min: "1ms",
            max: "1h",
        },
        default: Some("250ms"),
        description: "Longest wait between polls while `relay.wake` is `poll`.",
        ..BASE
    },
    Setting {
        key: "relay.lease_ttl",
        kind: Kind::Duration {
            min: "2s",
            max: "1h",
        },
        default: Some("10s"),
        description: "How long a replica that vanished keeps its partitions.",
        ..BASE
    },
    Setting {
        key: "relay.shutdown_timeout",
        kind: Kind::Duration {
            min: "1ms",
            max: "1h",
        },
        default: Some("20s"),
        description: "How long a stop waits for events in flight. Keep it under the orchestrator's grace period.",
        ..BASE
    },
    Setting {
        key: "retry.max_attempts",
        kind: Kind::Integer {
            min: 1,
            max: 1_000_000,
        },
        default: Some("10"),
        description: "Attempts in all, the first included.",
        ..BASE
    },
    Setting {
        key: "retry.backoff_initial",
        kind: Kind::Duration {
            min: "1ms",
            max: "1d",
        },
        default: Some("500ms"),
        description: "Wait after the first failed attempt. Doubles with each attempt, with jitter.",
        ..BASE
    },
    Setting {
        key: "retry.backoff_max",
        kind: Kind::Duration {
            min: "1ms",
            max: "1d",
        },
        default: Some("5m"),
        description: "Ceiling of the wait.",
        ..BASE
    },
    Setting {
        key: "retry.on_exhausted",
        kind: Kind::Choice {
            allowed: &["dead", "block"],
        },
        default: Some("dead"),
        description: "When the attempts are used up: `dead` gives the event up and lets its key go on, `block` holds \
                      the key until an operator acts.",
        ..BASE
    },
    Setting {
        key: "retry.dead_letter_destination",
        kind: Kind::Template,
        unset: "dead events are only recorded",
        description: "Where dead events are published.",
        example: "events.dead",
        ..BASE
    },
    Setting {
        key: "retry.dead_letter_key",
        kind: Kind::Template,
        unset: "the event's own routing key",
        description: "Routing key of dead events. Needs `retry.dead_letter_destination`.",
        example: "{{ routing_key }}.dlq",
        ..BASE
    },
    Setting {
        key: "admin.listen",
        kind: Kind::Listen,
        default: Some("0.0.0.0:9647"),
        description: "Where `/livez`, `/readyz`, `/metrics` and the status page are served. Port 0 takes a free one, \
                      which the log names; `off` serves nothing.",
        example: "127.0.0.1:9647",
        ..BASE
    },
    Setting {
        key: "log.level",
        kind: Kind::Choice {
            allowed: &["off", "error", "warn", "info", "debug", "trace"],
        },
        default: Some("info"),
        description: "Least severe level that is written. `RUST_LOG`, if set, takes its place.",
        ..BASE
    },
    Setting {
        key: "log.format",
        kind: Kind::Choice {
            allowed: &["auto", "text", "json"],
        },
        default: Some("auto"),
        description: "`auto` is text on a terminal and JSON otherwise. `NO_COLOR` turns colours off.",
        ..BASE
    },
];

/// The `PG*` variables that are honoured, with their libpq keyword. They fill in what a
/// connection URL leaves open.
pub const PG_VARIABLES: &[(&str, &str)] = &[
    ("PGHOST", "host"),
    ("PGPORT", "port"),
    ("PGDATABASE", "dbname"),
    ("PGUSER", "user"),
    ("PGPASSWORD", "password"),
    ("PGPASSFILE", "passfile"),
    ("PGSERVICE", "service"),
    ("PGSERVICEFILE", "servicefile"),
    ("PGSYSCONFDIR", "sysconfdir"),
    ("PGOPTIONS", "options"),
    ("PGAPPNAME", "application_name"),
    ("PGSSLMODE", "sslmode"),
    ("PGSSLROOTCERT", "sslrootcert"),
    ("PGSSLCERT", "sslcert"),
    ("PGSSLKEY", "sslkey"),
    ("PGSSLNEGOTIATION", "sslnegotiation"),
    ("PGCHANNELBINDING", "channel_binding"),
    ("PGTARGETSESSIONATTRS", "target_session_attrs"),
    ("PGCONNECT_TIMEOUT", "connect_timeout"),
];

/// Other `PG*` variables that change what libpq connects to, or how safely. They are not honoured,
/// and setting one earns a warning.
pub(super) const PG_IGNORED: &[&str] = &[
    "PGHOSTADDR",
    "PGREQUIRESSL",
    "PGSSLCRL",
    "PGSSLCRLDIR",
    "PGREQUIREPEER",
    "PGSSLMINPROTOCOLVERSION",
    "PGSSLMAXPROTOCOLVERSION",
];
