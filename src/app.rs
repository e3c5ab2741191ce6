//! The composition root: builds the relay from the settings, starts it, and stops it.
//!
//! Start: wait for the database and its table, build the sink, run. Stop: the first signal ends reading
//! and waits for what is in flight; a second one, or the deadline, abandons it, and that is a failure.

mod retention;
mod watcher;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::Rng as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::admin::backlog::Watched;
use crate::admin::{Admin, Facts, Site};
use crate::assemble;
use crate::cli::{FAILED, Failure};
use crate::relay::core::window::Ordering;
use crate::relay::core::{CoreConfig, LAST_LOOK};
use crate::relay::driver::{self, Ended, Parts};
use crate::relay::live::Live;
use crate::settings::{self, AfterPublish, EventMode, Settings, SinkKind, Traces, Wake};
use crate::sink::stdout::StdoutSink;
use crate::sink::{self, Sink};
use crate::store::postgres::{Capabilities, Database, PostgresStore, StoreErrorKind};
use crate::telemetry::lasting::Lasting;
use crate::telemetry::metrics::Measured;
use crate::telemetry::trace::Tracer;

/// Events in one batch of one lane.
const LANE_BATCH: usize = 200;
/// The same where a lane waits for each event: a large batch would keep them from the other lanes.
const SEQUENTIAL_LANE_BATCH: usize = 8;
/// The same where this many make a request.
const REQUEST_LANE_BATCH: usize = 10;
/// Longest pause between two looks at a database that is not ready.
const OPEN_PAUSE_MAX: Duration = Duration::from_secs(5);

/// Runs the relay until a signal ends it.
pub async fn run(settings: &Settings) -> Result<(), Failure> {
    let (stop, now) = stop_signals()?;
    tokio::select! {
        result = Box::pin(relay(settings, stop)) => result,
        () = now.cancelled() => {
            tracing::error!("second signal: leaving at once, events in flight will be published again");
            Err(Failure::silent(FAILED))
        }
    }
}

async fn relay(settings: &Settings, mut stop: watch::Receiver<bool>) -> Result<(), Failure> {
    // Everything that can be wrong with the settings comes before the first connection.
    let (encoder, dead_letters) = assemble::encoder(settings)?;
    let database = assemble::database(settings)?;
    let listen_database = assemble::listen_database(settings)?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        database = %database.target(),
        table = %settings.outbox.table,
        name = %settings.relay.name,
        sink = settings.sink.name(),
        // `target` is a word of the log itself.
        sink_target = %assemble::target(settings),
        source = %settings.event.source,
        ordering = settings.relay.ordering.as_str(),
        "outrigger starts"
    );
    if settings.sink == SinkKind::Stdout {
        tracing::warn!(
            "OUTRIGGER_SINK=stdout: events are printed here and marked as published; they go nowhere else. To see \
             them without that, use `outrigger tail --as-sent`"
        );
    }
    let (live, watching) = watch::channel(Live::starting());
    // Before anything is waited for: who waits for long should be able to say so.
    let measured = Arc::new(Measured::default());
    let (watched, seen) = watch::channel(Watched::default());
    let site = Site {
        facts: facts(settings, &database),
        live: watching.clone(),
        measured: Arc::clone(&measured),
        watched: seen,
        history: Mutex::default(),
    };
    let _admin = match settings.admin.listen {
        Some(address) => Some(serve(address, site).await?),
        None => None,
    };
    let sink = sink(settings)?;
    let Some(store) = open(&database, &mut stop, Some(&live)).await? else {
        sink.close().await;
        return Ok(());
    };
    fits(&store.capabilities(), settings)?;
    let listener = match (settings.relay.wake, listen_database) {
        (Wake::Poll, _) => None,
        (Wake::Listen, None) => Some(store.listen()),
        (Wake::Listen, Some(direct)) => Some(store.listen_by(&direct)),
    };

    let _watch = settings.admin.listen.map(|_| {
        let kept = crate::cli::output::retention(settings, &store.capabilities());
        watched.send_modify(|watched| watched.retention = kept);
        let watch = watcher::watch(store.clone(), measured.clone(), watching.clone(), watched);
        AbortOnDropHandle::new(tokio::spawn(watch))
    });
    let retention = retention::keep(store.clone(), settings.clone(), measured.clone(), watching);
    let retention = tokio::spawn(retention);
    let tracer = tracer(settings);
    let parts = Parts {
        core: core_config(settings, dead_letters.is_some()),
        name: settings.relay.name.clone(),
        configuration: assemble::configuration(settings),
        partitions: settings.relay.partitions,
        database,
        store,
        listener,
        sink,
        encoder,
        dead_letters,
        measured,
        tracer: tracer.clone(),
    };
    let running = driver::run(parts, stop, settings.relay.shutdown_timeout, live);
    let ended = Box::pin(running).await;
    retention.abort();
    // After the partitions are handed over: nobody waits for a collector.
    if let Some(tracer) = tracer {
        tracer.stop().await;
    }
    match ended? {
        Ended::Clean => {
            tracing::info!("stopped; everything in flight was settled");
            Ok(())
        }
        Ended::Abandoned(events) => {
            tracing::error!(
                events,
                "OUTRIGGER_RELAY_SHUTDOWN_TIMEOUT passed; unsettled events will be published again"
            );
            Err(Failure::silent(FAILED))
        }
    }
}

