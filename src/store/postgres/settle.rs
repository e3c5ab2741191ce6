//! Finishing rows.

use std::time::{Duration, Instant};

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Row, Transaction};

use super::error::StoreError;
use super::session::{Params, Session, begin};
use super::sql::Sql;
use crate::store::{Settle, Settled, Unsettled};

/// How long a settle waits for somebody's lock before rows are told apart.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long a statement that is tried with care waits for a lock.
const LOCK_TIMEOUT: &str = "set local lock_timeout = '100ms'";
/// How long rows are told apart; the rest is tried again later.
const SEARCH: Duration = Duration::from_secs(2);
/// So many rows that failed alone, and none that did not: the others need not be tried.
const HOPELESS: usize = 3;

/// The rows, as the statements want them.
struct Rows<'a> {
    seqs: Vec<i64>,
    ids: Vec<&'a str>,
}

impl<'a> Rows<'a> {
    fn new(rows: &'a [Settled]) -> Self {
        Self {
            seqs: rows.iter().map(|row| row.seq).collect(),
            ids: rows.iter().map(|row| row.id.as_str()).collect(),
        }
    }

    fn params(&self) -> Params<'_> {
        vec![
            (&self.seqs, Type::INT8_ARRAY),
            (&self.ids, Type::TEXT_ARRAY),
        ]
    }
}

/// What a statement that settles rows did.
#[derive(Debug, Clone, Copy)]
pub(super) struct Done {
    /// Rows it settled: fewer than requested if someone else had already settled some.
    pub(super) rows: u64,
    /// Triggers ran afterwards and may have undone it.
    pub(super) doubtful: bool,
}

/// Marks or deletes rows, removes their failure records and records those that expired: one statement, so one
/// transaction. Not fenced: a confirmed event is a fact, no matter who reports it. Fails after a moment if another session
/// holds a lock on a row; `limit` is the caller's time limit for the whole call.
pub(super) async fn settle(
    session: &Session<'_>,
    sql: &Sql,
    settle: &Settle,
    limit: Duration,
) -> Result<Done, StoreError> {
    let rows = Rows::new(&settle.rows);
    let mut params = rows.params();
    let patience = PATIENCE.min(limit / 2);
    let text = if !settle.expired.is_empty() {
        params.push((&settle.failed_before, Type::INT8_ARRAY));
        params.push((&settle.expired, Type::INT8_ARRAY));
        sql.settle_with_expired(patience)
    } else if !settle.failed_before.is_empty() {
        params.push((&settle.failed_before, Type::INT8_ARRAY));
        sql.settle_with_failures(patience)
    } else {
        sql.settle(patience)
    };
    let answer = session.query(&text, params).await?;
    let Some(row) = answer.first() else {
        // A rule replaced the statement.
        return Ok(Done {
            rows: 0,
            doubtful: true,
        });
    };
    let count: i64 = row.try_get(0)?;
    Ok(Done {
        rows: count.max(0) as u64,
        doubtful: row.try_get(1)?,
    })
}

/// Those of the rows that are still pending, after a statement that was to settle them.
pub(super) async fn without_effect(
    client: &Client,
    sql: &Sql,
    settle: &Settle,
) -> Result<Vec<Unsettled>, StoreError> {
    let rows = Rows::new(&settle.rows);
    let pending = numbers(
        client
            .query_typed(&sql.still_pending(), &rows.params())
            .await?,
    )?;
    Ok(unsettled(pending, &no_effect(sql)))
}

