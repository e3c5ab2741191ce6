//! Publishing again what was published before.
//!
//! The rows become pending below the bound of the relays' reads. Raising `failures_version` tells them that something
//! changed there: look again, from the beginning.

use jiff::Timestamp;
use tokio::time::timeout;
use tokio_postgres::types::Type;

use super::error::StoreError;
use super::inspect::Kind;
use super::mapping::{Field, quote};
use super::mark::Mark;
use super::session::Params;
use super::sql::like;
use super::{PostgresStore, run};
use crate::store::FailureState;

/// Which published rows to publish again. All conditions must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplayFilter {
    /// Written at or after this time.
    pub from: Option<Timestamp>,
    /// Written before this time.
    pub to: Option<Timestamp>,
    /// Of this event type; `*` stands for anything.
    pub event_type: Option<String>,
    /// Of this key.
    pub key: Option<String>,
    /// With one of these event ids or `seq` numbers; empty: any.
    pub ids: Vec<String>,
    /// Lowest `seq`, inclusive.
    pub from_seq: Option<i64>,
    /// Highest `seq`, inclusive.
    pub to_seq: Option<i64>,
    /// Discarded events, too, which never were published.
    pub discarded: bool,
    /// Expired events, too, which never were published.
    pub expired: bool,
}

impl ReplayFilter {
    /// States of events that are left out.
    fn left_out(&self) -> Vec<&'static str> {
        let mut states = Vec::new();
        if !self.discarded {
            states.push(FailureState::Discarded.as_str());
        }
        if !self.expired {
            states.push(FailureState::Expired.as_str());
        }
        states
    }
}

/// What a replay would do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReplayCount {
    /// Events that become pending again.
    pub matching: i64,
    /// Discarded events that are left out.
    pub discarded: i64,
    /// Expired events that are left out.
    pub expired: i64,
}

/// How a replay shows itself to consumers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplayMode {
    /// The same rows with the same ids: consumers that remember ids ignore them.
    SameIds,
    /// Copies with new ids and a new place in the order: everybody takes them for new events.
    NewIds,
}

impl PostgresStore {
    /// Counts the rows a replay would touch, and those it leaves out since they were never published.
    pub async fn replay_count(&self, filter: &ReplayFilter) -> Result<ReplayCount, StoreError> {
        let condition = self.replay_condition(filter)?;
        let sql = &self.inner.sql;
        let text = format!(
            "select count(*) filter (where f.state is null), count(*) filter (where f.state = 'discarded'), \
               count(*) filter (where f.state = 'expired') \
             from {} o left join outrigger.unpublished f on f.outbox = {} and {} and f.state = any($10) where {condition}",
            sql.table, sql.outbox, sql.failure_join
        );
        let event_type = filter.event_type.as_deref().map(like);
        let left_out = filter.left_out();
        let params = params(filter, &event_type, &i64::MIN, &i64::MAX, &left_out);
        let row = run!(self, |client| client.query_typed_one(&text, &params))?;
        Ok(ReplayCount {
            matching: row.try_get(0)?,
            discarded: row.try_get(1)?,
            expired: row.try_get(2)?,
        })
    }

    /// Replays in chunks of `chunk` rows, each its own transaction, oldest first; `progress` hears the total after
    /// each. Stopping halfway leaves the rest as it was. Returns the total.
    pub async fn replay(
        &self,
        filter: &ReplayFilter,
        mode: ReplayMode,
        chunk: usize,
        mut progress: impl FnMut(u64),
    ) -> Result<u64, StoreError> {
        let condition = self.replay_condition(filter)?;
        let sql = &self.inner.sql;
        // Copies are pending themselves and lie above the end seen here, so they are never copied again.
        let end = self.last_seq().await?;
        let chosen = format!(
            "chosen as materialized (select {seq}::int8 as seq from {} o where {condition} \
               and not exists (select from outrigger.unpublished f where f.outbox = {} and {} and f.state = any($10)) \
               order by {seq} limit {})",
            sql.table,
            sql.outbox,
            sql.failure_join,
            chunk.max(1),
            seq = sql.seq,
        );
        let change = match mode {
            ReplayMode::SameIds => self.reopen(),
            ReplayMode::NewIds => self.copy(),
        };
        // What becomes pending begins anew. Of a copy, the original stays what it is.
        let begins_anew = mode == ReplayMode::SameIds;
        let text = format!(
            "with {chosen}, changed as ({change}), \
             forgotten as (delete from outrigger.failures f where f.outbox = {outbox} and f.seq in (select seq from chosen)), \
             begun as (delete from outrigger.unpublished f where {begins_anew} and f.outbox = {outbox} \
               and f.seq in (select seq from chosen)), \
             version as (update outrigger.outboxes set failures_version = failures_version + 1 \
               where outbox = {outbox} and exists (select from chosen)) \
             select (select count(*) from changed), (select max(seq) from chosen)",
            outbox = sql.outbox
        );
        let event_type = filter.event_type.as_deref().map(like);
        let left_out = filter.left_out();
        let (mut total, mut after) = (0, i64::MIN);
        loop {
            let params = params(filter, &event_type, &after, &end, &left_out);
            let row = run!(self, |client| client.query_typed_one(&text, &params))?;
            let changed: i64 = row.try_get(0)?;
            let Some(last) = row.try_get::<_, Option<i64>>(1)? else {
                return Ok(total);
            };
            total += changed as u64;
            after = last;
            progress(total);
        }
    }

