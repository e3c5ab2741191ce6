//! Where the next main read may start, so that reading is cheap *and* keeps the order per key.
//!
//! # The problem
//!
//! A row takes its `seq` at INSERT and appears at COMMIT, so rows keep appearing below the highest
//! `seq` already read. Starting every read at the highest one would not only find such a row late:
//! it would break the order. A writer inserts `k1` (seq 100) and stays open; others push
//! the highest read to 900; it commits, and the next writer of the same key inserts and commits
//! `k2` (seq 901). A read that starts at 900 sees `k2` and not `k1`.
//!
//! # The rule
//!
//! A late row belongs to a transaction that held the table's insert lock (`ROW EXCLUSIVE`)
//! at some earlier moment: the lock is taken before the first `seq` is drawn and released
//! after the commit is visible. Every main read therefore brings back who held that lock just after
//! its snapshot was taken, and the next read starts at or below
//!
//! * the highest `seq` known before the last look but one, because a transaction may have come and
//!   gone between two looks;
//! * the highest `seq` known when each holder was *not* yet there (`since`), for all holders that
//!   are or were there at the last look: whatever they commit was drawn later and lies above it;
//! * the coverage: everything up to there that was visible has been read.
//!
//! For writers that take milliseconds this is a re-scan of the last few reads. A transaction that
//! stays open for minutes would drag the bound down and make every read longer, so far-back
//! holders are left out on the assumption that they are still open, and the assumption is checked:
//! the read's own snapshot says whether the transaction was in progress *in that read*. If it was not,
//! the read is thrown away and repeated from that holder's `since`. Nothing ever waits for an
//! open transaction.
//!
//! # What rests on it
//!
//! Order per key rests on this rule (and on writers taking `seq` by a plain INSERT). No-loss does
//! not: the sweep visits every pending row from time to time, whatever the bound says.

use std::collections::HashMap;

use crate::store::{Holder, Holders};

/// Lower bound of a read: `None` is the beginning of the table.
pub type After = Option<i64>;

/// Rows a holder may be behind the coverage before it is assumed to stay open for long.
pub const FAR_BEHIND: i64 = 5_000;

#[derive(Debug, Clone)]
struct Seen {
    /// Everything the transaction commits lies above this.
    since: After,
    xid: Option<u32>,
}

/// What became of a main read's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// For every key, no pending row is missing below the rows returned.
    Accept,
    /// A transaction assumed to be open was not: throw the rows away and read again.
    Discard,
}

/// Bookkeeping between main reads.
#[derive(Debug, Clone)]
pub struct Bound {
    far_behind: i64,
    /// Where the last accepted read started.
    last_start: After,
    starting: After,
    /// Restarted since the read in flight began: it covers too little.
    restarted: bool,
    /// Every row up to here that was visible in an accepted read has been seen.
    coverage: After,
    /// The highest `seq` ever seen, hence drawn before the last look at the lock holders.
    drawn: After,
    /// The same, one look earlier.
    drawn_before: After,
    /// Lock holders at the last look.
    holders: HashMap<String, Seen>,
    /// `since` of holders that were gone at the last look: the next read must reach below.
    /// The outer option: whether there are any.
    gone: Option<After>,
    /// Holders the read in flight assumes to be open.
    assumed_open: Vec<String>,
}

fn lower(a: Option<After>, b: After) -> Option<After> {
    match a {
        None => Some(b),
        Some(a) => Some(a.min(b)), // None sorts first: the beginning of the table
    }
}

impl Bound {
    /// Nothing read yet. `far_behind`: see [`FAR_BEHIND`].
    pub fn new(far_behind: i64) -> Self {
        Self {
            far_behind,
            last_start: None,
            starting: None,
            restarted: false,
            coverage: None,
            drawn: None,
            drawn_before: None,
            holders: HashMap::new(),
            gone: None,
            assumed_open: Vec::new(),
        }
    }

    /// Everything up to here has been seen; `None`: nothing yet.
    pub fn coverage(&self) -> After {
        self.coverage
    }

    /// The bound of the last main read: nothing unread should lie below, except what a transaction
    /// assumed to be open may still commit.
    pub fn settled_below(&self) -> After {
        self.last_start
    }

    /// Forgets the coverage: the next read starts at the beginning. Needed when the set of
    /// partitions grows or somebody changed rows below the bound on purpose (replay).
    pub fn restart(&mut self) {
        self.coverage = None;
        self.last_start = None;
        self.restarted = true;
    }

    /// See [`Bound::new`].
    pub fn far_behind(&self) -> i64 {
        self.far_behind
    }

