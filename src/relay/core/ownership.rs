//! Which partitions this replica owns, and until when it may act on it.
//!
//! Invariants:
//!
//! * **One owner.** The database decides who owns a partition; a claim of a dead owner's partition
//!   succeeds only when that owner's lease is over by the database's clock.
//! * **Self-fencing.** Every tick proves ownership for three quarters of the lease time, counted on this
//!   process's monotonic clock from *before* the tick was sent. Without proof nothing is published.
//! * **A replica alone renews by reading.** A newcomer must first have been visible to everyone
//!   for a whole lease before it may take over, so a read that shows nobody else proves as much
//!   as a heartbeat, and a lone replica writes only a sign of life now and then, for people.
//! * **Clean hand-over.** A partition is released only after nothing of it is in flight or unsettled.
//! * **One configuration.** Replicas that send events to different places never own partitions side by side: the
//!   configuration that was there first keeps them all, and the other takes none while one of the first lives.
//! * **An outage is nobody's death.** When the database was out of reach, or another server answers, leases ran out
//!   or were lost while their owners live. They get a whole lease time to renew before anything is taken from them.

use std::collections::BTreeMap;
use std::time::Duration;

use uuid::Uuid;

use super::{STORE_RETRY, Time};
use crate::store::{Claimed, Partitions, SIGN_OF_LIFE, Tick, partition_of};

/// Share of the lease time for which a tick proves ownership. From there to [`STORED`] is the margin between
/// the old owner's last publish and the new owner's first.
const PROVEN: f64 = 0.75;
/// Share of the lease time that is stored as the lease. The rest is the time for taking over, so that a takeover is over
/// within the lease time.
pub const STORED: f64 = 0.95;
/// Longest wait between two ticks: bounds hand-over and the reaction to `pause`.
const TICK_MAX: Duration = Duration::from_millis(800);

/// How long after the end of another replica's lease to look: the end itself still counts as alive.
const LEASE_OVER: Duration = Duration::from_millis(1);
/// Shortest wait between two ticks that notifications ask for.
const TICK_MIN: Duration = Duration::from_millis(150);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Claimed; its failing rows are not known yet.
    Loading,
    Active,
    /// To be released once nothing of it is in flight.
    Draining,
}

#[derive(Debug, Clone)]
struct Owned {
    phase: Phase,
    /// Rows in flight or not yet settled.
    outstanding: usize,
    /// After an unclean takeover: rows that must still go without a crash before the others need no care.
    careful: usize,
}

/// What ownership wants done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Register this replica.
    Register,
    /// Renew and look, with a heartbeat or by reading only.
    Tick {
        /// Whether to write the heartbeat.
        beat: bool,
    },
    /// Try to take these partitions.
    Claim(Vec<i32>),
    /// Load the failing rows of these partitions.
    Load(Vec<i32>),
    /// Give these partitions back.
    Release(Vec<i32>),
    /// Leave for good.
    Unregister,
}

/// See the module documentation.
#[derive(Debug, Clone)]
pub struct Ownership {
    lease_ttl: Duration,
    /// Rows of an unclean partition that must go without a crash.
    careful_rows: usize,
    replica: Option<Uuid>,
    count: i32,
    owned: BTreeMap<i32, Owned>,
    proof_until: Time,
    last_beat: Option<Time>,
    others: bool,
    next_tick: Time,
    ticked_at: Time,
    /// A step failed: nothing is asked before.
    rest_until: Time,
    claim: Vec<i32>,
    load: Vec<i32>,
    /// What this replica says of itself has changed.
    tell: bool,
    /// Nothing more is claimed.
    closed: bool,
    stopping: bool,
    left: bool,
    /// Partitions were lost or began to drain since somebody asked.
    leaving: bool,
    /// Until then, a lease that ran out says nothing about its owner: the database was out of reach, or another server
    /// answers, which may have lost the last heartbeats.
    outage_until: Time,
    /// The server that answered last.
    server_start: Option<i64>,
}

impl Ownership {
    /// Owns nothing yet.
    pub fn new(lease_ttl: Duration, careful_rows: usize) -> Self {
        Self {
            lease_ttl,
            careful_rows,
            replica: None,
            count: 1,
            owned: BTreeMap::new(),
            proof_until: Time::ZERO,
            last_beat: None,
            others: false,
            next_tick: Time::ZERO,
            ticked_at: Time::ZERO,
            rest_until: Time::ZERO,
            claim: Vec::new(),
            load: Vec::new(),
            tell: false,
            closed: false,
            stopping: false,
            left: false,
            leaving: false,
            outage_until: Time::ZERO,
            server_start: None,
        }
    }

