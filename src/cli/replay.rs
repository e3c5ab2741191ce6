//! `outrigger replay`: publish again what was published before.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::Failure;
use super::args::Replay;
use super::connect::store;
use super::output::{duration, events, number, print_line};
use crate::settings::Settings;
use crate::store::postgres::AfterPublish;
use crate::store::postgres::replay::{ReplayCount, ReplayFilter, ReplayMode};

/// Rows per transaction: short enough to hold nobody up.
const CHUNK: usize = 1000;

/// Between two lines of progress that nobody can overwrite.
const SPARSE: Duration = Duration::from_secs(10);

/// Makes the events pending again, or counts them.
pub(super) async fn run(args: &Replay, settings: &Settings) -> Result<(), Failure> {
    let now = Timestamp::now();
    let filter = ReplayFilter {
        from: args.from.map(|when| when.at(now)),
        to: args.to.map(|when| when.at(now)),
        event_type: args.event_type.clone(),
        key: args.key.clone(),
        ids: args.events.clone(),
        discarded: args.include_discarded,
        expired: args.include_expired,
        ..ReplayFilter::default()
    };
    if let (Some(from), Some(to)) = (filter.from, filter.to)
        && from >= to
    {
        let text = format!("--from {from:.0} is not before --to {to:.0}");
        return Err(Failure::usage(text));
    }
    let store = store(settings).await?;
    if store.capabilities().after_publish == AfterPublish::Delete {
        return Err(Failure::usage(format!(
            "nothing can be replayed from {}: OUTRIGGER_OUTBOX_AFTER_PUBLISH=delete removes events once they are published",
            store.outbox()
        ))
        .hint("to be able to replay, keep events with OUTRIGGER_OUTBOX_AFTER_PUBLISH=mark"));
    }
    let count = store.replay_count(&filter).await?;
    let matching = count.matching;
    let left_out = left_out(&count);
    if matching == 0 && !filter.ids.is_empty() && !left_out.is_empty() {
        return Err(Failure::from("none of the named events was published")
            .hint(format!("{}; nothing was changed", left_out.join("; "))));
    }
    for line in &left_out {
        eprintln!("{line}");
    }
    if matching == 0 && !filter.ids.is_empty() {
        // A mistyped id in a script must not pass.
        return Err(Failure::from("none of the named events is published and still there")
            .hint("ids and seq numbers are taken; `outrigger tail` shows events, and nothing was changed"));
    }
    if matching == 0 && left_out.is_empty() {
        eprintln!(
            "no published event matches; published events are kept {} (OUTRIGGER_OUTBOX_RETENTION)",
            match settings
                .outbox
                .retention
                .in_table(store.capabilities().created_by_migrate)
            {
                Some(time) => format!("for {}", duration(time)),
                None => "for ever".to_owned(),
            }
        );
    }
    if args.write.dry_run {
        return print_line(&format!("would replay {}", events(matching)));
    }
    let mode = if args.new_ids {
        ReplayMode::NewIds
    } else {
        ReplayMode::SameIds
    };
    let mut progress = Progress::new(matching);
    let result = store
        .replay(&filter, mode, CHUNK, |total| progress.show(total))
        .await;
    progress.end();
    match result {
        Ok(total) => print_line(&format!(
            "{} will be published again",
            events(i128::from(total))
        )),
        Err(error) => Err(Failure::from(error).hint(format!(
            "{} are pending again; the rest is as it was",
            events(i128::from(progress.done))
        ))),
    }
}

/// What is left out, and how it is not.
fn left_out(count: &ReplayCount) -> Vec<String> {
    [
        (count.discarded, "discarded", "--include-discarded"),
        (count.expired, "expired", "--include-expired"),
    ]
    .into_iter()
    .filter(|(count, ..)| *count > 0)
    .map(|(count, what, option)| {
        let event = if count == 1 { "event is" } else { "events are" };
        format!("{} {what} {event} left out ({option})", number(count))
    })
    .collect()
}

/// Progress on standard error: a line that is overwritten on a terminal, else a line now and then.
struct Progress {
    total: i64,
    done: u64,
    terminal: bool,
    shown: Option<Instant>,
}

impl Progress {
    fn new(total: i64) -> Self {
        Self {
            total,
            done: 0,
            terminal: io::stderr().is_terminal(),
            shown: None,
        }
    }

    fn show(&mut self, done: u64) {
        self.done = done;
        let text = format!(
            "replaying: {} of {}",
            number(i128::from(done)),
            number(self.total)
        );
        if self.terminal {
            // Progress that cannot be shown is no reason to stop.
            let _ = write!(io::stderr(), "\r{text}\x1b[K");
            self.shown = Some(Instant::now());
        } else if self.total > CHUNK as i64 && self.shown.is_none_or(|at| at.elapsed() > SPARSE) {
            eprintln!("{text}");
            self.shown = Some(Instant::now());
        }
    }

    fn end(&self) {
        if self.terminal && self.shown.is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
