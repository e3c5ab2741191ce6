//! Rules about the source itself: which module may know what, and how long a file may grow.
//!
//! Each rule names the only places where something may appear, or the places where it may not.
//! The check reads text, not syntax: comments are ignored, names are matched as whole words.

// In a test, a panic is the report.
#![allow(clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// Longer files are split by idea.
const MAX_LINES: usize = 600;

/// `names` may appear in files under `scope`, except under `homes`.
struct Rule {
    names: &'static [&'static str],
    scope: &'static [&'static str],
    homes: &'static [&'static str],
    why: &'static str,
}

const RULES: &[Rule] = &[
    Rule {
        names: &["tokio_postgres", "deadpool_postgres", "postgres_types"],
        scope: &["src/"],
        homes: &["src/store/postgres/", "src/telemetry/"],
        why: "only the Postgres store speaks to Postgres (the log filter knows its name)",
    },
    Rule {
        names: &["lapin"],
        scope: &["src/"],
        homes: &["src/sink/rabbitmq/", "src/telemetry/"],
        why: "only the RabbitMQ sink speaks to RabbitMQ (the log filter knows its name)",
    },
    Rule {
        names: &["async_nats", "nkeys"],
        scope: &["src/"],
        homes: &["src/sink/nats/", "src/telemetry/"],
        why: "only the NATS sink speaks to NATS (the log filter knows its name)",
    },
    Rule {
        names: &["rdkafka"],
        scope: &["src/"],
        homes: &["src/sink/kafka/"],
        why: "only the Kafka sink speaks to Kafka",
    },
    Rule {
        names: &[
            "aws_config",
            "aws_runtime",
            "aws_sdk_eventbridge",
            "aws_smithy_http_client",
        ],
        scope: &["src/"],
        homes: &["src/sink/eventbridge/", "src/telemetry/"],
        why: "only the EventBridge sink speaks to AWS (the log filter knows its name)",
    },
    Rule {
        names: &["cloudevents"],
        scope: &["src/"],
        homes: &["src/event/", "src/telemetry/trace/"],
        why: "CloudEvents are made in `event` (attributes of spans are called by their name)",
    },
    Rule {
        names: &["hyper", "hyper_util", "http_body_util"],
        scope: &["src/"],
        homes: &["src/admin/", "src/sink/http/", "src/telemetry/"],
        why: "only the admin listener and the http sink speak HTTP (the log filter knows its name)",
    },
    Rule {
        names: &["opentelemetry", "opentelemetry_otlp", "opentelemetry_sdk"],
        scope: &["src/"],
        homes: &["src/telemetry/"],
        why: "spans are made in `telemetry`",
    },
    Rule {
        names: &[
            "env::var",
            "env::var_os",
            "env::vars",
            "env::vars_os",
            "env::set_var",
        ],
        scope: &["src/"],
        homes: &["src/settings/", "src/main.rs"],
        why: "the environment is read in one place, so that every setting is checked and documented",
    },
    Rule {
        names: &["crate::sink", "sink::"],
        scope: &["src/store/", "src/event/"],
        homes: &[],
        why: "a store and a sink never see each other",
    },
    Rule {
        names: &["crate::store", "store::"],
        scope: &["src/sink/", "src/event/"],
        homes: &[],
        why: "a store and a sink never see each other",
    },
    Rule {
        names: &["crate::settings"],
        scope: &[
            "src/admin/",
            "src/event/",
            "src/relay/",
            "src/sink/",
            "src/store/",
        ],
        homes: &[],
        why: "settings know the parts; the parts do not know settings",
    },
    Rule {
        names: &["crate::app"],
        scope: &["src/"],
        homes: &["src/app.rs", "src/app/", "src/cli/", "src/main.rs"],
        why: "the composition root is at the top; nothing points back at it",
    },
    Rule {
        names: &["SystemTime", "Timestamp::now", "Zoned::now"],
        scope: &["src/app", "src/relay/", "src/sink/", "src/store/"],
        homes: &["src/store/postgres/probe.rs"],
        why: "leases and waits are counted on the monotonic clock or by the database: a wall clock may jump \
              (`check` only compares the two)",
    },
    Rule {
        names: &[
            "tokio",
            "futures_util",
            "async",
            "Instant",
            "SystemTime",
            "Timestamp::now",
            "thread",
            "std::fs",
            "std::net",
            "tracing",
            "store::postgres",
            "crate::sink",
            "rand::rng",
        ],
        scope: &["src/relay/core/", "src/relay/core.rs"],
        homes: &[],
        why: "the relay core is a pure state machine: no clock, no I/O, no runtime, no chance",
    },
];

