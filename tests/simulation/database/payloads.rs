//! Payloads that are not small and harmless, and how reads and fetches fare with them.

use outrigger::error::ReasonCode;
use outrigger::event::{Content, Record};
use outrigger::store::{FetchBatch, FetchRequest, ReadRequest};

use super::{Database, Time};

/// What reading a row meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payload {
    /// Comes on its own.
    Large,
    /// Larger than is allowed.
    TooLarge,
    /// The server refuses to hand it out, and everything that is asked for with it.
    Unreadable,
    /// Kills whoever reads it.
    Deadly,
}

impl Database {
    /// The rows as a read brings them.
    pub(super) fn handed_out(&self, request: &ReadRequest, seqs: &[i64], now: Time) -> Vec<Record> {
        let unreadable = request.whole > 0
            && seqs
                .iter()
                .any(|seq| self.payload(*seq) == Some(Payload::Unreadable));
        seqs.iter()
            .map(|&seq| {
                let content = match self.payload(seq) {
                    _ if unreadable => Content::Left { bytes: 0 },
                    Some(Payload::TooLarge) => Content::of_size(2, 1),
                    Some(Payload::Large) => Content::Left { bytes: 9 },
                    _ if request.whole == 0 => Content::Left { bytes: 1 },
                    _ => Content::Whole,
                };
                Record {
                    content,
                    ..self.record(seq, now)
                }
            })
            .collect()
    }

    /// What reading the row with this number meets.
    pub fn payload(&self, seq: i64) -> Option<Payload> {
        let id = self.present.get(&seq)?;
        self.payloads.get(id).copied()
    }

    /// Whether whoever asks for these payloads dies of it.
    pub fn kills(&self, mut seqs: impl Iterator<Item = i64>) -> bool {
        seqs.any(|seq| self.payload(seq) == Some(Payload::Deadly))
    }

    pub fn fetch(&self, request: &FetchRequest, now: Time) -> Option<FetchBatch> {
        if request.source.is_some_and(|source| source != self.source()) {
            return None;
        }
        let mut batch = FetchBatch::default();
        for row in &request.rows {
            let here = self.present.get(&row.seq).map(i64::to_string);
            if !self.pending.contains(&row.seq) || here.as_ref() != Some(&row.id) {
                batch.gone.push(row.clone());
                continue;
            }
            let content = match self.payload(row.seq) {
                Some(Payload::TooLarge) => Content::of_size(2, 1),
                Some(Payload::Unreadable) => Content::refused(ReasonCode::Unreadable, "bytes"),
                _ => Content::Whole,
            };
            batch.rows.push(Record {
                content,
                ..self.record(row.seq, now)
            });
            // It does not all fit.
            if batch.rows.len() >= 4 {
                break;
            }
        }
        Some(batch)
    }
}
