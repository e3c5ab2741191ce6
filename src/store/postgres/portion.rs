//! How much one read asks for, where the server cuts reads short.
//!
//! Many hosts give every role a `statement_timeout`. A read that exceeds it fails as a whole and would fail again for
//! ever, where half of it comes through. So each such failure halves what is asked for, down to a single row, and reads that
//! succeed give it back step by step.

use std::borrow::Cow;
use std::sync::{Mutex, PoisonError};

use super::error::StoreError;
use crate::store::ReadRequest;

/// A portion of 1 in 65,536: less than a row of any batch.
const HALVINGS_MAX: u32 = 16;

/// Reads that must succeed before twice as much is asked for: a failure costs more than some small reads.
const SUCCESSES: u32 = 20;

/// What was learned from the reads so far.
#[derive(Debug, Default)]
pub(super) struct Portion(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    halvings: u32,
    successes: u32,
}

impl Portion {
    /// The request with the limit that is likely to come through.
    pub(super) fn of<'r>(&self, request: &'r ReadRequest) -> Cow<'r, ReadRequest> {
        let halvings = self.lock().halvings;
        if halvings == 0 {
            return Cow::Borrowed(request);
        }
        Cow::Owned(ReadRequest {
            limit: (request.limit >> halvings).max(1),
            ..request.clone()
        })
    }

    /// Takes in how a read ended.
    pub(super) fn learn<T>(&self, ended: &Result<T, StoreError>) {
        let mut state = self.lock();
        match ended {
            Ok(_) if state.halvings == 0 => {}
            Ok(_) => {
                state.successes += 1;
                if state.successes >= SUCCESSES {
                    state.halvings -= 1;
                    state.successes = 0;
                }
            }
            Err(error) if error.was_cut_short() => {
                state.halvings = (state.halvings + 1).min(HALVINGS_MAX);
                state.successes = 0;
            }
            Err(_) => {}
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio_postgres::error::SqlState;

    use super::*;
    use crate::store::{Partitions, ReadKind};

    #[test]
    fn a_read_that_is_cut_short_is_halved_and_given_back_slowly() {
        let portion = Portion::default();
        let request = ReadRequest {
            kind: ReadKind::Main { after: None },
            partitions: Partitions::All,
            skip_keys: Vec::new(),
            known: Vec::new(),
            limit: 1000,
            source: None,
            byte_limit: 1,
            whole: 0,
            max_event: 1,
        };
        let limit = || portion.of(&request).limit;
        let cut = || Err::<(), _>(StoreError::of_state(SqlState::QUERY_CANCELED.code()));
        assert_eq!(limit(), 1000);
        // Other failures say nothing about its size.
        portion.learn(&Err::<(), _>(StoreError::of_state("57P01")));
        assert_eq!(limit(), 1000);
        portion.learn(&cut());
        portion.learn(&cut());
        assert_eq!(limit(), 250);
        for _ in 1..SUCCESSES {
            portion.learn(&Ok(()));
        }
        assert_eq!(limit(), 250);
        portion.learn(&Ok(()));
        assert_eq!(limit(), 500);
        for _ in 0..100 {
            portion.learn(&cut());
        }
        assert_eq!(limit(), 1);
    }
}
