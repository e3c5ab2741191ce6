//! Adding an event by hand.

use tokio::time::timeout;
use tokio_postgres::types::{ToSql, Type};
use uuid::Uuid;

use super::error::StoreError;
use super::inspect::Kind;
use super::mapping::{Field, literal, quote};
use super::session::Params;
use super::{PostgresStore, run};

/// An event to add. Empty fields take the table's defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewEvent {
    /// Field and its text form, cast to the column's type. [`Field::Id`] is drawn unless given.
    pub fields: Vec<(Field, String)>,
}

impl PostgresStore {
    /// Adds an event by a plain INSERT, which works for mapped tables too. Returns its id. Takes the same lock on its key as
    /// `outrigger.emit`, before the order number is drawn.
    pub async fn emit(&self, event: &NewEvent) -> Result<String, StoreError> {
        let mut fields: Vec<(Field, &str)> = event
            .fields
            .iter()
            .map(|(field, text)| (*field, text.as_str()))
            .collect();
        let drawn = Uuid::new_v4().to_string();
        let given = fields
            .iter()
            .find(|(field, _)| *field == Field::Id)
            .map(|(_, id)| *id);
        let id = given.unwrap_or(&drawn).to_owned();
        let draws = self.inner.table.drawn_id().is_some();
        if given.is_none() && draws {
            fields.push((Field::Id, &drawn));
        }
        let (names, values) = self.insert(&fields, |position, _| format!("${}", position + 1))?;
        let lock = match fields.iter().position(|(field, _)| *field == Field::Key) {
            Some(at) => format!(
                "pg_advisory_xact_lock(hashtextextended(${}, {}::oid::bigint))",
                at + 1,
                self.inner.table.regclass()
            ),
            None => "1".into(),
        };
        let text = format!(
            "insert into {} ({names}) select {values} from (select {lock}) locked",
            self.inner.table.name
        );
        let params: Params<'_> = fields
            .iter()
            .map(|(_, text)| (text as &(dyn ToSql + Sync), Type::TEXT))
            .collect();
        if given.is_some() || draws {
            run!(self, |client| client.execute_typed(&text, &params))?;
            return Ok(id);
        }
        // Drawn by the table itself.
        let column = self.inner.table.column(Field::Id);
        let text = format!(
            "{text} returning {}::text",
            quote(column.map_or("id", |column| &column.name))
        );
        let row: tokio_postgres::Row = run!(self, |client| client.query_typed_one(&text, &params))?;
        Ok(row.try_get(0)?)
    }

    /// The INSERT that a service would write for this event, values included.
    pub fn insert_statement(&self, event: &NewEvent) -> Result<String, StoreError> {
        let fields: Vec<(Field, &str)> = event
            .fields
            .iter()
            .map(|(field, text)| (*field, text.as_str()))
            .collect();
        let (names, values) = self.insert(&fields, |_, text| literal(text))?;
        let table = &self.inner.table.name;
        Ok(format!("insert into {table} ({names})\nvalues ({values});"))
    }

    /// Columns and values of an INSERT; `value` gives the text of a value, which is cast to the column's type.
    fn insert(
        &self,
        fields: &[(Field, &str)],
        value: impl Fn(usize, &str) -> String,
    ) -> Result<(String, String), StoreError> {
        let table = &self.inner.table;
        let (mut names, mut values) = (Vec::new(), Vec::new());
        for (position, (field, text)) in fields.iter().enumerate() {
            let column = table.column(*field).ok_or_else(|| {
                StoreError::schema(format!(
                    "table {} has no column for this: set {}",
                    table.name,
                    field.setting()
                ))
            })?;
            let text = value(position, text);
            names.push(quote(&column.name));
            values.push(match (column.kind, field) {
                (Kind::Timestamp, _) => format!("({text}::timestamptz at time zone 'UTC')"),
                // A payload is text here; a cast would take its backslashes for escapes.
                (Kind::Binary, Field::Data) => format!("convert_to({text}, 'UTF8')"),
                _ => format!("{text}::{}", column.type_name),
            });
        }
        Ok((names.join(", "), values.join(", ")))
    }
}
