//! Which table and which columns: from plain settings to a checked mapping.

use super::error::StoreError;
use super::mark::StatusWords;

/// The name that leaves a column out.
const NONE: &str = "none";

/// What happens to a row once its event is confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AfterPublish {
    /// Set the published column; retention deletes the row later.
    #[default]
    Mark,
    /// Delete the row at once.
    Delete,
}

/// A ready-made set of column names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Preset {
    /// Outrigger's own table.
    #[default]
    Native,
    /// The table of Debezium's outbox event router: `id, aggregatetype, aggregateid, type, payload`.
    Debezium,
    /// The table of the textbooks: `id, aggregate_id, event_type, payload, created_at, published`.
    Textbook,
    /// Spring Modulith's event publication registry: `event_publication`.
    Modulith,
}

/// The `OUTRIGGER_OUTBOX_*` settings as given. `None`: not set. An explicitly set column must exist; a
/// column that only the preset names is optional, except for the id, the type, the order column (unless events are
/// unordered), and (unless rows are deleted or have a status) the published column. The name `none` leaves a column out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(
    missing_docs,
    reason = "each field is the setting OUTRIGGER_OUTBOX_ plus its name"
)]
pub struct OutboxSettings {
    pub table: Option<String>,
    pub preset: Preset,
    /// Events go in any order, so an order column is not needed.
    pub unordered: bool,
    /// The status of rows to publish. Empty: the preset's, or `pending`.
    pub status_pending: Vec<String>,
    /// The status of published rows. `None`: the preset's, or `published`.
    pub status_published: Option<String>,
    pub after_publish: Option<AfterPublish>,
    pub column_seq: Option<String>,
    pub column_id: Option<String>,
    pub column_type: Option<String>,
    pub column_source: Option<String>,
    pub column_subject: Option<String>,
    pub column_key: Option<String>,
    pub column_data: Option<String>,
    pub column_data_binary: Option<String>,
    pub column_content_type: Option<String>,
    pub column_schema: Option<String>,
    pub column_extensions: Option<String>,
    pub column_headers: Option<String>,
    pub column_destination: Option<String>,
    pub column_routing_key: Option<String>,
    pub column_created_at: Option<String>,
    pub column_available_at: Option<String>,
    pub column_expires_at: Option<String>,
    pub column_published_at: Option<String>,
    pub column_status: Option<String>,
    /// Further columns that route templates name.
    pub extra: Vec<String>,
}

/// The fields of an event that a column can carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "named like the columns of the native table")]
pub enum Field {
    Seq,
    Id,
    Type,
    Source,
    Subject,
    Key,
    Data,
    DataBinary,
    ContentType,
    Schema,
    Extensions,
    Headers,
    Destination,
    RoutingKey,
    CreatedAt,
    AvailableAt,
    ExpiresAt,
    PublishedAt,
    Status,
}

impl Field {
    /// All of them.
    pub const ALL: [Field; 19] = [
        Self::Seq,
        Self::Id,
        Self::Type,
        Self::Source,
        Self::Subject,
        Self::Key,
        Self::Data,
        Self::DataBinary,
        Self::ContentType,
        Self::Schema,
        Self::Extensions,
        Self::Headers,
        Self::Destination,
        Self::RoutingKey,
        Self::CreatedAt,
        Self::AvailableAt,
        Self::ExpiresAt,
        Self::PublishedAt,
        Self::Status,
    ];

