//! Figures, and how they are shown.

use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use crate::Args;
use crate::world::World;

/// One line of the report.
pub(crate) struct Figure {
    name: String,
    target: String,
    measured: String,
    ratio: Option<f64>,
    met: Option<bool>,
}

impl Figure {
    /// A figure that others are compared with.
    pub(crate) fn reference(name: impl Into<String>, measured: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            target: "reference".into(),
            measured: measured.into(),
            ratio: None,
            met: None,
        }
    }

    /// A figure that no target is set for.
    pub(crate) fn fact(name: impl Into<String>, measured: impl Into<String>) -> Self {
        Self {
            target: String::new(),
            ..Self::reference(name, measured)
        }
    }

    /// A figure that stands by itself.
    pub(crate) fn bound(
        name: impl Into<String>,
        measured: impl Into<String>,
        target: impl Into<String>,
        met: bool,
    ) -> Self {
        Self {
            target: target.into(),
            met: Some(met),
            ..Self::reference(name, measured)
        }
    }

    /// A share of a reference, with the least share wanted, if any.
    pub(crate) fn share(
        name: impl Into<String>,
        measured: impl Into<String>,
        of: &str,
        ratio: f64,
        least: Option<f64>,
    ) -> Self {
        Self {
            target: least.map_or_else(|| format!("of {of}"), |least| format!(">= {least} of {of}")),
            ratio: Some(ratio),
            met: least.map(|least| ratio >= least),
            ..Self::reference(name, measured)
        }
    }

    /// Adds a ratio for the reader.
    pub(crate) fn with_ratio(mut self, ratio: f64) -> Self {
        self.ratio = Some(ratio);
        self
    }

    /// A part that gave no figures.
    pub(crate) fn failed(part: &str) -> Self {
        Self {
            met: Some(false),
            ..Self::fact(part, "FAILED")
        }
    }

    fn cells(&self) -> [String; 5] {
        [
            self.name.clone(),
            self.target.clone(),
            self.measured.clone(),
            // Cut, not rounded: 0.799 must not look like 0.8.
            self.ratio.map_or_else(String::new, |r| {
                format!("{:.2}", (r * 100.0).floor() / 100.0)
            }),
            match self.met {
                Some(true) => "yes".into(),
                Some(false) => "NO".into(),
                None => String::new(),
            },
        ]
    }
}

const HEADINGS: [&str; 5] = ["figure", "target", "measured", "ratio", "met"];

/// All figures of a run, and what they were measured on.
pub(crate) struct Report {
    figures: Vec<Figure>,
    facts: Vec<(&'static str, String)>,
    command: String,
}

impl Report {
    pub(crate) fn new(world: &World, args: &Args) -> Self {
        let sizes = &world.sizes;
        let facts = vec![
            ("outrigger", format!("{}, release build", args.revision)),
            (
                "servers",
                format!(
                    "PostgreSQL {} (fsync, synchronous_commit and full_page_writes on, 128 MB shared_buffers) and \
                     RabbitMQ {} (defaults), both on the same machine as the relay and everything that measures",
                    world.postgres_version, args.rabbitmq_version
                ),
            ),
            ("machine", machine()),
            (
                "events",
                format!(
                    "structured mode, about 1 KiB each on the wire; many keys: {}; backlogs of {} rows",
                    thousands(f64::from(sizes.keys)),
                    thousands(sizes.backlog as f64),
                ),
            ),
            (
                "configuration",
                "the defaults, except where the figure names a setting".into(),
            ),
            (
                "rounds",
                format!(
                    "strict drain {0}, writers {1}, start {2}; the median is shown",
                    sizes.rounds, sizes.writer_rounds, sizes.starts
                ),
            ),
        ];
        let quick = if args.quick { " --quick" } else { "" };
        Self {
            figures: Vec::new(),
            facts,
            command: format!("scripts/measure{quick} --write"),
        }
    }

    pub(crate) fn add(&mut self, figures: Vec<Figure>) {
        self.figures.extend(figures);
    }

