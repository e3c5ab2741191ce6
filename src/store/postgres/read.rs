//! Reading pending rows, and finding out who could still commit late.

use std::error::Error;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, future};
use jiff::Timestamp;
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, ToSql, Type};

use super::error::StoreError;
use super::inspect::{Kind, Table};
use super::mapping::Field;
use super::select::{ID_MAX, ODD_ID, Part, TEXTS, stored_max};
use super::session::{Params, Prepared, Session};
use super::sql::Sql;
use crate::error::ReasonCode;
use crate::event::{Content, Data, Record};
use crate::store::{Holder, Holders, Partitions, ReadBatch, ReadKind, ReadRequest};

/// A statement with its parameters.
pub(super) struct Statement<'a> {
    pub(super) text: String,
    pub(super) params: Params<'a>,
}

/// A request's numbers in the types of parameters.
#[derive(Default)]
struct Numbers {
    owned: Vec<i64>,
    limit: i64,
    whole: i64,
    stored: i64,
}

impl Numbers {
    fn of(request: &ReadRequest) -> Self {
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        Self {
            owned: match &request.partitions {
                Partitions::All => Vec::new(),
                Partitions::Some { owned, .. } => owned.iter().map(|p| i64::from(*p)).collect(),
            },
            limit: number(request.limit.max(1)),
            whole: whole(request),
            // What takes more is certainly too long to be read with others, so it need not be rendered to be measured.
            stored: stored_max(request.whole.min(request.max_event)),
        }
    }
}

/// Rows with a value of more bytes come without their payload; negative: all of them.
fn whole(request: &ReadRequest) -> i64 {
    match request.whole.min(request.max_event) {
        0 => -1,
        whole => i64::try_from(whole).unwrap_or(i64::MAX),
    }
}

