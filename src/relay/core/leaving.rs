//! A stop: a last look at the table, then everything is settled and handed over.
//!
//! What a service commits just before it ends was not read yet when its relay, in the same pod, is told to end, too. So
//! the relay reads once more, publishes what it has, and only then gives up its partitions. With a backlog, or while
//! nothing can be published, it leaves at once: the next owner gets the rows the sooner. Nothing depends on the look. What it does
//! not find, or cannot publish in [`CoreConfig::last_look`](super::CoreConfig), waits in the table as ever.

use super::{Core, Lane, Time};

/// How far a stop is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leaving {
    /// Nobody has asked for one.
    No,
    /// The read that begins after the stop is still to begin, or is out.
    Looking { until: Time, begun: bool },
    /// What is in memory is being published.
    Publishing { until: Time },
    /// What is in flight is settled, partitions are handed over.
    Out,
}

impl Core {
    /// Whether a stop was asked for.
    pub(super) fn is_stopping(&self) -> bool {
        self.leaving != Leaving::No
    }

    /// Whether a stop has run its course: everything settled and handed over.
    pub fn has_stopped(&self) -> bool {
        self.is_stopping()
            && self.own_out.is_none()
            && (self.ownership.has_left() || self.ownership.replica().is_none())
    }

    pub(super) fn stop(&mut self, now: Time) {
        if self.is_stopping() {
            return;
        }
        self.ownership.close();
        self.leaving = Leaving::Looking {
            until: now + self.config.last_look,
            begun: false,
        };
        let may_read = self.reading.is_out() || self.read_due(now).is_some();
        if !may_read || !self.may_publish(now) || !self.may_hold_more() {
            self.leave();
        }
    }

    pub(super) fn wants_last_read(&self) -> bool {
        matches!(self.leaving, Leaving::Looking { begun: false, .. })
    }

    pub(super) fn last_read_begins(&mut self) {
        if let Leaving::Looking { begun, .. } = &mut self.leaving {
            *begun = true;
        }
    }

    /// A read has ended. If it is the last one, and was of use, there is nothing left to read.
    pub(super) fn read_ended(&mut self, of_use: bool) {
        if let Leaving::Looking { until, begun: true } = self.leaving {
            self.leaving = match of_use {
                true => Leaving::Publishing { until },
                false => Leaving::Looking {
                    until,
                    begun: false,
                },
            };
        }
    }

    /// Ends the last look when it has nothing more to bring, or no more time.
    pub(super) fn leave_in_time(&mut self, now: Time) {
        let (published, until) = match self.leaving {
            Leaving::Looking { until, .. } => (false, until),
            // What waits behind a row in flight becomes ready when that is confirmed.
            Leaving::Publishing { until } => (
                self.window.ready() == 0
                    && !self.awaits_payload()
                    && !self.lanes.contains(&Lane::Busy),
                until,
            ),
            Leaving::No | Leaving::Out => return,
        };
        if published || now >= until || !self.may_publish(now) {
            self.leave();
        }
    }

    /// When a last look must end.
    pub(super) fn leave_by(&self) -> Option<Time> {
        match self.leaving {
            Leaving::Looking { until, .. } | Leaving::Publishing { until } => Some(until),
            Leaving::No | Leaving::Out => None,
        }
    }

    fn leave(&mut self) {
        self.leaving = Leaving::Out;
        self.ownership.stop();
        self.drop_leaving();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