/// The first TERM, INT or HUP asks for an orderly stop, the second for an immediate exit. HUP is sent when a terminal closes, and by some
/// supervisors; under `nohup` it is ignored.
fn stop_signals() -> Result<(watch::Receiver<bool>, CancellationToken), Failure> {
    let (stop, stopping) = watch::channel(false);
    let now = CancellationToken::new();
    let leave = now.clone();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = match ignores_hangup() {
        true => None,
        false => Some(signal(SignalKind::hangup())?),
    };
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                Some(_) = async { hangup.as_mut()?.recv().await } => {}
            }
            if stop.send_replace(true) {
                leave.cancel();
            } else {
                tracing::info!("stopping: events in flight are settled, partitions handed over");
            }
        }
    });
    Ok((stopping, now))
}

/// Whether this process was started with HUP ignored, as the system tells on Linux.
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // HUP is signal 1: the lowest bit.
    ignored.is_some_and(|mask| u64::from_str_radix(mask.trim(), 16).is_ok_and(|mask| mask & 1 == 1))
}

/// Who makes spans, if anybody wants them. Events do not wait for that to be put right.
fn tracer(settings: &Settings) -> Option<Arc<Tracer>> {
    let started = match &settings.traces {
        Traces::Off => return None,
        Traces::Refused(why) => Err(why.clone()),
        Traces::On(export) => {
            for warning in &export.warnings {
                tracing::warn!("{warning}");
            }
            Tracer::start(export, settings.sink.name(), &settings.relay.name)
        }
    };
    match started {
        Ok(tracer) => Some(Arc::new(tracer)),
        Err(why) => {
            tracing::warn!("no spans are exported: {why}");
            None
        }
    }
}

fn sink(settings: &Settings) -> Result<Box<dyn Sink>, Failure> {
    let started = match settings.sink {
        #[cfg(feature = "rabbitmq")]
        SinkKind::RabbitMq => sink::rabbitmq::start(assemble::rabbitmq(settings)),
        #[cfg(feature = "nats")]
        SinkKind::Nats => sink::nats::start(assemble::nats(settings)),
        #[cfg(feature = "http")]
        SinkKind::Http => sink::http::start(assemble::http(settings)),
        #[cfg(feature = "kafka")]
        SinkKind::Kafka => sink::kafka::start(assemble::kafka(settings)),
        #[cfg(feature = "eventbridge")]
        SinkKind::EventBridge => sink::eventbridge::start(assemble::eventbridge(settings)),
        SinkKind::Stdout => return Ok(Box::new(StdoutSink::new())),
        // The rules of the settings say so before, and with a hint.
        #[allow(unreachable_patterns)]
        other => Err(vec![format!(
            "this program was built without {}",
            other.name()
        )]),
    };
    started.map_err(|errors| Failure::usage(errors.join("\n")))
}

/// Starts the admin listener; it ends with what is returned.
async fn serve(address: SocketAddr, site: Site) -> Result<AbortOnDropHandle<()>, Failure> {
    let admin = Admin::bind(address).await.map_err(|error| {
        Failure::usage(format!(
            "OUTRIGGER_ADMIN_LISTEN={address}: cannot listen there: {error}"
        ))
        .hint(
            "does another relay run on this host? Relays of one outbox share its events and must have the same \
             settings. If both are meant to run, choose a free port for each (port 0 takes any), or set \
             OUTRIGGER_ADMIN_LISTEN=off",
        )
    })?;
    tracing::info!(address = %admin.address(), "admin listener");
    let serving = admin.serve(Arc::new(site));
    Ok(AbortOnDropHandle::new(tokio::spawn(serving)))
}

