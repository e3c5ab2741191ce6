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
            allowed: &["native", "debezium", "textbook", "modulith"],
        },
        default: Some("native"),
        description: "The column names to start from: the table `outrigger migrate` creates, that of Debezium's \
                      outbox event router, the one of the textbooks (`id`, `event_type`, `payload`, `published`), or Spring \
                      Modulith's `event_publication`. Each column may be named otherwise below; `none` leaves one out.",
        ..BASE
    },
    column(
        "outbox.column_seq",
        "Column that orders events: a `bigint` drawn at INSERT. May be the id as well.",
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
    column(
        "outbox.column_status",
        "Column whose value says whether the event is published: a text, a number or an enum. May stand beside \
         `outbox.column_published_at`.",
    ),
    Setting {
        key: "outbox.status_pending",
        unset: "`pending`",
        description: "With a status column: the values of rows to publish, comma separated. Rows with any other are left \
                      alone.",
        example: "NEW,RETRY",
        ..BASE
    },
    Setting {
        key: "outbox.status_published",
        unset: "`published`",
        description: "With a status column: the value that published rows get.",
        example: "SENT",
        ..BASE
    },
    Setting {
        key: "outbox.after_publish",
        kind: Kind::Choice {
            allowed: &["mark", "delete"],
        },
        default: Some("mark"),
        description: "What happens to a published row: `mark` sets `published_at` (and the status), `delete` removes the row.",
        ..BASE
    },
    Setting {
        key: "outbox.retention",
        kind: Kind::DurationOrOff {
            min: "1s",
            max: "3650d",
        },
        unset: "`7d` in a table that `outrigger migrate` created, `off` in any other",
        description: "How long published rows are kept before the relay deletes them, counted from `published_at` (or \
                      from `created_at`, if the mark holds no time). `off`: they are never deleted.",
        example: "30d",
        ..BASE
    },
];
