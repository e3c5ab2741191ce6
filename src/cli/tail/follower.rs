//! Which rows are new to the reader, and which have changed.

use std::collections::{BTreeMap, BTreeSet};

use crate::event::{Data, Record};
use crate::store::FailureState;
use crate::store::postgres::admin::TailRow;

/// Rows below the highest one seen that are looked at again: transactions commit out of order.
const LATE: i64 = 100;

/// Rows that are followed until they are published. Beyond it, the oldest are forgotten, so that a relay that
/// stands still does not make every look longer than the one before.
const FOLLOWED_MAX: usize = 1000;

/// What is shown as the state of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Pending,
    Failed(FailureState),
    Published,
    /// Over, and never published.
    Unpublished(FailureState),
    /// Vanished from a table whose published rows stay.
    Deleted,
}

impl State {
    fn of(row: &TailRow) -> Self {
        match (row.published, row.failure) {
            (true, Some(state)) if state.is_over() => Self::Unpublished(state),
            (true, _) => Self::Published,
            // A suspect is pending: nothing is known against it.
            (false, Some(state)) if state != FailureState::Suspect => Self::Failed(state),
            _ => Self::Pending,
        }
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Failed(state) | Self::Unpublished(state) => state.as_str(),
            Self::Published => "published",
            Self::Deleted => "deleted",
        }
    }

    fn is_final(self) -> bool {
        matches!(self, Self::Published | Self::Unpublished(_) | Self::Deleted)
    }
}

/// A row that is new, or whose state changed.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Change {
    pub(super) record: Record,
    pub(super) state: State,
}

/// Remembers what was shown.
pub(super) struct Follower {
    /// Published rows are deleted.
    deletes: bool,
    start: i64,
    last: i64,
    seen: BTreeMap<i64, (State, Record)>,
}

impl Follower {
    /// Shows nothing up to `start`. `deletes`: published rows are deleted.
    pub(super) fn new(start: i64, deletes: bool) -> Self {
        Self {
            deletes,
            start,
            last: start,
            seen: BTreeMap::new(),
        }
    }

    /// Below the first row that may have something new.
    pub(super) fn after(&self) -> i64 {
        let open = self.seen.iter().find(|(_, (state, _))| !state.is_final());
        let open = open.map_or(self.last, |(seq, _)| seq - 1);
        open.min(self.last.saturating_sub(LATE)).max(self.start)
    }

    /// Takes the rows above [`Self::after`], in order, and returns what changed. `complete`: these are all.
    pub(super) fn update(&mut self, rows: Vec<TailRow>, complete: bool) -> Vec<Change> {
        let mut changes = Vec::new();
        let first = self.after();
        // Rows beyond the last one read may not have been read for their number.
        let end = rows
            .last()
            .map_or(self.last, |row| row.record.seq)
            .max(self.last);
        let there: BTreeSet<i64> = rows.iter().map(|row| row.record.seq).collect();
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

#[cfg(test)]
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

    fn shown(follower: &mut Follower, rows: &[(i64, bool)]) -> Vec<(i64, &'static str)> {
        let rows = rows
            .iter()
            .map(|(seq, published)| row(*seq, *published))
            .collect();
        let changes = follower.update(rows, true);
        changes
            .iter()
            .map(|c| (c.record.seq, c.state.as_str()))
            .collect()
    }

    #[test]
    fn a_row_is_shown_once_per_state() {
        let mut f = Follower::new(0, false);
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
        let mut f = Follower::new(0, true);
        assert_eq!(
            shown(&mut f, &[(1, false), (2, false)]),
            [(1, "pending"), (2, "pending")]
        );
        assert_eq!(shown(&mut f, &[(2, false)]), [(1, "published")]);
        assert_eq!(shown(&mut f, &[]), [(2, "published")]);
    }

    #[test]
    fn an_unpublished_row_is_followed_however_old_but_not_without_limit() {
        let mut f = Follower::new(0, false);
        shown(&mut f, &[(1, false), (500, true)]);
        assert_eq!(f.after(), 0);
        let many: Vec<_> = (501..2500).map(|seq| (seq, true)).collect();
        shown(&mut f, &many);
        assert!(f.seen.len() <= FOLLOWED_MAX);
        assert_eq!(f.after(), 2399);
    }
}
