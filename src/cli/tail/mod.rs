//! `outrigger tail`: events as they are written and published.

mod as_sent;
mod follower;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use self::follower::{Change, Follower};
use super::Failure;
use super::args::{Output, Tail};
use super::connect::{interrupted, reading};
use super::output::{or_dash, plain, print, print_line};
use crate::event::{Content, Data, Record};
use crate::settings::Settings;
use crate::store::postgres::{AfterPublish, PostgresStore, StoreErrorKind};

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(250);

/// Rows per read.
const PAGE: usize = 500;

/// Most rows of one look; what is left waits for the next, so that memory stays bounded.
const LOOK_MAX: usize = 4 * PAGE;

/// Follows the table until interrupted.
pub(super) async fn run(args: &Tail, settings: &Settings) -> Result<(), Failure> {
    if args.as_sent {
        return Box::pin(as_sent::run(args, settings)).await;
    }
    let (store, _) = reading(settings).await?;
    let start = store.last_seq().await?;
    // Also says so, if the table has no order to follow.
    store.tail(start, 1).await?;
    if args.read.output == Output::Table {
        eprintln!("following {}; Ctrl-C ends", store.outbox());
        // On standard error, so that a program reading the lines gets only events.
        eprintln!("{}", line(["CREATED", "SEQ", "TYPE", "KEY", "STATE"]));
    }
    let deletes = store.capabilities().after_publish == AfterPublish::Delete;
    let mut follower = Follower::new(start, deletes);
    tokio::select! {
        done = follow(args, &store, &mut follower) => done,
        stopped = interrupted() => stopped,
    }
}

async fn follow(
    args: &Tail,
    store: &PostgresStore,
    follower: &mut Follower,
) -> Result<(), Failure> {
    let mut clock = tokio::time::interval(PERIOD);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut reachable = true;
    loop {
        clock.tick().await;
        match look(store, follower).await {
            Ok(changes) => {
                if !reachable {
                    eprintln!("the database is back");
                    reachable = true;
                }
                for change in changes {
                    show(args, &change)?;
                }
            }
            Err(error) if error.kind() == StoreErrorKind::Unavailable => {
                if reachable {
                    eprintln!("waiting for the database: {error}");
                    reachable = false;
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Reads everything from the first row of interest on.
async fn look(
    store: &PostgresStore,
    follower: &mut Follower,
) -> Result<Vec<Change>, crate::store::postgres::StoreError> {
    let mut after = follower.after();
    let mut rows = Vec::new();
    loop {
        let page = store.tail(after, PAGE).await?;
        let full = page.len() == PAGE;
        after = page.last().map_or(after, |row| row.record.seq);
        rows.extend(page);
        if !full || rows.len() >= LOOK_MAX {
            break;
        }
    }
    let complete = rows.len() < LOOK_MAX;
    Ok(follower.update(rows, complete))
}

fn show(args: &Tail, change: &Change) -> Result<(), Failure> {
    let record = &change.record;
    if !wanted(args, record) {
        return Ok(());
    }
    if args.read.output == Output::Json {
        let mut value = json(record, args.data);
        value["state"] = change.state.as_str().into();
        return print_line(&value.to_string());
    }
    let time = record.created_at.map(|at| format!("{at:.3}"));
    let mut line = line([
        &or_dash(time.as_deref()),
        &record.seq.to_string(),
        &plain(&record.event_type),
        &plain(&or_dash(record.key.as_deref())),
        change.state.as_str(),
    ]);
    if args.data
        && let Some(text) = shown(record)
    {
        line += &format!("  {}", plain(&text));
    }
    print(&(line + "\n"))
}

fn line([time, seq, event_type, key, state]: [&str; 5]) -> String {
    format!("{time:<24}  {seq:>8}  {event_type:<32}  {key:<24}  {state}")
}

fn wanted(args: &Tail, record: &Record) -> bool {
    let pattern = args.event_type.as_deref();
    let key = args.key.as_ref();
    pattern.is_none_or(|pattern| matches(pattern, &record.event_type))
        && key.is_none_or(|key| record.key.as_ref() == Some(key))
}

/// The payload as text, or why it is not shown; `None` if there is none.
fn shown(record: &Record) -> Option<String> {
    match record.content {
        Content::Whole => payload(&record.data),
        Content::Left { .. } | Content::Refused(_) => Some("(too large or unreadable)".to_owned()),
    }
}

/// The payload as text; `None` if there is none.
pub(super) fn payload(data: &Data) -> Option<String> {
    match data {
        Data::None => None,
        Data::Json(text) | Data::Text(text) => Some(String::from_utf8_lossy(text).into_owned()),
        Data::Binary(bytes) => Some(format!("base64:{}", STANDARD.encode(bytes))),
    }
}

/// A row for programs, its payload on request.
pub(super) fn json(record: &Record, with_data: bool) -> Value {
    let parsed = |text: &Option<String>| -> Value {
        let text = text.as_deref().unwrap_or("null");
        serde_json::from_str(text).unwrap_or_else(|_| text.into())
    };
    let mut value = json!({
        "seq": record.seq,
        "id": record.id,
        "type": record.event_type,
        "source": record.source,
        "subject": record.subject,
        "key": record.key,
        "content_type": record.content_type,
        "schema": record.schema,
        "extensions": parsed(&record.extensions),
        "headers": parsed(&record.headers),
        "destination": record.destination,
        "routing_key": record.routing_key,
        "created_at": record.created_at,
    });
    if with_data {
        match &record.data {
            Data::None => value["data"] = Value::Null,
            Data::Json(text) => {
                value["data"] = parsed(&Some(String::from_utf8_lossy(text).into_owned()))
            }
            Data::Text(text) => value["data"] = String::from_utf8_lossy(text).into(),
            Data::Binary(bytes) => value["data_base64"] = STANDARD.encode(bytes).into(),
        }
    }
    value
}

/// Whether a text fits a pattern in which `*` stands for anything.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    // `split` gives at least one part.
    let Some(mut rest) = text.strip_prefix(parts.next().unwrap_or_default()) else {
        return false;
    };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_texts() {
        for (pattern, text, expected) in [
            ("order.*", "order.placed", true),
            ("order.*", "reorder.placed", false),
            ("*", "", true),
            ("a", "a", true),
            ("a", "ab", false),
            ("*.placed", "order.placed", true),
            ("o*r.*d", "order.placed", true),
            ("a*a", "a", false),
            ("a**b", "ab", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }
}
