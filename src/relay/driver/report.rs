//! What the log says: one line per change of state, never a payload.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::ReasonCode;
use crate::store::postgres::{Registered, StoreError, StoreErrorKind};
use crate::store::{Claimed, Failure, FailureState};

/// Lines about failing events of one kind appear at most this often.
const QUIET: Duration = Duration::from_secs(5);

/// Remembers what was said, so that it is said once.
#[derive(Debug, Default)]
pub(super) struct Report {
    health: Health,
    said: HashMap<(FailureState, Option<ReasonCode>), (Option<Instant>, usize)>,
}

impl Report {
    /// The database's state, shared with the tasks that ask it.
    pub(super) fn health(&self) -> Health {
        self.health.clone()
    }

    /// Whether the table should be looked at again.
    pub(super) fn wants_reopening(&self) -> bool {
        self.health.lock().schema
    }

    /// The table was looked at again.
    pub(super) fn reopened(&self) {
        self.health.lock().schema = false;
        tracing::info!("the outbox table was looked at again");
    }

    /// Failures about to be recorded: one line per kind, with an example.
    pub(super) fn failures(&mut self, failures: &[Failure]) {
        let mut kinds: HashMap<(FailureState, Option<ReasonCode>), Vec<&Failure>> = HashMap::new();
        for failure in failures {
            let code = failure.reason.as_ref().map(|reason| reason.code);
            kinds
                .entry((failure.state, code))
                .or_default()
                .push(failure);
        }
        for ((state, code), failures) in kinds {
            let (said_at, unsaid) = self.said.entry((state, code)).or_insert((None, 0));
            let count = failures.len() + *unsaid;
            if said_at.is_some_and(|at| at.elapsed() < QUIET) {
                *unsaid = count;
                continue;
            }
            (*said_at, *unsaid) = (Some(Instant::now()), 0);
            let Some(example) = failures.first() else {
                continue;
            };
            let (seq, id) = (example.seq, example.event_id.as_str());
            let (kind, attempts) = (example.event_type.as_str(), example.attempts);
            let detail = example
                .reason
                .as_ref()
                .map_or("", |reason| reason.detail.as_str());
            let reason = code.map_or("crash", ReasonCode::as_str);
            match state {
                FailureState::Retrying => tracing::warn!(
                    count,
                    reason,
                    seq,
                    id,
                    r#type = kind,
                    attempts,
                    "event refused, will retry: {detail}"
                ),
                FailureState::Blocked => tracing::error!(
                    count,
                    reason,
                    seq,
                    id,
                    r#type = kind,
                    attempts,
                    "event given up, its key is blocked until `outrigger dead retry` or `discard`: {detail}"
                ),
                FailureState::Dead => tracing::error!(
                    count,
                    reason,
                    seq,
                    id,
                    r#type = kind,
                    attempts,
                    "event dead, see `outrigger dead list`: {detail}"
                ),
                FailureState::Suspect => tracing::warn!(
                    count,
                    seq,
                    id,
                    r#type = kind,
                    "the last owner died soon after it took over: publishing its rows with care"
                ),
            }
        }
    }
}

pub(super) fn registered(registered: &Registered, wanted: i32) {
    let (replica, partitions) = (registered.replica, registered.partitions);
    tracing::info!(%replica, partitions, "registered");
    if partitions != wanted {
        tracing::warn!(
            stored = partitions,
            configured = wanted,
            "OUTRIGGER_RELAY_PARTITIONS differs from the stored number, which is followed"
        );
    }
}

pub(super) fn claimed(claimed: &[Claimed]) {
    if !claimed.is_empty() {
        let partitions: Vec<i32> = claimed.iter().map(|claimed| claimed.partition).collect();
        let takeover = claimed.iter().any(|claimed| claimed.unclean);
        tracing::info!(?partitions, takeover, "partitions taken");
    }
}

pub(super) fn released(partitions: &[i32]) {
    tracing::info!(?partitions, "partitions released");
}

#[derive(Debug, Default)]
struct State {
    /// What is wrong, as last said.
    down: Option<String>,
    /// The table does not look as it did when it was opened.
    schema: bool,
}

/// Whether the database answers.
#[derive(Debug, Clone, Default)]
pub(super) struct Health(Arc<Mutex<State>>);

impl Health {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in how a statement went; says something when that changes.
    pub(super) fn tell(&self, error: Option<&StoreError>) {
        let mut state = self.lock();
        match error {
            None => {
                if state.down.take().is_some() {
                    tracing::info!("the database answers again");
                }
            }
            Some(error) => {
                state.schema |= error.kind() == StoreErrorKind::Schema;
                let text = error.to_string();
                if state.down.as_ref() == Some(&text) {
                    return;
                }
                match error.kind() {
                    StoreErrorKind::Unavailable => {
                        tracing::warn!(%error, "the database does not answer; events wait");
                    }
                    _ => tracing::error!(%error, "the database refuses a statement; events wait"),
                }
                state.down = Some(text);
            }
        }
    }
}
