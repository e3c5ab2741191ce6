//! Whether the database answers, and what was said about it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::store::postgres::{StoreError, StoreErrorKind};
use crate::telemetry::lasting::{Lasting, in_words};

#[derive(Debug, Default)]
struct State {
    /// What does not work, and what was said about it.
    down: HashMap<&'static str, StoreError>,
    /// Since when.
    away: Option<Lasting>,
    /// The table does not look as it did when it was opened: how.
    schema: Option<String>,
}

/// Whether the database answers. Shared with the tasks that ask it.
#[derive(Debug, Clone, Default)]
pub(super) struct Health(Arc<Mutex<State>>);

impl Health {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What does not work at the moment, and why.
    pub(super) fn problem(&self) -> Option<String> {
        first(&self.lock()).map(|(what, error)| format!("{what}: {error}"))
    }

    /// How the table fails to fit.
    pub(super) fn schema(&self) -> Option<String> {
        self.lock().schema.clone()
    }

    /// The table was looked at again.
    pub(super) fn reopened(&self) {
        self.lock().schema = None;
    }

    /// Takes in how a statement of this kind went; says something when that changes.
    pub(super) fn tell(&self, what: &'static str, error: Option<&StoreError>) {
        let mut state = self.lock();
        let Some(error) = error else {
            if state.down.remove(what).is_some() && state.down.is_empty() {
                let away = state.away.take().map(|away| in_words(away.for_how_long()));
                tracing::info!(
                    "the database answers again, after {}",
                    away.unwrap_or_default()
                );
            }
            return;
        };
        if error.kind() == StoreErrorKind::Schema {
            state.schema = Some(error.to_string());
        }
        let known = state.down.values().any(|said| said == error);
        state.down.insert(what, error.clone());
        state.away.get_or_insert_with(Lasting::begins);
        if known {
            return;
        }
        match error.kind() {
            StoreErrorKind::Unavailable if error.is_read_only() => {
                tracing::warn!(%error, "the database takes no writes; events wait");
            }
            StoreErrorKind::Unavailable => {
                tracing::warn!(%error, "the database does not answer; events wait");
            }
            _ => tracing::error!(%error, "the database refuses a statement; events wait"),
        }
    }

    /// Says again, once a minute, what does not work.
    pub(super) fn remind(&self, waiting: usize) {
        let mut state = self.lock();
        let Some(lasted) = state.away.as_mut().and_then(Lasting::due) else {
            return;
        };
        let Some((what, error)) = first(&state) else {
            return;
        };
        match error.kind() {
            StoreErrorKind::Unavailable => {
                tracing::warn!(
                    waiting,
                    "still waiting for the database, {lasted}: {what}: {error}"
                );
            }
            _ => tracing::error!(
                waiting,
                "the database still refuses a statement, {lasted}: {what}: {error}"
            ),
        }
    }
}

fn first(state: &State) -> Option<(&'static str, &StoreError)> {
    let first = state.down.iter().min_by_key(|(what, _)| **what);
    first.map(|(what, error)| (*what, error))
}
