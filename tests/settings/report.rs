//! Secret files, what the report and the tables show, and the generated documents.

use super::*;

#[test]
fn secrets_can_be_read_from_files() {
    for (content, expected) in [
        ("postgres://h/d", "postgres://h/d"),
        ("postgres://h/d\n", "postgres://h/d"),
        ("postgres://h/d\r\n", "postgres://h/d"),
        ("postgres://h/d\n\n", "postgres://h/d\n"),
    ] {
        let case = Case::new(&[("OUTRIGGER_DATABASE_URL_FILE", "DIR/url")]);
        case.write("url", content);
        let settings = case.load().settings(Need::Database).unwrap();
        let url = settings.database.url.unwrap();
        assert_eq!(url.expose_secret(), expected);
    }
    check(
        &[("OUTRIGGER_DATABASE_URL_FILE", "DIR/url")],
        "",
        &[
            "OUTRIGGER_DATABASE_URL_FILE=\"DIR/url\" (environment): set together with `OUTRIGGER_DATABASE_URL`; set only one of the two",
        ],
    );
    let unreadable: [(&[u8], &str); 3] = [
        (b"", "the file is empty"),
        (b"\n", "the file is empty"),
        (b"\xff", "the file is not UTF-8 text"),
    ];
    for (content, rule) in unreadable {
        let case = Case::new(&[("OUTRIGGER_DATABASE_URL_FILE", "DIR/url")]);
        case.write("url", content);
        // One problem: the setting is not reported as missing besides.
        assert_eq!(
            case.report(Need::Database),
            format!(
                "the configuration has a problem\n  \
                 OUTRIGGER_DATABASE_URL_FILE=\"DIR/url\" (environment): {rule}"
            )
        );
    }
    let endless = Case::new(&[("OUTRIGGER_RABBITMQ_URL_FILE", "/dev/zero")]);
    let report = endless.report(Need::Nothing);
    assert!(
        report.ends_with("the file is larger than 1 MiB"),
        "{report}"
    );
}

#[test]
fn what_a_file_of_variables_adds_to_a_value_is_taken_away_or_told() {
    let case = Case::basic(&[
        ("OUTRIGGER_EVENT_SOURCE", "/shop\r"),
        ("OUTRIGGER_ROUTE_DESTINATION", "shop\r\n"),
        ("OUTRIGGER_OUTBOX_TABLE", "\"Shop\".\"Outbox\""),
        ("OUTRIGGER_RELAY_WAKE", "\r"),
    ]);
    let settings = case.load().settings(Need::Relay).unwrap();
    assert_eq!(settings.event.source, "/shop");
    assert_eq!(settings.outbox.table, "\"Shop\".\"Outbox\"");
    assert_eq!(settings.relay.wake, Wake::Listen);
    let settings = format!("{settings:?}");
    assert!(settings.contains("\"shop\""), "{settings}");
    // A route in quotes would be published to, quotes and all.
    for (name, value) in [
        ("OUTRIGGER_ROUTE_KEY", "\"{{ type }}\""),
        ("OUTRIGGER_ROUTE_DESTINATION", "'shop'"),
        ("OUTRIGGER_EVENT_SOURCE", "\"/shop\""),
    ] {
        let report = Case::basic(&[(name, value)]).report(Need::Relay);
        let told = format!(
            "{name}={value:?} (environment): is in quotes, which are part of the value here"
        );
        assert!(report.contains(&told), "{report}");
        assert!(report.contains("hint: remove them"), "{report}");
    }
}

#[test]
fn text_that_is_not_unicode_is_reported() {
    let mut case = Case::basic(&[]);
    case.inputs.unreadable = vec!["OUTRIGGER_RELAY_NAME".into(), "PATH".into()];
    assert_eq!(
        case.report(Need::Relay),
        "the configuration has a problem\n  OUTRIGGER_RELAY_NAME (environment): is not UTF-8 text"
    );
}

#[test]
fn control_characters_reach_no_terminal() {
    let case = Case::basic(&[
        ("OUTRIGGER_\u{1b}[2J", "\u{1b}"),
        ("OUTRIGGER_SINK", "\u{7}"),
    ]);
    let report = case.report(Need::Relay);
    assert!(report.contains("OUTRIGGER_\\u{1b}[2J"), "{report}");
    assert!(!report.contains(['\u{1b}', '\u{7}']), "{report:?}");
}

