//! Loading settings as a user meets it: variables and a file in, settings or a report out.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod eventbridge;
mod kafka;
mod report;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use outrigger::cli::config::{json, table};
use outrigger::error::OnExhausted;
use outrigger::settings::{
    self, AfterPublish, EventMode, ExchangeType, Flag, Inputs, Loaded, LogFormat, Need, Ordering,
    Preset, Retention, Settings, SinkKind, Wake,
};
use secrecy::ExposeSecret;
use tempfile::TempDir;
use tracing::level_filters::LevelFilter;

/// What `run` cannot do without.
const BASIC: &[(&str, &str)] = &[
    ("OUTRIGGER_DATABASE_URL", "postgres://u:p@db/orders"),
    ("OUTRIGGER_EVENT_SOURCE", "/orders"),
    ("OUTRIGGER_RABBITMQ_URL", "amqp://u:p@rabbit"),
];

/// A folder for the configuration file and secret files; its path reads `DIR` in expectations.
struct Case {
    dir: TempDir,
    inputs: Inputs,
}

impl Case {
    fn new(variables: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut inputs = Inputs::default();
        for (name, value) in variables {
            let value = value.replace("DIR", dir.path().to_str().unwrap());
            inputs.variables.insert((*name).to_owned(), value);
        }
        Self { dir, inputs }
    }