/// Builds the statement of a request. What varies from read to read is a parameter, so that few different statements are
/// kept. `values`: read more than numbers.
fn statement<'a>(
    sql: &Sql,
    request: &'a ReadRequest,
    numbers: &'a Numbers,
    values: bool,
) -> Statement<'a> {
    let mut params: Params<'a> = Vec::new();
    let mut filters = vec![sql.pending.clone()];
    filters.extend(sql.numbered.clone());
    let seq = &sql.seq;
    let mut bind = |value: &'a (dyn ToSql + Sync), kind: Type| {
        params.push((value, kind));
        format!("${}", params.len())
    };
    match &request.kind {
        // Without an order column "above" means nothing: a new row may hash to anywhere. What is known is left
        // out by name, and the first rows in whatever order do as well as any.
        ReadKind::Main { after: Some(after) } | ReadKind::CatchUp { after, .. }
            if sql.has_order =>
        {
            filters.push(format!("{seq} > {}", bind(after, Type::INT8)));
        }
        ReadKind::Sweep { after, up_to } => {
            filters.push(format!("{seq} > {}", bind(after, Type::INT8)));
            filters.push(format!("{seq} <= {}", bind(up_to, Type::INT8)));
        }
        _ => {}
    }
    if let ReadKind::CatchUp { keys, up_to, .. } = &request.kind {
        if sql.has_order {
            filters.push(format!("{seq} <= {}", bind(up_to, Type::INT8)));
        }
        filters.push(format!(
            "{} = any({})",
            sql.hash,
            bind(keys, Type::INT8_ARRAY)
        ));
    }
    if let Partitions::Some { count, .. } = &request.partitions {
        filters.push(Sql::in_partitions(
            &sql.hash,
            *count,
            &bind(&numbers.owned, Type::INT8_ARRAY),
        ));
    }
    // NOT IN (unnest) hashes the list once in every server version; <> ALL, as fast on 15, compares one by one before.
    if !request.known.is_empty() {
        filters.push(format!(
            "{seq} not in (select unnest({}))",
            bind(&request.known, Type::INT8_ARRAY)
        ));
    }
    if !request.skip_keys.is_empty() {
        let list = bind(&request.skip_keys, Type::INT8_ARRAY);
        // An unsettled row waits for nothing of its key.
        let or_unsettled = match request.kind {
            ReadKind::Retries => "f.state = 'unsettled' or ",
            _ => "",
        };
        filters.push(format!(
            "({or_unsettled}{} not in (select unnest({list})))",
            sql.hash
        ));
    }
    if let (Some(source), false) = (
        &request.source,
        matches!(request.kind, ReadKind::Main { .. }),
    ) {
        // As a subquery it is looked at once, and nothing else is if it differs.
        filters.push(format!(
            "(select {}) = {}",
            sql.source,
            bind(source, Type::INT8)
        ));
    }
    let limit = bind(&numbers.limit, Type::INT8);
    let (whole, stored);
    let part = if values {
        whole = bind(&numbers.whole, Type::INT8);
        stored = bind(&numbers.stored, Type::INT8);
        Part::Sized {
            whole: &whole,
            stored: &stored,
            together: false,
        }
    } else {
        Part::Numbers
    };
    let retries = request.kind == ReadKind::Retries;
    const PACKED: &str = "(f.attempts::int8 << 32) | f.crashes";
    let (counts, retry, join) = match request.kind {
        ReadKind::Retries => {
            filters.push(format!(
                "f.outbox = {} and f.state in ('retrying', 'unsettled') and coalesce(f.next_attempt_at, '-infinity') <= clock_timestamp()",
                sql.outbox
            ));
            let join = format!(
                "outrigger.failures f join {} o on {}",
                sql.table, sql.failure_join
            );
            (
                PACKED,
                "case f.state when 'unsettled' then -2 else 0 end::int8",
                join,
            )
        }
        ReadKind::CatchUp { .. } => {
            filters.push("(f.state is null or f.state not in ('dead', 'unsettled'))".to_owned());
            let join = format!(
                "{} o left join outrigger.failures f on f.outbox = {} and {}",
                sql.table, sql.outbox, sql.failure_join
            );
            (PACKED, RETRY_IN, join)
        }
        _ => {
            filters.push(sql.not_failing.clone());
            filters.push(sql.not_parked.clone());
            (
                sql.counts.as_str(),
                "null::int8",
                format!("{} o", sql.table),
            )
        }
    };
    let mut order = if retries {
        // Unsettled rows first: whether they can be settled by now decides whether anything is published.
        format!("order by f.state desc, {seq} ")
    } else if sql.has_order {
        format!("order by {seq} ")
    } else {
        String::new()
    };
    match (&sql.available, &request.kind) {
        (Some((at, now)), ReadKind::Due) => {
            filters.push(format!("{at} is not null and {at} <= {now}"));
            order = format!("order by {at} ");
        }
        (None, ReadKind::Due) => filters.push("false".into()),
        (Some((at, now)), _) if !retries => {
            filters.push(format!("({at} is null or {at} <= {now})"))
        }
        _ => {}
    }
    let rows = sql.select.of(
        part,
        &[(counts, "counts"), (retry, "retry")],
        &format!(
            "from {join} where {} {order}limit {limit}",
            filters.join(" and ")
        ),
    );
    let text = if matches!(request.kind, ReadKind::Main { .. }) {
        // The snapshot must be that of the very statement that reads the rows, and must come back even when there
        // are none.
        with_note(
            sql,
            &format!("({}) || ':' || pg_current_snapshot()", sql.source),
            &rows,
        )
    } else {
        rows
    };
    Statement { text, params }
}

/// Instead of them, for a row that was published.
const PUBLISHED: i64 = -2;
/// Rows, after one that has nothing but a note. As a row of its own it is sent once; as a column it would be repeated in
/// each.
pub(super) fn with_note(sql: &Sql, note: &str, rows: &str) -> String {
    format!(
        "select {}, null::int8 as size, null::int8 as counts, null::int8 as retry, {note} as note union all \
         select rows.*, null::text from ({rows}) rows",
        sql.select.nulls
    )
}

