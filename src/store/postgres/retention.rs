//! Removing rows that were only marked, once they are old enough.

use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::error::StoreError;
use super::inspect::{self, Kind, Table};
use super::mapping::{Field, quote};
use super::session::Params;
use super::sql::{Sql, now};
use super::{Database, PostgresStore, run};

/// Most rows that [`Database::history`] looks at.
pub const HISTORY_LOOKED_AT_MAX: usize = 1_000_000;

/// One step of retention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetentionStep {
    /// Rows deleted.
    pub deleted: u64,
    /// Rows that are old enough and were not deleted, because someone else has locked them, or a trigger, a rule or a policy
    /// keeps them.
    pub kept: u64,
    /// Where the next step begins; `None`: the pass is over.
    pub next_after: Option<i64>,
}

/// What retention has before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct History {
    /// Published rows that are older, of those looked at.
    pub rows: u64,
    /// Not the whole table was looked at.
    pub more: bool,
    /// Age of the oldest.
    pub oldest: Option<Duration>,
}

impl Database {
    /// Counts the published rows that are older than `older_than`, among the first [`HISTORY_LOOKED_AT_MAX`].
    pub async fn history(&self, older_than: Duration) -> Result<History, StoreError> {
        let mut lease = self.lease().await?;
        let client = lease.client();
        let result = timeout(self.timeout, async {
            let table = inspect::inspect(client, self.mapping()).await?;
            history(client, &table, older_than).await
        })
        .await;
        lease.finish(result)
    }
}

impl PostgresStore {
    /// Deletes published rows older than `older_than` among the next `limit` rows after `after`. On a table without an
    /// order column: any `limit` of them.
    pub async fn retention_chunk(
        &self,
        older_than: Duration,
        after: Option<i64>,
        limit: usize,
    ) -> Result<RetentionStep, StoreError> {
        let inner = &*self.inner;
        run!(self, |client| step(
            client,
            &inner.table,
            &inner.sql,
            older_than,
            after,
            limit
        ))
    }
}

impl PostgresStore {
    /// Removes at most `limit` records of events that were not published, that ended longer ago than `older_than` and whose row
    /// is gone: it was deleted at once, or by hand. Returns how many.
    pub async fn forget_unpublished(
        &self,
        older_than: Duration,
        limit: usize,
    ) -> Result<u64, StoreError> {
        let sql = &self.inner.sql;
        let text = format!(
            "delete from outrigger.unpublished f where f.outbox = {} and f.seq in (select f.seq from outrigger.unpublished f \
               where f.outbox = {} and f.ended_at < now() - $1 * interval '1 microsecond' \
                 and not exists (select from {} o where {}) limit {limit})",
            sql.outbox, sql.outbox, sql.table, sql.failure_join
        );
        let age = micros(older_than);
        let params: Params<'_> = vec![(&age, Type::FLOAT8)];
        run!(self, |client| client.execute_typed(&text, &params))
    }
}

/// When a row got old: when it was published, or at least when it was written. With the type of that column.
pub(super) fn dated(table: &Table) -> Option<(String, Kind)> {
    let is_time = |kind| matches!(kind, Kind::Instant | Kind::Timestamp);
    [Field::PublishedAt, Field::CreatedAt]
        .into_iter()
        .find_map(|field| {
            let column = table.column(field)?;
            is_time(column.kind).then(|| (format!("o.{}", quote(&column.name)), column.kind))
        })
}

fn needs_a_time() -> StoreError {
    StoreError::schema(
        "OUTRIGGER_OUTBOX_RETENTION needs a time: the mark of published rows holds none, so set \
         OUTRIGGER_OUTBOX_COLUMN_CREATED_AT",
    )
}

fn micros(time: Duration) -> f64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX / 2) as f64
}

