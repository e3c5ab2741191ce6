//! One route template: compiled once, checked at start, rendered per row within limits.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;

use minijinja::value::{Enumerator, Object, ObjectRepr, Value};
use minijinja::{Environment, ErrorKind, State, UndefinedBehavior};
use serde_json::value::RawValue;

/// Steps one rendering may take; a route takes a dozen.
const FUEL: u64 = 10_000;
/// Longest result in bytes. Brokers allow less (RabbitMQ 255); the sink checks its own limit.
const RESULT_MAX: usize = 4096;

/// Filters that allocate whatever width or count they are given, which steps do not bound.
const UNBOUNDED_FILTERS: [&str; 5] = ["batch", "format", "indent", "pprint", "slice"];

/// A template cannot be used. Says which setting, what is wrong and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TemplateError(pub(super) String);

impl TemplateError {
    pub(super) fn new(setting: &str, problem: &str) -> Self {
        Self(format!(
            "{setting}: {problem}; a template looks like `orders.{{{{ type }}}}` or \
             `{{{{ data.region | default('eu') }}}}`"
        ))
    }
}

/// A compiled template.
pub(super) struct Template {
    setting: &'static str,
    environment: Environment<'static>,
    /// Variables that the template reads, without globals.
    variables: Vec<Arc<str>>,
    /// The same with attributes (`data.customer.id`), for error messages.
    paths: Vec<String>,
    /// The result of a template without variables.
    constant: Option<String>,
}

impl Template {
    pub(super) fn new(setting: &'static str, source: &str) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_fuel(Some(FUEL));
        for filter in UNBOUNDED_FILTERS {
            environment.remove_filter(filter);
        }
        environment.add_filter("token", token);
        let refuse = |error: &minijinja::Error| {
            // No row is involved yet, so the engine's own words cannot quote a payload.
            let detail = error.detail().map(|detail| format!(": {detail}"));
            let problem = format!("{}{}", error.kind(), detail.unwrap_or_default());
            TemplateError::new(setting, &problem)
        };
        environment
            .add_template_owned(setting, source.to_owned())
            .map_err(|error| refuse(&error))?;

        let is_global = |name: &str| environment.globals().any(|(known, _)| known == name);
        let undeclared = |nested| {
            let mut names = environment
                .get_template(setting)
                .map(|template| template.undeclared_variables(nested))
                .unwrap_or_default()
                .into_iter()
                .filter(|path| !is_global(path.split('.').next().unwrap_or_default()))
                .collect::<Vec<_>>();
            names.sort_unstable();
            names
        };
        let variables: Vec<Arc<str>> = undeclared(false).into_iter().map(Arc::from).collect();
        let paths = undeclared(true);

        let mut template = Self {
            setting,
            environment,
            variables,
            paths,
            constant: None,
        };
        // A trial run finds what only shows when the template runs: unknown filters and calls.
        let trial = template.run(|_| Some(Value::from_object(Anything)));
        match trial {
            Ok(result) if template.variables.is_empty() => {
                if result.chars().any(char::is_control) {
                    return Err(TemplateError::new(setting, "contains control characters"));
                }
                template.constant = Some(result);
            }
            Err(error) if template.variables.is_empty() || is_static(error.kind()) => {
                return Err(refuse(&error));
            }
            // Anything else may be owed to the trial's made-up values.
            Ok(_) | Err(_) => {}
        }
        Ok(template)
    }

    /// The setting this template comes from.
    pub(super) fn setting(&self) -> &'static str {
        self.setting
    }

    /// The variables that the template reads, sorted.
    pub(super) fn variables(&self) -> impl Iterator<Item = &str> {
        self.variables.iter().map(AsRef::as_ref)
    }

    /// Renders with the values that `lookup` gives for the template's variables; `None` is
    /// undefined, and using it is an error unless the template provides a default.
    ///
    /// The error is a sentence that names the setting and the variables, never a value.
    pub(super) fn render(&self, lookup: impl Fn(&str) -> Option<Value>) -> Result<String, String> {
        if let Some(constant) = &self.constant {
            return Ok(constant.clone());
        }
        let result = self
            .run(&lookup)
            .map_err(|error| self.explain(&error, lookup))?;
        if result.chars().any(char::is_control) {
            return Err(format!(
                "{} gives a result with control characters for this row",
                self.setting
            ));
        }
        Ok(result)
    }

    fn run(&self, lookup: impl Fn(&str) -> Option<Value>) -> Result<String, minijinja::Error> {
        let context = Context(
            self.variables
                .iter()
                .filter_map(|name| Some((Arc::clone(name), lookup(name)?)))
                .collect(),
        );
        let mut output = Bounded(Vec::new());
        self.environment
            .get_template(self.setting)?
            .render_captured_to(Value::from_object(context), &mut output)?;
        String::from_utf8(output.0)
            .map_err(|_| minijinja::Error::new(ErrorKind::WriteFailure, "not UTF-8"))
    }

    fn explain(&self, error: &minijinja::Error, lookup: impl Fn(&str) -> Option<Value>) -> String {
        let setting = self.setting;
        match error.kind() {
            ErrorKind::UndefinedError => {
                let missing: Vec<_> = self
                    .paths
                    .iter()
                    .filter(|path| !is_defined(path, &lookup))
                    .map(|path| format!("`{path}`"))
                    .collect();
                let missing = match missing.is_empty() {
                    true => "a value".to_owned(),
                    false => missing.join(", "),
                };
                format!(
                    "{setting} needs {missing}, which this row does not have; fill it in, or \
                     give the template a default: `| default('...')`"
                )
            }
            ErrorKind::OutOfFuel => {
                format!("{setting} takes more than {FUEL} steps for this row; simplify it")
            }
            ErrorKind::WriteFailure => {
                format!("{setting} gives more than {RESULT_MAX} bytes for this row")
            }
            kind => format!(
                "{setting} cannot be applied to {} of this row: {kind}",
                self.paths.join(", ")
            ),
        }
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Template")
            .field("setting", &self.setting)
            .field("variables", &self.variables)
            .finish_non_exhaustive()
    }
}

