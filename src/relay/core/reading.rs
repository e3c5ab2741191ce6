//! What to read next. One read is out at a time, so that every read's snapshot is newer than the
//! one before: a catch-up read is complete with respect to all main reads before it.
//!
//! The kinds, and the trouble each prevents:
//!
//! * *main*: new rows, in order, from the bound of [`crate::relay::bound`];
//! * *catch-up*: rows of keys that main reads left out, so that a hot or failing key with a million
//!   rows behind it neither fills the memory nor is forgotten;
//! * *retries*: rows whose backoff is over;
//! * *due*: delayed rows whose time has come;
//! * *look*: whether a different server or table answers, when no main read would reveal it;
//! * *sweep*: everything below the bound, in slices of a few milliseconds, so that no pending row
//!   depends on the bound being right. It only looks: what it finds is read again, in order.

mod source;
mod sweep;
mod turns;

use std::collections::BTreeMap;
use std::time::Duration;

use super::pace::{Pace, WakeReason};
use super::window::Window;
use super::{Core, Time};
use crate::event::Record;
use crate::relay::bound::{Bound, Judgement};
use crate::store::{Holders, ReadBatch, ReadKind};
use source::SourceChange;
use sweep::Sweep;
use turns::Next;

/// Keys in one catch-up read.
const CATCH_UP_KEYS: usize = 256;

/// How rows come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Way {
    /// Rows of keys that are not held.
    #[default]
    Ordinary,
    /// Rows of lagging keys.
    CatchUp,
    /// Delayed rows of keys that do not wait for another row.
    Due,
    /// Rows back from their failure records.
    Retry,
}

/// The rows a read brought, and what they are.
#[derive(Debug, Default)]
pub struct Arrivals {
    /// The rows, in order.
    pub rows: Vec<Record>,
    /// How they come in.
    pub way: Way,
    /// What a catch-up read tells about its keys.
    pub caught_up: Option<CaughtUp>,
}

/// What a catch-up read tells about its keys.
#[derive(Debug, Default)]
pub struct CaughtUp {
    /// The keys, and up to where each is known now.
    pub known_to: BTreeMap<i64, i64>,
    /// Whether it brought all that was visible.
    pub complete: bool,
}

#[derive(Debug)]
struct Out {
    kind: ReadKind,
    /// For a catch-up read: up to where each key was known when it began.
    known_to: Vec<(i64, i64)>,
    started: Time,
    ticket: u64,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Reading {
    has_order: bool,
    bound: Bound,
    out: Option<Out>,
    /// For the catch-up read about to begin, see [`Out`].
    known_to: Vec<(i64, i64)>,
    /// Numbers of all reads that are out, the reloading of failure records included.
    tickets: BTreeMap<u64, ()>,
    next_ticket: u64,
    after_failure: Time,
    retry_at: Option<Time>,
    /// How soon to ask again for a retry that was due and did not come.
    retry_wait: Duration,
    due_at: Option<Time>,
    refused: Vec<i64>,
    sweep: Sweep,
    /// Lowest `seq` ever read, to slice the sweep.
    lowest: Option<i64>,
    /// Where the last main read came from.
    source: Option<i64>,
    change: SourceChange,
    /// Something happened that is only explained if a different server or table answers now.
    in_doubt: bool,
    /// When to check that again, while main reads are on hold.
    look_at: Time,
    /// A sweep found rows where nothing should be.
    found_below: bool,
    /// Mean weight in bytes of the rows last read, at least 1.
    row_weight: usize,
    /// When each kind was read last, by the number of the read: they take turns.
    served: [u64; Next::ALL.len()],
    discarded: u64,
}

/// Wait before due retries are asked for again, at least; at most, after they did not come.
const RETRY_WAIT: Duration = Duration::from_millis(10);
const RETRY_WAIT_MAX: Duration = Duration::from_millis(640);

/// There are no rows beyond this. A main read from here returns none, but still reveals whether a different server or table
/// answers, which the other reads would mistake for an empty result for ever.
const BEYOND: ReadKind = ReadKind::Main {
    after: Some(i64::MAX),
};

/// What rows are taken to weigh before any was read, in bytes. Guessing too much costs one small read.
const FIRST_WEIGHT: usize = 16 << 10;

impl Reading {
    /// Nothing read yet.
    pub fn new(has_order: bool, far_behind: i64) -> Self {
        Self {
            has_order,
            bound: Bound::new(far_behind),
            out: None,
            known_to: Vec::new(),
            tickets: BTreeMap::new(),
            next_ticket: 1,
            after_failure: Time::ZERO,
            retry_at: None,
            retry_wait: RETRY_WAIT,
            due_at: None,
            refused: Vec::new(),
            sweep: Sweep::new(),
            lowest: None,
            source: None,
            change: SourceChange::None,
            in_doubt: false,
            look_at: Time::ZERO,
            found_below: false,
            row_weight: FIRST_WEIGHT,
            served: [0; Next::ALL.len()],
            discarded: 0,
        }
    }

