//! The main loop: feeds the core and carries out its commands.
//!
//! The core decides, this file does: every command becomes a task, every answer an input. Nothing else
//! in the relay talks to the store or the sink.

mod failing;
mod health;
mod measure;
mod own;
mod peers;
mod publish;
mod report;
mod tell;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::event::encode::Encoder;
use crate::event::route::DeadLetterRouter;
use crate::relay::core::pace::WakeReason;
use crate::relay::core::{Command, Core, CoreConfig, Input, StoreFailed, Time};
use crate::relay::live::{Live, Phase};
use crate::sink::{Lane, Sink, SinkState};
use crate::store::Tick;
use crate::store::configuration::Configuration;
use crate::store::postgres::{
    Database, ListenState, Listener, PostgresStore, StoreError, StoreErrorKind,
};
use crate::telemetry::metrics::{Measured, Operation};
use crate::telemetry::trace::Tracer;
use measure::Measure;
use peers::PeerReport;
use report::Report;
use tell::Tell;

/// Pause between two attempts to look at a table that changed or vanished.
const REOPEN_PAUSE: Duration = Duration::from_secs(2);
/// How often the live figures are renewed.
const LIVE_EVERY: Duration = Duration::from_millis(200);
/// Longest time between two turns of the main loop: its heartbeat.
const TURN_MAX: Duration = Duration::from_secs(1);
/// Shortest wait of the main loop for a moment that the core says has passed.
const TURN_MIN: Duration = Duration::from_millis(20);

/// What the relay is made of.
pub struct Parts {
    /// The database, to look at the table again when it changes.
    pub database: Database,
    /// The outbox.
    pub store: PostgresStore,
    /// The wake-up hint, unless polling alone is wanted.
    pub listener: Option<Listener>,
    /// Where events go.
    pub sink: Box<dyn Sink>,
    /// Rows to messages.
    pub encoder: Encoder,
    /// Where given-up events go, if anywhere.
    pub dead_letters: Option<DeadLetterRouter>,
    /// Where to count.
    pub measured: Arc<Measured>,
    /// Who makes spans, if anybody wants them.
    pub tracer: Option<Arc<Tracer>>,
    /// Name of this replica, for people.
    pub name: String,
    /// What the replicas of the outbox must have alike.
    pub configuration: Configuration,
    /// Partitions wanted; the stored number wins.
    pub partitions: i32,
    /// The core's settings; `lanes` is taken from the sink.
    pub core: CoreConfig,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Everything in flight was settled and all partitions were handed over.
    Clean,
    /// The deadline passed with this many rows in flight or unsettled.
    Abandoned(usize),
}

/// What came back from a task.
enum Answer {
    Input(Input),
    Published(usize, Box<dyn Lane>, Input),
    Reopened(Result<PostgresStore, StoreError>),
}

