//! Rows to destinations: templates over the row, overridden by the row itself.
//!
//! A template may use `id`, `type`, `source`, `subject`, `key`, `content_type`, `schema`,
//! `time`, `seq`, `extensions`, `headers`, `data` (parsed only if used) and any further column of the
//! table by its name. The key template also sees `destination`, the resolved one; the
//! destination template sees `routing_key` if the row has one. A null column is undefined:
//! using it is an error unless the template gives a default.

use minijinja::Value;

use super::rules::media_type_is_json;
use super::template::{Template, json_value};
use super::{Data, Record};
use crate::error::{Reason, ReasonCode};

pub use super::template::TemplateError;

const DESTINATION: &str = "OUTRIGGER_ROUTE_DESTINATION";
const KEY: &str = "OUTRIGGER_ROUTE_KEY";
const DEAD_DESTINATION: &str = "OUTRIGGER_RETRY_DEAD_LETTER_DESTINATION";
const DEAD_KEY: &str = "OUTRIGGER_RETRY_DEAD_LETTER_KEY";

/// Names that are not looked up among the table's further columns.
const BUILT_IN: [&str; 14] = [
    "content_type",
    "data",
    "destination",
    "extensions",
    "headers",
    "id",
    "key",
    "routing_key",
    "schema",
    "seq",
    "source",
    "subject",
    "time",
    "type",
];

/// Gives every row its destination and routing key.
#[derive(Debug)]
pub struct Router {
    destination: Template,
    key: Template,
    defaults: Defaults<Option<String>>,
}

/// What stands in for what a row does not have.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Defaults<T> {
    pub(super) source: T,
    pub(super) content_type: T,
}

impl Router {
    /// Compiles the templates of `OUTRIGGER_ROUTE_DESTINATION` and `OUTRIGGER_ROUTE_KEY`. The error
    /// reports both if both are wrong, one per line.
    pub fn new(destination: &str, key: &str) -> Result<Self, TemplateError> {
        let destination = Template::new(DESTINATION, destination).and_then(|template| {
            refuse_variable(
                template,
                "destination",
                "is what the template itself decides",
            )
        });
        let key = Template::new(KEY, key).and_then(|template| {
            refuse_variable(
                template,
                "routing_key",
                "is what the template itself decides",
            )
        });
        let (destination, key) = both(destination, key)?;
        Ok(Self {
            destination,
            key,
            defaults: Defaults::default(),
        })
    }

    /// Sets what `source` means for rows without one. An encoder does this with its own source.
    #[must_use]
    pub fn with_source(mut self, source: &str) -> Self {
        self.defaults.source = Some(source.to_owned());
        self
    }

    /// Sets what `content_type` means for rows without one, if anything. An encoder does this with its own.
    #[must_use]
    pub fn with_content_type(mut self, content_type: Option<&str>) -> Self {
        self.defaults.content_type = content_type.map(str::to_owned);
        self
    }

    /// Columns beyond the mapped ones that the templates read, sorted. The store selects them as text
    /// into [`Record::extra`].
    pub fn extra_columns(&self) -> Vec<String> {
        extra_columns(&[&self.destination, &self.key], &[])
    }

    /// The destination, where it is the same for every row without an override.
    pub fn constant_destination(&self) -> Option<String> {
        constant(&self.destination)
    }

    /// The destination and routing key of a row.
    pub fn route(&self, record: &Record) -> Result<(String, String), Reason> {
        let defaults = Defaults {
            source: self.defaults.source.as_deref(),
            content_type: self.defaults.content_type.as_deref(),
        };
        let row = |name: &str| row_value(record, defaults, name);
        let destination = match &record.destination {
            Some(destination) => checked_override("destination", destination)?,
            None => render(&self.destination, |name| match name {
                "routing_key" => record.routing_key.as_deref().map(Value::from),
                name => row(name),
            })?,
        };
        let key = match &record.routing_key {
            Some(key) => checked_override("routing_key", key)?,
            None => render(&self.key, |name| match name {
                "destination" => Some(Value::from(&destination)),
                name => row(name),
            })?,
        };
        Ok((destination, key))
    }
}

/// Gives a dead event its destination and routing key.
///
/// Beside the row's own names its templates may use `destination` and `routing_key`, the original
/// ones as resolved, and `reason`, the reason code. The row's overrides do not apply.
#[derive(Debug)]
pub struct DeadLetterRouter {
    destination: Template,
    key: Template,
}

/// A dead event and where it would have gone.
pub(super) struct Original<'a> {
    pub(super) record: &'a Record,
    pub(super) source: &'a str,
    pub(super) content_type: Option<&'a str>,
    /// `None` if it has no route at all.
    pub(super) route: Option<(&'a str, &'a str)>,
    pub(super) reason: ReasonCode,
}

