//! `/metrics`: writes down what is known. Asks nobody and waits for nothing.

use std::sync::atomic::Ordering::Relaxed;

use tokio::time::Instant;

use super::Site;
use super::backlog::waiting;
use super::process::Process;
use crate::error::ReasonCode;
use crate::relay::core::ByReason;
use crate::relay::core::pace::WakeReason;
use crate::relay::live::{Disagreement, Live};
use crate::sink::SinkState;
use crate::store::configuration::Difference;
use crate::store::postgres::ListenState;
use crate::store::postgres::figures::Upkeep;
use crate::telemetry::metrics::table::{self as metrics, UNAVAILABLE};
use crate::telemetry::metrics::{Format, Measured, Metric, Operation, Page};

/// The whole scrape.
pub(super) fn scrape(site: &Site, format: Format) -> String {
    let live = site.live.borrow().clone();
    let watched = site.watched.borrow().clone();
    let now = Instant::now();
    let mut page = Page::new(format);

    totals(&mut page, &live);
    page.histogram(&metrics::END_TO_END, &[], &site.measured.end_to_end);
    let counted = watched.backlog;
    let waits = waiting(&live, counted.as_ref(), now);
    page.value(&metrics::BACKLOG, &[], waits.events as f64);
    page.value(&metrics::BACKLOG_ESTIMATED, &[], flag(waits.estimated));
    if let Some(oldest) = waits.oldest {
        page.value(&metrics::OLDEST_PENDING, &[], oldest.as_secs_f64());
    }
    if let Some(counted) = counted {
        let backlog = counted.backlog;
        let counts = [
            backlog.retrying,
            backlog.blocked,
            backlog.dead,
            backlog.unsettled,
        ];
        for (state, count) in metrics::FAILED_STATES.iter().zip(counts) {
            page.value(&metrics::FAILED_EVENTS, &[("state", state)], count as f64);
        }
    }
    let gauges = live.gauges;
    page.value(&metrics::IN_FLIGHT, &[], gauges.in_flight as f64);
    page.value(
        &metrics::IN_FLIGHT_BYTES,
        &[],
        gauges.in_flight_bytes as f64,
    );
    page.value(&metrics::HELD_KEYS, &[], gauges.held_keys as f64);
    page.value(&metrics::PARKED_KEYS, &[], gauges.parked_keys as f64);
    measured(&mut page, &site.measured);
    for (reason, count) in WakeReason::ALL.iter().zip(live.totals.wakes) {
        page.value(
            &metrics::WAKEUPS,
            &[("reason", reason.as_str())],
            count as f64,
        );
    }
    let discarded = live.totals.discarded_reads;
    page.value(&metrics::DISCARDED_READS, &[], discarded as f64);
    ownership(&mut page, &live, now);
    connections(&mut page, &live);
    if let Some(upkeep) = &watched.upkeep {
        table(&mut page, upkeep);
    }
    if let Some(counted) = counted {
        let age = now.saturating_duration_since(counted.at);
        page.value(&metrics::FIGURES_AGE, &[], age.as_secs_f64());
    }
    let facts = &site.facts;
    let labels = [
        ("version", facts.version),
        ("name", facts.name.as_str()),
        ("table", facts.table.as_str()),
        ("sink", facts.sink),
    ];
    page.value(&metrics::INFO, &labels, 1.0);
    process(&mut page);
    page.finish()
}

fn flag(value: bool) -> f64 {
    f64::from(u8::from(value))
}

fn by_reason(page: &mut Page, metric: &Metric, counts: &ByReason) {
    for (code, count) in ReasonCode::ALL.iter().zip(counts) {
        page.value(metric, &[("reason", code.as_str())], *count as f64);
    }
}

fn totals(page: &mut Page, live: &Live) {
    let totals = &live.totals;
    page.value(&metrics::PUBLISHED, &[], totals.published as f64);
    by_reason(page, &metrics::PUBLISH_FAILURES, &totals.refused);
    let unavailable = [("reason", UNAVAILABLE)];
    let count = totals.unavailable as f64;
    page.value(&metrics::PUBLISH_FAILURES, &unavailable, count);
    page.value(&metrics::RETRIES, &[], totals.retried as f64);
    by_reason(page, &metrics::DEAD, &totals.dead);
    by_reason(page, &metrics::BLOCKED, &totals.blocked);
    page.value(&metrics::EXPIRED, &[], totals.expired as f64);
}