/// Whether an error shows that the template is wrong for every row.
fn is_static(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::UnknownFilter
            | ErrorKind::UnknownTest
            | ErrorKind::UnknownFunction
            | ErrorKind::UnknownMethod
            | ErrorKind::TooManyArguments
            | ErrorKind::MissingArgument
            | ErrorKind::TemplateNotFound
            | ErrorKind::BadInclude
    )
}

fn is_defined(path: &str, lookup: &impl Fn(&str) -> Option<Value>) -> bool {
    let mut names = path.split('.');
    let mut value = names.next().and_then(lookup);
    for name in names {
        value = value.and_then(|value| value.get_attr(name).ok());
    }
    value.is_some_and(|value| !value.is_undefined())
}

/// The variables of one rendering. Templates read one to four of them, so a list beats a map.
#[derive(Debug)]
struct Context(Vec<(Arc<str>, Value)>);

impl Object for Context {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.get_value_by_str(key.as_str()?)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        self.0
            .iter()
            .find_map(|(name, value)| (**name == *key).then(|| value.clone()))
    }
}

/// Makes one part of a subject or routing key of any value: what is not an ASCII letter, a digit or one of `-_=@+` is
/// written as `%XY`, byte by byte. So two values never give the same, and none has a dot. Nothing at all is `%`.
fn token(value: &Value) -> Result<String, minijinja::Error> {
    if value.is_undefined() {
        return Err(ErrorKind::UndefinedError.into());
    }
    let text = value.to_string();
    if text.is_empty() {
        return Ok("%".to_owned());
    }
    let mut token = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_=@+".contains(&byte) {
            token.push(char::from(byte));
        } else {
            token.push('%');
            for digit in [byte >> 4, byte & 15] {
                token.push(char::from(b"0123456789ABCDEF"[usize::from(digit)]));
            }
        }
    }
    Ok(token)
}

/// Stands for any value in the trial run: has every attribute, prints as text.
#[derive(Debug)]
struct Anything;

impl Object for Anything {
    fn get_value(self: &Arc<Self>, _: &Value) -> Option<Value> {
        Some(Value::from_dyn_object(Arc::clone(self)))
    }

    /// No value of a row can be called, so a call is an unknown function.
    fn call(
        self: &Arc<Self>,
        _: &mut State<'_, '_>,
        _: &[Value],
    ) -> Result<Value, minijinja::Error> {
        Err(minijinja::Error::new(
            ErrorKind::UnknownFunction,
            "values of a row cannot be called; use a filter",
        ))
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("x")
    }
}

/// Output that refuses to grow beyond [`RESULT_MAX`].
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > RESULT_MAX {
            return Err(io::Error::other("result too long"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// JSON text as a template value; `None` for null and for text that is not JSON.
///
/// Only the level that is looked at is parsed. Whole numbers are numbers; all others are
/// text, exactly as written, because a rounded value in a routing key would send the event astray.
pub(super) fn json_value(json: &str) -> Option<Value> {
    match json.trim_ascii_start().as_bytes().first()? {
        b'{' => serde_json::from_str(json)
            .ok()
            .map(|members| Value::from_object(JsonObject(members))),
        b'[' => serde_json::from_str(json)
            .ok()
            .map(|items| Value::from_object(JsonArray(items))),
        b'"' => serde_json::from_str::<String>(json).ok().map(Value::from),
        _ => match json.trim_ascii() {
            "null" => None,
            "true" => Some(Value::from(true)),
            "false" => Some(Value::from(false)),
            number => serde_json::from_str::<&RawValue>(number).ok().map(|_| {
                number
                    .parse::<i64>()
                    .map_or_else(|_| Value::from(number), Value::from)
            }),
        },
    }
}

#[derive(Debug)]
struct JsonObject(BTreeMap<String, Box<RawValue>>);

impl Object for JsonObject {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.get_value_by_str(key.as_str()?)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        json_value(self.0.get(key)?.get())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.0.keys().map(Value::from).collect())
    }
}

#[derive(Debug)]
struct JsonArray(Vec<Box<RawValue>>);

impl Object for JsonArray {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        json_value(self.0.get(key.as_usize()?)?.get())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.0.len())
    }
}
