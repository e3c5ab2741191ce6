//! Relays: real cores whose commands reach the model of the database after a while, or never.

use outrigger::event::{Content, Record};
use outrigger::relay::core::ownership::Step;
use outrigger::relay::core::{Command, Core, Input, StoreFailed};
use outrigger::store::{ReadBatch, ReadKind};

use super::{Event, Op, Outage, World, ms};
use crate::Mutation;
use crate::database::{Payload, Time};

/// How often a relay may ask in vain within a second. Of a database that does not answer: reads, settles and records each
/// twice, the steps of ownership a little more often. For rows that are due: once a tick, and once for each such row.
const ASKED_IN_VAIN_MAX: usize = 24;

impl World {
    pub(super) fn start(&mut self, replica: usize) -> Result<(), String> {
        let seed = self.random.next();
        let listening = self.random.chance(70);
        // A restart may be part of a rolling update.
        let identity = self.random.below(self.scenario.configurations);
        let state = &mut self.replicas[replica];
        if state.up {
            return Ok(());
        }
        state.life += 1;
        state.up = true;
        state.stopping = false;
        state.identity = identity;
        state.started = self.now;
        state.frozen_until = self.now;
        state.highest_read = None;
        state.main_read_at = Time::ZERO;
        state.asked_in_vain.clear();
        state.next_run = None;
        state.core = Core::new(self.config.clone(), seed);
        let life = state.life;
        self.log(|| format!("start {replica}"));
        let broker_up = self.broker_up;
        let now = self.now - self.replicas[replica].started;
        self.replicas[replica]
            .core
            .handle(now, Input::Listening(listening));
        self.wake(replica, life, Some(Input::SinkReady(broker_up)))
    }

    pub(super) fn crash(&mut self, replica: usize) {
        if !self.replicas[replica].up {
            return;
        }
        let ttl = self.config.lease_ttl;
        self.fault(ttl);
        self.log(|| format!("crash {replica}"));
        self.crashes += 1;
        let state = &mut self.replicas[replica];
        state.up = false;
        state.life += 1;
        self.after(10_000, 3_000_000, Event::Start(replica));
    }

    pub(super) fn wake(
        &mut self,
        replica: usize,
        life: u32,
        input: Option<Input>,
    ) -> Result<(), String> {
        let state = &mut self.replicas[replica];
        if !state.up || state.life != life {
            return Ok(());
        }
        if state.frozen_until > self.now {
            let at = state.frozen_until;
            let event = match input {
                Some(input) => Event::Deliver {
                    replica,
                    life,
                    input: Box::new(input),
                },
                None => {
                    state.next_run = Some(at);
                    Event::Run { replica, life }
                }
            };
            self.at(at, event);
            return Ok(());
        }
        let now = self.now - state.started;
        if let Some(input) = input {
            state.core.handle(now, input);
        }
        loop {
            let Some(command) = self.replicas[replica].core.next(now) else {
                break;
            };
            if matches!(command, Command::Publish { .. }) {
                self.assert_alone(replica)?;
            }
            self.carry_out(replica, life, command);
        }
        self.waits(replica, now)?;
        let core = &self.replicas[replica].core;
        let in_memory = core.gauges(now).in_flight;
        self.max_in_memory = self.max_in_memory.max(in_memory);
        // Rows back from their failure records may add at most one read.
        if in_memory > self.config.max_in_flight + self.config.batch_size {
            return Err(format!(
                "replica {replica} holds {in_memory} rows, the limit is {}",
                self.config.max_in_flight
            ));
        }
        if core.has_stopped() {
            self.log(|| format!("stopped {replica}"));
            let state = &mut self.replicas[replica];
            state.up = false;
            state.life += 1;
            self.after(10_000, 2_000_000, Event::Start(replica));
            return Ok(());
        }
        let state = &mut self.replicas[replica];
        let at = state.started + state.core.deadline(now);
        if state
            .next_run
            .is_none_or(|next| next > at || next <= self.now)
        {
            state.next_run = Some(at);
            self.at(at, Event::Run { replica, life });
        }
        Ok(())
    }