fn numbers(rows: Vec<Row>) -> Result<Vec<i64>, StoreError> {
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

fn unsettled(seqs: Vec<i64>, reason: &str) -> Vec<Unsettled> {
    let reason = reason.to_owned();
    seqs.into_iter()
        .map(|seq| Unsettled {
            seq,
            reason: reason.clone(),
        })
        .collect()
}

pub(super) fn no_effect(sql: &Sql) -> String {
    let what = sql.settle_command();
    let done = match sql.marks {
        true => "the row is still unmarked",
        false => "the row is still there",
    };
    format!(
        "the {what} had no effect, {done}; look for a trigger, a rule or a row-level security policy on {what} of {}",
        sql.table
    )
}

/// Settles what can be settled and finds out which rows cannot, and why. Waits for nobody's lock. An error means that the
/// database is out of reach: rows settled until then are settled.
pub(super) async fn carefully(
    client: &mut Client,
    sql: &Sql,
    settle: &Settle,
) -> Result<Vec<Unsettled>, StoreError> {
    let until = Instant::now() + SEARCH;
    let all = &settle.rows[..];
    let mut found = Vec::new();
    let (mut settled, mut alone) = (0, 0);
    let mut groups = vec![all];
    while let Some(group) = groups.pop() {
        let error = match attempt(client, sql, group, &settle.expired).await {
            Ok(stuck) => {
                settled += group.len() - stuck.len();
                found.extend(stuck);
                continue;
            }
            Err(error) if error.is_outage() => return Err(error),
            Err(error) => error,
        };
        alone += usize::from(group.len() == 1);
        let hopeless = settled == 0 && alone >= HOPELESS;
        if group.len() == 1 || hopeless || Instant::now() > until {
            let seqs = group.iter().map(|row| row.seq).collect();
            found.extend(unsettled(
                seqs,
                &format!("the database refuses it: {error}"),
            ));
            continue;
        }
        let (first, second) = group.split_at(group.len() / 2);
        groups.extend([second, first]);
        if group.len() == all.len() {
            // One from the middle and one from the end tell whether it is all of them.
            groups.extend([&second[..1], &second[second.len() - 1..]]);
        }
    }
    found.sort_unstable_by_key(|row| row.seq);
    found.dedup_by_key(|row| row.seq);
    Ok(found)
}

/// Settles these rows, all but those that somebody else has locked or that the database leaves as they are.
async fn attempt(
    client: &mut Client,
    sql: &Sql,
    group: &[Settled],
    expired: &[i64],
) -> Result<Vec<Unsettled>, StoreError> {
    let rows = Rows::new(group);
    let transaction = begin(client).await?;
    transaction.batch_execute(LOCK_TIMEOUT).await?;
    let mut free = rows.seqs.clone();
    if sql.marks {
        // Who deletes has not always the privilege to lock. Then a locked row fails by the time limit.
        let text = sql.lock_pending();
        free = numbers(transaction.query_typed(&text, &rows.params()).await?)?;
    }
    let expired: Vec<i64> = free
        .iter()
        .copied()
        .filter(|seq| expired.contains(seq))
        .collect();
    if !expired.is_empty() {
        // Also of those that stay pending: they are settled later, as the published ones are.
        let params: Params<'_> = vec![(&expired, Type::INT8_ARRAY), (&rows.ids, Type::TEXT_ARRAY)];
        transaction
            .execute_typed(&sql.record_expired(), &params)
            .await?;
    }
    let params: Params<'_> = vec![(&free, Type::INT8_ARRAY), (&rows.ids, Type::TEXT_ARRAY)];
    transaction
        .execute_typed(&sql.settle_plainly(), &params)
        .await?;
    // Fire deferred triggers now, not at the commit.
    transaction
        .batch_execute("set constraints all immediate")
        .await?;
    transaction
        .execute_typed(&sql.clear_settled(), &rows.params())
        .await?;
    let text = sql.still_pending();
    let pending = numbers(transaction.query_typed(&text, &rows.params()).await?)?;
    let locked: Vec<i64> = pending
        .iter()
        .copied()
        .filter(|seq| !free.contains(seq))
        .collect();
    let reason = match locked.first() {
        Some(seq) => holder(&transaction, sql, *seq).await?,
        None => String::new(),
    };
    transaction.commit().await?;
    let left: Vec<i64> = pending
        .into_iter()
        .filter(|seq| !locked.contains(seq))
        .collect();
    let mut stuck = unsettled(locked, &reason);
    stuck.extend(unsettled(left, &no_effect(sql)));
    Ok(stuck)
}

/// Who has this row locked, as far as that can be seen.
async fn holder(transaction: &Transaction<'_>, sql: &Sql, seq: i64) -> Result<String, StoreError> {
    let text = format!(
        "select string_agg(distinct l.pid::text, ', ') from {} o join pg_locks l \
         on l.locktype = 'transactionid' and l.granted and l.transactionid = o.xmax where {} = $1",
        sql.table, sql.seq
    );
    let row = transaction
        .query_typed_one(&text, &[(&seq, Type::INT8)])
        .await?;
    Ok(match row.try_get::<_, Option<String>>(0)? {
        Some(processes) => format!(
            "another session has the row locked: server process {processes} (see pg_stat_activity); it is settled when the lock goes"
        ),
        None => "another session has the row locked, or a row-level security policy forbids to change it".into(),
    })
}