    /// The native table's column. (It has no status, but the setting is named after it.)
    pub fn native(self) -> &'static str {
        match self {
            Self::Seq => "seq",
            Self::Id => "id",
            Self::Type => "type",
            Self::Source => "source",
            Self::Subject => "subject",
            Self::Key => "key",
            Self::Data => "data",
            Self::DataBinary => "data_binary",
            Self::ContentType => "content_type",
            Self::Schema => "schema",
            Self::Extensions => "extensions",
            Self::Headers => "headers",
            Self::Destination => "destination",
            Self::RoutingKey => "routing_key",
            Self::CreatedAt => "created_at",
            Self::AvailableAt => "available_at",
            Self::ExpiresAt => "expires_at",
            Self::PublishedAt => "published_at",
            Self::Status => "status",
        }
    }

    /// The column that a preset names.
    pub fn preset(self, preset: Preset) -> Option<&'static str> {
        match (preset, self) {
            (Preset::Native, Self::Status) => None,
            (Preset::Native, _) => Some(self.native()),
            (Preset::Debezium, _) => self.debezium(),
            (Preset::Textbook, Self::Seq) => Some("seq"),
            (Preset::Textbook | Preset::Modulith, Self::Id) => Some("id"),
            (Preset::Textbook | Preset::Modulith, Self::Type) => Some("event_type"),
            (Preset::Textbook, Self::Key) => Some("aggregate_id"),
            (Preset::Textbook, Self::Data) => Some("payload"),
            (Preset::Textbook, Self::CreatedAt) => Some("created_at"),
            (Preset::Textbook, Self::PublishedAt) => Some("published"),
            (Preset::Modulith, Self::Data) => Some("serialized_event"),
            (Preset::Modulith, Self::CreatedAt) => Some("publication_date"),
            (Preset::Modulith, Self::PublishedAt) => Some("completion_date"),
            (Preset::Modulith, Self::Status) => Some("status"),
            (Preset::Textbook | Preset::Modulith, _) => None,
        }
    }

    /// The Debezium event router's default column. The subject stays empty: the aggregate id is the key already, and
    /// templates reach `aggregatetype` by its name.
    fn debezium(self) -> Option<&'static str> {
        match self {
            Self::Id => Some("id"),
            Self::Type => Some("type"),
            Self::Key => Some("aggregateid"),
            Self::Data => Some("payload"),
            _ => None,
        }
    }

    /// The setting that names the column.
    pub fn setting(self) -> String {
        format!("OUTRIGGER_OUTBOX_COLUMN_{}", self.native().to_uppercase())
    }

    fn configured(self, settings: &OutboxSettings) -> Option<&str> {
        let value = match self {
            Self::Seq => &settings.column_seq,
            Self::Id => &settings.column_id,
            Self::Type => &settings.column_type,
            Self::Source => &settings.column_source,
            Self::Subject => &settings.column_subject,
            Self::Key => &settings.column_key,
            Self::Data => &settings.column_data,
            Self::DataBinary => &settings.column_data_binary,
            Self::ContentType => &settings.column_content_type,
            Self::Schema => &settings.column_schema,
            Self::Extensions => &settings.column_extensions,
            Self::Headers => &settings.column_headers,
            Self::Destination => &settings.column_destination,
            Self::RoutingKey => &settings.column_routing_key,
            Self::CreatedAt => &settings.column_created_at,
            Self::AvailableAt => &settings.column_available_at,
            Self::ExpiresAt => &settings.column_expires_at,
            Self::PublishedAt => &settings.column_published_at,
            Self::Status => &settings.column_status,
        };
        let name = value.as_deref().filter(|name| !name.is_empty())?;
        // As people write it in SQL.
        let quoted = name
            .strip_prefix('"')
            .and_then(|name| name.strip_suffix('"'));
        Some(quoted.unwrap_or(name))
    }

    /// Whether it decides whether a row is published.
    pub(super) fn is_mark(self) -> bool {
        matches!(self, Self::PublishedAt | Self::Status)
    }
}

/// One field's column as asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) field: Field,
    pub(super) column: String,
    /// Named by a setting, or indispensable: its absence is an error.
    pub(super) required: bool,
}

/// Table and columns as asked for; [`super::inspect`] compares them with the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    schema: Option<String>,
    table: String,
    pub(super) wanted: Vec<Wanted>,
    pub(super) extra: Vec<String>,
    pub(super) preset: Preset,
    pub(super) after_publish: AfterPublish,
    pub(super) status: StatusWords,
    /// Fields that are meant to have no column.
    pub(super) left_out: Vec<Field>,
}

