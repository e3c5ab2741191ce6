//! Arguments: the few of our own, and those that `cargo test` hands to every test binary.

use crate::scenario::Scenario;

pub(crate) const USAGE: &str = "usage: faults [OPTIONS] [NAME...]

    NAME            run the scenarios whose names contain this
    --exact         names must be equal
    --skip NAME     leave out the scenarios whose names contain this
    --list          print the names and run nothing
    --seeds N       runs of each scenario, with a seed each (default 1)
    --seed S        the first seed; the others follow it (default: random)
    --full          long forms: minutes of faults instead of seconds
    --report FILE   write the table as Markdown
    --revision TEXT what was built, for the report
    --servers NAME  which servers were set up, for the report (default installed)

Options of Rust's own test harness that make no difference here are accepted.";

/// What to run, and how.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    names: Vec<String>,
    skip: Vec<String>,
    exact: bool,
    /// Nothing here is marked as ignored, so whoever asks for ignored tests only gets none.
    ignored_only: bool,
    pub(crate) list: bool,
    pub(crate) terse: bool,
    pub(crate) seeds: u64,
    pub(crate) seed: Option<u64>,
    pub(crate) full: bool,
    pub(crate) report: Option<String>,
    pub(crate) revision: Option<String>,
    pub(crate) servers: String,
}

impl Options {
    /// The scenarios that are meant.
    pub(crate) fn select(&self, all: &[&'static Scenario]) -> Vec<&'static Scenario> {
        let matches = |name: &str, wanted: &String| {
            if self.exact {
                name == wanted
            } else {
                name.contains(wanted.as_str())
            }
        };
        let meant = |scenario: &&Scenario| {
            let name = scenario.name;
            // One that is asked for by its whole name is meant, however long it takes.
            let length = scenario.short || self.full || self.exact;
            !self.ignored_only
                && length
                && (self.names.is_empty() || self.names.iter().any(|wanted| matches(name, wanted)))
                && !self.skip.iter().any(|skipped| matches(name, skipped))
        };
        all.iter().copied().filter(|s| meant(s)).collect()
    }
}

/// Reads the arguments.
pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options {
        seeds: 1,
        servers: "installed".to_owned(),
        ..Options::default()
    };
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        let (name, attached) = match argument.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name, Some(value.to_owned())),
            _ => (argument.as_str(), None),
        };
        let mut value = || {
            let value = attached.clone().or_else(|| arguments.next());
            value.ok_or_else(|| format!("`{name}` needs a value"))
        };
        let number = |text: String| {
            text.parse::<u64>()
                .map_err(|_| format!("`{name}` needs a whole number, not `{text}`"))
        };
        match name {
            "--exact" => options.exact = true,
            "--list" => options.list = true,
            "--ignored" => options.ignored_only = true,
            "--full" => options.full = true,
            "--skip" => options.skip.push(value()?),
            "--seeds" => options.seeds = number(value()?)?.max(1),
            "--seed" => options.seed = Some(number(value()?)?),
            "--report" => options.report = Some(value()?),
            "--revision" => options.revision = Some(value()?),
            "--servers" => options.servers = value()?,
            "--format" => options.terse = value()? == "terse",
            "--nocapture" | "--no-capture" | "--show-output" | "--include-ignored" | "--quiet"
            | "-q" | "--test" => {}
            "--test-threads" | "--color" | "--logfile" | "-Z" => drop(value()?),
            name if name.starts_with('-') => return Err(format!("unknown option `{name}`")),
            _ => options.names.push(argument),
        }
    }
    Ok(options)
}

/// Prints the names; `terse` as `cargo` and editors expect it.
pub(crate) fn list(scenarios: &[&Scenario], terse: bool) {
    for scenario in scenarios {
        if terse {
            println!("{}: test", scenario.name);
        } else {
            println!(
                "{}: test    row {}: {}",
                scenario.name, scenario.row, scenario.fault
            );
        }
    }
    if !terse {
        println!("\n{} tests, 0 benchmarks", scenarios.len());
    }
}
