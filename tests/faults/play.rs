//! What every scenario plays on: replicas of the relay, each behind fault proxies of its own, seeded writers that
//! keep a ledger, a place that keeps everything published, and the comparison in the end.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger::store::postgres::OutboxSettings;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::server::{Exchange, Server, Servers};
use crate::sink::Sink;
use crate::support::proxy::frames::{Label, Protocol};
use crate::support::proxy::{Act, Proxy, Trap};
use crate::support::stage::unique_name;
use crate::support::{Arrival, Load, Outbox, PATIENCE, Relay, Report, Settings, Writers};

/// Events that a replica may have read and not settled: what one failure may repeat.
pub(crate) const WINDOW: usize = 200;

/// How long a replica that vanished keeps its partitions.
pub(crate) const LEASE: Duration = Duration::from_secs(2);

/// A relay that waits may use one part in this many of a core.
const IDLE_SHARE: u32 = 10;

/// After a fault, everything committed before its end must be published within this time.
const RECOVERY_MAX: Duration = PATIENCE;

/// Keeps every failure record that ever was, also those that are gone in the end.
const AUDIT: &str = "create table audit (seq bigint, state text, attempts int, reason text);
    create function audit() returns trigger language plpgsql security definer as $$
    begin insert into audit values (new.seq, new.state, new.attempts, new.reason); return null; end $$;
    create trigger audit after insert or update on outrigger.failures for each row execute function audit()";

/// What a scenario is given.
pub(crate) struct Run {
    pub(crate) seed: u64,
    /// As long as the fault list says, instead of a few seconds.
    pub(crate) full: bool,
    pub(crate) servers: Arc<Servers>,
}

impl Run {
    pub(crate) fn sink(&self) -> Sink {
        self.servers.broker.sink()
    }

    /// One of two lengths.
    pub(crate) fn last(&self, short: u64, full: u64) -> Duration {
        Duration::from_secs(if self.full { full } else { short })
    }

    /// One of two numbers.
    pub(crate) fn rounds(&self, short: usize, full: usize) -> usize {
        if self.full { full } else { short }
    }
}

/// What came out of a run.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) committed: usize,
    pub(crate) report: Report,
    /// Copies that the faults allow.
    pub(crate) bound: usize,
    /// Whether order is promised under this fault.
    pub(crate) order: bool,
    /// From the end of a fault until all that was committed before is published; the longest.
    pub(crate) recovery: Duration,
    /// Whatever else is wrong.
    pub(crate) problems: Vec<String>,
}

impl Counts {
    /// Everything that is wrong.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut report = self.report.clone();
        if !self.order {
            report.out_of_order.clear();
        }
        let mut problems = report.problems(self.committed, self.bound);
        problems.extend(self.problems.iter().cloned());
        problems
    }
}

/// One relay, between its proxies.
pub(crate) struct Replica {
    pub(crate) name: String,
    pub(crate) settings: Settings,
    pub(crate) database: Proxy,
    pub(crate) broker: Proxy,
    relay: Option<Relay>,
}

impl Replica {
    pub(crate) fn start(&mut self) {
        assert!(self.relay.is_none(), "{} runs", self.name);
        self.relay = Some(self.settings.start());
    }

    pub(crate) fn relay(&self) -> &Relay {
        self.relay.as_ref().expect("a running relay")
    }

    /// Ends it like a crash. What its proxies still hold is lost with it.
    pub(crate) fn kill(&mut self) {
        self.relay.take().expect("a running relay").kill();
        self.database.cut();
        self.broker.cut();
    }

    /// Stops it, and insists on a clean exit.
    pub(crate) async fn stop(&mut self) {
        self.relay.take().expect("a running relay").stop().await;
    }

    /// Waits for an end that is not our doing; its log stays.
    pub(crate) async fn ended(&mut self, limit: Duration) -> Relay {
        let mut relay = self.relay.take().expect("a running relay");
        relay.exit(limit).await;
        relay
    }