impl Mapping {
    /// Reads the settings. Pure; the table is looked at later.
    pub fn new(settings: &OutboxSettings) -> Result<Self, StoreError> {
        let (schema, table) = split_name(settings.table.as_deref().unwrap_or("outbox"))?;
        let mut wanted: Vec<Wanted> = Vec::new();
        let mut left_out = Vec::new();
        for field in Field::ALL {
            let given = field.configured(settings);
            let Some(column) = given.or(field.preset(settings.preset)) else {
                continue;
            };
            if given == Some(NONE) {
                if matches!(field, Field::Id | Field::Type) {
                    return Err(StoreError::schema(format!(
                        "{} cannot be `none`: every event has an id and a type",
                        field.setting()
                    )));
                }
                left_out.push(field);
                continue;
            }
            if let Some(other) = wanted.iter().find(|w| w.column == column) {
                // A column may serve as key and subject at once, and one that is drawn as id and order; but nothing may
                // double as a mark, and nothing else as order.
                let both = [other.field, field];
                let exclusive = |f: Field| f == Field::Seq || f.is_mark();
                if both != [Field::Seq, Field::Id] && both.into_iter().any(exclusive) {
                    return Err(StoreError::schema(format!(
                        "{} and {} both name the column `{column}`",
                        other.field.setting(),
                        field.setting()
                    )));
                }
            }
            wanted.push(Wanted {
                field,
                column: column.to_owned(),
                // A native table without its order or mark is a mistake, never a choice.
                required: given.is_some()
                    || matches!(field, Field::Id | Field::Type)
                    || (field == Field::Seq && !settings.unordered)
                    || (field == Field::PublishedAt
                        && settings.after_publish != Some(AfterPublish::Delete)
                        && Field::Status
                            .configured(settings)
                            .is_none_or(|name| name == NONE)),
            });
        }
        let mut extra: Vec<String> = Vec::new();
        for name in &settings.extra {
            if !extra.contains(name) {
                extra.push(name.clone());
            }
        }
        let marks = wanted.iter().any(|w| w.field.is_mark());
        let after_publish = match settings.after_publish {
            Some(AfterPublish::Mark) if !marks => {
                return Err(StoreError::schema(
                    "OUTRIGGER_OUTBOX_AFTER_PUBLISH=mark needs a column to mark: set OUTRIGGER_OUTBOX_COLUMN_PUBLISHED_AT \
                     or OUTRIGGER_OUTBOX_COLUMN_STATUS, or use OUTRIGGER_OUTBOX_AFTER_PUBLISH=delete",
                ));
            }
            Some(given) => given,
            None if !marks => {
                return Err(StoreError::schema(
                    "this preset has no published column: set OUTRIGGER_OUTBOX_AFTER_PUBLISH=delete, or name one in \
                     OUTRIGGER_OUTBOX_COLUMN_PUBLISHED_AT",
                ));
            }
            None => AfterPublish::Mark,
        };
        Ok(Self {
            schema,
            table,
            wanted,
            extra,
            preset: settings.preset,
            after_publish,
            status: StatusWords::of(settings),
            left_out,
        })
    }

    /// The table, quoted, as configured: without a schema it is found by the search path.
    pub fn quoted_table(&self) -> String {
        match &self.schema {
            Some(schema) => format!("{}.{}", quote(schema), quote(&self.table)),
            None => quote(&self.table),
        }
    }

    /// In this schema, unless the table's name says in which.
    #[must_use]
    pub(super) fn in_schema(mut self, schema: String) -> Self {
        self.schema = self.schema.or(Some(schema));
        self
    }

    /// Schema (if configured) and table, unquoted.
    pub(super) fn schema_and_table(&self) -> Option<(&str, &str)> {
        self.schema
            .as_deref()
            .map(|schema| (schema, self.table.as_str()))
    }

    /// The table's own name, unquoted.
    pub(super) fn table_name(&self) -> &str {
        &self.table
    }

    /// Whether a missing table may be created: only the native layout, unchanged, is ours to create.
    pub fn is_native(&self) -> bool {
        let all = Field::ALL.len() - 1;
        self.preset == Preset::Native
            && self.wanted.len() == all
            && self.wanted.iter().all(|w| w.column == w.field.native())
    }
}

