//! What operators do: look at failures, retry, discard, pause, tail.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::timeout;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::error::StoreError;
use super::select::{Part, stored_max};
use super::session::Params;
use super::sql::{REPLACE, Sql, like};
use super::{PostgresStore, failures, fetch, read, run};
use crate::event::Record;
use crate::store::{FailureState, FetchRequest, Settled};

/// Rows of more bytes are shown without their payload.
const SHOWN_MAX: usize = 256 << 10;
/// Most bytes that are read once more, row by row.
const FILL_MAX: usize = 16 << 20;

/// Which failure records an operator means. All conditions must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FailureFilter {
    /// In one of these states; empty: in any but `Suspect`, since suspects have not failed, and those of events that are over.
    pub states: Vec<FailureState>,
    /// Of this event type; `*` stands for anything.
    pub event_type: Option<String>,
    /// Of this key.
    pub key: Option<String>,
    /// With one of these event ids or `seq` numbers; empty: any.
    pub events: Vec<String>,
    /// With this reason code.
    pub reason: Option<String>,
    /// Last failed longer ago than this.
    pub older_than: Option<Duration>,
    /// Last failed less long ago than this.
    pub newer_than: Option<Duration>,
    /// Those that failed last first, instead of in the order of `seq`.
    pub latest_first: bool,
    /// Most records; `None`: no limit.
    pub limit: Option<usize>,
}

/// A failure record, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "named like the columns of outrigger.failures")]
pub struct FailureRow {
    pub seq: i64,
    pub event_id: String,
    pub event_type: String,
    pub key: Option<String>,
    pub state: FailureState,
    pub attempts: u32,
    pub crashes: u32,
    pub reason: Option<String>,
    pub error: Option<String>,
    pub first_failed_at: Timestamp,
    pub last_failed_at: Timestamp,
    pub next_attempt_at: Option<Timestamp>,
    /// The role that ended it, of an event that is over.
    pub ended_by: Option<String>,
}

/// A row as `tail` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TailRow {
    /// The row.
    pub record: Record,
    /// Already published.
    pub published: bool,
    /// State of its record, if it has one.
    pub failure: Option<FailureState>,
}

/// The filter as SQL over `outrigger.failures f`, with its parameters in a fixed order.
struct Where {
    states: Vec<&'static str>,
    event_type: Option<String>,
    older: Option<f64>,
    newer: Option<f64>,
}

impl Where {
    const TEXT: &'static str = "(f.state = any($1) or cardinality($1) = 0 and f.state not in ('suspect', 'discarded', 'expired')) \
        and ($2 is null or f.event_type like $2) and ($3 is null or f.key = $3) \
        and (cardinality($4) = 0 or f.event_id = any($4) or f.seq::text = any($4)) \
        and ($5 is null or f.reason = $5) \
        and ($6 is null or f.last_failed_at < clock_timestamp() - $6 * interval '1 microsecond') \
        and ($7 is null or f.last_failed_at > clock_timestamp() - $7 * interval '1 microsecond')";

    fn new(filter: &FailureFilter) -> Self {
        let micros = |d: Duration| d.as_micros() as f64;
        Self {
            states: filter.states.iter().map(|state| state.as_str()).collect(),
            event_type: filter.event_type.as_deref().map(like),
            older: filter.older_than.map(micros),
            newer: filter.newer_than.map(micros),
        }
    }

    fn params<'a>(&'a self, filter: &'a FailureFilter) -> Params<'a> {
        vec![
            (&self.states, Type::TEXT_ARRAY),
            (&self.event_type, Type::TEXT),
            (&filter.key, Type::TEXT),
            (&filter.events, Type::TEXT_ARRAY),
            (&filter.reason, Type::TEXT),
            (&self.older, Type::FLOAT8),
            (&self.newer, Type::FLOAT8),
        ]
    }
}

/// How the selected records are ordered.
fn order(filter: &FailureFilter) -> &'static str {
    if filter.latest_first {
        "f.last_failed_at desc, f.seq"
    } else {
        "f.seq"
    }
}

/// Every record: of events that fail, and of those that are over without having been published, which "failed last" when they
/// ended.
const RECORDS: &str = "(select outbox, seq, event_id, event_type, key, state, attempts, crashes, reason, error, first_failed_at, \
     last_failed_at, next_attempt_at, null::text as ended_by from outrigger.failures union all \
     select outbox, seq, event_id, event_type, key, state, attempts, crashes, reason, error, coalesce(first_failed_at, ended_at), \
       ended_at, null, ended_by from outrigger.unpublished)";

/// The records of events that fail.
const FAILING: &str = "outrigger.failures";

/// The selected records of these.
fn selected(sql: &Sql, columns: &str, records: &str, filter: &FailureFilter) -> String {
    let limit = filter
        .limit
        .map(|n| format!("limit {n}"))
        .unwrap_or_default();
    format!(
        "select {columns} from {records} f where f.outbox = {} and {} order by {} {limit}",
        sql.outbox,
        Where::TEXT,
        order(filter)
    )
}

