//! Compares the mapping with the catalog, once per connect: which columns exist, and of which types.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::error::StoreError;
use super::mapping::{AfterPublish, Field, Mapping, literal, quote};
use super::mark::{No, StatusWords};
use super::misfit::Misfit;
use super::retention;

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
    pub(super) fn of(type_name: &str) -> Self {
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
    /// Created by `outrigger migrate`, as its comment says.
    pub(super) ours: bool,
    /// May be null, by its definition.
    pub(super) nullable: bool,
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
    /// The same without its schema, unquoted.
    pub(super) awake_name: String,
    pub(super) columns: BTreeMap<Field, Column>,
    /// Further columns for route templates.
    pub(super) extra: Vec<Arc<str>>,
    /// Partitioned, or inherited from.
    pub(super) has_children: bool,
    /// The database knows no encoding: text may be any bytes.
    pub(super) any_bytes: bool,
    /// It, or a table below it, is UNLOGGED.
    pub(super) unlogged: bool,
    pub(super) after_publish: AfterPublish,
    /// How the published column says no, if it is a boolean.
    pub(super) no: No,
    /// The words of the status column, if there is one.
    pub(super) status: StatusWords,
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
    /// `outrigger migrate` created the table, so its history is ours to delete.
    pub created_by_migrate: bool,
    /// The table, or one below it, is UNLOGGED: PostgreSQL empties it after a crash, and no standby has its rows.
    pub unlogged: bool,
    /// What is done with finished rows.
    pub after_publish: AfterPublish,
}

impl Table {
    pub(super) fn column(&self, field: Field) -> Option<&Column> {
        self.columns.get(&field)
    }

    /// Whether a row can be marked as published.
    pub(super) fn has_mark(&self) -> bool {
        self.columns.keys().any(|field| field.is_mark())
    }

    /// The id's column, if an id can be drawn for it: a UUID or a text, and not the order as well.
    pub(super) fn drawn_id(&self) -> Option<&Column> {
        let column = self.column(Field::Id)?;
        let shared = self
            .column(Field::Seq)
            .is_some_and(|seq| seq.name == column.name);
        let fits = column.type_name == "uuid" || is_text(&column.type_name);
        (fits && !shared).then_some(column)
    }

    /// The column as `o."name"`.
    pub(super) fn sql(&self, field: Field) -> Option<String> {
        self.column(field)
            .map(|column| format!("o.{}", quote(&column.name)))
    }

    pub(super) fn capabilities(&self) -> Capabilities {
        let has = |field| self.columns.contains_key(&field);
        Capabilities {
            outbox: self.name.clone(),
            has_order: has(Field::Seq),
            has_key: has(Field::Key),
            has_published: self.has_mark(),
            has_available_at: has(Field::AvailableAt),
            has_age: self.has_mark() && retention::dated(self).is_some(),
            created_by_migrate: self.column(Field::PublishedAt).is_some_and(|c| c.ours),
            unlogged: self.unlogged,
            after_publish: self.after_publish,
        }
    }

    /// The table as a `regclass` constant.
    pub(super) fn regclass(&self) -> String {
        format!("{}::regclass", literal(&self.name))
    }

    /// A subquery: the table and everything that inherits from it, its partitions included.
    pub(super) fn tree(&self) -> String {
        let class = self.regclass();
        if !self.has_children {
            return format!("select {class}::oid");
        }
        format!(
            "with recursive tree as (select {class}::oid as oid union \
             select i.inhrelid from pg_inherits i join tree on i.inhparent = tree.oid) select oid from tree"
        )
    }
}

const TABLE: &str = "\
select format('%I.%I', n.nspname, c.relname) as name,
       case when octet_length(format('outrigger:%I.%I', n.nspname, c.relname)) <= 63
            then format('outrigger:%I.%I', n.nspname, c.relname)
            else 'outrigger:' || md5(format('%I.%I', n.nspname, c.relname)) end as channel,
       case when octet_length(format('awake:%I.%I', n.nspname, c.relname)) <= 63
            then format('awake:%I.%I', n.nspname, c.relname)
            else 'awake:' || md5(format('%I.%I', n.nspname, c.relname)) end as awake,
       c.relkind::text as kind,
       (c.relkind = 'p' or exists (select from pg_inherits i where i.inhparent = c.oid)) as has_children,
       c.oid as oid,
       getdatabaseencoding() = 'SQL_ASCII' as any_bytes,
       exists (with recursive tree as (select c.oid as oid union \
           select i.inhrelid from pg_inherits i join tree on i.inhparent = tree.oid) \
         select from pg_class u where u.oid in (select oid from tree) and u.relpersistence = 'u') as unlogged
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.oid = to_regclass($1)";

