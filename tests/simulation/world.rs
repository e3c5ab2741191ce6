//! One simulated run: writers, a database, a broker, several relays, and what goes wrong.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::time::Duration;

use outrigger::error::{OnExhausted, Reason, ReasonCode, RetryPolicy, Verdict};
use outrigger::relay::core::ownership::Step;
use outrigger::relay::core::pace::WakeReason;
use outrigger::relay::core::window::{Item, Ordering};
use outrigger::relay::core::{Command, Core, CoreConfig, Input, MAX_CRASHES, StoreFailed};
use outrigger::store::{FailureState, ReadBatch, ReadKind, ReadRequest, Settle};

use crate::Mutation;
use crate::database::{Database, Time};
use crate::random::Random;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// What may go wrong in this run.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// Crashes, freezes, outages.
    pub faults: bool,
    /// The broker refuses some events.
    pub rejections: bool,
    pub ordering: Ordering,
    pub replicas: usize,
    /// Share of transactions that stay open for seconds, in percent.
    pub long_percent: u64,
}

impl Scenario {
    fn draw(random: &mut Random) -> Self {
        let ordering = match random.below(8) {
            0 => Ordering::Pipelined,
            1 => Ordering::None,
            _ => Ordering::Strict,
        };
        Self {
            faults: random.chance(60),
            rejections: random.chance(50),
            ordering,
            replicas: random.between(1, 3) as usize,
            long_percent: random.below(20),
        }
    }
}

/// How the broker treats one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Accept,
    /// Refuses the first so many attempts.
    RejectFirst(u32),
    /// Refuses it for ever.
    RejectAlways,
    /// Returns it: acknowledged, but routed nowhere.
    Unroutable,
    /// Refused before it is sent.
    Impossible,
    /// Kills the relay that encodes it.
    Poison,
}

#[derive(Debug)]
enum Event {
    Writer(usize),
    /// Let the core look at the clock.
    Run {
        replica: usize,
        life: u32,
    },
    /// A store command reaches the database.
    Execute {
        replica: usize,
        life: u32,
        op: Op,
    },
    /// The replica notices the state the broker is in.
    BrokerNews {
        replica: usize,
        life: u32,
    },
    Deliver {
        replica: usize,
        life: u32,
        input: Box<Input>,
    },
    /// A message reaches the broker.
    Arrive {
        batch: u64,
        index: usize,
    },
    BatchDone {
        batch: u64,
    },
    Crash(usize),
    Start(usize),
    Stop(usize),
    Freeze(usize, Duration),
    BrokerDown(Duration),
    BrokerUp,
    DatabaseDown(Duration),
    DatabaseUp,
    Operator,
}

#[derive(Debug)]
enum Op {
    Read(ReadRequest),
    LookAtLocks(Box<ReadBatch>),
    Settle(Settle),
    Record(Vec<outrigger::store::Failure>),
    Register,
    Beat,
    Look,
    Claim(Vec<i32>),
    Load(Vec<i32>),
    Reload(Vec<i32>),
    Release(Vec<i32>),
    Unregister,
    Awake(Duration),
}

struct Replica {
    core: Core,
    life: u32,
    started: Time,
    up: bool,
    stopping: bool,
    frozen_until: Time,
    /// When the core is looked at next without any input.
    next_run: Option<Time>,
    /// For the broken variant.
    highest_read: Option<i64>,
}

struct Batch {
    replica: usize,
    life: u32,
    lane: usize,
    items: Vec<Item>,
    verdicts: Vec<Verdict>,
    epoch: u32,
}

#[derive(Debug, Clone)]
enum Writer {
    Idle,
    Locking {
        keys: Vec<Option<u64>>,
        txn: u64,
    },
    Writing {
        keys: Vec<Option<u64>>,
        txn: u64,
        left: VecDeque<Option<u64>>,
    },
    Open {
        keys: Vec<Option<u64>>,
        txn: u64,
    },
    Lingering {
        txn: u64,
    },
}

