//! A secret never shows: not in settings, not in reports, not in `outrigger config`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;

use outrigger::cli::config::{json, table};
use outrigger::settings::{self, Inputs, Need};
use proptest::prelude::*;

/// Long enough not to turn up by chance.
const SECRET: &str = "hunter2hunter2";

/// Where passwords stand in connection strings; `PASSWORD` is replaced. Some are broken in the
/// ways people break them.
const SHAPES: &[&str] = &[
    "postgres://u:PASSWORD@h:5432/d",
    "postgres://u:PASSWORD@h1:1,h2:2/d?sslmode=require",
    "postgres://u@h/d?password=PASSWORD",
    "postgres://h/d?user=u&password=PASSWORD&sslpassword=PASSWORD",
    "postgres://u:PASSWORD",
    "postgres:/u:PASSWORD@h",
    "mysql://u:PASSWORD@h",
    "host=h user=u password=PASSWORD",
    "amqp://u:PASSWORD@h",
    "amqps://u:PASSWORD@h:5671/v,amqps://u:PASSWORD@i:5671/v?verify=none",
    "amqp://u:PASSWORD@h,amqp://i:port",
    "amqp://u:PASSWORD@h,i",
    "amqp://u:PASSWORD",
    "AMQP://u:PASSWORD@h",
    "PASSWORD",
];

fn everything_shown(inputs: Inputs) -> String {
    let loaded = settings::load(inputs);
    let mut shown = table(&loaded) + &json(&loaded).unwrap().0;
    for need in [Need::Nothing, Need::Database, Need::Relay] {
        match loaded.settings(need) {
            Ok(settings) => shown.push_str(&format!("{settings:#?}")),
            Err(report) => shown.push_str(&format!("{report}{report:#?}")),
        }
    }
    shown
}

/// Sets every secret to this text, in one of the ways a secret can be set.
fn inputs(text: &str, way: usize, dir: &std::path::Path) -> Inputs {
    let mut inputs = Inputs::default();
    let mut set = |name: &str, value: &str| {
        inputs.variables.insert(name.to_owned(), value.to_owned());
    };
    set("PGPASSWORD", SECRET);
    let secrets = [
        "OUTRIGGER_DATABASE_URL",
        "OUTRIGGER_DATABASE_LISTEN_URL",
        "OUTRIGGER_RABBITMQ_URL",
    ];
    match way {
        0 => secrets.iter().for_each(|name| set(name, text)),
        // The only way that gives valid settings: each secret where it belongs.
        7 if text.starts_with("amqp") => set("OUTRIGGER_RABBITMQ_URL", text),
        7 => secrets[..2].iter().for_each(|name| set(name, text)),
        1 => ["DATABASE_URL", "AMQP_URL"]
            .iter()
            .for_each(|name| set(name, text)),
        2 => {
            let path = dir.join("secret");
            fs::write(&path, text).unwrap();
            let path = path.to_str().unwrap();
            secrets
                .iter()
                .for_each(|name| set(&format!("{name}_FILE"), path));
        }
        _ => {
            let quoted = serde_json::Value::from(text).to_string();
            // The last two are errors: a list where none belongs, a string without an end.
            let file = match way {
                3 => format!("[database]\nurl = {quoted}\n[rabbitmq]\nurl = [{quoted}]\n"),
                4 => format!("[database]\nurl = [{quoted}]\n[rabbitmq]\nurl = [{quoted}, 1]\n"),
                5 => format!("[database]\nurl = {}\n", quoted.trim_end_matches('"')),
                _ => format!("[database]\npassword = {quoted}\n"),
            };
            let path = dir.join("outrigger.toml");
            fs::write(&path, file).unwrap();
            inputs.config_file = Some(path);
        }
    }
    inputs
}

const WAYS: usize = 8;

#[test]
fn secrets_never_show() {
    let dir = tempfile::tempdir().unwrap();
    let mut valid = 0;
    for shape in SHAPES {
        for way in 0..WAYS {
            let text = shape.replace("PASSWORD", SECRET);
            let shown = everything_shown(inputs(&text, way, dir.path()));
            assert!(!shown.contains(SECRET), "{shape}, way {way}:\n{shown}");
            // The test would prove nothing if nothing was shown, or never a valid configuration.
            assert!(
                shown.contains("database.url"),
                "{shape}, way {way}:\n{shown}"
            );
            valid += usize::from(shown.contains("Settings {") && shown.contains("pg: "));
        }
    }
    assert!(
        valid >= SHAPES.len() / 2,
        "only {valid} valid configurations"
    );
}

#[test]
fn a_password_is_used_although_it_does_not_show() {
    use secrecy::ExposeSecret;
    let dir = tempfile::tempdir().unwrap();
    let text = format!("postgres://u:{SECRET}@h/d");
    let mut inputs = inputs(&text, 0, dir.path());
    inputs.variables.remove("OUTRIGGER_RABBITMQ_URL");
    let settings = settings::load(inputs).settings(Need::Database).unwrap();
    assert_eq!(settings.database.url.unwrap().expose_secret(), text);
    assert_eq!(settings.database.pg["password"], SECRET);
}

proptest! {
    /// Whatever stands around it: `#` and `?` and `@` unescaped, commas, quotes, other schemes.
    #[test]
    fn secrets_never_show_in_any_surroundings(
        shape in proptest::sample::select(SHAPES),
        before in "[a-z0-9@:/?#,&=' %\"\\\\-]{0,6}",
        after in "[a-z0-9@:/?#,&=' %\"\\\\-]{0,6}",
        way in 0..WAYS,
    ) {
        // Behind the last `@` stands the host, which is no secret.
        prop_assume!(!(shape.ends_with(":PASSWORD") && before.contains('@')));
        let dir = tempfile::tempdir().unwrap();
        let text = shape.replace("PASSWORD", &format!("{before}{SECRET}{after}"));
        let shown = everything_shown(inputs(&text, way, dir.path()));
        prop_assert!(!shown.contains(SECRET), "{text}, way {way}:\n{shown}");
    }
}
