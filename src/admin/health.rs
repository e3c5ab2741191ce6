//! What the probes say.
//!
//! *Alive* asks whether a restart would help: only if the main loop no longer turns. An outage of the database or the
//! broker, and a stop under way, leave it alone. *Ready* asks whether events flow: every part is named, and a relay
//! that hands over is not ready any more.

use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

use crate::relay::live::{Disagreement, Live, Phase};
use crate::sink::SinkState;
use crate::store::configuration::{Difference, described};
use crate::store::postgres::ListenState;

/// A main loop that has not turned for so long is stuck. It turns every second.
pub const STUCK_AFTER: Duration = Duration::from_secs(30);

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// As it should be.
    Ok,
    /// Not as it should be, but events flow.
    Degraded,
    /// Events wait for this.
    Failed,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// Its name: `loop`, `relay`, `database`, `schema`, `settling`, `keys`, `broker`, `leases`, `replicas` or `listener`.
    pub name: &'static str,
    /// How it went.
    pub outcome: Outcome,
    /// Why, or more about it; may be empty.
    pub detail: String,
}

impl Check {
    fn new(name: &'static str, outcome: Outcome, detail: impl Into<String>) -> Self {
        Self {
            name,
            outcome,
            detail: detail.into(),
        }
    }

    fn fails_if(name: &'static str, problem: Option<&String>) -> Self {
        match problem {
            Some(problem) => Self::new(name, Outcome::Failed, problem),
            None => Self::new(name, Outcome::Ok, ""),
        }
    }
}

/// The checks of one probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    probe: &'static str,
    /// The checks, in a fixed order.
    pub checks: Vec<Check>,
}

impl Report {
    /// Whether no check failed.
    pub fn passed(&self) -> bool {
        self.checks
            .iter()
            .all(|check| check.outcome != Outcome::Failed)
    }
}

impl fmt::Display for Report {
    /// A line for each check, in the form of the Kubernetes API server's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Check {
            name,
            outcome,
            detail,
        } in &self.checks
        {
            let (mark, word) = match outcome {
                Outcome::Ok => ('+', "ok"),
                Outcome::Degraded => ('!', "degraded"),
                Outcome::Failed => ('-', "failed"),
            };
            write!(f, "[{mark}]{name} {word}")?;
            if !detail.is_empty() {
                // One line each, whatever a server's message holds.
                let detail = detail.split_whitespace().collect::<Vec<_>>().join(" ");
                write!(f, ": {detail}")?;
            }
            writeln!(f)?;
        }
        let word = if self.passed() { "passed" } else { "failed" };
        writeln!(f, "{} check {word}", self.probe)
    }
}

/// `/livez`
pub fn live(live: &Live, now: Instant) -> Report {
    let silent = now.saturating_duration_since(live.at);
    let turning = matches!(live.phase, Phase::Running | Phase::Stopping);
    let check = if turning && silent > STUCK_AFTER {
        let detail = format!("the main loop has not turned for {} s", silent.as_secs());
        Check::new("loop", Outcome::Failed, detail)
    } else {
        Check::new("loop", Outcome::Ok, "")
    };
    Report {
        probe: "livez",
        checks: vec![check],
    }
}

/// `/readyz`
pub fn ready(live: &Live) -> Report {
    Report {
        probe: "readyz",
        checks: vec![
            relay(live),
            Check::fails_if("database", live.database.as_ref()),
            Check::fails_if("schema", live.schema.as_ref()),
            Check::fails_if("settling", live.settling.as_ref()),
            Check::fails_if("keys", live.crowded.as_ref()),
            broker(&live.broker),
            leases(live),
            replicas(live),
            listener(live),
        ],
    }
}

