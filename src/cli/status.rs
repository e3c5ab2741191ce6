//! `outrigger status`: the outbox on one screen.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::Failure;
use super::args::{Output, Status};
use super::connect::{interrupted, reading};
use super::dead;
use super::output::{Style, Table, ago, duration, events, number, plain, print, print_json, since};
use crate::settings::Settings;
use crate::store::postgres::admin::{FailureFilter, FailureRow};
use crate::store::postgres::status::Status as Facts;
use crate::store::postgres::{PostgresStore, StoreError};

/// Between two looks of `--watch`.
const PERIOD: Duration = Duration::from_secs(2);

/// Failures shown.
const RECENT: usize = 5;

/// Home; each line then clears what it does not cover, and the end clears what is below.
const HOME: &str = "\x1b[H";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";

struct View {
    store: PostgresStore,
    target: String,
    style: Style,
}

/// Prints the status, once or again and again.
pub(super) async fn run(args: &Status, settings: &Settings) -> Result<(), Failure> {
    let (store, database) = reading(settings).await?;
    let view = View {
        store,
        target: database.target(),
        style: Style::stdout(settings.log.color),
    };
    if !args.watch {
        let (facts, recent) = view.look().await?;
        return match args.read.output {
            Output::Table => print(&view.screen(&facts, &recent)),
            Output::Json => print_json(&view.json(&facts, &recent), true),
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
    async fn look(&self) -> Result<(Facts, Vec<FailureRow>), StoreError> {
        let facts = self.store.status().await?;
        let filter = FailureFilter {
            latest_first: true,
            limit: Some(RECENT),
            ..FailureFilter::default()
        };
        Ok((facts, self.store.failures(&filter).await?))
    }

    /// Never ends by itself, except when nobody can read any more: an outage is something to watch, too.
    async fn watch(&self, output: Output) -> Result<(), Failure> {
        let in_place = io::stdout().is_terminal();
        if in_place && output == Output::Table {
            print("\x1b[2J")?;
        }
        let mut clock = tokio::time::interval(PERIOD);
        clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            clock.tick().await;
            let looked = self.look().await;
            if output == Output::Json {
                match looked {
                    Ok((facts, recent)) => print_json(&self.json(&facts, &recent), false)?,
                    Err(error) => print_json(
                        &json!({ "at": Timestamp::now(), "error": error.to_string() }),
                        false,
                    )?,
                }
                continue;
            }
            let mut screen = match looked {
                Ok((facts, recent)) => self.screen(&facts, &recent),
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

    fn screen(&self, facts: &Facts, recent: &[FailureRow]) -> String {
        let style = self.style;
        let mut out = format!(
            "{} @ {}\n\n",
            style.title(self.store.outbox()),
            plain(&self.target)
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
        let _ = writeln!(out, "relay      {}", self.relay(facts));
        if !facts.replicas.is_empty() {
            let _ = write!(out, "\n{}", replicas(facts));
        }
        if !recent.is_empty() {
            let _ = write!(out, "\n{}\n{}", dead::table(recent), actions(facts));
        }
        out
    }

    fn relay(&self, facts: &Facts) -> String {
        if let Some((at, reason)) = &facts.paused {
            let reason = reason
                .as_deref()
                .map(|reason| format!(": {}", plain(reason)));
            let text = format!("paused {}{}", ago(*at), reason.unwrap_or_default());
            return format!("{} (`outrigger resume` ends it)", self.style.warning(&text));
        }
        if facts.replicas.is_empty() {
            return self.style.warning("none registered: start `outrigger run`");
        }
        let mut text = if facts.awake_for.is_zero() {
            "quiet, waits for a wake-up".to_owned()
        } else {
            "awake, polls".to_owned()
        };
        if facts.unowned > 0 {
            let free = format!(
                "{} of {} partitions have no owner",
                number(facts.unowned),
                facts.partitions.unwrap_or_default()
            );
            let _ = write!(text, "; {}", self.style.warning(&free));
        }
        text
    }

    fn json(&self, facts: &Facts, recent: &[FailureRow]) -> Value {
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
                    "partitions": replica.partitions,
                })
            })
            .collect();
        json!({
            "at": Timestamp::now(),
            "outbox": self.store.outbox(),
            "database": self.target,
            "pending": facts.pending,
            "pending_capped": facts.pending_capped,
            "oldest_pending_seconds": facts.oldest_pending.map(|age| age.as_secs_f64()),
            "retrying": facts.retrying,
            "blocked": facts.blocked,
            "dead": facts.dead,
            "partitions": facts.partitions,
            "unowned": facts.unowned,
            "awake_seconds": facts.awake_for.as_secs_f64(),
            "paused": paused,
            "replicas": replicas,
            "failures": recent.iter().map(dead::json).collect::<Vec<_>>(),
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
    format!(
        "{more}{}{}",
        number(facts.pending),
        oldest.unwrap_or_default()
    )
}

fn replicas(facts: &Facts) -> Table {
    let mut table = Table::new(&["REPLICA", "VERSION", "UP", "LEASE", "OWNS", "PARTITIONS"]);
    for replica in &facts.replicas {
        // A replica that is alone does not renew its lease.
        let lease = match replica.lease_left {
            left if left.is_zero() && facts.replicas.len() == 1 => "not needed".to_owned(),
            left if left.is_zero() => "expired".to_owned(),
            left => format!("{} left", duration(left)),
        };
        table.row([
            replica.name.clone(),
            replica.version.clone(),
            duration(since(replica.registered_at)),
            lease,
            number(replica.partitions.len() as i64),
            ranges(&replica.partitions),
        ]);
    }
    table
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

/// `0-3, 7, 9-10`.
fn ranges(numbers: &[i32]) -> String {
    let mut ranges: Vec<(i32, i32)> = Vec::new();
    for &n in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == n => *last = n,
            _ => ranges.push((n, n)),
        }
    }
    let text = |(first, last): &(i32, i32)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    if ranges.is_empty() {
        return "-".to_owned();
    }
    ranges.iter().map(text).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_shown_as_ranges() {
        assert_eq!(ranges(&[0, 1, 2, 3, 7, 9, 10]), "0-3, 7, 9-10");
        assert_eq!(ranges(&[]), "-");
    }
}
