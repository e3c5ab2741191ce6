//! The rows in memory: what waits, what is in flight, what must not be read again, and which row
//! may go next.
//!
//! Invariants:
//!
//! * A row is here at most once, from the read that brought it until nobody can read it
//!   again ("gone"); reads leave out everything that is here.
//! * Under [`Ordering::Strict`] a key has at most one row in flight; under
//!   [`Ordering::Pipelined`] all rows of a key in flight are in one batch of one lane, in `seq` order.
//! * A key's rows leave in `seq` order. A key that is *held* takes in no rows from main reads:
//!   rows beyond `last_known` may be missing here, and only a catch-up read (or the retry of
//!   the failing row) may add to it.

mod fetching;
mod holds;
mod parking;
mod suspects;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use super::Time;
use crate::error::Reason;
use crate::event::Record;
use parking::Parked;

/// How strictly events of one key are kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ordering {
    /// One unconfirmed event per key: a rejection cannot let a later event overtake.
    #[default]
    Strict,
    /// Many events of a key in flight, in order; order holds unless the broker rejects one.
    Pipelined,
    /// Keys are ignored.
    None,
}

/// Why a key takes in no rows from main reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// It has enough rows waiting, or rows of it were left out: a catch-up read ends this.
    Lagging,
    /// This row of it failed and waits for its next attempt.
    Failing {
        /// The row.
        seq: i64,
        /// When that attempt is due.
        retry_at: Time,
    },
    /// This row of it was given up and waits for an operator.
    Blocked {
        /// The row.
        seq: i64,
    },
}

impl Hold {
    /// The row that holds the key up, if it is one row.
    fn culprit(self) -> Option<i64> {
        match self {
            Hold::Lagging => None,
            Hold::Failing { seq, .. } | Hold::Blocked { seq } => Some(seq),
        }
    }
}

/// A row on its way, with what the relay knows about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The row.
    pub record: Record,
    /// Set when the row is given up and goes to the dead-letter destination: why.
    pub dead_letter: Option<Reason>,
    /// When it expires.
    pub expires_at: Option<Time>,
    /// Came out of the order of its key (delayed, or back from its failure record): that it is here
    /// says nothing about the rows of its key below it.
    pub out_of_order: bool,
    /// Came from its failure record, which must be removed with it.
    pub retried: bool,
    /// Suspected of crashing relays.
    pub suspect: Suspect,
}

impl Item {
    /// Whether it came because its `available_at` had passed: its age says nothing about how late it is.
    pub fn is_delayed(&self) -> bool {
        self.out_of_order && !self.retried
    }
}

/// Whether a row is under suspicion after a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suspect {
    /// No.
    No,
    /// It waits for its record; one that was recorded at an earlier crash also for its turn to go alone.
    Queued,
    /// Its record is being written; it must not go before that.
    Recording {
        /// Goes alone, so that a crash points at it.
        alone: bool,
    },
    /// Recorded: it may go.
    Recorded {
        /// Goes alone, so that a crash points at it.
        alone: bool,
    },
}

#[derive(Debug)]
enum Slot {
    Waiting(Box<Item>),
    InFlight,
    /// Confirmed, expired or failed; the database does not know yet.
    Finished,
    /// The database knows. Reads that began earlier may still show the row.
    Gone,
}

#[derive(Debug)]
struct Key {
    /// Rows waiting, by `seq`.
    waiting: VecDeque<i64>,
    in_flight: usize,
    hold: Option<Hold>,
    /// While held: every row of the key up to here is in memory, done with, or the one that holds it up.
    last_known: i64,
    /// While held: it has failed rows that are not here. Main reads never bring those, so a catch-up
    /// read must look above their coverage, too.
    has_failed: bool,
    /// Whether the database leaves it out of main reads, too.
    parked: Parked,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Window {
    ordering: Ordering,
    /// Rows of one key that may wait in memory.
    key_cap: usize,
    slots: BTreeMap<i64, Slot>,
    keys: HashMap<i64, Key>,
    ready: BTreeSet<i64>,
    /// Rows that would be ready if their payload were here.
    unfetched: BTreeSet<i64>,
    /// Rows gone, with the read epoch that must have passed before they are forgotten.
    gone: VecDeque<(u64, i64)>,
    bytes: usize,
    held: usize,
    /// Held keys that the database may leave out of main reads, too.
    parked: usize,
    /// The one suspect that is recorded or in flight alone.
    alone: Option<i64>,
    /// Suspects that wait for their turn to go alone.
    accused: BTreeSet<i64>,
    /// Suspects that wait for their record.
    queued: BTreeSet<i64>,
    /// Suspects that are recorded, or about to be, and go with others.
    trial: BTreeSet<i64>,
}

impl Key {
    fn new() -> Self {
        Self {
            waiting: VecDeque::new(),
            in_flight: 0,
            hold: None,
            last_known: i64::MIN,
            has_failed: false,
            parked: Parked::No,
        }
    }