/// Microseconds until a failed row may be tried again; negative if only an operator can release it.
const RETRY_IN: &str = "case f.state when 'blocked' then -1::int8 when 'retrying' then \
     greatest(0, coalesce((extract(epoch from (f.next_attempt_at - clock_timestamp())) * 1000000)::int8, 0)) end";

/// Runs a read.
pub(super) async fn read(
    session: &Session<'_>,
    table: &Table,
    sql: &Sql,
    request: &ReadRequest,
) -> Result<ReadBatch, StoreError> {
    match attempt(session, table, sql, request, true).await {
        // One row is enough for that. Which one it is shows when the rows are fetched.
        Err(error) if error.concerns_a_row() => attempt(session, table, sql, request, false).await,
        result => result,
    }
}

/// `values`: read more than numbers.
async fn attempt(
    session: &Session<'_>,
    table: &Table,
    sql: &Sql,
    request: &ReadRequest,
    values: bool,
) -> Result<ReadBatch, StoreError> {
    let numbers = Numbers::of(request);
    let statement = statement(sql, request, &numbers, values);
    // Both are made ready first: from here on, what is sent first is run first.
    let main = session.prepare(&statement.text, &statement.params).await?;
    let holders = session.prepare(&sql.holders, &Vec::new()).await?;
    let rows = rows(session, table, request, &main, statement.params);
    if !matches!(request.kind, ReadKind::Main { .. }) {
        return Ok(rows.await?.0);
    }
    // Pipelined right behind, on the same connection: the server starts the second statement after the first, so
    // the locks are seen after the rows' snapshot was taken, without a second round trip.
    let holders = async {
        session
            .rows(&holders, Vec::new())
            .await?
            .try_collect()
            .await
    };
    let (rows, holders): (_, Result<Vec<Row>, tokio_postgres::Error>) =
        future::join(rows, holders).await;
    let (mut batch, snapshot) = rows?;
    let mut answer =
        parse_snapshot(&snapshot.ok_or_else(|| StoreError::fatal("a read returned no snapshot"))?)?;
    for row in holders? {
        answer.holders.push(Holder {
            virtual_transaction: row.try_get(0)?,
            xid: row.try_get::<_, Option<i64>>(1)?.map(|xid| xid as u32),
        });
    }
    batch.holders = Some(answer);
    Ok(batch)
}

async fn rows(
    session: &Session<'_>,
    table: &Table,
    request: &ReadRequest,
    statement: &Prepared<'_>,
    params: Params<'_>,
) -> Result<(ReadBatch, Option<String>), StoreError> {
    let layout = Layout::new(table, request.max_event);
    let main = matches!(request.kind, ReadKind::Main { .. });
    let mut batch = ReadBatch::default();
    let mut snapshot = None;
    let mut bytes = 0;
    let mut stream = pin!(session.rows(statement, params).await?);
    while let Some(row) = stream.next().await {
        let row = row?;
        if main && snapshot.is_none() {
            snapshot = row.try_get::<_, Option<String>>(layout.note())?;
            if snapshot.is_some() {
                continue;
            }
        }
        if batch.cut {
            // Only the snapshot is still missing.
            continue;
        }
        let record = layout.record(&row)?;
        bytes += record.weight();
        if bytes > request.byte_limit && !batch.rows.is_empty() {
            batch.cut = true;
            if main && snapshot.is_none() {
                continue;
            }
            // Dropping the stream discards the rest as it arrives; memory stays bounded.
            break;
        }
        batch.rows.push(record);
    }
    batch.cut |= batch.rows.len() >= request.limit.max(1);
    Ok((batch, snapshot))
}