fn relay(live: &Live) -> Check {
    match live.phase {
        Phase::Starting => Check::new(
            "relay",
            Outcome::Failed,
            "starting, waits for the database and the table",
        ),
        Phase::Running if live.gauges.paused => Check::new(
            "relay",
            Outcome::Ok,
            "paused by an operator; `outrigger resume` ends it",
        ),
        Phase::Running => Check::new("relay", Outcome::Ok, ""),
        Phase::Stopping | Phase::Stopped => Check::new(
            "relay",
            Outcome::Failed,
            "stopping, events in flight are settled and partitions handed over",
        ),
    }
}

fn broker(state: &SinkState) -> Check {
    match state {
        SinkState::Ready => Check::new("broker", Outcome::Ok, ""),
        SinkState::Impaired(why) => Check::new("broker", Outcome::Degraded, why),
        SinkState::Down(why) if why.is_empty() => {
            Check::new("broker", Outcome::Failed, "not connected yet")
        }
        SinkState::Down(why) | SinkState::Ended(why) => Check::new("broker", Outcome::Failed, why),
        SinkState::Blocked(why) => Check::new(
            "broker",
            Outcome::Failed,
            format!("asks publishers to wait: {why}"),
        ),
    }
}

fn leases(live: &Live) -> Check {
    let Some(tick) = &live.tick else {
        return Check::new("leases", Outcome::Failed, "not registered yet");
    };
    if !live.gauges.proven {
        return Check::new(
            "leases",
            Outcome::Failed,
            "the lease could not be renewed in time: other replicas may have taken over, so nothing is published until it is",
        );
    }
    let (owned, all) = (live.gauges.partitions, tick.partitions.len());
    let detail = match owned {
        0 => format!("on standby, none of {all} partitions"),
        _ => format!("{owned} of {all} partitions"),
    };
    Check::new("leases", Outcome::Ok, detail)
}

/// Replicas that disagree keep each other from nothing but harm: a relay that stands aside is ready, so that a rolling
/// update goes on and ends the others.
fn replicas(live: &Live) -> Check {
    let peers = &live.peers;
    let Some(first) = peers.disagreements.first() else {
        return Check::new("replicas", Outcome::Ok, "");
    };
    let splits = |other: &Disagreement| other.differences.iter().any(Difference::splits);
    let other = peers.disagreements.iter().find(|other| splits(other));
    let does = match (other.is_some(), peers.stands_aside) {
        (true, true) => "takes no partition while another replica publishes to another place",
        (true, false) => "another replica would publish to another place and takes no partition",
        (false, _) => "another replica has other settings",
    };
    let other = other.unwrap_or(first);
    let detail = format!("{does}: {}: {}", other.name, described(&other.differences));
    Check::new("replicas", Outcome::Degraded, detail)
}