/// Quotes an identifier.
pub(super) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Quotes a string constant.
pub(super) fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') {
        format!("E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

/// `table`, `schema.table`, and the same with parts in double quotes. Letters keep their case.
fn split_name(name: &str) -> Result<(Option<String>, String), StoreError> {
    let bad = || {
        StoreError::schema(format!(
            "OUTRIGGER_OUTBOX_TABLE `{name}` is not a table name: write `table` or `schema.table`"
        ))
    };
    let mut parts = vec![String::new()];
    let mut quoted = false;
    let mut chars = name.chars().peekable();
    while let Some(c) = chars.next() {
        let last = parts.len() - 1;
        match c {
            '"' if quoted && chars.next_if_eq(&'"').is_some() => parts[last].push('"'),
            '"' => quoted = !quoted,
            '.' if !quoted => parts.push(String::new()),
            '\0' => return Err(bad()),
            c => parts[last].push(c),
        }
    }
    if quoted || parts.iter().any(String::is_empty) {
        return Err(bad());
    }
    let mut parts = parts.into_iter();
    match (parts.next(), parts.next(), parts.next()) {
        (Some(table), None, None) => Ok((None, table)),
        (Some(schema), Some(table), None) => Ok((Some(schema), table)),
        _ => Err(bad()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn names_are_always_quoted_and_keep_their_case() {
        for (name, expected) in [
            ("outbox", r#""outbox""#),
            ("Shop.Orders", r#""Shop"."Orders""#),
            (r#""a.b"."c""d""#, r#""a.b"."c""d""#),
            ("x; drop table y", r#""x; drop table y""#),
        ] {
            let settings = OutboxSettings {
                table: Some(name.into()),
                ..Default::default()
            };
            assert_eq!(Mapping::new(&settings).unwrap().quoted_table(), expected);
        }
        for name in ["", "a.", "a.b.c", r#""a"#] {
            let settings = OutboxSettings {
                table: Some(name.into()),
                ..Default::default()
            };
            assert!(Mapping::new(&settings).is_err(), "{name}");
        }
        assert_eq!(literal(r"it's \x"), r"E'it''s \\x'");
    }

    #[test]
    fn debezium_tables_must_say_how_rows_are_finished() {
        let mut settings = OutboxSettings {
            preset: Preset::Debezium,
            ..Default::default()
        };
        let error = Mapping::new(&settings).unwrap_err().to_string();
        assert!(
            error.contains("OUTRIGGER_OUTBOX_AFTER_PUBLISH=delete"),
            "{error}"
        );
        settings.after_publish = Some(AfterPublish::Mark);
        assert!(Mapping::new(&settings).is_err());
        settings.after_publish = Some(AfterPublish::Delete);
        let mapping = Mapping::new(&settings).unwrap();
        assert!(!mapping.is_native());
        assert!(
            mapping
                .wanted
                .iter()
                .any(|w| w.column == "aggregateid" && w.field == Field::Key)
        );
        settings.after_publish = None;
        settings.column_published_at = Some("sent".into());
        assert_eq!(
            Mapping::new(&settings).unwrap().after_publish,
            AfterPublish::Mark
        );
    }

    #[test]
    fn one_column_may_be_id_and_order() {
        let settings = OutboxSettings {
            column_seq: Some("id".into()),
            ..Default::default()
        };
        let mapping = Mapping::new(&settings).unwrap();
        let both = mapping.wanted.iter().filter(|w| w.column == "id").count();
        assert!(both == 2 && !mapping.is_native());
    }

    #[test]
    fn none_leaves_a_column_out() {
        let settings = OutboxSettings {
            column_seq: Some("none".into()),
            column_created_at: Some("none".into()),
            column_type: Some("\"eventType\"".into()),
            ..Default::default()
        };
        let mapping = Mapping::new(&settings).unwrap();
        let column = |field| mapping.wanted.iter().find(|w| w.field == field);
        assert!(column(Field::Seq).is_none() && column(Field::CreatedAt).is_none());
        assert_eq!(column(Field::Type).unwrap().column, "eventType");
        let nameless = OutboxSettings {
            column_type: Some("none".into()),
            ..Default::default()
        };
        assert!(Mapping::new(&nameless).is_err());
    }

    #[test]
    fn the_order_column_serves_nothing_else() {
        let settings = OutboxSettings {
            column_key: Some("seq".into()),
            ..Default::default()
        };
        let error = Mapping::new(&settings).unwrap_err().to_string();
        assert!(error.contains("OUTRIGGER_OUTBOX_COLUMN_KEY"), "{error}");
    }
}