struct Scheduled {
    at: Time,
    number: u64,
    event: Event,
}
impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// See the module documentation.
pub struct World {
    now: Time,
    random: Random,
    scenario: Scenario,
    config: CoreConfig,
    mutation: Mutation,
    queue: BinaryHeap<Reverse<Scheduled>>,
    next_event: u64,
    database: Database,
    database_up: bool,
    broker_up: bool,
    broker_epoch: u32,
    replicas: Vec<Replica>,
    writers: Vec<Writer>,
    transactions_left: usize,
    locked: HashMap<u64, usize>,
    batches: BTreeMap<u64, Batch>,
    next_batch: u64,
    fates: HashMap<i64, Fate>,
    refusals: HashMap<i64, u32>,
    crashes: u32,
    /// Every acceptance by the broker: row and time.
    pub deliveries: Vec<(i64, Time)>,
    faults: usize,
    quiet_from: Time,
    verbose: bool,
    max_in_memory: usize,
}

/// What a run showed.
#[derive(Debug, Default, Clone, Copy)]
pub struct Outcome {
    pub committed: usize,
    pub delivered: usize,
    pub duplicates: usize,
    pub dead: usize,
    pub faults: usize,
}

impl World {
    pub fn new(seed: u64, mutation: Mutation, verbose: bool) -> Self {
        let mut random = Random::new(seed);
        let mut scenario = Scenario::draw(&mut random);
        mutation.adjust(&mut scenario);
        let max_in_flight = random.between(8, 48) as usize;
        let config = CoreConfig {
            ordering: scenario.ordering,
            has_order: true,
            lanes: random.between(1, 3) as usize,
            lane_batch: random.between(1, 6) as usize,
            batch_size: random.between(2, 12) as usize,
            max_in_flight,
            max_in_flight_bytes: 1 << 20,
            poll_interval: ms(random.between(50, 300)),
            lease_ttl: ms(random.between(3_000, 10_000)),
            retry: RetryPolicy {
                max_attempts: 3,
                backoff_initial: ms(200),
                backoff_max: ms(1_000),
                on_exhausted: OnExhausted::Dead,
            },
            far_behind: [2, 20, 5_000][random.below(3) as usize],
            dead_letter: random.chance(30),
        };
        let partitions = random.between(1, 6) as i32;
        let database = Database::new(partitions, config.lease_ttl, mutation);
        let writers = random.between(1, 6) as usize;
        let mut world = Self {
            now: Time::ZERO,
            transactions_left: random.between(20, 120) as usize,
            random,
            scenario,
            config,
            mutation,
            queue: BinaryHeap::new(),
            next_event: 0,
            database,
            database_up: true,
            broker_up: true,
            broker_epoch: 0,
            replicas: Vec::new(),
            writers: vec![Writer::Idle; writers],
            locked: HashMap::new(),
            batches: BTreeMap::new(),
            next_batch: 0,
            fates: HashMap::new(),
            refusals: HashMap::new(),
            crashes: 0,
            deliveries: Vec::new(),
            faults: 0,
            quiet_from: Time::ZERO,
            verbose,
            max_in_memory: 0,
        };
        world.populate();
        world
    }

    fn populate(&mut self) {
        for replica in 0..self.scenario.replicas {
            let core = Core::new(self.config.clone(), 1);
            self.replicas.push(Replica {
                core,
                life: 0,
                started: Time::ZERO,
                up: false,
                stopping: false,
                frozen_until: Time::ZERO,
                next_run: None,
                highest_read: None,
            });
            let at = ms(self.random.below(500));
            self.at(at, Event::Start(replica));
        }
        for writer in 0..self.writers.len() {
            let at = ms(self.random.below(2_000));
            self.at(at, Event::Writer(writer));
        }
        let span = 12_000;
        if self.scenario.faults {
            for _ in 0..self.random.between(1, 5) {
                let at = ms(self.random.below(span));
                let replica = self.random.below(self.scenario.replicas as u64) as usize;
                let event = match self.random.below(5) {
                    0 | 1 => Event::Crash(replica),
                    2 => Event::Freeze(replica, ms(self.random.between(100, 15_000))),
                    3 => Event::BrokerDown(ms(self.random.between(10, 5_000))),
                    _ => Event::DatabaseDown(ms(self.random.between(10, 8_000))),
                };
                self.at(at, event);
            }
        }
        if self.random.chance(40) {
            let at = ms(self.random.below(span));
            let replica = self.random.below(self.scenario.replicas as u64) as usize;
            self.at(at, Event::Stop(replica));
        }
        if self.random.chance(20) {
            let at = ms(self.random.below(span));
            self.at(at, Event::Operator);
        }
    }

