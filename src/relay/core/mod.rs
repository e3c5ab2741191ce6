//! The relay core: a state machine without I/O, clock or runtime.
//!
//! Inputs go in ([`Core::handle`]), commands come out ([`Core::next`]); time is an argument. The driver
//! carries the commands out and feeds the answers back, the simulation does the same with a model
//! of the database and the broker. At most one read, one settle, one recording of failures and one
//! ownership step are out at a time, and one batch per lane.
//!
//! Where the promises live:
//!
//! * *No loss*: a row leaves memory only settled ([`window`]), or to be read again; the sweep
//!   ([`reading`]) visits every pending row whatever the bounds say.
//! * *Order per key*: [`window`] (dispatch) and [`crate::relay::bound`] (reading).
//! * *No duplicate without a failure*: settled rows stay known until every read that began before has
//!   returned ([`Window::forget`]); partitions change hands only drained ([`ownership`]).
//! * *Isolation*: only the failing row's key is held; an outage counts no attempt
//!   ([`Core::handle`], `Published`).
//! * *Bounded*: `max_in_flight`, `max_in_flight_bytes`, rows per key, held keys.

mod fetching;
mod leaving;
mod messages;
mod outcomes;
pub mod ownership;
pub mod pace;
mod parking;
pub mod reading;
mod reloading;
#[cfg(test)]
mod samples;
mod settling;
pub mod window;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use uuid::Uuid;

use crate::error::RetryPolicy;
use crate::event::Record;
use crate::relay::bound::FAR_BEHIND;
use crate::store::{Failure, ReadBatch, Tick};

use leaving::Leaving;
pub use messages::{ByReason, Command, Gauges, Input, StoreFailed, Totals};
use ownership::{Ownership, Step};
use pace::{AWAKE_HORIZON, Pace, WakeReason};
use parking::Parking;
use reading::{Reading, Way};
use reloading::Reload;
use settling::{Finished, Trust};
use window::{Hold, Item, Ordering, Suspect, Window};

/// Time since the relay started, on a monotonic clock.
pub type Time = Duration;

/// Crashes with the same row alone in flight after which it is given up as poison.
pub const MAX_CRASHES: u32 = 2;
/// Rows settled by one statement.
const SETTLE_MAX: usize = 4_000;
/// Rows that are worth a statement of their own at once.
const SETTLE_WORTH: usize = 200;
/// Longest wait for more rows before fewer are settled.
const SETTLE_WAIT: Duration = Duration::from_millis(5);
/// Failures recorded by one statement.
const RECORD_MAX: usize = 500;
/// Wait after the database refused or vanished, before the same kind of command is sent again.
const STORE_RETRY: Duration = Duration::from_millis(500);
/// A retry this late means that its record changed unnoticed: load the records again.
const RETRY_OVERDUE: Duration = Duration::from_secs(10);
/// How often records are loaded again in any case: a row may be deleted by hand, and its record must not stay for ever,
/// least of all one that blocks its key.
const RELOAD_EVERY: Duration = Duration::from_secs(60);
/// Wait of a lane after a batch that ended without any answer.
const LANE_RETRY: Duration = Duration::from_millis(100);
/// Longest last look in a stop: somebody waits for the partitions.
pub const LAST_LOOK: Duration = Duration::from_secs(1);

