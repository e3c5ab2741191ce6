//! From [`Settings`] to the plain settings of each part. The one place where the parts' own names meet.

mod configuration;
mod sinks;

use std::collections::BTreeMap;

pub use configuration::{configuration, target};
use secrecy::SecretString;
pub use sinks::*;

use crate::cli::Failure;
use crate::event::Explained;
use crate::event::encode::{BatchLimits, Encoder, EncoderConfig, HeaderPrefix, Mode};
use crate::event::envelope::Fill;
use crate::event::route::{DeadLetterRouter, Router};
use crate::secret_file::SecretFile;
use crate::settings::{self, EventMode, PG_VARIABLES, Settings, SinkKind};
use crate::store::postgres::{
    AfterPublish, ConnectSettings, Database, Mapping, OutboxSettings, Preset,
};

/// The database with its outbox. Opens no connection yet.
pub fn database(settings: &Settings) -> Result<Database, Failure> {
    let settings::Database {
        url,
        url_name,
        url_file,
        ..
    } = &settings.database;
    let connect = connect(settings, url.as_ref(), url_name, url_file.as_ref());
    Database::new(&connect, mapping(settings)?).map_err(Failure::usage)
}

/// The same database by the way that LISTEN can use, if one of its own is set.
pub fn listen_database(settings: &Settings) -> Result<Option<Database>, Failure> {
    let Some(url) = &settings.database.listen_url else {
        return Ok(None);
    };
    let settings::Database {
        listen_url_name,
        listen_url_file,
        ..
    } = &settings.database;
    let connect = connect(
        settings,
        Some(url),
        listen_url_name,
        listen_url_file.as_ref(),
    );
    let database = Database::new(&connect, mapping(settings)?).map_err(Failure::usage)?;
    Ok(Some(database))
}

fn connect(
    settings: &Settings,
    url: Option<&SecretString>,
    url_name: &str,
    url_file: Option<&SecretFile>,
) -> ConnectSettings {
    // The settings name them by keyword, the store by variable.
    let variables: BTreeMap<String, String> = PG_VARIABLES
        .iter()
        .chain(&[("HOME", "home")])
        .filter_map(|(variable, keyword)| {
            let value = settings.database.pg.get(*keyword)?;
            Some(((*variable).to_owned(), value.clone()))
        })
        .collect();
    ConnectSettings {
        url: url.cloned(),
        url_name: url_name.to_owned(),
        url_file: url_file.cloned(),
        variables,
        pool_size: settings.database.pool_size,
        ..ConnectSettings::default()
    }
}

/// A preset, for the store.
pub fn preset(preset: settings::Preset) -> Preset {
    match preset {
        settings::Preset::Native => Preset::Native,
        settings::Preset::Debezium => Preset::Debezium,
        settings::Preset::Textbook => Preset::Textbook,
        settings::Preset::Modulith => Preset::Modulith,
    }
}

/// Table and columns, with those that only the route templates name.
pub fn mapping(settings: &Settings) -> Result<Mapping, Failure> {
    let mut extra = router(settings)?.extra_columns();
    if let Some(dead) = dead_letter_router(settings)? {
        extra.extend(dead.extra_columns());
    }
    extra.sort_unstable();
    extra.dedup();
    let settings::Outbox {
        table,
        preset,
        columns,
        after_publish,
        status_pending,
        status_published,
        retention: _,
    } = settings.outbox.clone();
    let outbox = OutboxSettings {
        table: Some(table),
        preset: self::preset(preset),
        unordered: settings.relay.ordering == settings::Ordering::None,
        status_pending,
        status_published,
        after_publish: Some(match after_publish {
            settings::AfterPublish::Mark => AfterPublish::Mark,
            settings::AfterPublish::Delete => AfterPublish::Delete,
        }),
        column_seq: columns.seq,
        column_id: columns.id,
        column_type: columns.event_type,
        column_source: columns.source,
        column_subject: columns.subject,
        column_key: columns.key,
        column_data: columns.data,
        column_data_binary: columns.data_binary,
        column_content_type: columns.content_type,
        column_schema: columns.schema,
        column_extensions: columns.extensions,
        column_headers: columns.headers,
        column_destination: columns.destination,
        column_routing_key: columns.routing_key,
        column_created_at: columns.created_at,
        column_available_at: columns.available_at,
        column_expires_at: columns.expires_at,
        column_published_at: columns.published_at,
        column_status: columns.status,
        extra,
    };
    Mapping::new(&outbox).map_err(Failure::usage)
}

/// Where events go.
pub fn router(settings: &Settings) -> Result<Router, Failure> {
    Router::new(&settings.route.destination, &settings.route.key).map_err(Failure::usage)
}

/// Where dead events go, if anywhere.
pub fn dead_letter_router(settings: &Settings) -> Result<Option<DeadLetterRouter>, Failure> {
    let retry = &settings.retry;
    let Some(destination) = &retry.dead_letter_destination else {
        return Ok(None);
    };
    let key = retry
        .dead_letter_key
        .as_deref()
        .unwrap_or("{{ routing_key }}");
    let router = DeadLetterRouter::new(destination, key).map_err(Failure::usage)?;
    Ok(Some(router))
}

/// The encoder, and the router of dead events.
pub fn encoder(settings: &Settings) -> Result<(Encoder, Option<DeadLetterRouter>), Failure> {
    let prefix = HeaderPrefix::ALL
        .into_iter()
        .find(|prefix| prefix.as_str() == settings.event.header_prefix)
        .unwrap_or_default();
    let limits = BatchLimits::default();
    let config = EncoderConfig {
        source: settings.event.source.clone(),
        fill: Fill {
            content_type: settings.event.content_type.clone(),
            sequence: settings.event.sequence,
            expiry_time: settings.event.expirytime,
        },
        mode: match settings.event.mode {
            EventMode::Structured => Mode::Structured,
            EventMode::Binary => Mode::Binary,
            EventMode::Batch => Mode::Batch,
        },
        header_prefix: prefix,
        router: router(settings)?,
        batch: BatchLimits {
            bytes: match settings.sink {
                SinkKind::RabbitMq => limits.bytes.min(settings.rabbitmq.max_message_size),
                SinkKind::Http => limits.bytes.min(settings.http.max_message_size),
                SinkKind::Nats | SinkKind::Kafka | SinkKind::EventBridge | SinkKind::Stdout => {
                    limits.bytes
                }
            },
            ..limits
        },
        explained: match settings.sink {
            SinkKind::EventBridge => Explained::InAttributes,
            SinkKind::RabbitMq
            | SinkKind::Nats
            | SinkKind::Http
            | SinkKind::Kafka
            | SinkKind::Stdout => Explained::InHeaders,
        },
    };
    let encoder = Encoder::new(config).map_err(Failure::usage)?;
    Ok((encoder, dead_letter_router(settings)?))
}
