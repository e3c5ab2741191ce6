//! What is selected of a row: rendered once, measured, and handed out only if it is not too large.
//!
//! In three layers. The first renders every value, and touches no large one: a `text` or `bytea` that is stored apart
//! stays a pointer, and its length is written there. How long a JSON value is shows only when it is rendered; one that is
//! large as stored is not even that. The second looks for a value that is too long, and only if there is one adds the
//! lengths up. The third lets a row pass or only its head.

use std::fmt::Write as _;

use super::inspect::{Kind, Table};
use super::mapping::{Field, quote};
use super::sql::now;

/// The text fields, in the order in which they are selected.
pub(super) const TEXTS: [Field; 11] = [
    Field::Id,
    Field::Type,
    Field::Source,
    Field::Subject,
    Field::Key,
    Field::ContentType,
    Field::Schema,
    Field::Destination,
    Field::RoutingKey,
    Field::Extensions,
    Field::Headers,
];

/// Longest id, in bytes: a longer one is not read.
pub(super) const ID_MAX: usize = 4096;

/// The size of a row whose id cannot be read.
pub(super) const ODD_ID: i64 = i64::MAX;

/// Characters of type and key that are read of a row whose payload is not.
const HEAD: usize = 256;

/// How many bytes JSON takes as stored for each byte of its text, at most: a number has 12 bytes and `1, ` has 3.
const STORED_PER_TEXT: i64 = 4;

/// A value that is read: its column and how it is rendered.
#[derive(Debug)]
pub(super) struct Value {
    pub(super) column: String,
    pub(super) rendered: String,
    field: Option<Field>,
}

impl Value {
    pub(super) fn is(&self, field: Field) -> bool {
        self.field == Some(field)
    }
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Select {
    /// Values of the first layer but those that may be large.
    head: String,
    /// The values that may be large, in the order of the third layer, with their names there.
    values: String,
    /// The same, all null.
    no_values: String,
    /// The stored size of JSON that is too large as stored.
    stored: String,
    /// The lengths of the values, in the second layer.
    lengths: Vec<String>,
    /// The third layer.
    outer: String,
    /// Nulls of the same types as the third layer.
    pub(super) nulls: String,
    /// What may be asked for on its own.
    pub(super) parts: Vec<Value>,
}

/// What of a row is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part<'a> {
    /// Rows whose values have at most so many bytes each whole, the heads of others. Placeholders: the limit, and the
    /// most bytes that JSON may have as stored to be rendered at all.
    Sized {
        whole: &'a str,
        stored: &'a str,
        /// The limit is for all values together, which takes longer to find out.
        together: bool,
    },
    /// What no value can keep from being read.
    Numbers,
}

/// The most bytes that JSON may have as stored to be rendered at all, where rows have at most `max_event` bytes.
pub(super) fn stored_max(max_event: usize) -> i64 {
    i64::try_from(max_event)
        .unwrap_or(i64::MAX)
        .saturating_mul(STORED_PER_TEXT)
}

/// The id as a [`Record`](crate::event::Record) has it, and whether that is not the one in the table.
///
/// Text that is too long, or is none, gets a stand-in made of its hash: failure records must be able to name the row.
pub(super) fn id(t: &Table) -> (String, String) {
    let id = t.sql(Field::Id).unwrap_or_default();
    let text = t
        .column(Field::Id)
        .is_some_and(|column| column.kind == Kind::Text && column.type_name != "uuid");
    if !text {
        return (format!("coalesce({id}::text, '')"), "false".into());
    }
    let mut readable = format!("octet_length({id}::text) <= {ID_MAX}");
    if t.any_bytes {
        let _ = write!(readable, " and {id}::text ~ {UTF8}");
    }
    (
        format!(
            "coalesce(case when {readable} then {id}::text else 'hash:' || hashtextextended({id}::text, 0) end, '')"
        ),
        format!("not coalesce({readable}, true)"),
    )
}

/// What valid UTF-8 looks like to a database that knows only bytes.
const UTF8: &str = r"E'^([\\x01-\\x7f]|[\\xc2-\\xdf][\\x80-\\xbf]|\\xe0[\\xa0-\\xbf][\\x80-\\xbf]|[\\xe1-\\xec\\xee\\xef][\\x80-\\xbf]{2}|\\xed[\\x80-\\x9f][\\x80-\\xbf]|\\xf0[\\x90-\\xbf][\\x80-\\xbf]{2}|[\\xf1-\\xf3][\\x80-\\xbf]{3}|\\xf4[\\x80-\\x8f][\\x80-\\xbf]{2})*$'";

impl Select {
    /// `total`: all rows are one ordered sequence, whatever their key.
    pub(super) fn new(t: &Table, seq: &str, hash: &str, total: bool) -> Self {
        let keyed = match t.sql(Field::Key) {
            _ if total => "true".to_owned(),
            Some(key) => format!("{key} is not null"),
            None => "false".into(),
        };
        let time = |field: Field| match (t.sql(field), t.column(field).map(|c| c.kind)) {
            (Some(column), Some(Kind::Timestamp)) => format!("{column} at time zone 'UTC'"),
            (Some(column), _) => column,
            (None, _) => "null::timestamptz".into(),
        };
        let (created, expires) = (time(Field::CreatedAt), time(Field::ExpiresAt));
        let (id, odd) = id(t);
        let mut this = Self {
            head: format!(
                "{seq}::int8 as seq, {hash} as hash, {keyed} as keyed, {} as expires, {created} as created, {expires} as expires_at, \
                 {id} as id, {odd} as odd",
                expires_in(t)
            ),
            values: String::new(),
            no_values: String::new(),
            stored: "null::int4".into(),
            lengths: Vec::new(),
            outer: "s.seq, s.hash, s.keyed, s.expires, s.id".into(),
            nulls: "null::int8, null::int8, null::bool, null::int8, null::text".into(),
            parts: Vec::new(),
        };
        let mut stored = Vec::new();
        for field in TEXTS.into_iter().skip(1) {
            this.add(t, Some(field), &mut stored);
        }
        for field in [Field::Data, Field::DataBinary] {
            this.add(t, Some(field), &mut stored);
        }
        this.outer += ", s.created, s.expires_at";
        this.nulls += ", null::timestamptz, null::timestamptz";
        for name in &t.extra {
            this.value(None, name, &format!("o.{}::text", quote(name)), "text");
        }
        if !stored.is_empty() {
            this.stored = format!("coalesce({})", stored.join(", "));
        }
        this
    }

