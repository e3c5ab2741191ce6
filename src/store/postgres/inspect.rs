//! Compares the mapping with the catalog, once per connect: which columns exist, and of which types.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::error::StoreError;
use super::mapping::{AfterPublish, Field, Mapping, literal, quote};

/// How a column is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Integer,
    Json,
    Jsonb,
    Binary,
    Boolean,
    /// `timestamptz`.
    Instant,
    /// `timestamp`: taken as UTC, written as UTC.
    Timestamp,
    /// Anything else, read by its text form.
    Text,
}

impl Kind {
    fn of(type_name: &str) -> Self {
        match type_name {
            "smallint" | "integer" | "bigint" => Self::Integer,
            "json" => Self::Json,
            "jsonb" => Self::Jsonb,
            "bytea" => Self::Binary,
            "boolean" => Self::Boolean,
            "timestamp with time zone" => Self::Instant,
            "timestamp without time zone" => Self::Timestamp,
            _ => Self::Text,
        }
    }
}

/// A column that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) type_name: String,
}

/// The outbox table as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    /// Quoted and schema-qualified where needed: `public.outbox`. Also the name under which it is registered.
    pub(super) name: String,
    /// The channel of its wake-up notifications.
    pub(super) channel: String,
    /// The sequence that holds the promise to poll, quoted and schema-qualified.
    pub(super) awake: String,
    pub(super) columns: BTreeMap<Field, Column>,
    /// Further columns for route templates.
    pub(super) extra: Vec<Arc<str>>,
    /// Partitioned, or inherited from.
    pub(super) has_children: bool,
    pub(super) after_publish: AfterPublish,
}

/// What the table allows; the relay and `check` hold the settings against it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// The outbox's name, quoted and schema-qualified.
    pub outbox: String,
    /// There is an order column, so events can be ordered by key.
    pub has_order: bool,
    /// There is a key column.
    pub has_key: bool,
    /// There is a published column, so rows can be kept and replayed.
    pub has_published: bool,
    /// There is a delay column.
    pub has_available_at: bool,
    /// Retention can tell how old a published row is.
    pub has_age: bool,
    /// What is done with finished rows.
    pub after_publish: AfterPublish,
}

impl Table {
    pub(super) fn column(&self, field: Field) -> Option<&Column> {
        self.columns.get(&field)
    }

    /// The column as `o."name"`.
    pub(super) fn sql(&self, field: Field) -> Option<String> {
        self.column(field)
            .map(|column| format!("o.{}", quote(&column.name)))
    }

    pub(super) fn capabilities(&self) -> Capabilities {
        let has = |field| self.columns.contains_key(&field);
        let dated = self
            .column(Field::PublishedAt)
            .is_some_and(|c| c.kind != Kind::Boolean);
        Capabilities {
            outbox: self.name.clone(),
            has_order: has(Field::Seq),
            has_key: has(Field::Key),
            has_published: has(Field::PublishedAt),
            has_available_at: has(Field::AvailableAt),
            has_age: has(Field::PublishedAt) && (dated || has(Field::CreatedAt)),
            after_publish: self.after_publish,
        }
    }

    /// The table as a `regclass` constant.
    pub(super) fn regclass(&self) -> String {
        format!("{}::regclass", literal(&self.name))
    }
}

const TABLE: &str = "\
select format('%I.%I', n.nspname, c.relname) as name,
       case when octet_length(format('outrigger:%I.%I', n.nspname, c.relname)) <= 63
            then format('outrigger:%I.%I', n.nspname, c.relname)
            else 'outrigger:' || md5(format('%I.%I', n.nspname, c.relname)) end as channel,
       format('outrigger.%I', case when octet_length(format('awake:%I.%I', n.nspname, c.relname)) <= 63
            then format('awake:%I.%I', n.nspname, c.relname)
            else 'awake:' || md5(format('%I.%I', n.nspname, c.relname)) end) as awake,
       c.relkind::text as kind,
       (c.relkind = 'p' or exists (select from pg_inherits i where i.inhparent = c.oid)) as has_children,
       c.oid as oid
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.oid = to_regclass($1)";

const COLUMNS: &str = "\
select a.attname::text as name,
       format_type(case when t.typtype = 'd' then t.typbasetype else t.oid end, null) as type
from pg_attribute a join pg_type t on t.oid = a.atttypid
where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped
order by a.attnum";

/// Looks the table up. `Ok(None)`: there is no such table.
pub(super) async fn find(client: &Client, mapping: &Mapping) -> Result<Option<Table>, StoreError> {
    let name = mapping.quoted_table();
    let Some(row) = client
        .query_typed_opt(TABLE, &[(&name, Type::TEXT)])
        .await?
    else {
        return Ok(None);
    };
    let kind: &str = row.try_get("kind")?;
    let table: String = row.try_get("name")?;
    if !matches!(kind, "r" | "p") {
        return Err(StoreError::schema(format!(
            "{table} (OUTRIGGER_OUTBOX_TABLE) is not a table"
        )));
    }
    let oid: u32 = row.try_get("oid")?;
    let mut found = BTreeMap::new();
    let mut names = Vec::new();
    for column in client.query_typed(COLUMNS, &[(&oid, Type::OID)]).await? {
        let name: String = column.try_get("name")?;
        names.push(name.clone());
        found.insert(name, column.try_get::<_, String>("type")?);
    }
    let (columns, extra) = resolve(mapping, &table, &found, &names)?;
    Ok(Some(Table {
        name: table,
        channel: row.try_get("channel")?,
        awake: row.try_get("awake")?,
        columns,
        extra,
        has_children: row.try_get("has_children")?,
        after_publish: mapping.after_publish,
    }))
}