    /// Acts at the `nth` frame of this kind, on whichever of its connections.
    pub(crate) fn at(&self, label: Label, nth: usize, act: Act) -> Trap {
        let proxy = match label.is_postgres() {
            true => &self.database,
            false => &self.broker,
        };
        proxy.at(label, nth, act)
    }
}

/// See the module documentation.
pub(crate) struct Play {
    pub(crate) run: Run,
    pub(crate) stage: Outbox,
    /// Where events go; see [`crate::server`].
    pub(crate) place: String,
    pub(crate) replicas: Vec<Replica>,
    /// The place, if it is RabbitMQ's.
    exchange: Option<Exchange>,
    /// Whether the broker refuses events in this scenario. Otherwise an attempt that was counted is a defect.
    pub(crate) refusals: bool,
    /// Whether order is promised under the scenario's faults.
    pub(crate) order: bool,
    /// The relays' role, and where they find the database.
    pub(crate) role: String,
    pub(crate) database_port: u16,
    writers: Option<Writers>,
    random: StdRng,
    recovery: Duration,
}

impl Play {
    /// A stage with nobody on it.
    pub(crate) async fn open(run: Run) -> Self {
        let servers = &run.servers;
        let stage = Outbox::new(servers.postgres.clone(), "", &OutboxSettings::default()).await;
        Writers::prepare(&stage).await;
        let place = unique_name();
        servers.broker.open(&place).await;
        let exchange = match run.sink() {
            Sink::RabbitMq => Some(Exchange::open(servers, &place).await),
            _ => None,
        };
        let play = Self {
            stage,
            place,
            replicas: Vec::new(),
            exchange,
            refusals: false,
            order: true,
            role: "postgres".to_owned(),
            database_port: servers.postgres.port(),
            writers: None,
            random: StdRng::seed_from_u64(run.seed),
            recovery: Duration::ZERO,
            run,
        };
        play.audit().await;
        play
    }

    /// The server behind the sink.
    pub(crate) fn broker(&self) -> &Server {
        &self.run.servers.broker
    }

    /// For scenarios of RabbitMQ alone.
    pub(crate) fn exchange(&self) -> &Exchange {
        self.exchange.as_ref().expect("a scenario for RabbitMQ")
    }

    /// The same, to change it.
    pub(crate) fn exchange_mut(&mut self) -> &mut Exchange {
        self.exchange.as_mut().expect("a scenario for RabbitMQ")
    }

    /// The place refuses each event from now on, for a reason that is recorded.
    pub(crate) async fn refuse(&self) {
        match &self.exchange {
            Some(exchange) => exchange.unbind().await,
            None => self.broker().refuse(&self.place).await,
        }
    }

    /// Ends that.
    pub(crate) async fn accept(&self) {
        match &self.exchange {
            Some(exchange) => exchange.bind().await,
            None => self.broker().accept(&self.place).await,
        }
    }

    /// Nothing but the writers' own events finds its way.
    pub(crate) async fn narrow(&self) {
        // Other places take nothing else anyway.
        if let Some(exchange) = &self.exchange {
            exchange.narrow().await;
        }
    }

    /// Begins to keep failure records.
    pub(crate) async fn audit(&self) {
        let fresh = "drop table if exists audit; drop function if exists audit cascade";
        self.stage.run(&format!("{fresh}; {AUDIT}")).await;
    }

    /// Two replicas under load.
    pub(crate) async fn under_load(run: Run) -> Self {
        Self::under_load_with(run, |settings| settings).await
    }

    /// Two replicas under load, with further settings.
    pub(crate) async fn under_load_with(run: Run, tune: impl Fn(Settings) -> Settings) -> Self {
        let mut play = Self::open(run).await;
        play.begin(tune).await;
        play
    }

    /// Two replicas, and load.
    pub(crate) async fn begin(&mut self, tune: impl Fn(Settings) -> Settings) {
        for name in ["a", "b"] {
            self.add(name, &tune).await.start();
        }
        self.stage.await_owned(2).await;
        self.write().await;
        self.published(200).await;
    }

