//! Whose fault is a 500: the event's, or the service's?
//!
//! A service that is ill fails for every event; waiting is right, and no event may lose an attempt. An event that
//! the service cannot digest fails while others pass; it must not be tried for ever. So a failure counts
//! against an event only if the service was well in between: something else was posted after the event's last failure,
//! and taken before the event was posted again. What was under way at either time proves nothing: answers of
//! several connections come in any order, and an answer that was lost on its way says nothing of the service.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Events remembered at most. Beyond that, the list starts afresh.
const REMEMBERED: usize = 10_000;

/// Shared by all lanes.
#[derive(Default)]
pub(super) struct Culprits {
    /// Attempts so far: the time by which the rest is told.
    attempts: AtomicU64,
    /// The latest attempt that the service has taken.
    taken: AtomicU64,
    /// Event to `attempts` at its last failure.
    failed: Mutex<HashMap<String, u64>>,
}

/// An event is posted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attempt {
    number: u64,
    /// The latest attempt that had been taken then.
    taken: u64,
}

impl Culprits {
    /// An event is about to be posted.
    pub(super) fn begin(&self) -> Attempt {
        Attempt {
            number: self.attempts.fetch_add(1, Ordering::Relaxed) + 1,
            taken: self.taken.load(Ordering::Relaxed),
        }
    }

    /// The service took this one.
    pub(super) fn took(&self, id: &str, attempt: Attempt) {
        self.taken.fetch_max(attempt.number, Ordering::Relaxed);
        self.failed().remove(id);
    }

    /// The service failed at this one. Whether the event is to blame.
    pub(super) fn failed_at(&self, id: &str, attempt: Attempt) -> bool {
        let now = self.attempts.load(Ordering::Relaxed);
        let mut failed = self.failed();
        if failed.len() >= REMEMBERED {
            failed.clear();
        }
        let before = failed.insert(id.to_owned(), now);
        before.is_some_and(|before| before < attempt.taken)
    }

    fn failed(&self) -> MutexGuard<'_, HashMap<String, u64>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn takes(culprits: &Culprits, id: &str) {
        culprits.took(id, culprits.begin());
    }

    fn blames(culprits: &Culprits, id: &str) -> bool {
        culprits.failed_at(id, culprits.begin())
    }

    #[test]
    fn an_ill_service_blames_nobody() {
        let culprits = Culprits::default();
        takes(&culprits, "z");
        for _ in 0..5 {
            assert!(!blames(&culprits, "a"));
            assert!(!blames(&culprits, "b"));
        }
    }

    #[test]
    fn an_event_that_fails_while_others_pass_is_to_blame() {
        let culprits = Culprits::default();
        assert!(!blames(&culprits, "a"));
        takes(&culprits, "b");
        assert!(blames(&culprits, "a"));
        assert!(!blames(&culprits, "a"), "nothing was taken since");
        takes(&culprits, "c");
        assert!(blames(&culprits, "a"));
        takes(&culprits, "a");
        assert!(!blames(&culprits, "a"), "it was taken, so it starts afresh");
    }

    #[test]
    fn a_good_answer_that_is_late_proves_nothing() {
        let culprits = Culprits::default();
        let slow = culprits.begin();
        assert!(!blames(&culprits, "a"));
        // The service was well when this was posted, and fell ill before "a" was.
        culprits.took("slow", slow);
        assert!(!blames(&culprits, "a"));
    }

    #[test]
    fn an_answer_that_is_lost_while_the_service_recovers_blames_nobody() {
        let culprits = Culprits::default();
        assert!(!blames(&culprits, "a"));
        let again = culprits.begin();
        takes(&culprits, "b");
        assert!(!culprits.failed_at("a", again));
        assert!(!blames(&culprits, "a"), "nothing was taken since");
    }
}
