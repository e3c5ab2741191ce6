//! What is in the table already, and what the relay would do with it.

use std::time::Duration;

use super::report::Report;
use crate::cli::output::{duration, number};
use crate::settings::Settings;
use crate::store::postgres::probe::TableFacts;
use crate::store::postgres::{AfterPublish, Database, HISTORY_LOOKED_AT_MAX};

/// A running relay is behind by as much at most. What is older yet was there before.
const SLACK: Duration = Duration::from_secs(3_600);

/// So many pending rows, if their age is not known.
const MANY_PENDING: i64 = 1_000;

/// Pending rows older than this were hardly written for this relay.
const OLD_PENDING: Duration = Duration::from_secs(86_400);

/// Says what would be deleted and what would be published, before it is.
pub(super) async fn check(
    report: &mut Report,
    settings: &Settings,
    database: &Database,
    table: &TableFacts,
) {
    let can = &table.capabilities;
    if can.after_publish == AfterPublish::Mark && can.has_published {
        deleted(report, settings, database, table).await;
    }
    published(report, database).await;
}

async fn deleted(
    report: &mut Report,
    settings: &Settings,
    database: &Database,
    table: &TableFacts,
) {
    let can = &table.capabilities;
    let Some(keep) = settings.outbox.retention.in_table(can.created_by_migrate) else {
        report.ok("published rows are kept for ever; OUTRIGGER_OUTBOX_RETENTION deletes them after a time");
        return;
    };
    let time = duration(keep);
    if !can.has_age {
        report.warning(
            "published rows are kept for ever: nothing tells how old they are",
            "name a timestamp in OUTRIGGER_OUTBOX_COLUMN_CREATED_AT or OUTRIGGER_OUTBOX_COLUMN_PUBLISHED_AT, \
             or set OUTRIGGER_OUTBOX_RETENTION=off",
        );
        return;
    }
    let history = match database.history(keep + SLACK).await {
        Ok(history) => history,
        Err(error) => {
            report.warning(
                format!("published rows older than {time} are deleted; how many those are cannot be counted: {error}"),
                "to keep them, set OUTRIGGER_OUTBOX_RETENTION=off",
            );
            return;
        }
    };
    if history.rows == 0 {
        report.ok(format!(
            "published rows are deleted {time} after they were published"
        ));
        return;
    }
    let more = if history.more { "at least " } else { "" };
    let oldest = history
        .oldest
        .map(|age| format!(", the oldest by {}", duration(age)))
        .unwrap_or_default();
    report.warning(
        format!(
            "{more}{} published rows are older than {time}{oldest}, and the relay will delete them",
            number(i128::from(history.rows))
        ),
        "to keep them, set OUTRIGGER_OUTBOX_RETENTION=off or a longer time",
    );
    if history.more {
        report.ok(format!(
            "of the history, the first {} rows were looked at",
            number(HISTORY_LOOKED_AT_MAX as i128)
        ));
    }
}

/// The first relay of a table publishes whatever is not marked, and in a table that was there before that may be all
/// of it.
async fn published(report: &mut Report, database: &Database) {
    let facts = match database.open().await {
        Ok(store) => store.status().await,
        Err(error) => Err(error),
    };
    // If that fails, the findings above say why. A stored number of partitions: a relay was here before.
    let Some(facts) = facts.ok().filter(|facts| facts.partitions.is_none()) else {
        return;
    };
    let old = match facts.oldest_pending {
        Some(age) => age >= OLD_PENDING,
        None => facts.pending >= MANY_PENDING,
    };
    if !old {
        return;
    }
    let oldest = facts
        .oldest_pending
        .map(|age| format!(", the oldest of them for {}", duration(age)))
        .unwrap_or_default();
    let more = if facts.pending_capped {
        "more than "
    } else {
        ""
    };
    report.warning(
        format!(
            "{more}{} rows count as not published{oldest}, and the first relay will publish them",
            number(facts.pending)
        ),
        "mark (or delete) those that were published before, if there are any, before the first start",
    );
}