/// What the core is told about its surroundings.
#[derive(Debug, Clone)]
pub struct CoreConfig {
    /// Order within a key.
    pub ordering: Ordering,
    /// False for a table without an order column: every read starts at the beginning.
    pub has_order: bool,
    /// Publishing lanes.
    pub lanes: usize,
    /// Events in one batch of one lane.
    pub lane_batch: usize,
    /// Rows in one read.
    pub batch_size: usize,
    /// Rows in memory and not yet settled.
    pub max_in_flight: usize,
    /// The same in bytes of rows.
    pub max_in_flight_bytes: usize,
    /// Failing and blocked keys that are kept in memory, some 200 bytes each; the database keeps the others.
    pub max_held: usize,
    /// A row whose values have at most so many bytes each is read with others; the payload of another one when it is about to go.
    pub whole_bytes: usize,
    /// A row of more bytes is given up unread.
    pub max_event_bytes: usize,
    /// Longest wait between polls where notifications cannot be had.
    pub poll_interval: Duration,
    /// Lease time of partition ownership.
    pub lease_ttl: Duration,
    /// How often and how patiently a rejected event is tried.
    pub retry: RetryPolicy,
    /// See [`FAR_BEHIND`].
    pub far_behind: i64,
    /// Rows of a partition that must go as suspects, after its owner died soon after taking it, before the others need no care.
    pub careful_rows: usize,
    /// Whether given-up events are published to a dead-letter destination.
    pub dead_letter: bool,
    /// Longest last look at the table in a stop, publishing what it finds included.
    pub last_look: Duration,
}

