//! How much is measured, and how often.

use std::time::Duration;

/// The full form takes about 25 minutes on a small machine, the quick one three; building comes on top.
#[derive(Debug)]
pub(crate) struct Sizes {
    /// Rounds of each drain and its reference.
    pub(crate) rounds: usize,
    /// Rows of the drains that all settings are compared with.
    pub(crate) backlog: i64,
    pub(crate) keys: i64,
    /// Rows of the drain to nowhere, which is faster.
    pub(crate) discarded: i64,
    pub(crate) hot_key: i64,
    pub(crate) snapshot: i64,
    /// Its rounds: each takes minutes.
    pub(crate) snapshot_rounds: usize,
    /// Rows of the sweeps by keys, replicas and kinds of queues.
    pub(crate) sweep: i64,
    /// Sizes of the backlogs that are compared, and how many rows of each are drained, at most.
    pub(crate) backlogs: &'static [i64],
    pub(crate) drained: i64,
    /// Texts of the payloads that are compared, with the rows of each.
    pub(crate) payloads: &'static [(usize, i64)],
    pub(crate) latency_rows: usize,
    pub(crate) load: Duration,
    pub(crate) idle: Duration,
    pub(crate) writers: Duration,
    pub(crate) lease: Duration,
    pub(crate) takeovers: usize,
    pub(crate) starts: usize,
}

impl Sizes {
    pub(crate) fn new(quick: bool, rounds: Option<usize>) -> Self {
        let seconds = Duration::from_secs;
        let mut sizes = if quick {
            Self {
                rounds: 1,
                backlog: 30_000,
                keys: 10_000,
                discarded: 60_000,
                hot_key: 1_000,
                snapshot: 200_000,
                snapshot_rounds: 1,
                sweep: 15_000,
                backlogs: &[10_000, 100_000, 300_000],
                drained: 20_000,
                payloads: &[
                    (100, 8_000),
                    (1 << 10, 8_000),
                    (10 << 10, 2_000),
                    (100 << 10, 300),
                    (1_000_000, 60),
                ],
                latency_rows: 100,
                load: seconds(3),
                idle: seconds(10),
                writers: seconds(2),
                lease: seconds(4),
                takeovers: 1,
                starts: 3,
            }
        } else {
            Self {
                rounds: 3,
                backlog: 80_000,
                keys: 10_000,
                discarded: 150_000,
                hot_key: 5_000,
                snapshot: 1_000_000,
                snapshot_rounds: 2,
                sweep: 50_000,
                backlogs: &[10_000, 100_000, 1_000_000, 10_000_000],
                drained: 100_000,
                payloads: &[
                    (100, 30_000),
                    (1 << 10, 30_000),
                    (10 << 10, 6_000),
                    (100 << 10, 1_000),
                    (1_000_000, 150),
                ],
                latency_rows: 300,
                load: seconds(8),
                idle: seconds(20),
                writers: seconds(4),
                lease: seconds(10),
                takeovers: 3,
                starts: 5,
            }
        };
        if let Some(rounds) = rounds {
            sizes.rounds = rounds;
            sizes.takeovers = rounds;
            sizes.snapshot_rounds = rounds;
        }
        sizes
    }
}
