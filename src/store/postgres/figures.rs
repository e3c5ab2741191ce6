//! Figures for metrics and the status page, cheap enough to be looked at all the time: no scan, no write.

use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::error::StoreError;
use super::inspect::{Kind, Table};
use super::mapping::Field;
use super::session::{Params, Session};
use super::sql::Sql;
use super::{PostgresStore, run};

/// Most pending rows that are counted.
pub const BACKLOG_COUNTED_MAX: i64 = 10_000;
/// Most failure records that are counted.
const FAILURES_COUNTED_MAX: i64 = 100_000;

/// Most records of events that were not published that are counted.
pub const UNPUBLISHED_COUNTED_MAX: i64 = 100_000;

/// What is due and not settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backlog {
    /// Rows, retrying and blocked ones included.
    pub rows: u64,
    /// Too many to count: beyond [`BACKLOG_COUNTED_MAX`] it is the distance in sequence numbers.
    pub estimated: bool,
    /// Age of the oldest among them that never failed, where the table has a creation time.
    pub oldest: Option<Duration>,
    /// Age of the oldest that failed and is not given up.
    pub oldest_failing: Option<Duration>,
    /// Failure records by state.
    pub retrying: u64,
    /// Failure records by state.
    pub blocked: u64,
    /// Failure records by state.
    pub dead: u64,
    /// Published events whose rows could not be marked or deleted so far.
    pub unsettled: u64,
    /// The database's clock, in microseconds since 1970.
    pub clock: i64,
}

impl Backlog {
    /// All that have a failure record.
    pub fn recorded(&self) -> u64 {
        self.retrying + self.blocked + self.dead + self.unsettled
    }
}

/// How the table is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Upkeep {
    /// Size with indexes.
    pub bytes: u64,
    /// Rows, as estimated by the server.
    pub live_rows: u64,
    /// Dead rows not removed yet, as estimated by the server.
    pub dead_rows: u64,
    /// Events on record that were discarded, counted up to [`UNPUBLISHED_COUNTED_MAX`] with the next.
    pub discarded: u64,
    /// Events on record that expired.
    pub expired: u64,
    /// The oldest snapshot of a session.
    pub session: Holdup,
    /// The oldest prepared transaction.
    pub prepared: Holdup,
    /// The oldest snapshot that a replication slot keeps; its time is not known.
    pub slot: Holdup,
}

/// Something that keeps dead rows from being removed. Zero: there is nothing of the kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Holdup {
    /// For how long.
    pub age: Duration,
    /// Transactions begun since.
    pub transactions: u64,
}

impl PostgresStore {
    /// Counts what is due above this `seq`, up to a limit, and looks at the failure records.
    pub async fn backlog(&self, above: Option<i64>) -> Result<Backlog, StoreError> {
        let inner = &*self.inner;
        run!(self, session, |session| backlog(
            &session,
            &inner.table,
            &inner.sql,
            above
        ))
    }

    /// Looks at the statistics of the table and at who holds old snapshots.
    pub async fn upkeep(&self) -> Result<Upkeep, StoreError> {
        let inner = &*self.inner;
        run!(self, |client| upkeep(client, &inner.table, &inner.sql))
    }
}

/// Microseconds since a row was created or, if that is later, became due. Null where that is not known.
fn age(table: &Table) -> String {
    let (Some(created), Some(column)) =
        (table.sql(Field::CreatedAt), table.column(Field::CreatedAt))
    else {
        return "null::int8".into();
    };
    let since = match (
        table.sql(Field::AvailableAt),
        table.column(Field::AvailableAt).map(|column| column.kind),
    ) {
        (Some(due), Some(kind)) if kind == column.kind => format!("greatest({created}, {due})"),
        _ => created,
    };
    let now = match column.kind {
        Kind::Timestamp => "(clock_timestamp() at time zone 'UTC')",
        _ => "clock_timestamp()",
    };
    format!(
        "case when isfinite({since}) then greatest(0, (extract(epoch from ({now} - {since})) * 1000000)::int8) end"
    )
}

