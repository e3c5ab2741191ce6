//! The outbox table: its name, its columns, and what happens to published rows.

use super::super::value::Kind;
use super::{BASE, Setting};

const fn column(key: &'static str, description: &'static str) -> Setting {
    Setting {
        key,
        description,
        unset: "the preset's name",
        ..BASE
    }
}

/// In the order of the reference.
pub(super) const SETTINGS: &[Setting] = &[
    Setting {
        key: "outbox.table",
        default: Some("outbox"),
        description: "The outbox table, optionally with its schema.",
        example: "orders.outbox",
        ..BASE
    },
    Setting {
        key: "outbox.preset",
        kind: Kind::Choice {
            allowed: &["native", "debezium"],
        },
        default: Some("native"),
        description: "The column names to start from: the table `outrigger migrate` creates, or that of Debezium's \
                      outbox event router.",
        ..BASE
    },
    column(
        "outbox.column_seq",
        "Column that orders events: a `bigint` drawn at INSERT.",
    ),
    column("outbox.column_id", "Column with the CloudEvents `id`."),
    column("outbox.column_type", "Column with the CloudEvents `type`."),
    column(
        "outbox.column_source",
        "Column with the CloudEvents `source`.",
    ),
    column(
        "outbox.column_subject",
        "Column with the CloudEvents `subject`.",
    ),
    column("outbox.column_key", "Column with the ordering key."),
    column("outbox.column_data", "Column with the payload."),
    column("outbox.column_data_binary", "Column with a binary payload."),
    column(
        "outbox.column_content_type",
        "Column with the CloudEvents `datacontenttype`.",
    ),
    column(
        "outbox.column_schema",
        "Column with the CloudEvents `dataschema`.",
    ),
    column(
        "outbox.column_extensions",
        "Column with CloudEvents extensions, as a JSON object.",
    ),
    column(
        "outbox.column_headers",
        "Column with transport headers, as a JSON object.",
    ),
    column(
        "outbox.column_destination",
        "Column with the row's own destination.",
    ),
    column(
        "outbox.column_routing_key",
        "Column with the row's own routing key.",
    ),
    column(
        "outbox.column_created_at",
        "Column with the CloudEvents `time`.",
    ),
    column(
        "outbox.column_available_at",
        "Column with the time before which the event is not published.",
    ),
    column(
        "outbox.column_expires_at",
        "Column with the time after which the event is dropped.",
    ),
    column(
        "outbox.column_published_at",
        "Column the relay sets when the event is published.",
    ),
    Setting {
        key: "outbox.after_publish",
        kind: Kind::Choice {
            allowed: &["mark", "delete"],
        },
        default: Some("mark"),
        description: "What happens to a published row: `mark` sets `published_at`, `delete` removes the row.",
        ..BASE
    },
    Setting {
        key: "outbox.retention",
        kind: Kind::Duration {
            min: "1s",
            max: "3650d",
        },
        default: Some("7d"),
        description: "How long marked rows are kept before they are removed.",
        ..BASE
    },
];
