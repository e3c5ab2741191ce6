//! `outrigger status`: the outbox on one screen, with how it stands in one sentence.

mod verdict;

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::Failure;
use super::args::{Output, Status};
use super::connect::{interrupted, reading};
use super::output::{
    Style, Table, ago, duration, events, number, plain, print, print_json, retention,
};
use crate::settings::Settings;
use crate::store::configuration::{Difference, SINK, TARGET, described};
use crate::store::postgres::status::{FailureGroup, ReplicaStatus, Status as Facts};
use crate::store::postgres::{PostgresStore, StoreError};
use crate::store::ranges;
use verdict::{Level, Trend, verdict, wants_trend};

/// Between two looks of `--watch`.
const PERIOD: Duration = Duration::from_secs(2);

/// Between the two looks that tell how fast a backlog falls.
const TREND_PAUSE: Duration = Duration::from_secs(1);

/// Kinds of failures shown.
const GROUPS: i64 = 8;

/// A backlog in which a key can be called hot, and the part of it that makes it so.
const HOT_FROM: i64 = 100;
const HOT_SHARE: i64 = 2;

/// Home; each line then clears what it does not cover, and the end clears what is below.
const HOME: &str = "\x1b[H";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";

struct View {
    store: PostgresStore,
    target: String,
    /// What becomes of published rows.
    retention: String,
    style: Style,
}

/// Everything that is shown.
struct Looked {
    facts: Facts,
    at: Instant,
    trend: Option<Trend>,
    groups: Vec<FailureGroup>,
    /// A key with most of the backlog: its rows, and those looked at.
    hot: Option<(String, i64, i64)>,
}

/// Prints the status, once or again and again.
pub(super) async fn run(args: &Status, settings: &Settings) -> Result<(), Failure> {
    let (store, database) = reading(settings).await?;
    let view = View {
        retention: retention(settings, &store.capabilities()),
        store,
        target: database.target(),
        style: Style::stdout(settings.log.color),
    };
    if !args.watch {
        let mut looked = view.look(None).await?;
        if wants_trend(&looked.facts) {
            tokio::time::sleep(TREND_PAUSE).await;
            looked = view.look(Some(&looked)).await?;
        }
        return match args.read.output {
            Output::Table => print(&view.screen(&looked)),
            Output::Json => print_json(&view.json(&looked), true),
        };
    }
    tokio::select! {
        done = view.watch(args.read.output) => done,
        stopped = interrupted() => {
            if io::stdout().is_terminal() && args.read.output == Output::Table {
                print("\n")?;
            }
            stopped
        }
    }
}

impl View {
    async fn look(&self, before: Option<&Looked>) -> Result<Looked, StoreError> {
        let facts = self.store.status().await?;
        let at = Instant::now();
        let hot = match facts.pending > HOT_FROM {
            true => self.store.hot_key().await?,
            false => None,
        };
        Ok(Looked {
            trend: before.and_then(|before| {
                let time = at.saturating_duration_since(before.at);
                Trend::between(&before.facts, &facts, time)
            }),
            groups: match facts.recorded() {
                0 => Vec::new(),
                _ => self.store.failure_groups(GROUPS).await?,
            },
            hot: hot.filter(|(_, rows, of)| rows * HOT_SHARE > *of),
            facts,
            at,
        })
    }

    /// Never ends by itself, except when nobody can read any more: an outage is something to watch, too.
    async fn watch(&self, output: Output) -> Result<(), Failure> {
        let in_place = io::stdout().is_terminal();
        if in_place && output == Output::Table {
            print("\x1b[2J")?;
        }
        let mut clock = tokio::time::interval(PERIOD);
        clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut before: Option<Looked> = None;
        loop {
            clock.tick().await;
            let looked = self.look(before.as_ref()).await;
            if output == Output::Json {
                match looked {
                    Ok(looked) => {
                        print_json(&self.json(&looked), false)?;
                        before = Some(looked);
                    }
                    Err(error) => print_json(
                        &json!({ "at": Timestamp::now(), "error": error.to_string() }),
                        false,
                    )?,
                }
                continue;
            }
            let mut screen = match looked {
                Ok(looked) => {
                    let screen = self.screen(&looked);
                    before = Some(looked);
                    screen
                }
                Err(error) => format!(
                    "{} @ {}\n\n{}\n",
                    self.style.title(self.store.outbox()),
                    self.target,
                    self.style.bad(&plain(&error.to_string()))
                ),
            };
            let _ = write!(screen, "\n{:.0}\n", Timestamp::now());
            if in_place {
                let lines = screen.replace('\n', &format!("{CLEAR_LINE}\n"));
                print(&format!("{HOME}{lines}{CLEAR_BELOW}"))?;
            } else {
                print(&screen)?;
            }
        }
    }

