//! Whose fault is a 500: the event's, or the service's?
//!
//! A service that is ill fails for every event; waiting is right, and no event may lose an attempt. An event that
//! the service cannot digest fails while others pass; it must not be tried for ever. So a failure counts
//! against an event only if the service has taken something else since the event's last failure.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Events remembered at most. Beyond that, the list starts afresh.
const REMEMBERED: usize = 10_000;

/// Shared by all lanes.
#[derive(Default)]
pub(super) struct Culprits {
    /// Events the service has taken.
    taken: AtomicU64,
    /// Event to `taken` at its last failure.
    failed: Mutex<HashMap<String, u64>>,
}

impl Culprits {
    /// The service took this one.
    pub(super) fn took(&self, id: &str) {
        self.taken.fetch_add(1, Ordering::Relaxed);
        self.failed().remove(id);
    }

    /// The service failed at this one. Whether the event is to blame.
    pub(super) fn failed_at(&self, id: &str) -> bool {
        let taken = self.taken.load(Ordering::Relaxed);
        let mut failed = self.failed();
        if failed.len() >= REMEMBERED {
            failed.clear();
        }
        let before = failed.insert(id.to_owned(), taken);
        before.is_some_and(|before| before < taken)
    }

    fn failed(&self) -> MutexGuard<'_, HashMap<String, u64>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ill_service_blames_nobody() {
        let culprits = Culprits::default();
        culprits.took("z");
        for _ in 0..5 {
            assert!(!culprits.failed_at("a"));
            assert!(!culprits.failed_at("b"));
        }
    }

    #[test]
    fn an_event_that_fails_while_others_pass_is_to_blame() {
        let culprits = Culprits::default();
        assert!(!culprits.failed_at("a"));
        culprits.took("b");
        assert!(culprits.failed_at("a"));
        assert!(!culprits.failed_at("a"), "nothing was taken since");
        culprits.took("c");
        assert!(culprits.failed_at("a"));
        culprits.took("a");
        assert!(
            !culprits.failed_at("a"),
            "it was taken, so it starts afresh"
        );
    }
}
