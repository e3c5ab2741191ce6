//! Reading the rest of rows that were read without their payload, and finding the row that cannot be read.

use std::collections::VecDeque;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use tokio_postgres::types::Type;

use super::error::StoreError;
use super::inspect::Table;
use super::mapping::Field;
use super::read::{Layout, with_note};
use super::select::{Part, Value, stored_max};
use super::session::{Params, Session};
use super::sql::Sql;
use crate::error::ReasonCode;
use crate::event::{Content, Record};
use crate::store::{FetchBatch, FetchRequest, Settled};

/// After this long, what is there is handed out.
const PATIENCE: Duration = Duration::from_secs(1);

/// JSON that takes more bytes as stored is rendered for its row alone. It may be many times as long, and take seconds; in a
/// group it would be rendered again for each half that is asked for.
const STORED_TOGETHER: usize = 1 << 20;

/// Fetches those of the rows for which `filter` holds. If the server refuses, one of them is to blame: halves are asked for, and halves of those.
pub(super) async fn fetch(
    session: &Session<'_>,
    table: &Table,
    sql: &Sql,
    request: &FetchRequest,
    filter: &str,
) -> Result<FetchBatch, StoreError> {
    let began = Instant::now();
    let mut batch = FetchBatch::default();
    let mut bytes = 0;
    let mut groups = VecDeque::from([request.rows.as_slice()]);
    while let Some(group) = groups.pop_front() {
        let answered = !batch.rows.is_empty() || !batch.gone.is_empty();
        if answered && (bytes >= request.byte_limit || began.elapsed() > PATIENCE) {
            break;
        }
        let left = request.byte_limit.saturating_sub(bytes);
        match ask(session, table, sql, request, (group, filter), left).await {
            Ok((answer, alone)) => {
                groups.extend(alone);
                bytes += answer.rows.iter().map(Record::weight).sum::<usize>();
                batch.rows.extend(answer.rows);
                batch.gone.extend(answer.gone);
            }
            Err(error) if error.concerns_a_row() => match group {
                [row] => batch
                    .rows
                    .push(refused(session, sql, row, request, &error).await?),
                _ => {
                    let (first, second) = group.split_at(group.len() / 2);
                    groups.push_front(second);
                    groups.push_front(first);
                }
            },
            Err(error) => return Err(error),
        }
    }
    Ok(batch)
}

/// Also returns the rows that must be asked for alone.
async fn ask<'a>(
    session: &Session<'_>,
    table: &Table,
    sql: &Sql,
    request: &FetchRequest,
    (group, filter): (&'a [Settled], &str),
    byte_limit: usize,
) -> Result<(FetchBatch, Vec<&'a [Settled]>), StoreError> {
    let seqs: Vec<i64> = group.iter().map(|row| row.seq).collect();
    let whole = i64::try_from(request.max_event).unwrap_or(i64::MAX);
    let mut stored = stored_max(request.max_event);
    if group.len() > 1 {
        stored = stored.min(STORED_TOGETHER as i64);
    }
    let part = Part::Sized {
        whole: "$2",
        stored: "$3",
        together: true,
    };
    let rows = sql.select.of(
        part,
        &[("null::int8", "counts"), ("null::int8", "retry")],
        &format!(
            "from {} o where {} = any($1) and {}",
            sql.table, sql.seq, filter
        ),
    );
    let text = with_note(sql, &format!("({})::text", sql.source), &rows);
    let params: Params<'_> = vec![
        (&seqs, Type::INT8_ARRAY),
        (&whole, Type::INT8),
        (&stored, Type::INT8),
    ];
    let statement = session.prepare(&text, &params).await?;
    let layout = Layout::new(table, request.max_event);
    let mut stream = pin!(session.rows(&statement, params).await?);
    let mut batch = FetchBatch::default();
    let (mut bytes, mut cut, mut noted) = (0, false, false);
    let mut alone = Vec::new();
    while let Some(row) = stream.next().await {
        let row = row?;
        if !noted {
            noted = true;
            let source: Option<String> = row.try_get(layout.note())?;
            let source = source.and_then(|source| source.parse().ok());
            if request.source.is_some() && request.source != source {
                return Err(StoreError::unavailable(
                    "another server or table answers than the one that the rows were read from",
                ));
            }
            continue;
        }
        let record = layout.record(&row)?;
        if record.content.is_left() {
            let of = |row: &Settled| row.seq == record.seq && row.id == record.id;
            alone.extend(group.iter().position(of).map(|at| &group[at..=at]));
            continue;
        }
        bytes += record.weight();
        if bytes > byte_limit && !batch.rows.is_empty() {
            cut = true;
            // Dropping the stream discards the rest as it arrives.
            break;
        }
        batch.rows.push(record);
    }
    if !cut {
        let came = |row: &&Settled| {
            let same = |record: &Record| record.seq == row.seq && record.id == row.id;
            !batch.rows.iter().any(same) && !alone.iter().any(|alone| alone.contains(row))
        };
        batch.gone = group.iter().filter(came).cloned().collect();
    }
    Ok((batch, alone))
}

/// A row that cannot be read: which column is to blame, and what can be said about the event all the same.
async fn refused(
    session: &Session<'_>,
    sql: &Sql,
    row: &Settled,
    request: &FetchRequest,
    error: &StoreError,
) -> Result<Record, StoreError> {
    let mut record = Record {
        seq: row.seq,
        id: row.id.clone(),
        ..Record::default()
    };
    let mut culprit = None;
    for part in &sql.select.parts {
        let head = part.is(Field::Type) || part.is(Field::Key);
        if culprit.is_some() && !head {
            continue;
        }
        match value(session, sql, row, part, request.max_event).await {
            Ok(text) if part.is(Field::Type) => record.event_type = text.unwrap_or_default(),
            Ok(text) if part.is(Field::Key) => record.key = text,
            Ok(_) => {}
            Err(error) if error.concerns_a_row() => {
                culprit.get_or_insert((part.column.as_str(), error));
            }
            Err(error) => return Err(error),
        }
    }
    let what = culprit.as_ref().map_or("the row", |_| "column");
    let column = culprit
        .as_ref()
        .map_or_else(String::new, |(column, _)| format!(" `{column}`"));
    let error = culprit.as_ref().map_or(error, |(_, error)| error);
    let mut content = Content::refused(
        ReasonCode::Unreadable,
        format!("{what}{column} cannot be read: {error}"),
    );
    if let Content::Refused(refusal) = &mut content {
        refusal.may_pass = !error.is_lasting();
    }
    record.content = content;
    Ok(record)
}

/// Reads one value of one row. Returned only if it is short text.
async fn value(
    session: &Session<'_>,
    sql: &Sql,
    row: &Settled,
    part: &Value,
    max: usize,
) -> Result<Option<String>, StoreError> {
    let rendered = &part.rendered;
    let short = part.is(Field::Type) || part.is(Field::Key);
    let selected = match short {
        true => format!("left({rendered}, 256)"),
        false => format!("case when octet_length({rendered}) <= {max} then {rendered} end"),
    };
    let text = format!(
        "select {selected} from {} o where {} = $1",
        sql.table, sql.seq
    );
    let params: Params<'_> = vec![(&row.seq, Type::INT8)];
    let rows = session.client().query_typed(&text, &params).await?;
    match rows.first() {
        Some(row) if short => Ok(row.try_get(0)?),
        _ => Ok(None),
    }
}
