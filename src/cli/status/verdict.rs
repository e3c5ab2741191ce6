//! How the outbox stands, in one sentence; pure.

use std::fmt;
use std::time::Duration;

use crate::cli::output::{ago, duration, events, number, plain};
use crate::store::postgres::status::{ReplicaStatus, Status};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    Good,
    Warning,
    Bad,
}

/// A word for programs and a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) level: Level,
    pub(super) word: &'static str,
    text: String,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// How the number of pending events changes, from two looks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Trend {
    /// Events fewer per second; negative: more.
    pub(super) falls: f64,
}

impl Trend {
    /// `None`: too short a time, or more than could be counted.
    pub(super) fn between(before: &Status, after: &Status, time: Duration) -> Option<Self> {
        let known = !before.pending_capped && !after.pending_capped && !time.is_zero();
        known.then(|| Self {
            falls: (before.pending - after.pending) as f64 / time.as_secs_f64(),
        })
    }
}

/// Whether the next look would tell how fast a backlog falls.
pub(super) fn wants_trend(facts: &Status) -> bool {
    facts.pending > facts.retrying + facts.blocked
        && facts.paused.is_none()
        && !facts.replicas.is_empty()
}

/// See the module documentation.
pub(super) fn verdict(facts: &Status, trend: Option<Trend>) -> Verdict {
    let of = |level, word, text: String| Verdict { level, word, text };
    let failing = facts.retrying + facts.blocked;
    let waiting = (facts.pending - failing).max(0);
    let waits = match waiting {
        0 => String::new(),
        1 => "; 1 event waits".to_owned(),
        n => format!("; {} wait", events(n)),
    };
    if let Some((at, reason)) = &facts.paused {
        let reason = reason
            .as_deref()
            .map(|reason| format!(": {}", plain(reason)));
        let text = format!(
            "paused {}{} (`outrigger resume` ends it){waits}",
            ago(*at),
            reason.unwrap_or_default()
        );
        return of(Level::Warning, "paused", text);
    }
    let relays: Vec<&ReplicaStatus> = facts.replicas.iter().collect();
    if relays.is_empty() {
        let text = format!("no relay is registered: start `outrigger run`{waits}");
        return of(Level::Bad, "no_relay", text);
    }
    let living: Vec<&ReplicaStatus> = relays.iter().copied().filter(|r| facts.lives(r)).collect();
    let Some(first) = living.first() else {
        let last = relays.iter().min_by_key(|r| r.sign_ago);
        let (name, since) = last.map_or((String::new(), Duration::ZERO), |r| {
            (plain(&r.name).to_string(), r.sign_ago)
        });
        let text = format!(
            "no sign of life from {name} for {}; is it running?{waits}",
            duration(since)
        );
        return of(Level::Bad, "no_sign_of_life", text);
    };
    let working: Vec<&ReplicaStatus> = living
        .iter()
        .copied()
        .filter(|r| facts.stands_aside_for(r).is_none())
        .collect();
    let stuck: Vec<&&ReplicaStatus> = working.iter().filter(|r| r.waits_for.is_some()).collect();
    if stuck.len() == working.len() && !working.is_empty() {
        let first = stuck[0];
        let why = first.waits_for.as_deref().unwrap_or_default();
        let more = match stuck.len() {
            1 => String::new(),
            n => format!(", and {} more", n - 1),
        };
        let text = format!(
            "not publishing: {}: {}{more}{waits}",
            plain(&first.name),
            plain(why)
        );
        return of(Level::Bad, "waits", text);
    }
    if facts.unowned > 0 {
        let text = format!(
            "{} of {} partitions have no owner{waits}",
            number(facts.unowned),
            facts.partitions.unwrap_or_default()
        );
        return of(Level::Warning, "unowned", text);
    }
    let replicas = match working.len() {
        1 => "1 replica".to_owned(),
        n => format!("{n} replicas"),
    };
    if waiting == 0 {
        let text = match failing {
            0 => format!("nothing waits, {replicas}"),
            n => format!("nothing waits but {} that failed, {replicas}", events(n)),
        };
        return of(Level::Good, "idle", text);
    }
    let falls = trend.map_or(0.0, |trend| trend.falls);
    let rate: f64 = working.iter().map(|r| r.rate).sum();
    let latest = working
        .iter()
        .filter_map(|r| Some((r.published_ago?, r)))
        .min_by_key(|(ago, _)| *ago);
    let lately = latest.is_some_and(|(ago, r)| ago <= r.sign_ago.max(Duration::from_secs(10)));
    if falls > 0.0 || rate > 0.0 && lately {
        let over = match falls {
            falls if falls >= 1.0 => format!(
                ", falling by {} per second: over in about {}",
                number(falls.round() as i64),
                duration(Duration::from_secs_f64((waiting as f64 / falls).ceil()))
            ),
            falls if falls <= -1.0 => {
                format!(", rising by {} per second", number((-falls).round() as i64))
            }
            _ => String::new(),
        };
        return of(
            Level::Good,
            "publishing",
            format!("publishing, {replicas}{waits}{over}"),
        );
    }
    if facts.oldest_pending.is_none_or(|age| age < SOON) {
        let text = format!("publishing, {replicas}{waits}");
        return of(Level::Good, "publishing", text);
    }
    let since = match latest {
        Some((ago, _)) => format!("none was published for {}", duration(ago)),
        None => format!("none was published since {} started", plain(&first.name)),
    };
    let text = format!(
        "{} and {since}: see `curl .../readyz?verbose` of a replica, or its log",
        if waiting == 1 {
            "1 event waits".to_owned()
        } else {
            format!("{} wait", events(waiting))
        },
    );
    of(Level::Bad, "stuck", text)
}