    fn tick_interval(&self) -> Duration {
        (self.lease_ttl / 5).min(TICK_MAX)
    }

    /// The replica id, once registered.
    pub fn replica(&self) -> Option<Uuid> {
        self.replica
    }

    /// Number of partitions of the outbox.
    pub fn count(&self) -> i32 {
        self.count
    }

    /// Partitions held, in whatever phase.
    pub fn held(&self) -> usize {
        self.owned.len()
    }

    /// Whether ownership is proven now.
    pub fn proven(&self, now: Time) -> bool {
        now < self.proof_until
    }

    /// Whether rows with this placement hash may be read and published.
    pub fn active(&self, hash: i64) -> bool {
        self.owned
            .get(&partition_of(hash, self.count))
            .is_some_and(|owned| owned.phase == Phase::Active)
    }

    /// The partitions to read, if any.
    pub fn partitions(&self) -> Option<Partitions> {
        let owned: Vec<i32> = self
            .owned
            .iter()
            .filter(|(_, owned)| owned.phase == Phase::Active)
            .map(|(partition, _)| *partition)
            .collect();
        if owned.is_empty() {
            None
        } else if owned.len() == self.count as usize {
            Some(Partitions::All)
        } else {
            Some(Partitions::Some {
                owned,
                count: self.count,
            })
        }
    }

    /// A row with this placement hash left for the broker, or must be recorded.
    pub fn departed(&mut self, hash: i64) {
        if let Some(owned) = self.owned.get_mut(&partition_of(hash, self.count)) {
            owned.outstanding += 1;
        }
    }

    /// A row with this placement hash is settled, recorded, or back in waiting.
    pub fn arrived(&mut self, hash: i64) {
        if let Some(owned) = self.owned.get_mut(&partition_of(hash, self.count)) {
            owned.outstanding = owned.outstanding.saturating_sub(1);
        }
    }

    /// Whether a newly read row is to be recorded as a suspect before it goes.
    pub fn careful(&self, hash: i64) -> bool {
        let owned = self.owned.get(&partition_of(hash, self.count));
        owned.is_some_and(|owned| owned.careful > 0)
    }

    /// Whether any newly read row may be.
    pub fn is_careful(&self) -> bool {
        self.owned.values().any(|owned| owned.careful > 0)
    }

    /// A suspect went, and was answered: it was not to blame.
    pub fn survived(&mut self, hash: i64) {
        if let Some(owned) = self.owned.get_mut(&partition_of(hash, self.count)) {
            owned.careful = owned.careful.saturating_sub(1);
        }
    }

    /// Whether partitions wait to be given back.
    pub fn is_draining(&self) -> bool {
        self.owned
            .values()
            .any(|owned| owned.phase == Phase::Draining)
    }

    /// Takes nothing more.
    pub fn close(&mut self) {
        self.closed = true;
        self.claim.clear();
    }

    /// Gives everything back as soon as it is settled.
    pub fn stop(&mut self) {
        self.close();
        self.stopping = true;
        self.leaving = true;
        for owned in self.owned.values_mut() {
            owned.phase = Phase::Draining;
        }
    }

    /// Whether partitions were lost or began to drain since the last call.
    pub fn take_leaving(&mut self) -> bool {
        std::mem::take(&mut self.leaving)
    }

    /// Whether this replica has left: nothing owned, not registered.
    pub fn has_left(&self) -> bool {
        self.left
    }

    /// The next step, if one is due. One step at a time; every step is answered by the
    /// method of the same name.
    pub fn next(&self, now: Time) -> Option<Step> {
        if self.due().is_none_or(|due| due > now) {
            return None;
        }
        if self.replica.is_none() {
            return Some(Step::Register);
        }
        let drained = self.drained();
        if self.stopping && self.owned.len() == drained.len() {
            return Some(Step::Unregister);
        }
        if now >= self.next_tick {
            let beat = match self.last_beat {
                None => true,
                Some(last) => {
                    self.tell
                        || now >= last + SIGN_OF_LIFE
                        || self.others && now >= last + self.lease_ttl / 4
                }
            };
            return Some(Step::Tick { beat });
        }
        if !drained.is_empty() {
            return Some(Step::Release(drained));
        }
        if !self.load.is_empty() {
            return Some(Step::Load(self.load.clone()));
        }
        (!self.claim.is_empty()).then(|| Step::Claim(self.claim.clone()))
    }

    /// Partitions that may be given back.
    fn drained(&self) -> Vec<i32> {
        self.owned
            .iter()
            .filter(|(_, owned)| owned.phase == Phase::Draining && owned.outstanding == 0)
            .map(|(partition, _)| *partition)
            .collect()
    }