    /// Main reads thrown away so far.
    pub fn discarded(&self) -> u64 {
        self.discarded
    }

    /// A different server or table may be answering: find out.
    pub fn doubt(&mut self) {
        self.in_doubt = true;
    }

    /// Whether a read is out.
    pub fn is_out(&self) -> bool {
        self.out.is_some()
    }

    /// Where the last main read came from.
    pub fn source(&self) -> Option<i64> {
        self.source
    }

    /// The number of the newest read started.
    pub fn epoch(&self) -> u64 {
        self.next_ticket - 1
    }

    /// Counts something as a read, as far as rows that are gone are concerned.
    pub fn begin(&mut self) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.tickets.insert(ticket, ());
        ticket
    }

    /// The counterpart of [`Reading::begin`].
    pub fn end(&mut self, ticket: u64) {
        self.tickets.remove(&ticket);
    }

    /// Forgets rows that no read still out can show.
    pub fn settle_epochs(&self, window: &mut Window) {
        let oldest = self
            .tickets
            .keys()
            .next()
            .copied()
            .unwrap_or(self.next_ticket);
        window.forget(oldest);
    }

    /// Starts over from the beginning of the table.
    pub fn restart(&mut self, now: Time) {
        self.bound.restart();
        self.sweep.put_off(now);
    }

    /// Forgets which numbers were seen: they may be drawn again.
    fn forget(&mut self, now: Time) {
        self.bound = Bound::new(self.bound.far_behind());
        self.sweep.put_off(now);
        self.lowest = None;
    }

    /// Whether a sweep found rows where nothing should be, since this was asked last.
    pub fn take_found_below(&mut self) -> bool {
        std::mem::take(&mut self.found_below)
    }

    /// A retry falls due then.
    pub fn retry_at(&mut self, at: Time) {
        self.retry_at = Some(self.retry_at.map_or(at, |old| old.min(at)));
    }

    /// When one does.
    pub fn next_retry(&self) -> Option<Time> {
        self.retry_at
    }

    /// A retry or a delayed row falls due in this time, says the database.
    pub fn ticked(&mut self, now: Time, left: Option<Duration>) {
        self.refused.clear();
        if let Some(left) = left {
            let at = now + left;
            self.retry_at = Some(self.retry_at.map_or(at, |old| old.min(at)));
            self.due_at = Some(self.due_at.map_or(at, |old| old.min(at)));
        }
    }

    /// A row back from its failure record could not be taken in: do not ask for it again until the next
    /// tick, so that it does not crowd out others.
    pub fn refused(&mut self, seq: i64) {
        self.refused.push(seq);
    }

    /// The read failed: wait.
    pub fn failed(&mut self, now: Time, wait: Duration) {
        if let Some(out) = self.out.take() {
            self.end(out.ticket);
            match out.kind {
                BEYOND => self.in_doubt = true,
                ReadKind::Main { .. } => self.bound.abandon(),
                ReadKind::Retries => self.retry_at(now + wait),
                ReadKind::Due => self.due_at = Some(now + wait),
                ReadKind::CatchUp { .. } | ReadKind::Sweep { .. } => {}
            }
        }
        self.after_failure = now + wait;
    }