/// Polling finds every event, so a missing listener only makes an idle relay slower.
fn listener(live: &Live) -> Check {
    let (outcome, detail) = match &live.listener {
        None if live.phase == Phase::Starting => (Outcome::Degraded, "not connected yet".into()),
        None => (Outcome::Ok, "not used, polling".to_owned()),
        Some(ListenState::Listening) => (Outcome::Ok, String::new()),
        Some(ListenState::Down(why)) if why.is_empty() => {
            (Outcome::Degraded, "not connected yet; polling".into())
        }
        Some(ListenState::Down(why)) => (Outcome::Degraded, format!("{why}; polling")),
        Some(ListenState::Refused(why)) => (Outcome::Degraded, format!("refused: {why}; polling")),
    };
    Check::new("listener", outcome, detail)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::relay::live::Peers;
    use crate::store::configuration::{Configuration, SINK};
    use crate::store::{PartitionRow, Tick};

    fn running() -> Live {
        let partition = PartitionRow {
            partition: 0,
            owner: None,
        };
        let mut live = Live::starting();
        live.phase = Phase::Running;
        live.database = None;
        live.schema = None;
        live.broker = SinkState::Ready;
        live.listener = Some(ListenState::Listening);
        live.gauges.proven = true;
        live.gauges.partitions = 1;
        live.tick = Some(Arc::new(Tick {
            server_start: 0,
            partitions: vec![partition],
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

    /// The names of the checks that failed.
    fn failed(live: &Live) -> Vec<&'static str> {
        let report = ready(live);
        let failed = report
            .checks
            .iter()
            .filter(|check| check.outcome == Outcome::Failed);
        let names: Vec<_> = failed.map(|check| check.name).collect();
        assert_eq!(report.passed(), names.is_empty());
        names
    }

    #[test]
    fn a_running_relay_is_ready_and_names_each_check() {
        assert_eq!(
            ready(&running()).to_string(),
            "[+]relay ok\n[+]database ok\n[+]schema ok\n[+]settling ok\n[+]keys ok\n[+]broker ok\n\
             [+]leases ok: 1 of 1 partitions\n[+]replicas ok\n[+]listener ok\nreadyz check passed\n"
        );
    }

    #[test]
    fn each_part_fails_its_own_check() {
        let mut live = running();
        live.database = Some("read: connection\n refused".into());
        assert_eq!(failed(&live), ["database"]);
        let line = "\n[-]database failed: read: connection refused\n";
        assert!(ready(&live).to_string().contains(line));
        let mut live = running();
        live.schema = Some("no column".into());
        assert_eq!(failed(&live), ["schema"]);
        let mut live = running();
        live.settling = Some("a trigger".into());
        assert_eq!(failed(&live), ["settling"]);
        live.settling = None;
        live.crowded = Some("too many".into());
        assert_eq!(failed(&live), ["keys"]);
        let mut live = running();
        live.broker = SinkState::Blocked("low on memory".into());
        assert_eq!(failed(&live), ["broker"]);
        live.broker = SinkState::Down(String::new());
        assert_eq!(failed(&live), ["broker"]);
        let mut live = running();
        live.gauges.proven = false;
        assert_eq!(failed(&live), ["leases"]);
        live.tick = None;
        assert_eq!(failed(&live), ["leases"]);
        let mut live = running();
        live.phase = Phase::Stopping;
        assert_eq!(failed(&live), ["relay"]);
    }

    #[test]
    fn standby_polling_and_a_pause_are_no_failures() {
        let mut live = running();
        live.gauges.partitions = 0;
        live.gauges.paused = true;
        live.listener = None;
        assert_eq!(failed(&live), [""; 0]);
        live.listener = Some(ListenState::Refused("pooler".into()));
        assert_eq!(failed(&live), [""; 0]);
        let line = "[!]listener degraded: refused: pooler; polling\n";
        assert!(ready(&live).to_string().contains(line));
    }

    #[test]
    fn replicas_that_disagree_are_named_and_hinder_no_rollout() {
        let ours = |sink: &str| Configuration::new([(SINK, sink.to_owned())]);
        let mut live = running();
        live.peers = Arc::new(Peers {
            stands_aside: true,
            disagreements: vec![Disagreement {
                name: "orders-0".into(),
                differences: ours("stdout").differences(&ours("rabbitmq")),
            }],
        });
        assert_eq!(failed(&live), [""; 0]);
        let line = "\n[!]replicas degraded: takes no partition while another replica publishes to another place: \
                    orders-0: sink `rabbitmq` there, `stdout` here\n";
        assert!(ready(&live).to_string().contains(line));
    }

    #[test]
    fn only_a_loop_that_should_turn_and_does_not_is_dead() {
        let mut stuck = running();
        assert!(super::live(&stuck, stuck.at + STUCK_AFTER).passed());
        let later = stuck.at + STUCK_AFTER + Duration::from_secs(1);
        assert_eq!(
            super::live(&stuck, later).to_string(),
            "[-]loop failed: the main loop has not turned for 31 s\nlivez check failed\n"
        );
        stuck.phase = Phase::Stopping;
        assert!(!super::live(&stuck, later).passed());
        for phase in [Phase::Starting, Phase::Stopped] {
            stuck.phase = phase;
            assert!(super::live(&stuck, later).passed());
        }
    }
}