    /// The settings every replica has.
    fn settings(&self, name: &str) -> Settings {
        let settings = self.stage.source().set("RELAY_NAME", name);
        settings
            .set("RELAY_LEASE_TTL", format!("{}s", LEASE.as_secs()))
            .set("RELAY_BATCH_SIZE", WINDOW)
            .set("RELAY_MAX_IN_FLIGHT", WINDOW)
            // Each replica reaches the broker by a proxy of its own.
            .set("RELAY_TARGET", "the broker")
            // Little patience: an attempt that an outage burned would soon end in a dead event.
            .set("RETRY_MAX_ATTEMPTS", 2)
            .set("RETRY_BACKOFF_INITIAL", "50ms")
            .set("RETRY_BACKOFF_MAX", "200ms")
    }

    /// A replica that is not started yet.
    pub(crate) async fn add(
        &mut self,
        name: &str,
        tune: impl Fn(Settings) -> Settings,
    ) -> &mut Replica {
        let (postgres, server) = (&self.stage.postgres, self.broker());
        let database = Proxy::start(Protocol::Postgres, self.database_port).await;
        let broker = Proxy::start(server.protocol(), server.port()).await;
        let database_url = postgres.url_as(&self.role, &self.stage.database).replace(
            &format!(":{}/", postgres.port()),
            &format!(":{}/", database.port()),
        );
        let settings = self.settings(name).set("DATABASE_URL", database_url);
        let settings = server.route(settings, &self.place, broker.port());
        self.replicas.push(Replica {
            name: name.to_owned(),
            settings: tune(settings),
            database,
            broker,
            relay: None,
        });
        self.replicas.last_mut().expect("just pushed")
    }

    /// Writers at work, until the end.
    pub(crate) async fn write(&mut self) {
        let load = Load {
            writers: self.random(3..=5) as u64,
            keys: self.random(30..=120) as u32,
            events: None,
            pause: Duration::from_millis(self.random(5..=15) as u64),
            seed: self.run.seed,
        };
        self.writers = Some(Writers::start(&self.stage, load).await);
    }

    pub(crate) fn writers(&self) -> &Writers {
        self.writers.as_ref().expect("writers at work")
    }

    /// Ends the writers early.
    pub(crate) async fn silence(&mut self) {
        if let Some(writers) = self.writers.take() {
            writers.stop().await;
        }
    }

    /// A number from the seed.
    pub(crate) fn random(&mut self, range: RangeInclusive<usize>) -> usize {
        self.random.random_range(range)
    }

    /// A pause from the seed.
    pub(crate) async fn pause_ms(&mut self, range: RangeInclusive<usize>) {
        // The length of the pause is what is random about the fault; nothing is waited for.
        let pause = self.random(range) as u64;
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }

    /// Lets a fault last for so long, in which every relay can do nothing but wait, and insists that it costs next to nothing.
    pub(crate) async fn idle_through(&self, length: Duration) {
        let relays = || self.replicas.iter().map(Replica::relay);
        let before: Vec<Duration> = relays().map(Relay::processor_time).collect();
        let began = Instant::now();
        tokio::time::sleep(length).await;
        for (relay, before) in relays().zip(before) {
            let (used, took) = (relay.processor_time() - before, began.elapsed());
            assert!(
                used * IDLE_SHARE < took,
                "{} used {used:?} of the processor in {took:?} in which it could only wait",
                relay.name(),
            );
        }
    }

    /// Waits until `more` further events are published.
    pub(crate) async fn published(&self, more: i64) {
        let published = "select count(*) from outbox where published_at is not null";
        let wanted = self.stage.count(published).await + more;
        self.stage
            .await_that(
                &format!("{more} more events are published"),
                published,
                PATIENCE,
                move |count| count >= wanted,
            )
            .await;
    }

