//! The binary as a user meets it: what it prints where, and how it ends.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::process::{Command, Output, Stdio};

fn outrigger(args: &[&str], variables: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_outrigger"))
        .args(args)
        .env_clear()
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn run_without_settings_ends_with_2_and_one_report() {
    for args in [&[][..], &["run"]] {
        let output = outrigger(args, &[]);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert_eq!(text(&output.stdout), "");
        let report = text(&output.stderr);
        assert!(
            report.starts_with("error: the configuration has 3 problems\n"),
            "{report}"
        );
        assert_eq!(
            report.matches("required, but not set").count(),
            3,
            "{report}"
        );
    }
}

#[test]
fn check_takes_broken_settings_for_findings() {
    let output = outrigger(&["check"], &[]);
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(text(&output.stderr), "");
    let report = text(&output.stdout);
    assert_eq!(
        report.matches("required, but not set").count(),
        3,
        "{report}"
    );
    assert!(
        report.ends_with("not ready: 0 ok, 2 warnings, 3 failed\n"),
        "{report}"
    );
}

#[test]
fn a_command_for_the_database_asks_for_the_database_only() {
    for args in [&["status"][..], &["dead", "list"], &["pause"], &["migrate"]] {
        let output = outrigger(args, &[]);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let report = text(&output.stderr);
        assert!(
            report.starts_with("error: the configuration has a problem\n"),
            "{report}"
        );
        assert!(
            report.contains("OUTRIGGER_DATABASE_URL: required"),
            "{report}"
        );
    }
}

#[test]
fn health_needs_to_know_where_the_listener_is_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let no_toml = folder.path().join("no.toml");
    std::fs::write(&no_toml, "[admin\n").unwrap();
    let file = no_toml.to_str().unwrap();
    let unusable: [(&str, &str, &str); 5] = [
        ("OUTRIGGER_ADMIN_LISTEN", "off", "is `off`"),
        ("OUTRIGGER_ADMIN_LISTEN", "0.0.0.0:0", "has port 0"),
        (
            "OUTRIGGER_ADMIN_LISTEN",
            "nine",
            "OUTRIGGER_ADMIN_LISTEN=\"nine\"",
        ),
        ("OUTRIGGER_CONFIG", "/nowhere.toml", "cannot read the file"),
        ("OUTRIGGER_CONFIG", file, file),
    ];
    for (name, value, expected) in unusable {
        let output = outrigger(&["health"], &[(name, value)]);
        assert_eq!(output.status.code(), Some(2), "{name}={value}");
        let message = text(&output.stderr);
        assert!(message.contains(expected), "{name}={value}: {message}");
    }

    // Nobody is there. Neither what is missing nor what is wrong elsewhere keeps it from finding out.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let listen = format!("0.0.0.0:{port}");
    let variables = [
        ("OUTRIGGER_ADMIN_LISTEN", listen.as_str()),
        ("OUTRIGGER_RELAY_BATCH_SIZE", "lots"),
        ("OUTRIGGER_DATABASE_URL_FILE", "/nowhere"),
    ];
    let output = outrigger(&["health", "--ready"], &variables);
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    let expected = format!("error: http://127.0.0.1:{port}/readyz: cannot connect: ");
    assert!(message.starts_with(&expected), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
}

#[test]
fn wrong_usage_ends_with_2() {
    let cases: [(&[&str], &str); 5] = [
        (&["cnfig"], "a similar subcommand exists: 'config'"),
        (&["--nope"], "unexpected argument '--nope'"),
        (&["dead"], "Usage: outrigger dead"),
        (&["replay"], "--from <TIME>"),
        (&["config", "-o", "xml"], "[possible values: table, json]"),
    ];
    for (args, expected) in cases {
        let output = outrigger(args, &[]);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let message = text(&output.stderr);
        assert!(message.contains(expected), "{args:?}: {message}");
    }
}

#[test]
fn config_shows_settings_whatever_is_wrong_with_them() {
    let bad = [
        ("OUTRIGGER_RELAY_BATCH_SIZE", "lots"),
        ("OUTRIGGER_RABBITMQ_URL", "amqp://u:hunter2@h"),
    ];
    let output = outrigger(&["config"], &bad);
    assert_eq!(output.status.code(), Some(2));
    let shown = text(&output.stdout);
    assert!(shown.contains("amqp://u:***@h"), "{shown}");
    assert!(shown.contains("lots"), "{shown}");
    let report = text(&output.stderr);
    assert!(
        report.starts_with("error: the configuration has a problem\n"),
        "{report}"
    );

    let output = outrigger(&["config", "--output", "json"], &bad);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(text(&output.stderr), "", "all is in the JSON");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["problems"][0]["name"], "OUTRIGGER_RELAY_BATCH_SIZE");

    let output = outrigger(&["config", "-v"], &[]);
    assert_eq!(output.status.code(), Some(0));
    let shown = text(&output.stdout);
    let level = shown
        .lines()
        .find(|line| line.starts_with("log.level"))
        .unwrap();
    assert!(
        level.contains("debug") && level.ends_with("--verbose"),
        "{level}"
    );
}