/// Runs the relay until `stop` says true and everything is handed over, or `deadline` after that.
pub async fn run(
    parts: Parts,
    mut stop: watch::Receiver<bool>,
    deadline: Duration,
    live: watch::Sender<Live>,
) -> Result<Ended, StoreError> {
    let mut driver = Driver::new(parts);
    let mut sink_state = driver.sink.state();
    let mut listening = driver.listener.as_ref().map(Listener::state);
    let mut wakes = driver.listener.as_ref().map(Listener::wakes);
    let mut stop_by: Option<Instant> = None;
    sink_state.mark_changed();
    if let Some(listening) = &mut listening {
        listening.mark_changed();
    }

    loop {
        let alarm = driver.turn();
        driver.remind();
        driver.publish_live(&live);
        if driver.core.has_stopped() {
            live.send_modify(|live| live.phase = Phase::Stopped);
            driver.close().await;
            return Ok(Ended::Clean);
        }
        tokio::select! {
            _ = stop.wait_for(|stop| *stop), if stop_by.is_none() => {
                stop_by = Some(Instant::now() + deadline);
                driver.stop();
            }
            () = until(stop_by) => {
                let abandoned = driver.core.gauges(driver.now()).in_flight;
                live.send_modify(|live| live.phase = Phase::Stopped);
                driver.abandon().await;
                return Ok(Ended::Abandoned(abandoned));
            }
            Some(answer) = driver.tasks.join_next() => driver.answered(answer)?,
            Ok(()) = sink_state.changed() => {
                let state = sink_state.borrow_and_update().clone();
                driver.handle(Input::SinkReady(state.is_ready()));
                if matches!(state, SinkState::Ended(_)) && stop_by.is_none() {
                    stop_by = Some(Instant::now() + deadline);
                    driver.stop();
                }
            }
            Some(()) = changed(&mut wakes) => {
                driver.handle(Input::Wake(WakeReason::Notify));
                driver.handle(Input::OwnershipChanged);
            }
            Some(()) = changed(&mut listening) => {
                let state = listening.as_mut().map(|state| state.borrow_and_update().clone());
                driver.handle(Input::Listening(state == Some(ListenState::Listening)));
            }
            () = tokio::time::sleep_until(alarm) => {}
        }
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Waits for a change; forever if there is nothing to watch (any more).
async fn changed<T>(watched: &mut Option<watch::Receiver<T>>) -> Option<()> {
    match watched {
        Some(receiver) => match receiver.changed().await {
            Ok(()) => Some(()),
            Err(_) => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

struct Driver {
    core: Core,
    started: Instant,
    database: Database,
    store: PostgresStore,
    listener: Option<Listener>,
    sink: Box<dyn Sink>,
    /// Lanes not publishing at the moment.
    lanes: Vec<Option<Box<dyn Lane>>>,
    encoder: Arc<Encoder>,
    dead_letters: Option<Arc<DeadLetterRouter>>,
    name: String,
    partitions: i32,
    /// The number of partitions `store` reads for.
    read_for: i32,
    lease_ttl: Duration,
    tasks: JoinSet<Answer>,
    reopening: bool,
    report: Report,
    peers: PeerReport,
    tell: Tell,
    measure: Measure,
    tracer: Option<Arc<Tracer>>,
    stopping: bool,
    tick: Option<Arc<Tick>>,
    ticked_at: Instant,
    live_at: Option<Instant>,
    trouble_since: Option<Instant>,
}

impl Driver {
    fn new(parts: Parts) -> Self {
        let mut sink = parts.sink;
        let lanes: Vec<_> = sink.lanes().into_iter().map(Some).collect();
        let config_lanes = lanes.len();
        let config = CoreConfig {
            lanes: config_lanes,
            has_order: parts.store.capabilities().has_order,
            ..parts.core
        };
        Self {
            lease_ttl: config.lease_ttl,
            core: Core::new(config, rand::random()),
            started: Instant::now(),
            database: parts.database,
            store: parts.store,
            listener: parts.listener,
            sink,
            lanes,
            encoder: Arc::new(parts.encoder),
            dead_letters: parts.dead_letters.map(Arc::new),
            name: parts.name,
            partitions: parts.partitions,
            read_for: 0,
            tasks: JoinSet::new(),
            reopening: false,
            report: Report::default(),
            peers: PeerReport::new(parts.configuration),
            tell: Tell::default(),
            measure: Measure::new(parts.measured, config_lanes),
            tracer: parts.tracer,
            stopping: false,
            tick: None,
            ticked_at: Instant::now(),
            live_at: None,
            trouble_since: None,
        }
    }

    fn now(&self) -> Time {
        self.started.elapsed()
    }

    fn handle(&mut self, input: Input) {
        let now = self.now();
        self.core.handle(now, input);
    }

    fn stop(&mut self) {
        self.stopping = true;
        self.live_at = None;
        self.handle(Input::Stop);
    }

    /// Says what keeps events waiting, if it is time to.
    fn remind(&mut self) {
        let waiting = self.core.gauges(self.now()).in_flight;
        let state = self.sink.state();
        self.report
            .remind(self.sink.kind(), &state.borrow(), waiting);
    }

    /// Carries out what the core asks for now. Returns until when it asks for nothing more by itself.
    fn turn(&mut self) -> Instant {
        let now = self.now();
        while let Some(command) = self.core.next(now) {
            self.carry_out(command);
        }
        let mut due = self.core.deadline(now);
        if due <= now {
            // The core promises that this does not happen. Should it, a core of the machine is not the price.
            self.report.waits_in_vain();
            due = now + TURN_MIN;
        }
        self.started + due.min(now + TURN_MAX)
    }

    /// Starts what a command asks for; the answer comes by [`Driver::answered`].
    fn carry_out(&mut self, command: Command) {
        let store = self.store.clone();
        match command {
            Command::Publish {
                lane: number,
                batch,
            } => {
                let Some(mut lane) = self.lanes.get_mut(number).and_then(Option::take) else {
                    debug_assert!(false, "the core knows which lanes are idle");
                    return;
                };
                let encoder = Arc::clone(&self.encoder);
                let dead_letters = self.dead_letters.clone();
                let measured = self.measure.departing(number, &batch);
                let tracer = self.tracer.clone();
                self.tasks.spawn(async move {
                    let began = Instant::now();
                    let results = publish::publish(
                        &encoder,
                        dead_letters.as_deref(),
                        &mut *lane,
                        tracer.as_deref(),
                        batch,
                    )
                    .await;
                    measure::published(&measured, began, &results);
                    Answer::Published(
                        number,
                        lane,
                        Input::Published {
                            lane: number,
                            results,
                        },
                    )
                });
            }
            Command::Read(request) => {
                self.ask(
                    Operation::Read,
                    "read",
                    async move { store.read(&request).await },
                    Input::Read,
                );
            }
            Command::Fetch(request) => {
                self.ask(
                    Operation::Read,
                    "fetch",
                    async move { store.fetch(&request).await },
                    Input::Fetched,
                );
            }
            Command::Settle(settle) => {
                if !settle.careful {
                    self.measure.measured().settled(settle.rows.len());
                }
                self.ask(
                    Operation::Settle,
                    "settle",
                    async move { store.settle(&settle).await },
                    Input::Settled,
                );
            }
            Command::Record(failures) => {
                self.report.failing.failed(&failures);
                let replica = self.core.replica().unwrap_or_default();
                self.ask(
                    Operation::Failures,
                    "record failures",
                    async move { store.record_failures(&failures, replica).await },
                    Input::Recorded,
                );
            }
            Command::Reload(partitions) => {
                let (partitions, limits) = (self.only(partitions), self.core.load_limits());
                self.ask(
                    Operation::Failures,
                    "load failures",
                    async move { store.load_failing(&partitions, limits).await },
                    Input::Reloaded,
                );
            }
            Command::Park(park) => {
                let replica = self.core.replica().unwrap_or_default();
                self.ask(
                    Operation::Failures,
                    "park keys",
                    async move { store.park(&park, replica).await },
                    Input::Parked,
                );
            }
            Command::ExtendAwake(horizon) => {
                self.ask(
                    Operation::Lease,
                    "extend awake",
                    async move { store.extend_awake(horizon).await },
                    Input::AwakeExtended,
                );
            }
            Command::Own(step) => self.own(step),
        }
    }

    /// Asks the store; a failure is reported here and told to the core as just that.
    fn ask<T: Send + 'static>(
        &mut self,
        operation: Operation,
        what: &'static str,
        question: impl Future<Output = Result<T, StoreError>> + Send + 'static,
        input: impl FnOnce(Result<T, StoreFailed>) -> Input + Send + 'static,
    ) {
        let health = self.report.health();
        let measured = self.measure.measured();
        self.tasks.spawn(async move {
            let began = Instant::now();
            let result = question.await;
            measured.asked(operation, began.elapsed(), result.is_ok());
            health.tell(what, result.as_ref().err());
            Answer::Input(input(result.map_err(|_| StoreFailed)))
        });
    }

    fn answered(
        &mut self,
        answer: Result<Answer, tokio::task::JoinError>,
    ) -> Result<(), StoreError> {
        let answer = answer.map_err(|error| {
            // A bug: the batch or the answer is lost, so nothing can be promised any more.
            StoreError::new(StoreErrorKind::Fatal, format!("a relay task died: {error}"))
        })?;
        match answer {
            Answer::Input(input) => {
                match &input {
                    Input::Ticked(Ok(tick)) => {
                        self.tick = Some(Arc::new(tick.clone()));
                        self.ticked_at = Instant::now();
                        self.report.paused(tick.paused);
                        if let Some(me) = self.core.replica() {
                            let held = self.core.gauges(self.now()).partitions;
                            self.peers.ticked(me, tick, held);
                        }
                    }
                    Input::Read(Ok(batch)) => self.measure.measured().read(batch.rows.len()),
                    _ => {}
                }
                self.handle(input);
            }
            Answer::Published(number, lane, input) => {
                self.lanes[number] = Some(lane);
                self.measure.arrived(number);
                self.handle(input);
            }
            Answer::Reopened(result) => {
                self.reopening = false;
                if let Ok(store) = result {
                    self.store = store.for_partitions(self.core.partitions());
                    self.report.reopened();
                }
            }
        }
        // Before the core's next command: with one partition, rows are one sequence.
        if self.core.partitions() != self.read_for {
            self.read_for = self.core.partitions();
            self.store = self.store.for_partitions(self.read_for);
        }
        if self.report.wants_reopening() && !self.reopening {
            self.reopen();
        }
        Ok(())
    }

    /// The table changed or vanished: look at it again, until it fits.
    fn reopen(&mut self) {
        self.reopening = true;
        let database = self.database.clone();
        self.tasks.spawn(async move {
            tokio::time::sleep(REOPEN_PAUSE).await;
            Answer::Reopened(database.open().await)
        });
    }

    fn publish_live(&mut self, live: &watch::Sender<Live>) {
        if self.live_at.is_some_and(|at| at.elapsed() < LIVE_EVERY) {
            return;
        }
        self.live_at = Some(Instant::now());
        let now = self.now();
        let keys = self.core.gauges(now);
        let crowded = self
            .core
            .is_crowded()
            .then(|| report::crowded(keys.held_keys));
        self.report.settling(self.core.unsettled());
        self.report.parked(keys.parked_keys);
        self.report.crowded(crowded.as_deref());
        self.report.failing.flush(false);
        let health = self.report.health();
        let mut live_now = Live {
            at: Instant::now(),
            phase: if self.stopping {
                Phase::Stopping
            } else {
                Phase::Running
            },
            totals: self.core.totals(),
            gauges: self.core.gauges(now),
            leads: self.core.leads(),
            pending_above: self.core.pending_above(),
            oldest: self.measure.oldest(self.core.first_waiting()),
            replica: self.core.replica(),
            database: health.problem(),
            schema: health.schema(),
            settling: self.core.unsettled().map(str::to_owned),
            crowded,
            broker: self.sink.state().borrow().clone(),
            listener: self
                .listener
                .as_ref()
                .map(|listener| listener.state().borrow().clone()),
            tick: self.tick.clone(),
            ticked_at: self.ticked_at,
            peers: self.peers.peers(),
            trouble_since: None,
        };
        let trouble = live_now.database.is_some() || live_now.waits_for().is_some();
        live_now.trouble_since = trouble.then(|| self.trouble_since.unwrap_or_else(Instant::now));
        self.trouble_since = live_now.trouble_since;
        if self.tell.changed(&live_now, Instant::now()) {
            self.handle(Input::Tell);
        }
        live.send_replace(live_now);
    }

    async fn close(mut self) {
        self.report.failing.flush(true);
        self.tasks.shutdown().await;
        drop(self.listener.take());
        self.lanes.clear();
        self.sink.close().await;
        self.database.close();
    }

    /// Ends without waiting for what is in flight.
    async fn abandon(mut self) {
        self.report.failing.flush(true);
        self.tasks.abort_all();
        self.lanes.clear();
        let closing = self.sink.close();
        let _ = tokio::time::timeout(Duration::from_secs(1), closing).await;
    }
}