    fn at(&mut self, at: Time, event: Event) {
        self.next_event += 1;
        self.queue.push(Reverse(Scheduled {
            at,
            number: self.next_event,
            event,
        }));
    }

    fn after(&mut self, min_us: u64, max_us: u64, event: Event) {
        let wait = Duration::from_micros(self.random.between(min_us, max_us));
        self.at(self.now + wait, event);
    }

    fn log(&self, text: impl FnOnce() -> String) {
        if self.verbose {
            println!("{:>10.3} {}", self.now.as_secs_f64() * 1e3, text());
        }
    }

    /// Runs until everything has come to rest and checks the promises.
    pub fn run(mut self) -> Result<Outcome, String> {
        let deadline = ms(240_000);
        while let Some(Reverse(scheduled)) = self.queue.pop() {
            self.now = scheduled.at;
            if self.now > deadline {
                for replica in &self.replicas {
                    self.log(|| format!("{:?}", replica.core));
                }
                return Err(format!("did not come to rest: {}", self.describe()));
            }
            self.step(scheduled.event)?;
            if self.at_rest() {
                break;
            }
        }
        self.judge()
    }

    fn at_rest(&self) -> bool {
        self.transactions_left == 0
            && self.database.txns.is_empty()
            && self.batches.is_empty()
            && self.now > ms(14_000)
            && self.database.pending.iter().all(|seq| {
                self.database
                    .failures
                    .get(seq)
                    .is_some_and(|row| row.failure.state == FailureState::Dead)
            })
    }

    fn describe(&self) -> String {
        let stuck: Vec<String> = self
            .database
            .pending
            .iter()
            .filter(|seq| {
                let failure = self.database.failures.get(seq);
                failure.is_none_or(|row| row.failure.state != FailureState::Dead)
            })
            .take(5)
            .map(|seq| {
                let failure = self.database.failures.get(seq).map(|row| row.failure.state);
                format!(
                    "{:?} {failure:?} {:?}",
                    self.database.rows[*seq as usize - 1],
                    self.fates.get(seq)
                )
            })
            .collect();
        format!(
            "{:?}, owners {:?}, pending {}: {stuck:?}",
            self.scenario,
            self.database.owners,
            self.database.pending.len()
        )
    }