    /// `stored`: the stored sizes of JSON values so far.
    fn add(&mut self, t: &Table, field: Option<Field>, stored: &mut Vec<String>) {
        let column = field.and_then(|field| t.column(field));
        let Some((field, column)) = field.zip(column) else {
            self.outer += ", null::text";
            self.nulls += ", null::text";
            return;
        };
        let raw = format!("o.{}", quote(&column.name));
        match column.kind {
            // Of a column that is of another type by now, nothing is read: a coalesce of two types is an error, and
            // nothing else.
            Kind::Json | Kind::Jsonb => {
                let kind = if column.kind == Kind::Json {
                    "json"
                } else {
                    "jsonb"
                };
                let rendered = format!("coalesce({raw}, null::{kind})::text");
                stored.push(format!(
                    "case when pg_column_size({raw}) > @stored then pg_column_size({raw}) end"
                ));
                let bounded =
                    format!("case when pg_column_size({raw}) <= @stored then {rendered} end");
                self.parts.push(Value {
                    column: column.name.clone(),
                    rendered,
                    field: Some(field),
                });
                self.measured(Some(field), &bounded, "text");
            }
            Kind::Binary => {
                let rendered = format!("coalesce({raw}, null::bytea)");
                self.value(Some(field), &column.name, &rendered, "bytea");
            }
            Kind::Text if matches!(column.type_name.as_str(), "text" | "character varying") => {
                let rendered = format!("coalesce({raw}, null::text)");
                self.value(Some(field), &column.name, &rendered, "text");
            }
            _ => self.value(Some(field), &column.name, &format!("{raw}::text"), "text"),
        }
    }

    fn value(&mut self, field: Option<Field>, column: &str, rendered: &str, kind: &str) {
        self.parts.push(Value {
            column: column.to_owned(),
            rendered: rendered.to_owned(),
            field,
        });
        self.measured(field, rendered, kind);
    }

    fn measured(&mut self, field: Option<Field>, rendered: &str, kind: &str) {
        let name = format!("v{}", self.parts.len());
        let _ = write!(self.values, ", {rendered} as {name}");
        let _ = write!(self.no_values, ", null::{kind} as {name}");
        self.lengths.push(format!("octet_length(r.{name})"));
        let _ = match field {
            Some(Field::Type | Field::Key) => write!(
                self.outer,
                ", case when s.size is null then s.{name} else left(s.{name}, {HEAD}) end"
            ),
            _ => write!(self.outer, ", case when s.size is null then s.{name} end"),
        };
        let _ = write!(self.nulls, ", null::{kind}");
    }

    /// Selects of the rows that `rows` (from FROM on) describes. `more`: further columns, as `(expression, name)`.
    pub(super) fn of(&self, part: Part<'_>, more: &[(&str, &str)], rows: &str) -> String {
        let mut first = self.head.clone();
        let mut outer = format!("{}, s.size", self.outer);
        for (expression, name) in more {
            let _ = write!(first, ", {expression} as {name}");
            let _ = write!(outer, ", s.{name}");
        }
        let (size, values) = match part {
            Part::Sized {
                whole,
                stored,
                together,
            } => {
                let and = |length: &String| format!(" + coalesce({length}, 0)");
                let sum: String = self.lengths.iter().map(and).collect();
                let sum = format!("octet_length(r.id)::int8{sum}");
                let too_long = |length: &String| format!("{length} > {whole} or ");
                let too_long: String = match together {
                    true => format!("{sum} > {whole} or "),
                    false => self.lengths.iter().map(too_long).collect(),
                };
                let size = format!(
                    "case when {too_long}r.stored is not null or r.odd then \
                       case when r.odd then {ODD_ID}::int8 when r.stored is not null then -r.stored::int8 \
                         else {sum} end end"
                );
                let stored_size = self.stored.replace("@stored", stored);
                let values = self.values.replace("@stored", stored);
                (size, format!("{values}, {stored_size} as stored"))
            }
            Part::Numbers => (
                format!("case when r.odd then {ODD_ID}::int8 else 0::int8 end"),
                self.no_values.clone(),
            ),
        };
        format!(
            "select {outer} from (select r.*, {size} as size from (select {first}{values} {rows}) r offset 0) s"
        )
    }
}

/// Microseconds until a row expires, never negative. Infinite times cannot be subtracted before PostgreSQL 17.
fn expires_in(t: &Table) -> String {
    let (Some(at), Some(column)) = (t.sql(Field::ExpiresAt), t.column(Field::ExpiresAt)) else {
        return "null::int8".into();
    };
    let now = now(column.kind);
    format!(
        "case when isfinite({at}) then greatest(0, (extract(epoch from ({at} - {now})) * 1000000)::int8) \
         when {at} < {now} then 0::int8 end"
    )
}