const COLUMNS: &str = "\
select a.attname::text as name,
       format_type((with recursive base as (select t.oid, t.typtype, t.typbasetype \
           union all select b.oid, b.typtype, b.typbasetype from base join pg_type b on b.oid = base.typbasetype \
             where base.typtype = 'd') \
         select base.oid from base where base.typtype <> 'd'), null) as type,
       not a.attnotnull as nullable,
       coalesce(col_description(a.attrelid, a.attnum) like '%outrigger migrate%', false) as ours
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
    let what = match kind {
        "r" | "p" => None,
        "v" => Some("a view"),
        "m" => Some("a materialized view"),
        "f" => Some("a foreign table"),
        _ => Some("no table"),
    };
    if let Some(what) = what {
        return Err(StoreError::schema(format!(
            "{table} (OUTRIGGER_OUTBOX_TABLE) is {what}: name the table that holds the rows, in the database where it is"
        )));
    }
    let oid: u32 = row.try_get("oid")?;
    let found = found(client, oid).await?;
    let (columns, extra) = resolve(mapping, &table, &found)?;
    check_status(client, mapping, &table, columns.get(&Field::Status)).await?;
    Ok(Some(Table {
        no: no(client, oid, columns.get(&Field::PublishedAt)).await?,
        status: mapping.status.clone(),
        name: table,
        channel: row.try_get("channel")?,
        awake: format!("outrigger.{}", quote(row.try_get("awake")?)),
        awake_name: row.try_get("awake")?,
        columns,
        extra,
        has_children: row.try_get("has_children")?,
        any_bytes: row.try_get("any_bytes")?,
        unlogged: row.try_get("unlogged")?,
        after_publish: mapping.after_publish,
    }))
}

/// All columns of a table that fits.
pub(super) async fn columns(client: &Client, table: &Table) -> Result<Vec<Found>, StoreError> {
    let oid = format!("select {}::oid", table.regclass());
    let oid = client.query_typed_one(&oid, &[]).await?.try_get(0)?;
    found(client, oid).await
}

async fn found(client: &Client, table: u32) -> Result<Vec<Found>, StoreError> {
    let columns = client.query_typed(COLUMNS, &[(&table, Type::OID)]).await?;
    columns
        .iter()
        .map(|column| {
            Ok(Found {
                name: column.try_get("name")?,
                type_name: column.try_get("type")?,
                ours: column.try_get("ours")?,
                nullable: column.try_get("nullable")?,
            })
        })
        .collect()
}

/// How a boolean mark says no, so that an index that is there can be used.
async fn no(client: &Client, table: u32, mark: Option<&Column>) -> Result<No, StoreError> {
    let Some(mark) = mark.filter(|mark| mark.kind == Kind::Boolean) else {
        return Ok(No::default());
    };
    let row = client
        .query_typed_one(
            "select array(select pg_get_expr(i.indpred, i.indrelid) from pg_index i \
               where i.indrelid = $1 and i.indisvalid and i.indpred is not null)",
            &[(&table, Type::OID)],
        )
        .await?;
    let conditions: Vec<String> = row.try_get(0)?;
    Ok(No::of(&mark.name, !mark.nullable, &conditions))
}

