//! What the relay needs of the database: plain data that goes in and comes out.
//!
//! The types here are shared by the pure core (which decides what to ask) and the Postgres store
//! ([`postgres`], which asks). They carry no behaviour that needs a connection.

pub mod configuration;
pub mod postgres;

use std::time::Duration;

use uuid::Uuid;

use self::configuration::Configuration;
use crate::error::Reason;
use crate::event::Record;

/// Longest time between two heartbeats. A replica that is alone needs no lease, but people want to know that it lives.
pub const SIGN_OF_LIFE: Duration = Duration::from_secs(30);

/// Which partitions a read covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Partitions {
    /// All of them: no filter at all.
    All,
    /// Only these, of `count`. A row's partition is `hash` modulo `count` (floored, so never
    /// negative).
    Some {
        /// Partition numbers, ascending.
        owned: Vec<i32>,
        /// Number of partitions of this outbox.
        count: i32,
    },
}

/// The partition of a placement hash: the floored remainder, so it is never negative.
pub fn partition_of(hash: i64, count: i32) -> i32 {
    hash.rem_euclid(i64::from(count)) as i32
}

/// Numbers in ascending order as text: `0-3, 7, 9-10`; `-` if there are none.
pub fn ranges(numbers: &[i32]) -> String {
    let mut ranges: Vec<(i32, i32)> = Vec::new();
    for &n in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == n => *last = n,
            _ => ranges.push((n, n)),
        }
    }
    let text = |(first, last): &(i32, i32)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    if ranges.is_empty() {
        return "-".to_owned();
    }
    ranges.iter().map(text).collect::<Vec<_>>().join(", ")
}

/// What to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadKind {
    /// Pending rows in `seq` order above a bound; `None` reads from the very beginning.
    /// Answers with [`Holders`], from which the next bound is computed.
    Main {
        /// Exclusive lower bound on `seq`.
        after: Option<i64>,
    },
    /// Pending rows of certain keys above a bound: keys that had been left out of main reads.
    CatchUp {
        /// Exclusive lower bound on `seq`.
        after: i64,
        /// Inclusive upper bound on `seq`: main reads cover what lies above.
        up_to: i64,
        /// Key hashes to read; only these.
        keys: Vec<i64>,
    },
    /// A slice of the table, to find what no bound should ever have hidden.
    Sweep {
        /// Exclusive lower bound.
        after: i64,
        /// Inclusive upper bound.
        up_to: i64,
    },
    /// Rows whose failure record says that they may be tried again now (state `retrying`,
    /// `next_attempt_at` reached), with their attempts and crashes, the longest due first.
    Retries,
    /// Delayed rows (`available_at`) that have become due, earliest first.
    Due,
}

/// One read of the outbox.
///
/// Unsettled rows come by `Retries` alone, as published ones. Failed rows (`retrying`, `blocked`) come by `Retries`, and by `CatchUp` in the order of their key, with
/// [`Record::retry_in`]; dead ones never come. Suspects come like any other row, with their crashes.
/// Rows whose `available_at` lies in the future never come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadRequest {
    /// Which range.
    pub kind: ReadKind,
    /// Which partitions.
    pub partitions: Partitions,
    /// Key hashes to leave out (failing, blocked, or with enough rows waiting).
    pub skip_keys: Vec<i64>,
    /// Rows to leave out, by `seq` (waiting, in flight, or settled too recently).
    pub known: Vec<i64>,
    /// Most rows to return. At least 1.
    pub limit: usize,
    /// Where rows come from, as a main read said it ([`Holders::source`]): nothing comes from elsewhere. Main reads come
    /// from anywhere, and say from where.
    pub source: Option<i64>,
    /// Most bytes to return (see [`Record::weight`]); the first row is always returned.
    pub byte_limit: usize,
    /// Rows with a value of more bytes come without their payload, as [`Content::Left`](crate::event::Content::Left). 0: all of them.
    pub whole: usize,
    /// Rows of more bytes are refused.
    pub max_event: usize,
}

/// Which rows to read the rest of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchRequest {
    /// The rows.
    pub rows: Vec<Settled>,
    /// Where the rows were read from; nothing comes from elsewhere.
    pub source: Option<i64>,
    /// Most bytes to return; the first row is always returned.
    pub byte_limit: usize,
    /// Rows of more bytes are refused.
    pub max_event: usize,
}

/// The answer to a [`FetchRequest`]. A row that is in neither list did not fit: ask again.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FetchBatch {
    /// The rows, whole or refused.
    pub rows: Vec<Record>,
    /// Rows that are no longer pending.
    pub gone: Vec<Settled>,
}

