//! What is measured where it happens. Everything else a scrape says is known already.
//!
//! Counted once a batch, with relaxed atomics: the relay has one thread, and a scrape may be one event behind.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::table::BATCH_STEPS;

/// Upper bounds of durations, in microseconds.
const DURATION_BOUNDS: &[u64] = &[
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
];

/// Upper bounds of batch sizes.
const BATCH_BOUNDS: &[u64] = &[0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000];

/// Counts observations by size, in whole units: microseconds or events.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [u64],
    /// One for each bound, and one for what is larger.
    counts: Box<[AtomicU64]>,
    sum: AtomicU64,
    /// Units in one of what the metric is named after (microseconds in a second).
    scale: f64,
}

impl Histogram {
    fn new(bounds: &'static [u64], scale: f64) -> Self {
        Self {
            bounds,
            counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0),
            scale,
        }
    }

    fn durations() -> Self {
        Self::new(DURATION_BOUNDS, 1e6)
    }

    /// Counts one value.
    pub fn observe(&self, value: u64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.counts[bucket].fetch_add(1, Relaxed);
        self.sum.fetch_add(value, Relaxed);
    }

    /// Counts a duration.
    pub fn observe_duration(&self, value: Duration) {
        self.observe(u64::try_from(value.as_micros()).unwrap_or(u64::MAX >> 1));
    }

    /// The count of each bucket by itself, the last without an upper bound.
    pub fn counts(&self) -> Vec<u64> {
        self.counts
            .iter()
            .map(|count| count.load(Relaxed))
            .collect()
    }

    /// Upper bounds as the scrape writes them.
    pub fn bounds(&self) -> impl Iterator<Item = f64> {
        self.bounds.iter().map(|bound| *bound as f64 / self.scale)
    }

    /// Sum of all values, in the metric's unit.
    pub fn sum(&self) -> f64 {
        self.sum.load(Relaxed) as f64 / self.scale
    }
}

/// The value below which this share of the observations lies, assuming that they spread evenly in each bucket.
/// `counts`: as [`Histogram::counts`]. `None` without observations. What is beyond the last bound counts as the last bound.
pub fn quantile(bounds: impl Iterator<Item = f64>, counts: &[u64], share: f64) -> Option<f64> {
    let total: u64 = counts.iter().sum();
    if total == 0 {
        return None;
    }
    let rank = share * total as f64;
    let (mut lower, mut seen) = (0.0, 0.0);
    for (bound, count) in bounds.zip(counts) {
        let count = *count as f64;
        if count > 0.0 && seen + count >= rank {
            return Some(lower + (bound - lower) * (rank - seen) / count);
        }
        seen += count;
        lower = bound;
    }
    Some(lower)
}

/// What the database is asked for, in groups that mean something to an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Reading events.
    Read,
    /// Marking or deleting published rows.
    Settle,
    /// Recording and loading failures.
    Failures,
    /// Ownership of partitions, and the promise to poll.
    Lease,
    /// Counting the backlog and looking at the table, for metrics.
    Figures,
    /// Deleting old published rows.
    Retention,
}

impl Operation {
    /// Every operation, for counting.
    pub const ALL: [Operation; 6] = [
        Self::Read,
        Self::Settle,
        Self::Failures,
        Self::Lease,
        Self::Figures,
        Self::Retention,
    ];

    /// Its name, as a metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Settle => "settle",
            Self::Failures => "failures",
            Self::Lease => "lease",
            Self::Figures => "figures",
            Self::Retention => "retention",
        }
    }
}

/// What is measured while the relay runs.
#[derive(Debug)]
pub struct Measured {
    /// From creation to confirmation, in microseconds.
    pub end_to_end: Histogram,
    /// Batches published, in microseconds.
    pub publish: Histogram,
    /// Operations that succeeded, in microseconds, in the order of [`Operation::ALL`].
    pub database: [Histogram; Operation::ALL.len()],
    /// Operations that failed, in the same order.
    pub database_errors: [AtomicU64; Operation::ALL.len()],
    /// Events per step, in the order of [`BATCH_STEPS`].
    pub batches: [Histogram; BATCH_STEPS.len()],
    /// What time it is at the database.
    pub clock: DatabaseClock,
}

impl Default for Measured {
    fn default() -> Self {
        Self {
            end_to_end: Histogram::durations(),
            publish: Histogram::durations(),
            database: std::array::from_fn(|_| Histogram::durations()),
            database_errors: Default::default(),
            batches: std::array::from_fn(|_| Histogram::new(BATCH_BOUNDS, 1.0)),
            clock: DatabaseClock::default(),
        }
    }
}

impl Measured {
    /// An operation ended.
    pub fn asked(&self, operation: Operation, took: Duration, succeeded: bool) {
        if succeeded {
            self.database[operation as usize].observe_duration(took);
        } else {
            self.database_errors[operation as usize].fetch_add(1, Relaxed);
        }
    }

    /// A read brought so many events.
    pub fn read(&self, events: usize) {
        self.batches[0].observe(events as u64);
    }

