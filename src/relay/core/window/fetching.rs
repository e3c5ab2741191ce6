//! Rows that were read without their payload: they may go as soon as it is fetched.

use super::{Slot, Window};
use crate::event::{Content, Record};
use crate::store::Settled;

impl Window {
    /// A row that nothing holds back: it may go, or its payload is to be fetched.
    pub(super) fn make_ready(&mut self, seq: i64) {
        let left = matches!(self.slots.get(&seq), Some(Slot::Waiting(item)) if item.record.content.is_left());
        if left {
            self.unfetched.insert(seq);
        } else {
            self.ready.insert(seq);
        }
    }

    /// The counterpart of [`Window::make_ready`].
    pub(super) fn unready(&mut self, seq: i64) {
        self.ready.remove(&seq);
        self.unfetched.remove(&seq);
    }

    /// Whether a row that may go waits for its payload.
    pub fn wants_fetch(&self) -> bool {
        !self.unfetched.is_empty()
    }

    /// The rows whose payload is wanted next, the oldest first: at most `most` of together at most `bytes`, but one in
    /// any case.
    pub fn to_fetch(&self, most: usize, bytes: usize) -> Vec<Settled> {
        let mut sum = 0_usize;
        let mut rows = Vec::new();
        for seq in self.unfetched.iter().filter(|seq| self.fits(**seq)) {
            let Some(item) = self.waiting(*seq) else {
                continue;
            };
            sum = sum.saturating_add(item.record.weight());
            if rows.len() >= most || sum > bytes && !rows.is_empty() {
                break;
            }
            rows.push(Settled {
                seq: *seq,
                id: item.record.id.clone(),
            });
        }
        rows
    }

    /// A row's payload came, or the reason why it does not. Ignored if the row is not waiting for it any more.
    pub fn fetched(&mut self, mut fetched: Record) {
        let seq = fetched.seq;
        let Some(Slot::Waiting(item)) = self.slots.get_mut(&seq) else {
            return;
        };
        let old = &mut item.record;
        if !old.content.is_left() || old.id != fetched.id || fetched.content.is_left() {
            return;
        }
        self.bytes -= old.weight();
        if fetched.content == Content::Whole {
            // What was known about its failures was read with it.
            fetched.hash = old.hash;
            fetched.keyed = old.keyed;
            fetched.attempts = old.attempts;
            fetched.crashes = old.crashes;
            fetched.retry_in = old.retry_in;
            fetched.expires_in = old.expires_in;
            *old = fetched;
        } else {
            old.content = fetched.content;
            if !fetched.event_type.is_empty() {
                old.event_type = fetched.event_type;
            }
            old.key = fetched.key.or(old.key.take());
        }
        self.bytes += old.weight();
        if self.unfetched.remove(&seq) {
            self.ready.insert(seq);
        }
    }
}
