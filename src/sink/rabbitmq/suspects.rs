//! Messages that were in flight when the broker closed their channel or the connection.
//!
//! Which of them was the cause cannot be told from the outside, so each is published alone the
//! next time, on whichever lane it comes back. Innocents are confirmed and leave the list; a
//! message that is alone in flight at one failure after the other is refused, so that it cannot
//! break connections for ever.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Connection failures with a message alone on its channel before it is held to be the cause.
/// Other lanes' messages may have caused one or two of them.
pub(super) const STRIKES: u32 = 3;

/// Messages remembered at most. Beyond that, the list starts afresh.
const REMEMBERED: usize = 100_000;

/// Shared by all lanes; outlives connections.
#[derive(Default)]
pub(super) struct Suspects {
    /// Message id to connection failures it was alone in.
    strikes: Mutex<HashMap<String, u32>>,
    /// Spares the lock while there is nobody to suspect: practically always.
    any: AtomicBool,
}

impl Suspects {
    pub(super) fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    pub(super) fn contains(&self, id: &str) -> bool {
        self.any() && self.strikes().contains_key(id)
    }

    /// These were in flight together.
    pub(super) fn add<'a>(&self, ids: impl Iterator<Item = &'a str>) {
        let mut strikes = self.strikes();
        for id in ids {
            if strikes.len() >= REMEMBERED {
                strikes.clear();
            }
            strikes.entry(id.to_owned()).or_insert(0);
        }
        self.any.store(!strikes.is_empty(), Ordering::Release);
    }

    /// This one was alone in flight.
    pub(super) fn strike(&self, id: &str) {
        *self.strikes().entry(id.to_owned()).or_insert(0) += 1;
        self.any.store(true, Ordering::Release);
    }

    /// Whether this message has this many strikes.
    pub(super) fn has_struck_out(&self, id: &str, strikes: u32) -> bool {
        self.any()
            && self
                .strikes()
                .get(id)
                .is_some_and(|count| *count >= strikes)
    }

    /// The broker answered for this one.
    pub(super) fn clear(&self, id: &str) {
        if self.any() {
            let mut strikes = self.strikes();
            strikes.remove(id);
            self.any.store(!strikes.is_empty(), Ordering::Release);
        }
    }

    fn strikes(&self) -> MutexGuard<'_, HashMap<String, u32>> {
        self.strikes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suspicion_ends_with_an_answer() {
        let suspects = Suspects::default();
        assert!(!suspects.any());
        suspects.add(["a", "b"].into_iter());
        assert!(suspects.contains("a") && suspects.contains("b") && !suspects.contains("c"));
        suspects.clear("a");
        assert!(!suspects.contains("a"));
        suspects.strike("b");
        suspects.add(["b"].into_iter());
        assert!(!suspects.has_struck_out("b", 2));
        suspects.strike("b");
        assert!(suspects.has_struck_out("b", 2));
        suspects.clear("b");
        assert!(!suspects.any());
    }

    #[test]
    fn the_list_is_bounded() {
        let suspects = Suspects::default();
        let ids: Vec<String> = (0..REMEMBERED + 10).map(|n| n.to_string()).collect();
        suspects.add(ids.iter().map(String::as_str));
        assert!(suspects.strikes().len() <= REMEMBERED);
        assert!(suspects.any());
    }
}
