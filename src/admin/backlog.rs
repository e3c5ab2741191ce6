//! How much waits, and for how long: the last count, brought up to date with what the relay did since.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::relay::live::Live;
use crate::store::postgres::admin::FailureRow;
use crate::store::postgres::figures::{Backlog, Upkeep};
use crate::store::postgres::status::FailureGroup;

/// What was seen in the database, on a slow clock.
#[derive(Debug, Clone, Default)]
pub struct Watched {
    /// The last count.
    pub backlog: Option<Counted>,
    /// The last look at the table's upkeep.
    pub upkeep: Option<Upkeep>,
    /// The events that failed last.
    pub failures: Vec<FailureRow>,
    /// All that failed, by kind.
    pub groups: Vec<FailureGroup>,
    /// What becomes of published rows; empty until the table is known.
    pub retention: String,
    /// Since when and why the outbox is paused.
    pub paused: Option<(Timestamp, Option<String>)>,
}

/// A count, and where the relay stood.
#[derive(Debug, Clone, Copy)]
pub struct Counted {
    /// When.
    pub at: Instant,
    /// Events that were done with by then, see [`Totals::done`](crate::relay::core::Totals::done).
    pub done: u64,
    /// What was counted.
    pub backlog: Backlog,
}

/// What waits now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// Events that are due and not settled.
    pub events: u64,
    /// Whether that is an estimate by the distance of sequence numbers.
    pub estimated: bool,
    /// Age of the oldest; zero if nothing waits. `None`: not known.
    pub oldest: Option<Duration>,
}

/// From the last count and the relay's memory, which is newer and knows only a part.
pub fn waiting(live: &Live, counted: Option<&Counted>, now: Instant) -> Waiting {
    let in_memory = live.gauges.in_flight as u64;
    let mut waiting = Waiting {
        events: in_memory,
        estimated: false,
        oldest: live
            .oldest
            .map(|age| age + now.saturating_duration_since(live.at)),
    };
    let Some(counted) = counted else {
        return waiting;
    };
    let Backlog {
        rows,
        estimated,
        oldest,
        oldest_failing,
        ..
    } = counted.backlog;
    let done_since = live.totals.done().saturating_sub(counted.done);
    waiting.events = in_memory.max(rows.saturating_sub(done_since));
    waiting.estimated = estimated && waiting.events > in_memory;
    let since = now.saturating_duration_since(counted.at);
    // Once something was published, what was the oldest then may be gone; memory knows the oldest now.
    let still = oldest.filter(|_| done_since == 0);
    let counted_ages = [still, oldest_failing].into_iter().flatten();
    let ages = counted_ages.map(|age| age + since).chain(waiting.oldest);
    waiting.oldest = match ages.max() {
        None if waiting.events == 0 => Some(Duration::ZERO),
        age => age,
    };
    waiting
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn counted(at: Instant, rows: u64, oldest: Option<Duration>) -> Counted {
        Counted {
            at,
            done: 100,
            backlog: Backlog {
                rows,
                oldest,
                ..Backlog::default()
            },
        }
    }

    #[test]
    fn a_count_follows_what_is_published_and_never_falls_below_what_is_in_memory() {
        let mut live = Live::starting();
        live.totals.published = 100;
        live.gauges.in_flight = 40;
        live.oldest = Some(SECOND);
        let count = counted(live.at, 500, Some(9 * SECOND));
        let now = live.at + SECOND;
        let first = waiting(&live, Some(&count), now);
        assert_eq!((first.events, first.oldest), (500, Some(10 * SECOND)));
        live.totals.published = 400;
        let later = waiting(&live, Some(&count), now);
        assert_eq!((later.events, later.oldest), (200, Some(2 * SECOND)));
        live.totals.published = 4_000;
        assert_eq!(waiting(&live, Some(&count), now).events, 40);
    }

    #[test]
    fn nothing_waits_only_if_that_was_counted() {
        let live = Live::starting();
        assert_eq!(waiting(&live, None, live.at).oldest, None);
        let mut count = counted(live.at, 0, None);
        let nothing = waiting(&live, Some(&count), live.at);
        assert_eq!((nothing.events, nothing.oldest), (0, Some(Duration::ZERO)));
        // A failing event keeps its age whatever is published.
        count.done = 0;
        count.backlog.rows = 1;
        count.backlog.oldest_failing = Some(SECOND);
        let mut busy = live.clone();
        busy.totals.published = 0;
        let failing = waiting(&busy, Some(&count), live.at + SECOND);
        assert_eq!((failing.events, failing.oldest), (1, Some(2 * SECOND)));
    }
}
