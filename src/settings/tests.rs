//! The table against itself and against the typed settings.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;

use super::*;
use crate::error::RetryPolicy;

#[test]
fn keys_are_unique_and_in_known_sections() {
    let mut seen = BTreeSet::new();
    for setting in SETTINGS {
        assert!(seen.insert(setting.key), "{} twice", setting.key);
        assert!(
            SECTIONS
                .iter()
                .any(|(section, _)| *section == setting.section()),
            "{}: unknown section",
            setting.key
        );
        let plain = |c: char| c.is_ascii_lowercase() || c == '_' || c == '.';
        assert!(setting.key.chars().all(plain), "{}", setting.key);
    }
    // Flat names: two keys must not share a variable.
    let variables: BTreeSet<_> = SETTINGS.iter().map(|s| s.variable()).collect();
    assert_eq!(variables.len(), SETTINGS.len());
    // Nor may the file variable of a secret be some other setting.
    for file in SETTINGS.iter().filter_map(Setting::file_variable) {
        assert!(!variables.contains(&file), "{file}");
    }
    assert!(!variables.contains(CONFIG_VARIABLE));
}

#[test]
fn every_setting_is_described_and_says_what_happens_without_a_value() {
    for setting in SETTINGS {
        assert!(setting.description.ends_with('.'), "{}", setting.key);
        assert!(
            setting.default.is_some() == setting.unset.is_empty(),
            "{}: either a default or a note",
            setting.key
        );
    }
}

#[test]
fn defaults_examples_and_limits_keep_their_own_rules() {
    for setting in SETTINGS {
        let written = [setting.default.unwrap_or_default(), setting.example];
        for text in written.into_iter().filter(|text| !text.is_empty()) {
            let violation = setting.kind.parse(text).err();
            assert_eq!(violation, None, "{} = {text}", setting.key);
        }
        if let Kind::Duration { min, max }
        | Kind::DurationOrOff { min, max }
        | Kind::Size { min, max } = setting.kind
        {
            assert!(setting.kind.parse(min).is_ok(), "{}: {min}", setting.key);
            assert!(setting.kind.parse(max).is_ok(), "{}: {max}", setting.key);
        }
    }
}

#[test]
fn the_typed_settings_use_exactly_the_table() {
    let loaded = load(Inputs::default());
    let table: BTreeSet<String> = SETTINGS.iter().map(|s| s.key.to_owned()).collect();
    assert_eq!(*loaded.values.asked.borrow(), table);
}

/// Each setting is turned to something other than its default, which must show in the typed
/// settings: no getter reads a value as the wrong type, or under the wrong key.
#[test]
fn every_setting_reaches_the_typed_settings() {
    let before = format!("{:?}", load(Inputs::default()).settings);
    for setting in SETTINGS {
        for text in other_values(setting) {
            let mut inputs = Inputs::default();
            inputs.variables.insert(setting.variable(), text.clone());
            let loaded = load(inputs);
            assert!(loaded.problems.is_empty(), "{}={text}", setting.key);
            let after = format!("{:?}", loaded.settings);
            assert_ne!(before, after, "{}={text} changes nothing", setting.key);
        }
    }
}

fn other_values(setting: &Setting) -> Vec<String> {
    let all: Vec<String> = match setting.kind {
        Kind::Bool => vec!["true".into(), "false".into()],
        Kind::Integer { min, max } => vec![min.to_string(), max.to_string()],
        Kind::Duration { min, max } | Kind::Size { min, max } => vec![min.into(), max.into()],
        Kind::DurationOrOff { min, max } => vec![min.into(), max.into(), "off".into()],
        Kind::Choice { allowed, .. } => allowed.iter().map(|word| (*word).into()).collect(),
        Kind::PostgresUrl => vec!["postgres://h/d".into()],
        Kind::AmqpUrls => vec!["amqp://h".into()],
        Kind::Listen => vec!["127.0.0.1:1".into(), "off".into()],
        Kind::NatsUrls => vec!["nats://h".into()],
        Kind::HttpUrl => vec!["http://h".into()],
        Kind::Brokers => vec!["h:1".into()],
        Kind::Text | Kind::Template | Kind::Path | Kind::UriReference => vec!["other".into()],
    };
    all.into_iter()
        .filter(|text| Some(text.as_str()) != setting.default)
        .collect()
}

#[test]
fn retry_defaults_are_those_of_the_policy() {
    let settings = load(Inputs::default()).settings;
    assert_eq!(settings.retry.policy(), RetryPolicy::default());
}

fn problems_of(variables: &[(&str, &str)]) -> (Settings, Vec<String>) {
    let mut inputs = Inputs::default();
    for (name, value) in variables {
        inputs.variables.insert((*name).into(), (*value).into());
    }
    let loaded = load(inputs);
    let problems = match loaded.settings(Need::Relay) {
        Ok(_) => Vec::new(),
        Err(report) => report.problems.iter().map(ToString::to_string).collect(),
    };
    (loaded.settings, problems)
}

#[test]
fn http_posts_to_its_url_unless_a_path_is_given() {
    let base = [
        ("OUTRIGGER_SINK", "http"),
        ("OUTRIGGER_HTTP_URL", "https://h/hooks"),
        ("OUTRIGGER_EVENT_SOURCE", "/s"),
        ("DATABASE_URL", "postgres://h/d"),
    ];
    let (settings, problems) = problems_of(&base);
    assert_eq!(problems, [""; 0]);
    assert_eq!(settings.route.destination, "");
    let given = [&base[..], &[("OUTRIGGER_ROUTE_DESTINATION", "{{ type }}")]].concat();
    assert_eq!(problems_of(&given).0.route.destination, "{{ type }}");
    let (settings, _) = problems_of(&base[2..]);
    assert_eq!(settings.route.destination, "events");
}

#[test]
fn what_a_sink_has_no_use_for_is_refused() {
    let base = [
        ("OUTRIGGER_EVENT_SOURCE", "/s"),
        ("DATABASE_URL", "postgres://h/d"),
        ("OUTRIGGER_NATS_URL", "nats://h"),
        ("OUTRIGGER_HTTP_URL", "http://h"),
    ];
    for (sink, more, expected) in [
        (
            "nats",
            ("OUTRIGGER_EVENT_HEADER_PREFIX", "cloudEvents:"),
            "must be `ce-`",
        ),
        (
            "http",
            ("OUTRIGGER_EVENT_HEADER_PREFIX", "cloudEvents_"),
            "must be `ce-`",
        ),
        (
            "http",
            ("OUTRIGGER_ROUTE_KEY", "{{ type }}"),
            "no routing keys",
        ),
        (
            "nats",
            ("OUTRIGGER_NATS_CERT_FILE", "c.pem"),
            "OUTRIGGER_NATS_KEY_FILE",
        ),
    ] {
        let sink = ("OUTRIGGER_SINK", sink);
        let (_, problems) = problems_of(&[&base[..], &[sink, more]].concat());
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].contains(expected), "{problems:?}");
    }
    for sink in ["nats", "http"] {
        let only = [("OUTRIGGER_SINK", sink), base[0], base[1]];
        let (_, problems) = problems_of(&only);
        assert!(problems.concat().contains("required"), "{problems:?}");
    }
}