    /// Takes in the answer of the read that is out.
    pub fn finish(
        &mut self,
        now: Time,
        batch: ReadBatch,
        window: &mut Window,
        pace: &mut Pace,
    ) -> Arrivals {
        let Some(out) = self.out.take() else {
            return Arrivals::default();
        };
        self.end(out.ticket);
        if !batch.rows.is_empty() {
            let bytes: usize = batch.rows.iter().map(Record::weight).sum();
            self.row_weight = (bytes / batch.rows.len()).max(1);
        }
        let took = now.saturating_sub(out.started);
        if self.has_order
            && let Some(lowest) = batch.rows.iter().map(|row| row.seq).min()
        {
            self.lowest = Some(self.lowest.map_or(lowest, |old| old.min(lowest)));
        }
        match out.kind {
            BEYOND => {
                self.changed_source(now, &batch);
                Arrivals::default()
            }
            ReadKind::Main { .. } => self.finish_main(now, batch, window, pace),
            ReadKind::CatchUp { .. } => {
                // A key that failed meanwhile starts again from there.
                let mut known_to: BTreeMap<i64, i64> = out
                    .known_to
                    .into_iter()
                    .filter(|(hash, last_known)| window.continues(*hash, *last_known))
                    .collect();
                // Writers of one key are serialised: when a row of it is visible, all before it are. A row of another
                // key says nothing: below it, a writer of this key may still be open.
                for row in &batch.rows {
                    if let Some(last_known) = known_to.get_mut(&row.hash) {
                        *last_known = row.seq.max(*last_known);
                    }
                }
                Arrivals {
                    rows: batch.rows,
                    way: Way::CatchUp,
                    caught_up: Some(CaughtUp {
                        known_to,
                        complete: !batch.cut,
                    }),
                }
            }
            ReadKind::Retries => {
                self.retry_at = if batch.cut {
                    Some(now)
                } else {
                    window.next_retry()
                };
                // What was due and did not come is somebody else's, not recorded yet, or changed: ask again later, and less
                // and less often.
                self.retry_wait = match batch.rows.is_empty() {
                    true => (self.retry_wait * 2).min(RETRY_WAIT_MAX),
                    false => RETRY_WAIT,
                };
                self.retry_at = self.retry_at.map(|at| at.max(now + self.retry_wait));
                Arrivals {
                    rows: batch.rows,
                    way: Way::Retry,
                    caught_up: None,
                }
            }
            ReadKind::Due => {
                self.due_at = batch.cut.then_some(now);
                Arrivals {
                    rows: batch.rows,
                    way: Way::Due,
                    caught_up: None,
                }
            }
            ReadKind::Sweep { up_to, .. } => {
                self.sweep.finish_slice(now, took, up_to);
                if !batch.rows.is_empty() {
                    // Below the bound, where nothing should be. The sequence may have been restarted, so that what is
                    // known of its numbers is worth nothing: read everything again, in order.
                    self.forget(now);
                    self.found_below = true;
                    pace.wake(now, WakeReason::Change);
                } else if self.bound.settled_below().is_none() {
                    // Started over meanwhile: a sweep goes up to the bound, and there is none.
                    self.sweep.put_off(now);
                }
                Arrivals::default()
            }
        }
    }

    fn finish_main(
        &mut self,
        now: Time,
        batch: ReadBatch,
        window: &mut Window,
        pace: &mut Pace,
    ) -> Arrivals {
        let reached = batch.rows.iter().map(|row| row.seq).max();
        if self.has_order {
            let nobody = Holders::default();
            let holders = batch.holders.as_ref().unwrap_or(&nobody);
            if self.changed_source(now, &batch) {
                pace.read_done(now, 1, true);
                return Arrivals::default();
            }
            if self.bound.finish(reached, batch.cut, holders) == Judgement::Discard {
                self.discarded += 1;
                pace.read_done(now, 1, true);
                return Arrivals::default();
            }
        }
        let new = batch
            .rows
            .iter()
            .filter(|row| !window.knows(row.seq))
            .count();
        pace.read_done(now, new, batch.cut);
        Arrivals {
            rows: batch.rows,
            ..Arrivals::default()
        }
    }
}

impl Reading {
    /// Starts over if another server or another table answered than before.
    fn changed_source(&mut self, now: Time, batch: &ReadBatch) -> bool {
        let answered = batch.holders.as_ref().map_or(0, |holders| holders.source);
        let before = self.source.replace(answered);
        let changed = before.is_some_and(|before| before != answered);
        if changed {
            self.start_over(now);
        }
        changed
    }
}

impl Core {
    /// Nothing that is known to be pending lies at or below this `seq`; `None`: it may lie anywhere. Delayed and
    /// failed rows aside.
    pub fn pending_above(&self) -> Option<i64> {
        // Where the first row of a parked key is, memory does not know.
        if !self.reading.has_order || self.parking.parked > 0 {
            return None;
        }
        let coverage = self.reading.bound.coverage()?;
        Some(
            self.window
                .pending_above()
                .map_or(coverage, |seq| coverage.min(seq)),
        )
    }

    pub(super) fn room(&self) -> usize {
        // Many small reads cost more than a few large ones.
        if self.free_bytes() < self.config.max_in_flight_bytes.div_ceil(4) {
            return 0;
        }
        let room = self.config.max_in_flight.saturating_sub(self.window.len());
        let worthwhile = self
            .config
            .batch_size
            .min(self.config.max_in_flight / 4)
            .max(1);
        if room < worthwhile {
            0
        } else {
            room.min(self.config.batch_size)
        }
    }

    fn free_bytes(&self) -> usize {
        let limit = self.config.max_in_flight_bytes;
        limit.saturating_sub(self.window.bytes())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
