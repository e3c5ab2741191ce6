//! `outrigger tail --as-sent`: pending and new events as the messages that a relay would send. It owns nothing, settles
//! nothing and talks to no broker.

use std::collections::BTreeSet;

use super::follower::{Follower, State};
use super::{PAGE, PERIOD, Tail, wanted};
use crate::assemble;
use crate::cli::Failure;
use crate::cli::connect::{interrupted, reading};
use crate::cli::output::{events, plain, print};
use crate::event::encode::Encoder;
use crate::event::{Content, Record};
use crate::settings::Settings;
use crate::sink::stdout::write_line;
use crate::store::postgres::{AfterPublish, PostgresStore, StoreErrorKind};
use crate::store::{Partitions, ReadKind, ReadRequest};

/// Bytes of one read.
const BYTES: usize = 16 << 20;

/// Prints until interrupted.
pub(super) async fn run(args: &Tail, settings: &Settings) -> Result<(), Failure> {
    if settings.event.source.is_empty() {
        return Err(Failure::usage("OUTRIGGER_EVENT_SOURCE is not set").hint(
            "name the service, for example `/services/orders`: it is part of every message",
        ));
    }
    let (encoder, _) = assemble::encoder(settings)?;
    let (store, _) = reading(settings).await?;
    let start = store.last_seq().await?;
    // Also says so, if the table has no order to follow.
    store.tail(start, 1).await?;
    let view = View {
        args,
        encoder,
        store,
        max_event: settings.relay.max_event_size,
    };
    tokio::select! {
        done = view.follow(start) => done,
        stopped = interrupted() => stopped,
    }
}

struct View<'a> {
    args: &'a Tail,
    encoder: Encoder,
    store: PostgresStore,
    /// Larger rows are not read.
    max_event: usize,
}

impl View<'_> {
    async fn follow(&self, start: i64) -> Result<(), Failure> {
        let (mut shown, pending) = self.pending(start).await?;
        eprintln!(
            "{} of {} as they would be sent; nothing is published. Following new ones; Ctrl-C ends",
            events(pending),
            self.store.outbox()
        );
        let deletes = self.store.capabilities().after_publish == AfterPublish::Delete;
        let mut follower = Follower::new(start, deletes);
        let mut clock = tokio::time::interval(PERIOD);
        clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            clock.tick().await;
            let changes = match super::look(&self.store, &mut follower).await {
                Ok(changes) => changes,
                Err(error) if error.kind() == StoreErrorKind::Unavailable => continue,
                Err(error) => return Err(error.into()),
            };
            let new: Vec<Record> = changes
                .into_iter()
                .filter(|change| change.state != State::Deleted)
                .map(|change| change.record)
                .filter(|record| shown.insert(record.seq))
                .collect();
            self.show(&new)?;
            // What the follower has left behind does not come again.
            shown = shown.split_off(&follower.after());
        }
    }

    /// Prints what is pending, and returns which rows above `start` that was, and how many rows in all.
    async fn pending(&self, start: i64) -> Result<(BTreeSet<i64>, i64), Failure> {
        let mut shown = BTreeSet::new();
        let (mut after, mut count) = (None, 0);
        loop {
            let request = ReadRequest {
                kind: ReadKind::Main { after },
                partitions: Partitions::All,
                skip_keys: Vec::new(),
                known: Vec::new(),
                limit: PAGE,
                source: None,
                byte_limit: BYTES,
                whole: usize::MAX,
                max_event: self.max_event,
            };
            let batch = self.store.read(&request).await?;
            let last = batch.rows.last().map(|row| row.seq);
            self.show(&batch.rows)?;
            count += batch.rows.len() as i64;
            let new = batch.rows.iter().map(|row| row.seq);
            shown.extend(new.filter(|seq| *seq > start));
            if !batch.cut || last.is_none() {
                return Ok((shown, count));
            }
            after = last;
        }
    }

    /// What cannot be sent is said on standard error, and the others are printed.
    fn show(&self, records: &[Record]) -> Result<(), Failure> {
        let (whole, rest): (Vec<_>, Vec<_>) = records
            .iter()
            .filter(|record| wanted(self.args, record))
            .partition(|record| record.content == Content::Whole);
        for record in rest {
            let why = record.content.refusal();
            let why = why.map_or("it is too large to be shown", |refusal| {
                refusal.reason.detail.as_str()
            });
            eprintln!("event {} cannot be shown: {}", record.seq, plain(why));
        }
        let encoded = self.encoder.encode(whole);
        let mut lines = Vec::new();
        for message in &encoded.messages {
            write_line(&mut lines, message)?;
        }
        print(&String::from_utf8_lossy(&lines))?;
        for (seq, reason) in &encoded.rejected {
            eprintln!("event {seq} cannot be sent: {}", plain(&reason.detail));
        }
        Ok(())
    }
}