    fn basic(variables: &[(&str, &str)]) -> Self {
        Self::new(&[BASIC, variables].concat())
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn file(mut self, text: &str) -> Self {
        self.inputs.config_file = Some(self.write("outrigger.toml", text));
        self
    }

    fn load(&self) -> Loaded {
        settings::load(self.inputs.clone())
    }

    fn report(&self, need: Need) -> String {
        match self.load().settings(need) {
            Ok(_) => String::new(),
            Err(report) => report
                .to_string()
                .replace(self.dir.path().to_str().unwrap(), "DIR"),
        }
    }

    fn settings(&self) -> Settings {
        self.load()
            .settings(Need::Relay)
            .unwrap_or_else(|report| panic!("{report}"))
    }
}

/// The problems of a configuration that has all `run` needs besides, without the first line.
#[track_caller]
fn check(variables: &[(&str, &str)], file: &str, expected: &[&str]) {
    let report = Case::basic(variables).file(file).report(Need::Relay);
    let found: Vec<&str> = report.lines().skip(1).map(str::trim).collect();
    assert_eq!(found, expected, "{variables:?}\n{file}");
}

#[test]
fn defaults() {
    let settings = Case::basic(&[("HOSTNAME", "pod-1")]).settings();
    assert_eq!(settings.database.pool_size, 2);
    assert!(settings.database.listen_url.is_none());
    assert_eq!(settings.outbox.table, "outbox");
    assert_eq!(settings.outbox.preset, Preset::Native);
    assert_eq!(settings.outbox.columns, settings::Columns::default());
    assert_eq!(settings.outbox.after_publish, AfterPublish::Mark);
    assert_eq!(settings.outbox.retention, Retention::Unset);
    assert_eq!(settings.event.source, "/orders");
    assert_eq!(settings.event.mode, EventMode::Structured);
    assert_eq!(settings.event.header_prefix, "ce-");
    assert_eq!(settings.route.destination, "events");
    assert_eq!(settings.route.key, "{{ type }}");
    assert_eq!(settings.sink, SinkKind::RabbitMq);
    assert_eq!(settings.rabbitmq.urls.len(), 1);
    assert!(!settings.rabbitmq.declare);
    assert_eq!(settings.rabbitmq.exchange_type, ExchangeType::Topic);
    assert_eq!(settings.rabbitmq.channels, 8);
    assert_eq!(settings.rabbitmq.confirm_timeout, Duration::from_secs(30));
    assert_eq!(settings.rabbitmq.max_message_size, 16 << 20);
    assert_eq!(settings.relay.name, "pod-1-0");
    assert_eq!(settings.relay.ordering, Ordering::Strict);
    assert_eq!(settings.relay.partitions, 16);
    assert_eq!(settings.relay.batch_size, 1000);
    assert_eq!(settings.relay.max_in_flight, 4000);
    assert_eq!(settings.relay.max_in_flight_bytes, 16 << 20);
    assert_eq!(settings.relay.wake, Wake::Listen);
    assert_eq!(settings.relay.poll_interval, Duration::from_millis(250));
    assert_eq!(settings.relay.lease_ttl, Duration::from_secs(10));
    assert_eq!(settings.relay.shutdown_timeout, Duration::from_secs(20));
    assert_eq!(settings.retry.max_attempts, 10);
    assert_eq!(settings.retry.backoff_initial, Duration::from_millis(500));
    assert_eq!(settings.retry.backoff_max, Duration::from_secs(300));
    assert_eq!(settings.retry.on_exhausted, OnExhausted::Dead);
    assert_eq!(settings.log.level, LevelFilter::INFO);
    assert_eq!(settings.log.format, LogFormat::Auto);
    assert!(settings.log.color);
}

#[test]
fn later_sources_win() {
    let file = "[database]\nurl = 'postgres://file/d'\n[relay]\nname = 'file'\nbatch_size = 5\n";
    type Variables = &'static [(&'static str, &'static str)];
    // (variables, database URL, replica name)
    let cases: [(Variables, &str, &str); 4] = [
        (&[], "postgres://file/d", "file"),
        // Variables of other tools rank below the file ...
        (
            &[("DATABASE_URL", "postgres://bare/d"), ("POD_NAME", "bare")],
            "postgres://file/d",
            "file",
        ),
        // ... and ours above it.
        (
            &[
                ("OUTRIGGER_DATABASE_URL", "postgres://own/d"),
                ("DATABASE_URL", "postgres://bare/d"),
                ("OUTRIGGER_RELAY_NAME", "own"),
                ("POD_NAME", "bare"),
            ],
            "postgres://own/d",
            "own",
        ),
        // Empty is unset.
        (
            &[("OUTRIGGER_DATABASE_URL", ""), ("OUTRIGGER_RELAY_NAME", "")],
            "postgres://file/d",
            "file",
        ),
    ];
    for (variables, url, name) in cases {
        let loaded = Case::new(variables).file(file).load();
        let settings = loaded.settings(Need::Database).unwrap();
        let found = settings.database.url.unwrap();
        assert_eq!(found.expose_secret(), url, "{variables:?}");
        assert_eq!(settings.relay.name, name, "{variables:?}");
        assert_eq!(settings.relay.batch_size, 5);
    }
    let without_file = Case::new(&[
        ("DATABASE_URL", "postgres://bare/d"),
        ("POD_NAME", "bare"),
        ("HOSTNAME", "host"),
    ]);
    let settings = without_file.load().settings(Need::Database).unwrap();
    assert_eq!(
        settings.database.url.unwrap().expose_secret(),
        "postgres://bare/d"
    );
    assert_eq!(settings.relay.name, "bare");
}

#[test]
fn a_flag_beats_every_variable() {
    let mut case = Case::basic(&[
        ("OUTRIGGER_LOG_LEVEL", "error"),
        ("RUST_LOG", "outrigger=trace"),
        ("NO_COLOR", "1"),
    ]);
    let log = case.settings().log;
    assert_eq!(log.level, LevelFilter::ERROR);
    assert_eq!(log.filter.as_deref(), Some("outrigger=trace"));
    assert!(!log.color);
    case.inputs.flags.push(Flag {
        name: "--verbose",
        key: "log.level",
        value: "debug".into(),
    });
    let log = case.settings().log;
    assert_eq!(log.level, LevelFilter::DEBUG);
    assert_eq!(log.filter, None);
}

#[test]
fn toml_takes_its_own_types() {
    let settings = Case::basic(&[])
        .file(
            "sink = 'stdout'\n\
             [rabbitmq]\nurl = ['amqp://a', 'amqps://b']\ndeclare = true\nchannels = 3\n\
             [outbox]\ncolumn_id = 'event_id'\ntable = ''\n\
             [relay]\nlease_ttl = '5s'\nmax_in_flight_bytes = '1MiB'\nbatch_size = '7'\n",
        )
        .settings();
    assert_eq!(settings.sink, SinkKind::Stdout);
    // The variable of BASIC wins over the file.
    assert_eq!(settings.rabbitmq.urls.len(), 1);
    assert!(settings.rabbitmq.declare);
    assert_eq!(settings.rabbitmq.channels, 3);
    assert_eq!(settings.outbox.columns.id.as_deref(), Some("event_id"));
    assert_eq!(settings.outbox.table, "outbox");
    assert_eq!(settings.relay.lease_ttl, Duration::from_secs(5));
    assert_eq!(settings.relay.max_in_flight_bytes, 1 << 20);
    assert_eq!(settings.relay.batch_size, 7);
    let case = Case::new(&BASIC[..2]).file("[rabbitmq]\nurl = ['amqp://a', 'amqps://b']\n");
    let urls = case.settings().rabbitmq.urls;
    let urls: Vec<&str> = urls.iter().map(ExposeSecret::expose_secret).collect();
    assert_eq!(urls, ["amqp://a", "amqps://b"]);
}

#[test]
fn pg_variables_are_passed_on_by_keyword() {
    let case = Case::new(&[
        ("PGHOST", "db"),
        ("PGPASSWORD", "hunter2"),
        ("PGSSLMODE", "verify-full"),
        ("PGAPPNAME", ""),
        ("PGREQUIRESSL", "1"),
    ]);
    let loaded = case.load();
    let pg = loaded.settings(Need::Database).unwrap().database.pg;
    let pairs: Vec<(&str, &str)> = pg.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let expected = [
        ("host", "db"),
        ("password", "hunter2"),
        ("sslmode", "verify-full"),
    ];
    assert_eq!(pairs, expected);
    assert_eq!(
        loaded.warnings(),
        ["`PGREQUIRESSL` is set but not honoured"]
    );
}

#[test]
fn each_command_demands_only_what_it_needs() {
    let empty = Case::new(&[]);
    assert_eq!(empty.report(Need::Nothing), "");
    assert_eq!(
        empty.report(Need::Database),
        "the configuration has a problem\n  \
         OUTRIGGER_DATABASE_URL: required, but not set\n    \
         hint: for example `postgres://user:password@host:5432/database`; `DATABASE_URL` and `PGHOST` are honoured too"
    );
    assert_eq!(
        empty.report(Need::Relay).lines().next(),
        Some("the configuration has 3 problems")
    );
    assert_eq!(Case::new(&BASIC[..1]).report(Need::Database), "");
    assert_eq!(Case::new(&[("PGHOST", "db")]).report(Need::Database), "");
    let stdout = [&BASIC[..2], &[("OUTRIGGER_SINK", "stdout")]].concat();
    assert_eq!(Case::new(&stdout).report(Need::Relay), "");
    assert_eq!(Case::basic(&[]).report(Need::Relay), "");
}

#[test]
fn bad_values_are_named_with_rule_and_source() {
    let cases: &[(&str, &str, &[&str])] = &[
        (
            "OUTRIGGER_RELAY_BATCH_SIZE",
            "lots",
            &[
                "OUTRIGGER_RELAY_BATCH_SIZE=\"lots\" (environment): expected a whole number from 1 to 100000",
            ],
        ),
        (
            "OUTRIGGER_RELAY_LEASE_TTL",
            "10",
            &[
                "OUTRIGGER_RELAY_LEASE_TTL=\"10\" (environment): expected a duration such as `500ms`, `30s`, `5m`, `12h` or `7d`",
                "hint: add a unit: `10s` or `10ms`",
            ],
        ),
        (
            "OUTRIGGER_RELAY_LEASE_TTL",
            "1999ms",
            &["OUTRIGGER_RELAY_LEASE_TTL=\"1999ms\" (environment): must be at least `2s`"],
        ),
        (
            "OUTRIGGER_RELAY_SHUTDOWN_TIMEOUT",
            "0s",
            &["OUTRIGGER_RELAY_SHUTDOWN_TIMEOUT=\"0s\" (environment): must be at least `1ms`"],
        ),
        (
            "OUTRIGGER_RETRY_MAX_ATTEMPTS",
            "0",
            &[
                "OUTRIGGER_RETRY_MAX_ATTEMPTS=\"0\" (environment): expected a whole number from 1 to 1000000",
            ],
        ),
        (
            "OUTRIGGER_RABBITMQ_MAX_MESSAGE_SIZE",
            "1GiB",
            &[
                "OUTRIGGER_RABBITMQ_MAX_MESSAGE_SIZE=\"1GiB\" (environment): must be at most `512MiB`",
            ],
        ),
        (
            "OUTRIGGER_RABBITMQ_DECLARE",
            "yes",
            &[
                "OUTRIGGER_RABBITMQ_DECLARE=\"yes\" (environment): expected `true` or `false`",
                "hint: write `true`",
            ],
        ),
        (
            "OUTRIGGER_RELAY_ORDERING",
            "strikt",
            &[
                "OUTRIGGER_RELAY_ORDERING=\"strikt\" (environment): expected `strict`, `pipelined` or `none`",
                "hint: did you mean `strict`?",
            ],
        ),
        (
            "OUTRIGGER_RABBITMQ_URL",
            "amqps://u:hunter2@h?verify=verify_none",
            &[
                "OUTRIGGER_RABBITMQ_URL (environment): has the parameter `verify`, which is not honoured",
                "hint: use `rabbitmq.ca_file`, `rabbitmq.cert_file` and `rabbitmq.key_file`",
            ],
        ),
        (
            "OUTRIGGER_EVENT_SOURCE",
            "order service",
            &[
                "OUTRIGGER_EVENT_SOURCE=\"order service\" (environment): expected a URI reference such as `/services/orders` or `https://example.com/orders`",
                "hint: percent-encode spaces and other special characters",
            ],
        ),
        (
            "RUST_LOG",
            "outrigger=loud",
            &[
                "RUST_LOG=\"outrigger=loud\" (environment): error parsing level filter: expected one of \"off\", \"error\", \"warn\", \"info\", \"debug\", \"trace\", or a number 0-5",
                "hint: for example `info,outrigger=debug`",
            ],
        ),
    ];
    for (name, value, expected) in cases {
        check(&[(name, value)], "", expected);
    }
}

#[test]
fn values_are_repeated_escaped_and_shortened() {
    check(
        &[("OUTRIGGER_RELAY_WAKE", "po\nll")],
        "",
        &[
            "OUTRIGGER_RELAY_WAKE=\"po\\nll\" (environment): expected `listen` or `poll`",
            "hint: did you mean `poll`?",
        ],
    );
    let long = "é".repeat(1000);
    let report = Case::basic(&[("OUTRIGGER_RELAY_WAKE", &long)]).report(Need::Relay);
    assert!(
        report.contains(&format!("=\"{}…\" ", "é".repeat(80))),
        "{report}"
    );
}

#[test]
fn names_nobody_knows_are_errors() {
    check(
        &[("OUTRIGGER_RABBITMQ_CHANELS", "4")],
        "",
        &[
            "OUTRIGGER_RABBITMQ_CHANELS (environment): unknown setting",
            "hint: did you mean `OUTRIGGER_RABBITMQ_CHANNELS`?",
        ],
    );
    check(
        &[("OUTRIGGER_EVENT_SOURCE_FILE", "/x")],
        "",
        &[
            "OUTRIGGER_EVENT_SOURCE_FILE (environment): unknown setting",
            "hint: only secrets are read from files; set `OUTRIGGER_EVENT_SOURCE`",
        ],
    );
    check(
        &[("OUTRIGGER_ZZZ", "s3cret")],
        "",
        &["OUTRIGGER_ZZZ (environment): unknown setting"],
    );
    check(
        &[
            ("OUTRIGGER_PORT", "tcp://10.0.0.1:80"),
            ("OUTRIGGER_PORT_80_TCP_ADDR", "10.0.0.1"),
            ("OUTRIGGER_SERVICE_HOST", "10.0.0.1"),
            ("OUTRIGGERS", "other"),
        ],
        "",
        &[],
    );
}

#[test]
fn the_file_is_checked_as_strictly() {
    check(
        &[],
        "batch_size = 5\noutbox = 'x'\n[relay]\nbatchsize = 5\n[rely]\nx = 1\n[event.mode]\na = 1\n",
        &[
            "batch_size (DIR/outrigger.toml): unknown setting",
            "hint: did you mean `relay.batch_size`?",
            "event.mode (DIR/outrigger.toml): must not be a table",
            "outbox (DIR/outrigger.toml): is a section",
            "hint: write `[outbox]` and its settings below",
            "relay.batchsize (DIR/outrigger.toml): unknown setting",
            "hint: did you mean `relay.batch_size`?",
            "rely (DIR/outrigger.toml): unknown setting",
            "hint: did you mean `relay`?",
        ],
    );
    check(
        &[],
        "[relay]\nname = 007\n",
        &[
            "DIR/outrigger.toml: TOML parse error at line 2, column 8: unexpected leading zero, expected nothing",
        ],
    );
    check(
        &[],
        "[relay]\nname = 7\npoll_interval = 250\nbatch_size = 1.5\nwake = ['poll']\n[rabbitmq]\ndeclare = 'no'\n",
        &[
            "relay.batch_size=\"1.5\" (DIR/outrigger.toml): must be a string in quotes",
            "relay.name=\"7\" (DIR/outrigger.toml): must be a string in quotes",
            "relay.wake (DIR/outrigger.toml): must not be a list",
            "rabbitmq.declare=\"no\" (DIR/outrigger.toml): expected `true` or `false`",
            "hint: write `false`",
            "relay.poll_interval=\"250\" (DIR/outrigger.toml): expected a duration such as `500ms`, `30s`, `5m`, `12h` or `7d`",
            "hint: add a unit: `250s` or `250ms`",
        ],
    );
}

#[test]
fn a_missing_file_is_an_error_that_names_who_asked_for_it() {
    let by_variable = Case::basic(&[("OUTRIGGER_CONFIG", "DIR/none.toml")]);
    assert_eq!(
        by_variable.report(Need::Relay),
        "the configuration has a problem\n  OUTRIGGER_CONFIG=\"DIR/none.toml\" (environment): \
         cannot read the file: No such file or directory (os error 2)"
    );
    let mut by_flag = Case::basic(&[("OUTRIGGER_CONFIG", "DIR/ignored.toml")]);
    by_flag.inputs.config_file = Some(by_flag.dir.path().join("none.toml"));
    let report = by_flag.report(Need::Relay);
    assert!(
        report.contains("  --config=\"DIR/none.toml\": cannot read"),
        "{report}"
    );
}

#[test]
fn settings_are_checked_against_each_other() {
    check(
        &[("OUTRIGGER_RELAY_BATCH_SIZE", "5000")],
        "",
        &[
            "OUTRIGGER_RELAY_BATCH_SIZE (environment): must not be more than `OUTRIGGER_RELAY_MAX_IN_FLIGHT`, which is 4000",
        ],
    );
    check(
        &[],
        "[relay]\nmax_in_flight = 10\n[retry]\nbackoff_initial = '1h'\ndead_letter_key = 'x'\n",
        &[
            "OUTRIGGER_RELAY_BATCH_SIZE: must not be more than `relay.max_in_flight`, which is 10",
            "retry.backoff_initial (DIR/outrigger.toml): must not be longer than `retry.backoff_max`",
            "retry.dead_letter_key (DIR/outrigger.toml): has no effect without `retry.dead_letter_destination`",
        ],
    );
    check(
        &[("OUTRIGGER_RABBITMQ_CERT_FILE", "/c")],
        "",
        &[
            "OUTRIGGER_RABBITMQ_CERT_FILE (environment): is of no use without `OUTRIGGER_RABBITMQ_KEY_FILE`",
            "OUTRIGGER_RABBITMQ_CERT_FILE (environment): has no effect, because `OUTRIGGER_RABBITMQ_URL` is not encrypted; use `amqps://`",
        ],
    );
    check(
        &[
            ("OUTRIGGER_RABBITMQ_KEY_FILE", "/k"),
            ("OUTRIGGER_RABBITMQ_URL", "amqps://h"),
        ],
        "",
        &[
            "OUTRIGGER_RABBITMQ_KEY_FILE (environment): is of no use without `OUTRIGGER_RABBITMQ_CERT_FILE`",
        ],
    );
    // A value that is wrong by itself draws no second error.
    check(
        &[
            ("OUTRIGGER_RELAY_BATCH_SIZE", "5000"),
            ("OUTRIGGER_RELAY_MAX_IN_FLIGHT", "x"),
        ],
        "",
        &[
            "OUTRIGGER_RELAY_MAX_IN_FLIGHT=\"x\" (environment): expected a whole number from 1 to 1000000",
        ],
    );
}
