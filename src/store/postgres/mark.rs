//! How a row says that it is published: by a time, by a boolean, by a status, or by a status beside one of them.

use super::inspect::{Kind, Table};
use super::mapping::{Field, OutboxSettings, Preset, literal, quote};
use super::sql::now;

/// What tells a row that is pending from one that is published. Rows are named `o`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mark {
    /// True for rows not published yet.
    pub(super) pending: String,
    /// True for published rows. A row may be neither: with a status that is no business of the relay.
    pub(super) published: String,
    /// What an UPDATE sets to mark a row as published.
    pub(super) set: String,
    /// What it sets to make the row pending again.
    pub(super) unset: String,
}

/// The words of a status column.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct StatusWords {
    /// Rows with one of these are published. Empty: the status decides nothing, it is only written.
    pub(super) pending: Vec<String>,
    /// What is written once they are.
    pub(super) published: String,
}

impl StatusWords {
    pub(super) fn of(settings: &OutboxSettings) -> Self {
        let word = |given: Option<&String>, preset: &str| given.map_or(preset, |w| w).to_owned();
        let done = settings.status_published.as_ref();
        // Spring Modulith goes by the date of completion, and has a status beside it.
        if settings.preset == Preset::Modulith {
            return Self {
                pending: settings.status_pending.clone(),
                published: word(done, "COMPLETED"),
            };
        }
        let mut pending = settings.status_pending.clone();
        if pending.is_empty() {
            pending.push("pending".to_owned());
        }
        Self {
            pending,
            published: word(done, "published"),
        }
    }
}

/// How a boolean says no. PostgreSQL uses a partial index only if its condition is written in a way that follows from the
/// query's, and it does not see that these are the same for a column without nulls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum No {
    /// `x is not true`: the only one that counts null in.
    #[default]
    NotTrue,
    /// `not x`, or `x = false`.
    Not,
    /// `x is false`.
    False,
}

impl No {
    /// The form that an index of the table can serve. `conditions`: those of its partial indexes, as the server prints them.
    pub(super) fn of(column: &str, not_null: bool, conditions: &[String]) -> Self {
        let has = |form: &str| {
            [column.to_owned(), quote(column)]
                .iter()
                .any(|name| conditions.contains(&format!("({name} {form})")))
        };
        if !not_null || has("IS NOT TRUE") {
            Self::NotTrue
        } else if has("IS FALSE") {
            Self::False
        } else {
            Self::Not
        }
    }
}

impl Mark {
    pub(super) fn of(table: &Table) -> Self {
        let (mut pending, mut published) = (Vec::new(), Vec::new());
        let (mut set, mut unset) = (Vec::new(), Vec::new());
        if let Some(column) = table.column(Field::PublishedAt) {
            let name = quote(&column.name);
            if column.kind == Kind::Boolean {
                pending.push(match table.no {
                    No::NotTrue => format!("o.{name} is not true"),
                    No::Not => format!("not o.{name}"),
                    No::False => format!("o.{name} is false"),
                });
                published.push(format!("o.{name} is true"));
                set.push(format!("{name} = true"));
                unset.push(format!("{name} = false"));
            } else {
                pending.push(format!("o.{name} is null"));
                published.push(format!("o.{name} is not null"));
                set.push(format!("{name} = {}", now(column.kind)));
                unset.push(format!("{name} = null"));
            }
        }
        if let Some(column) = table.column(Field::Status) {
            let (name, words) = (quote(&column.name), &table.status);
            let done = literal(&words.published);
            let listed: Vec<String> = words.pending.iter().map(|word| literal(word)).collect();
            if let Some(first) = listed.first() {
                pending.push(match listed.len() {
                    1 => format!("o.{name} = {first}"),
                    _ => format!("o.{name} in ({})", listed.join(", ")),
                });
                published.push(format!("o.{name} = {done}"));
                unset.push(format!("{name} = {first}"));
            }
            set.push(format!("{name} = {done}"));
        }
        let all = |parts: Vec<String>, none: &str| match parts.is_empty() {
            true => none.to_owned(),
            false => parts.join(" and "),
        };
        Self {
            pending: all(pending, "true"),
            published: all(published, "false"),
            set: set.join(", "),
            unset: unset.join(", "),
        }
    }

    /// The condition of a partial index for the pending rows.
    pub(super) fn index_condition(&self) -> String {
        self.pending.replace("o.\"", "\"")
    }
}
