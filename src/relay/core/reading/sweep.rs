//! When everything below the bound is visited again, and in which slices.

use std::time::Duration;

use crate::relay::core::Time;

/// Wait between two sweeps, at least.
const SWEEP_PAUSE: Duration = Duration::from_secs(5);
/// A sweep may take one part in this many of the time.
const SWEEP_SHARE: u32 = 20;
/// A slice of a sweep should take about this long.
const SWEEP_SLICE: Duration = Duration::from_millis(10);
/// Most slices of one sweep.
const SWEEP_SLICES_MAX: u128 = 1_000;

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Sweep {
    next_at: Time,
    /// Exclusive lower bound of the next slice while a sweep is under way.
    position: Option<i64>,
    /// Where the sweep under way ends, and the width of its slices.
    end: i64,
    width: i64,
    spent: Duration,
    last_duration: Duration,
}

impl Sweep {
    /// The first one is a while off.
    pub(super) fn new() -> Self {
        Self {
            next_at: SWEEP_PAUSE,
            position: None,
            end: i64::MIN,
            width: i64::MAX,
            spent: Duration::ZERO,
            last_duration: Duration::ZERO,
        }
    }

    /// When the next slice is due.
    pub(super) fn due(&self) -> Time {
        match self.position {
            Some(_) => Time::ZERO,
            None => self.next_at,
        }
    }

    /// Gives up the one under way, if any.
    pub(super) fn put_off(&mut self, now: Time) {
        self.position = None;
        self.next_at = self.next_at.max(now + SWEEP_PAUSE);
    }

    /// A slice was read.
    pub(super) fn finish_slice(&mut self, now: Time, took: Duration, reached: i64) {
        self.spent += took;
        if reached < self.end {
            self.position = Some(reached);
            return;
        }
        self.position = None;
        self.last_duration = self.spent;
        self.next_at = now + SWEEP_PAUSE.max(self.spent * SWEEP_SHARE);
        self.spent = Duration::ZERO;
    }

    /// Begins or continues a sweep up to `bound`: the next slice.
    pub(super) fn slice(&mut self, lowest: i64, bound: i64) -> (i64, i64) {
        let after = match self.position {
            Some(position) => position,
            None => {
                self.end = bound;
                let slices = (self.last_duration.as_nanos() / SWEEP_SLICE.as_nanos())
                    .clamp(1, SWEEP_SLICES_MAX) as i64;
                self.width = (bound.saturating_sub(lowest) / slices).max(1);
                if slices == 1 {
                    self.width = i64::MAX;
                }
                i64::MIN
            }
        };
        let up_to = after.max(lowest).saturating_add(self.width).min(self.end);
        (after, up_to)
    }
}
