//! `/status`: what the status page shows, as JSON. No payload, no key, no credentials.

use serde_json::{Value, json};
use tokio::time::Instant;

use super::Site;
use super::backlog::waiting;
use super::health::{self, Outcome};
use super::history::{SAMPLE_EVERY, latency};
use super::verdict;
use crate::relay::live::Live;
use crate::store::FailureState;
use crate::store::postgres::admin::FailureRow;
use crate::store::postgres::status::FailureGroup;

/// The answer.
pub(super) fn status(site: &Site) -> Value {
    let now = Instant::now();
    let live = site.live.borrow().clone();
    let watched = site.watched.borrow().clone();
    let waits = waiting(&live, watched.backlog.as_ref(), now);
    let counted = watched.backlog.map(|counted| counted.backlog);
    let counted = counted.unwrap_or_default();
    let facts = &site.facts;
    let failures: Vec<Value> = watched
        .failures
        .iter()
        .map(|row| failure(site, now, row))
        .collect();
    let (replicas, partitions) = replicas(&live, now);
    let rate = site
        .history()
        .samples()
        .last()
        .map_or(0.0, |sample| sample.published);
    let alive = super::replicas_alive(&live, now).len();
    let verdict = verdict::verdict(&live, &watched, &waits, rate, alive, now);
    let groups: Vec<Value> = watched
        .groups
        .iter()
        .map(|of| group(site, now, of))
        .collect();
    json!({
        "version": facts.version,
        "name": facts.name,
        "table": facts.table,
        "database": facts.database,
        "sink": facts.sink,
        "target": facts.target,
        "destination": facts.destination,
        "retention": watched.retention,
        "verdict": { "outcome": word(verdict.outcome), "text": verdict.text },
        "paused": live.gauges.paused,
        "checks": checks(&live),
        "published": live.totals.published,
        "backlog": {
            "events": waits.events,
            "estimated": waits.estimated,
            "oldest_seconds": waits.oldest.map(|age| age.as_secs_f64()),
            "in_flight": live.gauges.in_flight,
            "held_keys": live.gauges.held_keys,
            "parked_keys": live.gauges.parked_keys,
            "retrying": counted.retrying,
            "blocked": counted.blocked,
            "dead": counted.dead,
            "discarded": watched.upkeep.map_or(0, |upkeep| upkeep.discarded),
            "expired": watched.upkeep.map_or(0, |upkeep| upkeep.expired),
        },
        "latency": latencies(site),
        "replicas": replicas,
        "partitions": partitions,
        "failures": failures,
        "failure_groups": groups,
        "history": history(site),
    })
}

fn checks(live: &Live) -> Vec<Value> {
    let checks = health::ready(live).checks.into_iter();
    checks
        .map(|check| {
            json!({ "name": check.name, "outcome": word(check.outcome), "detail": check.detail })
        })
        .collect()
}

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Ok => "ok",
        Outcome::Degraded => "degraded",
        Outcome::Failed => "failed",
    }
}

/// Failed events of one kind, with what to run first.
fn group(site: &Site, now: Instant, of: &FailureGroup) -> Value {
    let since = site.measured.clock.since(now, of.since);
    let reason = of.reason.as_deref();
    let filter = reason.map_or(String::new(), |reason| format!(" --reason {reason}"));
    json!({
        "state": of.state,
        "reason": of.reason,
        "type": of.event_type,
        "events": of.count,
        "error": of.error,
        "since_seconds_ago": since.map(|ago| ago.as_secs_f64()),
        "command": format!("outrigger dead list --state {}{filter}", of.state),
    })
}

fn latencies(site: &Site) -> Value {
    let counts = site.history().last_minute();
    json!({ "p50": latency(site, &counts, 0.5), "p99": latency(site, &counts, 0.99) })
}

/// The replicas, and for each partition the place of its owner among them.
fn replicas(live: &Live, now: Instant) -> (Vec<Value>, Vec<Option<usize>>) {
    let Some(tick) = &live.tick else {
        return (Vec::new(), Vec::new());
    };
    let alive = super::replicas_alive(live, now);
    let since = now.saturating_duration_since(live.ticked_at);
    let partitions: Vec<Option<usize>> = tick
        .partitions
        .iter()
        .map(|row| {
            let owner = row.owner?;
            tick.replicas.iter().position(|row| row.replica == owner)
        })
        .collect();
    let replicas = tick.replicas.iter().enumerate().map(|(place, row)| {
        json!({
            "name": row.name,
            "me": Some(row.replica) == live.replica,
            "alive": alive.contains(&row.replica),
            "lease_seconds": row.alive_for.saturating_sub(since).as_secs_f64(),
            "owns": partitions.iter().filter(|owner| **owner == Some(place)).count(),
        })
    });
    (replicas.collect(), partitions)
}

/// The key is left out: it may name a person.
fn failure(site: &Site, now: Instant, row: &FailureRow) -> Value {
    let command = match row.state {
        FailureState::Blocked | FailureState::Dead => "retry",
        // These go by themselves, or are over.
        _ => "show",
    };
    let ago = site.measured.clock.since(now, row.last_failed_at);
    json!({
        // As text: a number of this size is not exact in JavaScript.
        "seq": row.seq.to_string(),
        "id": row.event_id,
        "type": row.event_type,
        "state": row.state.as_str(),
        "attempts": row.attempts,
        "reason": row.reason,
        "error": row.error,
        "failed_seconds_ago": ago.map(|ago| ago.as_secs_f64()),
        "command": format!("outrigger dead {command} {}", row.seq),
    })
}

fn history(site: &Site) -> Value {
    let history = site.history();
    let column = |of: &dyn Fn(&super::history::Sample) -> Value| -> Vec<Value> {
        history.samples().map(of).collect()
    };
    let rounded = |value: f64| json!((value * 1e4).round() / 1e4);
    let share = |share: f64| {
        column(&|sample| match latency(site, &sample.latencies, share) {
            Some(value) => rounded(value),
            None => Value::Null,
        })
    };
    json!({
        "every_seconds": SAMPLE_EVERY.as_secs(),
        "rate": column(&|sample| rounded(sample.published)),
        "read": column(&|sample| rounded(sample.read)),
        "backlog": column(&|sample| json!(sample.backlog)),
        "oldest": column(&|sample| sample.oldest.map_or(Value::Null, rounded)),
        "p50": share(0.5),
        "p99": share(0.99),
    })
}
