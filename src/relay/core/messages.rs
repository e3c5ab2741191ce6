//! What goes into the core and what comes out.

use std::time::Duration;

use uuid::Uuid;

#[cfg(doc)]
use super::Core;
use super::ownership::Step;
use super::pace::WakeReason;
use super::window::Item;
use crate::error::{ReasonCode, Verdict};
use crate::store::{
    Claimed, Failure, FetchBatch, FetchRequest, Loaded, Park, ReadBatch, ReadRequest, Settle, Tick,
    Unsettled,
};

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
    /// What this replica says of itself has changed.
    Tell,
    /// Notifications arrive (or no longer).
    Listening(bool),
    /// The sink can take events (or cannot).
    SinkReady(bool),
    /// Finish what is in flight, hand over, leave.
    Stop,
    /// Answer to [`Command::Read`].
    Read(Result<ReadBatch, StoreFailed>),
    /// Answer to [`Command::Fetch`].
    Fetched(Result<FetchBatch, StoreFailed>),
    /// Answer to [`Command::Publish`]: every item with what became of it.
    Published {
        /// The lane.
        lane: usize,
        /// Its batch, in order.
        results: Vec<(Item, Verdict)>,
    },
    /// Answer to [`Command::Settle`]: the rows that are pending all the same.
    Settled(Result<Vec<Unsettled>, StoreFailed>),
    /// Answer to [`Command::Record`]: the rows that were stored (the others are no longer ours).
    Recorded(Result<Vec<i64>, StoreFailed>),
    /// Answer to [`Command::Own`] with [`Step::Register`].
    Registered(Result<(Uuid, i32), StoreFailed>),
    /// Answer to [`Step::Tick`].
    Ticked(Result<Tick, StoreFailed>),
    /// Answer to [`Step::Claim`].
    Claimed(Result<Vec<Claimed>, StoreFailed>),
    /// Answer to [`Step::Load`].
    Loaded(Result<Loaded, StoreFailed>),
    /// Answer to [`Command::Reload`].
    Reloaded(Result<Loaded, StoreFailed>),
    /// Answer to [`Command::Park`]: the keys that were parked or unparked; the rest are no longer ours.
    Parked(Result<Vec<i64>, StoreFailed>),
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
    /// Read the rest of rows that are about to go.
    Fetch(FetchRequest),
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
    /// Park keys in the database, or unpark them.
    Park(Park),
    /// Tell writers to skip notifications for this long.
    ExtendAwake(Duration),
}

/// Counts by reason, in the order of [`ReasonCode::ALL`].
pub type ByReason = [u64; ReasonCode::ALL.len()];

/// Counters for people and metrics; they only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Events confirmed by the broker.
    pub published: u64,
    /// Events refused by the broker or unfit to be published; every attempt counts.
    pub refused: ByReason,
    /// Rejections that will be tried again.
    pub retried: u64,
    /// Events given up, their keys go on.
    pub dead: ByReason,
    /// Events given up, their keys wait for an operator.
    pub blocked: ByReason,
    /// Events that expired before they could go.
    pub expired: u64,
    /// Events whose fate was unknown after an outage, to be published again.
    pub unavailable: u64,
    /// Main reads thrown away because a long transaction ended under them.
    pub discarded_reads: u64,
    /// Main reads begun, by what they were begun for, in the order of [`WakeReason::ALL`].
    pub wakes: [u64; WakeReason::ALL.len()],
}

impl Totals {
    /// Events that will not be published any more, for whatever reason.
    pub fn done(&self) -> u64 {
        self.published + self.expired + self.dead.iter().sum::<u64>()
    }
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
    /// Keys of the whole outbox that fail or are blocked and are kept in the database, because they are too many for memory.
    pub parked_keys: u64,
    /// Partitions owned.
    pub partitions: usize,
    /// Whether the relay is paused.
    pub paused: bool,
    /// Whether ownership is proven at the moment.
    pub proven: bool,
}
