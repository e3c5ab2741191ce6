//! The last quarter of an hour, for the curves of the status page. In memory, of a fixed size.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::Site;
use super::backlog::waiting;
use crate::telemetry::metrics::quantile;

/// Between two samples.
pub const SAMPLE_EVERY: Duration = Duration::from_secs(5);
/// Samples kept: 15 minutes.
pub const SAMPLES_MAX: usize = 180;
/// Samples that the figures of the last minute are made of.
const MINUTE: usize = 12;

/// One point of each curve.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Events published per second since the sample before.
    pub published: f64,
    /// Events read per second.
    pub read: f64,
    /// Events due and not settled.
    pub backlog: u64,
    /// Age of the oldest, in seconds, where it is known.
    pub oldest: Option<f64>,
    /// Latencies since the sample before, by bucket.
    pub latencies: Vec<u64>,
}

#[derive(Debug)]
struct Mark {
    at: Instant,
    published: u64,
    read: f64,
    latencies: Vec<u64>,
}

/// See the module documentation.
#[derive(Debug, Default)]
pub struct History {
    samples: VecDeque<Sample>,
    last: Option<Mark>,
}

impl History {
    /// Takes a sample.
    pub fn sample(&mut self, site: &Site, now: Instant) {
        let live = site.live.borrow();
        let waits = waiting(&live, site.watched.borrow().backlog.as_ref(), now);
        let mark = Mark {
            at: now,
            published: live.totals.published,
            read: site.measured.batches[0].sum(),
            latencies: site.measured.end_to_end.counts(),
        };
        let last = self.last.replace(Mark {
            latencies: mark.latencies.clone(),
            ..mark
        });
        let Some(last) = last else { return };
        let seconds = now.saturating_duration_since(last.at).as_secs_f64();
        let latencies = mark.latencies.iter().zip(&last.latencies);
        if self.samples.len() == SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back(Sample {
            published: per_second((mark.published - last.published) as f64, seconds),
            read: per_second(mark.read - last.read, seconds),
            backlog: waits.events,
            oldest: waits.oldest.map(|age| age.as_secs_f64()),
            latencies: latencies.map(|(now, then)| now - then).collect(),
        });
    }

    /// The samples, oldest first.
    pub fn samples(&self) -> impl Iterator<Item = &Sample> {
        self.samples.iter()
    }

    /// The latencies of the last minute, by bucket.
    pub fn last_minute(&self) -> Vec<u64> {
        let mut sum = Vec::new();
        for sample in self.samples.iter().rev().take(MINUTE) {
            sum.resize(sample.latencies.len(), 0);
            for (sum, count) in sum.iter_mut().zip(&sample.latencies) {
                *sum += count;
            }
        }
        sum
    }
}

fn per_second(amount: f64, seconds: f64) -> f64 {
    if seconds > 0.0 { amount / seconds } else { 0.0 }
}

/// A quantile of latencies, in seconds.
pub(super) fn latency(site: &Site, counts: &[u64], share: f64) -> Option<f64> {
    quantile(site.measured.end_to_end.bounds(), counts, share)
}
