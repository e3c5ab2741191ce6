//! Rows for tests of the core.

use super::window::{Item, Suspect};
use crate::event::Record;

/// A row of the key with this placement hash.
pub(super) fn row(seq: i64, hash: i64) -> Record {
    Record {
        seq,
        hash,
        keyed: true,
        ..Record::default()
    }
}

/// A row that nothing is known against.
pub(super) fn item(record: Record) -> Item {
    Item {
        record,
        dead_letter: None,
        expires_at: None,
        out_of_order: false,
        retried: false,
        suspect: Suspect::No,
    }
}