/// Looks at the next `limit` rows in order and deletes the published ones among them that are too old. A pass ends at
/// the first slice that has young published rows and no old ones, since later rows are younger still; the next pass
/// begins at the front again, so a row that was published late is deleted then.
///
/// Rows that someone else has locked are left for the next pass: nothing is waited for.
async fn step(
    client: &Client,
    table: &Table,
    sql: &Sql,
    older_than: Duration,
    after: Option<i64>,
    limit: usize,
) -> Result<RetentionStep, StoreError> {
    if !table.has_mark() {
        return Err(StoreError::schema(
            "OUTRIGGER_OUTBOX_RETENTION needs a published column",
        ));
    }
    let (age, kind) = dated(table).ok_or_else(needs_a_time)?;
    let published = &sql.published;
    let old = format!("{age} < {} - $2 * interval '1 microsecond'", now(kind));
    let name = &sql.table;
    // What an event that was not published leaves behind goes with its row.
    let forgotten = format!(
        "forgotten as (delete from outrigger.unpublished u where u.outbox = {} and u.seq in (select seq from gone))",
        sql.outbox
    );
    let text = if sql.has_order {
        let order = &sql.seq;
        format!(
            "with slice as materialized (select {order} as seq, {published} as published, {published} and {old} as old \
               from {name} o where {order} > $1 order by {order} limit {limit}), \
             free as materialized (select {order} as seq from {name} o \
               where {order} = any(array(select seq from slice where old)) and {published} for update skip locked), \
             gone as (delete from {name} o where {order} = any(array(select seq from free)) and {published} returning {order}::int8 as seq), \
             {forgotten} \
             select (select count(*) from gone), max(seq)::int8, count(*), coalesce(count(*) filter (where old), 0), \
                    coalesce(bool_or(published and not old), false) from slice"
        )
    } else {
        // Rows have no place, so there is no slice to go on from: whatever is old enough does as well.
        let id = table.sql(Field::Id).unwrap_or_default();
        let seq = &sql.seq;
        format!(
            "with free as materialized (select {id} as id from {name} o where $1 is not null and {published} and {old} \
               limit {limit} for update skip locked), \
             gone as (delete from {name} o where {id} = any(array(select id from free)) and {published} and {old} \
               returning {seq}::int8 as seq), \
             {forgotten} \
             select (select count(*) from gone), 0::int8, count(*), count(*), false from free"
        )
    };
    let row = client
        .query_typed_one(
            &text,
            &[
                (&after.unwrap_or(i64::MIN), Type::INT8),
                (&micros(older_than), Type::FLOAT8),
            ],
        )
        .await?;
    let (deleted, last, seen, old): (i64, Option<i64>, i64, i64) = (
        row.try_get(0)?,
        row.try_get(1)?,
        row.try_get(2)?,
        row.try_get(3)?,
    );
    let young: bool = row.try_get(4)?;
    let goes_on = seen as usize >= limit && (old > 0 || !young);
    Ok(RetentionStep {
        deleted: deleted as u64,
        kept: (old - deleted).max(0) as u64,
        next_after: last.filter(|_| goes_on),
    })
}

async fn history(
    client: &Client,
    table: &Table,
    older_than: Duration,
) -> Result<History, StoreError> {
    let sql = Sql::new(table, false);
    let (age, kind) = dated(table).ok_or_else(needs_a_time)?;
    let now = now(kind);
    let order = if sql.has_order {
        format!("order by {}", sql.seq)
    } else {
        String::new()
    };
    // One row more than is looked at tells whether there is more.
    let text = format!(
        "with looked as materialized (select {} and {age} < {now} - $1 * interval '1 microsecond' as old, \
             case when isfinite({age}) then (extract(epoch from ({now} - {age})) * 1000000)::int8 end as age \
           from {} o {order} limit {}) \
         select count(*) filter (where old), count(*), max(age) filter (where old) from looked",
        sql.published,
        sql.table,
        HISTORY_LOOKED_AT_MAX + 1
    );
    let row = client
        .query_typed_one(&text, &[(&micros(older_than), Type::FLOAT8)])
        .await?;
    let (rows, looked): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
    let oldest: Option<i64> = row.try_get(2)?;
    Ok(History {
        rows: rows as u64,
        more: looked as usize > HISTORY_LOOKED_AT_MAX,
        oldest: oldest.map(|us| Duration::from_micros(us.max(0) as u64)),
    })
}