fn measured(page: &mut Page, measured: &Measured) {
    page.histogram(&metrics::PUBLISH_SECONDS, &[], &measured.publish);
    for operation in Operation::ALL {
        let labels = [("operation", operation.as_str())];
        let durations = &measured.database[operation as usize];
        page.histogram(&metrics::DATABASE_SECONDS, &labels, durations);
    }
    for operation in Operation::ALL {
        let labels = [("operation", operation.as_str())];
        let errors = measured.database_errors[operation as usize].load(Relaxed);
        page.value(&metrics::DATABASE_ERRORS, &labels, errors as f64);
    }
    for (step, sizes) in metrics::BATCH_STEPS.iter().zip(&measured.batches) {
        page.histogram(&metrics::BATCH_EVENTS, &[("step", step)], sizes);
    }
}

fn ownership(page: &mut Page, live: &Live, now: Instant) {
    page.value(
        &metrics::PARTITIONS_OWNED,
        &[],
        live.gauges.partitions as f64,
    );
    if let Some(tick) = &live.tick {
        let alive = super::replicas_alive(live, now);
        let unowned = tick
            .partitions
            .iter()
            .filter(|row| !row.owner.is_some_and(|owner| alive.contains(&owner)));
        page.value(&metrics::PARTITIONS, &[], tick.partitions.len() as f64);
        page.value(&metrics::PARTITIONS_UNOWNED, &[], unowned.count() as f64);
        page.value(&metrics::REPLICAS, &[], alive.len() as f64);
    }
    let splits = |other: &Disagreement| other.differences.iter().any(Difference::splits);
    let disagreements = &live.peers.disagreements;
    let aside = disagreements.iter().filter(|other| splits(other)).count();
    let counts = [aside, disagreements.len() - aside];
    for (effect, count) in metrics::DISAGREEMENTS.iter().zip(counts) {
        let labels = [("effect", *effect)];
        page.value(&metrics::REPLICAS_DISAGREE, &labels, count as f64);
    }
    page.value(&metrics::OWNERSHIP_PROVEN, &[], flag(live.gauges.proven));
    page.value(&metrics::PAUSED, &[], flag(live.gauges.paused));
}

fn connections(page: &mut Page, live: &Live) {
    page.value(&metrics::DATABASE_UP, &[], flag(live.database.is_none()));
    let connected = !matches!(live.broker, SinkState::Down(_));
    page.value(&metrics::BROKER_CONNECTED, &[], flag(connected));
    let blocked = matches!(live.broker, SinkState::Blocked(_));
    page.value(&metrics::BROKER_BLOCKED, &[], flag(blocked));
    if let Some(state) = &live.listener {
        let listening = *state == ListenState::Listening;
        page.value(&metrics::LISTENER_CONNECTED, &[], flag(listening));
    }
}

fn table(page: &mut Page, upkeep: &Upkeep) {
    page.value(&metrics::TABLE_BYTES, &[], upkeep.bytes as f64);
    page.value(&metrics::TABLE_LIVE_ROWS, &[], upkeep.live_rows as f64);
    page.value(&metrics::TABLE_DEAD_ROWS, &[], upkeep.dead_rows as f64);
    let counts = [upkeep.discarded, upkeep.expired];
    for (state, count) in metrics::UNPUBLISHED_STATES.iter().zip(counts) {
        page.value(
            &metrics::UNPUBLISHED_EVENTS,
            &[("state", state)],
            count as f64,
        );
    }
    let holdups = [upkeep.session, upkeep.prepared, upkeep.slot];
    let holders = metrics::SNAPSHOT_HOLDERS.iter().zip(holdups);
    for (holder, holdup) in holders.clone().take(2) {
        let labels = [("holder", *holder)];
        page.value(
            &metrics::SNAPSHOT_SECONDS,
            &labels,
            holdup.age.as_secs_f64(),
        );
    }
    for (holder, holdup) in holders {
        let labels = [("holder", *holder)];
        let transactions = holdup.transactions as f64;
        page.value(&metrics::SNAPSHOT_TRANSACTIONS, &labels, transactions);
    }
}

fn process(page: &mut Page) {
    let process = Process::look();
    for (metric, value) in [
        (&metrics::PROCESS_CPU, process.cpu_seconds),
        (&metrics::PROCESS_RESIDENT, process.resident),
        (&metrics::PROCESS_VIRTUAL, process.virtual_memory),
        (&metrics::PROCESS_FDS, process.open_fds),
        (&metrics::PROCESS_MAX_FDS, process.max_fds),
        (&metrics::PROCESS_START, process.started),
    ] {
        if let Some(value) = value {
            page.value(metric, &[], value);
        }
    }
}
