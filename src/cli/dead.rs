//! `outrigger dead`: events that were given up, or that hold their key up.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use serde_json::{Value, json};

use super::Failure;
use super::args::{Dead, DeadAct, DeadFilter, DeadList, DeadShow, Output};
use super::connect::{reading, store};
use super::output::{
    Table, ago, bytes, events, number, or_dash, plain, print, print_json, print_line, shortened,
};
use super::tail::payload;
use crate::event::Record;
use crate::settings::Settings;
use crate::store::FailureState;
use crate::store::postgres::PostgresStore;
use crate::store::postgres::admin::{FailureFilter, FailureRow};

/// Every state, suspects included: someone who names an event means that one.
const ANY_STATE: [FailureState; 7] = [
    FailureState::Retrying,
    FailureState::Blocked,
    FailureState::Dead,
    FailureState::Suspect,
    FailureState::Unsettled,
    FailureState::Discarded,
    FailureState::Expired,
];

/// Of an event whose row is not there.
const GONE: &str = "its row is gone: it cannot be published any more";

/// What is done to failed events.
#[derive(Clone, Copy)]
enum Act {
    Retry,
    /// `ask`: before everything that matches is discarded, if there is somebody to ask.
    Discard {
        ask: bool,
    },
}

/// Carries out one of the commands.
pub(super) async fn run(command: &Dead, settings: &Settings) -> Result<(), Failure> {
    match command {
        Dead::List(args) => list(args, settings).await,
        Dead::Show(args) => show(args, settings).await,
        Dead::Retry(args) => act(Act::Retry, args, settings).await,
        Dead::Discard(args) => {
            let ask = !args.yes;
            act(Act::Discard { ask }, &args.act, settings).await
        }
    }
}

fn filter(args: &DeadFilter) -> FailureFilter {
    FailureFilter {
        states: args.states.iter().map(|state| (*state).into()).collect(),
        event_type: args.event_type.clone(),
        key: args.key.clone(),
        reason: args.reason.clone(),
        older_than: args.older_than,
        newer_than: args.newer_than,
        ..FailureFilter::default()
    }
}

async fn list(args: &DeadList, settings: &Settings) -> Result<(), Failure> {
    let (store, _) = reading(settings).await?;
    let limit = args.limit as usize;
    let filter = FailureFilter {
        // One more, to know whether there are more.
        limit: Some(limit.saturating_add(1)),
        ..filter(&args.filter)
    };
    let mut rows = store.failures(&filter).await?;
    let more = rows.len() > limit;
    rows.truncate(limit);
    match args.read.output {
        Output::Json => print_json(&rows.iter().map(json).collect::<Vec<_>>(), true)?,
        Output::Table if rows.is_empty() => eprintln!("no failed events"),
        Output::Table => print(&table(&rows).to_string())?,
    }
    if more {
        eprintln!("there are more than {limit}: use --limit or a filter");
    }
    Ok(())
}

/// The rows as a table.
pub(super) fn table(rows: &[FailureRow]) -> Table {
    let header = [
        "SEQ",
        "TYPE",
        "KEY",
        "STATE",
        "REASON",
        "ATTEMPTS",
        "FIRST FAILED",
        "LAST FAILED",
        "ERROR",
    ];
    let mut table = Table::new(&header).right(&[0, 5]);
    for row in rows {
        table.row([
            // Typed back into the next command, so without separators.
            row.seq.to_string(),
            row.event_type.clone(),
            or_dash(row.key.as_deref()),
            row.state.as_str().to_owned(),
            or_dash(row.reason.as_deref()),
            number(row.attempts),
            ago(row.first_failed_at),
            ago(row.last_failed_at),
            shortened(&or_dash(row.error.as_deref())),
        ]);
    }
    table
}

/// A row for programs.
pub(super) fn json(row: &FailureRow) -> Value {
    json!({
        "seq": row.seq,
        "id": row.event_id,
        "type": row.event_type,
        "key": row.key,
        "state": row.state.as_str(),
        "reason": row.reason,
        "error": row.error,
        "attempts": row.attempts,
        "crashes": row.crashes,
        "first_failed_at": row.first_failed_at,
        "last_failed_at": row.last_failed_at,
        "next_attempt_at": row.next_attempt_at,
        "ended_by": row.ended_by,
    })
}

