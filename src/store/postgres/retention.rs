//! Removing rows that were only marked, once they are old enough.

use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::error::StoreError;
use super::inspect::{Kind, Table};
use super::mapping::{Field, quote};
use super::sql::{Sql, now};

/// One step of retention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetentionStep {
    /// Rows deleted.
    pub deleted: u64,
    /// Where the next step begins; `None`: the pass is over.
    pub next_after: Option<i64>,
}

/// Looks at the next `limit` rows in order and deletes the published ones among them that are too old. A pass ends at
/// the first slice without any old row, since later rows are younger still; the next pass begins at the front
/// again, so a row that was published late is deleted then.
pub(super) async fn retention_chunk(
    client: &Client,
    table: &Table,
    sql: &Sql,
    older_than: Duration,
    after: Option<i64>,
    limit: usize,
) -> Result<RetentionStep, StoreError> {
    let (Some(order), Some(published)) = (table.sql(Field::Seq), table.column(Field::PublishedAt))
    else {
        return Err(StoreError::schema(
            "OUTRIGGER_OUTBOX_RETENTION needs an order column and a published column",
        ));
    };
    // When a row got old: when it was published, or at least when it was written.
    let (age, kind) = match (published.kind, table.column(Field::CreatedAt)) {
        (Kind::Boolean, Some(created)) => (format!("o.{}", quote(&created.name)), created.kind),
        (Kind::Boolean, None) => {
            return Err(StoreError::schema(
                "OUTRIGGER_OUTBOX_RETENTION needs a time: the published column is a boolean, so set \
                 OUTRIGGER_OUTBOX_COLUMN_CREATED_AT",
            ));
        }
        (kind, _) => (format!("o.{}", quote(&published.name)), kind),
    };
    let text = format!(
        "with slice as (select {order}::int8 as seq, not ({pending}) and {age} < {now} - $2 * interval '1 microsecond' as old \
           from {table} o where {order} > $1 order by {order} limit {limit}), \
         gone as (delete from {table} o where {order} = any(array(select seq from slice where old)) \
           and not ({pending}) returning 1) \
         select (select count(*) from gone), (select max(seq) from slice), (select count(*) from slice), \
                (select coalesce(bool_or(old), false) from slice)",
        pending = sql.pending,
        now = now(kind),
        table = sql.table,
    );
    let micros = i64::try_from(older_than.as_micros()).unwrap_or(i64::MAX / 2) as f64;
    let row = client
        .query_typed_one(
            &text,
            &[
                (&after.unwrap_or(i64::MIN), Type::INT8),
                (&micros, Type::FLOAT8),
            ],
        )
        .await?;
    let (deleted, last, seen, old): (i64, Option<i64>, i64, bool) = (
        row.try_get(0)?,
        row.try_get(1)?,
        row.try_get(2)?,
        row.try_get(3)?,
    );
    Ok(RetentionStep {
        deleted: deleted as u64,
        next_after: last.filter(|_| old && seen as usize >= limit),
    })
}