fn backlog_statement(table: &Table, sql: &Sql) -> String {
    let Sql {
        table: name,
        outbox,
        seq,
        pending,
        not_failing,
        failure_join,
        ..
    } = sql;
    let age = age(table);
    let due = match &sql.available {
        Some((at, now)) => format!(" and ({at} is null or {at} <= {now})"),
        None => String::new(),
    };
    let (above, order) = if sql.has_order {
        (format!(" and {seq} > $1"), format!(" order by {seq}"))
    } else {
        (" and $1 is not null".into(), String::new())
    };
    let highest = if sql.has_order {
        // From the other end of the same index, and only if it is needed.
        format!(
            "case when c.rows > {BACKLOG_COUNTED_MAX} then \
               (select {seq}::int8 from {name} o where {pending}{above} order by {seq} desc limit 1) end"
        )
    } else {
        "null::int8".into()
    };
    format!(
        "with due as materialized (select {seq}::int8 as seq, {age} as age from {name} o \
             where {pending}{above}{due} and {not_failing}{order} limit {BACKLOG_COUNTED_MAX} + 1), \
           c as (select count(*) as rows, max(seq) as last, (array_agg(age order by seq))[1] as oldest, max(age) as any_oldest from due), \
           f as (select state, count(*) as rows from (select state from outrigger.failures where outbox = {outbox} \
             limit {FAILURES_COUNTED_MAX}) f group by state) \
         select (extract(epoch from clock_timestamp()) * 1000000)::int8, c.rows, c.last, {highest}, \
           {}, \
           (select {age} from outrigger.failures f join {name} o on {failure_join} \
             where f.outbox = {outbox} and f.state in ('retrying', 'blocked') and {pending} order by f.seq limit 1), \
           (select rows from f where state = 'retrying'), (select rows from f where state = 'blocked'), \
           (select rows from f where state = 'dead'), (select rows from f where state = 'unsettled') \
         from c",
        if sql.has_order {
            "c.oldest"
        } else {
            "c.any_oldest"
        }
    )
}

async fn backlog(
    session: &Session<'_>,
    table: &Table,
    sql: &Sql,
    above: Option<i64>,
) -> Result<Backlog, StoreError> {
    let text = backlog_statement(table, sql);
    let above = above.unwrap_or(i64::MIN);
    let params: Params<'_> = vec![(&above, Type::INT8)];
    let rows = session.query(&text, params).await?;
    let row = rows
        .first()
        .ok_or_else(|| StoreError::fatal("counting returned no row"))?;
    let number = |index: usize| -> Result<u64, StoreError> {
        let number: Option<i64> = row.try_get(index)?;
        Ok(number.unwrap_or(0).max(0) as u64)
    };
    let age = |index: usize| -> Result<Option<Duration>, StoreError> {
        let micros: Option<i64> = row.try_get(index)?;
        Ok(micros.map(|us| Duration::from_micros(us.max(0) as u64)))
    };
    let counted = number(1)?;
    let estimated = counted > BACKLOG_COUNTED_MAX as u64;
    let beyond = match (
        row.try_get::<_, Option<i64>>(2)?,
        row.try_get::<_, Option<i64>>(3)?,
    ) {
        (Some(last), Some(highest)) => highest.saturating_sub(last).max(0) as u64,
        _ => 0,
    };
    let (retrying, blocked) = (number(6)?, number(7)?);
    Ok(Backlog {
        rows: counted + beyond + retrying + blocked,
        estimated,
        oldest: age(4)?,
        oldest_failing: age(5)?,
        retrying,
        blocked,
        dead: number(8)?,
        unsettled: number(9)?,
        clock: row.try_get(0)?,
    })
}

async fn upkeep(client: &Client, table: &Table, sql: &Sql) -> Result<Upkeep, StoreError> {
    // Sessions of other roles show their snapshots only to members of pg_read_all_stats.
    let text = format!(
        "with t (oid) as materialized ({0}), \
           s as (select min(xact_start) as since, max(age(backend_xmin))::int8 as ids from pg_stat_activity \
             where backend_xmin is not null and pid <> pg_backend_pid()), \
           p as (select min(prepared) as since, max(age(transaction))::int8 as ids from pg_prepared_xacts), \
           r as (select max(greatest(age(xmin), age(catalog_xmin)))::int8 as ids from pg_replication_slots), \
           u as (select state from outrigger.unpublished where outbox = {1} limit {UNPUBLISHED_COUNTED_MAX}) \
         select (select sum(pg_total_relation_size(oid))::int8 from t), \
           (select sum(pg_stat_get_live_tuples(oid))::int8 from t), (select sum(pg_stat_get_dead_tuples(oid))::int8 from t), \
           (extract(epoch from (clock_timestamp() - s.since)) * 1000000)::int8, s.ids, \
           (extract(epoch from (clock_timestamp() - p.since)) * 1000000)::int8, p.ids, r.ids, \
           (select count(*) from u where state = 'discarded'), (select count(*) from u where state = 'expired') \
         from s, p, r",
        table.tree(),
        sql.outbox
    );
    let row = client.query_typed_one(&text, &[]).await?;
    let number = |index: usize| -> Result<u64, StoreError> {
        let number: Option<i64> = row.try_get(index)?;
        Ok(number.unwrap_or(0).max(0) as u64)
    };
    let holdup = |age: Option<usize>, transactions: usize| -> Result<Holdup, StoreError> {
        Ok(Holdup {
            age: Duration::from_micros(age.map_or(Ok(0), number)?),
            transactions: number(transactions)?,
        })
    };
    Ok(Upkeep {
        bytes: number(0)?,
        live_rows: number(1)?,
        dead_rows: number(2)?,
        discarded: number(8)?,
        expired: number(9)?,
        session: holdup(Some(3), 4)?,
        prepared: holdup(Some(5), 6)?,
        slot: holdup(None, 7)?,
    })
}