/// The source, then `xmin:xmax:xip,xip,...`, 64-bit ids.
fn parse_snapshot(text: &str) -> Result<Holders, StoreError> {
    let mut parts = text.splitn(4, ':');
    let parsed = (|| {
        let source = parts.next()?.parse().ok()?;
        let _oldest = parts.next()?;
        let next = parts.next()?.parse::<u64>().ok()?;
        let running = parts.next()?.split(',').filter(|xid| !xid.is_empty());
        let running: Option<Vec<u32>> = running
            .map(|xid| xid.parse::<u64>().ok().map(|xid| xid as u32))
            .collect();
        Some(Holders {
            holders: Vec::new(),
            in_progress: running?,
            next_xid: next as u32,
            source,
        })
    })();
    parsed.ok_or_else(|| StoreError::fatal(format!("cannot read the snapshot `{text}`")))
}

/// Where the columns are, and what came of each row.
pub(super) struct Layout<'a> {
    extra: &'a [Arc<str>],
    data: Option<Kind>,
    size: usize,
    max_event: usize,
}

const FIRST_TEXT: usize = 4;
const DATA: usize = FIRST_TEXT + TEXTS.len();
const CREATED_AT: usize = DATA + 2;
const EXPIRES_AT: usize = DATA + 3;
const EXTRA: usize = DATA + 4;

impl<'a> Layout<'a> {
    /// `max_event`: rows of more bytes are refused.
    pub(super) fn new(table: &'a Table, max_event: usize) -> Self {
        Self {
            extra: &table.extra,
            data: table.column(Field::Data).map(|column| column.kind),
            size: EXTRA + table.extra.len(),
            max_event,
        }
    }

    /// Where a note is, if the statement has one.
    pub(super) fn note(&self) -> usize {
        self.size + 3
    }

    pub(super) fn record(&self, row: &Row) -> Result<Record, StoreError> {
        let text = |field: usize| row.try_get::<_, Option<String>>(FIRST_TEXT + field);
        let counts: i64 = row.try_get::<_, Option<i64>>(self.size + 1)?.unwrap_or(0);
        let retry_in: Option<i64> = row.try_get(self.size + 2)?;
        let expires_in: Option<i64> = row.try_get(3)?;
        let time = |field: usize| -> Result<Option<Timestamp>, StoreError> {
            let at: Option<Instant> = row.try_get(field)?;
            Ok(at.and_then(|at| at.0))
        };
        let head = Record {
            seq: row.try_get(0)?,
            hash: row.try_get(1)?,
            keyed: row.try_get(2)?,
            attempts: (counts >> 32) as u32,
            crashes: counts as u32,
            published: retry_in == Some(PUBLISHED),
            retry_in: retry_in
                .map(|us| u64::try_from(us).map_or(Duration::MAX, Duration::from_micros)),
            expires_in: expires_in.map(|us| Duration::from_micros(us.max(0) as u64)),
            // A null id or type is the row's fault, not the table's: let it fail as an invalid event.
            id: text(0)?.unwrap_or_default(),
            event_type: text(1)?.unwrap_or_default(),
            key: text(4)?,
            content: self.content(row.try_get(self.size)?),
            created_at: time(CREATED_AT)?,
            ..Record::default()
        };
        if head.content != Content::Whole {
            return Ok(head);
        }
        let mut extra = Vec::with_capacity(self.extra.len());
        for (i, name) in self.extra.iter().enumerate() {
            extra.push((name.clone(), row.try_get(EXTRA + i)?));
        }
        let record = Record {
            source: text(2)?,
            subject: text(3)?,
            content_type: text(5)?,
            schema: text(6)?,
            destination: text(7)?,
            routing_key: text(8)?,
            extensions: text(9)?,
            headers: text(10)?,
            data: self.payload(row)?,
            expires_at: time(EXPIRES_AT)?,
            extra,
            ..head
        };
        Ok(self.bounded(record))
    }