/// What waits for less is on its way.
const SOON: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use uuid::Uuid;

    use super::*;
    use crate::store::configuration::{Configuration, SINK};

    const SECOND: Duration = Duration::from_secs(1);

    fn replica(name: &str, sink: &str, rank: i64) -> ReplicaStatus {
        ReplicaStatus {
            replica: Uuid::from_u128(rank as u128),
            name: name.to_owned(),
            version: "0.1.0".to_owned(),
            registered_at: Timestamp::UNIX_EPOCH,
            lease_left: 8 * SECOND,
            sign_ago: 2 * SECOND,
            configuration: Configuration::new([(SINK, sink.to_owned())]),
            rank,
            waits_for: None,
            rate: 0.0,
            published_ago: None,
            partitions: vec![0],
        }
    }

    fn facts(pending: i64, replicas: Vec<ReplicaStatus>) -> Status {
        Status {
            pending,
            pending_capped: false,
            oldest_pending: (pending > 0).then_some(60 * SECOND),
            retrying: 0,
            blocked: 0,
            dead: 0,
            unsettled: 0,
            discarded: 0,
            expired: 0,
            parked: 0,
            partitions: Some(4),
            unowned: 0,
            replicas,
            awake_for: Duration::ZERO,
            paused: None,
        }
    }

    #[track_caller]
    fn check(facts: &Status, falls: Option<f64>, word: &str, text: &str) {
        let verdict = verdict(facts, falls.map(|falls| Trend { falls }));
        assert_eq!((verdict.word, verdict.to_string().as_str()), (word, text));
    }

    #[test]
    fn each_state_has_its_sentence() {
        check(
            &facts(3, vec![]),
            None,
            "no_relay",
            "no relay is registered: start `outrigger run`; 3 events wait",
        );
        let a = replica("a", "rabbitmq", 1);
        check(
            &facts(0, vec![a.clone()]),
            None,
            "idle",
            "nothing waits, 1 replica",
        );
        let two = vec![a.clone(), replica("b", "rabbitmq", 1)];
        check(
            &facts(4_000, two.clone()),
            Some(1_000.0),
            "publishing",
            "publishing, 2 replicas; 4,000 events wait, falling by 1,000 per second: over in about 4s",
        );
        check(
            &facts(4_000, two.clone()),
            Some(0.0),
            "stuck",
            "4,000 events wait and none was published since a started: see `curl .../readyz?verbose` of a \
             replica, or its log",
        );
        let mut down = facts(2, two);
        down.replicas[0].waits_for = Some("the broker: refused".into());
        check(
            &down,
            Some(1.0),
            "publishing",
            "publishing, 2 replicas; 2 events wait, falling by 1 per second: over in about 2s",
        );
        down.replicas[1].waits_for = Some("the broker: refused".into());
        check(
            &down,
            Some(1.0),
            "waits",
            "not publishing: a: the broker: refused, and 1 more; 2 events wait",
        );
    }

    #[test]
    fn a_lone_relay_lives_without_a_lease_while_it_gives_signs_of_life() {
        let mut lone = facts(1, vec![replica("a", "rabbitmq", 1)]);
        lone.replicas[0].lease_left = Duration::ZERO;
        lone.replicas[0].sign_ago = 35 * SECOND;
        lone.oldest_pending = Some(SECOND);
        check(
            &lone,
            None,
            "publishing",
            "publishing, 1 replica; 1 event waits",
        );
        lone.replicas[0].sign_ago = 86 * SECOND;
        check(
            &lone,
            None,
            "no_sign_of_life",
            "no sign of life from a for 1m 26s; is it running?; 1 event waits",
        );
    }

    #[test]
    fn one_that_stands_aside_is_not_counted() {
        let mut two = facts(
            0,
            vec![replica("a", "rabbitmq", 1), replica("b", "stdout", 2)],
        );
        check(&two, None, "idle", "nothing waits, 1 replica");
        let aside = |facts: &Status| {
            let names = facts.replicas.iter().map(|r| facts.stands_aside_for(r));
            let names = names.map(|r| r.map_or(String::new(), |r| r.name.clone()));
            names.collect::<Vec<_>>()
        };
        assert_eq!(aside(&two), ["", "a"]);
        // A dead one is waited for by no one.
        two.replicas[0].lease_left = Duration::ZERO;
        assert_eq!(aside(&two), ["", ""]);
    }

    #[test]
    fn a_trend_needs_two_counts() {
        let few = facts(10, vec![]);
        let mut many = facts(100_000, vec![]);
        many.pending_capped = true;
        assert_eq!(Trend::between(&many, &few, SECOND), None);
        let before = facts(30, vec![]);
        assert_eq!(
            Trend::between(&before, &few, 2 * SECOND),
            Some(Trend { falls: 10.0 })
        );
    }
}