    fn step(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Writer(writer) => self.write(writer),
            Event::Run { replica, life } => {
                let state = &mut self.replicas[replica];
                if state.life == life && state.next_run == Some(self.now) {
                    state.next_run = None;
                    self.wake(replica, life, None)?;
                }
            }
            Event::Deliver {
                replica,
                life,
                input,
            } => self.wake(replica, life, Some(*input))?,
            Event::BrokerNews { replica, life } => {
                let thaw = self.replicas[replica].frozen_until;
                if thaw > self.now {
                    self.at(thaw, Event::BrokerNews { replica, life });
                } else {
                    self.wake(replica, life, Some(Input::SinkReady(self.broker_up)))?;
                }
            }
            Event::Execute { replica, life, op } => self.execute(replica, life, op),
            Event::Arrive { batch, index } => self.arrive(batch, index)?,
            Event::BatchDone { batch } => self.batch_done(batch),
            Event::Crash(replica) => self.crash(replica),
            Event::Start(replica) => self.start(replica)?,
            Event::Stop(replica) => {
                if self.replicas[replica].up && !self.replicas[replica].stopping {
                    self.log(|| format!("stop {replica}"));
                    self.replicas[replica].stopping = true;
                    let life = self.replicas[replica].life;
                    self.wake(replica, life, Some(Input::Stop))?;
                }
            }
            Event::Freeze(replica, wait) => {
                self.fault(wait);
                self.log(|| format!("freeze {replica} for {wait:?}"));
                self.replicas[replica].frozen_until = self.now + wait;
            }
            Event::BrokerDown(wait) => {
                self.fault(wait);
                self.log(|| format!("broker down for {wait:?}"));
                self.broker_up = false;
                self.broker_epoch += 1;
                self.at(self.now + wait, Event::BrokerUp);
                self.broker_news();
            }
            Event::BrokerUp => {
                self.broker_up = true;
                self.broker_news();
            }
            Event::DatabaseDown(wait) => {
                self.fault(wait);
                self.log(|| format!("database down for {wait:?}"));
                self.database_up = false;
                self.at(self.now + wait, Event::DatabaseUp);
            }
            Event::DatabaseUp => self.database_up = true,
            Event::Operator => {
                self.log(|| "operator touches the failure records".to_owned());
                self.database.failures_version += 1;
            }
        }
        Ok(())
    }

    fn fault(&mut self, wait: Duration) {
        self.faults += 1;
        self.quiet_from = self.quiet_from.max(self.now + wait);
    }

    fn broker_news(&mut self) {
        for replica in 0..self.replicas.len() {
            if self.replicas[replica].up {
                let life = self.replicas[replica].life;
                self.after(100, 50_000, Event::BrokerNews { replica, life });
            }
        }
    }

    // ---- writers ----------------------------------------------------------------------------

    fn write(&mut self, writer: usize) {
        let state = std::mem::replace(&mut self.writers[writer], Writer::Idle);
        let (next, wait) = match state {
            Writer::Idle => {
                if self.transactions_left == 0 {
                    return;
                }
                self.transactions_left -= 1;
                let mut keys: Vec<Option<u64>> = (0..self.random.between(1, 3))
                    .map(|_| {
                        if self.random.chance(15) {
                            None
                        } else {
                            Some(self.random.below(5))
                        }
                    })
                    .collect();
                keys.sort_unstable();
                keys.dedup_by(|a, b| a.is_some() && a == b);
                let txn = self.database.begin();
                if self.random.chance(50) {
                    self.database.assign_xid(txn);
                }
                (Writer::Locking { keys, txn }, self.random.below(20))
            }
            Writer::Locking { keys, txn } => {
                let free = keys
                    .iter()
                    .flatten()
                    .all(|key| self.locked.get(key).is_none_or(|owner| *owner == writer));
                if free {
                    for key in keys.iter().flatten() {
                        self.locked.insert(*key, writer);
                    }
                    self.database.lock_table(txn);
                    let left = keys.iter().copied().collect();
                    (Writer::Writing { keys, txn, left }, self.random.below(3))
                } else {
                    (Writer::Locking { keys, txn }, 5)
                }
            }
            Writer::Writing {
                keys,
                txn,
                mut left,
            } => {
                if let Some(key) = left.pop_front() {
                    let delayed = self.random.chance(3);
                    let until = self.now + ms(self.random.between(1, 4_000));
                    self.database.draw(txn, key, delayed.then_some(until));
                    // The transaction id comes after the number was drawn.
                    (Writer::Writing { keys, txn, left }, self.random.below(3))
                } else {
                    self.database.assign_xid(txn);
                    let wait = if self.random.chance(self.scenario.long_percent) {
                        self.random.between(500, 6_000)
                    } else {
                        self.random.below(15)
                    };
                    if self.random.chance(5) {
                        self.database.prepare(txn);
                    }
                    (Writer::Open { keys, txn }, wait)
                }
            }
            Writer::Open { keys, txn } => {
                let commit = !self.random.chance(10);
                self.database.end(txn, self.now, commit);
                self.log(|| {
                    format!(
                        "txn {txn} commits: {commit} {:?}",
                        self.database.txns[&txn].rows
                    )
                });
                if commit {
                    self.decide_fates(txn);
                    if self.now >= self.database.awake_until {
                        self.notify();
                    }
                }
                // Row locks no longer stop anybody once the transaction is over ...
                for key in keys.iter().flatten() {
                    self.locked.remove(key);
                }
                // ... but the table lock is released a moment later.
                (Writer::Lingering { txn }, self.random.below(4))
            }
            Writer::Lingering { txn } => {
                self.database.release_locks(txn);
                (Writer::Idle, self.random.below(300))
            }
        };
        self.writers[writer] = next;
        let us = wait * 1_000 + self.random.below(1_000);
        self.at(self.now + Duration::from_micros(us), Event::Writer(writer));
    }

    fn decide_fates(&mut self, txn: u64) {
        for seq in self.database.txns[&txn].rows.clone() {
            let mut fate = Fate::Accept;
            if self.scenario.rejections {
                fate = match self.random.below(40) {
                    0 | 1 => Fate::RejectFirst(self.random.between(1, 2) as u32),
                    2 => Fate::RejectAlways,
                    3 => Fate::Unroutable,
                    4 => Fate::Impossible,
                    _ => Fate::Accept,
                };
            }
            if self.scenario.faults && self.random.below(400) == 0 {
                fate = Fate::Poison;
            }
            self.fates.insert(seq, fate);
        }
    }

    fn notify(&mut self) {
        for replica in 0..self.replicas.len() {
            if self.replicas[replica].up {
                let life = self.replicas[replica].life;
                let input = Box::new(Input::Wake(WakeReason::Notify));
                self.after(
                    100,
                    2_000,
                    Event::Deliver {
                        replica,
                        life,
                        input,
                    },
                );
            }
        }
    }

    // ---- relays -----------------------------------------------------------------------------

    fn start(&mut self, replica: usize) -> Result<(), String> {
        let seed = self.random.next();
        let listening = self.random.chance(70);
        let state = &mut self.replicas[replica];
        if state.up {
            return Ok(());
        }
        state.life += 1;
        state.up = true;
        state.stopping = false;
        state.started = self.now;
        state.frozen_until = self.now;
        state.highest_read = None;
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

    fn crash(&mut self, replica: usize) {
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

    fn wake(&mut self, replica: usize, life: u32, input: Option<Input>) -> Result<(), String> {
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
            self.carry_out(replica, life, command);
        }
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
        let at = state.started
            + state
                .core
                .deadline(now)
                .max(now + Duration::from_micros(50));
        if state
            .next_run
            .is_none_or(|next| next > at || next <= self.now)
        {
            state.next_run = Some(at);
            self.at(at, Event::Run { replica, life });
        }
        Ok(())
    }

    fn carry_out(&mut self, replica: usize, life: u32, command: Command) {
        let op = match command {
            Command::Publish { lane, batch } => return self.publish(replica, life, lane, batch),
            Command::Read(mut request) => {
                if self.mutation == Mutation::CursorWithoutSweep
                    && let ReadKind::Main { after } = &mut request.kind
                {
                    *after = self.replicas[replica].highest_read.max(*after);
                }
                Op::Read(request)
            }
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
            Command::ExtendAwake(horizon) => Op::Awake(horizon),
        };
        self.after(50, 3_000, Event::Execute { replica, life, op });
    }

    /// Executes a statement. A relay that dies meanwhile does not take it back.
    fn execute(&mut self, replica: usize, life: u32, op: Op) {
        let now = self.now;
        let up = self.database_up && !self.random_glitch();
        let id = self.replicas[replica].core.replica();
        let same_life = self.replicas[replica].life == life;
        let Some(id) = id
            .filter(|_| same_life)
            .or_else(|| matches!(op, Op::Register).then(|| uuid::Uuid::nil()))
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
                let main = matches!(request.kind, ReadKind::Main { .. });
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
            Op::Settle(settle) => {
                if up {
                    self.log(|| format!("replica {replica} settles {:?}", settle.seqs));
                    self.database.settle(&settle);
                }
                let heard = up && !self.random_glitch();
                Input::Settled(if heard { Ok(()) } else { Err(StoreFailed) })
            }
            Op::Record(failures) => {
                let stored = up.then(|| self.database.record_failures(&failures, id, now));
                self.log(|| format!("replica {replica} records {failures:?}: {stored:?}"));
                let heard = !self.random_glitch();
                Input::Recorded(stored.filter(|_| heard).ok_or(StoreFailed))
            }
            Op::Register => {
                let name = format!("r{replica}");
                let registered = up.then(|| self.database.register(&name, now));
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
                let failing = up.then(|| self.database.load_failing(&partitions, now));
                Input::Loaded(failing.ok_or(StoreFailed))
            }
            Op::Reload(partitions) => {
                let failing = up.then(|| self.database.load_failing(&partitions, now));
                Input::Reloaded(failing.ok_or(StoreFailed))
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

    fn answer(&mut self, replica: usize, life: u32, input: Input) {
        let input = Box::new(input);
        self.after(
            50,
            3_000,
            Event::Deliver {
                replica,
                life,
                input,
            },
        );
    }

    /// A connection that breaks, in runs with faults.
    fn random_glitch(&mut self) -> bool {
        let glitch = self.scenario.faults && self.now < ms(12_000) && self.random.below(300) == 0;
        if glitch {
            self.faults += 1;
            self.log(|| "a database connection breaks".to_owned());
        }
        glitch
    }

    // ---- broker -----------------------------------------------------------------------------

    fn publish(&mut self, replica: usize, life: u32, lane: usize, items: Vec<Item>) {
        let number = self.next_batch;
        self.next_batch += 1;
        self.log(|| {
            let seqs: Vec<_> = items.iter().map(|item| item.record.seq).collect();
            format!("replica {replica} publishes {seqs:?} on lane {lane}")
        });
        if items.iter().any(|item| {
            item.dead_letter.is_none() && self.fates.get(&item.record.seq) == Some(&Fate::Poison)
        }) {
            // The relay dies while it encodes; nothing of the batch was sent.
            return self.crash(replica);
        }
        if self.mutation == Mutation::SettleBeforeConfirm {
            let seqs = items.iter().map(|item| item.record.seq).collect();
            self.database.settle(&Settle {
                seqs,
                failed_before: Vec::new(),
            });
        }
        let mut at = self.now;
        for index in 0..items.len() {
            at += Duration::from_micros(self.random.between(20, 2_000));
            self.at(
                at,
                Event::Arrive {
                    batch: number,
                    index,
                },
            );
        }
        at += Duration::from_micros(self.random.between(200, 20_000));
        self.at(at, Event::BatchDone { batch: number });
        let verdicts = vec![Verdict::Unavailable; items.len()];
        let epoch = self.broker_epoch;
        self.batches.insert(
            number,
            Batch {
                replica,
                life,
                lane,
                items,
                verdicts,
                epoch,
            },
        );
    }

    fn arrive(&mut self, number: u64, index: usize) -> Result<(), String> {
        let Some(batch) = self.batches.get_mut(&number) else {
            return Ok(());
        };
        if !self.broker_up || batch.epoch != self.broker_epoch {
            return Ok(());
        }
        let item = &batch.items[index];
        let seq = item.record.seq;
        if item.dead_letter.is_some() {
            batch.verdicts[index] = Verdict::Confirmed;
            return Ok(());
        }
        let fate = self.fates.get(&seq).copied();
        let refuse = |code| Verdict::Rejected(Reason::new(code, "refused"));
        let count = self.refusals.entry(seq).or_default();
        let verdict = match fate {
            None => {
                return Err(format!(
                    "phantom: row {seq} was published but never committed"
                ));
            }
            Some(Fate::Accept | Fate::Poison) => Verdict::Confirmed,
            Some(Fate::RejectFirst(times)) if *count >= times => Verdict::Confirmed,
            Some(Fate::RejectFirst(_) | Fate::RejectAlways) => refuse(ReasonCode::Nack),
            Some(Fate::Unroutable) => refuse(ReasonCode::Unroutable),
            Some(Fate::Impossible) => {
                Verdict::Impossible(Reason::new(ReasonCode::InvalidEvent, "impossible"))
            }
        };
        if verdict == Verdict::Confirmed {
            self.deliveries.push((seq, self.now));
        } else {
            *count += 1;
        }
        batch.verdicts[index] = verdict;
        Ok(())
    }

    fn batch_done(&mut self, number: u64) {
        let Some(mut batch) = self.batches.remove(&number) else {
            return;
        };
        if batch.epoch != self.broker_epoch || !self.broker_up {
            // Confirms that did not make it: the fate of the whole batch is unknown.
            batch.verdicts.fill(Verdict::Unavailable);
        }
        if self.mutation == Mutation::TrustEachConfirm {
            // A returned message is attached to whichever confirm completes next.
            let returned = batch.verdicts.iter().position(|verdict| {
                matches!(verdict, Verdict::Rejected(reason) if reason.code == ReasonCode::Unroutable)
            });
            if let Some(returned) = returned
                && batch.verdicts.len() > 1
            {
                let other = (returned + 1) % batch.verdicts.len();
                batch.verdicts.swap(returned, other);
            }
        }
        let results = batch
            .items
            .into_iter()
            .zip(batch.verdicts)
            .map(|(item, verdict)| match verdict {
                // The failing event goes to the back of the line instead of blocking its key.
                Verdict::Rejected(reason) if self.mutation == Mutation::RetryBehindItsKey => {
                    (item, Verdict::Impossible(reason))
                }
                verdict => (item, verdict),
            })
            .collect();
        let input = Box::new(Input::Published {
            lane: batch.lane,
            results,
        });
        let (replica, life) = (batch.replica, batch.life);
        self.at(
            self.now,
            Event::Deliver {
                replica,
                life,
                input,
            },
        );
    }

    // ---- the promises -----------------------------------------------------------------------

    fn judge(self) -> Result<Outcome, String> {
        let mut first: HashMap<i64, Time> = HashMap::new();
        let mut order: HashMap<u64, Vec<i64>> = HashMap::new();
        let mut duplicates = 0;
        for (seq, at) in &self.deliveries {
            let row = &self.database.rows[*seq as usize - 1];
            match row.committed_at {
                Some(committed) if committed <= *at => {}
                _ => return Err(format!("phantom: row {seq} delivered at {at:?}: {row:?}")),
            }
            if first.insert(*seq, *at).is_some() {
                duplicates += 1;
                first.insert(*seq, first[seq].min(*at));
                continue;
            }
            // A delayed event takes its place when it is due, not when it was committed.
            if let (Some(key), None) = (row.key, row.available_at) {
                order.entry(key).or_default().push(*seq);
            }
        }
        let mut outcome = Outcome {
            faults: self.faults,
            duplicates,
            ..Outcome::default()
        };
        for row in &self.database.rows {
            let Some(committed) = row.committed_at else {
                continue;
            };
            outcome.committed += 1;
            let failure = self.database.failures.get(&row.seq);
            let dead = failure.is_some_and(|row| row.failure.state == FailureState::Dead);
            let delivered = first.get(&row.seq);
            outcome.delivered += usize::from(delivered.is_some());
            outcome.dead += usize::from(dead);
            match (delivered, row.published, dead) {
                (None, true, _) => {
                    return Err(format!(
                        "lost: {row:?} is marked published, the broker never had it"
                    ));
                }
                (None, false, false) => {
                    return Err(format!("lost: {row:?} is neither delivered nor dead"));
                }
                (Some(_), false, false) => return Err(format!("unsettled: {row:?}")),
                _ => {}
            }
            let refusals = self.refusals.get(&row.seq).copied().unwrap_or(0);
            let attempts = self.database.attempts.get(&row.seq).copied().unwrap_or(0);
            let poison = failure.is_some_and(|row| {
                row.failure
                    .reason
                    .as_ref()
                    .is_some_and(|reason| reason.code == ReasonCode::Poison)
            });
            if attempts > refusals && !poison {
                return Err(format!(
                    "an outage burned attempts: row {} was refused {refusals} times, {attempts} counted",
                    row.seq
                ));
            }
            // The first crash finds no record, the second finds suspects, then they go alone.
            if poison && self.crashes < MAX_CRASHES {
                return Err(format!(
                    "row {} is called poison after {} crashes",
                    row.seq, self.crashes
                ));
            }
            if dead && self.fates[&row.seq] == Fate::Accept && !poison {
                return Err(format!(
                    "row {} is dead though the broker would take it: {failure:?}",
                    row.seq
                ));
            }
            // In a quiet run nothing waits for a sweep, least of all behind another key's failure.
            if let (Some(delivered), Fate::Accept, 0) =
                (delivered, self.fates[&row.seq], self.faults)
                && !self.shares_a_failing_key(row.key)
            {
                let from = committed
                    .max(row.available_at.unwrap_or_default())
                    .max(ms(2_000));
                let waited = delivered.saturating_sub(from);
                if waited > ms(2_500) {
                    return Err(format!("row {} waited {waited:?}: {row:?}", row.seq));
                }
            }
        }
        if self.scenario.ordering == Ordering::Strict
            || (self.scenario.ordering == Ordering::Pipelined && !self.scenario.rejections)
        {
            for (key, seqs) in &order {
                if let Some(pair) = seqs.windows(2).find(|pair| pair[0] > pair[1]) {
                    return Err(format!(
                        "out of order on key {key}: {} before {}",
                        pair[0], pair[1]
                    ));
                }
            }
        }
        let window = self.config.max_in_flight;
        let allowed = self.faults * window * self.scenario.replicas;
        if duplicates > allowed {
            return Err(format!(
                "{duplicates} duplicates, {} faults, window {window}",
                self.faults
            ));
        }
        Ok(outcome)
    }

    fn shares_a_failing_key(&self, key: Option<u64>) -> bool {
        key.is_some_and(|key| {
            self.database.rows.iter().any(|row| {
                row.key == Some(key)
                    && self
                        .fates
                        .get(&row.seq)
                        .is_some_and(|fate| *fate != Fate::Accept)
            })
        })
    }
}
