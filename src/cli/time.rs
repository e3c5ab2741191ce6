//! Durations and points in time as people write them on the command line.

use std::time::Duration;

use jiff::Timestamp;

/// A duration as people write it: `90s`, `2h 30m`, `1d`.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let problem = || format!("`{text}` is not a duration; write for example `30m`, `2h` or `1d`");
    let span: jiff::Span = text.parse().map_err(|_| problem())?;
    let seconds = span
        .total((
            jiff::Unit::Second,
            jiff::SpanRelativeTo::days_are_24_hours(),
        ))
        .map_err(|_| problem())?;
    Duration::try_from_secs_f64(seconds).map_err(|_| problem())
}

/// A point in time: given, or relative to now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// This very time.
    At(Timestamp),
    /// This long before now.
    Ago(Duration),
    /// This long after now.
    Ahead(Duration),
}

impl Moment {
    /// A time, or how long ago.
    ///
    /// # Errors
    /// A text that is neither, with an example of both.
    pub fn past(text: &str) -> Result<Self, String> {
        Self::parse(text, Self::Ago, "how long ago")
    }

    /// A time, or how long from now.
    ///
    /// # Errors
    /// A text that is neither, with an example of both.
    pub fn future(text: &str) -> Result<Self, String> {
        Self::parse(text, Self::Ahead, "in how long")
    }

    fn parse(text: &str, relative: fn(Duration) -> Self, what: &str) -> Result<Self, String> {
        if let Ok(at) = text.parse() {
            return Ok(Self::At(at));
        }
        parse_duration(text).map(relative).map_err(|_| {
            format!("write a time such as `2026-11-20T10:00:00Z`, or {what}, such as `2h`")
        })
    }

    pub(super) fn at(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(at) => at,
            Self::Ago(time) => now.saturating_sub(time).unwrap_or(Timestamp::MIN),
            Self::Ahead(time) => now.saturating_add(time).unwrap_or(Timestamp::MAX),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn times_are_absolute_or_relative() {
        let now: Timestamp = "2026-11-20T10:00:00Z".parse().unwrap();
        for (moment, at) in [
            (
                Moment::past("2026-11-20T09:00:00+01:00"),
                "2026-11-20T08:00:00Z",
            ),
            (Moment::past("90m"), "2026-11-20T08:30:00Z"),
            (Moment::future("90m"), "2026-11-20T11:30:00Z"),
        ] {
            assert_eq!(moment.unwrap().at(now), at.parse().unwrap());
        }
        assert!(Moment::past("2026-11-20").unwrap_err().contains("2h"));
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, seconds) in [
            ("90s", 90),
            ("2h 30m", 9000),
            ("1d", 86_400),
            ("2w", 1_209_600),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_secs(seconds)),
                "{text}"
            );
        }
        for text in ["", "7", "soon", "-1h", "1 month"] {
            assert!(
                parse_duration(text)
                    .unwrap_err()
                    .contains("write for example"),
                "{text}"
            );
        }
    }
}