/// The running relays look again at everything: the meaning of a raised version.
fn bump(sql: &Sql) -> String {
    format!(
        "update outrigger.outboxes set failures_version = failures_version + 1 where outbox = {}",
        sql.outbox
    )
}

impl PostgresStore {
    /// Failure records.
    pub async fn failures(&self, filter: &FailureFilter) -> Result<Vec<FailureRow>, StoreError> {
        let inner = &*self.inner;
        let columns = "f.seq, f.event_id, f.event_type, f.key, f.state, f.attempts, f.crashes, f.reason, f.error, \
             f.first_failed_at, f.last_failed_at, f.next_attempt_at, f.ended_by";
        let text = selected(&inner.sql, columns, RECORDS, filter);
        let condition = Where::new(filter);
        let params = condition.params(filter);
        let rows: Vec<Row> = run!(self, |client| client.query_typed(&text, &params))?;
        rows.iter().map(failure_row).collect()
    }

    /// Counts failure records.
    pub async fn failure_count(&self, filter: &FailureFilter) -> Result<i64, StoreError> {
        let text = format!(
            "select count(*) from ({}) s",
            selected(&self.inner.sql, "f.seq", RECORDS, filter)
        );
        let condition = Where::new(filter);
        let params = condition.params(filter);
        let row: Row = run!(self, |client| client.query_typed_one(&text, &params))?;
        Ok(row.try_get(0)?)
    }

    /// Lets the selected rows be tried again at once, with all their attempts: published ones are settled. Returns how many.
    pub async fn retry(&self, filter: &FailureFilter) -> Result<u64, StoreError> {
        let sql = &self.inner.sql;
        let text = format!(
            "with chosen as ({}), version as ({} and exists (select from chosen)) \
             update outrigger.failures f set state = case f.state when 'unsettled' then f.state else 'retrying' end, \
               attempts = 0, crashes = 0, next_attempt_at = clock_timestamp() \
             from chosen where f.outbox = {} and f.seq = chosen.seq",
            selected(sql, "f.seq", FAILING, filter),
            bump(sql),
            sql.outbox
        );
        self.change(&text, filter).await
    }

    /// Gives the selected rows up for good: they are marked or deleted unpublished, and recorded as discarded. Returns how many.
    pub async fn discard(&self, filter: &FailureFilter) -> Result<u64, StoreError> {
        let sql = &self.inner.sql;
        let settled = sql.settle_those("array(select seq from chosen)", "select id from chosen");
        let text = format!(
            "with chosen as materialized ({}), version as ({} and exists (select from chosen)), \
               settled as ({settled} returning {over} as over, {}), \
               kept as (insert into outrigger.unpublished as u {} from settled d join outrigger.failures f \
                 on f.outbox = {outbox} and f.seq = d.seq and f.event_id = d.event_id \
                 where d.over and f.state <> 'unsettled' {REPLACE}) \
             delete from outrigger.failures f using chosen where f.outbox = {outbox} and f.seq = chosen.seq \
               and f.event_id = chosen.id and (f.seq in (select seq from settled where over) or {})",
            selected(sql, "f.seq, f.event_id as id", FAILING, filter),
            bump(sql),
            sql.described(),
            sql.ended("d", "'discarded'"),
            sql.row_is_over(),
            over = sql.over,
            outbox = sql.outbox,
        );
        self.change(&text, filter).await
    }

    async fn change(&self, text: &str, filter: &FailureFilter) -> Result<u64, StoreError> {
        let condition = Where::new(filter);
        let params = condition.params(filter);
        run!(self, |client| client.execute_typed(text, &params))
    }

    /// Asks every relay of this outbox to stop publishing. False if it was paused already.
    pub async fn pause(&self, reason: Option<&str>) -> Result<bool, StoreError> {
        let text = format!(
            "update outrigger.outboxes set paused_at = clock_timestamp(), pause_reason = $1 \
             where outbox = {} and paused_at is null",
            self.inner.sql.outbox
        );
        let params: Params<'_> = vec![(&reason, Type::TEXT)];
        let changed = run!(self, |client| client.execute_typed(&text, &params))?;
        Ok(changed > 0)
    }

    /// Ends a pause and wakes the relays. False if there was none.
    pub async fn resume(&self) -> Result<bool, StoreError> {
        let text = format!(
            "with resumed as (update outrigger.outboxes set paused_at = null, pause_reason = null \
               where outbox = {} and paused_at is not null returning 1) \
             select pg_notify($1, '') from resumed",
            self.inner.sql.outbox
        );
        let params: Params<'_> = vec![(&self.inner.table.channel, Type::TEXT)];
        let rows = run!(self, |client| client.query_typed(&text, &params))?;
        Ok(!rows.is_empty())
    }