#[test]
fn generated_texts_do_not_depend_on_the_settings() {
    let bad = [("OUTRIGGER_NOPE", "1")];
    for (option, expected) in [
        ("--reference", outrigger::settings::markdown()),
        ("--example", outrigger::settings::example()),
    ] {
        let output = outrigger(&["config", option], &bad);
        assert_eq!(output.status.code(), Some(0), "{option}");
        assert!(text(&output.stdout) == expected, "{option}");
    }
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = outrigger(&["completions", shell], &bad);
        assert_eq!(output.status.code(), Some(0), "{shell}");
        assert!(text(&output.stdout).contains("outrigger"), "{shell}");
    }
}

#[test]
fn every_command_has_its_manual_page() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("man1");
    // However bad the settings are.
    let bad = [("OUTRIGGER_NOPE", "1")];
    let output = outrigger(&["man", folder.to_str().unwrap()], &bad);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let page = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let main = outrigger(&["man"], &bad);
    assert_eq!(text(&main.stdout), page("outrigger.1"));
    let help = outrigger(&["--help"], &[]);
    let commands = text(&help.stdout)
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .map_while(|line| line.split_whitespace().next());
    let mut seen = 0;
    for command in commands.filter(|command| *command != "help") {
        let page = page(&format!("outrigger-{command}.1"));
        assert!(page.contains(".SH SYNOPSIS"), "{command}");
        seen += 1;
    }
    assert!(seen > 10, "{seen} commands");
    assert!(page("outrigger-dead-retry.1").contains("dry"));
    // Dates and versions of the compiler would make each build another.
    assert_eq!(
        page("outrigger.1")
            .lines()
            .find(|line| line.starts_with(".TH")),
        Some(concat!(
            ".TH outrigger 1  \"outrigger ",
            env!("CARGO_PKG_VERSION"),
            "\" Outrigger"
        ),)
    );
}

#[test]
fn the_version_is_that_of_the_package() {
    let output = outrigger(&["--version"], &[]);
    let version = text(&output.stdout).trim_end();
    let rest = version.strip_prefix(concat!("outrigger ", env!("CARGO_PKG_VERSION")));
    let rest = rest.unwrap_or_else(|| panic!("{version}"));
    // A release names its commit.
    assert!(
        rest.is_empty() || rest.starts_with(" (") && rest.ends_with(')'),
        "{version}"
    );
}

#[test]
fn a_reader_that_stops_reading_is_no_failure() {
    // A pipe whose reading end is closed before anything is written.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Command::new(env!("CARGO_BIN_EXE_outrigger"))
        .args(["config", "--reference"])
        .env_clear()
        .stdout(writer)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stderr), "");
}