/// Looks the table up and insists that it exists.
pub(super) async fn inspect(client: &Client, mapping: &Mapping) -> Result<Table, StoreError> {
    find(client, mapping).await?.ok_or_else(|| {
        let next = if mapping.is_native() {
            "run `outrigger migrate` to create it, or set OUTRIGGER_OUTBOX_TABLE"
        } else {
            "create it, or correct OUTRIGGER_OUTBOX_TABLE"
        };
        StoreError::schema(format!(
            "table {} does not exist (or is not on the search path): {next}",
            mapping.quoted_table()
        ))
    })
}

type Resolved = (BTreeMap<Field, Column>, Vec<Arc<str>>);

fn resolve(
    mapping: &Mapping,
    table: &str,
    found: &BTreeMap<String, String>,
    names: &[String],
) -> Result<Resolved, StoreError> {
    let missing = |column: &str, setting: &str| {
        StoreError::schema(format!(
            "table {table} has no column `{column}` ({setting}); it has: {}",
            names.join(", ")
        ))
    };
    let mut columns = BTreeMap::new();
    for wanted in &mapping.wanted {
        let Some(type_name) = found.get(&wanted.column) else {
            if wanted.required {
                return Err(missing(&wanted.column, &wanted.field.setting()));
            }
            continue;
        };
        let kind = Kind::of(type_name);
        if let Some(expected) = expectation(wanted.field, kind, type_name) {
            return Err(StoreError::schema(format!(
                "column `{}` of table {table} ({}) is of type {type_name}, but must be {expected}",
                wanted.column,
                wanted.field.setting()
            )));
        }
        columns.insert(
            wanted.field,
            Column {
                name: wanted.column.clone(),
                kind,
                type_name: type_name.clone(),
            },
        );
    }
    let mut extra = Vec::new();
    for name in &mapping.extra {
        if !found.contains_key(name) {
            return Err(missing(name, "named by a route template"));
        }
        extra.push(Arc::from(name.as_str()));
    }
    Ok((columns, extra))
}

/// What the column would have to be, if it is not.
fn expectation(field: Field, kind: Kind, type_name: &str) -> Option<&'static str> {
    let is_text = || {
        matches!(
            type_name,
            "text" | "character varying" | "character" | "citext" | "\"char\"" | "name"
        )
    };
    let (fits, expected) = match field {
        Field::Seq => (kind == Kind::Integer, "smallint, integer or bigint"),
        Field::PublishedAt => (
            matches!(kind, Kind::Instant | Kind::Timestamp | Kind::Boolean),
            "timestamptz, timestamp or boolean",
        ),
        Field::CreatedAt | Field::AvailableAt | Field::ExpiresAt => (
            matches!(kind, Kind::Instant | Kind::Timestamp),
            "timestamptz or timestamp",
        ),
        Field::Data => (
            matches!(kind, Kind::Json | Kind::Jsonb | Kind::Binary) || is_text(),
            "jsonb, json, text or bytea",
        ),
        Field::DataBinary => (kind == Kind::Binary, "bytea"),
        Field::Extensions | Field::Headers => (
            matches!(kind, Kind::Json | Kind::Jsonb) || is_text(),
            "jsonb, json or text",
        ),
        _ => (kind != Kind::Binary, "a type with a readable text form"),
    };
    (!fits).then_some(expected)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::super::mapping::OutboxSettings;
    use super::*;

    fn check(settings: &OutboxSettings, columns: &[(&str, &str)]) -> Result<Resolved, String> {
        let mapping = Mapping::new(settings).unwrap();
        let found = columns
            .iter()
            .map(|(n, t)| ((*n).into(), (*t).into()))
            .collect();
        let names: Vec<_> = columns.iter().map(|(n, _)| (*n).to_owned()).collect();
        resolve(&mapping, "public.outbox", &found, &names).map_err(|e| e.to_string())
    }

    const SMALL: &[(&str, &str)] = &[
        ("seq", "bigint"),
        ("id", "uuid"),
        ("type", "text"),
        ("published_at", "boolean"),
    ];

    #[test]
    fn optional_columns_may_be_missing_unless_a_setting_names_them() {
        let (columns, _) = check(&OutboxSettings::default(), SMALL).unwrap();
        assert_eq!(columns.len(), 4);
        let settings = OutboxSettings {
            column_key: Some("aggregate_id".into()),
            ..Default::default()
        };
        assert_eq!(
            check(&settings, SMALL).unwrap_err(),
            "table public.outbox has no column `aggregate_id` (OUTRIGGER_OUTBOX_COLUMN_KEY); \
             it has: seq, id, type, published_at"
        );
    }

    #[test]
    fn types_are_checked() {
        let settings = OutboxSettings {
            column_published_at: Some("id".into()),
            column_id: Some("seq2".into()),
            ..Default::default()
        };
        let columns = [
            ("seq", "bigint"),
            ("seq2", "bigint"),
            ("id", "uuid"),
            ("type", "text"),
        ];
        let error = check(&settings, &columns).unwrap_err();
        assert!(
            error.contains("is of type uuid, but must be timestamptz, timestamp or boolean"),
            "{error}"
        );
        assert!(
            error.contains("OUTRIGGER_OUTBOX_COLUMN_PUBLISHED_AT"),
            "{error}"
        );
    }

    #[test]
    fn extra_columns_must_exist() {
        let settings = OutboxSettings {
            extra: vec!["tenant".into()],
            ..Default::default()
        };
        assert!(
            check(&settings, SMALL)
                .unwrap_err()
                .contains("route template")
        );
    }
}