    /// For a terminal.
    pub(crate) fn text(&self) -> String {
        let mut rows = vec![HEADINGS.map(str::to_owned)];
        rows.extend(self.figures.iter().map(Figure::cells));
        let mut widths = [0; 5];
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::from("\n");
        for row in &rows {
            let mut line = String::new();
            for (width, cell) in widths.iter().zip(row) {
                let _ = write!(line, "{cell:<width$}  ");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text.push('\n');
        for (name, fact) in &self.facts {
            let _ = writeln!(text, "{name}: {fact}");
        }
        text
    }

    /// For the documentation.
    pub(crate) fn markdown(&self) -> String {
        let mut text = format!(
            "<!-- Generated by `{0}`. Do not edit. -->\n# Benchmarks\n\n\
             Measured by `{0}`. Rates differ from machine to machine, so look at the ratios: each compares the relay\n\
             with what the same machine did without it, in the same run.\n\n",
            self.command
        );
        for (name, fact) in &self.facts {
            let _ = writeln!(text, "- **{name}**: {fact}");
        }
        text.push('\n');
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        text += &line(&HEADINGS.map(str::to_owned));
        text += "|---|---|---|---|---|\n";
        for figure in &self.figures {
            text += &line(&figure.cells());
        }
        text + METHOD
    }
}

const METHOD: &str = "
## What is measured

- **Bare publisher**: lapin, persistent, mandatory, 8 channels, 200 messages per channel, then wait for their confirms;
  bodies of 1 KiB, the same exchange and kind of queue (classic, durable), no database. *Window 1* waits for each confirm.
- **Bare SQL**: one connection reads 1,000 rows with the relay's columns and marks (or deletes) them, then the next 1,000.
- **Drain**: a backlog is written, vacuumed and checkpointed, then one relay starts. The rate is taken between the first
  row published and the last. Queue and database are new each time, nobody consumes meanwhile.
- **Latency**: from the moment the INSERT's commit returns to the receipt by a consumer. *Direct* inserts a row into a
  plain table, and publishes after the commit returned; the two take turns.
- **Writers**: pgbench, 16 connections, one INSERT per transaction, prepared; the variants take turns.
- **Held snapshot**: an idle REPEATABLE READ transaction that began before the backlog was written, so no vacuum can
  remove what the relay leaves behind.
- **CPU** is user and system time of the relay process, **memory** its VmRSS and VmHWM.
";

fn machine() -> String {
    let field = |path: &str, name: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let cpu = field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown processor".into());
    let memory = field("/proc/meminfo", "MemTotal")
        .and_then(|kb| kb.split(' ').next()?.parse::<f64>().ok())
        .map_or(0.0, |kb| kb / 1024.0 / 1024.0);
    format!("{cores} cores ({cpu}), {memory:.0} GiB memory")
}

/// `12,345`.
pub(crate) fn thousands(number: f64) -> String {
    let digits = format!("{:.0}", number.max(0.0));
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `12,345/s`.
pub(crate) fn per_second(rate: f64) -> String {
    format!("{}/s", thousands(rate))
}

/// `1.2 ms`.
pub(crate) fn ms(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1e3)
}

/// The middle value; of an even number, the mean of the two.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n.is_multiple_of(2) => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
        n => sorted[n / 2],
    }
}

/// The smallest value that at least this share of the values do not exceed.
pub(crate) fn percentile(values: &mut [Duration], share: f64) -> Duration {
    values.sort_unstable();
    let rank = (values.len() as f64 * share).ceil() as usize;
    values
        .get(rank.saturating_sub(1))
        .copied()
        .unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_and_the_tail_are_found() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
        let mut values: Vec<Duration> = (1..=200).rev().map(Duration::from_millis).collect();
        assert_eq!(percentile(&mut values, 0.5), Duration::from_millis(100));
        assert_eq!(percentile(&mut values, 0.99), Duration::from_millis(198));
        // Nothing measured must not look like something fast.
        assert_eq!(percentile(&mut [], 0.5), Duration::MAX);
    }

    #[test]
    fn a_missed_target_says_so() {
        assert_eq!(
            Figure::share("a", "7/s", "B", 0.79, Some(0.8)).cells(),
            ["a", ">= 0.8 of B", "7/s", "0.79", "NO"]
        );
        assert_eq!(
            Figure::share("a", "7/s", "B", 0.8, Some(0.8)).cells()[4],
            "yes"
        );
        assert_eq!(Figure::share("a", "", "B", 0.799, None).cells()[3], "0.79");
        // Not a number is never a success.
        assert_eq!(
            Figure::share("a", "", "B", f64::NAN, Some(0.8)).cells()[4],
            "NO"
        );
        assert_eq!(Figure::failed("drain").cells()[4], "NO");
    }

    #[test]
    fn numbers_are_grouped() {
        let grouped: Vec<String> = [0.0, 999.4, 1000.0, 1_234_567.0].map(thousands).into();
        assert_eq!(grouped, ["0", "999", "1,000", "1,234,567"]);
    }
}
