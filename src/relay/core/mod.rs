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

pub mod ownership;
pub mod pace;
pub mod reading;
pub mod window;

use std::time::Duration;

use uuid::Uuid;

use crate::error::{Action, Reason, ReasonCode, RetryPolicy, Verdict};
use crate::event::Record;
use crate::relay::bound::FAR_BEHIND;
use crate::store::{
    Claimed, Failing, Failure, FailureState, ReadBatch, ReadRequest, Settle, Tick, partition_of,
};

use ownership::{Ownership, Step};
use pace::{AWAKE_HORIZON, Pace, WakeReason};
use reading::{Reading, Way};
use window::{Hold, Item, Ordering, Suspect, Window};

/// Time since the relay started, on a monotonic clock.
pub type Time = Duration;

/// Crashes with the same row alone in flight after which it is given up as poison.
pub const MAX_CRASHES: u32 = 2;
/// Rows of a partition that are treated as suspects after its owner died soon after taking it.
const CAREFUL_ROWS: usize = 256;
/// Rows settled by one statement.
const SETTLE_MAX: usize = 4_000;
/// Failures recorded by one statement.
const RECORD_MAX: usize = 500;
/// Failing rows loaded when a partition is taken over; also the number of keys that may be held
/// before main reads stop.
pub const HELD_MAX: usize = 10_000;
/// Wait after the database refused or vanished, before the same kind of command is sent again.
const STORE_RETRY: Duration = Duration::from_millis(500);
/// A retry this late means that its record changed unnoticed: load the records again.
const RETRY_OVERDUE: Duration = Duration::from_secs(10);
/// Wait of a lane after a batch that ended without any answer.
const LANE_RETRY: Duration = Duration::from_millis(100);

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
    /// Longest wait between polls where notifications cannot be had.
    pub poll_interval: Duration,
    /// Lease time of partition ownership.
    pub lease_ttl: Duration,
    /// How often and how patiently a rejected event is tried.
    pub retry: RetryPolicy,
    /// See [`FAR_BEHIND`].
    pub far_behind: i64,
    /// Whether given-up events are published to a dead-letter destination.
    pub dead_letter: bool,
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
            poll_interval: Duration::from_millis(250),
            lease_ttl: Duration::from_secs(10),
            retry: RetryPolicy::default(),
            far_behind: FAR_BEHIND,
            dead_letter: false,
        }
    }
}

/// A store command did not succeed; nothing is known about its effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreFailed;

/// What the core is told.
#[derive(Debug)]
pub enum Input {
    /// Look for rows now.
    Wake(WakeReason),
    /// Look at the ownership tables now.
    OwnershipChanged,
    /// Notifications arrive (or no longer).
    Listening(bool),
    /// The sink can take events (or cannot).
    SinkReady(bool),
    /// Finish what is in flight, hand over, leave.
    Stop,
    /// Answer to [`Command::Read`].
    Read(Result<ReadBatch, StoreFailed>),
    /// Answer to [`Command::Publish`]: every item with what became of it.
    Published {
        /// The lane.
        lane: usize,
        /// Its batch, in order.
        results: Vec<(Item, Verdict)>,
    },
    /// Answer to [`Command::Settle`].
    Settled(Result<(), StoreFailed>),
    /// Answer to [`Command::Record`]: the rows that were stored (the others are no longer ours).
    Recorded(Result<Vec<i64>, StoreFailed>),
    /// Answer to [`Command::Own`] with [`Step::Register`].
    Registered(Result<(Uuid, i32), StoreFailed>),
    /// Answer to [`Step::Tick`].
    Ticked(Result<Tick, StoreFailed>),
    /// Answer to [`Step::Claim`].
    Claimed(Result<Vec<Claimed>, StoreFailed>),
    /// Answer to [`Step::Load`].
    Loaded(Result<Vec<Failing>, StoreFailed>),
    /// Answer to [`Command::Reload`].
    Reloaded(Result<Vec<Failing>, StoreFailed>),
    /// Answer to [`Step::Release`].
    Released(Result<(), StoreFailed>),
    /// Answer to [`Step::Unregister`].
    Unregistered(Result<(), StoreFailed>),
    /// Answer to [`Command::ExtendAwake`].
    AwakeExtended(Result<(), StoreFailed>),
}

