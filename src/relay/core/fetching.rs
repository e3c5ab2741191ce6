//! Payloads that reads left out: of rows that are large, of all rows after a crash, and of all rows of a read that the
//! database could not render.
//!
//! They are fetched when their row is about to go, one fetch at a time. So a row that kills the process while its payload
//! arrives does so when it is in flight in all but name: the care after a crash covers it (see `Core::admit`).

use super::{Command, Core, STORE_RETRY, StoreFailed, Time};
use crate::store::{FetchBatch, FetchRequest};

/// Most bytes of one fetch, unless a single row has more.
const FETCH_BYTES: usize = 4 << 20;

impl Core {
    /// When payloads are to be fetched.
    pub(super) fn fetch_due(&self, now: Time) -> Option<Time> {
        let may = !self.fetching && self.may_publish(now) && !self.window.wants_quiet();
        (may && !self.window.to_fetch(1, FETCH_BYTES).is_empty()).then_some(self.fetch_after)
    }

    pub(super) fn next_fetch(&mut self, now: Time) -> Option<Command> {
        if self.fetch_due(now).is_none_or(|due| due > now) {
            return None;
        }
        let rows = self.window.to_fetch(self.config.lane_batch, FETCH_BYTES);
        self.fetching = true;
        Some(Command::Fetch(FetchRequest {
            rows,
            source: self.reading.source(),
            byte_limit: FETCH_BYTES,
            max_event: self.config.max_event_bytes,
        }))
    }

    pub(super) fn fetched(&mut self, now: Time, result: Result<FetchBatch, StoreFailed>) {
        self.fetching = false;
        let Ok(batch) = result else {
            self.fetch_after = now + STORE_RETRY;
            // A main read would notice a different server, but rows waiting for their payloads may leave no room for one.
            self.reading.doubt();
            return;
        };
        for record in batch.rows {
            self.window.fetched(record);
        }
        for row in batch.gone {
            let waits = self
                .window
                .waiting(row.seq)
                .is_some_and(|item| item.record.id == row.id && item.record.content.is_left());
            if waits {
                self.suspected.remove(&row.seq);
                self.window.drop_row(row.seq);
            }
        }
    }

    /// Whether a row that could go waits for its payload.
    pub(super) fn awaits_payload(&self) -> bool {
        self.fetching || self.window.wants_fetch()
    }
}
