//! From the sources to one text per setting: layering, secret files, unknown names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use config::{Config, ConfigError, Map, Source, Value, ValueKind};

use super::file;
use super::report::{Origin, Problem};
use super::suggest;
use super::table::{CONFIG_VARIABLE, PG_IGNORED, PG_VARIABLES, PREFIX, SETTINGS, Setting, setting};
use crate::secret_file::read_secret;

/// Everything settings are made from, so that loading is a pure function apart from the files
/// named in here.
#[derive(Clone, Default)]
pub struct Inputs {
    /// The environment.
    pub variables: BTreeMap<String, String>,
    /// Names of variables whose value is not UTF-8.
    pub unreadable: Vec<String>,
    /// `--config`.
    pub config_file: Option<PathBuf>,
    /// Flags that override a setting.
    pub flags: Vec<Flag>,
    /// Makes the default name of the replica.
    pub process_id: u32,
}

/// A command line flag that overrides a setting.
#[derive(Debug, Clone)]
pub struct Flag {
    /// As the user writes it.
    pub name: &'static str,
    /// The setting.
    pub key: &'static str,
    /// The value.
    pub value: String,
}

impl Inputs {
    /// The environment of this process.
    pub fn from_process(config_file: Option<PathBuf>, flags: Vec<Flag>) -> Self {
        let mut inputs = Self {
            config_file,
            flags,
            process_id: std::process::id(),
            ..Self::default()
        };
        for (name, value) in std::env::vars_os() {
            // A name that is not UTF-8 is none of ours.
            let Ok(name) = name.into_string() else {
                continue;
            };
            match value.into_string() {
                Ok(value) => {
                    inputs.variables.insert(name, value);
                }
                Err(_) => inputs.unreadable.push(name),
            }
        }
        inputs
    }

    /// A variable that is set; an empty one counts as unset. One trailing line end does not belong to it: a file of variables
    /// written on Windows leaves one.
    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        let value = self.variables.get(name)?;
        let value = value.strip_suffix('\n').unwrap_or(value);
        let value = value.strip_suffix('\r').unwrap_or(value);
        (!value.is_empty()).then_some(value)
    }

    pub(super) fn config_file(&self) -> Option<(PathBuf, Origin)> {
        if let Some(path) = &self.config_file {
            return Some((path.clone(), Origin::Flag("--config".into())));
        }
        let path = self.variable(CONFIG_VARIABLE)?;
        Some((path.into(), Origin::Variable(CONFIG_VARIABLE.into())))
    }
}

/// The text of a setting that has one, before it is understood.
#[derive(Clone)]
pub(super) struct Text {
    pub(super) text: String,
    pub(super) origin: Origin,
}

/// What the sources say.
#[derive(Default)]
pub(super) struct Sources {
    /// By key.
    pub(super) texts: BTreeMap<&'static str, Text>,
    /// Keys that were set to something that could not even be read; they are not missing.
    pub(super) broken: Vec<&'static str>,
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<String>,
}

/// Values of one source, each with its origin: a file, a variable, a flag.
#[derive(Debug, Clone, Default)]
pub(super) struct Layer {
    values: Map<String, Value>,
}

impl Layer {
    pub(super) fn set(&mut self, key: &str, text: &str, origin: &str) {
        let value = Value::new(Some(&origin.to_owned()), text);
        self.values.insert(key.to_owned(), value);
    }
}

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        Ok(self.values.clone())
    }
}

/// Reads every source and merges them: defaults, then variables of other tools, then the file,
/// then our own variables, then flags.
///
/// Variables of other tools rank below the file: the file was written for Outrigger,
/// `DATABASE_URL` or `POD_NAME` were not.
pub(super) fn read(inputs: &Inputs) -> Sources {
    let mut sources = Sources::default();
    let mut defaults = Layer::default();
    let mut borrowed = Layer::default();
    let mut own = Layer::default();
    let mut flags = Layer::default();
    for setting in SETTINGS {
        if let Some(text) = setting.default {
            defaults.set(setting.key, text, "");
        }
        let alias = setting
            .aliases
            .iter()
            .find_map(|name| Some((*name, inputs.variable(name)?)));
        if let Some((name, text)) = alias {
            borrowed.set(setting.key, text, name);
        }
        read_own(inputs, setting, &mut own, &mut sources);
    }
    for flag in &inputs.flags {
        flags.set(flag.key, &flag.value, flag.name);
    }
    let config_file = inputs.config_file();
    let file = match &config_file {
        Some((path, origin)) => file::read(path, origin, &mut sources),
        None => Layer::default(),
    };
    let path = config_file.map(|(path, _)| path);
    let merged = Config::builder()
        .add_source(defaults)
        .add_source(borrowed)
        .add_source(file)
        .add_source(own)
        .add_source(flags)
        .build();
    match merged {
        Ok(config) => flatten(config.cache, &path, inputs, &mut sources),
        // Layers hold plain texts under the keys of the table; merging those has no way to fail.
        Err(error) => sources.problems.push(Problem {
            name: "configuration".into(),
            value: None,
            origin: Origin::Default,
            rule: format!("cannot be merged: {error}"),
            hint: None,
        }),
    }
    check_names(inputs, &mut sources);
    sources
}