/// What the core wants done.
#[derive(Debug)]
pub enum Command {
    /// Read rows.
    Read(ReadRequest),
    /// Publish a batch on a lane.
    Publish {
        /// The lane, idle until now.
        lane: usize,
        /// The events, in order. An item with `dead_letter` goes to the dead-letter destination.
        batch: Vec<Item>,
    },
    /// Mark rows as finished.
    Settle(Settle),
    /// Record failures.
    Record(Vec<Failure>),
    /// An ownership step.
    Own(Step),
    /// Load the failing rows of all these partitions again.
    Reload(Vec<i32>),
    /// Tell writers to skip notifications for this long.
    ExtendAwake(Duration),
}

/// Counters for people and metrics; they only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Events confirmed by the broker.
    pub published: u64,
    /// Rejections that will be tried again.
    pub retried: u64,
    /// Events given up.
    pub dead: u64,
    /// Events that expired before they could go.
    pub expired: u64,
    /// Events whose fate was unknown after an outage, to be published again.
    pub unavailable: u64,
    /// Main reads thrown away because a long transaction ended under them.
    pub discarded_reads: u64,
}

/// What is going on right now, for people and metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gauges {
    /// Rows in memory and not yet settled.
    pub in_flight: usize,
    /// Bytes of rows waiting or in flight.
    pub in_flight_bytes: usize,
    /// Keys held back: failing, blocked or far behind.
    pub held_keys: usize,
    /// Partitions owned.
    pub partitions: usize,
    /// Whether the relay is paused.
    pub paused: bool,
    /// Whether ownership is proven at the moment.
    pub proven: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lane {
    Idle,
    Busy,
    /// Idle, but waiting after an outage.
    Resting(Time),
}