    /// Waits until the replica of this name owns everything.
    pub(crate) async fn sole_owner(&self, name: &str) {
        let others = format!(
            "select count(*) from outrigger.partitions p where not exists \
             (select from outrigger.replicas r where r.replica = p.owner and r.name = '{name}')"
        );
        let what = format!("{name} owns every partition");
        self.stage.await_count(&what, &others, 0).await;
    }

    /// The fault is over: waits until all that is committed by now is published, and notes how long it takes.
    pub(crate) async fn recovered(&mut self) {
        let began = Instant::now();
        let last = "select coalesce(max(seq), 0) from outbox";
        let last = self.stage.count(last).await;
        let open =
            format!("select count(*) from outbox where published_at is null and seq <= {last}");
        let what = "everything committed before the end of the fault is published";
        self.stage
            .await_that(what, &open, RECOVERY_MAX, |count| count == 0)
            .await;
        self.recovery = self.recovery.max(began.elapsed());
    }

    /// The longest recovery so far.
    pub(crate) fn longest_recovery(&self) -> Duration {
        self.recovery
    }

    /// New connections to servers that came back.
    pub(crate) async fn reconnect(&mut self) {
        self.stage.sql = self.stage.client().await;
        if let Some(exchange) = &mut self.exchange {
            exchange.reconnect().await;
        }
    }

    /// Adds events at once, each key's in order, to outbox and ledger.
    pub(crate) async fn backlog(&self, events: usize) {
        self.stage
            .run(&format!(
                "with event as (insert into outbox (type, key, data) \
                   select 'backlog', 'b' || g % 500, jsonb_build_object('p', repeat('x', 1000)) \
                   from generate_series(1, {events}) g returning id, key, seq, data) \
                 insert into ledger select id, key, seq, seq, data::text from event"
            ))
            .await;
    }

    /// Lets everything settle, stops all replicas, reads what has arrived, and compares.
    pub(crate) async fn finish(mut self, bound: usize) -> Counts {
        self.silence().await;
        self.stage
            .await_count(
                "every event is published or dead",
                "select count(*) from outbox o where published_at is null and not exists \
                 (select from outrigger.failures f where f.seq = o.seq and f.state = 'dead')",
                0,
            )
            .await;
        // A replica that lost a partition leaves its notes about rows that another one published meanwhile. The owner
        // removes them when it next compares the records with the table.
        self.stage
            .await_count(
                "every note about a published event is removed",
                "select count(*) from outbox o join outrigger.failures f on f.seq = o.seq \
                 where o.published_at is not null and f.state in ('suspect', 'unsettled')",
                0,
            )
            .await;
        let mut logs = String::new();
        let mut defects = Vec::new();
        for replica in &mut self.replicas {
            if let Some(relay) = &replica.relay {
                let name = &replica.name;
                let log = relay.log();
                defects.extend(
                    log.lines()
                        .filter(|line| line.contains("waits for a moment that has passed"))
                        .map(str::to_owned),
                );
                logs += &format!("--- log of relay {name} ---\n{log}\n");
                replica.stop().await;
            }
        }
        let arrivals = match &mut self.exchange {
            Some(exchange) => exchange.arrivals().await,
            None => self.run.servers.broker.arrivals(&self.place).await,
        };
        let mut counts = self.compare(&arrivals, bound).await;
        counts.problems.append(&mut defects);
        if !counts.problems().is_empty() {
            eprint!("{logs}");
        }
        counts
    }

    async fn compare(&self, arrivals: &[Arrival], bound: usize) -> Counts {
        let (committed, report) = self.stage.compare(arrivals).await;
        let mut problems = Vec::new();
        if !self.refusals {
            // An unsettled row was published; only its mark is tried again.
            let burned = "select format('%s %s %s %s', seq, state, attempts, reason) from audit \
                          where state not in ('suspect', 'unsettled') limit 5";
            let burned = self.stage.texts(burned).await;
            if !burned.is_empty() {
                problems.push(format!("an outage was counted as an attempt: {burned:?}"));
            }
        }
        Counts {
            committed,
            report,
            bound,
            order: self.order,
            recovery: self.recovery,
            problems,
        }
    }
}