    /// A relay that has nothing to do costs nothing: it waits for a moment yet to come, and asks little of a database that
    /// does not answer, or has nothing for it.
    fn waits(&mut self, replica: usize, now: Time) -> Result<(), String> {
        let state = &mut self.replicas[replica];
        let due = state.core.deadline(now);
        if due <= now {
            return Err(format!(
                "replica {replica} has nothing to do at {now:?} and waits for {due:?}, which has passed"
            ));
        }
        while let Some(first) = state.asked_in_vain.front()
            && *first + ms(1_000) < self.now
        {
            state.asked_in_vain.pop_front();
        }
        let asked = state.asked_in_vain.len();
        if asked > ASKED_IN_VAIN_MAX {
            return Err(format!(
                "replica {replica} asked the database in vain {asked} times within a second"
            ));
        }
        Ok(())
    }

    /// Nothing is under way from a replica that lives, may publish, and sends events elsewhere.
    fn assert_alone(&mut self, replica: usize) -> Result<(), String> {
        let identity = self.replicas[replica].identity;
        let split = self.batches.values().find(|batch| {
            let other = &self.replicas[batch.replica];
            other.identity != identity
                && other.up
                && other.life == batch.life
                && other.frozen_until <= self.now
                && other.core.gauges(self.now - other.started).proven
        });
        if let Some(batch) = split {
            return Err(format!(
                "events are split: replica {replica} publishes beside {}",
                batch.replica
            ));
        }
        if self
            .publishes
            .replace(identity)
            .is_some_and(|last| last != identity)
        {
            self.handovers += 1;
        }
        Ok(())
    }

    pub(super) fn carry_out(&mut self, replica: usize, life: u32, command: Command) {
        let op = match command {
            Command::Publish { lane, batch } => return self.publish(replica, life, lane, batch),
            Command::Read(mut request) => {
                if self.mutation == Mutation::CursorWithoutSweep
                    && let ReadKind::Main { after } = &mut request.kind
                {
                    *after = self.replicas[replica].highest_read.max(*after);
                }
                if self.mutation == Mutation::ReadBeforeRecording {
                    request.whole = self.config.whole_bytes;
                }
                Op::Read(request)
            }
            Command::Fetch(request) => Op::Fetch(request),
            Command::Settle(settle) => Op::Settle(settle),
            Command::Record(failures) => Op::Record(failures),
            Command::Own(Step::Register) => Op::Register,
            Command::Own(Step::Tick { beat: true }) => Op::Beat,
            Command::Own(Step::Tick { beat: false }) => Op::Look,
            Command::Own(Step::Claim(partitions)) => Op::Claim(partitions),
            Command::Own(Step::Load(partitions)) => Op::Load(partitions),
            Command::Own(Step::Release(partitions)) => Op::Release(partitions),
            Command::Own(Step::Unregister) => Op::Unregister,
            Command::Reload(partitions) => Op::Reload(partitions),
            Command::Park(park) => Op::Park(park),
            Command::ExtendAwake(horizon) => Op::Awake(horizon),
        };
        if !self.reaches(&op) {
            let now = self.now;
            self.replicas[replica].asked_in_vain.push_back(now);
        }
        self.after(50, 3_000, Event::Execute { replica, life, op });
    }

    /// Whether this statement reaches what it needs.
    fn reaches(&self, op: &Op) -> bool {
        match self.outage {
            None => true,
            Some(Outage::Refuses | Outage::Silent) => false,
            Some(Outage::Table) => !matches!(
                op,
                Op::Read(_)
                    | Op::LookAtLocks(_)
                    | Op::Settle(_)
                    | Op::Record(_)
                    | Op::Load(_)
                    | Op::Reload(_)
            ),
            Some(Outage::Leases) => matches!(
                op,
                Op::Read(_)
                    | Op::LookAtLocks(_)
                    | Op::Settle(_)
                    | Op::Load(_)
                    | Op::Reload(_)
                    | Op::Awake(_)
            ),
        }
    }