async fn show(args: &DeadShow, settings: &Settings) -> Result<(), Failure> {
    let (store, _) = reading(settings).await?;
    let filter = FailureFilter {
        states: ANY_STATE.to_vec(),
        events: vec![args.event.clone()],
        ..FailureFilter::default()
    };
    let found = store.failures(&filter).await?;
    if found.is_empty() {
        return Err(unknown(std::slice::from_ref(&args.event)));
    }
    let missing = match store.capabilities().has_order {
        true => GONE,
        false => "cannot be looked up in a table without an order column",
    };
    for (position, failure) in found.iter().enumerate() {
        let record = event(&store, failure).await?;
        match args.read.output {
            Output::Json => {
                let mut value = json(failure);
                value["event"] =
                    record.map_or(Value::Null, |record| super::tail::json(&record, args.data));
                print_json(&value, true)?;
            }
            Output::Table => {
                if position > 0 {
                    print("\n")?;
                }
                print(&details(failure, record.as_ref(), missing, args.data))?;
            }
        }
    }
    Ok(())
}

/// The row itself, if it is still there and the table has an order to find it by.
async fn event(store: &PostgresStore, failure: &FailureRow) -> Result<Option<Record>, Failure> {
    if !store.capabilities().has_order {
        return Ok(None);
    }
    let Some(before) = failure.seq.checked_sub(1) else {
        return Ok(None);
    };
    let row = store.tail(before, 1).await?.into_iter().next();
    // The number may have been drawn again, for another event.
    let same = |record: &Record| record.seq == failure.seq && record.id == failure.event_id;
    Ok(row.map(|row| row.record).filter(same))
}

/// `missing`: what is said if there is no record.
fn details(
    failure: &FailureRow,
    record: Option<&Record>,
    missing: &str,
    with_data: bool,
) -> String {
    let mut lines: Vec<(&str, String)> = vec![
        ("id", failure.event_id.clone()),
        ("seq", failure.seq.to_string()),
        ("type", failure.event_type.clone()),
        ("key", or_dash(failure.key.as_deref())),
        ("state", state(failure.state).to_owned()),
        ("reason", or_dash(failure.reason.as_deref())),
        ("error", or_dash(failure.error.as_deref())),
        ("attempts", number(failure.attempts)),
        ("crashes", number(failure.crashes)),
        ("first failed", time(failure.first_failed_at)),
    ];
    match &failure.ended_by {
        None => lines.push(("last failed", time(failure.last_failed_at))),
        Some(role) => lines.push((
            failure.state.as_str(),
            format!("{} by role {role}", time(failure.last_failed_at)),
        )),
    }
    if let Some(next) = failure.next_attempt_at {
        lines.push(("next attempt", format!("{next:.0}")));
    }
    match record {
        None => lines.push(("event", missing.to_owned())),
        Some(record) => {
            let optional = [
                ("source", &record.source),
                ("subject", &record.subject),
                ("destination", &record.destination),
                ("routing key", &record.routing_key),
                ("content type", &record.content_type),
                ("schema", &record.schema),
                ("extensions", &record.extensions),
                ("headers", &record.headers),
            ];
            for (name, value) in optional {
                lines.extend(value.clone().map(|value| (name, value)));
            }
            lines.extend(record.created_at.map(|at| ("created", time(at))));
            lines.push(match (with_data, payload(&record.data)) {
                (true, Some(text)) => ("payload", text),
                (false, Some(_)) => (
                    "payload",
                    format!("{} (shown with --data)", bytes(record.data.len())),
                ),
                (_, None) => ("payload", "none".to_owned()),
            });
        }
    }
    let mut out = String::new();
    for (name, value) in lines {
        out += &format!("{name:<13} {}\n", plain(&value));
    }
    let seq = failure.seq;
    if failure.state.is_over() {
        if record.is_some() {
            out += &format!(
                "\noutrigger replay {seq} {:<23} publish it after all\n",
                option(failure.state)
            );
        }
        return out;
    }
    if record.is_none() && missing == GONE {
        // A running relay does so itself, within a minute or at its next start.
        out += &format!("\noutrigger dead discard {seq:<8} remove this record\n");
        return out;
    }
    out += &format!(
        "\noutrigger dead retry {seq:<10} try again, with its attempts counted anew\n\
         outrigger dead discard {seq:<8} give up for good\n"
    );
    out
}

fn time(at: jiff::Timestamp) -> String {
    format!("{at:.0} ({})", ago(at))
}

