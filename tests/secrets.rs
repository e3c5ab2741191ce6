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
    let mut shown = table(&loaded, false) + &json(&loaded, false).unwrap().0;
    for need in [Need::Nothing, Need::Database, Need::Relay] {
        match loaded.settings(need) {
            Ok(settings) => shown.push_str(&format!("{settings:#?}")),
            Err(report) => shown.push_str(&format!("{report}{report:#?}")),
        }
    }
    shown
}

/// What the parts say about their URLs when they are built, and how they call the place they connect to.
fn parts_say(url: &str) -> String {
    use outrigger::sink::{http::HttpSettings, nats::NatsSettings, rabbitmq::RabbitMqSettings};
    use outrigger::store::postgres::{ConnectSettings, Database, Mapping, OutboxSettings};
    let connect = ConnectSettings {
        url: Some(url.into()),
        ..ConnectSettings::default()
    };
    let mapping = Mapping::new(&OutboxSettings::default()).unwrap();
    let mut said = match Database::new(&connect, mapping) {
        Ok(database) => format!("{} {database:?} {connect:?}", database.target()),
        Err(error) => format!("{error} {error:?}"),
    };
    let rabbitmq = RabbitMqSettings {
        urls: vec![url.into()],
        ..RabbitMqSettings::default()
    };
    let nats = NatsSettings {
        urls: vec![url.into()],
        ..NatsSettings::default()
    };
    let http = HttpSettings {
        url: url.into(),
        ..HttpSettings::default()
    };
    said += &format!("{rabbitmq:?} {nats:?} {http:?}");
    said += &[rabbitmq.validate(), nats.validate(), http.validate()]
        .concat()
        .join(" ");
    said
}

/// Where a whole URL has its password, with a host behind it.
const URLS: &[&str] = &[
    "postgres://u:PASSWORD@h:5432/d",
    "postgresql://u:PASSWORD@h1:1,h2:2/d?sslmode=disable",
    "postgresql+psycopg2://u:PASSWORD@h/d?pool=5",
    "jdbc:postgresql://h/d?user=u&password=PASSWORD&ssl=false",
    "postgres://h/d?user=u&password=PASSWORD",
    "Host=h;Username=u;Password=PASSWORD;Database=d",
    "host=h user=u password='PASSWORD'",
    "amqp://u:PASSWORD@h:5672/v",
    "amqps://u:PASSWORD@h",
    "nats://u:PASSWORD@h:4222",
    "nats://PASSWORD@h",
    "https://u:PASSWORD@h/hook",
];

proptest! {
    /// No piece of three characters of a password shows anywhere, whatever generators put into it: raw, a URL may be
    /// taken for another one; encoded, it is right.
    #[test]
    fn no_piece_of_a_password_shows(
        shape in proptest::sample::select(URLS),
        password in "[QZXJKV@/?#:]{3,14}",
        encoded in proptest::bool::ANY,
        way in 0..WAYS,
    ) {
        let written: String = match encoded {
            true => password.bytes().map(|byte| format!("%{byte:02X}")).collect(),
            false => password.clone(),
        };
        let url = shape.replace("PASSWORD", &written);
        let dir = tempfile::tempdir().unwrap();
        let shown = everything_shown(inputs(&url, way, dir.path())) + &parts_say(&url);
        let signs: Vec<char> = password.chars().collect();
        for piece in signs.windows(3) {
            // A piece of punctuation alone tells nothing, and stands everywhere.
            if piece.iter().filter(|c| c.is_ascii_alphanumeric()).count() >= 2 {
                let piece: String = piece.iter().collect();
                prop_assert!(!shown.contains(&piece), "{piece} of {url}, way {way}:\n{shown}");
            }
        }
    }
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
        "OUTRIGGER_NATS_URL",
        "OUTRIGGER_HTTP_URL",
    ];
    match way {
        0 => secrets.iter().for_each(|name| set(name, text)),
        // The only way that gives valid settings: each secret where it belongs.
        7 if text.starts_with("amqp") => set("OUTRIGGER_RABBITMQ_URL", text),
        7 => secrets[..2].iter().for_each(|name| set(name, text)),
        // Hosts are no secret, unless somebody takes them for a URL.
        1 => [
            "DATABASE_URL",
            "AMQP_URL",
            "NATS_URL",
            "OUTRIGGER_KAFKA_BROKERS",
            "OUTRIGGER_EVENTBRIDGE_ENDPOINT",
            "OTEL_EXPORTER_OTLP_ENDPOINT",
        ]
        .iter()
        .take(if text.contains("://") { 6 } else { 3 })
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
    for broker in ["RABBITMQ", "NATS", "HTTP"] {
        inputs.variables.remove(&format!("OUTRIGGER_{broker}_URL"));
    }
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
