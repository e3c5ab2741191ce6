//! What the log says: one line per change of state, never a payload.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::ReasonCode;
use crate::store::postgres::{Registered, StoreError, StoreErrorKind};
use crate::store::{Claimed, Failure, FailureState};

/// Lines about failing events of one kind appear at most this often.
const QUIET: Duration = Duration::from_secs(5);

/// Lines about a lasting condition appear at most this often.
const MINUTE: Duration = Duration::from_secs(60);

/// Remembers what was said, so that it is said once.
#[derive(Debug, Default)]
pub(super) struct Report {
    health: Health,
    /// When it was said last that nothing can be settled.
    unsettled_at: Option<Instant>,
    said: HashMap<(FailureState, Option<ReasonCode>), (Option<Instant>, usize)>,
    waited_in_vain: Option<Instant>,
}

impl Report {
    /// The database's state, shared with the tasks that ask it.
    pub(super) fn health(&self) -> Health {
        self.health.clone()
    }

    /// Whether the table should be looked at again.
    pub(super) fn wants_reopening(&self) -> bool {
        self.health.lock().schema.is_some()
    }

    /// The core has nothing to do, and names a time to come back that has passed.
    pub(super) fn waits_in_vain(&mut self) {
        if self.waited_in_vain.is_none_or(|at| at.elapsed() >= MINUTE) {
            self.waited_in_vain = Some(Instant::now());
            tracing::error!(
                "the relay waits for a moment that has passed; this is a defect, please report it with the lines before"
            );
        }
    }

    /// The table was looked at again.
    pub(super) fn reopened(&self) {
        self.health.lock().schema = None;
        tracing::info!("the outbox table was looked at again");
    }

    /// Whether publishing waits because published rows cannot be settled, and why: once a minute.
    pub(super) fn settling(&mut self, problem: Option<&str>) {
        match problem {
            Some(problem) if self.unsettled_at.is_none_or(|at| at.elapsed() >= MINUTE) => {
                self.unsettled_at = Some(Instant::now());
                tracing::error!(
                    "published rows cannot be settled; nothing is published until they can be: {problem}"
                );
            }
            None if self.unsettled_at.take().is_some() => {
                tracing::info!("published rows can be settled again");
            }
            _ => {}
        }
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
                FailureState::Unsettled => tracing::warn!(
                    count,
                    seq,
                    id,
                    r#type = kind,
                    attempts,
                    "event published, but its row could not be settled; that is tried again, the event is not published again: {detail}"
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
        tracing::info!(?partitions, "partitions taken");
    }
}

pub(super) fn released(partitions: &[i32]) {
    tracing::info!(?partitions, "partitions released");
}

#[derive(Debug, Default)]
struct State {
    /// What does not work, and what was said about it.
    down: HashMap<&'static str, String>,
    /// The table does not look as it did when it was opened: how.
    schema: Option<String>,
}

/// Whether the database answers.
#[derive(Debug, Clone, Default)]
pub(super) struct Health(Arc<Mutex<State>>);

impl Health {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What does not work at the moment, and why.
    pub(super) fn problem(&self) -> Option<String> {
        let state = self.lock();
        let first = state.down.iter().min_by_key(|(what, _)| **what);
        first.map(|(what, error)| format!("{what}: {error}"))
    }

    /// How the table fails to fit.
    pub(super) fn schema(&self) -> Option<String> {
        self.lock().schema.clone()
    }

    /// Takes in how a statement of this kind went; says something when that changes.
    pub(super) fn tell(&self, what: &'static str, error: Option<&StoreError>) {
        let mut state = self.lock();
        let Some(error) = error else {
            if state.down.remove(what).is_some() && state.down.is_empty() {
                tracing::info!("the database answers again");
            }
            return;
        };
        let text = error.to_string();
        if error.kind() == StoreErrorKind::Schema {
            state.schema = Some(text.clone());
        }
        let known = state.down.values().any(|said| *said == text);
        state.down.insert(what, text);
        if known {
            return;
        }
        match error.kind() {
            StoreErrorKind::Unavailable => {
                tracing::warn!(%error, "the database does not answer; events wait");
            }
            _ => tracing::error!(%error, "the database refuses a statement; events wait"),
        }
    }
}
