//! What this replica stores of its settings beside its lease, for the others to compare: where and as what it sends
//! events. Readable, and without secrets.

use crate::error::OnExhausted;
use crate::settings::{
    AfterPublish, Columns, EventMode, Ordering, Partitioner, Preset, Retention, Settings, SinkKind,
};
use crate::store::configuration::{Configuration, SINK, SOURCE, TARGET};

/// Everything that replicas of one outbox must have alike.
pub fn configuration(settings: &Settings) -> Configuration {
    let (event, route, retry) = (&settings.event, &settings.route, &settings.retry);
    let mut values = vec![
        (SINK, settings.sink.name().to_owned()),
        (
            TARGET,
            settings
                .relay
                .target
                .clone()
                .unwrap_or_else(|| target(settings)),
        ),
        (SOURCE, event.source.clone()),
        ("event_mode", mode(event.mode).to_owned()),
        ("header_prefix", event.header_prefix.clone()),
        (
            "content_type",
            event.content_type.clone().unwrap_or_default(),
        ),
        ("destination", route.destination.clone()),
        ("routing_key", route.key.clone()),
        ("ordering", ordering(settings.relay.ordering).to_owned()),
        ("after_publish", after(settings).to_owned()),
        ("retention", retention(settings)),
        (
            "attempts",
            format!(
                "{}, then {}",
                retry.max_attempts,
                match retry.on_exhausted {
                    OnExhausted::Dead => "dead",
                    OnExhausted::Block => "block",
                }
            ),
        ),
        (
            "dead_letter_destination",
            retry.dead_letter_destination.clone().unwrap_or_default(),
        ),
        (
            "dead_letter_key",
            retry.dead_letter_key.clone().unwrap_or_default(),
        ),
        (
            "preset",
            match settings.outbox.preset {
                Preset::Native => "native",
                Preset::Debezium => "debezium",
                Preset::Textbook => "textbook",
                Preset::Modulith => "modulith",
            }
            .to_owned(),
        ),
        ("columns", columns(&settings.outbox.columns)),
        ("status_pending", settings.outbox.status_pending.join(" ")),
        (
            "status_published",
            settings.outbox.status_published.clone().unwrap_or_default(),
        ),
        ("sequence", flag(event.sequence)),
        ("expirytime", flag(event.expirytime)),
    ];
    if settings.sink == SinkKind::Kafka {
        // With another one, a key is in another partition.
        let partitioner = match settings.kafka.partitioner {
            Partitioner::Murmur2 => "murmur2",
            Partitioner::Crc32 => "crc32",
        };
        values.push(("partitioner", partitioner.to_owned()));
    }
    values.retain(|(_, value)| !value.is_empty());
    Configuration::new(values)
}

/// Where the sink leads, for people and for comparing: hosts in one order, no credentials. Empty for stdout.
pub fn target(settings: &Settings) -> String {
    match settings.sink {
        #[cfg(feature = "rabbitmq")]
        SinkKind::RabbitMq => super::rabbitmq(settings).target(),
        #[cfg(feature = "nats")]
        SinkKind::Nats => super::nats(settings).target(),
        #[cfg(feature = "http")]
        SinkKind::Http => super::http(settings).place(),
        #[cfg(feature = "kafka")]
        SinkKind::Kafka => super::kafka(settings).target(),
        #[cfg(feature = "eventbridge")]
        SinkKind::EventBridge => super::eventbridge(settings).target(),
        _ => String::new(),
    }
}

/// What is off is left out.
fn flag(on: bool) -> String {
    if on { "on".to_owned() } else { String::new() }
}

fn mode(mode: EventMode) -> &'static str {
    match mode {
        EventMode::Structured => "structured",
        EventMode::Binary => "binary",
        EventMode::Batch => "batch",
    }
}

fn ordering(ordering: Ordering) -> &'static str {
    match ordering {
        Ordering::Strict => "strict",
        Ordering::Pipelined => "pipelined",
        Ordering::None => "none",
    }
}

fn after(settings: &Settings) -> &'static str {
    match settings.outbox.after_publish {
        AfterPublish::Mark => "mark",
        AfterPublish::Delete => "delete",
    }
}

/// Only marked rows are kept.
fn retention(settings: &Settings) -> String {
    match (settings.outbox.after_publish, settings.outbox.retention) {
        (AfterPublish::Delete, _) | (_, Retention::Unset) => String::new(),
        (AfterPublish::Mark, Retention::Off) => "off".to_owned(),
        (AfterPublish::Mark, Retention::For(kept)) => format!("{} s", kept.as_secs()),
    }
}

/// The columns that differ from the preset's.
fn columns(columns: &Columns) -> String {
    let named = [
        ("seq", &columns.seq),
        ("id", &columns.id),
        ("type", &columns.event_type),
        ("source", &columns.source),
        ("subject", &columns.subject),
        ("key", &columns.key),
        ("data", &columns.data),
        ("data_binary", &columns.data_binary),
        ("content_type", &columns.content_type),
        ("schema", &columns.schema),
        ("extensions", &columns.extensions),
        ("headers", &columns.headers),
        ("destination", &columns.destination),
        ("routing_key", &columns.routing_key),
        ("created_at", &columns.created_at),
        ("available_at", &columns.available_at),
        ("expires_at", &columns.expires_at),
        ("published_at", &columns.published_at),
        ("status", &columns.status),
    ];
    let given = named.iter().filter_map(|(name, column)| {
        let column = column.as_ref()?;
        Some(format!("{name}={column}"))
    });
    given.collect::<Vec<_>>().join(" ")
}
