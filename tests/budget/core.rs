//! The relay core against a server that answers after fixed times, on a clock of its own: how many commands a
//! backlog takes is the same on every machine.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};
use std::time::Duration;

use bytes::Bytes;
use outrigger::error::Verdict;
use outrigger::event::{Data, Record};
use outrigger::relay::core::ownership::Step;
use outrigger::relay::core::window::Ordering;
use outrigger::relay::core::{Command, Core, CoreConfig, Input};
use outrigger::store::{
    Claimed, Holders, Loaded, PartitionRow, ReadBatch, ReadKind, ReadRequest, ReplicaRow, Tick,
};
use uuid::Uuid;

use crate::{at_least, at_most};

const ROWS: u64 = 20_000;
const PARTITIONS: i32 = 16;
/// How long the database and the broker take to answer.
const STORE: Duration = Duration::from_millis(3);
const BROKER: Duration = Duration::from_millis(10);
/// Reads are full as long as rows are left: BATCH_SIZE is 1,000.
const READS: u64 = ROWS / 1000;
/// Reads that find nothing new while the last rows are on their way, and looks for late ones.
const SPARE_READS: u64 = 3;

#[derive(Debug, Default)]
struct Counted {
    reads: u64,
    settles: u64,
    /// Rows in the largest settle.
    largest_settle: u64,
    batches: u64,
    records: u64,
    awake: u64,
    /// Rows that reads made the server send, whether there was room for them or not.
    fetched: u64,
}

/// The outbox as far as the core can tell.
struct World {
    core: Core,
    pending: BTreeSet<i64>,
    keys: i64,
    me: Uuid,
    owned: bool,
    payload: Bytes,
    counted: Counted,
}

/// Answers on their way, by time and order.
type Answers = BinaryHeap<Reverse<(Duration, u64)>>;

impl World {
    /// Rows of this many keys, each with a payload of as many bytes.
    fn with_payload(ordering: Ordering, keys: i64, payload: usize) -> Self {
        Self {
            payload: vec![b'x'; payload].into(),
            ..Self::new(ordering, keys)
        }
    }

    fn new(ordering: Ordering, keys: i64) -> Self {
        let config = CoreConfig {
            ordering,
            ..CoreConfig::default()
        };
        Self {
            core: Core::new(config, 1),
            pending: (1..=ROWS as i64).collect(),
            keys,
            me: Uuid::from_u128(1),
            owned: false,
            payload: Bytes::new(),
            counted: Counted::default(),
        }
    }

    /// Runs until everything is settled.
    fn drain(mut self) -> Counted {
        let mut now = Duration::ZERO;
        let (mut answers, mut inputs) = (Answers::new(), HashMap::new());
        let mut number = 0;
        self.core.handle(now, Input::Listening(true));
        self.core.handle(now, Input::SinkReady(true));
        while !self.pending.is_empty() {
            assert!(now < Duration::from_secs(600), "{:?}", self.counted);
            while let Some(command) = self.core.next(now) {
                let wait = match command {
                    Command::Publish { .. } => BROKER,
                    _ => STORE,
                };
                number += 1;
                answers.push(Reverse((now + wait, number)));
                inputs.insert(number, self.answer(command));
            }
            let alarm = self.core.deadline(now);
            match answers.peek() {
                Some(Reverse((at, _))) if *at <= alarm => {
                    now = *at;
                    let number = answers.pop().map(|Reverse((_, number))| number).unwrap();
                    self.core.handle(now, inputs.remove(&number).unwrap());
                }
                _ => now = alarm.max(now + Duration::from_micros(1)),
            }
        }
        self.counted
    }

    fn answer(&mut self, command: Command) -> Input {
        match command {
            Command::Read(request) => {
                self.counted.reads += 1;
                Input::Read(Ok(self.read(&request)))
            }
            Command::Publish { lane, batch } => {
                self.counted.batches += 1;
                let results = batch.into_iter().map(|item| (item, Verdict::Confirmed));
                Input::Published {
                    lane,
                    results: results.collect(),
                }
            }
            Command::Settle(settle) => {
                self.counted.settles += 1;
                let rows = settle.rows.len() as u64;
                self.counted.largest_settle = self.counted.largest_settle.max(rows);
                for row in &settle.rows {
                    self.pending.remove(&row.seq);
                }
                Input::Settled(Ok(Vec::new()))
            }
            Command::Record(failures) => {
                self.counted.records += 1;
                Input::Recorded(Ok(failures.iter().map(|failure| failure.seq).collect()))
            }
            Command::Fetch(request) => panic!("every row came whole: {request:?}"),
            Command::Park(park) => panic!("nothing fails: {park:?}"),
            Command::Reload(_) => Input::Reloaded(Ok(Loaded::default())),
            Command::ExtendAwake(_) => {
                self.counted.awake += 1;
                Input::AwakeExtended(Ok(()))
            }
            Command::Own(step) => self.own(step),
        }
    }

    fn own(&mut self, step: Step) -> Input {
        match step {
            Step::Register => Input::Registered(Ok((self.me, PARTITIONS))),
            Step::Tick { .. } => Input::Ticked(Ok(self.tick())),
            Step::Claim(partitions) => {
                self.owned = true;
                let claimed = partitions.iter().map(|partition| Claimed {
                    partition: *partition,
                    unclean: false,
                });
                Input::Claimed(Ok(claimed.collect()))
            }
            Step::Load(_) => Input::Loaded(Ok(Loaded::default())),
            Step::Release(_) => Input::Released(Ok(())),
            Step::Unregister => Input::Unregistered(Ok(())),
        }
    }

