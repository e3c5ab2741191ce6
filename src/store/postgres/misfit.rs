//! A table that does not fit the mapping: everything that is wrong with it, and what to do about it, at once.

use super::error::StoreError;
use super::inspect::{Found, Kind, expectation};
use super::mapping::{Field, Mapping, Wanted, quote};

/// What is wrong, as it is found out.
#[derive(Debug, Default)]
pub(super) struct Misfit {
    missing: Vec<String>,
    others: Vec<String>,
    settings: Vec<String>,
    columns: Vec<String>,
    unordered_will_do: bool,
}

impl Misfit {
    /// A column that is needed and not there.
    pub(super) fn missing(&mut self, mapping: &Mapping, wanted: &Wanted, found: &[Found]) {
        let Wanted { field, column, .. } = wanted;
        let setting = field.setting();
        self.missing
            .push(format!("no column `{column}` ({setting})"));
        let taken = |name: &str| mapping.wanted.iter().any(|w| w.column == name);
        let usual = usual(*field, found).into_iter().find(|name| !taken(name));
        match usual {
            Some(name) => self.settings.push(format!("{setting}={name}")),
            None => self.columns.extend(definition(*field, column)),
        }
        self.unordered_will_do |= *field == Field::Seq;
    }

    /// A column that only a template names.
    pub(super) fn missing_for_template(&mut self, column: &str) {
        self.missing
            .push(format!("no column `{column}` (named by a route template)"));
    }

    /// A column of a type that cannot carry the field.
    pub(super) fn of_type(&mut self, wanted: &Wanted, type_name: &str, expected: &str) {
        self.others.push(format!(
            "column `{}` ({}) is of type {type_name}, but must be {expected}",
            wanted.column,
            wanted.field.setting()
        ));
        if !wanted.required {
            self.settings
                .push(format!("{}=none", wanted.field.setting()));
        }
    }

    /// Says it all, if there is anything.
    pub(super) fn error(self, table: &str, found: &[Found]) -> Result<(), StoreError> {
        if self.missing.is_empty() && self.others.is_empty() {
            return Ok(());
        }
        let mut text = format!("table {table} ");
        if !self.missing.is_empty() {
            let names: Vec<&str> = found.iter().map(|f| f.name.as_str()).collect();
            text += &format!(
                "has {}; it has: {}",
                self.missing.join(", "),
                names.join(", ")
            );
        }
        for (n, other) in self.others.iter().enumerate() {
            text += match (n, self.missing.is_empty()) {
                (0, true) => "does not fit: ",
                _ => "; ",
            };
            text += other;
        }
        let mut hint = Vec::new();
        if !self.settings.is_empty() {
            hint.push(format!("set {}", self.settings.join(" ")));
        }
        if !self.columns.is_empty() {
            hint.push(format!("alter table {table} {};", self.columns.join(", ")));
        }
        if self.unordered_will_do {
            hint.push("or, if order does not matter, set OUTRIGGER_RELAY_ORDERING=none".to_owned());
        }
        if hint.is_empty() {
            return Err(StoreError::schema(text));
        }
        Err(StoreError::schema(text).with_remedy(hint.join("\n")))
    }
}

/// The clause that adds a column which every table can have.
fn definition(field: Field, column: &str) -> Option<String> {
    let kind = match field {
        Field::Seq => "bigint generated always as identity",
        Field::PublishedAt => "timestamptz",
        Field::Id => "uuid not null default gen_random_uuid()",
        _ => return None,
    };
    Some(format!("add column {} {kind}", quote(column)))
}

/// Columns of the table that usually carry this field, by their names and types; the likeliest first.
pub(super) fn usual(field: Field, found: &[Found]) -> Vec<String> {
    let names: &[&str] = match field {
        Field::Seq => &["seq", "sequence", "sequencenumber", "position", "id"],
        Field::Id => &["id", "eventid", "messageid", "uuid", "uid"],
        Field::Type => &[
            "type",
            "eventtype",
            "eventname",
            "messagetype",
            "name",
            "kind",
        ],
        Field::Key => &[
            "key",
            "aggregateid",
            "entityid",
            "partitionkey",
            "messagekey",
            "orderingkey",
        ],
        Field::Data => &[
            "data",
            "payload",
            "body",
            "content",
            "eventdata",
            "serializedevent",
            "event",
            "message",
        ],
        Field::CreatedAt => &[
            "createdat",
            "created",
            "occurredat",
            "occurredon",
            "insertedat",
            "publicationdate",
            "timestamp",
        ],
        Field::PublishedAt => &[
            "publishedat",
            "published",
            "processedat",
            "processed",
            "processedon",
            "sentat",
            "sent",
            "dispatchedat",
            "dispatched",
            "deliveredat",
            "delivered",
            "completiondate",
            "ispublished",
            "isprocessed",
            "issent",
        ],
        _ => &[],
    };
    // `eventType`, `event_type` and `EventType` are one name.
    let plain = |name: &str| name.replace('_', "").to_lowercase();
    names
        .iter()
        .flat_map(|name| found.iter().filter(move |f| plain(&f.name) == *name))
        .filter(|f| expectation(field, Kind::of(&f.type_name), &f.type_name).is_none())
        .map(|f| f.name.clone())
        .collect()
}