impl Default for CoreConfig {
    fn default() -> Self {
        Self {
            ordering: Ordering::Strict,
            has_order: true,
            lanes: 8,
            lane_batch: 200,
            batch_size: 1_000,
            max_in_flight: 4_000,
            max_in_flight_bytes: 16 << 20,
            max_held: 10_000,
            whole_bytes: 64 << 10,
            max_event_bytes: 16 << 20,
            poll_interval: Duration::from_millis(250),
            lease_ttl: Duration::from_secs(10),
            retry: RetryPolicy::default(),
            far_behind: FAR_BEHIND,
            careful_rows: 256,
            dead_letter: false,
            last_look: LAST_LOOK,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lane {
    Idle,
    Busy,
    /// Idle, but waiting after an outage.
    Resting(Time),
}

impl Lane {
    /// From when on it takes a batch, as far as is known.
    fn free_at(self) -> Option<Time> {
        match self {
            Lane::Idle => Some(Time::ZERO),
            Lane::Busy => None,
            Lane::Resting(until) => Some(until),
        }
    }
}

/// See the module documentation.
#[derive(Debug)]
pub struct Core {
    config: CoreConfig,
    window: Window,
    reading: Reading,
    pace: Pace,
    ownership: Ownership,
    own_out: Option<(Step, Time)>,
    reload: Option<Reload>,
    reload_after: Option<Time>,
    reloaded_at: Time,
    parking: Parking,
    /// Suspects that this relay recorded and that are not done with: placement hash and the number of crashes written.
    suspected: HashMap<i64, (i64, u32)>,
    lanes: Vec<Lane>,
    sink_ready: bool,
    paused: bool,
    leaving: Leaving,
    failures_version: Option<i64>,
    /// Finished rows to settle.
    to_settle: Vec<Finished>,
    /// Those that could not be settled before.
    to_settle_again: Vec<Finished>,
    trust: Trust,
    settling: Vec<Finished>,
    settle_after: Time,
    /// When the oldest row in `to_settle` came.
    settle_from: Time,
    /// By `seq`: one statement cannot record a row twice.
    to_record: BTreeMap<i64, Failure>,
    /// What is being written now, by `seq`.
    recording: Vec<Failure>,
    record_after: Time,
    /// Payloads are being fetched.
    fetching: bool,
    fetch_after: Time,
    awake_out: bool,
    awake_after: Time,
    random: u64,
    totals: Totals,
}

impl Core {
    /// A relay that owns nothing yet. `seed` feeds the jitter of retries.
    pub fn new(config: CoreConfig, seed: u64) -> Self {
        let key_cap = match config.ordering {
            Ordering::Strict => (config.max_in_flight / 32).max(4),
            _ => (config.max_in_flight / 2).max(4),
        };
        Self {
            window: Window::new(config.ordering, key_cap),
            reading: Reading::new(config.has_order, config.far_behind),
            pace: Pace::new(config.poll_interval),
            ownership: Ownership::new(config.lease_ttl, config.careful_rows),
            own_out: None,
            reload: None,
            reload_after: None,
            reloaded_at: Time::ZERO,
            parking: Parking::default(),
            suspected: HashMap::new(),
            lanes: vec![Lane::Idle; config.lanes.max(1)],
            sink_ready: false,
            paused: false,
            leaving: Leaving::No,
            failures_version: None,
            to_settle: Vec::new(),
            to_settle_again: Vec::new(),
            trust: Trust::default(),
            settling: Vec::new(),
            settle_after: Time::ZERO,
            settle_from: Time::ZERO,
            to_record: BTreeMap::new(),
            recording: Vec::new(),
            record_after: Time::ZERO,
            fetching: false,
            fetch_after: Time::ZERO,
            awake_out: false,
            awake_after: Time::ZERO,
            random: seed | 1,
            totals: Totals::default(),
            config,
        }
    }

    /// The replica id, once registered.
    pub fn replica(&self) -> Option<Uuid> {
        self.ownership.replica()
    }

    /// Number of partitions of the outbox.
    pub fn partitions(&self) -> i32 {
        self.ownership.count()
    }

    /// Whether this replica does what one replica does for all.
    pub fn leads(&self) -> bool {
        self.ownership.active(0)
    }

    /// Counters so far.
    pub fn totals(&self) -> Totals {
        Totals {
            discarded_reads: self.reading.discarded(),
            ..self.totals
        }
    }

    /// The present state.
    pub fn gauges(&self, now: Time) -> Gauges {
        Gauges {
            in_flight: self.window.len(),
            in_flight_bytes: self.window.bytes(),
            held_keys: self.window.held(),
            parked_keys: self.parking.parked,
            partitions: self.ownership.held(),
            paused: self.paused,
            proven: self.ownership.proven(now),
        }
    }

    /// The first row that waits in memory, in `seq` order.
    pub fn first_waiting(&self) -> Option<&Record> {
        self.window.first_waiting()
    }

    /// The next command to carry out now, if any. Call until it returns `None`.
    pub fn next(&mut self, now: Time) -> Option<Command> {
        self.leave_in_time(now);
        if let Some(command) = self.next_settle(now) {
            return Some(command);
        }
        if let Some(command) = self.next_record(now) {
            return Some(command);
        }
        if self.own_out.is_none()
            && let Some(step) = self.ownership.next(now)
        {
            self.own_out = Some((step.clone(), now));
            return Some(Command::Own(step));
        }
        if let Some(command) = self.next_reload(now) {
            return Some(command);
        }
        if let Some(command) = self.next_park(now) {
            return Some(command);
        }
        if let Some(command) = self.next_publish(now) {
            return Some(command);
        }
        if let Some(command) = self.next_fetch(now) {
            return Some(command);
        }
        if !self.awake_out
            && !self.is_stopping()
            && now >= self.awake_after
            && self.ownership.held() > 0
            && self.pace.wants_awake(now)
        {
            self.awake_out = true;
            return Some(Command::ExtendAwake(AWAKE_HORIZON));
        }
        self.next_read(now).map(Command::Read)
    }

    /// When to call [`Core::next`] again without any input.
    ///
    /// Once `next(now)` has returned `None`, this lies after `now`: a driver that waits for it never spins. To keep it so,
    /// each part says with one function when it can act (`None`: only an input can change that), and acts by
    /// that same function.
    pub fn deadline(&self, now: Time) -> Time {
        let parts = [
            self.settle_due(),
            self.record_due(now),
            self.own_due(),
            self.reload_due(),
            self.park_due(),
            self.publish_due(now),
            self.fetch_due(now),
            self.read_due(now),
            self.leave_by(),
        ];
        let idle = now + Duration::from_secs(60);
        parts.into_iter().flatten().fold(idle, Time::min)
    }

    /// When ownership has a step to take.
    fn own_due(&self) -> Option<Time> {
        if self.own_out.is_some() {
            return None;
        }
        self.ownership.due()
    }

    /// When failing rows are to be loaded again.
    fn reload_due(&self) -> Option<Time> {
        self.reload_after.filter(|_| self.reload.is_none())
    }

    fn may_publish(&self, now: Time) -> bool {
        self.sink_ready && !self.paused && self.ownership.proven(now)
    }

    /// When a batch can go out.
    fn publish_due(&self, now: Time) -> Option<Time> {
        if !self.may_publish(now) || !self.window.can_send() || self.may_go() == 0 {
            return None;
        }
        self.lanes.iter().filter_map(|lane| lane.free_at()).min()
    }

    fn next_publish(&mut self, now: Time) -> Option<Command> {
        if self.publish_due(now).is_none_or(|due| due > now) {
            return None;
        }
        let free = |lane: &Lane| lane.free_at().is_some_and(|at| at <= now);
        let lane = self.lanes.iter().position(free)?;
        let allowed = self.may_go();
        let mut most = self.config.lane_batch;
        if self.config.ordering == Ordering::Pipelined {
            // One key cannot use several lanes, so it may use one lane for several batches.
            let spread = self.window.ready().min(self.lanes.len()).max(1);
            most = most * self.lanes.len() / spread;
        }
        let (batch, expired) = self.window.take_batch(most.min(allowed), now);
        for item in expired {
            self.finish_expired(now, item);
        }
        if batch.is_empty() {
            return self.next_settle(now);
        }
        for item in &batch {
            self.ownership.departed(item.record.hash);
        }
        self.lanes[lane] = Lane::Busy;
        Some(Command::Publish { lane, batch })
    }

    /// Takes in what happened.
    pub fn handle(&mut self, now: Time, input: Input) {
        match input {
            Input::Wake(reason) => self.pace.wake(now, reason),
            Input::OwnershipChanged => self.ownership.wake(now),
            Input::Tell => self.ownership.tell(),
            Input::Listening(listening) => self.pace.set_listening(now, listening),
            Input::SinkReady(ready) => self.sink_ready = ready,
            Input::Stop => self.stop(now),
            Input::Read(result) => self.read(now, result),
            Input::Fetched(result) => self.fetched(now, result),
            Input::Published { lane, results } => self.published(now, lane, results),
            Input::Settled(result) => self.settled(now, result),
            Input::Recorded(result) => self.recorded(now, result),
            Input::Registered(result) => match (self.step(), result) {
                (Some(_), Ok((replica, count))) => self.ownership.registered(now, replica, count),
                _ => self.ownership.failed(now),
            },
            Input::Ticked(result) => match (self.step(), result) {
                (Some((Step::Tick { beat }, sent_at)), Ok(tick)) => {
                    self.ticked(now, sent_at, beat, &tick);
                }
                _ => self.ownership.failed(now),
            },
            Input::Claimed(result) => match (self.step(), result) {
                (Some(_), Ok(claimed)) => self.ownership.claimed(now, &claimed),
                _ => self.ownership.failed(now),
            },
            Input::Loaded(result) => match (self.step(), result) {
                (Some((Step::Load(partitions), _)), Ok(loaded)) => {
                    self.take_failing(now, &loaded, &partitions, &[]);
                    self.ownership.loaded(&partitions);
                }
                _ => self.ownership.failed(now),
            },
            Input::Reloaded(result) => self.reloaded(now, result),
            Input::Parked(result) => self.parked(now, result),
            Input::Released(result) => match (self.step(), result) {
                (Some((Step::Release(partitions), _)), Ok(())) => {
                    self.ownership.released(now, &partitions);
                }
                _ => self.ownership.failed(now),
            },
            Input::Unregistered(result) => match (self.step(), result) {
                (Some(_), Ok(())) => self.ownership.unregistered(),
                _ => self.ownership.failed(now),
            },
            Input::AwakeExtended(result) => {
                self.awake_out = false;
                match result {
                    Ok(()) => self.pace.awake_for(now, AWAKE_HORIZON),
                    Err(StoreFailed) => self.awake_after = now + STORE_RETRY,
                }
            }
        }
        self.drop_leaving();
        self.follow_source(now);
        self.look_for_parking();
    }

    fn step(&mut self) -> Option<(Step, Time)> {
        self.own_out.take()
    }

    /// Rows of partitions that are to be emptied are of no use in memory.
    fn drop_leaving(&mut self) {
        if self.ownership.take_leaving() {
            let ownership = &self.ownership;
            self.window.drop_waiting(|hash| ownership.is_leaving(hash));
            self.suspected
                .retain(|_, (hash, _)| ownership.active(*hash));
        }
    }

    fn ticked(&mut self, now: Time, sent_at: Time, beat: bool, tick: &Tick) {
        self.ownership.ticked(now, sent_at, beat, tick);
        if tick.paused != self.paused {
            self.paused = tick.paused;
            self.pace.wake(now, WakeReason::Change);
        }
        self.pace.awake_for(now, tick.awake_for);
        self.reading.ticked(now, tick.next_due_in);
        self.parking.parked = tick.parked;
        self.trust_ticked(tick.unsettled);
        if self.failures_version.replace(tick.failures_version) != Some(tick.failures_version) {
            self.reload_after = Some(now);
        }
        let overdue = self
            .window
            .next_retry()
            .is_some_and(|at| at + RETRY_OVERDUE < now);
        let since = now.saturating_sub(self.reloaded_at);
        let more = self.parking.more && since >= STORE_RETRY;
        if overdue && since >= RETRY_OVERDUE || since >= RELOAD_EVERY || more {
            self.reload_after = Some(now);
        }
    }

    fn read(&mut self, now: Time, result: Result<ReadBatch, StoreFailed>) {
        let Ok(batch) = result else {
            self.reading.failed(now, STORE_RETRY);
            self.pace.read_failed(now, STORE_RETRY);
            self.read_ended(false);
            return;
        };
        let discarded = self.reading.discarded();
        let arrivals = self
            .reading
            .finish(now, batch, &mut self.window, &mut self.pace);
        self.read_ended(self.reading.discarded() == discarded);
        if self.reading.take_found_below() {
            // Numbers may have been drawn again: what is known of failed rows may no longer be true.
            self.reload_after = Some(now);
        }
        let way = arrivals.way;
        self.probed(now, &arrivals);
        let mut touched = Vec::new();
        for record in arrivals.rows {
            if !self.ownership.active(record.hash) || self.window.knows(record.seq) {
                continue;
            }
            if record.published {
                self.settle_again(record);
                continue;
            }
            if way == Way::Retry && self.unsettled().is_some() {
                // It would only wait in memory, where room may be scarce.
                self.reading.refused(record.seq);
                continue;
            }
            if way == Way::Retry && self.window.is_held_elsewhere(&record) {
                self.back_from_the_table(&record);
                continue;
            }
            let (hash, keyed) = (record.hash, record.keyed);
            if let Some(caught_up) = &arrivals.caught_up
                && !caught_up.known_to.contains_key(&hash)
            {
                continue;
            }
            if way == Way::CatchUp
                && let Some(left) = record.retry_in
                && left > Duration::ZERO
            {
                let seq = record.seq;
                let hold = match now.checked_add(left) {
                    Some(retry_at) => Hold::Failing { seq, retry_at },
                    None => Hold::Blocked { seq },
                };
                self.window.stop_at(hash, hold);
                if let Hold::Failing { retry_at, .. } = hold {
                    self.reading.retry_at(retry_at);
                }
                continue;
            }
            let item = Item {
                expires_at: record.expires_in.map(|left| now + left),
                dead_letter: None,
                out_of_order: matches!(way, Way::Due | Way::Retry),
                retried: way == Way::Retry || record.crashes > 0 || record.retry_in.is_some(),
                suspect: Suspect::No,
                record,
            };
            self.admit(item, way);
            if keyed {
                touched.push(hash);
            }
        }
        touched.sort_unstable();
        touched.dedup();
        if let Some(caught_up) = arrivals.caught_up {
            self.window.caught_up(&caught_up);
            if caught_up.complete {
                // Main reads left these keys out; above their coverage, rows may have waited for this.
                self.pace.wake(now, WakeReason::Change);
            }
        }
        self.window.bound_keys(touched);
        self.reading.settle_epochs(&mut self.window);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