fn facts(settings: &Settings, database: &Database) -> Facts {
    Facts {
        version: env!("CARGO_PKG_VERSION"),
        name: settings.relay.name.clone(),
        table: settings.outbox.table.clone(),
        sink: settings.sink.name(),
        target: assemble::target(settings),
        destination: settings.route.destination.clone(),
        database: database.target(),
    }
}

/// Opens the outbox. A sidecar starts before the service that creates the table, so what is
/// missing is waited for. `None`: asked to stop meanwhile.
async fn open(
    database: &Database,
    stop: &mut watch::Receiver<bool>,
    live: Option<&watch::Sender<Live>>,
) -> Result<Option<PostgresStore>, Failure> {
    let mut pause = Duration::from_millis(200);
    let mut said = String::new();
    let mut waits = Lasting::begins();
    loop {
        let result = tokio::select! {
            result = database.open() => result,
            _ = stop.wait_for(|stop| *stop) => return Ok(None),
        };
        let error = match result {
            Ok(store) => return Ok(Some(store)),
            Err(error) if error.kind() == StoreErrorKind::Fatal => return Err(error.into()),
            Err(error) => error,
        };
        let text = error.to_string();
        if let Some(live) = live {
            live.send_modify(|live| live.not_opened(&error));
        }
        if text != said {
            tracing::warn!(%error, "the outbox is not ready; waiting for it");
            said = text;
        } else if let Some(lasted) = waits.due() {
            tracing::warn!("still waiting for the outbox, {lasted}: {error}");
        }
        let jittered = pause.mul_f64(rand::rng().random_range(0.5..1.0));
        tokio::select! {
            () = tokio::time::sleep(jittered) => {}
            _ = stop.wait_for(|stop| *stop) => return Ok(None),
        }
        pause = (pause * 2).min(OPEN_PAUSE_MAX);
    }
}

/// What the table cannot offer is refused, not guessed.
fn fits(table: &Capabilities, settings: &Settings) -> Result<(), Failure> {
    let ordered = settings.relay.ordering != settings::Ordering::None;
    if ordered && !table.has_order {
        return Err(Failure::usage(format!(
            "table {} has no order column, so OUTRIGGER_RELAY_ORDERING cannot keep order",
            table.outbox
        ))
        .hint(format!(
            "alter table {} add column seq bigint generated always as identity, and set \
             OUTRIGGER_OUTBOX_COLUMN_SEQ=seq; or set OUTRIGGER_RELAY_ORDERING=none",
            table.outbox
        )));
    }
    if settings.outbox.after_publish == AfterPublish::Mark && !table.has_published {
        return Err(Failure::usage(format!(
            "table {} has no published column, so OUTRIGGER_OUTBOX_AFTER_PUBLISH=mark has nothing to mark",
            table.outbox
        ))
        .hint("set OUTRIGGER_OUTBOX_AFTER_PUBLISH=delete, or name the column in OUTRIGGER_OUTBOX_COLUMN_PUBLISHED_AT"));
    }
    if ordered && !table.has_key {
        tracing::warn!("the table has no key column: events are not ordered");
    }
    if table.unlogged {
        tracing::warn!(
            "table {} is UNLOGGED: PostgreSQL empties it after a crash, published or not, and no standby has its rows",
            table.outbox
        );
    }
    Ok(())
}

fn core_config(settings: &Settings, dead_letter: bool) -> CoreConfig {
    let relay = &settings.relay;
    CoreConfig {
        ordering: match relay.ordering {
            settings::Ordering::Strict => Ordering::Strict,
            settings::Ordering::Pipelined => Ordering::Pipelined,
            settings::Ordering::None => Ordering::None,
        },
        lane_batch: match settings.sink {
            // A batch message is one request, and needs events to be made of.
            SinkKind::Http if settings.event.mode != EventMode::Batch => SEQUENTIAL_LANE_BATCH,
            SinkKind::EventBridge => REQUEST_LANE_BATCH,
            _ => LANE_BATCH,
        }
        .min(relay.batch_size),
        batch_size: relay.batch_size,
        max_in_flight: relay.max_in_flight,
        max_in_flight_bytes: relay.max_in_flight_bytes,
        max_event_bytes: relay.max_event_size,
        poll_interval: relay.poll_interval,
        lease_ttl: relay.lease_ttl,
        retry: settings.retry.policy(),
        dead_letter,
        // The rest is for what is in flight then.
        last_look: LAST_LOOK.min(relay.shutdown_timeout / 2),
        ..CoreConfig::default()
    }
}