    fn reopen(&self) -> String {
        let table = &self.inner.table;
        format!(
            "update {} o set {} where {} = any(array(select seq from chosen)) returning 1",
            table.name,
            Mark::of(table).unset,
            self.inner.sql.seq
        )
    }

    /// Copies every mapped column but order, id, times of delay and expiry, and the mark, which take their defaults.
    fn copy(&self) -> String {
        let table = &self.inner.table;
        let fresh = [
            Field::Seq,
            Field::Id,
            Field::PublishedAt,
            Field::Status,
            Field::CreatedAt,
            Field::AvailableAt,
            Field::ExpiresAt,
        ];
        let mut columns: Vec<String> = Vec::new();
        let kept = table
            .columns
            .iter()
            .filter(|(field, _)| !fresh.contains(field))
            .map(|(_, column)| column.name.as_str());
        for name in kept.chain(table.extra.iter().map(AsRef::as_ref)) {
            let name = quote(name);
            if !columns.contains(&name) {
                columns.push(name);
            }
        }
        let list = columns.join(", ");
        let mut values = list.clone();
        let mut names = list;
        // Any other id is drawn by the table itself.
        if let Some(id) = table.drawn_id() {
            names = format!("{}, {names}", quote(&id.name));
            values = format!("gen_random_uuid()::{}, {values}", id.type_name);
        }
        format!(
            "insert into {0} ({names}) select {values} from {0} o \
             where {1} = any(array(select seq from chosen)) order by {1} returning 1",
            table.name, self.inner.sql.seq
        )
    }

    fn replay_condition(&self, filter: &ReplayFilter) -> Result<String, StoreError> {
        let (table, sql) = (&self.inner.table, &self.inner.sql);
        if !sql.has_order || !table.has_mark() {
            return Err(StoreError::schema(format!(
                "table {} keeps no published rows to replay: it needs an order column and a published column",
                table.name
            )));
        }
        let missing = |field: Field, what: &str| {
            StoreError::schema(format!(
                "table {} cannot be filtered by {what}: set {}",
                table.name,
                field.setting()
            ))
        };
        let created = match table.column(Field::CreatedAt) {
            Some(column) if column.kind == Kind::Timestamp => {
                format!("(o.{} at time zone 'UTC')", quote(&column.name))
            }
            Some(column) => format!("o.{}", quote(&column.name)),
            None if filter.from.is_some() || filter.to.is_some() => {
                return Err(missing(Field::CreatedAt, "time"));
            }
            None => "null::timestamptz".into(),
        };
        let key = match table.sql(Field::Key) {
            Some(key) => format!("{key}::text"),
            None if filter.key.is_some() => return Err(missing(Field::Key, "key")),
            None => "null::text".into(),
        };
        Ok(format!(
            "{} and {seq} > $1 and {seq} <= $2 and ($3 is null or {created} >= $3) and ($4 is null or {created} < $4) \
             and ($5 is null or {}::text like $5) and ($6 is null or {key} = $6) \
             and (cardinality($7) = 0 or {}::text = any($7) or {seq}::text = any($7)) \
             and ($8 is null or {seq} >= $8) and ($9 is null or {seq} <= $9)",
            sql.published,
            table.sql(Field::Type).unwrap_or_default(),
            table.sql(Field::Id).unwrap_or_default(),
            seq = sql.seq,
        ))
    }
}

fn params<'a>(
    filter: &'a ReplayFilter,
    event_type: &'a Option<String>,
    after: &'a i64,
    end: &'a i64,
    left_out: &'a Vec<&'static str>,
) -> Params<'a> {
    vec![
        (after, Type::INT8),
        (end, Type::INT8),
        (&filter.from, Type::TIMESTAMPTZ),
        (&filter.to, Type::TIMESTAMPTZ),
        (event_type, Type::TEXT),
        (&filter.key, Type::TEXT),
        (&filter.ids, Type::TEXT_ARRAY),
        (&filter.from_seq, Type::INT8),
        (&filter.to_seq, Type::INT8),
        (left_out, Type::TEXT_ARRAY),
    ]
}