    /// The lower bound for the next main read. Must be followed by [`Bound::finish`] or
    /// [`Bound::abandon`].
    pub fn start(&mut self) -> After {
        self.assumed_open.clear();
        self.restarted = false;
        let mut bound = self.coverage.min(self.drawn_before);
        if let Some(gone) = self.gone {
            bound = bound.min(gone);
        }
        let Some(coverage) = self.coverage else {
            self.starting = None;
            return None;
        };
        for (name, seen) in &self.holders {
            let far = seen
                .since
                .is_none_or(|since| since < coverage.saturating_sub(self.far_behind));
            if far && bound > seen.since {
                self.assumed_open.push(name.clone());
            } else {
                bound = bound.min(seen.since);
            }
        }
        // Those nearer than the bound that others forced need no assumption.
        let holders = &self.holders;
        self.assumed_open
            .retain(|name| holders.get(name).is_some_and(|seen| seen.since < bound));
        self.starting = bound;
        bound
    }

    /// The read failed and told nothing.
    pub fn abandon(&mut self) {
        self.assumed_open.clear();
    }

    /// Takes in the answer of the read started last.
    ///
    /// `reached`: the highest `seq` returned, if any row was; `cut`: a limit ended the read there.
    pub fn finish(&mut self, reached: Option<i64>, cut: bool, answer: &Holders) -> Judgement {
        let now: HashMap<&str, &Holder> = answer
            .holders
            .iter()
            .map(|holder| (holder.virtual_transaction.as_str(), holder))
            .collect();

        let mut accept = true;
        for name in std::mem::take(&mut self.assumed_open) {
            let Some(seen) = self.holders.get(&name) else {
                continue;
            };
            let still = now.get(name.as_str());
            let xid = still.and_then(|holder| holder.xid).or(seen.xid);
            let open = match xid {
                Some(xid) => was_in_progress(xid, answer),
                // Without a transaction id it has not written anything, if it is still there.
                None => still.is_some(),
            };
            accept &= open;
        }

        // What was gone before this read is covered by it now, if the read counts.
        let mut gone = if accept { None } else { self.gone };
        let drawn = self.drawn;
        let old = std::mem::take(&mut self.holders);
        let mut held = HashMap::with_capacity(answer.holders.len());
        for holder in &answer.holders {
            let name = &holder.virtual_transaction;
            let since = match old.get(name) {
                Some(seen) => seen.since,
                // A prepared transaction appears under a new name long after it drew its numbers.
                None if name.starts_with("-1/") => None,
                None => drawn,
            };
            held.insert(
                name.clone(),
                Seen {
                    since,
                    xid: holder.xid,
                },
            );
        }
        for (name, seen) in &old {
            if !held.contains_key(name) {
                gone = lower(gone, seen.since);
            }
        }
        self.holders = held;
        self.gone = gone;
        self.drawn_before = drawn;
        self.drawn = drawn.max(reached);
        if accept && self.restarted {
            Judgement::Accept
        } else if accept {
            self.last_start = self.starting;
            self.coverage = if cut {
                reached
            } else {
                self.coverage.max(reached)
            };
            Judgement::Accept
        } else {
            Judgement::Discard
        }
    }
}