/// The rules this file's text breaks, each as `path:line: what`.
fn offences(path: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let lines = text.lines().count();
    if lines > MAX_LINES {
        found.push(format!(
            "{path}: {lines} lines, more than {MAX_LINES}; split it by idea"
        ));
    }
    let under = |places: &[&str]| places.iter().any(|place| path.starts_with(place));
    let rules: Vec<&Rule> = RULES
        .iter()
        .filter(|rule| under(rule.scope) && !under(rule.homes))
        .collect();
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        // Spelled apart, or this file would break the rule.
        for leftover in [concat!("TO", "DO"), concat!("FIX", "ME")] {
            if has_word(line, leftover) {
                found.push(format!(
                    "{path}:{number}: `{leftover}`; finish it or open an issue"
                ));
            }
        }
        let code = without_comment(line);
        for rule in &rules {
            for name in rule.names.iter().filter(|name| has_word(code, name)) {
                found.push(format!("{path}:{number}: `{name}`: {}", rule.why));
            }
        }
    }
    found
}

/// The line without a trailing `//` comment; `://` in a URL is none.
fn without_comment(line: &str) -> &str {
    let start = line
        .match_indices("//")
        .map(|(at, _)| at)
        .find(|&at| !line[..at].ends_with(':'));
    start.map_or(line, |at| &line[..at])
}

/// Whether `name` occurs in `code` and not merely inside a longer name.
fn has_word(code: &str, name: &str) -> bool {
    let part_of_name = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(name).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = code[at + name.len()..].chars().next();
        !before.is_some_and(part_of_name)
            && (name.ends_with(':') || !after.is_some_and(part_of_name))
    })
}

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return; // not every folder exists in every stage of the project
    };
    for entry in entries {
        let path = entry.expect("a readable folder").path();
        if path.is_dir() {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

#[test]
fn the_source_keeps_its_rules() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for folder in ["src", "tests", "examples", "benches"] {
        rust_files(&root.join(folder), &mut files);
    }
    files.sort();
    assert!(
        files.contains(&root.join("src/lib.rs")),
        "the walk found no source"
    );

    let mut found = Vec::new();
    for file in files {
        let path = file.strip_prefix(root).expect("a file below the root");
        let text = fs::read_to_string(&file).expect("a source file in UTF-8");
        found.extend(offences(&path.to_string_lossy(), &text));
    }
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

#[test]
fn the_rules_catch_what_they_forbid() {
    let check = |path: &str, line: &str, expected: Option<&str>| {
        let found = offences(path, &format!("\n{line}\n"));
        match expected {
            Some(name) => assert!(
                found
                    .iter()
                    .any(|o| o.starts_with(&format!("{path}:2: `{name}`"))),
                "{path}: {line}: {found:?}"
            ),
            None => assert_eq!(found, Vec::<String>::new(), "{path}: {line}"),
        }
    };
    let lapin = "use lapin::Channel;";
    check("src/app.rs", lapin, Some("lapin"));
    check("src/sink/stdout.rs", lapin, Some("lapin"));
    check("src/sink/rabbitmq/lane.rs", lapin, None);
    check("tests/rabbitmq.rs", lapin, None);
    check("src/app.rs", "// lapin would be wrong here", None);
    check("src/app.rs", "let lapins = \"a rabbit\";", None);

    check(
        "src/relay/driver.rs",
        "use tokio_postgres::Row;",
        Some("tokio_postgres"),
    );
    check("src/relay/driver.rs", "use tokio::time::Instant;", None);
    check(
        "src/relay/core.rs",
        "use tokio::time::Instant;",
        Some("tokio"),
    );
    check(
        "src/relay/core/keys.rs",
        "use std::time::Instant;",
        Some("Instant"),
    );
    check(
        "src/relay/core/keys.rs",
        "async fn wait() {}",
        Some("async"),
    );
    check(
        "src/relay/core/keys.rs",
        "use crate::store::ReadBatch;",
        None,
    );
    check(
        "src/relay/core.rs",
        "use crate::store::postgres::Pool;",
        Some("store::postgres"),
    );

    check(
        "src/store/postgres/read.rs",
        "use crate::sink::Lane;",
        Some("crate::sink"),
    );
    check(
        "src/sink/stdout.rs",
        "use crate::store::Settle;",
        Some("crate::store"),
    );
    check(
        "src/sink/mod.rs",
        "use crate::settings::Sink;",
        Some("crate::settings"),
    );
    check("src/relay/driver.rs", "use crate::app;", Some("crate::app"));
    check(
        "src/cli/run.rs",
        "let x = std::env::var(\"X\");",
        Some("env::var"),
    );
    check("src/settings/load.rs", "let x = std::env::vars();", None);
    check(
        "src/cli/run.rs",
        "let v = env!(\"CARGO_PKG_VERSION\");",
        None,
    );
    check(
        "src/cli/run.rs",
        concat!("// TO", "DO later"),
        Some(concat!("TO", "DO")),
    );

    let now = "let now = Timestamp::now();";
    check("src/sink/rabbitmq/lane.rs", now, Some("Timestamp::now"));
    check("src/cli/status.rs", now, None);

    let long = "\n".repeat(MAX_LINES);
    assert!(offences("src/app.rs", &long).is_empty());
    assert_eq!(offences("src/app.rs", &(long + "\n")).len(), 1);
}
