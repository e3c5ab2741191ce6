//! Metrics: names, what they mean, what is counted, and how it is written.
//!
//! [`METRICS`] is the single source of truth: the scrape, `docs/metrics.md`, the dashboard and the alerts are made from
//! it. Names are part of the interface, see `docs/stability.md`.

mod alerts;
mod dashboard;
mod measure;
mod reference;
pub mod table;
mod text;

pub use alerts::{Alert, alerts, rules};
pub use dashboard::dashboard;
pub use measure::{DatabaseClock, Histogram, Measured, Operation, quantile};
pub use reference::markdown;
pub use table::METRICS;
pub use text::{Format, Page};

/// How values of a metric behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, from zero at the start of the process.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts observations by size.
    Histogram,
    /// Always 1; the labels are the information.
    Info,
}

impl Kind {
    /// The word of the text format; it knows no infos.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge | Self::Info => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A label of a metric.
#[derive(Debug, Clone, Copy)]
pub struct Label {
    /// Its name.
    pub name: &'static str,
    /// Every value it can have; none: one value for the life of the process.
    pub values: fn() -> Vec<&'static str>,
}

/// A metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Its full name; that of a counter ends in `_total`.
    pub name: &'static str,
    /// How its values behave.
    pub kind: Kind,
    /// Its labels.
    pub labels: &'static [Label],
    /// What it says, in one sentence for the scrape.
    pub help: &'static str,
    /// What else one should know, in Markdown; may be empty.
    pub note: &'static str,
}

impl Metric {
    /// The name without the suffix of a counter, as OpenMetrics names the family.
    pub fn family(&self) -> &'static str {
        match self.kind {
            Kind::Counter => self.name.strip_suffix("_total").unwrap_or(self.name),
            _ => self.name,
        }
    }
}

#[cfg(test)]
mod tests;