impl DeadLetterRouter {
    /// Compiles the templates of `OUTRIGGER_RETRY_DEAD_LETTER_DESTINATION` and
    /// `OUTRIGGER_RETRY_DEAD_LETTER_KEY`. The error reports both if both are wrong, one per line.
    pub fn new(destination: &str, key: &str) -> Result<Self, TemplateError> {
        let destination = Template::new(DEAD_DESTINATION, destination);
        let (destination, key) = both(destination, Template::new(DEAD_KEY, key))?;
        Ok(Self { destination, key })
    }

    /// Columns beyond the mapped ones that the templates read, sorted.
    pub fn extra_columns(&self) -> Vec<String> {
        extra_columns(&[&self.destination, &self.key], &["reason"])
    }

    /// The destination, where it is the same for every event.
    pub fn constant_destination(&self) -> Option<String> {
        constant(&self.destination)
    }

    pub(super) fn route(&self, original: &Original<'_>) -> Result<(String, String), Reason> {
        let defaults = Defaults {
            source: Some(original.source),
            content_type: original.content_type,
        };
        let lookup = |name: &str| match name {
            "destination" => original
                .route
                .map(|(destination, _)| Value::from(destination)),
            "routing_key" => original.route.map(|(_, key)| Value::from(key)),
            "reason" => Some(Value::from(original.reason.as_str())),
            name => row_value(original.record, defaults, name),
        };
        Ok((
            render(&self.destination, lookup)?,
            render(&self.key, lookup)?,
        ))
    }
}

fn both(
    first: Result<Template, TemplateError>,
    second: Result<Template, TemplateError>,
) -> Result<(Template, Template), TemplateError> {
    match (first, second) {
        (Ok(first), Ok(second)) => Ok((first, second)),
        (Err(first), Err(second)) => Err(TemplateError(format!("{first}\n{second}"))),
        (Err(error), _) | (_, Err(error)) => Err(error),
    }
}

fn refuse_variable(template: Template, name: &str, why: &str) -> Result<Template, TemplateError> {
    if template.variables().any(|known| known == name) {
        let problem = format!("`{name}` cannot be used here, it {why}");
        return Err(TemplateError::new(template.setting(), &problem));
    }
    Ok(template)
}

/// What a template without variables always gives.
fn constant(template: &Template) -> Option<String> {
    if template.variables().next().is_some() {
        return None;
    }
    template.render(|_| None).ok()
}

fn extra_columns(templates: &[&Template], also_built_in: &[&str]) -> Vec<String> {
    let mut columns: Vec<String> = templates
        .iter()
        .flat_map(|template| template.variables())
        .filter(|name| !BUILT_IN.contains(name) && !also_built_in.contains(name))
        .map(str::to_owned)
        .collect();
    columns.sort_unstable();
    columns.dedup();
    columns
}

fn checked_override(column: &str, value: &str) -> Result<String, Reason> {
    if value.chars().any(char::is_control) {
        return Err(Reason::new(
            ReasonCode::InvalidRoute,
            format!("column `{column}` contains control characters"),
        ));
    }
    Ok(value.to_owned())
}

fn render(template: &Template, lookup: impl Fn(&str) -> Option<Value>) -> Result<String, Reason> {
    template
        .render(lookup)
        .map_err(|detail| Reason::new(ReasonCode::InvalidRoute, detail))
}

fn is_json(content_type: &str) -> bool {
    media_type_is_json(content_type) == Ok(true)
}

fn row_value(record: &Record, defaults: Defaults<Option<&str>>, name: &str) -> Option<Value> {
    let text = |value: &Option<String>| value.as_deref().map(Value::from);
    let content_type = || record.content_type.as_deref().or(defaults.content_type);
    match name {
        "id" => Some(Value::from(&record.id)),
        "type" => Some(Value::from(&record.event_type)),
        "source" => record
            .source
            .as_deref()
            .or(defaults.source)
            .map(Value::from),
        "subject" => text(&record.subject),
        "key" => text(&record.key),
        "content_type" => content_type().map(Value::from),
        "schema" => text(&record.schema),
        "time" => record.created_at.map(|at| Value::from(at.to_string())),
        "seq" => Some(Value::from(record.seq)),
        "extensions" => json_value(record.extensions.as_deref()?),
        "headers" => json_value(record.headers.as_deref()?),
        "data" => match &record.data {
            Data::Json(bytes) | Data::Text(bytes) => json_value(std::str::from_utf8(bytes).ok()?),
            Data::Binary(bytes) if content_type().is_some_and(is_json) => {
                json_value(std::str::from_utf8(bytes).ok()?)
            }
            Data::None | Data::Binary(_) => None,
        },
        name => record
            .extra
            .iter()
            .find(|(column, _)| **column == *name)
            .and_then(|(_, value)| text(value)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests;