    fn tick(&self) -> Tick {
        let partitions = (0..PARTITIONS).map(|partition| PartitionRow {
            partition,
            owner: self.owned.then_some(self.me),
        });
        Tick {
            server_start: 0,
            partitions: partitions.collect(),
            replicas: vec![ReplicaRow {
                replica: self.me,
                name: "relay".into(),
                alive_for: Duration::from_secs(10),
                ..ReplicaRow::default()
            }],
            registered: true,
            may_take_over: true,
            paused: false,
            standing_down: false,
            failures_version: 0,
            awake_for: Duration::ZERO,
            unsettled: false,
            parked: 0,
            next_due_in: None,
        }
    }

    fn read(&mut self, request: &ReadRequest) -> ReadBatch {
        let (after, up_to) = match &request.kind {
            ReadKind::Main { after } => (after.unwrap_or(i64::MIN), i64::MAX),
            ReadKind::CatchUp { after, up_to, .. } | ReadKind::Sweep { after, up_to } => {
                (*after, *up_to)
            }
            ReadKind::Retries | ReadKind::Due => return ReadBatch::default(),
        };
        let only = match &request.kind {
            ReadKind::CatchUp { keys, .. } => Some(keys),
            _ => None,
        };
        let known: BTreeSet<i64> = request.known.iter().copied().collect();
        let wanted = self.pending.iter().filter(|seq| {
            let hash = *seq % self.keys;
            **seq > after
                && **seq <= up_to
                && !known.contains(seq)
                && !request.skip_keys.contains(&hash)
                && only.is_none_or(|keys| keys.contains(&hash))
        });
        let rows = wanted.take(request.limit).map(|seq| Record {
            seq: *seq,
            hash: seq % self.keys,
            keyed: true,
            data: Data::Text(self.payload.clone()),
            ..Record::default()
        });
        let mut rows: Vec<Record> = rows.collect();
        self.counted.fetched += rows.len() as u64;
        let full = rows.len() == request.limit;
        let mut bytes = 0;
        let fit = rows.iter().take_while(|row| {
            bytes += row.weight();
            bytes <= request.byte_limit
        });
        let fit = fit.count().max(1);
        let cut = full || fit < rows.len();
        rows.truncate(fit);
        let main = matches!(request.kind, ReadKind::Main { .. });
        ReadBatch {
            cut,
            rows,
            holders: main.then(Holders::default),
        }
    }
}

#[test]
fn a_backlog_of_many_keys_takes_few_commands() {
    for ordering in [Ordering::Strict, Ordering::Pipelined, Ordering::None] {
        let counted = World::new(ordering, 10_000).drain();
        let context = format!("{ordering:?}: {counted:?}");
        at_most(
            &format!("{context}: reads"),
            counted.reads,
            READS + SPARE_READS,
        );
        // What is confirmed while a settle is out goes with the next one: eight lanes' batches of 200 in two.
        at_most(&format!("{context}: settles"), counted.settles, ROWS / 750);
        at_least(
            &format!("{context}: rows of the largest settle"),
            counted.largest_settle,
            1_000,
        );
        // All batches of the lanes are full.
        at_most(&format!("{context}: batches"), counted.batches, ROWS / 200);
        // Nothing failed, and one promise to keep awake lasts for 30 s.
        at_most(&format!("{context}: failures recorded"), counted.records, 0);
        at_most(&format!("{context}: promises to poll"), counted.awake, 1);
    }
}

#[test]
fn large_rows_are_fetched_once() {
    // 16 MiB have room for 80 of them.
    let counted = World::with_payload(Ordering::Strict, 10_000, 200 << 10).drain();
    let context = format!("{counted:?}");
    // The first read does not know their size, and an estimate may be a little high.
    at_most(
        &format!("{context}: rows fetched"),
        counted.fetched,
        ROWS + ROWS / 10 + 1_000,
    );
    // A read brings what a quarter of the memory holds, or more.
    at_most(&format!("{context}: reads"), counted.reads, ROWS / 20 + 10);
}

#[test]
fn one_hot_key_in_strict_order_costs_a_round_trip_to_the_broker_each_and_no_more() {
    let counted = World::new(Ordering::Strict, 1).drain();
    assert_eq!(counted.batches, ROWS, "{counted:?}");
    // A key has room for 125 rows: catch-up reads bring them as room is made.
    at_most(&format!("reads: {counted:?}"), counted.reads, ROWS / 45);
    // Each event comes alone, after 10 ms: longer than a settle waits for another one.
    at_most(&format!("settles: {counted:?}"), counted.settles, ROWS);
}

#[test]
fn one_hot_key_pipelined_shares_batches_and_settles() {
    let counted = World::new(Ordering::Pipelined, 1).drain();
    let context = format!("{counted:?}");
    // One key cannot use several lanes, so a batch takes what eight would take, and is settled as a whole.
    at_most(
        &format!("{context}: batches"),
        counted.batches,
        ROWS.div_ceil(1_600),
    );
    at_most(
        &format!("{context}: settles"),
        counted.settles,
        ROWS.div_ceil(1_600),
    );
    at_most(&format!("{context}: reads"), counted.reads, 30);
}
