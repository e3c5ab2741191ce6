//! Retention: one replica deletes what is old enough.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::relay::live::Live;
use crate::settings::{AfterPublish, Settings};
use crate::store::postgres::PostgresStore;
use crate::telemetry::metrics::{Measured, Operation};

/// Pause between two passes.
const RETENTION_PAUSE: Duration = Duration::from_secs(60);
/// Rows looked at by one statement.
const RETENTION_CHUNK: usize = 5_000;

/// Deletes published rows that are old enough, in small steps, on one replica.
pub(super) async fn keep(
    store: PostgresStore,
    settings: Settings,
    measured: Arc<Measured>,
    live: watch::Receiver<Live>,
) {
    let table = store.capabilities();
    if settings.outbox.after_publish != AfterPublish::Mark || !table.has_published || !table.has_age
    {
        return;
    }
    let keep = settings.outbox.retention;
    loop {
        let mut after = None;
        let mut deleted = 0;
        while live.borrow().leads {
            let began = Instant::now();
            let step = store.retention_chunk(keep, after, RETENTION_CHUNK).await;
            measured.asked(Operation::Retention, began.elapsed(), step.is_ok());
            match step {
                Ok(step) => {
                    deleted += step.deleted;
                    after = step.next_after;
                }
                Err(error) => {
                    tracing::debug!(%error, "retention pauses");
                    break;
                }
            }
            if after.is_none() {
                break;
            }
            // Leaves the database most of the time for the service.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if deleted > 0 {
            tracing::info!(deleted, "old published rows deleted");
        }
        tokio::time::sleep(RETENTION_PAUSE.min(keep).max(Duration::from_secs(1))).await;
    }
}