/// Failing rows are being read again.
#[derive(Debug)]
struct Reload {
    partitions: Vec<i32>,
    /// Keys whose failure may be missing in the answer.
    failed_since: Vec<i64>,
    ticket: u64,
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
    lanes: Vec<Lane>,
    sink_ready: bool,
    paused: bool,
    stopping: bool,
    failures_version: Option<i64>,
    /// Finished rows to settle: `(seq, hash, has a failure record)`.
    to_settle: Vec<(i64, i64, bool)>,
    settling: Vec<(i64, i64, bool)>,
    settle_after: Time,
    to_record: Vec<Failure>,
    recording: Vec<Failure>,
    record_after: Time,
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
            ownership: Ownership::new(config.lease_ttl, CAREFUL_ROWS),
            own_out: None,
            reload: None,
            reload_after: None,
            lanes: vec![Lane::Idle; config.lanes.max(1)],
            sink_ready: false,
            paused: false,
            stopping: false,
            failures_version: None,
            to_settle: Vec::new(),
            settling: Vec::new(),
            settle_after: Time::ZERO,
            to_record: Vec::new(),
            recording: Vec::new(),
            record_after: Time::ZERO,
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
            partitions: self.ownership.held(),
            paused: self.paused,
            proven: self.ownership.proven(now),
        }
    }

    /// Whether a stop has run its course: everything settled and handed over.
    pub fn has_stopped(&self) -> bool {
        self.stopping
            && self.own_out.is_none()
            && (self.ownership.has_left() || self.ownership.replica().is_none())
    }

    /// The next command to carry out now, if any. Call until it returns `None`.
    pub fn next(&mut self, now: Time) -> Option<Command> {
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
        if let Some(command) = self.next_publish(now) {
            return Some(command);
        }
        if !self.awake_out
            && !self.stopping
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
    pub fn deadline(&self, now: Time) -> Time {
        let mut deadline = now + Duration::from_secs(60);
        if self.own_out.is_none() {
            deadline = deadline.min(self.ownership.due());
        }
        if let Some(reading) = self.read_due(now) {
            deadline = deadline.min(reading);
        }
        if !self.to_settle.is_empty() && self.settling.is_empty() {
            deadline = deadline.min(self.settle_after);
        }
        if !self.to_record.is_empty() && self.recording.is_empty() {
            deadline = deadline.min(self.record_after);
        }
        if let (Some(after), None) = (self.reload_after, &self.reload) {
            deadline = deadline.min(after);
        }
        for lane in &self.lanes {
            if let Lane::Resting(until) = lane {
                deadline = deadline.min(*until);
            }
        }
        deadline
    }

    fn next_settle(&mut self, now: Time) -> Option<Command> {
        if self.to_settle.is_empty() || !self.settling.is_empty() || now < self.settle_after {
            return None;
        }
        let most = self.to_settle.len().min(SETTLE_MAX);
        self.settling = self.to_settle.drain(..most).collect();
        let mut settle = Settle::default();
        for (seq, _, failed_before) in &self.settling {
            settle.seqs.push(*seq);
            if *failed_before {
                settle.failed_before.push(*seq);
            }
        }
        Some(Command::Settle(settle))
    }

    fn next_record(&mut self, now: Time) -> Option<Command> {
        if !self.recording.is_empty() || now < self.record_after {
            return None;
        }
        let quiet = self.lanes.iter().all(|lane| *lane != Lane::Busy);
        if quiet
            && self.may_publish(now)
            && let Some(item) = self.window.next_suspect()
        {
            let (attempts, crashes) = (item.record.attempts, item.record.crashes + 1);
            let failure = failure(item, FailureState::Suspect, attempts, crashes, None, None);
            self.record(failure);
        }
        if self.to_record.is_empty() {
            return None;
        }
        let most = self.to_record.len().min(RECORD_MAX);
        self.recording = self.to_record.drain(..most).collect();
        Some(Command::Record(self.recording.clone()))
    }

    fn next_reload(&mut self, now: Time) -> Option<Command> {
        if self.reload.is_some() || self.reload_after.is_none_or(|after| after > now) {
            return None;
        }
        let partitions: Vec<i32> = (0..self.ownership.count())
            .filter(|partition| self.ownership.active(i64::from(*partition)))
            .collect();
        self.reload_after = None;
        if partitions.is_empty() {
            return None;
        }
        let unrecorded = self.to_record.iter().chain(&self.recording);
        self.reload = Some(Reload {
            partitions: partitions.clone(),
            failed_since: unrecorded.map(|failure| failure.hash).collect(),
            ticket: self.reading.begin(),
        });
        Some(Command::Reload(partitions))
    }

    fn may_publish(&self, now: Time) -> bool {
        self.sink_ready && !self.paused && self.ownership.proven(now)
    }

    fn next_publish(&mut self, now: Time) -> Option<Command> {
        if !self.may_publish(now) || self.window.ready() == 0 {
            return None;
        }
        let lane = self.lanes.iter().position(|lane| match lane {
            Lane::Idle => true,
            Lane::Busy => false,
            Lane::Resting(until) => *until <= now,
        })?;
        let mut most = self.config.lane_batch;
        if self.config.ordering == Ordering::Pipelined {
            // One key cannot use several lanes, so it may use one lane for several batches.
            let spread = self.window.ready().min(self.lanes.len()).max(1);
            most = most * self.lanes.len() / spread;
        }
        let (batch, expired) = self.window.take_batch(most, now);
        for item in expired {
            self.totals.expired += 1;
            self.ownership.departed(item.record.hash);
            self.to_settle
                .push((item.record.seq, item.record.hash, item.retried));
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
            Input::Listening(listening) => self.pace.set_listening(now, listening),
            Input::SinkReady(ready) => self.sink_ready = ready,
            Input::Stop => self.stop(),
            Input::Read(result) => self.read(now, result),
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
                (Some((Step::Load(partitions), _)), Ok(failing)) => {
                    self.take_failing(now, &failing, &partitions, &[]);
                    self.ownership.loaded(&partitions);
                }
                _ => self.ownership.failed(now),
            },
            Input::Reloaded(result) => self.reloaded(now, result),
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
    }

    fn step(&mut self) -> Option<(Step, Time)> {
        self.own_out.take()
    }

    fn stop(&mut self) {
        self.stopping = true;
        self.ownership.stop();
    }

    /// Rows of partitions that are to be emptied are of no use in memory.
    fn drop_leaving(&mut self) {
        if self.ownership.take_leaving() {
            let ownership = &self.ownership;
            self.window.drop_waiting(|hash| ownership.is_leaving(hash));
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
        if self.failures_version.replace(tick.failures_version) != Some(tick.failures_version) {
            self.reload_after = Some(now);
        }
        if self
            .window
            .next_retry()
            .is_some_and(|at| at + RETRY_OVERDUE < now)
        {
            self.reload_after = Some(now);
        }
    }

    fn reloaded(&mut self, now: Time, result: Result<Vec<Failing>, StoreFailed>) {
        let Some(reload) = self.reload.take() else {
            return;
        };
        self.reading.end(reload.ticket);
        match result {
            Ok(failing) => {
                self.take_failing(now, &failing, &reload.partitions, &reload.failed_since);
            }
            Err(StoreFailed) => self.reload_after = Some(now + STORE_RETRY),
        }
    }

    /// Takes in the failing rows of `partitions`. Keys in `newer` failed after they were read.
    fn take_failing(&mut self, now: Time, failing: &[Failing], partitions: &[i32], newer: &[i64]) {
        let rows: Vec<(i64, i64)> = failing
            .iter()
            .filter(|failing| failing.keyed && !newer.contains(&failing.hash))
            .map(|failing| (failing.hash, failing.seq))
            .collect();
        let count = self.ownership.count();
        self.window.reload_failing(&rows, |hash| {
            partitions.contains(&partition_of(hash, count)) && !newer.contains(&hash)
        });
        if let Some(soonest) = failing
            .iter()
            .filter(|failing| failing.state != FailureState::Blocked)
            .map(|failing| failing.retry_in)
            .min()
        {
            self.reading.retry_at(now + soonest);
        }
        // New partitions, or somebody changed rows below the bound: look from the beginning.
        self.reading.restart();
        self.pace.wake(now, WakeReason::Change);
    }

    fn read(&mut self, now: Time, result: Result<ReadBatch, StoreFailed>) {
        let Ok(batch) = result else {
            self.reading.failed(now, STORE_RETRY);
            self.pace.read_failed(now, STORE_RETRY);
            return;
        };
        let arrivals = self
            .reading
            .finish(now, batch, &mut self.window, &mut self.pace);
        let way = arrivals.way;
        let mut touched = Vec::new();
        for record in arrivals.rows {
            if !self.ownership.active(record.hash) || self.window.knows(record.seq) {
                continue;
            }
            let (hash, keyed) = (record.hash, record.keyed);
            if let Some((keys, _)) = &arrivals.caught_up
                && !keys.contains(&hash)
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
        if let Some((keys, ended_at)) = arrivals.caught_up {
            self.window.caught_up(&keys, ended_at);
        }
        self.window.bound_keys(touched);
        self.reading.settle_epochs(&mut self.window);
    }

    /// Takes in one row, with care if its partition was left by a crash.
    ///
    /// Who crashed the last owner is unknown, so the first rows after such a takeover are recorded as
    /// suspects before they go. If that relay dies too, each of them goes alone, its record
    /// counting that it does: a row alone in flight at [`MAX_CRASHES`] crashes is poison.
    fn admit(&mut self, mut item: Item, way: Way) {
        let careful = self.ownership.careful(item.record.hash);
        let (seq, crashes) = (item.record.seq, item.record.crashes);
        let mut first = None;
        if careful && crashes > MAX_CRASHES {
            item.suspect = Suspect::Recording { alone: false };
            first = Some((FailureState::Dead, crashes));
        } else if careful && crashes > 0 {
            item.suspect = Suspect::Queued;
        } else if careful {
            item.suspect = Suspect::Recording { alone: false };
            first = Some((FailureState::Suspect, 1));
        }
        let failure = first.map(|(state, crashes)| {
            let reason = (state == FailureState::Dead).then(|| {
                Reason::new(
                    ReasonCode::Poison,
                    format!(
                        "{MAX_CRASHES} relays in a row died while it alone was in flight; \
                         look for crashes of the relay before you retry it"
                    ),
                )
            });
            failure(&item, state, item.record.attempts, crashes, reason, None)
        });
        let admitted = match way {
            Way::Ordinary | Way::Due => self.window.admit(item),
            Way::CatchUp => self.window.admit_held(item),
            Way::Retry => self.window.admit_retry(item),
        };
        if !admitted && way == Way::Retry {
            self.reading.refused(seq);
        }
        if admitted && let Some(failure) = failure {
            self.record(failure);
        }
    }

    fn published(&mut self, now: Time, lane: usize, results: Vec<(Item, Verdict)>) {
        let answered = results
            .iter()
            .any(|(_, verdict)| *verdict != Verdict::Unavailable);
        self.lanes[lane] = if answered {
            Lane::Idle
        } else {
            Lane::Resting(now + LANE_RETRY)
        };
        for (item, verdict) in results {
            match (verdict, item.dead_letter.clone()) {
                (Verdict::Unavailable, _) => {
                    self.totals.unavailable += 1;
                    self.ownership.arrived(item.record.hash);
                    if self.ownership.active(item.record.hash) {
                        self.window.returned(item);
                    } else {
                        self.window.abandoned(&item);
                    }
                }
                (Verdict::Confirmed, None) => {
                    self.totals.published += 1;
                    self.window.finished(&item);
                    self.to_settle
                        .push((item.record.seq, item.record.hash, item.retried));
                }
                (Verdict::Confirmed, Some(reason)) => self.give_up(item, reason),
                (Verdict::Rejected(refusal) | Verdict::Impossible(refusal), Some(reason)) => {
                    let detail = format!(
                        "{}; its dead letter was refused too: {refusal}",
                        reason.detail
                    );
                    self.give_up(item, Reason::new(reason.code, detail));
                }
                (Verdict::Impossible(reason), None) => self.exhausted(item, reason, Action::Dead),
                (Verdict::Rejected(reason), None) => self.rejected(now, item, reason),
            }
        }
    }

    fn rejected(&mut self, now: Time, mut item: Item, reason: Reason) {
        item.record.attempts += 1;
        // The broker answered, so this row does not crash relays.
        item.record.crashes = 0;
        let jitter = self.jitter();
        match self.config.retry.decide(item.record.attempts, jitter) {
            Action::Retry { after } => {
                self.totals.retried += 1;
                let hold = Hold::Failing {
                    seq: item.record.seq,
                    retry_at: now + after,
                };
                self.window.failed(&item, Some(hold));
                self.reading.retry_at(now + after);
                self.record(failure(
                    &item,
                    FailureState::Retrying,
                    item.record.attempts,
                    item.record.crashes,
                    Some(reason),
                    Some(after),
                ));
            }
            end => self.exhausted(item, reason, end),
        }
    }

    /// No attempt is left (or none can help).
    fn exhausted(&mut self, mut item: Item, reason: Reason, end: Action) {
        if end == Action::Block {
            self.totals.dead += 1;
            let hold = Hold::Blocked {
                seq: item.record.seq,
            };
            self.window.failed(&item, Some(hold));
            self.record(failure(
                &item,
                FailureState::Blocked,
                item.record.attempts,
                item.record.crashes,
                Some(reason),
                None,
            ));
        } else if self.config.dead_letter && self.ownership.active(item.record.hash) {
            // It goes once more, to the dead-letter destination, before its key goes on.
            item.dead_letter = Some(reason);
            item.retried = item.retried || item.record.attempts > 1;
            self.ownership.arrived(item.record.hash);
            self.window.returned(item);
        } else {
            self.give_up(item, reason);
        }
    }

    fn give_up(&mut self, item: Item, reason: Reason) {
        self.totals.dead += 1;
        self.window.failed(&item, None);
        self.record(failure(
            &item,
            FailureState::Dead,
            item.record.attempts.max(1),
            item.record.crashes,
            Some(reason),
            None,
        ));
    }

    fn record(&mut self, failure: Failure) {
        if let Some(reload) = &mut self.reload {
            reload.failed_since.push(failure.hash);
        }
        self.to_record.push(failure);
    }

    fn settled(&mut self, now: Time, result: Result<(), StoreFailed>) {
        let rows = std::mem::take(&mut self.settling);
        match result {
            Ok(()) => {
                let epoch = self.reading.epoch();
                for (seq, hash, _) in rows {
                    self.window.settled(seq, epoch);
                    self.ownership.arrived(hash);
                }
                self.reading.settle_epochs(&mut self.window);
            }
            Err(StoreFailed) => {
                self.settle_after = now + STORE_RETRY;
                self.to_settle.splice(0..0, rows);
            }
        }
    }

    fn recorded(&mut self, now: Time, result: Result<Vec<i64>, StoreFailed>) {
        let failures = std::mem::take(&mut self.recording);
        let Ok(stored) = result else {
            self.record_after = now + STORE_RETRY;
            self.to_record.splice(0..0, failures);
            return;
        };
        let stored: std::collections::HashSet<i64> = stored.into_iter().collect();
        let epoch = self.reading.epoch();
        for failure in failures {
            let ours = stored.contains(&failure.seq);
            if failure.state == FailureState::Suspect {
                if ours {
                    self.window.cleared(failure.seq, failure.crashes);
                } else {
                    self.window.drop_row(failure.seq);
                }
                continue;
            }
            if self.window.give_up_waiting(failure.seq) {
                // A suspect given up before it went out.
                self.totals.dead += 1;
            } else {
                self.ownership.arrived(failure.hash);
            }
            if ours {
                self.window.settled(failure.seq, epoch);
            } else {
                self.window.disown(failure.seq);
            }
        }
        self.reading.settle_epochs(&mut self.window);
    }

    fn jitter(&mut self) -> f64 {
        // xorshift64*: good enough to spread retries, and the core stays reproducible by its seed.
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let bits = self.random.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11;
        bits as f64 / (1u64 << 53) as f64
    }
}

fn failure(
    item: &Item,
    state: FailureState,
    attempts: u32,
    crashes: u32,
    reason: Option<Reason>,
    retry_after: Option<Duration>,
) -> Failure {
    let Record {
        seq,
        hash,
        keyed,
        id,
        event_type,
        key,
        ..
    } = &item.record;
    Failure {
        seq: *seq,
        hash: *hash,
        keyed: *keyed,
        event_id: id.clone(),
        event_type: event_type.clone(),
        key: key.clone(),
        state,
        attempts,
        crashes,
        reason,
        retry_after,
    }
}
