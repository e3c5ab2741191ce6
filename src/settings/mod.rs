//! Typed settings: one table, several sources, every problem reported at once.
//!
//! [`SETTINGS`] is the single source of truth. Loading, the check for unknown names, `outrigger
//! config`, `docs/configuration.md` and the example file are all made from it. Values come from
//! built-in defaults, then the TOML file, then the environment, then flags; the later wins.
//!
//! Nothing outside this module reads the environment, and nothing here opens a connection: apart
//! from the files a user names, loading is a pure function of [`Inputs`].

mod build;
mod file;
mod load;
mod otel;
mod reference;
mod report;
mod rules;
mod secret;
mod suggest;
mod table;
mod types;
mod value;

#[cfg(test)]
mod tests;

pub use load::{Flag, Inputs};
pub use otel::{Export, Traces};
pub use reference::{example, markdown};
pub use report::{Origin, Problem, Report};
pub use secret::redact;
pub use table::{CONFIG_VARIABLE, PG_VARIABLES, SECTIONS, SETTINGS, Setting};
pub use types::*;
pub use value::{Kind, Value, Violation};

use build::Values;
use load::Sources;
use otel::OTEL_VARIABLES;
use tracing_subscriber::EnvFilter;

/// What a command cannot do without. Values that are set are checked for every command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Nothing has to be set.
    Nothing,
    /// The database.
    Database,
    /// The database, the event source and the sink.
    Relay,
}

/// The configuration as found, good or bad.
pub struct Loaded {
    settings: Settings,
    values: Values,
    sources: Sources,
    inputs: Inputs,
    problems: Vec<Problem>,
}

/// Reads all sources.
pub fn load(inputs: Inputs) -> Loaded {
    let mut sources = load::read(&inputs);
    let mut problems = std::mem::take(&mut sources.problems);
    let values = Values::check(&sources, &mut problems);
    let settings = build::settings(&values, &inputs);
    if let Some(filter) = &settings.log.filter
        && let Err(error) = EnvFilter::builder().parse(filter)
    {
        problems.push(Problem {
            name: "RUST_LOG".into(),
            value: Some(filter.clone()),
            origin: Origin::Variable("RUST_LOG".into()),
            rule: error.to_string(),
            hint: Some("for example `info,outrigger=debug`".into()),
        });
    }
    Loaded {
        settings,
        values,
        sources,
        inputs,
        problems,
    }
}

/// One line of `outrigger config`: fit to be shown, secrets hidden.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// `section.name`, or the name of a variable of another tool.
    pub key: String,
    /// Our variable for it.
    pub variable: String,
    /// The value as written; `None` when unset.
    pub value: Option<String>,
    /// Where it comes from.
    pub origin: Origin,
}

impl Shown {
    /// Whether somebody set it.
    pub fn is_given(&self) -> bool {
        self.value.is_some() && self.origin != Origin::Default
    }
}

impl Loaded {
    /// The settings, if they will do for this need, or everything that is wrong.
    pub fn settings(&self, need: Need) -> Result<Settings, Report> {
        let mut problems = self.problems.clone();
        rules::check_together(&self.settings, &self.values, need, &mut problems);
        if problems.is_empty() {
            Ok(self.settings.clone())
        } else {
            Err(Report { problems })
        }
    }

    /// The settings as far as they can be understood, with defaults for the rest: for looking around, not for work.
    pub fn provisional(&self) -> &Settings {
        &self.settings
    }

    /// What the admin listener was given, whatever is wrong with the other settings.
    ///
    /// # Errors
    /// When that itself is wrong, or the file that may hold it cannot be read.
    pub fn admin(&self) -> Result<&Admin, Report> {
        let mut names = vec![
            "admin.listen".to_owned(),
            "OUTRIGGER_ADMIN_LISTEN".to_owned(),
        ];
        if let Some((path, named_by)) = self.inputs.config_file() {
            // A file that is not TOML goes by its path, one that cannot be read by what names it.
            names.extend([path.to_string_lossy().into_owned(), named_by.to_string()]);
        }
        let problems = self.problems.iter();
        let problems = problems.filter(|problem| names.contains(&problem.name));
        let problems: Vec<Problem> = problems.cloned().collect();
        if problems.is_empty() {
            Ok(&self.settings.admin)
        } else {
            Err(Report { problems })
        }
    }

    /// What is not wrong but likely not meant.
    pub fn warnings(&self) -> &[String] {
        &self.sources.warnings
    }

    /// Every setting with its value and origin, and the variables of other tools that are
    /// honoured and set.
    pub fn shown(&self) -> Vec<Shown> {
        let mut lines: Vec<Shown> = SETTINGS.iter().map(|setting| self.line(setting)).collect();
        let others = PG_VARIABLES.iter().map(|(variable, _)| *variable);
        let others = others.chain(["RUST_LOG", "NO_COLOR"]);
        for variable in others.chain(OTEL_VARIABLES.iter().copied()) {
            let Some(text) = self.inputs.variable(variable) else {
                continue;
            };
            lines.push(Shown {
                key: variable.into(),
                variable: variable.into(),
                value: Some(match variable {
                    "PGPASSWORD" => secret::HIDDEN.into(),
                    headers if headers.ends_with("_HEADERS") => secret::HIDDEN.into(),
                    url if url.ends_with("_ENDPOINT") => redact(text),
                    _ => text.into(),
                }),
                origin: Origin::Variable(variable.into()),
            });
        }
        lines
    }

    fn line(&self, setting: &'static Setting) -> Shown {
        let found = self.sources.texts.get(setting.key);
        let value = match found {
            Some(found) if setting.secret => Some(redact(&found.text)),
            Some(found) => Some(secret::shown(&found.text)),
            None => None,
        };
        Shown {
            key: setting.key.into(),
            variable: setting.variable(),
            value,
            origin: found.map_or(Origin::Default, |found| found.origin.clone()),
        }
    }
}
