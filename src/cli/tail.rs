//! `outrigger tail`: events as they are written and published.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::Failure;
use super::args::{Output, Tail};
use super::connect::{interrupted, reading};
use super::output::{or_dash, plain, print, print_line};
use crate::event::{Data, Record};
use crate::settings::Settings;
use crate::store::FailureState;
use crate::store::postgres::admin::TailRow;
use crate::store::postgres::{AfterPublish, PostgresStore, StoreErrorKind};

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(250);

/// Rows below the highest one seen that are looked at again: transactions commit out of order.
const LATE: i64 = 100;

/// Rows that are followed until they are published. Beyond it, the oldest are forgotten, so that a relay that
/// stands still does not make every look longer than the one before.
const FOLLOWED_MAX: usize = 1000;

/// Rows per read.
const PAGE: usize = 500;

/// Follows the table until interrupted.
pub(super) async fn run(args: &Tail, settings: &Settings) -> Result<(), Failure> {
    let (store, _) = reading(settings).await?;
    let start = store.last_seq().await?;
    // Also says so, if the table has no order to follow.
    store.tail(start, 1).await?;
    if args.read.output == Output::Table {
        eprintln!("following {}; Ctrl-C ends", store.outbox());
    }
    let mut follower = Follower {
        deletes: store.capabilities().after_publish == AfterPublish::Delete,
        start,
        last: start,
        seen: BTreeMap::new(),
    };
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
        // What is left waits for the next look; memory stays bounded.
        if !full || rows.len() >= 4 * PAGE {
            break;
        }
    }
    Ok(follower.update(rows))
}

/// What is shown as the state of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Pending,
    Failed(FailureState),
    Published,
    /// Vanished from a table whose published rows stay.
    Deleted,
}

impl State {
    fn of(row: &TailRow) -> Self {
        match (row.published, row.failure) {
            (true, _) => Self::Published,
            // A suspect is pending: nothing is known against it.
            (false, Some(state)) if state != FailureState::Suspect => Self::Failed(state),
            _ => Self::Pending,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Failed(state) => state.as_str(),
            Self::Published => "published",
            Self::Deleted => "deleted",
        }
    }

    fn is_final(self) -> bool {
        matches!(self, Self::Published | Self::Deleted)
    }
}

/// A row that is new, or whose state changed.
#[derive(Debug, Clone, PartialEq)]
struct Change {
    record: Record,
    state: State,
}

/// Remembers what was shown.
struct Follower {
    /// Published rows are deleted.
    deletes: bool,
    start: i64,
    last: i64,
    seen: BTreeMap<i64, (State, Record)>,
}

impl Follower {
    /// Below the first row that may have something new.
    fn after(&self) -> i64 {
        let open = self.seen.iter().find(|(_, (state, _))| !state.is_final());
        let open = open.map_or(self.last, |(seq, _)| seq - 1);
        open.min(self.last.saturating_sub(LATE)).max(self.start)
    }

    /// Takes the rows above [`Self::after`], in order, and returns what changed.
    fn update(&mut self, rows: Vec<TailRow>) -> Vec<Change> {
        let mut changes = Vec::new();
        let first = self.after();
        // Rows beyond the last one read may not have been read for their number.
        let end = rows
            .last()
            .map_or(self.last, |row| row.record.seq)
            .max(self.last);
        let there: std::collections::BTreeSet<i64> =
            rows.iter().map(|row| row.record.seq).collect();
        let complete = rows.len() < 4 * PAGE;
        for (seq, (state, record)) in self.seen.range_mut(first.saturating_add(1)..=end) {
            let read = complete || there.last().is_some_and(|last| seq <= last);
            if read && !state.is_final() && !there.contains(seq) {
                *state = if self.deletes {
                    State::Published
                } else {
                    State::Deleted
                };
                changes.push(Change {
                    record: record.clone(),
                    state: *state,
                });
            }
        }
        for row in rows {
            let state = State::of(&row);
            let seq = row.record.seq;
            if self
                .seen
                .get(&seq)
                .is_some_and(|(before, _)| *before == state)
            {
                continue;
            }
            self.last = self.last.max(seq);
            // The payload is not kept: it was shown.
            let kept = Record {
                data: Data::None,
                ..row.record.clone()
            };
            self.seen.insert(seq, (state, kept));
            changes.push(Change {
                record: row.record,
                state,
            });
        }
        self.forget();
        changes
    }