    fn screen(&self, looked: &Looked) -> String {
        let (style, facts) = (self.style, &looked.facts);
        let verdict = verdict(facts, looked.trend);
        let paint = match verdict.level {
            Level::Good => Style::good,
            Level::Warning => Style::warning,
            Level::Bad => Style::bad,
        };
        let mut out = format!(
            "{} @ {}\n{}\n\n",
            style.title(self.store.outbox()),
            plain(&self.target),
            paint(style, &verdict.to_string()),
        );
        // Writing to a String cannot fail.
        let _ = writeln!(out, "pending    {}", pending(facts));
        let count = |n: i64, paint: fn(Style, &str) -> String| match n {
            0 => "0".to_owned(),
            n => paint(style, &number(n)),
        };
        let _ = writeln!(out, "retrying   {}", count(facts.retrying, Style::warning));
        let blocked = count(facts.blocked, Style::bad);
        let waits = if facts.blocked > 0 {
            ", their keys wait for you"
        } else {
            ""
        };
        let _ = writeln!(out, "blocked    {blocked}{waits}");
        let _ = writeln!(out, "dead       {}", count(facts.dead, Style::bad));
        for (name, count) in [("discarded", facts.discarded), ("expired", facts.expired)] {
            if count > 0 {
                let _ = writeln!(
                    out,
                    "{name:<10} {}, never published: `outrigger dead list --state {name}`",
                    number(count)
                );
            }
        }
        let _ = writeln!(out, "retention  {}", self.retention);
        if facts.unsettled > 0 {
            let unsettled = count(facts.unsettled, Style::warning);
            let _ = writeln!(
                out,
                "unsettled  {unsettled}, published once, but their rows could not be marked or deleted so far"
            );
        }
        if facts.parked > 0 {
            let keys = style.warning(&number(facts.parked));
            let _ = writeln!(
                out,
                "keys       {keys} more fail than are kept in memory; others do not wait for them"
            );
        }
        if let Some((key, rows, of)) = &looked.hot {
            let _ = writeln!(
                out,
                "hot key    `{}` has {} of the first {}",
                plain(key),
                number(*rows),
                events(*of)
            );
        }
        if !facts.replicas.is_empty() {
            let _ = write!(out, "\n{}", replicas(facts));
            for line in remarks(facts) {
                let _ = writeln!(out, "  {}", style.warning(&line));
            }
        }
        if !looked.groups.is_empty() {
            let _ = write!(out, "\n{}\n{}", groups(&looked.groups), actions(facts));
        }
        out
    }

    fn json(&self, looked: &Looked) -> Value {
        let facts = &looked.facts;
        let verdict = verdict(facts, looked.trend);
        let paused = facts
            .paused
            .as_ref()
            .map(|(since, reason)| json!({ "since": since, "reason": reason }));
        let replicas: Vec<Value> = facts
            .replicas
            .iter()
            .map(|replica| {
                json!({
                    "id": replica.replica,
                    "name": replica.name,
                    "version": replica.version,
                    "registered_at": replica.registered_at,
                    "lease_left_seconds": replica.lease_left.as_secs_f64(),
                    "alive": facts.lives(replica),
                    "sign_of_life_seconds_ago": replica.sign_ago.as_secs_f64(),
                    "waits_for": replica.waits_for,
                    "stands_aside_for": facts.stands_aside_for(replica).map(|first| &first.name),
                    "published_per_second": replica.rate,
                    "published_seconds_ago": replica.published_ago.map(|ago| ago.as_secs_f64()),
                    "configuration": replica.configuration.to_json(),
                    "partitions": replica.partitions,
                })
            })
            .collect();
        json!({
            "at": Timestamp::now(),
            "outbox": self.store.outbox(),
            "database": self.target,
            "state": verdict.word,
            "verdict": verdict.to_string(),
            "pending": facts.pending,
            "pending_capped": facts.pending_capped,
            "oldest_pending_seconds": facts.oldest_pending.map(|age| age.as_secs_f64()),
            "retrying": facts.retrying,
            "unsettled": facts.unsettled,
            "blocked": facts.blocked,
            "dead": facts.dead,
            "discarded": facts.discarded,
            "expired": facts.expired,
            "retention": self.retention,
            "parked_keys": facts.parked,
            "partitions": facts.partitions,
            "unowned": facts.unowned,
            "pending_falls_per_second": looked.trend.map(|trend| trend.falls),
            "hot_key": looked.hot.as_ref().map(|(key, rows, of)| json!({ "key": key, "events": rows, "of": of })),
            "awake_seconds": facts.awake_for.as_secs_f64(),
            "paused": paused,
            "replicas": replicas,
            "failures": looked.groups.iter().map(group_json).collect::<Vec<_>>(),
        })
    }
}