    /// No value is too long by itself, but together they may be.
    fn bounded(&self, record: Record) -> Record {
        let bytes = record.bytes();
        if bytes <= self.max_event {
            return record;
        }
        Record {
            seq: record.seq,
            hash: record.hash,
            keyed: record.keyed,
            attempts: record.attempts,
            crashes: record.crashes,
            retry_in: record.retry_in,
            expires_in: record.expires_in,
            id: record.id,
            event_type: record.event_type,
            key: record.key,
            created_at: record.created_at,
            content: Content::of_size(bytes as u64, self.max_event),
            ..Record::default()
        }
    }

    /// What came of a row. No size: it came whole.
    fn content(&self, size: Option<i64>) -> Content {
        match size {
            None => Content::Whole,
            Some(ODD_ID) => Content::refused(
                ReasonCode::Unreadable,
                format!("its id has more than {ID_MAX} bytes, or is not valid UTF-8"),
            ),
            // JSON too large, as stored, to be rendered.
            Some(stored) if -stored > stored_max(self.max_event) => Content::refused(
                ReasonCode::TooLarge,
                format!(
                    "the row's JSON takes {} bytes as stored, and OUTRIGGER_RELAY_MAX_EVENT_SIZE allows {}; it was not read",
                    stored.unsigned_abs(),
                    self.max_event
                ),
            ),
            // Not rendered, so its size is not known: no less than this, mostly.
            Some(stored) if stored < 0 => Content::Left {
                bytes: stored.unsigned_abs(),
            },
            Some(size) => Content::of_size(size.unsigned_abs(), self.max_event),
        }
    }

    /// The payload, from whichever of the two columns is set.
    fn payload(&self, row: &Row) -> Result<Data, StoreError> {
        let payload: Option<Payload> = match row.try_get(DATA + 1)? {
            None => row.try_get(DATA)?,
            binary => binary,
        };
        Ok(match payload.map_or(Data::None, |payload| payload.0) {
            // JSON comes as the text that it is.
            Data::Text(text) if matches!(self.data, Some(Kind::Json | Kind::Jsonb)) => {
                Data::Json(text)
            }
            data => data,
        })
    }
}

/// A payload as it comes: bytes or text.
struct Payload(Data);

impl<'a> FromSql<'a> for Payload {
    fn from_sql(kind: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        let bytes = Bytes::copy_from_slice(raw);
        Ok(Self(match *kind {
            Type::BYTEA => Data::Binary(bytes),
            _ => Data::Text(bytes),
        }))
    }

    fn accepts(kind: &Type) -> bool {
        matches!(*kind, Type::BYTEA | Type::TEXT)
    }
}

/// A `timestamptz`. Infinite ones and those beyond the year 9999 have no CloudEvents form and become `None`: one odd
/// row must not make the whole table unreadable.
struct Instant(Option<Timestamp>);

impl<'a> FromSql<'a> for Instant {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        const EPOCH_2000: i64 = 946_684_800_000_000;
        let since_2000 = i64::from_be_bytes(raw.try_into()?);
        let micros = since_2000.checked_add(EPOCH_2000);
        Ok(Self(
            micros.and_then(|us| Timestamp::from_microsecond(us).ok()),
        ))
    }

    fn accepts(kind: &Type) -> bool {
        *kind == Type::TIMESTAMPTZ
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_are_read_by_their_low_bits() {
        let holders = parse_snapshot("5:10:20:10,14").unwrap();
        assert_eq!((holders.in_progress, holders.next_xid), (vec![10, 14], 20));
        let wrapped = parse_snapshot("5:4294967290:4294967301:4294967297").unwrap();
        assert_eq!((wrapped.in_progress, wrapped.next_xid), (vec![1], 5));
        assert_eq!(
            parse_snapshot("5:7:7:").unwrap().in_progress,
            Vec::<u32>::new()
        );
        assert!(parse_snapshot("5:7").is_err());
    }
}
