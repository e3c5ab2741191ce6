//! Arguments: the few of our own, and those that `cargo test` hands to every test binary.

use crate::scenario::{Scenario, TELLING};
use crate::sink::Sink;

pub(crate) const USAGE: &str = "usage: faults [OPTIONS] [NAME...]

    NAME            run the scenarios whose names contain this
    --sink SINK     what relays publish with: rabbitmq, nats, http, or kafka or eventbridge in a build with that feature.
                    Without it, all scenarios with rabbitmq, and a few with each of the others
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
    pub(crate) sink: Option<Sink>,
    pub(crate) list: bool,
    terse: bool,
    pub(crate) seeds: u64,
    pub(crate) seed: Option<u64>,
    pub(crate) full: bool,
    pub(crate) report: Option<String>,
    pub(crate) revision: Option<String>,
    pub(crate) servers: String,
}

/// A scenario with a sink.
#[derive(Clone, Copy)]
pub(crate) struct Part {
    pub(crate) sink: Sink,
    pub(crate) scenario: &'static Scenario,
}

impl Part {
    /// What it is called among all. Those with RabbitMQ go by their own names.
    pub(crate) fn name(&self) -> String {
        match self.sink {
            Sink::RabbitMq => self.scenario.name.to_owned(),
            sink => format!("{}::{}", sink.name(), self.scenario.name),
        }
    }
}

impl Options {
    /// What a part is called here: with one sink alone there is no other to be told from.
    fn name(&self, part: &Part) -> String {
        match self.sink {
            Some(_) => part.scenario.name.to_owned(),
            None => part.name(),
        }
    }

    /// What is meant, sink by sink.
    pub(crate) fn select(&self, all: &[&'static Scenario]) -> Vec<Part> {
        let matches = |name: &str, wanted: &String| {
            if self.exact {
                name == wanted
            } else {
                name.contains(wanted.as_str())
            }
        };
        let meant = |part: &Part| {
            let name = self.name(part);
            // One that is asked for by its whole name is meant, however long it takes.
            let length = part.scenario.short || self.full || self.exact;
            !self.ignored_only
                && length
                && (self.names.is_empty() || self.names.iter().any(|wanted| matches(&name, wanted)))
                && !self.skip.iter().any(|skipped| matches(&name, skipped))
        };
        let played = |part: &Part| match self.sink {
            Some(sink) => part.sink == sink,
            None => {
                // A whole name says which sink is meant.
                let meant = self.exact || TELLING.contains(&part.scenario.name);
                part.sink.is_built() && (part.sink == Sink::RabbitMq || meant)
            }
        };
        let parts = Sink::ALL.iter().flat_map(|sink| {
            let able = all
                .iter()
                .filter(move |scenario| scenario.sinks.contains(sink));
            able.map(move |&scenario| Part {
                sink: *sink,
                scenario,
            })
        });
        parts.filter(|part| played(part) && meant(part)).collect()
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
            "--sink" => options.sink = Some(sink(&value()?)?),
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

fn sink(name: &str) -> Result<Sink, String> {
    let sink = Sink::of(name).ok_or_else(|| {
        let names: Vec<_> = Sink::ALL.iter().map(|sink| sink.name()).collect();
        format!("`--sink` must be one of {}, not `{name}`", names.join(", "))
    })?;
    if sink.is_built() {
        return Ok(sink);
    }
    Err(format!(
        "this program was built without the sink `{name}`; add `--features {name}` to what cargo is told"
    ))
}

/// Prints the names; tersely as `cargo` and editors expect it.
pub(crate) fn list(parts: &[Part], options: &Options) {
    for part in parts {
        let (name, scenario) = (options.name(part), part.scenario);
        if options.terse {
            println!("{name}: test");
        } else {
            println!("{name}: test    row {}: {}", scenario.row, scenario.fault);
        }
    }
    if !options.terse {
        println!("\n{} tests, 0 benchmarks", parts.len());
    }
}
