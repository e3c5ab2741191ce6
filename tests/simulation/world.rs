//! One simulated run: writers, a database, a broker, several relays, and what goes wrong.

mod broker;
mod judge;
mod relays;
mod scenario;
mod writers;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::time::Duration;

use outrigger::error::{OnExhausted, RetryPolicy, Verdict};
use outrigger::relay::core::ownership::STORED;
use outrigger::relay::core::window::Item;
use outrigger::relay::core::{Core, CoreConfig, Input};
use outrigger::store::{FetchRequest, Park, ReadBatch, ReadRequest, Settle};

use crate::Mutation;
use crate::database::{Database, Time};
use crate::random::Random;
pub use scenario::Scenario;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
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
    /// Its route is out of order for so many tries, which costs it no attempt.
    RouteOut(u32),
    /// Refused before it is sent.
    Impossible,
    /// Kills the relay that encodes it.
    Poison,
    /// Kills the relay that reads its payload.
    Deadly,
    /// Cannot be read.
    Unreadable,
    /// Is not to be read.
    TooLarge,
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
    DatabaseDown(Outage, Duration),
    DatabaseUp,
    Operator,
    /// The table is emptied and its numbers are drawn again. `true`: by TRUNCATE.
    Empty(bool),
    Resume,
    /// Settling changes nothing for so long.
    Inert(Duration),
    Works,
    /// Some rows are locked for so long.
    Lock(Duration),
    Unlock,
    /// An attempt to change the number of partitions.
    Repartition(usize),
}

/// What of the database is out of reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outage {
    /// Everything, and each statement fails at once.
    Refuses,
    /// Everything, and no statement is answered before somebody loses patience.
    Silent,
    /// The outbox table: dropped, renamed, locked.
    Table,
    /// The tables of ownership.
    Leases,
}

#[derive(Debug)]
enum Op {
    Read(ReadRequest),
    Fetch(FetchRequest),
    LookAtLocks(Box<ReadBatch>),
    Settle(Settle),
    Record(Vec<outrigger::store::Failure>),
    Register,
    Beat,
    Look,
    Claim(Vec<i32>),
    Load(Vec<i32>),
    Reload(Vec<i32>),
    Park(Park),
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
    /// Its configuration.
    identity: u64,
    frozen_until: Time,
    /// When the core is looked at next without any input.
    next_run: Option<Time>,
    /// When its last main read looked.
    main_read_at: Time,
    /// When it last asked something of a database out of reach, or for due rows where there were none.
    asked_in_vain: VecDeque<Time>,
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
    outage: Option<Outage>,
    broker_up: bool,
    broker_epoch: u32,
    replicas: Vec<Replica>,
    writers: Vec<Writer>,
    transactions_left: usize,
    locked: HashMap<u64, usize>,
    batches: BTreeMap<u64, Batch>,
    next_batch: u64,
    /// By id, as are refusals and deliveries.
    fates: HashMap<i64, Fate>,
    refusals: HashMap<i64, u32>,
    postponements: HashMap<i64, u32>,
    crashes: u32,
    /// Every acceptance by the broker: row and time.
    pub deliveries: Vec<(i64, Time)>,
    /// Rows found by a sweep that a main read before it should have brought.
    missed: Vec<i64>,
    faults: usize,
    /// The sequence was restarted without a trace that a relay could see before it reads below what it knows.
    restarted_by_hand: bool,
    quiet_from: Time,
    verbose: bool,
    max_in_memory: usize,
    /// The configuration that published last.
    publishes: Option<u64>,
    /// Times that another configuration began to publish.
    handovers: usize,
    /// Times that a key was parked.
    parked: usize,
}