    /// The row that may go once it is free to: the oldest waiting one, unless the key is held up before it.
    fn head(&self) -> Option<i64> {
        let head = *self.waiting.front()?;
        let free = self.in_flight == 0
            && match self.hold {
                None | Some(Hold::Lagging) => true,
                // The failing row, back from its record, and what stood before it.
                Some(hold) => hold.culprit().is_some_and(|culprit| head <= culprit),
            };
        free.then_some(head)
    }

    /// A failed row of the held key that is not here: a catch-up read is to bring it in its place.
    fn missing(&mut self, seq: i64) {
        self.last_known = self.last_known.min(seq.saturating_sub(1));
        self.has_failed = true;
    }
}

impl Window {
    /// An empty window. `key_cap`: rows of one key that may wait in memory.
    pub fn new(ordering: Ordering, key_cap: usize) -> Self {
        Self {
            ordering,
            key_cap: key_cap.max(1),
            slots: BTreeMap::new(),
            keys: HashMap::new(),
            ready: BTreeSet::new(),
            unfetched: BTreeSet::new(),
            gone: VecDeque::new(),
            bytes: 0,
            held: 0,
            parked: 0,
            alone: None,
            accused: BTreeSet::new(),
            queued: BTreeSet::new(),
            trial: BTreeSet::new(),
        }
    }

    /// Rows held in memory or not yet settled.
    pub fn len(&self) -> usize {
        self.slots.len() - self.gone.len()
    }

    /// Bytes of the rows waiting or in flight.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The first row that waits, in `seq` order. Delayed rows aside: they are older than they are late.
    pub fn first_waiting(&self) -> Option<&Record> {
        self.slots.values().find_map(|slot| match slot {
            Slot::Waiting(item) if !item.is_delayed() => Some(&item.record),
            _ => None,
        })
    }

    /// Rows that may go now.
    pub fn ready(&self) -> usize {
        self.ready.len()
    }

    fn ordered(&self, record: &Record) -> bool {
        record.keyed && self.ordering != Ordering::None
    }

    /// The rows a read of `(after, up_to]` must leave out.
    pub fn known(&self, after: Option<i64>, up_to: Option<i64>) -> Vec<i64> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let from = after.map_or(Unbounded, Excluded);
        let to = up_to.map_or(Unbounded, Included);
        if let (Some(after), Some(up_to)) = (after, up_to)
            && after >= up_to
        {
            return Vec::new();
        }
        self.slots.range((from, to)).map(|(seq, _)| *seq).collect()
    }

    /// Rows in flight, or done with and not settled.
    pub fn busy(&self) -> usize {
        let busy = |slot: &&Slot| matches!(slot, Slot::InFlight | Slot::Finished);
        self.slots.values().filter(busy).count()
    }

    /// A row that was published before is to be settled.
    pub fn admit_finished(&mut self, seq: i64) {
        self.slots.insert(seq, Slot::Finished);
    }

    /// Whether this row is in memory, in whatever state.
    pub fn knows(&self, seq: i64) -> bool {
        self.slots.contains_key(&seq)
    }

    /// Whether this row waits, is in flight, or is done with and the database does not know yet.
    fn is_here(&self, seq: i64) -> bool {
        let slot = self.slots.get(&seq);
        slot.is_some_and(|slot| !matches!(slot, Slot::Gone))
    }

    /// Takes in a row from a main read. Refused (false) if it is known already or its key is held.
    pub fn admit(&mut self, item: Item) -> bool {
        if self.ordered(&item.record) && self.hold_of(item.record.hash).is_some() {
            return false;
        }
        self.admit_held(item)
    }

    /// Takes in a delayed row whose time has come, unless its key waits for another row. It goes before what waits of a
    /// lagging key, which may lag for hours.
    pub fn admit_due(&mut self, item: Item) -> bool {
        let hold = self.hold_of(item.record.hash);
        if self.ordered(&item.record) && hold.is_some_and(|hold| hold != Hold::Lagging) {
            return false;
        }
        self.admit_held(item)
    }