    fn forget(&mut self) {
        while self.seen.len() > FOLLOWED_MAX {
            if let Some((seq, _)) = self.seen.pop_first() {
                self.start = self.start.max(seq);
            }
        }
        let keep = self.after();
        self.seen = self.seen.split_off(&keep.saturating_add(1));
    }
}

fn show(args: &Tail, change: &Change) -> Result<(), Failure> {
    let record = &change.record;
    let wanted = args
        .event_type
        .as_deref()
        .is_none_or(|pattern| matches(pattern, &record.event_type))
        && args
            .key
            .as_ref()
            .is_none_or(|key| record.key.as_ref() == Some(key));
    if !wanted {
        return Ok(());
    }
    if args.read.output == Output::Json {
        let mut value = json(record, args.data);
        value["state"] = change.state.as_str().into();
        return print_line(&value.to_string());
    }
    let time = record.created_at.map(|at| format!("{at:.3}"));
    let mut line = format!(
        "{:<24}  {:>8}  {:<32}  {:<24}  {}",
        or_dash(time.as_deref()),
        record.seq,
        plain(&record.event_type),
        plain(&or_dash(record.key.as_deref())),
        change.state.as_str()
    );
    if args.data
        && let Some(text) = payload(&record.data)
    {
        line += &format!("  {}", plain(&text));
    }
    print(&(line + "\n"))
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
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn row(seq: i64, published: bool) -> TailRow {
        TailRow {
            record: Record {
                seq,
                ..Record::default()
            },
            published,
            failure: None,
        }
    }

    fn follower(deletes: bool) -> Follower {
        Follower {
            deletes,
            start: 0,
            last: 0,
            seen: BTreeMap::new(),
        }
    }

    fn shown(follower: &mut Follower, rows: &[(i64, bool)]) -> Vec<(i64, &'static str)> {
        let rows = rows
            .iter()
            .map(|(seq, published)| row(*seq, *published))
            .collect();
        let changes = follower.update(rows);
        changes
            .iter()
            .map(|c| (c.record.seq, c.state.as_str()))
            .collect()
    }

    #[test]
    fn a_row_is_shown_once_per_state() {
        let mut f = follower(false);
        assert_eq!(
            shown(&mut f, &[(1, false), (3, true)]),
            [(1, "pending"), (3, "published")]
        );
        assert_eq!(shown(&mut f, &[(1, false), (3, true)]), []);
        // 2 committed late.
        assert_eq!(
            shown(&mut f, &[(1, true), (2, false), (3, true)]),
            [(1, "published"), (2, "pending")]
        );
        assert_eq!(shown(&mut f, &[(1, true), (3, true)]), [(2, "deleted")]);
        assert_eq!(shown(&mut f, &[]), []);
    }

    #[test]
    fn vanishing_means_published_where_rows_are_deleted() {
        let mut f = follower(true);
        assert_eq!(
            shown(&mut f, &[(1, false), (2, false)]),
            [(1, "pending"), (2, "pending")]
        );
        assert_eq!(shown(&mut f, &[(2, false)]), [(1, "published")]);
        assert_eq!(shown(&mut f, &[]), [(2, "published")]);
    }

    #[test]
    fn an_unpublished_row_is_followed_however_old_but_not_without_limit() {
        let mut f = follower(false);
        shown(&mut f, &[(1, false), (500, true)]);
        assert_eq!(f.after(), 0);
        let many: Vec<_> = (501..2500).map(|seq| (seq, true)).collect();
        shown(&mut f, &many);
        assert!(f.seen.len() <= FOLLOWED_MAX);
        assert_eq!(f.after(), 2399);
    }

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