fn state(state: FailureState) -> &'static str {
    match state {
        FailureState::Retrying => "retrying: tried again by itself, its key waits",
        FailureState::Blocked => "blocked: given up, its key waits for you",
        FailureState::Dead => "dead: given up, its key went on",
        FailureState::Suspect => "suspect: was in flight when a relay died, is tried again",
        FailureState::Unsettled => {
            "unsettled: published, its row cannot be marked; that is tried again by itself"
        }
        FailureState::Discarded => "discarded: given up for good, never published",
        FailureState::Expired => "expired: its time passed before it could be published",
    }
}

/// What lets `replay` take an event that is over.
fn option(state: FailureState) -> &'static str {
    match state {
        FailureState::Expired => "--include-expired",
        _ => "--include-discarded",
    }
}

async fn act(act: Act, args: &DeadAct, settings: &Settings) -> Result<(), Failure> {
    if args
        .filter
        .states
        .iter()
        .any(|state| FailureState::from(*state).is_over())
    {
        return Err(
            Failure::usage("discarded and expired events are over").hint(
                "`outrigger replay` publishes them, with --include-discarded or --include-expired",
            ),
        );
    }
    let store = store(settings).await?;
    let filter = FailureFilter {
        events: args.events.clone(),
        ..filter(&args.filter)
    };
    let filter = match act {
        // What is tried again anyway has not been given up; to discard it takes `--state`.
        Act::Discard { .. } if filter.events.is_empty() && filter.states.is_empty() => {
            FailureFilter {
                states: vec![FailureState::Blocked, FailureState::Dead],
                ..filter
            }
        }
        _ => filter,
    };
    if !args.events.is_empty() {
        refuse_unknown(&store, &filter, &args.events).await?;
    }
    if args.write.dry_run {
        let count = events(i128::from(store.failure_count(&filter).await?));
        return print_line(&match act {
            Act::Retry => format!("would retry {count}"),
            Act::Discard { .. } => format!("would discard {count}"),
        });
    }
    if let Act::Discard { ask: true } = act
        && args.all
        && io::stdin().is_terminal()
    {
        let count = store.failure_count(&filter).await?;
        if count > 0 && !confirmed(count)? {
            return Err("nothing was discarded".into());
        }
    }
    match act {
        // Said before anything was sent: what becomes of them, `status` and `dead list` show.
        Act::Retry => {
            let count = i128::from(store.retry(&filter).await?);
            print_line(&format!("{} will be tried again", events(count)))
        }
        Act::Discard { .. } => {
            let count = i128::from(store.discard(&filter).await?);
            print_line(&format!("discarded {}", events(count)))
        }
    }
}

/// Asks on the terminal. What is discarded does not come back.
fn confirmed(count: i64) -> Result<bool, Failure> {
    eprint!(
        "discard {}, so that they are never published? [y/N] ",
        events(i128::from(count))
    );
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Nothing is done unless every event that was named is there: a mistyped number in a script must not pass.
async fn refuse_unknown(
    store: &PostgresStore,
    filter: &FailureFilter,
    named: &[String],
) -> Result<(), Failure> {
    let found = store.failures(filter).await?;
    let missing: Vec<String> = named
        .iter()
        .filter(|name| {
            found
                .iter()
                .all(|row| row.event_id != **name && row.seq.to_string() != **name)
        })
        .cloned()
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let over = store
        .failures(&FailureFilter {
            states: vec![FailureState::Discarded, FailureState::Expired],
            events: missing.clone(),
            limit: Some(1),
            ..FailureFilter::default()
        })
        .await?;
    if let Some(row) = over.first() {
        return Err(Failure::from(format!(
            "event `{}` is over: {}, {}",
            plain(&row.event_id),
            row.state.as_str(),
            ago(row.last_failed_at)
        ))
        .hint(format!(
            "`outrigger replay {} {}` publishes it after all, if its row is still there; nothing was changed",
            row.seq,
            option(row.state)
        )));
    }
    Err(unknown(&missing))
}

fn unknown(events: &[String]) -> Failure {
    let listed: Vec<String> = events
        .iter()
        .map(|name| format!("`{}`", plain(name)))
        .collect();
    Failure::from(format!("no failed event {}", listed.join(", "))).hint(
        "it may have been published, discarded or mistyped (ids and seq numbers are taken); \
         `outrigger dead list` shows all, and nothing was changed",
    )
}