fn pending(facts: &Facts) -> String {
    let more = if facts.pending_capped {
        "more than "
    } else {
        ""
    };
    let oldest = facts
        .oldest_pending
        .map(|age| format!(", oldest {}", duration(age)));
    let with = match facts.retrying + facts.blocked {
        0 => String::new(),
        n => format!("; {} retrying or blocked among them", number(n)),
    };
    format!(
        "{more}{}{}{with}",
        number(facts.pending),
        oldest.unwrap_or_default()
    )
}

fn replicas(facts: &Facts) -> Table {
    let mut table = Table::new(&[
        "REPLICA",
        "VERSION",
        "SINK",
        "REGISTERED",
        "LEASE",
        "OWNS",
        "PARTITIONS",
    ]);
    for replica in &facts.replicas {
        let lease = match replica.lease_left {
            // A replica that is alone does not renew its lease.
            _ if facts.replicas.len() == 1 && facts.lives(replica) => "alone".to_owned(),
            left if left.is_zero() => "expired".to_owned(),
            left => format!("{} left", duration(left)),
        };
        let of = &replica.configuration;
        let sink = [of.get(SINK), of.get(TARGET)].join(" ");
        table.row([
            replica.name.clone(),
            replica.version.clone(),
            match sink.trim() {
                "" => "-".to_owned(),
                sink => sink.to_owned(),
            },
            ago(replica.registered_at),
            lease,
            number(replica.partitions.len() as i64),
            ranges(&replica.partitions),
        ]);
    }
    table
}

/// What is the matter with single replicas, a line each.
fn remarks(facts: &Facts) -> Vec<String> {
    let mut lines = Vec::new();
    let lives = |replica: &&ReplicaStatus| facts.lives(replica);
    for replica in &facts.replicas {
        let name = plain(&replica.name);
        if !facts.lives(replica) {
            let since = duration(replica.sign_ago);
            lines.push(format!("{name}: no sign of life for {since}"));
        } else if let Some(first) = facts.stands_aside_for(replica) {
            let differences = replica.configuration.differences(&first.configuration);
            let splits: Vec<Difference> =
                differences.into_iter().filter(Difference::splits).collect();
            lines.push(format!(
                "{name}: stands aside for `{}`, which publishes to another place: {}",
                plain(&first.name),
                plain(&described(&splits))
            ));
        } else if let Some(why) = &replica.waits_for {
            lines.push(format!("{name}: {}", plain(why)));
        }
    }
    // One pair tells what to look for; replicas of an update differ in the same.
    let mut relays = facts.replicas.iter().filter(lives);
    let relays = relays
        .by_ref()
        .filter(|r| r.publishes() && facts.stands_aside_for(r).is_none());
    let relays: Vec<&ReplicaStatus> = relays.collect();
    if let [first, others @ ..] = relays.as_slice()
        && let Some(other) = others
            .iter()
            .find(|r| r.configuration != first.configuration)
    {
        let differences = other.configuration.differences(&first.configuration);
        lines.push(format!(
            "{}: shares the events with `{}` and has different settings: {}",
            plain(&other.name),
            plain(&first.name),
            plain(&described(&differences))
        ));
    }
    lines
}

/// Failed events, a line for each kind.
fn groups(groups: &[FailureGroup]) -> Table {
    let mut table = Table::new(&["STATE", "REASON", "TYPE", "EVENTS", "SINCE", "ERROR"]);
    for group in groups {
        table.row([
            group.state.clone(),
            group.reason.clone().unwrap_or_else(|| "crash".to_owned()),
            group.event_type.clone(),
            number(group.count),
            ago(group.since),
            group.error.clone().unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    table
}

fn group_json(group: &FailureGroup) -> Value {
    json!({
        "state": group.state,
        "reason": group.reason,
        "type": group.event_type,
        "events": group.count,
        "since": group.since,
        "error": group.error,
    })
}

/// The commands that help.
fn actions(facts: &Facts) -> String {
    let mut out = String::new();
    let given_up = facts.blocked + facts.dead;
    let mut line = |command: &str, what: &str| {
        let _ = writeln!(out, "  {command:<30} {what}");
    };
    line("outrigger dead list", "all of them, with filters");
    line("outrigger dead show SEQ", "everything about one");
    if given_up > 0 {
        line(
            "outrigger dead retry SEQ",
            &format!("publish again; --all for all {}", events(given_up)),
        );
        line("outrigger dead discard SEQ", "give up for good");
    }
    out
}
