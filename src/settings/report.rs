//! What is wrong with the configuration: every problem, in one report.

use std::fmt::{self, Write as _};
use std::path::PathBuf;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Built in.
    Default,
    /// A TOML file.
    File(PathBuf),
    /// An environment variable, by name. For a secret read from a file, the `..._FILE` variable.
    Variable(String),
    /// A command line flag, by name.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Variable(name) | Self::Flag(name) => f.write_str(name),
        }
    }
}

/// One thing wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The name the user wrote, or should have written.
    pub name: String,
    /// What it was set to; absent for secrets and where there is no value.
    pub value: Option<String>,
    /// Where that was.
    pub origin: Origin,
    /// What is wrong with it.
    pub rule: String,
    /// What to do.
    pub hint: Option<String>,
}

/// Longest value a message repeats, in characters.
const VALUE_CHARS_MAX: usize = 80;

/// Text from a file or the environment without control characters, which a terminal would obey.
struct Harmless<'a>(&'a str);

impl fmt::Display for Harmless<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c.is_control() {
                true => write!(f, "{}", c.escape_default())?,
                false => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Harmless(&self.name))?;
        if let Some(value) = &self.value {
            let mut shown: String = value.chars().take(VALUE_CHARS_MAX).collect();
            if shown.len() < value.len() {
                shown.push('…');
            }
            // Quoted and escaped, so that blanks and control characters show.
            write!(f, "={shown:?}")?;
        }
        match &self.origin {
            Origin::Default | Origin::Flag(_) => {}
            Origin::Variable(name) if *name == self.name => f.write_str(" (environment)")?,
            Origin::Variable(name) => write!(f, " ({})", Harmless(name))?,
            Origin::File(path) => write!(f, " ({})", path.display())?,
        }
        write!(f, ": {}", Harmless(&self.rule))?;
        if let Some(hint) = &self.hint {
            write!(f, "\n    hint: {hint}")?;
        }
        Ok(())
    }
}

/// Every problem of one configuration; never empty when it is an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// In the order of the reference, as far as there is one.
    pub problems: Vec<Problem>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problems.len() {
            1 => write!(f, "the configuration has a problem")?,
            count => write!(f, "the configuration has {count} problems")?,
        }
        for problem in &self.problems {
            write!(f, "\n  {problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Report {}