    /// Executes a statement. A relay that dies meanwhile does not take it back.
    pub(super) fn execute(&mut self, replica: usize, life: u32, op: Op) {
        let now = self.now;
        let up = self.reaches(&op) && !self.random_glitch();
        let id = self.replicas[replica].core.replica();
        let same_life = self.replicas[replica].life == life;
        let Some(id) = id
            .filter(|_| same_life)
            .or_else(|| matches!(op, Op::Register).then(uuid::Uuid::nil))
        else {
            // The process is gone; what it sent may or may not have been executed. Settling is
            // the only statement that changes rows.
            if let (true, Op::Settle(settle)) = (up, op) {
                self.database.settle(&settle);
            }
            return;
        };
        let input = match op {
            Op::Read(request) => {
                let result = up.then(|| self.database.read(&request, now));
                let Some((rows, cut)) = result else {
                    return self.answer(replica, life, Input::Read(Err(StoreFailed)));
                };
                let whole = rows.iter().filter(|row| row.content == Content::Whole);
                if self.database.kills(whole.map(|row| row.seq)) {
                    self.log(|| format!("replica {replica} dies of what it reads"));
                    return self.crash(replica);
                }
                let unreadable = rows
                    .iter()
                    .any(|row| self.database.payload(row.seq) == Some(Payload::Unreadable));
                if unreadable && self.mutation == Mutation::ReadAllOrNothing {
                    return self.answer(replica, life, Input::Read(Err(StoreFailed)));
                }
                if self.mutation == Mutation::CursorWithoutSweep {
                    let high = rows.iter().map(|row| row.seq).max();
                    let state = &mut self.replicas[replica];
                    state.highest_read = state.highest_read.max(high);
                }
                self.log(|| {
                    let seqs: Vec<_> = rows.iter().map(|row| row.seq).collect();
                    format!(
                        "replica {replica} reads {:?} skip {:?} -> {seqs:?} cut {cut}",
                        request.kind, request.skip_keys
                    )
                });
                if rows.is_empty() && matches!(request.kind, ReadKind::Retries | ReadKind::Due) {
                    self.replicas[replica].asked_in_vain.push_back(now);
                }
                let main = matches!(request.kind, ReadKind::Main { .. });
                // From beyond all rows it only tells who answers.
                let brings = request.kind
                    != ReadKind::Main {
                        after: Some(i64::MAX),
                    };
                if main && brings {
                    self.replicas[replica].main_read_at = now;
                } else if matches!(request.kind, ReadKind::Sweep { .. }) {
                    self.note_missed(replica, &rows);
                }
                let holders = main.then(|| self.database.snapshot());
                let batch = Box::new(ReadBatch { rows, cut, holders });
                return self.after(
                    10,
                    4_000,
                    Event::Execute {
                        replica,
                        life,
                        op: Op::LookAtLocks(batch),
                    },
                );
            }
            Op::LookAtLocks(mut batch) => {
                if !up {
                    return self.answer(replica, life, Input::Read(Err(StoreFailed)));
                }
                if let Some(holders) = &mut batch.holders
                    && self.mutation != Mutation::IgnoreLocks
                {
                    holders.holders = self.database.lock_holders();
                }
                Input::Read(Ok(*batch))
            }
            Op::Fetch(request) => {
                self.log(|| format!("replica {replica} fetches {:?}", request.rows));
                if up && self.database.kills(request.rows.iter().map(|row| row.seq)) {
                    self.log(|| format!("replica {replica} dies of what it fetches"));
                    return self.crash(replica);
                }
                let batch = up.then(|| self.database.fetch(&request, now)).flatten();
                Input::Fetched(batch.ok_or(StoreFailed))
            }
            Op::Settle(settle) => {
                let mut unsettled = Vec::new();
                if up {
                    unsettled = self.database.settle(&settle);
                    self.log(|| {
                        let rows = &settle.rows;
                        format!("replica {replica} settles {rows:?}, not: {unsettled:?}")
                    });
                }
                if self.mutation == Mutation::BelieveSettles {
                    unsettled.clear();
                }
                let heard = up && !self.random_glitch();
                Input::Settled(heard.then_some(unsettled).ok_or(StoreFailed))
            }
            Op::Record(failures) => {
                let stored = up.then(|| self.database.record_failures(&failures, id, now));
                self.log(|| format!("replica {replica} records {failures:?}: {stored:?}"));
                let heard = !self.random_glitch();
                Input::Recorded(stored.filter(|_| heard).ok_or(StoreFailed))
            }
            Op::Register => {
                let name = format!("r{replica}");
                let identity = self.replicas[replica].identity;
                let registered = up.then(|| self.database.register(&name, identity, now));
                Input::Registered(registered.ok_or(StoreFailed))
            }
            Op::Beat => {
                if up {
                    self.database.beat(id, now);
                    return self.after(
                        10,
                        2_000,
                        Event::Execute {
                            replica,
                            life,
                            op: Op::Look,
                        },
                    );
                }
                Input::Ticked(Err(StoreFailed))
            }
            Op::Look => {
                let tick = up.then(|| self.database.tick(id, now));
                Input::Ticked(tick.ok_or(StoreFailed))
            }
            Op::Claim(partitions) => {
                let claimed = up.then(|| self.database.claim(id, &partitions, now));
                self.log(|| format!("replica {replica} claims {claimed:?}"));
                let heard = !self.random_glitch();
                Input::Claimed(claimed.filter(|_| heard).ok_or(StoreFailed))
            }
            Op::Load(partitions) => {
                let limits = self.replicas[replica].core.load_limits();
                let loaded = up.then(|| self.database.load_failing(&partitions, limits, now));
                Input::Loaded(loaded.ok_or(StoreFailed))
            }
            Op::Reload(partitions) => {
                let limits = self.replicas[replica].core.load_limits();
                let loaded = up.then(|| self.database.load_failing(&partitions, limits, now));
                Input::Reloaded(loaded.ok_or(StoreFailed))
            }
            Op::Park(park) => {
                let done = up.then(|| self.database.park(&park, id));
                self.log(|| format!("replica {replica} parks {park:?}: {done:?}"));
                self.parked += done.as_ref().map_or(0, |_| park.park.len());
                let heard = !self.random_glitch();
                Input::Parked(done.filter(|_| heard).ok_or(StoreFailed))
            }
            Op::Release(partitions) => {
                if up {
                    self.log(|| format!("replica {replica} releases {partitions:?}"));
                    self.database.release(id, &partitions);
                }
                Input::Released(if up { Ok(()) } else { Err(StoreFailed) })
            }
            Op::Unregister => {
                if up {
                    self.database.unregister(id);
                }
                Input::Unregistered(if up { Ok(()) } else { Err(StoreFailed) })
            }
            Op::Awake(horizon) => {
                if up {
                    self.database.awake_until = now + horizon;
                }
                Input::AwakeExtended(if up { Ok(()) } else { Err(StoreFailed) })
            }
        };
        self.answer(replica, life, input);
    }