/// Whether the words of the status are values of its type, such as an enum's.
async fn check_status(
    client: &Client,
    mapping: &Mapping,
    table: &str,
    status: Option<&Column>,
) -> Result<(), StoreError> {
    let Some(column) = status else {
        return Ok(());
    };
    let words = mapping.status.pending.iter();
    for word in words.chain([&mapping.status.published]) {
        let cast = format!("select ({}::{})::text", literal(word), column.type_name);
        if let Err(error) = client.query_typed_one(&cast, &[]).await {
            let error = StoreError::from(error);
            return Err(match error.sqlstate() {
                Some("22P02" | "22003") => StoreError::schema(format!(
                    "`{word}` is not a value of column `{}` of table {table}, which is of type {}: correct \
                     OUTRIGGER_OUTBOX_STATUS_PENDING or OUTRIGGER_OUTBOX_STATUS_PUBLISHED",
                    column.name, column.type_name
                )),
                _ => error,
            });
        }
    }
    Ok(())
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

/// A column as the catalog has it.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) name: String,
    pub(super) type_name: String,
    ours: bool,
    nullable: bool,
}

fn resolve(mapping: &Mapping, table: &str, found: &[Found]) -> Result<Resolved, StoreError> {
    let mut columns = BTreeMap::new();
    let mut wrong = Misfit::default();
    for wanted in &mapping.wanted {
        let Some(Found {
            type_name,
            ours,
            nullable,
            ..
        }) = found.iter().find(|f| f.name == wanted.column)
        else {
            if wanted.required {
                wrong.missing(mapping, wanted, found);
            }
            continue;
        };
        let kind = Kind::of(type_name);
        if let Some(expected) = expectation(wanted.field, kind, type_name) {
            wrong.of_type(wanted, type_name, expected);
            continue;
        }
        columns.insert(
            wanted.field,
            Column {
                name: wanted.column.clone(),
                kind,
                type_name: type_name.clone(),
                ours: *ours,
                nullable: *nullable,
            },
        );
    }
    let mut extra = Vec::new();
    for name in &mapping.extra {
        if !found.iter().any(|f| f.name == *name) {
            wrong.missing_for_template(name);
        }
        extra.push(Arc::from(name.as_str()));
    }
    wrong.error(table, found)?;
    Ok((columns, extra))
}

fn is_text(type_name: &str) -> bool {
    matches!(
        type_name,
        "text" | "character varying" | "character" | "citext" | "\"char\"" | "name"
    )
}

/// What the column would have to be, if it is not.
pub(super) fn expectation(field: Field, kind: Kind, type_name: &str) -> Option<&'static str> {
    let is_text = || is_text(type_name);
    let (fits, expected) = match field {
        Field::Seq => (kind == Kind::Integer, "smallint, integer or bigint"),
        // Words, numbers and enums: whatever can be written as a word.
        Field::Status => (
            matches!(kind, Kind::Text | Kind::Integer),
            "text, a number or an enum",
        ),
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
        let found: Vec<Found> = columns
            .iter()
            .map(|(name, type_name)| Found {
                name: (*name).into(),
                type_name: (*type_name).into(),
                ours: false,
                nullable: false,
            })
            .collect();
        resolve(&mapping, "public.outbox", &found).map_err(|e| e.to_string())
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
    fn everything_that_is_missing_is_told_at_once() {
        let textbook = [
            ("id", "uuid"),
            ("event_type", "text"),
            ("payload", "bytea"),
            ("created_at", "timestamp with time zone"),
            ("published", "boolean"),
        ];
        let mapping = Mapping::new(&OutboxSettings {
            extra: vec!["tenant".into()],
            ..Default::default()
        })
        .unwrap();
        let found: Vec<Found> = textbook
            .iter()
            .map(|(name, type_name)| Found {
                name: (*name).into(),
                type_name: (*type_name).into(),
                ours: false,
                nullable: false,
            })
            .collect();
        let error = resolve(&mapping, "public.outbox", &found).unwrap_err();
        let text = error.to_string();
        for part in [
            "no column `seq` (OUTRIGGER_OUTBOX_COLUMN_SEQ)",
            "no column `type` (OUTRIGGER_OUTBOX_COLUMN_TYPE)",
            "no column `published_at` (OUTRIGGER_OUTBOX_COLUMN_PUBLISHED_AT)",
            "no column `tenant` (named by a route template)",
        ] {
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(
            error.remedy().unwrap(),
            "set OUTRIGGER_OUTBOX_COLUMN_TYPE=event_type OUTRIGGER_OUTBOX_COLUMN_PUBLISHED_AT=published\n\
             alter table public.outbox add column \"seq\" bigint generated always as identity;\n\
             or, if order does not matter, set OUTRIGGER_RELAY_ORDERING=none"
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
