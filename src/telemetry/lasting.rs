//! States that last: said when they begin, and again once a minute. One line an hour ago is easily missed, and a line a
//! second hides everything else.

use std::time::{Duration, Instant};

/// Between two lines about the same state.
const EVERY: Duration = Duration::from_secs(60);

/// Since when something lasts, and when it was said last.
#[derive(Debug, Clone, Copy)]
pub struct Lasting {
    since: Instant,
    said: Instant,
}

impl Lasting {
    /// It begins, and is said.
    pub fn begins() -> Self {
        let now = Instant::now();
        Self {
            since: now,
            said: now,
        }
    }

    /// How long it has lasted, in words, if it is time to say so again.
    pub fn due(&mut self) -> Option<String> {
        self.due_at(Instant::now())
    }

    fn due_at(&mut self, now: Instant) -> Option<String> {
        if now.saturating_duration_since(self.said) < EVERY {
            return None;
        }
        self.said = now;
        Some(in_words(now.saturating_duration_since(self.since)))
    }

    /// How long it has lasted.
    pub fn for_how_long(&self) -> Duration {
        self.since.elapsed()
    }
}

/// A duration in one or two units: `45 s`, `3 min`, `2 h 5 min`.
pub fn in_words(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    match (hours, minutes) {
        (0, _) if seconds < 120 => format!("{seconds} s"),
        (0, minutes) => format!("{minutes} min"),
        (hours, 0) => format!("{hours} h"),
        (hours, minutes) => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_once_a_minute() {
        let mut lasting = Lasting::begins();
        let at = |seconds| lasting.since + Duration::from_secs(seconds);
        let times = [59, 60, 61, 119, 121, 3_900].map(at);
        let said = times.map(|at| lasting.due_at(at));
        let said = said.each_ref().map(Option::as_deref);
        assert_eq!(
            said,
            [
                None,
                Some("60 s"),
                None,
                None,
                Some("2 min"),
                Some("1 h 5 min")
            ]
        );
        assert_eq!(in_words(Duration::from_millis(7_200_500)), "2 h");
    }
}