/// A transaction that held the outbox table's insert lock (`ROW EXCLUSIVE` or stronger) right after a
/// read's snapshot was taken: it may still commit rows below the highest `seq` seen.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Holder {
    /// `pg_locks.virtualtransaction`; a prepared transaction's starts with `-1/`.
    pub virtual_transaction: String,
    /// The low 32 bits of its transaction id, once it has one.
    pub xid: Option<u32>,
}

/// Who could still commit late, and what the read's own snapshot took for running.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Holders {
    /// Lock holders, taken *after* the read's snapshot.
    pub holders: Vec<Holder>,
    /// Low 32 bits of every transaction id that was in progress in the read's snapshot
    /// (`pg_snapshot_xip`).
    pub in_progress: Vec<u32>,
    /// `pg_snapshot_xmax`, low 32 bits: this transaction id and later ones had not started.
    pub next_xid: u32,
    /// Tells apart where rows come from. Another value: it is another server, or the same one crashed, or the table was
    /// emptied or made anew. The numbers of rows may be drawn again, for other events.
    pub source: i64,
}

/// The answer to a [`ReadRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReadBatch {
    /// The rows, in the order asked for.
    pub rows: Vec<Record>,
    /// True when a limit was reached, so more rows may be there.
    pub cut: bool,
    /// Only for [`ReadKind::Main`].
    pub holders: Option<Holders>,
}

/// Rows that are finished: confirmed, expired, or discarded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settle {
    /// Rows to mark as published (or delete).
    pub rows: Vec<Settled>,
    /// Those among them that have a failure record to remove, by `seq`.
    pub failed_before: Vec<i64>,
    /// Those among them that expired, by `seq`: it is recorded that they were not published.
    pub expired: Vec<i64>,
    /// They could not be settled before: each is to stand in nobody's way.
    pub careful: bool,
}

/// A row that is pending although it was to be settled: the database refused that, did nothing, or somebody else holds the row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsettled {
    /// The row.
    pub seq: i64,
    /// What the database did or said.
    pub reason: String,
}

/// A finished row. Both `seq` and id must be those of the row in the table: after a failover that lost the last
/// commits, or when the sequence was restarted, the database draws the same numbers again, for other events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// Its place in the order.
    pub seq: i64,
    /// Its event id, as read.
    pub id: String,
}

/// State of a failure record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureState {
    /// Will be tried again at `next_attempt_at`; its key waits.
    Retrying,
    /// Given up; its key waits for an operator.
    Blocked,
    /// Given up; its key went on.
    Dead,
    /// Was in flight when a relay died; removed again when it is published.
    Suspect,
    /// Published, but its row could not be marked or deleted. It is not published again; settling is tried again at
    /// `next_attempt_at`. Its key went on.
    Unsettled,
    /// Over without having been published: an operator gave it up for good.
    Discarded,
    /// Over without having been published: its time had passed.
    Expired,
}

impl FailureState {
    /// Whether the event is over, and nothing waits for it.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Discarded | Self::Expired)
    }

    /// As stored in `outrigger.failures.state`, or in `outrigger.unpublished.state`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retrying => "retrying",
            Self::Blocked => "blocked",
            Self::Dead => "dead",
            Self::Suspect => "suspect",
            Self::Unsettled => "unsettled",
            Self::Discarded => "discarded",
            Self::Expired => "expired",
        }
    }
}

/// A failure to record (insert or update), fenced: stored only while the replica owns the
/// row's partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The row.
    pub seq: i64,
    /// Its placement hash.
    pub hash: i64,
    /// Whether it has an ordering key.
    pub keyed: bool,
    /// Event id, for people.
    pub event_id: String,
    /// Event type, for people.
    pub event_type: String,
    /// Ordering key, for people.
    pub key: Option<String>,
    /// The new state.
    pub state: FailureState,
    /// Attempts counted so far, this one included.
    pub attempts: u32,
    /// Crashes counted so far.
    pub crashes: u32,
    /// What went wrong (`None` for a suspect).
    pub reason: Option<Reason>,
    /// When it may be tried again.
    pub retry_after: Option<Duration>,
}

/// A failing row as loaded when its partition is taken over or the records changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failing {
    /// The row.
    pub seq: i64,
    /// Its placement hash.
    pub hash: i64,
    /// Whether it has an ordering key.
    pub keyed: bool,
    /// `Retrying` or `Blocked` (others hold nobody up and are not loaded).
    pub state: FailureState,
    /// Time until the next attempt, zero if due.
    pub retry_in: Duration,
}