    /// Delayed rows come when they are due, those of a transaction assumed to be open with the next main read. Any other
    /// row that a sweep finds was passed over.
    fn note_missed(&mut self, replica: usize, found: &[Record]) {
        let main_read_at = self.replicas[replica].main_read_at;
        if self.scenario.emptied {
            // Numbers drawn again lie below what was read.
            return;
        }
        for record in found {
            let row = self.database.row(record.seq);
            if row.available_at.is_none() && row.committed_at.is_some_and(|at| at <= main_read_at) {
                self.missed.push(record.seq);
            }
        }
    }

    pub(super) fn answer(&mut self, replica: usize, life: u32, input: Input) {
        let input = Box::new(input);
        // Nobody answers: the statement ends when the relay, or the system under it, loses patience.
        let (min, max) = match self.outage {
            Some(Outage::Silent) => (1_000_000, 30_000_000),
            _ => (50, 3_000),
        };
        self.after(
            min,
            max,
            Event::Deliver {
                replica,
                life,
                input,
            },
        );
    }

    /// A connection that breaks, in runs with faults.
    pub(super) fn random_glitch(&mut self) -> bool {
        let glitch = self.scenario.faults && self.now < ms(12_000) && self.random.below(300) == 0;
        if glitch {
            self.faults += 1;
            self.log(|| "a database connection breaks".to_owned());
        }
        glitch
    }
}