/// What a run showed.
#[derive(Debug, Default, Clone, Copy)]
pub struct Outcome {
    pub committed: usize,
    pub delivered: usize,
    pub duplicates: usize,
    pub dead: usize,
    pub faults: usize,
    pub handovers: usize,
    pub parked: usize,
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
            max_held: scenario.max_held,
            whole_bytes: 5,
            max_event_bytes: 10,
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
            careful_rows: [4, 16, 256][random.below(3) as usize],
            last_look: ms([0, 100, 1_000][random.below(3) as usize]),
        };
        let partitions = random.between(1, 6) as i32;
        let database = Database::new(partitions, config.lease_ttl.mul_f64(STORED), mutation);
        let writers = random.between(1, 6) as usize;
        let mut world = Self {
            now: Time::ZERO,
            transactions_left: random.between(20, if scenario.busy { 300 } else { 120 }) as usize,
            random,
            scenario,
            config,
            mutation,
            queue: BinaryHeap::new(),
            next_event: 0,
            database,
            outage: None,
            broker_up: true,
            broker_epoch: 0,
            replicas: Vec::new(),
            writers: vec![Writer::Idle; writers],
            locked: HashMap::new(),
            batches: BTreeMap::new(),
            next_batch: 0,
            fates: HashMap::new(),
            refusals: HashMap::new(),
            postponements: HashMap::new(),
            crashes: 0,
            deliveries: Vec::new(),
            missed: Vec::new(),
            faults: 0,
            restarted_by_hand: false,
            quiet_from: Time::ZERO,
            verbose,
            max_in_memory: 0,
            publishes: None,
            handovers: 0,
            parked: 0,
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
                identity: 0,
                frozen_until: Time::ZERO,
                next_run: None,
                main_read_at: Time::ZERO,
                asked_in_vain: VecDeque::new(),
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
                    _ => {
                        let outage = match self.random.below(6) {
                            0 => Outage::Silent,
                            1 => Outage::Table,
                            2 => Outage::Leases,
                            _ => Outage::Refuses,
                        };
                        // Shorter than a lease, or much longer.
                        let longest = if self.random.chance(70) {
                            8_000
                        } else {
                            30_000
                        };
                        Event::DatabaseDown(outage, ms(self.random.between(10, longest)))
                    }
                };
                self.at(at, event);
            }
        }
        if self.random.chance(40) {
            let at = ms(self.random.below(span));
            let replica = self.random.below(self.scenario.replicas as u64) as usize;
            self.at(at, Event::Stop(replica));
        }
        if self.random.chance(30) {
            let at = ms(self.random.below(span));
            self.at(at, Event::Operator);
        }
        if self.scenario.inert {
            for _ in 0..self.random.between(1, 3) {
                let at = ms(self.random.below(span));
                let wait = ms(self.random.between(10, 8_000));
                let event = if self.random.chance(50) {
                    Event::Inert(wait)
                } else {
                    Event::Lock(wait)
                };
                self.at(at, event);
            }
        }
        if self.scenario.emptied {
            let at = ms(self.random.below(span));
            let by_truncate = self.random.chance(50);
            self.at(at, Event::Empty(by_truncate));
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
        // A single writer whose transactions all stay open for long.
        let deadline = ms(600_000);
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
            Event::Execute { replica, life, op } => {
                self.execute(replica, life, op);
                if let Some(split) = self.database.split(self.now) {
                    return Err(format!("split between configurations: {split}"));
                }
            }
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
            Event::DatabaseDown(outage, wait) => {
                self.fault(wait);
                self.log(|| format!("database out of reach for {wait:?}: {outage:?}"));
                self.outage = Some(outage);
                self.at(self.now + wait, Event::DatabaseUp);
            }
            Event::DatabaseUp => {
                if self.outage.take() == Some(Outage::Refuses) {
                    // It looks like another server then.
                    self.database.server_start += 1;
                }
            }
            Event::Resume => self.database.paused = false,
            Event::Operator if self.random.chance(25) => {
                let wait = ms(self.random.between(1, 20_000));
                self.fault(wait);
                self.log(|| format!("operator pauses for {wait:?}"));
                self.database.paused = true;
                self.at(self.now + wait, Event::Resume);
            }
            Event::Operator if self.random.chance(50) => {
                self.discard();
            }
            Event::Operator => {
                self.log(|| "operator changes the number of partitions".to_owned());
                self.database.stand_down_until = self.now + ms(5_000);
                let partitions = self.random.between(1, 6) as usize;
                self.at(self.now + ms(300), Event::Repartition(partitions));
            }
            Event::Inert(wait) => {
                self.log(|| format!("settling changes nothing for {wait:?}"));
                self.database.inert = true;
                self.at(self.now + wait, Event::Works);
            }
            Event::Works => {
                self.log(|| "settling works again".to_owned());
                self.database.inert = false;
            }
            Event::Lock(wait) => {
                let pending: Vec<i64> = self.database.pending.iter().copied().collect();
                for seq in pending {
                    if self.random.chance(30) {
                        let id = self.database.row(seq).id;
                        self.database.locked.insert(id);
                    }
                }
                self.log(|| format!("locked for {wait:?}: {:?}", self.database.locked));
                self.at(self.now + wait, Event::Unlock);
            }
            Event::Unlock => self.database.locked.clear(),
            Event::Empty(by_truncate) => {
                if self.outage.is_none() && self.database.empty(by_truncate) {
                    self.restarted_by_hand |= !by_truncate;
                    self.log(|| format!("the table is emptied, by TRUNCATE: {by_truncate}"));
                } else {
                    self.at(self.now + ms(20), Event::Empty(by_truncate));
                }
            }
            Event::Repartition(partitions) => {
                if self.now < self.database.stand_down_until {
                    let done = self.database.repartition(partitions, self.now);
                    self.log(|| format!("to {partitions} partitions: {done}"));
                    if !done {
                        self.at(self.now + ms(300), Event::Repartition(partitions));
                    }
                }
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
}
