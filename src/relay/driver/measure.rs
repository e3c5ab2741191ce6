//! What the main loop measures, once a batch.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::error::Verdict;
use crate::event::Record;
use crate::relay::core::window::Item;
use crate::telemetry::metrics::Measured;

/// Where the main loop counts, and since when its lanes are busy.
pub(super) struct Measure {
    measured: Arc<Measured>,
    /// When the oldest event on each lane was created.
    out: Vec<Option<Timestamp>>,
}

impl Measure {
    pub(super) fn new(measured: Arc<Measured>, lanes: usize) -> Self {
        Self {
            measured,
            out: vec![None; lanes],
        }
    }

    pub(super) fn measured(&self) -> Arc<Measured> {
        Arc::clone(&self.measured)
    }

    /// A batch goes out.
    pub(super) fn departing(&mut self, lane: usize, batch: &[Item]) -> Arc<Measured> {
        let due = batch.iter().filter(|item| !item.is_delayed());
        self.out[lane] = due.filter_map(|item| item.record.created_at).min();
        self.measured()
    }

    /// The fate of the batch is known.
    pub(super) fn arrived(&mut self, lane: usize) {
        self.out[lane] = None;
    }

    /// Age of the oldest event in memory: of those on lanes and the first one that waits.
    pub(super) fn oldest(&self, waiting: Option<&Record>) -> Option<Duration> {
        let waiting = waiting.and_then(|record| record.created_at);
        let oldest = self.out.iter().copied().flatten().chain(waiting).min()?;
        self.measured.clock.since(Instant::now(), oldest)
    }
}

/// A batch was published, one way or another.
pub(super) fn published(measured: &Measured, began: Instant, results: &[(Item, Verdict)]) {
    let now = Instant::now();
    measured.published(results.len(), now - began);
    if tracing::enabled!(tracing::Level::DEBUG) {
        let count = |fate: &Verdict| {
            results
                .iter()
                .filter(|(_, verdict)| verdict == fate)
                .count()
        };
        let (confirmed, unknown) = (count(&Verdict::Confirmed), count(&Verdict::Unavailable));
        let (events, took) = (results.len(), now - began);
        tracing::debug!(events, confirmed, unknown, ?took, "batch published");
    }
    for (item, verdict) in results {
        let reached_consumers = *verdict == Verdict::Confirmed && item.dead_letter.is_none();
        if reached_consumers
            && !item.is_delayed()
            && let Some(created_at) = item.record.created_at
            && let Some(took) = measured.clock.since(now, created_at)
        {
            measured.end_to_end.observe_duration(took);
        }
    }
}
