//! Numbers of several rounds: the middle one, the spread, and how they are written.

use serde::{Serialize, Serializer};

/// What a number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Unit {
    PerSecond,
    MegabytesPerSecond,
    Seconds,
    Milliseconds,
    Microseconds,
    Mebibytes,
    Bytes,
    /// A ratio of two numbers of one unit.
    Ratio,
    /// Just a number, with its decimals if it is small.
    Count,
}

impl Unit {
    pub(crate) fn write(self, number: f64) -> String {
        if !number.is_finite() {
            return "unknown".into();
        }
        match self {
            Self::PerSecond if number < 100.0 => format!("{number:.1}/s"),
            Self::PerSecond => format!("{}/s", thousands(number)),
            Self::MegabytesPerSecond => format!("{number:.1} MB/s"),
            Self::Seconds => format!("{number:.2} s"),
            Self::Milliseconds if number >= 1000.0 => format!("{} ms", thousands(number)),
            Self::Milliseconds => format!("{number:.1} ms"),
            Self::Microseconds => format!("{number:.1} us"),
            Self::Mebibytes => format!("{number:.1} MiB"),
            Self::Bytes => format!("{} bytes", thousands(number)),
            // Cut, not rounded: 0.799 must not look like 0.8.
            Self::Ratio => format!("{:.2}", (number * 100.0).floor() / 100.0),
            Self::Count if number < 100.0 && number.fract() != 0.0 => format!("{number:.1}"),
            Self::Count => thousands(number),
        }
    }
}

/// One number of each round.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Sample {
    pub(crate) unit: Unit,
    #[serde(serialize_with = "finite")]
    pub(crate) rounds: Vec<f64>,
}

/// JSON has no infinity and no NaN; what is not known becomes null.
fn finite<S: Serializer>(numbers: &[f64], serializer: S) -> Result<S::Ok, S::Error> {
    let numbers = numbers.iter().map(|n| n.is_finite().then_some(*n));
    serializer.collect_seq(numbers)
}

impl Sample {
    pub(crate) fn new(unit: Unit, rounds: impl IntoIterator<Item = f64>) -> Self {
        Self {
            unit,
            rounds: rounds.into_iter().collect(),
        }
    }

    pub(crate) fn one(unit: Unit, number: f64) -> Self {
        Self::new(unit, [number])
    }

    pub(crate) fn median(&self) -> f64 {
        median(&self.rounds)
    }

    /// Each round divided by the same round of the other: what disturbs one round disturbs both.
    pub(crate) fn over(&self, other: &Self) -> Self {
        let pairs = self.rounds.iter().zip(&other.rounds);
        Self::new(Unit::Ratio, pairs.map(|(one, other)| one / other))
    }

    /// Two rates, in each round, as one: what is done at the first and then at the second.
    pub(crate) fn then(&self, other: &Self) -> Self {
        let pairs = self.rounds.iter().zip(&other.rounds);
        let both = pairs.map(|(one, other)| 1.0 / (1.0 / one + 1.0 / other));
        Self::new(self.unit, both)
    }

    /// The median, and from where to where the rounds went if there are several.
    pub(crate) fn text(&self) -> String {
        let middle = self.unit.write(self.median());
        if self.rounds.len() < 2 {
            return middle;
        }
        let [low, high] = [f64::min as fn(f64, f64) -> f64, f64::max].map(|pick| {
            let end = self.rounds.iter().copied().reduce(pick);
            self.unit.write(end.unwrap_or(f64::NAN))
        });
        // The unit once is enough.
        let low = low.split(' ').next().unwrap_or_default();
        let low = low.strip_suffix("/s").unwrap_or(low);
        format!("{middle} ({low} to {high})")
    }
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

/// The smallest value that at least this share of the sorted values do not exceed. Of none: infinite, so that nothing
/// measured never looks like something fast.
pub(crate) fn percentile(sorted: &[f64], share: f64) -> f64 {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    let value = sorted.get(rank.saturating_sub(1)).copied();
    value.unwrap_or(f64::INFINITY)
}