    /// A batch of so many events was published in this time.
    pub fn published(&self, events: usize, took: Duration) {
        self.batches[1].observe(events as u64);
        self.publish.observe_duration(took);
    }

    /// So many events were settled at once.
    pub fn settled(&self, events: usize) {
        self.batches[2].observe(events as u64);
    }
}

/// The database's clock, told from this process's monotonic one: events carry the time of the database, and the
/// clock of this machine may be off by more than they take.
#[derive(Debug)]
pub struct DatabaseClock {
    origin: Instant,
    /// Microseconds since 1970 at the origin.
    at_origin: AtomicI64,
    /// How far off that may be, in microseconds; negative: unknown.
    error: AtomicI64,
    /// When it was set, in microseconds since the origin.
    set_at: AtomicI64,
}

/// An estimate gets worse by this much: a good quartz drifts less than 100 us per second.
const DRIFT: i64 = 10_000;

impl Default for DatabaseClock {
    fn default() -> Self {
        Self {
            origin: Instant::now(),
            at_origin: AtomicI64::new(0),
            error: AtomicI64::new(-1),
            set_at: AtomicI64::new(0),
        }
    }
}

impl DatabaseClock {
    fn since_origin(&self, at: Instant) -> i64 {
        at.saturating_duration_since(self.origin).as_micros() as i64
    }

    /// The database said `micros` (since 1970) between the two moments. Of several answers the surest is kept, until its
    /// drift outweighs that.
    pub fn heard(&self, asked: Instant, answered: Instant, micros: i64) {
        let (asked, answered) = (self.since_origin(asked), self.since_origin(answered));
        let error = (answered - asked) / 2;
        let at_origin = micros - (asked + error);
        let old = self.error.load(Relaxed);
        let aged = old + (answered - self.set_at.load(Relaxed)) / DRIFT;
        // A clock that was set, or another server's.
        let jumped = (at_origin - self.at_origin.load(Relaxed)).abs() > error + aged;
        if old < 0 || error <= aged || jumped {
            self.at_origin.store(at_origin, Relaxed);
            self.error.store(error, Relaxed);
            self.set_at.store(answered, Relaxed);
        }
    }

    /// Time at the database since `at`; zero if that is yet to come. `None`: its clock is not known yet.
    pub fn since(&self, now: Instant, at: Timestamp) -> Option<Duration> {
        if self.error.load(Relaxed) < 0 {
            return None;
        }
        let database = self.at_origin.load(Relaxed) + self.since_origin(now);
        let micros = database.saturating_sub(at.as_microsecond());
        Some(Duration::from_micros(micros.max(0) as u64))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn values_fall_into_the_bucket_whose_bound_they_reach() {
        let histogram = Histogram::new(&[1, 10], 1.0);
        for value in [0, 1, 2, 10, 11, 1_000] {
            histogram.observe(value);
        }
        assert_eq!(histogram.counts(), [2, 2, 2]);
        assert_eq!(histogram.sum(), 1_024.0);
        let seconds = Histogram::durations();
        seconds.observe_duration(Duration::from_millis(1_500));
        assert_eq!(seconds.sum(), 1.5);
        assert!(seconds.bounds().is_sorted());
        assert_eq!(seconds.bounds().next(), Some(0.001));
    }

    #[test]
    fn quantiles_are_interpolated() {
        let of = |counts: &[u64], share| quantile([1.0, 2.0, 4.0].into_iter(), counts, share);
        assert_eq!(of(&[0, 0, 0, 0], 0.5), None);
        assert_eq!(of(&[0, 10, 0, 0], 0.5), Some(1.5));
        assert_eq!(of(&[10, 0, 10, 0], 0.5), Some(1.0));
        assert_eq!(of(&[10, 0, 10, 0], 0.75), Some(3.0));
        assert_eq!(of(&[0, 0, 0, 3], 0.99), Some(4.0));
    }

    #[test]
    fn the_surest_answer_tells_the_database_clock() {
        let clock = DatabaseClock::default();
        let at = |micros: u64| clock.origin + Duration::from_micros(micros);
        let created = Timestamp::from_microsecond(1_000_000).unwrap();
        let age = |now| clock.since(now, created).map(|age| age.as_micros());
        assert_eq!(age(at(0)), None);
        // At 1,500 us after the origin, give or take 500, it was 2 s.
        clock.heard(at(1_000), at(2_000), 2_000_000);
        assert_eq!(age(at(1_500)), Some(1_000_000));
        // Less sure, and in agreement: of no use.
        clock.heard(at(3_000), at(9_000), 2_004_000);
        assert_eq!(age(at(1_500)), Some(1_000_000));
        // Surer.
        clock.heard(at(10_000), at(10_100), 2_008_600);
        assert_eq!(age(at(10_050)), Some(1_008_600));
        // The clock was set: no agreement.
        clock.heard(at(20_000), at(30_000), 9_000_000);
        assert_eq!(age(at(25_000)), Some(8_000_000));
        // An event from the future.
        assert_eq!(clock.since(at(0), Timestamp::MAX), Some(Duration::ZERO));
    }
}