    /// Wakes the relays that listen.
    pub async fn wake(&self) -> Result<(), StoreError> {
        let params: Params<'_> = vec![(&self.inner.table.channel, Type::TEXT)];
        run!(self, |client| client
            .query_typed("select pg_notify($1, '')", &params))?;
        Ok(())
    }

    /// Rows after `after` in order, whatever their state; large ones without their payload. Needs an order column.
    pub async fn tail(&self, after: i64, limit: usize) -> Result<Vec<TailRow>, StoreError> {
        let inner = &*self.inner;
        let sql = &inner.sql;
        if !sql.has_order {
            return Err(StoreError::schema(format!(
                "table {} has no order column to follow: set OUTRIGGER_OUTBOX_COLUMN_SEQ",
                sql.table
            )));
        }
        let state = format!(
            "(select f.state from {RECORDS} f where f.outbox = {} and f.seq = {} and f.event_id = {} \
               and (f.state in ('discarded', 'expired')) = ({}))",
            sql.outbox, sql.seq, sql.id_text, sql.published
        );
        let more = [
            (sql.counts.as_str(), "counts"),
            ("null::int8", "retry"),
            (sql.published.as_str(), "published"),
            (state.as_str(), "failure"),
        ];
        let rows = format!(
            "from {table} o where {seq} > $1 order by {seq} limit {limit}",
            table = sql.table,
            seq = sql.seq,
        );
        let (whole, stored) = (SHOWN_MAX as i64, stored_max(SHOWN_MAX));
        let part = Part::Sized {
            whole: "$2",
            stored: "$3",
            together: true,
        };
        let text = sql.select.of(part, &more, &rows);
        let params: Params<'_> = vec![
            (&after, Type::INT8),
            (&whole, Type::INT8),
            (&stored, Type::INT8),
        ];
        let answer: Result<Vec<Row>, StoreError> =
            run!(self, |client| client.query_typed(&text, &params));
        let answer = match answer {
            Err(error) if error.concerns_a_row() => {
                let text = sql.select.of(Part::Numbers, &more, &rows);
                let params: Params<'_> = vec![(&after, Type::INT8)];
                run!(self, |client| client.query_typed(&text, &params))?
            }
            answer => answer?,
        };
        let layout = read::Layout::new(&inner.table, SHOWN_MAX);
        let mut rows = answer
            .iter()
            .map(|row| {
                let failure: Option<&str> = row.try_get("failure")?;
                Ok(TailRow {
                    record: layout.record(row)?,
                    published: row.try_get("published")?,
                    failure: failure.map(failures::state).transpose()?,
                })
            })
            .collect::<Result<Vec<_>, StoreError>>()?;
        self.fill(&mut rows).await?;
        Ok(rows)
    }

    /// Fetches what a read of several rows could not bring, since one of them cannot be read.
    async fn fill(&self, rows: &mut [TailRow]) -> Result<(), StoreError> {
        let inner = &*self.inner;
        let left = rows.iter().filter(|row| row.record.content.is_left());
        let left: Vec<Settled> = left
            .map(|row| Settled {
                seq: row.record.seq,
                id: row.record.id.clone(),
            })
            .collect();
        if left.is_empty() {
            return Ok(());
        }
        let request = FetchRequest {
            rows: left,
            source: None,
            byte_limit: FILL_MAX,
            max_event: SHOWN_MAX,
        };
        let fetched = run!(self, session, |session| fetch::fetch(
            &session,
            &inner.table,
            &inner.sql,
            &request,
            "true"
        ))?;
        for record in fetched.rows {
            if let Some(row) = rows.iter_mut().find(|row| row.record.seq == record.seq) {
                row.record = Record {
                    hash: row.record.hash,
                    keyed: row.record.keyed,
                    attempts: row.record.attempts,
                    crashes: row.record.crashes,
                    created_at: row.record.created_at,
                    ..record
                };
            }
        }
        Ok(())
    }

    /// The highest `seq` so far, for `tail` to begin at. Zero for an empty table.
    pub async fn last_seq(&self) -> Result<i64, StoreError> {
        let sql = &self.inner.sql;
        let text = format!(
            "select coalesce(max({})::int8, 0) from {} o",
            sql.seq, sql.table
        );
        let row: Row = run!(self, |client| client.query_typed_one(&text, &[]))?;
        Ok(row.try_get(0)?)
    }
}

fn failure_row(row: &Row) -> Result<FailureRow, StoreError> {
    Ok(FailureRow {
        seq: row.try_get(0)?,
        event_id: row.try_get(1)?,
        event_type: row.try_get(2)?,
        key: row.try_get(3)?,
        state: failures::state(row.try_get(4)?)?,
        attempts: row.try_get::<_, i32>(5)?.max(0) as u32,
        crashes: row.try_get::<_, i32>(6)?.max(0) as u32,
        reason: row.try_get(7)?,
        error: row.try_get(8)?,
        first_failed_at: row.try_get(9)?,
        last_failed_at: row.try_get(10)?,
        next_attempt_at: row.try_get(11)?,
        ended_by: row.try_get(12)?,
    })
}
