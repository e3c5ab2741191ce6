//! The settings of the Kafka sink, and what does not go with it.

use crate::Case;
use outrigger::settings::{Need, Sasl, SinkKind};
use secrecy::ExposeSecret;

const BASIC: &[(&str, &str)] = &[
    ("OUTRIGGER_DATABASE_URL", "postgres://u:p@db/orders"),
    ("OUTRIGGER_EVENT_SOURCE", "/orders"),
    ("OUTRIGGER_SINK", "kafka"),
];

#[track_caller]
fn check(variables: &[(&str, &str)], expected: &[&str]) {
    let case = Case::new(&[BASIC, variables].concat());
    let mut problems: Vec<String> = match case.load().settings(Need::Relay) {
        Ok(_) => Vec::new(),
        Err(report) => report.problems.iter().map(ToString::to_string).collect(),
    };
    // A build without Kafka says so beside everything else.
    let missing = problems
        .iter()
        .position(|problem| problem.contains("without it"));
    assert_eq!(missing.is_none(), cfg!(feature = "kafka"), "{problems:#?}");
    if let Some(missing) = missing {
        problems.remove(missing);
    }
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
    for (problem, part) in problems.iter().zip(expected) {
        assert!(problem.contains(part), "{problem:?} lacks {part:?}");
    }
}

/// The exports of the shell block that contains `part`, in the page about Debezium.
fn exports_for_debezium(part: &str) -> Vec<(String, String)> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/from-debezium.md");
    let text = std::fs::read_to_string(path).unwrap();
    let block = text
        .split("```sh\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap())
        .find(|block| block.contains(part))
        .unwrap();
    block
        .lines()
        .filter_map(|line| line.strip_prefix("export "))
        .flat_map(|line| {
            // One export may hold several variables; only the last one has a quoted value with blanks.
            let mut rest = line;
            let mut variables = Vec::new();
            while let Some((name, value)) = rest.split_once('=') {
                let (value, after) = match value.strip_prefix('\'') {
                    Some(quoted) => quoted.split_once('\'').unwrap(),
                    None => value.split_once(' ').unwrap_or((value, "")),
                };
                variables.push((name.to_owned(), value.to_owned()));
                rest = after.trim_start();
            }
            variables
        })
        .collect()
}

#[test]
fn the_page_about_debezium_publishes_to_kafka_as_it_says() {
    let table = exports_for_debezium("OUTRIGGER_OUTBOX_PRESET");
    let kafka = exports_for_debezium("OUTRIGGER_SINK=kafka");
    assert!(table.len() >= 5 && kafka.len() >= 4, "{table:?} {kafka:?}");
    let variables: Vec<(&str, &str)> = table
        .iter()
        .chain(&kafka)
        .map(|(name, value)| (name.as_str(), value.as_str()))
        // The page unsets it: a record has no routing key.
        .filter(|(name, _)| *name != "OUTRIGGER_ROUTE_KEY")
        .collect();
    check(&variables, &[]);
}

#[test]
fn brokers_are_all_that_is_needed() {
    check(&[("OUTRIGGER_KAFKA_BROKERS", "a:9092, [::1]:9093,")], &[]);
    check(&[], &["OUTRIGGER_KAFKA_BROKERS: required"]);
    for (brokers, rule) in [
        ("kafka", "`kafka` is not `host:port`"),
        ("a:1,b:0", "`b:0` is not `host:port`"),
        ("kafka://a:9092", "without a scheme"),
        (",", "names no broker"),
    ] {
        check(&[("OUTRIGGER_KAFKA_BROKERS", brokers)], &[rule]);
    }
}

#[test]
fn what_goes_together_is_asked_for_together() {
    let brokers = ("OUTRIGGER_KAFKA_BROKERS", "a:9092");
    check(
        &[brokers, ("OUTRIGGER_KAFKA_SASL_MECHANISM", "plain")],
        &[
            "needs `OUTRIGGER_KAFKA_USERNAME`",
            "needs `OUTRIGGER_KAFKA_PASSWORD`",
        ],
    );
    check(
        &[
            brokers,
            ("OUTRIGGER_KAFKA_PASSWORD", "hunter2"),
            ("OUTRIGGER_KAFKA_CERT_FILE", "/cert.pem"),
        ],
        &[
            "is of no use without `OUTRIGGER_KAFKA_KEY_FILE`",
            "has no effect unless `OUTRIGGER_KAFKA_TLS` is `true`",
            "OUTRIGGER_KAFKA_PASSWORD (environment): has no effect without `OUTRIGGER_KAFKA_SASL_MECHANISM`",
        ],
    );
}

#[test]
fn what_kafka_does_not_have_is_refused() {
    let brokers = ("OUTRIGGER_KAFKA_BROKERS", "a:9092");
    for (name, value, part) in [
        ("OUTRIGGER_EVENT_MODE", "batch", "one key"),
        ("OUTRIGGER_EVENT_HEADER_PREFIX", "ce-", "`ce_` in Kafka"),
        ("OUTRIGGER_ROUTE_KEY", "{{ type }}", "no routing key"),
    ] {
        check(&[brokers, (name, value)], &[part]);
    }
    check(
        &[
            brokers,
            ("OUTRIGGER_RETRY_DEAD_LETTER_DESTINATION", "dead"),
            ("OUTRIGGER_RETRY_DEAD_LETTER_KEY", "x"),
        ],
        &["no routing key"],
    );
}

#[test]
fn the_password_is_hidden() {
    let case = Case::new(
        &[
            BASIC,
            &[
                ("OUTRIGGER_KAFKA_BROKERS", "a:9092"),
                ("OUTRIGGER_KAFKA_SASL_MECHANISM", "scram-sha-512"),
                ("OUTRIGGER_KAFKA_USERNAME", "orders"),
                ("OUTRIGGER_KAFKA_PASSWORD", "hunter2"),
            ],
        ]
        .concat(),
    );
    let loaded = case.load();
    let settings = loaded.provisional();
    assert_eq!(settings.sink, SinkKind::Kafka);
    assert_eq!(settings.kafka.sasl, Sasl::ScramSha512);
    let password = settings.kafka.password.as_ref().unwrap();
    assert_eq!(password.expose_secret(), "hunter2");
    assert!(!format!("{settings:?}{:?}", loaded.shown()).contains("hunter2"));
}
