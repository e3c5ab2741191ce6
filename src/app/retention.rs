//! Retention: one replica deletes what is old enough, without hurry.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::cli::output::duration;
use crate::relay::live::Live;
use crate::settings::{AfterPublish, Settings};
use crate::store::postgres::{PostgresStore, RetentionStep};
use crate::telemetry::metrics::{Measured, Operation};

/// Pause between two passes.
const PAUSE: Duration = Duration::from_secs(60);
/// How long records of unpublished events are kept if retention is off.
const UNPUBLISHED_KEPT: Duration = Duration::from_secs(30 * 86_400);
/// Rows looked at by one statement.
const CHUNK: usize = 2_000;
/// Shortest pause between two statements.
const BREATH: Duration = Duration::from_millis(100);
/// Longest pause between two statements.
const LONG_BREATH: Duration = Duration::from_secs(5);
/// For each second that a statement took, retention leaves the database alone for this many.
const REST: u32 = 4;
/// So many statements in a row may find nothing to delete before a pass ends.
const FRUITLESS_MAX: u32 = 20;
/// Between two lines about the same pass.
const PROGRESS: Duration = Duration::from_secs(60);

/// Deletes published rows that are old enough and records that have outlived theirs, in small steps, as long as this replica is
/// the one that does so.
pub(super) async fn keep(
    store: PostgresStore,
    settings: Settings,
    measured: Arc<Measured>,
    live: watch::Receiver<Live>,
) {
    tokio::join!(
        forget(store.clone(), &settings, live.clone()),
        delete(store, &settings, measured, live)
    );
}

/// Removes old records of unpublished events whose rows are gone.
async fn forget(store: PostgresStore, settings: &Settings, live: watch::Receiver<Live>) {
    let ours = store.capabilities().created_by_migrate;
    let time = settings.outbox.retention.in_table(ours);
    let time = time.unwrap_or(UNPUBLISHED_KEPT);
    loop {
        while live.borrow().leads {
            match store.forget_unpublished(time, CHUNK).await {
                Ok(forgotten) if forgotten == CHUNK as u64 => tokio::time::sleep(BREATH).await,
                Ok(_) => break,
                Err(error) => {
                    tracing::debug!(%error, "old records of unpublished events cannot be removed");
                    break;
                }
            }
        }
        tokio::time::sleep(pause(time)).await;
    }
}

/// Between two passes.
fn pause(time: Duration) -> Duration {
    PAUSE.min(time).max(Duration::from_secs(1))
}

async fn delete(
    store: PostgresStore,
    settings: &Settings,
    measured: Arc<Measured>,
    live: watch::Receiver<Live>,
) {
    let table = store.capabilities();
    if settings.outbox.after_publish != AfterPublish::Mark || !table.has_published {
        return;
    }
    let Some(time) = settings.outbox.retention.in_table(table.created_by_migrate) else {
        tracing::info!("published rows are kept for ever (OUTRIGGER_OUTBOX_RETENTION)");
        return;
    };
    if !table.has_age {
        tracing::warn!(
            "published rows are kept for ever: nothing tells how old they are; set OUTRIGGER_OUTBOX_COLUMN_CREATED_AT"
        );
        return;
    }
    tracing::info!(
        after = %duration(time),
        "published rows are deleted once they are old enough (OUTRIGGER_OUTBOX_RETENTION)"
    );
    let keeper = Keeper {
        store,
        time,
        measured,
        live,
    };
    loop {
        keeper.pass().await;
        tokio::time::sleep(pause(time)).await;
    }
}

struct Keeper {
    store: PostgresStore,
    time: Duration,
    measured: Arc<Measured>,
    live: watch::Receiver<Live>,
}

/// What one pass has done so far.
struct Pass {
    began: Instant,
    said: Instant,
    deleted: u64,
    kept: u64,
    fruitless: u32,
}

impl Keeper {
    /// Goes through the table once, from the front, until rows are young.
    async fn pass(&self) {
        let began = Instant::now();
        let mut pass = Pass {
            began,
            said: began,
            deleted: 0,
            kept: 0,
            fruitless: 0,
        };
        let mut after = None;
        while self.live.borrow().leads {
            let asked = Instant::now();
            let step = self.store.retention_chunk(self.time, after, CHUNK).await;
            let took = asked.elapsed();
            self.measured
                .asked(Operation::Retention, took, step.is_ok());
            match step {
                Ok(step) => after = pass.count(step),
                Err(error) => {
                    // Not the relay's trouble with the database, which has lines of its own: this may be one row.
                    tracing::warn!(
                        %error,
                        deleted = pass.deleted,
                        "old published rows cannot be deleted; trying again in a minute"
                    );
                    return;
                }
            }
            if after.is_none() {
                break;
            }
            // Leaves the database to the service most of the time.
            tokio::time::sleep((took * REST).clamp(BREATH, LONG_BREATH)).await;
        }
        pass.end();
    }
}

impl Pass {
    /// Adds a step. Where the next one begins.
    fn count(&mut self, step: RetentionStep) -> Option<i64> {
        if self.deleted == 0 && step.deleted > 0 && step.next_after.is_some() {
            tracing::info!("deleting old published rows");
        }
        self.deleted += step.deleted;
        self.kept += step.kept;
        self.fruitless = if step.deleted > 0 {
            0
        } else {
            self.fruitless + 1
        };
        if self.said.elapsed() >= PROGRESS {
            self.said = Instant::now();
            let seconds = self.began.elapsed().as_secs();
            tracing::info!(
                deleted = self.deleted,
                seconds,
                "still deleting old published rows"
            );
        }
        step.next_after.filter(|_| self.fruitless < FRUITLESS_MAX)
    }

    fn end(&self) {
        if self.deleted > 0 {
            let seconds = self.began.elapsed().as_secs();
            tracing::info!(
                deleted = self.deleted,
                seconds,
                "old published rows deleted"
            );
        }
        if self.kept > 0 {
            tracing::warn!(
                rows = self.kept,
                "old published rows were not deleted: they are locked, or a trigger, a rule or a policy keeps them"
            );
        }
    }
}