#[test]
fn one_report_tells_everything() {
    let case = Case::new(&[
        ("OUTRIGGER_DATABASE_URL", "mysql://u:hunter2@db"),
        ("OUTRIGGER_DATABASE_POOLSIZE", "3"),
        ("OUTRIGGER_RABBITMQ_URL_FILE", "DIR/absent"),
        ("OUTRIGGER_RELAY_LEASE_TTL", "1s"),
        ("OUTRIGGER_SINK", "rabitmq"),
    ])
    .file("[outbox]\nretention = 7\n[retry]\nbackoff_initial = '10m'\nattempts = 3\n");
    assert_eq!(
        case.report(Need::Relay),
        "\
the configuration has 9 problems
  OUTRIGGER_RABBITMQ_URL_FILE=\"DIR/absent\" (environment): cannot read the file: No such file or directory (os error 2)
  retry.attempts (DIR/outrigger.toml): unknown setting
    hint: did you mean `retry.max_attempts`?
  OUTRIGGER_DATABASE_POOLSIZE (environment): unknown setting
    hint: did you mean `OUTRIGGER_DATABASE_POOL_SIZE`?
  OUTRIGGER_SINK=\"rabitmq\" (environment): expected `rabbitmq`, `nats`, `http`, `kafka`, `eventbridge` or `stdout`
    hint: did you mean `rabbitmq`?
  OUTRIGGER_DATABASE_URL (environment): expected a `postgres://` URL or a libpq keyword string
    hint: for example `postgres://user@host:5432/database`
  outbox.retention=\"7\" (DIR/outrigger.toml): expected a duration such as `500ms`, `30s`, `5m`, `12h` or `7d`
    hint: add a unit: `7s` or `7ms`
  OUTRIGGER_RELAY_LEASE_TTL=\"1s\" (environment): must be at least `2s`
  retry.backoff_initial (DIR/outrigger.toml): must not be longer than `retry.backoff_max`
  OUTRIGGER_EVENT_SOURCE: required, but not set
    hint: for example `/services/orders`"
    );
}

#[test]
fn the_table_of_settings_shows_values_and_sources() {
    let case = Case::basic(&[("AMQP_URL", "amqp://lost"), ("PGUSER", "me")])
        .file("[relay]\nbatch_size = 5\n");
    let text = table(&case.load(), false).replace(case.dir.path().to_str().unwrap(), "DIR");
    let cells = |key: &str| -> Vec<String> {
        let line = text.lines().find(|line| line.starts_with(key)).unwrap();
        let columns = line.split("  ").map(str::trim);
        columns
            .filter(|cell| !cell.is_empty())
            .map(str::to_owned)
            .collect()
    };
    for expected in [
        ["sink ", "rabbitmq", "default"],
        ["relay.batch_size", "5", "DIR/outrigger.toml"],
        [
            "rabbitmq.url",
            "amqp://u:***@rabbit",
            "OUTRIGGER_RABBITMQ_URL",
        ],
        ["relay.name", "(`HOSTNAME` and the process id)", "unset"],
        ["PGUSER", "me", "PGUSER"],
        // What the preset names, not that it names something.
        ["outbox.column_seq", "(`seq`, by the preset)", "unset"],
        ["outbox.column_status", "(none, by the preset)", "unset"],
    ] {
        let found = cells(expected[0]);
        assert_eq!(found, expected.map(str::trim), "{text}");
    }
    let (text, sound) = json(&case.load(), false).unwrap();
    assert!(sound);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let line = json["settings"]
        .as_array()
        .unwrap()
        .iter()
        .find(|line| line["key"] == "relay.batch_size")
        .unwrap();
    assert_eq!(line["value"], "5");
    assert_eq!(line["source"], "file");
    assert_eq!(line["variable"], "OUTRIGGER_RELAY_BATCH_SIZE");
}

#[test]
fn only_what_was_given_can_be_shown() {
    let case = Case::basic(&[("PGUSER", "me")]);
    let given = table(&case.load(), true);
    let all = table(&case.load(), false);
    assert!(
        given.contains("event.source") && given.contains("PGUSER"),
        "{given}"
    );
    assert!(
        !given.contains("relay.batch_size") && !given.contains("unset"),
        "{given}"
    );
    assert!(all.lines().count() > 2 * given.lines().count());
    let json: serde_json::Value =
        serde_json::from_str(&json(&case.load(), true).unwrap().0).unwrap();
    let lines = json["settings"].as_array().unwrap();
    assert!(
        lines
            .iter()
            .all(|line| line["source"] != serde_json::Value::Null)
    );
}

#[test]
fn the_committed_reference_and_example_are_up_to_date() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    for (path, option, made) in [
        ("docs/configuration.md", "--reference", settings::markdown()),
        ("examples/outrigger.toml", "--example", settings::example()),
    ] {
        let committed = fs::read_to_string(root.join(path)).unwrap_or_default();
        assert!(
            committed == made,
            "{path} is out of date: cargo run -- config {option} > {path}"
        );
    }
}

#[test]
fn the_example_file_is_sound_with_every_line_in_use() {
    let example = settings::example();
    let active: String = example
        .lines()
        .filter(|line| line.starts_with('[') || line.contains(" = "))
        .map(|line| format!("{}\n", line.trim_start_matches("# ")))
        .collect();
    let count = active.lines().filter(|line| line.contains(" = ")).count();
    assert_eq!(count, settings::SETTINGS.len(), "{active}");
    let case = Case::new(&[]).file(&active);
    assert_eq!(case.report(Need::Relay), "", "{active}");
    // As committed, with everything commented out, it changes nothing.
    let case = Case::new(&[]).file(&example);
    assert_eq!(case.report(Need::Nothing), "");
    for line in case.load().shown() {
        assert_eq!(line.origin, settings::Origin::Default, "{}", line.key);
    }
}