    /// Takes in a row that comes back from its failure record. A held key takes back only the row that
    /// holds it up; what follows comes by the catch-up read after it.
    pub fn admit_retry(&mut self, item: Item) -> bool {
        if self.ordered(&item.record)
            && let Some(key) = self.keys.get(&item.record.hash)
        {
            match key.hold {
                None => {}
                Some(hold) if hold.culprit() == Some(item.record.seq) => {}
                Some(_) => return false,
            }
        }
        self.admit_held(item)
    }

    /// Takes in a row from a catch-up read, unless its key was stopped at a row before it.
    pub fn admit_held(&mut self, item: Item) -> bool {
        if self.knows(item.record.seq) {
            return false;
        }
        let culprit = self.hold_of(item.record.hash).and_then(Hold::culprit);
        if self.ordered(&item.record) && culprit.is_some_and(|culprit| culprit < item.record.seq) {
            return false;
        }
        self.insert(item);
        true
    }

    fn insert(&mut self, item: Item) {
        let (seq, hash) = (item.record.seq, item.record.hash);
        let ordered = self.ordered(&item.record);
        self.bytes += item.record.weight();
        if item.suspect == Suspect::Queued {
            self.queue(seq, item.record.crashes);
        }
        self.slots.insert(seq, Slot::Waiting(Box::new(item)));
        if !ordered {
            self.refresh_unordered(seq);
            return;
        }
        let key = self.keys.entry(hash).or_insert_with(Key::new);
        let old_head = key.waiting.front().copied();
        let at = key.waiting.partition_point(|waiting| *waiting < seq);
        key.waiting.insert(at, seq);
        if let Some(old_head) = old_head {
            self.unready(old_head);
        }
        self.refresh(hash);
    }

    fn may_go(&self, seq: i64) -> bool {
        match self.slots.get(&seq) {
            Some(Slot::Waiting(item)) => {
                matches!(item.suspect, Suspect::No | Suspect::Recorded { .. })
            }
            _ => false,
        }
    }

    fn refresh_unordered(&mut self, seq: i64) {
        if self.may_go(seq) {
            self.make_ready(seq);
        }
    }

    /// Puts the key's oldest row into the ready set, if it may go; forgets an idle key.
    fn refresh(&mut self, hash: i64) {
        let Some(key) = self.keys.get(&hash) else {
            return;
        };
        if key.waiting.is_empty() && key.in_flight == 0 && key.hold.is_none() {
            self.keys.remove(&hash);
        } else if let Some(head) = key.head()
            && self.may_go(head)
        {
            self.make_ready(head);
        }
    }

    /// Takes up to `most` rows for one batch, the oldest first. Rows for which `expired` says true are
    /// finished on the way and returned separately.
    pub fn take_batch(&mut self, most: usize, now: Time) -> (Vec<Item>, Vec<Item>) {
        let (mut batch, mut expired) = (Vec::new(), Vec::new());
        let mut touched = Vec::new();
        while batch.len() < most {
            let Some(&seq) = self.ready.iter().find(|seq| self.fits(**seq)) else {
                break;
            };
            self.ready.remove(&seq);
            let Some(Slot::Waiting(item)) = self.slots.insert(seq, Slot::InFlight) else {
                debug_assert!(false, "only waiting rows are ready");
                break;
            };
            let item = *item;
            let alone = item.suspect == (Suspect::Recorded { alone: true });
            let is_expired =
                item.dead_letter.is_none() && item.expires_at.is_some_and(|at| at <= now);
            let hash = item.record.hash;
            let ordered = self.ordered(&item.record);
            if ordered && let Some(key) = self.keys.get_mut(&hash) {
                key.waiting.pop_front();
                if !is_expired {
                    key.in_flight += 1;
                }
            }
            if is_expired {
                self.finish(&item);
                expired.push(item);
                if ordered {
                    self.after_finish(hash, seq);
                }
                continue;
            }
            batch.push(item);
            if ordered && self.ordering == Ordering::Pipelined {
                // The key's next row may ride in the same batch, behind this one.
                touched.push(hash);
                if let Some(&next) = self.keys.get(&hash).and_then(|key| key.waiting.front())
                    && self.keys[&hash]
                        .hold
                        .is_none_or(|hold| hold == Hold::Lagging)
                    && self.may_go(next)
                {
                    self.make_ready(next);
                }
            }
            if alone {
                break;
            }
        }
        for hash in touched {
            if let Some(&head) = self.keys.get(&hash).and_then(|key| key.waiting.front()) {
                self.unready(head);
            }
        }
        (batch, expired)
    }

    fn finish(&mut self, item: &Item) {
        self.forget_suspect(item.record.seq);
        self.bytes -= item.record.weight();
        self.slots.insert(item.record.seq, Slot::Finished);
    }

