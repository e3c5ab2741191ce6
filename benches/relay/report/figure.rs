//! One figure: what was measured, beside its reference and its target.

use serde::Serialize;

use super::sample::{Sample, Unit};

/// What a figure is compared with: measured in the same rounds, in turns with it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Reference {
    pub(crate) name: String,
    pub(crate) sample: Sample,
}

/// What to reach, by the median.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Target {
    /// At least this share of the reference.
    ShareAtLeast(f64),
    /// At most so many times the reference.
    TimesAtMost(f64),
    /// At least this, by itself.
    AtLeast(f64),
    /// At most this, by itself.
    AtMost(f64),
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) sample: Sample,
    pub(crate) reference: Option<Reference>,
    pub(crate) target: Option<Target>,
    /// Sizes and settings that are not the run's.
    pub(crate) configuration: String,
}

impl Figure {
    pub(crate) fn new(name: impl Into<String>, sample: Sample) -> Self {
        Self {
            name: name.into(),
            sample,
            reference: None,
            target: None,
            configuration: String::new(),
        }
    }

    pub(crate) fn beside(mut self, name: impl Into<String>, sample: &Sample) -> Self {
        self.reference = Some(Reference {
            name: name.into(),
            sample: sample.clone(),
        });
        self
    }

    pub(crate) fn target(mut self, target: Target) -> Self {
        self.target = Some(target);
        self
    }

    pub(crate) fn with(mut self, configuration: impl Into<String>) -> Self {
        self.configuration = configuration.into();
        self
    }

    pub(crate) fn ratio(&self) -> Option<Sample> {
        let reference = self.reference.as_ref()?;
        Some(self.sample.over(&reference.sample))
    }

    /// Whether the target was reached. Not a number is never a success.
    pub(crate) fn met(&self) -> Option<bool> {
        let ratio = self.ratio().map_or(f64::NAN, |ratio| ratio.median());
        Some(match self.target? {
            Target::ShareAtLeast(share) => ratio >= share,
            Target::TimesAtMost(times) => ratio <= times,
            Target::AtLeast(least) => self.sample.median() >= least,
            Target::AtMost(most) => self.sample.median() <= most,
        })
    }

    pub(crate) const HEADINGS: [&'static str; 6] =
        ["figure", "target", "measured", "beside", "ratio", "met"];

    pub(crate) fn cells(&self) -> [String; 6] {
        let name = self.reference.as_ref().map_or("", |r| r.name.as_str());
        let name = name.split(':').next().unwrap_or_default();
        let target = match self.target {
            Some(Target::ShareAtLeast(share)) => format!(">= {share} of {name}"),
            Some(Target::TimesAtMost(times)) => format!("<= {times} x {name}"),
            Some(Target::AtLeast(least)) => format!(">= {least}"),
            Some(Target::AtMost(0.0)) => "none".into(),
            Some(Target::AtMost(most)) => format!("<= {}", bound(self.sample.unit, most)),
            None => String::new(),
        };
        let beside = self
            .reference
            .as_ref()
            .map_or_else(String::new, |r| format!("{}: {}", r.name, r.sample.text()));
        let name = match self.configuration.as_str() {
            "" => self.name.clone(),
            configuration => format!("{} ({configuration})", self.name),
        };
        [
            name,
            target,
            self.sample.text(),
            beside,
            self.ratio().map_or_else(String::new, |ratio| ratio.text()),
            match self.met() {
                Some(true) => "yes".into(),
                Some(false) => "NO".into(),
                None => String::new(),
            },
        ]
    }
}

/// A bound is a round number: `3 ms`, not `3.0 ms`.
fn bound(unit: Unit, number: f64) -> String {
    let text = unit.write(number);
    text.replacen(".0 ", " ", 1)
        .replacen(".00 ", " ", 1)
        .replacen(".0/s", "/s", 1)
}
