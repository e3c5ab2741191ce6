//! What was measured, and how it is shown: numbers in, text out. Pure, so `tests/bench_report.rs` can test it.

pub(crate) mod figure;
pub(crate) mod method;
pub(crate) mod page;
pub(crate) mod plot;
pub(crate) mod sample;

use serde::Serialize;

pub(crate) use figure::{Figure, Target};
pub(crate) use method::Page;
pub(crate) use sample::{Sample, Unit};

/// Everything one run has to say. As JSON it holds each round of each figure.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    /// The command that makes it again.
    pub(crate) command: String,
    /// What it was measured on and with.
    pub(crate) facts: Vec<Fact>,
    pub(crate) figures: Vec<Figure>,
    pub(crate) sweeps: Vec<Sweep>,
    pub(crate) curves: Vec<Curves>,
    /// Parts that gave no figures.
    pub(crate) failed: Vec<String>,
    /// Where and how it is shown.
    #[serde(skip)]
    pub(crate) page: Page,
}

#[derive(Debug, Serialize)]
pub(crate) struct Fact {
    pub(crate) name: &'static str,
    pub(crate) value: String,
}

/// What one part of the run adds to the report.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    pub(crate) figures: Vec<Figure>,
    pub(crate) sweeps: Vec<Sweep>,
    pub(crate) curves: Vec<Curves>,
}

/// The same measurement for several values of one thing.
#[derive(Debug, Serialize)]
pub(crate) struct Sweep {
    /// Also the name of its picture.
    pub(crate) id: &'static str,
    pub(crate) title: &'static str,
    /// What was done, with its configuration.
    pub(crate) about: String,
    /// What the labels of the lines are.
    pub(crate) axis: &'static str,
    pub(crate) columns: Vec<String>,
    pub(crate) lines: Vec<Line>,
    /// The columns of its picture, of one unit.
    pub(crate) drawn: Vec<usize>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Line {
    pub(crate) label: String,
    /// One for each column.
    pub(crate) cells: Vec<Sample>,
}

/// Something over time.
#[derive(Debug, Serialize)]
pub(crate) struct Curves {
    pub(crate) id: &'static str,
    pub(crate) title: &'static str,
    pub(crate) about: String,
    pub(crate) unit: Unit,
    pub(crate) curves: Vec<Curve>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Curve {
    pub(crate) label: String,
    /// Seconds and value.
    pub(crate) points: Vec<(f64, f64)>,
}

impl Report {
    pub(crate) fn add(&mut self, measured: Measured) {
        self.figures.extend(measured.figures);
        self.sweeps.extend(measured.sweeps);
        self.curves.extend(measured.curves);
    }

    /// Names of the figures whose target was missed.
    pub(crate) fn missed(&self) -> Vec<&str> {
        let missed = self.figures.iter().filter(|f| f.met() == Some(false));
        missed.map(|figure| figure.name.as_str()).collect()
    }

    /// How many figures have a target.
    pub(crate) fn targets(&self) -> usize {
        self.figures.iter().filter(|f| f.met().is_some()).count()
    }
}