    /// A key whose row just left: a failing key's retry is over, so it must catch up.
    fn after_finish(&mut self, hash: i64, seq: i64) {
        if let Some(key) = self.keys.get_mut(&hash)
            && key.hold.and_then(Hold::culprit) == Some(seq)
        {
            key.hold = Some(Hold::Lagging);
        }
        self.refresh(hash);
    }

    fn landed(&mut self, item: &Item) {
        if self.ordered(&item.record)
            && let Some(key) = self.keys.get_mut(&item.record.hash)
        {
            key.in_flight -= 1;
        }
    }

    /// A row in flight was confirmed (or given up for good): its key goes on at once.
    pub fn finished(&mut self, item: &Item) {
        self.landed(item);
        self.finish(item);
        if self.ordered(&item.record) {
            self.after_finish(item.record.hash, item.record.seq);
        }
    }

    /// A row in flight failed: its failure is about to be recorded, and with `hold` its key waits.
    /// Rows of the key that wait here are forgotten; they are read again when the key goes on.
    pub fn failed(&mut self, item: &Item, hold: Option<Hold>) {
        self.landed(item);
        self.finish(item);
        if !self.ordered(&item.record) {
            return;
        }
        let hash = item.record.hash;
        match hold {
            Some(hold) => {
                // Writers of one key are serialised: when a row is visible, all before it are.
                let known = if item.out_of_order {
                    i64::MIN
                } else {
                    item.record.seq
                };
                self.restrain(hash, hold, known, 0);
            }
            None => self.after_finish(hash, item.record.seq),
        }
    }

    /// A row in flight was not published, or its fate is unknown: it waits again, in its place.
    pub fn returned(&mut self, item: Item) {
        self.landed(&item);
        self.bytes -= item.record.weight();
        let (hash, seq) = (item.record.hash, item.record.seq);
        // If the key has failed in the meantime, rows after the failed one must not be sent. Rows before it go first.
        if self.ordered(&item.record)
            && let Some(key) = self.keys.get_mut(&hash)
            && key
                .hold
                .and_then(Hold::culprit)
                .is_some_and(|culprit| culprit < seq)
        {
            key.last_known = key.last_known.min(seq.saturating_sub(1));
            key.has_failed |= item.retried;
            self.forget_suspect(seq);
            self.slots.remove(&seq);
            return;
        }
        self.insert(item);
    }

    /// A row in flight came back unpublished, but its partition is no longer ours.
    pub fn abandoned(&mut self, item: &Item) {
        self.landed(item);
        self.forget_suspect(item.record.seq);
        self.bytes -= item.record.weight();
        self.slots.remove(&item.record.seq);
        self.refresh(item.record.hash);
    }

    /// The database knows about a finished row: reads that start from now on do not show it.
    /// `epoch`: the number of the newest read started so far.
    pub fn settled(&mut self, seq: i64, epoch: u64) {
        if let Some(slot @ Slot::Finished) = self.slots.get_mut(&seq) {
            *slot = Slot::Gone;
            self.gone.push_back((epoch, seq));
        }
    }

    /// Forgets rows gone before every read that is still out. `oldest`: the number of the oldest read
    /// still out, or of the next one.
    pub fn forget(&mut self, oldest: u64) {
        while let Some(&(epoch, seq)) = self.gone.front() {
            if epoch >= oldest {
                break;
            }
            self.gone.pop_front();
            self.slots.remove(&seq);
        }
    }

    /// Drops a finished row whose outcome could not be stored because the partition is no longer ours.
    pub fn disown(&mut self, seq: i64) {
        if matches!(self.slots.get(&seq), Some(Slot::Finished)) {
            self.slots.remove(&seq);
        }
    }

    /// Drops waiting rows and idle keys for which `lost` says true (by placement hash).
    pub fn drop_waiting(&mut self, lost: impl Fn(i64) -> bool) {
        let doomed: Vec<i64> = self
            .slots
            .iter()
            .filter(|(_, slot)| matches!(slot, Slot::Waiting(item) if lost(item.record.hash)))
            .map(|(seq, _)| *seq)
            .collect();
        for seq in doomed {
            self.unready(seq);
            self.forget_suspect(seq);
            if let Some(Slot::Waiting(item)) = self.slots.remove(&seq) {
                self.bytes -= item.record.weight();
            }
        }
        let hashes: Vec<i64> = self
            .keys
            .keys()
            .copied()
            .filter(|hash| lost(*hash))
            .collect();
        for hash in hashes {
            if let Some(key) = self.keys.get_mut(&hash) {
                key.waiting.clear();
            }
            self.release(hash);
        }
    }

    /// Whether nothing is waiting, in flight or unsettled.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