/// Whether a transaction id counted as running in the snapshot (so that its rows were invisible).
fn was_in_progress(xid: u32, answer: &Holders) -> bool {
    // Transaction ids wrap around; "not before" is a comparison on the circle.
    let not_started = (xid.wrapping_sub(answer.next_xid) as i32) >= 0;
    not_started || answer.in_progress.contains(&xid)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn look(names: &[(&str, Option<u32>)], in_progress: &[u32], next_xid: u32) -> Holders {
        Holders {
            holders: names
                .iter()
                .map(|(name, xid)| Holder {
                    virtual_transaction: (*name).to_owned(),
                    xid: *xid,
                })
                .collect(),
            in_progress: in_progress.to_vec(),
            next_xid,
            source: 0,
        }
    }

    fn read(bound: &mut Bound, reached: i64, answer: &Holders) -> (After, Judgement) {
        let after = bound.start();
        (after, bound.finish(Some(reached), false, answer))
    }

    #[test]
    fn without_writers_the_bound_follows_one_read_behind() {
        let mut bound = Bound::new(FAR_BEHIND);
        let quiet = look(&[], &[], 100);
        assert_eq!(read(&mut bound, 10, &quiet).0, None);
        assert_eq!(read(&mut bound, 20, &quiet).0, None);
        assert_eq!(read(&mut bound, 30, &quiet).0, Some(10));
        assert_eq!(read(&mut bound, 40, &quiet).0, Some(20));
    }

    #[test]
    fn a_young_holder_is_read_around_until_it_has_been_seen_gone() {
        let mut bound = Bound::new(FAR_BEHIND);
        let quiet = look(&[], &[], 100);
        for reached in [10, 20, 30] {
            read(&mut bound, reached, &quiet);
        }
        // Appears: it drew its numbers above the coverage of the look before, 30.
        read(&mut bound, 40, &look(&[("3/7", Some(100))], &[100], 101));
        read(&mut bound, 50, &look(&[("3/7", Some(100))], &[100], 101));
        assert_eq!(
            read(&mut bound, 60, &look(&[("3/7", Some(100))], &[100], 101)).0,
            Some(30)
        );
        // Gone at this look, but perhaps only after the snapshot: once more.
        assert_eq!(read(&mut bound, 70, &quiet).0, Some(30));
        assert_eq!(read(&mut bound, 80, &quiet).0, Some(30));
        assert_eq!(read(&mut bound, 90, &quiet).0, Some(70));
    }

    #[test]
    fn a_far_back_holder_costs_nothing_until_it_ends_and_then_one_repetition() {
        let mut bound = Bound::new(FAR_BEHIND);
        let quiet = look(&[], &[], 100);
        let open = look(&[("3/7", Some(100))], &[100], 101);
        for reached in [10, 20] {
            read(&mut bound, reached, &quiet);
        }
        read(&mut bound, 30, &open);
        read(&mut bound, 100_000, &open);
        read(&mut bound, 100_001, &open);
        let (after, judgement) = read(&mut bound, 100_002, &open);
        assert_eq!((after, judgement), (Some(100_000), Judgement::Accept));
        // It ended before this read's snapshot: the read may have missed its rows.
        let ended = look(&[], &[], 105);
        let (after, judgement) = read(&mut bound, 100_003, &ended);
        assert_eq!((after, judgement), (Some(100_001), Judgement::Discard));
        let (after, judgement) = read(&mut bound, 100_003, &ended);
        assert_eq!((after, judgement), (Some(20), Judgement::Accept));
        let (after, _) = read(&mut bound, 100_004, &ended);
        assert!(after >= Some(100_000));
    }

    #[test]
    fn a_holder_that_ended_after_the_snapshot_is_fetched_by_the_next_read() {
        let mut bound = Bound::new(FAR_BEHIND);
        let open = look(&[("3/7", Some(100))], &[100], 101);
        read(&mut bound, 10, &look(&[], &[], 100));
        read(&mut bound, 20, &open);
        read(&mut bound, 100_000, &open);
        read(&mut bound, 100_001, &open);
        // Running in the snapshot, gone when we looked at the locks.
        let (_, judgement) = read(&mut bound, 100_002, &look(&[], &[100], 101));
        assert_eq!(judgement, Judgement::Accept);
        assert_eq!(bound.start(), Some(10));
    }

    #[test]
    fn a_prepared_transaction_may_hold_any_number() {
        let mut bound = Bound::new(FAR_BEHIND);
        let quiet = look(&[], &[], 100);
        for reached in [10, 20, 30] {
            read(&mut bound, reached, &quiet);
        }
        let prepared = look(&[("-1/90", Some(90))], &[90], 100);
        read(&mut bound, 40, &prepared);
        let (_, judgement) = read(&mut bound, 50, &prepared);
        assert_eq!(judgement, Judgement::Accept);
        let (_, judgement) = read(&mut bound, 60, &quiet);
        assert_eq!(judgement, Judgement::Discard);
        assert_eq!(read(&mut bound, 60, &quiet), (None, Judgement::Accept));
    }

    #[test]
    fn a_cut_read_continues_where_it_ended() {
        let mut bound = Bound::new(FAR_BEHIND);
        let quiet = look(&[], &[], 100);
        assert_eq!(bound.start(), None);
        bound.finish(Some(1_000), true, &quiet);
        assert_eq!(bound.start(), None);
        bound.finish(Some(2_000), true, &quiet);
        assert_eq!(bound.start(), Some(1_000));
        bound.finish(Some(3_000), true, &quiet);
        assert_eq!(bound.coverage(), Some(3_000));
        bound.restart();
        assert_eq!(bound.start(), None);
    }

    #[test]
    fn transaction_ids_compare_on_a_circle() {
        let answer = look(&[], &[], 5);
        assert!(was_in_progress(5, &answer));
        assert!(!was_in_progress(u32::MAX, &answer));
        let wrapped = look(&[], &[u32::MAX], u32::MAX - 3);
        assert!(was_in_progress(u32::MAX, &wrapped));
        assert!(was_in_progress(2, &wrapped));
    }
}