    /// When [`Ownership::next`] has a step, without further input; `None`: never.
    pub fn due(&self) -> Option<Time> {
        if self.left || self.replica.is_none() && self.closed {
            return None;
        }
        let drained = self.drained().len();
        let pressing = drained > 0
            || self.stopping && self.owned.is_empty()
            || !self.load.is_empty()
            || !self.claim.is_empty();
        let due = if self.replica.is_some() && pressing {
            Time::ZERO
        } else {
            self.next_tick
        };
        Some(due.max(self.rest_until))
    }

    /// What this replica says of itself has changed: the next tick writes it.
    pub fn tell(&mut self) {
        self.tell = true;
    }

    /// Look soon: another replica may have given something back. Pointless for the owner of everything.
    pub fn wake(&mut self, now: Time) {
        if self.owned.len() < self.count as usize {
            self.next_tick = self.next_tick.min(now.max(self.ticked_at + TICK_MIN));
        }
    }

    /// A step failed: try again a little later, whichever it is.
    pub fn failed(&mut self, now: Time) {
        if self.next_tick <= now {
            self.next_tick = now + self.tick_interval();
        }
        self.rest(now);
        if self.closed && self.replica.is_none() {
            self.left = true;
        }
    }

    /// Nothing is asked for a while.
    fn rest(&mut self, now: Time) {
        self.rest_until = now + STORE_RETRY.min(self.tick_interval());
    }

    /// Answer to [`Step::Register`].
    pub fn registered(&mut self, now: Time, replica: Uuid, count: i32) {
        self.replica = Some(replica);
        self.count = count.max(1);
        self.owned.clear();
        self.last_beat = None;
        self.next_tick = now;
    }

    /// Answer to [`Step::Tick`]; returns the partitions lost. `sent_at`: when it was sent.
    pub fn ticked(&mut self, now: Time, sent_at: Time, beat: bool, tick: &Tick) -> Vec<i32> {
        // Ticks that failed for so long failed for the others too, and their leases ran out while they live.
        let silent = now.saturating_sub(self.ticked_at) > self.lease_ttl / 2;
        let server = self.server_start.replace(tick.server_start);
        let replaced = server.is_some_and(|server| server != tick.server_start);
        if replaced || (silent && self.ticked_at > Time::ZERO) {
            self.outage_until = now + self.lease_ttl;
        }
        self.ticked_at = now;
        self.next_tick = now + self.tick_interval();
        self.claim.clear();
        if !tick.registered {
            let lost = self.owned.keys().copied().collect();
            self.leaving = true;
            self.owned.clear();
            self.load.clear();
            self.replica = None;
            self.proof_until = Time::ZERO;
            self.next_tick = now;
            // Should the next registration vanish as well, it must not go on like this without a pause.
            self.rest(now);
            return lost;
        }
        if tick.partitions.len() != self.count as usize && !tick.partitions.is_empty() {
            // With another number of partitions, rows belong elsewhere: what was owned means nothing.
            self.count = tick.partitions.len() as i32;
            self.owned.clear();
            self.load.clear();
            self.leaving = true;
        }
        let me = self.replica;
        let others = || tick.replicas.iter().filter(|row| Some(row.replica) != me);
        self.others = others().next().is_some();
        // The living renew long before their lease is over. So this is early only for the dead, whose
        // partitions are then taken over the moment they may be.
        let over = others()
            .map(|row| row.alive_for)
            .filter(|left| !left.is_zero())
            .min();
        if let Some(left) = over {
            self.next_tick = self.next_tick.min(now + left + LEASE_OVER);
        }
        if beat {
            self.last_beat = Some(sent_at);
            self.tell = false;
        }
        // Alone, reading is proof enough; with others only the heartbeat is.
        if beat || (!self.others && self.last_beat.is_some()) {
            self.proof_until = self
                .proof_until
                .max(sent_at + self.lease_ttl.mul_f64(PROVEN));
        } else if self.others
            && self
                .last_beat
                .is_none_or(|last| now >= last + self.lease_ttl / 4)
        {
            // Somebody came: beat at once.
            self.next_tick = now;
        }

        let mut lost = Vec::new();
        for row in &tick.partitions {
            let mine = row.owner.is_some() && row.owner == me;
            match (mine, self.owned.contains_key(&row.partition)) {
                (false, true) => {
                    self.owned.remove(&row.partition);
                    self.load.retain(|partition| *partition != row.partition);
                    self.leaving = true;
                    lost.push(row.partition);
                }
                // A claim whose answer got lost, with what it said of the last owner. Nobody is accused unheard: if one
                // of the rows does kill its relay, the next claim tells.
                (true, false) => self.adopt(Claimed {
                    partition: row.partition,
                    unclean: false,
                }),
                _ => {}
            }
        }
        if !self.closed {
            self.balance(now, tick);
        }
        lost
    }

