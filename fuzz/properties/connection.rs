//! Any text given as a URL, a password file or a name of a table is understood or refused, and a name stays a name.

use std::cell::RefCell;

use arbitrary::Arbitrary;
use outrigger::sink::http::HttpSettings;
use outrigger::sink::nats::NatsSettings;
use outrigger::sink::rabbitmq::RabbitMqSettings;
use outrigger::store::postgres::{ConnectSettings, Database, Mapping, OutboxSettings};
use tempfile::NamedTempFile;

/// Texts that a user may give.
#[derive(Debug, Clone, Arbitrary)]
pub struct Input {
    url: String,
    user: Option<String>,
    passwords: Option<String>,
    name: String,
}

thread_local! {
    static FILE: RefCell<Option<NamedTempFile>> = const { RefCell::new(None) };
}

/// See the module.
pub fn check(input: Input) {
    let Input {
        url,
        user,
        passwords,
        name,
    } = input;
    database(&url, user, passwords);
    let http = HttpSettings {
        url: url.clone().into(),
        ..HttpSettings::default()
    };
    let _ = http.validate();
    let urls = vec![url.into()];
    let rabbitmq = RabbitMqSettings {
        urls: urls.clone(),
        ..RabbitMqSettings::default()
    };
    let _ = rabbitmq.validate();
    let nats = NatsSettings {
        urls,
        ..NatsSettings::default()
    };
    let _ = nats.validate();
    table(name);
}

fn database(url: &str, user: Option<String>, passwords: Option<String>) {
    // Whatever files the text names, this machine's are not to be read.
    if url.contains("ssl") || url.contains("passfile") {
        return;
    }
    let mut settings = ConnectSettings {
        url: Some(url.into()),
        ..ConnectSettings::default()
    };
    settings
        .variables
        .insert("PGSSLMODE".into(), "disable".into());
    settings
        .variables
        .extend(user.map(|user| ("PGUSER".into(), user)));
    if let Some(text) = passwords {
        FILE.with_borrow_mut(|file| {
            let file = file.get_or_insert_with(|| NamedTempFile::new().expect("a temporary file"));
            std::fs::write(file.path(), text).expect("a writable file");
            let path = file.path().display().to_string();
            settings.variables.insert("PGPASSFILE".into(), path);
        });
    }
    let mapping = Mapping::new(&OutboxSettings::default()).expect("the defaults");
    match Database::new(&settings, mapping) {
        Ok(database) => drop(database.target()),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn table(name: String) {
    let settings = OutboxSettings {
        table: Some(name.clone()),
        column_id: Some(name),
        ..OutboxSettings::default()
    };
    let Ok(mapping) = Mapping::new(&settings) else {
        return;
    };
    // One or two quoted identifiers: a quote inside is doubled, so nothing of the name is SQL.
    let quoted = mapping.quoted_table();
    let mut rest = quoted.as_str();
    let mut parts = 0;
    loop {
        rest = rest.strip_prefix('"').expect("an opening quote");
        loop {
            let end = rest.find('"').expect("a closing quote");
            rest = &rest[end + 1..];
            match rest.strip_prefix('"') {
                Some(inside) => rest = inside,
                None => break,
            }
        }
        parts += 1;
        match rest.strip_prefix('.') {
            Some(next) => rest = next,
            None => break,
        }
    }
    assert!(rest.is_empty() && parts <= 2, "{quoted}");
}