/// What is known of failing rows when partitions are taken over or records changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Loaded {
    /// Failing rows whose keys are not parked, the oldest first.
    pub failing: Vec<Failing>,
    /// There were too many: the keys of the others are parked now.
    pub cut: bool,
    /// Parked keys without a failing row, by placement hash.
    pub released: Vec<i64>,
    /// There are more of those.
    pub more: bool,
}

/// Keys to be parked, and to be unparked, by placement hash. Main, due and sweep reads leave out the rows of a parked key. It is
/// unparked only by the owner of its partition.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Park {
    /// To be parked.
    pub park: Vec<i64>,
    /// To be unparked.
    pub unpark: Vec<i64>,
}

impl Park {
    /// Whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.park.is_empty() && self.unpark.is_empty()
    }
}

/// One partition as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionRow {
    /// Its number.
    pub partition: i32,
    /// Its owner, if any. `None` after a clean release.
    pub owner: Option<Uuid>,
}

/// One replica as stored.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReplicaRow {
    /// Its id, drawn at each start.
    pub replica: Uuid,
    /// Its name, for people (pod name or host and process id).
    pub name: String,
    /// How long its lease still lasts, by the database's clock. Zero: it is over.
    pub alive_for: Duration,
    /// When its configuration came: lower is earlier. A replica that joins living ones of its own configuration has
    /// theirs.
    pub rank: i64,
    /// Whether it sends events elsewhere, or as others, than the replica that looks: they must not publish both.
    pub conflicts: bool,
    /// Its configuration, where that differs in anything from that of the replica that looks.
    pub differs: Option<Configuration>,
}

impl ReplicaRow {
    /// Whether its lease lasts.
    pub fn is_alive(&self) -> bool {
        !self.alive_for.is_zero()
    }
}

/// What a replica says of itself with a heartbeat, for people.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Told {
    /// Why it does not publish; `None`: nothing keeps it from that.
    pub waits_for: Option<String>,
    /// Events published per second since the last heartbeat.
    pub rate: f64,
    /// How long ago the last one was published.
    pub published_ago: Option<Duration>,
}

/// What one ownership tick brings back. Read in a statement of its own *after* the heartbeat committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tick {
    /// When the server that answered started, in microseconds since 1970: another one may have lost the last commits.
    pub server_start: i64,
    /// All partitions.
    pub partitions: Vec<PartitionRow>,
    /// All registered replicas, this one included.
    pub replicas: Vec<ReplicaRow>,
    /// False when this replica's own row has vanished: it must register again and owns nothing.
    pub registered: bool,
    /// True once this replica has been visible to the others for a whole lease time, so that
    /// it may take partitions from a dead owner.
    pub may_take_over: bool,
    /// Paused by an operator.
    pub paused: bool,
    /// The number of partitions is being changed: everybody gives theirs back and takes none.
    pub standing_down: bool,
    /// Changes whenever an operator command touches failure records.
    pub failures_version: i64,
    /// How much longer writers skip the wake-up notification. Zero: they notify.
    pub awake_for: Duration,
    /// Some row of this outbox was published and could not be settled so far.
    pub unsettled: bool,
    /// Parked keys of this outbox, counted up to 100,000.
    pub parked: u64,
    /// Time until the next retry or delayed event falls due in any partition, zero if one is due.
    pub next_due_in: Option<Duration>,
}

impl Tick {
    /// Whether the events are those of a living replica that sends them elsewhere and whose configuration was there
    /// before that of `me`: then `me` takes none. Every replica answers alike, by what is stored.
    ///
    /// `all_live`: no lease that ran out says anything about its owner.
    pub fn stands_aside(&self, me: Uuid, all_live: bool) -> bool {
        let lives = |row: &&ReplicaRow| all_live || row.is_alive();
        let theirs = self.replicas.iter().filter(|row| row.conflicts);
        let Some(theirs) = theirs.filter(lives).map(|row| row.rank).min() else {
            return false;
        };
        let ours = self.replicas.iter().filter(|row| !row.conflicts);
        let ours = ours.filter(|row| row.replica == me || row.is_alive());
        ours.map(|row| row.rank)
            .min()
            .is_none_or(|ours| theirs < ours)
    }
}

/// What happened to a partition that was claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claimed {
    /// The partition.
    pub partition: i32,
    /// True when it was taken from an owner that died soon after taking it, so that one of its rows may
    /// be to blame.
    pub unclean: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_shown_as_ranges() {
        assert_eq!(ranges(&[0, 1, 2, 3, 7, 9, 10]), "0-3, 7, 9-10");
        assert_eq!(ranges(&[]), "-");
    }
}