    /// Claims or releases towards a fair share: everybody gets the same number, give or take one.
    fn balance(&mut self, now: Time, tick: &Tick) {
        let Some(me) = self.replica else { return };
        if tick.standing_down || tick.stands_aside(me, now < self.outage_until) {
            self.leaving |= !self.owned.is_empty();
            self.load.clear();
            for owned in self.owned.values_mut() {
                owned.phase = Phase::Draining;
            }
            return;
        }
        let mut alive: Vec<Uuid> = tick
            .replicas
            .iter()
            .filter(|row| row.replica == me || row.is_alive() && !row.conflicts)
            .map(|row| row.replica)
            .collect();
        alive.sort_unstable();
        alive.dedup();
        let rank = alive.iter().position(|replica| *replica == me).unwrap_or(0);
        let (count, replicas) = (self.count as usize, alive.len().max(1));
        let share = count / replicas + usize::from(rank < count % replicas);

        let keeping: Vec<i32> = self
            .owned
            .iter()
            .filter(|(_, owned)| owned.phase != Phase::Draining)
            .map(|(partition, _)| *partition)
            .collect();
        if keeping.len() > share {
            self.leaving = true;
            for partition in &keeping[share..] {
                if let Some(owned) = self.owned.get_mut(partition) {
                    owned.phase = Phase::Draining;
                }
                self.load.retain(|loading| loading != partition);
            }
            return;
        }
        let missing = share - keeping.len();
        if missing == 0 {
            return;
        }
        let dead = |owner: Option<Uuid>| match owner {
            None => true,
            Some(owner) => {
                tick.may_take_over
                    && now >= self.outage_until
                    && !tick
                        .replicas
                        .iter()
                        .any(|row| row.replica == owner && row.is_alive())
            }
        };
        // Replicas start at different places, so that they seldom ask for the same partition.
        let start = rank * count / replicas;
        let mut free: Vec<i32> = tick
            .partitions
            .iter()
            .filter(|row| dead(row.owner) && !self.owned.contains_key(&row.partition))
            .map(|row| row.partition)
            .collect();
        free.sort_unstable_by_key(|partition| {
            (*partition as usize + count - start % count.max(1)) % count.max(1)
        });
        free.truncate(missing);
        self.claim = free;
    }

    fn adopt(&mut self, claimed: Claimed) {
        let careful = if claimed.unclean {
            self.careful_rows
        } else {
            0
        };
        self.owned.insert(
            claimed.partition,
            Owned {
                phase: Phase::Loading,
                outstanding: 0,
                careful,
            },
        );
        if !self.load.contains(&claimed.partition) {
            self.load.push(claimed.partition);
        }
    }

    /// Answer to [`Step::Claim`].
    pub fn claimed(&mut self, now: Time, claimed: &[Claimed]) {
        let asked = std::mem::take(&mut self.claim).len();
        for claimed in claimed {
            if !self.owned.contains_key(&claimed.partition) {
                self.adopt(*claimed);
            }
        }
        if self.stopping {
            for owned in self.owned.values_mut() {
                owned.phase = Phase::Draining;
            }
        }
        if claimed.len() < asked {
            self.next_tick = self.next_tick.min(now + self.tick_interval() / 4);
        }
    }

    /// Answer to [`Step::Load`]: these partitions are read from now on. Returns those that are.
    pub fn loaded(&mut self, partitions: &[i32]) -> Vec<i32> {
        self.load
            .retain(|partition| !partitions.contains(partition));
        let mut active = Vec::new();
        for partition in partitions {
            if let Some(owned) = self.owned.get_mut(partition)
                && owned.phase == Phase::Loading
            {
                owned.phase = Phase::Active;
                active.push(*partition);
            }
        }
        active
    }

    /// Answer to [`Step::Release`].
    pub fn released(&mut self, now: Time, partitions: &[i32]) {
        for partition in partitions {
            self.owned.remove(partition);
        }
        self.next_tick = self.next_tick.min(now + self.tick_interval() / 4);
    }

    /// Answer to [`Step::Unregister`].
    pub fn unregistered(&mut self) {
        self.owned.clear();
        self.replica = None;
        self.proof_until = Time::ZERO;
        self.left = true;
    }

    /// Whether this partition is to be emptied: its waiting rows are of no use here.
    pub fn is_leaving(&self, hash: i64) -> bool {
        self.owned
            .get(&partition_of(hash, self.count))
            .is_none_or(|owned| owned.phase == Phase::Draining)
    }
}

#[cfg(test)]
mod tests;
