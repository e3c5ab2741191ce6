//! Looks at the database for the admin listener, on a slow clock: what the relay itself does not need to know.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::admin::backlog::{Counted, Watched};
use crate::relay::live::Live;
use crate::store::postgres::admin::FailureFilter;
use crate::store::postgres::{PostgresStore, StoreError};
use crate::telemetry::metrics::{Measured, Operation};

/// Between two counts of a backlog.
const BUSY_PAUSE: Duration = Duration::from_secs(5);
/// Between two looks while nothing waits: with those a minute apart, all that an idle relay adds to its polls.
const IDLE_PAUSE: Duration = Duration::from_secs(15);
/// Between two looks at the table's upkeep.
const UPKEEP_PAUSE: Duration = Duration::from_secs(60);
/// Pauses after the first looks: one of them finds the way to the database quick, and tells its clock well.
const FIRST_PAUSES: [Duration; 3] = [
    Duration::from_millis(100),
    Duration::from_millis(400),
    Duration::from_millis(1_000),
];
/// Failed events that are shown.
const FAILURES_SHOWN: usize = 20;
/// Kinds of failed events that are shown.
const GROUPS_SHOWN: i64 = 12;

/// Looks until dropped.
pub(super) async fn watch(
    store: PostgresStore,
    measured: Arc<Measured>,
    mut live: watch::Receiver<Live>,
    watched: watch::Sender<Watched>,
) {
    let mut first = FIRST_PAUSES.into_iter();
    let mut upkeep_at: Option<Instant> = None;
    loop {
        let waits = match count(&store, &measured, &live, &watched).await {
            Ok(waits) => waits,
            Err(error) => {
                tracing::debug!(%error, "the backlog cannot be counted");
                true
            }
        };
        if let Some(pause) = first.next() {
            sleep(pause).await;
            continue;
        }
        if upkeep_at.is_none_or(|at| at.elapsed() >= UPKEEP_PAUSE) {
            upkeep_at = Some(Instant::now());
            match timed(&measured, store.upkeep()).await {
                Ok(upkeep) => watched.send_modify(|watched| watched.upkeep = Some(upkeep)),
                Err(error) => tracing::debug!(%error, "the table's upkeep cannot be looked at"),
            }
        }
        sleep(BUSY_PAUSE).await;
        if !waits {
            let something = live.wait_for(|live| live.gauges.in_flight > 0);
            let _ = timeout(IDLE_PAUSE - BUSY_PAUSE, something).await;
        }
    }
}

/// One count; says whether something waits.
async fn count(
    store: &PostgresStore,
    measured: &Measured,
    live: &watch::Receiver<Live>,
    watched: &watch::Sender<Watched>,
) -> Result<bool, StoreError> {
    let (above, done) = {
        let live = live.borrow();
        (live.pending_above, live.totals.done())
    };
    let at = Instant::now();
    let backlog = timed(measured, store.backlog(above)).await?;
    measured.clock.heard(at, Instant::now(), backlog.clock);
    let failed = backlog.recorded();
    let is_paused = live.borrow().gauges.paused;
    let paused = match is_paused {
        true => timed(measured, store.paused()).await?,
        false => None,
    };
    let groups = match failed {
        0 => Vec::new(),
        _ => timed(measured, store.failure_groups(GROUPS_SHOWN)).await?,
    };
    let failures = if failed > 0 {
        let filter = FailureFilter {
            latest_first: true,
            limit: Some(FAILURES_SHOWN),
            ..FailureFilter::default()
        };
        timed(measured, store.failures(&filter)).await?
    } else {
        Vec::new()
    };
    watched.send_modify(|watched| {
        watched.backlog = Some(Counted { at, done, backlog });
        watched.failures = failures;
        watched.groups = groups;
        watched.paused = paused;
    });
    Ok(backlog.rows > 0)
}

async fn timed<T>(
    measured: &Measured,
    question: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let began = Instant::now();
    let result = question.await;
    measured.asked(Operation::Figures, began.elapsed(), result.is_ok());
    result
}