/// Our own variable, or the file that its `_FILE` twin names.
fn read_own(inputs: &Inputs, setting: &'static Setting, own: &mut Layer, sources: &mut Sources) {
    let variable = setting.variable();
    let direct = inputs.variable(&variable);
    if let Some(text) = direct {
        own.set(setting.key, text, &variable);
    }
    let Some(file_variable) = setting.file_variable() else {
        return;
    };
    let Some(path) = inputs.variable(&file_variable) else {
        return;
    };
    let problem = |rule: String| Problem {
        name: file_variable.clone(),
        value: Some(path.to_owned()),
        origin: Origin::Variable(file_variable.clone()),
        rule,
        hint: None,
    };
    if direct.is_some() {
        let rule = format!("set together with `{variable}`; set only one of the two");
        sources.problems.push(problem(rule));
        return;
    }
    match read_secret(Path::new(path)) {
        Ok(text) => own.set(setting.key, &text, &file_variable),
        Err(rule) => {
            sources.problems.push(problem(rule));
            sources.broken.push(setting.key);
        }
    }
}

/// Takes the merged tree apart again, back to the keys of the table.
fn flatten(root: Value, path: &Option<PathBuf>, inputs: &Inputs, sources: &mut Sources) {
    let ValueKind::Table(top) = root.kind else {
        return;
    };
    for (name, value) in top {
        match value.kind {
            ValueKind::Table(section) => {
                for (inner, value) in section {
                    take(&format!("{name}.{inner}"), value, path, inputs, sources);
                }
            }
            _ => take(&name, value, path, inputs, sources),
        }
    }
}

fn take(key: &str, value: Value, path: &Option<PathBuf>, inputs: &Inputs, sources: &mut Sources) {
    let Some(setting) = setting(key) else {
        return;
    };
    let origin = match value.origin() {
        None | Some("") => Origin::Default,
        Some(name) if inputs.flags.iter().any(|flag| flag.name == name) => {
            Origin::Flag(name.into())
        }
        Some(name) => match path {
            Some(path) if path.to_string_lossy() == name => Origin::File(path.clone()),
            _ => Origin::Variable(name.into()),
        },
    };
    if let ValueKind::String(text) = value.kind {
        sources.texts.insert(setting.key, Text { text, origin });
    }
}

/// Variables with our prefix that mean nothing, and `PG*` variables that are not honoured.
fn check_names(inputs: &Inputs, sources: &mut Sources) {
    let mut known: Vec<String> = vec![CONFIG_VARIABLE.into()];
    for setting in SETTINGS {
        known.push(setting.variable());
        known.extend(setting.file_variable());
    }
    for name in inputs.variables.keys() {
        if !name.starts_with(PREFIX) || known.contains(name) || is_service_link(name) {
            continue;
        }
        sources.problems.push(unknown_variable(name, &known));
    }
    for name in &inputs.unreadable {
        let borrowed = SETTINGS.iter().any(|s| s.aliases.contains(&name.as_str()))
            || PG_VARIABLES.iter().any(|(pg, _)| pg == name);
        if name.starts_with(PREFIX) || borrowed {
            sources.problems.push(Problem {
                name: name.clone(),
                value: None,
                origin: Origin::Variable(name.clone()),
                rule: "is not UTF-8 text".into(),
                hint: None,
            });
        }
    }
    for name in PG_IGNORED {
        if inputs.variable(name).is_some() {
            sources
                .warnings
                .push(format!("`{name}` is set but not honoured"));
        }
    }
}

fn unknown_variable(name: &str, known: &[String]) -> Problem {
    let base = name.strip_suffix("_FILE");
    let not_secret = base.filter(|base| known.iter().any(|known| known == base));
    let hint = match not_secret {
        Some(base) => Some(format!("only secrets are read from files; set `{base}`")),
        None => {
            // Without the prefix, which would make every name look like every other.
            let bare = |name| str::strip_prefix(name, PREFIX).unwrap_or(name);
            let known = known.iter().map(|known| bare(known));
            suggest::nearest(bare(name), known)
                .map(|known| format!("did you mean `{PREFIX}{known}`?"))
        }
    };
    Problem {
        name: name.to_owned(),
        // An unknown variable may hold anything, even a secret.
        value: None,
        origin: Origin::Variable(name.to_owned()),
        rule: "unknown setting".into(),
        hint,
    }
}

/// Kubernetes gives every pod variables for the services of its namespace; a service whose name
/// starts with `outrigger-` makes some that look like ours.
fn is_service_link(name: &str) -> bool {
    let port = |text: &str| {
        // `<n>_TCP`, `<n>_UDP_ADDR`, ...
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(0);
        let rest = text.get(digits..).unwrap_or_default();
        digits > 0 && (rest.starts_with("_TCP") || rest.starts_with("_UDP"))
    };
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.ends_with("_PORT")
        || name
            .match_indices("_PORT_")
            .any(|(at, part)| port(name.get(at + part.len()..).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::is_service_link;

    #[test]
    fn service_links_are_told_from_typos() {
        for name in [
            "OUTRIGGER_SERVICE_HOST",
            "OUTRIGGER_ORDERS_SERVICE_PORT",
            "OUTRIGGER_SERVICE_PORT_HTTP",
            "OUTRIGGER_PORT",
            "OUTRIGGER_PORT_9647_TCP",
            "OUTRIGGER_PORT_9647_TCP_ADDR",
            "OUTRIGGER_PORT_53_UDP_PROTO",
        ] {
            assert!(is_service_link(name), "{name}");
        }
        for name in [
            "OUTRIGGER_PORT_TCP",
            "OUTRIGGER_PORT_X_TCP",
            "OUTRIGGER_PORTS",
            "OUTRIGGER_SERVICE",
            "OUTRIGGER_RELAY_BATCH",
        ] {
            assert!(!is_service_link(name), "{name}");
        }
    }
}
