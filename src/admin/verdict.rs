//! How this replica and its outbox stand, in one sentence, for the top of the status page.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::backlog::{Waiting, Watched};
use super::health::{self, Outcome};
use crate::relay::live::{Live, Phase};

/// Events that wait for longer, with none published, wait for something.
const LATE: Duration = Duration::from_secs(30);

/// A level in the words of the checks, and a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) outcome: Outcome,
    pub(super) text: String,
}

/// `rate`: events per second of late; `replicas`: those alive.
pub(super) fn verdict(
    live: &Live,
    watched: &Watched,
    waits: &Waiting,
    rate: f64,
    replicas: usize,
    now: Instant,
) -> Verdict {
    let events = match (waits.events, waits.estimated) {
        (1, _) => "1 event waits".to_owned(),
        (n, true) => format!("about {} events wait", grouped(n)),
        (n, false) => format!("{} events wait", grouped(n)),
    };
    let some = waits.events > 0;
    let of = |outcome, text| Verdict { outcome, text };
    let with = |text: String| match some {
        true => format!("{text}. {}.", capital(&events)),
        false => format!("{text}."),
    };
    if live.phase == Phase::Stopping || live.phase == Phase::Stopped {
        return of(
            Outcome::Degraded,
            with("Stopping: events in flight are settled and partitions handed over".into()),
        );
    }
    let failed = health::ready(live).checks.into_iter();
    let mut failed = failed.filter(|check| check.outcome == Outcome::Failed);
    if let Some(check) = failed.next() {
        let since = live
            .trouble_since
            .map(|at| now.saturating_duration_since(at));
        let since = since.filter(|since| since.as_secs() > 0);
        let lasts = since.map_or(String::new(), |since| format!(" for {}", spoken(since)));
        let what = match live.phase {
            Phase::Starting => "Starting",
            _ => "Not publishing",
        };
        let text = with(format!("{what}{lasts}: {}: {}", check.name, check.detail));
        return of(Outcome::Failed, format!("{text} Nothing is lost."));
    }
    if live.gauges.paused {
        let (since, reason) = match &watched.paused {
            Some((at, reason)) => {
                let since = Timestamp::now().duration_since(*at);
                let since = Duration::try_from(since).unwrap_or_default();
                let reason = reason.as_deref().map(|reason| format!(": {reason}"));
                (
                    format!(" {} ago", spoken(since)),
                    reason.unwrap_or_default(),
                )
            }
            None => (String::new(), String::new()),
        };
        let text = with(format!("Paused{since}{reason}; `outrigger resume` ends it"));
        return of(Outcome::Degraded, text);
    }
    if live.peers.stands_aside {
        let first = live.peers.disagreements.first();
        let name = first.map_or("another replica", |other| other.name.as_str());
        let text =
            format!("Takes no partition while {name} publishes this outbox to another place");
        return of(Outcome::Degraded, with(text));
    }
    let share = match (live.gauges.partitions, replicas) {
        (0, _) => "On standby, other replicas own all partitions".to_owned(),
        (_, 0 | 1) => "Publishing, 1 replica".to_owned(),
        (_, n) => format!("Publishing, {n} replicas"),
    };
    let given_up = watched
        .backlog
        .map_or(0, |counted| counted.backlog.dead + counted.backlog.blocked);
    if some
        && rate == 0.0
        && live.gauges.partitions > 0
        && waits.oldest.is_some_and(|age| age > LATE)
    {
        let oldest = waits.oldest.map_or(String::new(), |age| {
            format!(", the oldest for {}", spoken(age))
        });
        let text = format!(
            "{}{oldest}, and none was published lately.",
            capital(&events)
        );
        return of(Outcome::Degraded, text);
    }
    match given_up {
        0 if some => of(Outcome::Ok, with(share)),
        0 => of(Outcome::Ok, format!("{share}. Nothing waits.")),
        1 => of(
            Outcome::Degraded,
            with(format!("{share}. 1 event is dead or blocked, see below")),
        ),
        n => of(
            Outcome::Degraded,
            with(format!(
                "{share}. {} events are dead or blocked, see below",
                grouped(n)
            )),
        ),
    }
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_uppercase().chain(chars).collect(),
        None => String::new(),
    }
}

/// `12,345`.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn spoken(time: Duration) -> String {
    match time.as_secs() {
        s if s < 120 => format!("{s} s"),
        s if s < 7_200 => format!("{} min", s / 60),
        s if s < 172_800 => format!("{} h", s / 3_600),
        s => format!("{} days", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::relay::live::{Disagreement, Peers};
    use crate::sink::SinkState;
    use crate::store::Tick;

    fn running() -> Live {
        let mut live = Live::starting();
        live.phase = Phase::Running;
        (live.database, live.schema) = (None, None);
        live.broker = SinkState::Ready;
        live.gauges.proven = true;
        live.gauges.partitions = 16;
        live.tick = Some(Arc::new(Tick {
            server_start: 0,
            partitions: Vec::new(),
            replicas: Vec::new(),
            registered: true,
            may_take_over: true,
            paused: false,
            standing_down: false,
            failures_version: 0,
            awake_for: Duration::ZERO,
            unsettled: false,
            parked: 0,
            next_due_in: None,
        }));
        live
    }

    #[track_caller]
    fn check(live: &Live, events: u64, rate: f64, outcome: Outcome, text: &str) {
        let waits = Waiting {
            events,
            estimated: false,
            oldest: Some(Duration::from_secs(events)),
        };
        let now = live.at + Duration::from_secs(45);
        let found = verdict(live, &Watched::default(), &waits, rate, 2, now);
        assert_eq!((found.outcome, found.text.as_str()), (outcome, text));
    }

    #[test]
    fn the_worst_comes_first() {
        let mut live = running();
        check(
            &live,
            0,
            0.0,
            Outcome::Ok,
            "Publishing, 2 replicas. Nothing waits.",
        );
        check(
            &live,
            3_298,
            9.0,
            Outcome::Ok,
            "Publishing, 2 replicas. 3,298 events wait.",
        );
        check(
            &live,
            100,
            0.0,
            Outcome::Degraded,
            "100 events wait, the oldest for 100 s, and none was published lately.",
        );
        live.peers = Arc::new(Peers {
            stands_aside: true,
            disagreements: vec![Disagreement {
                name: "orders-0".into(),
                differences: Vec::new(),
            }],
        });
        check(
            &live,
            1,
            0.0,
            Outcome::Degraded,
            "Takes no partition while orders-0 publishes this outbox to another place. 1 event waits.",
        );
        live.gauges.paused = true;
        check(
            &live,
            0,
            0.0,
            Outcome::Degraded,
            "Paused; `outrigger resume` ends it.",
        );
        live.broker = SinkState::Down("refused".into());
        live.trouble_since = Some(live.at);
        check(
            &live,
            2,
            0.0,
            Outcome::Failed,
            "Not publishing for 45 s: broker: refused. 2 events wait. Nothing is lost.",
        );
    }
}
