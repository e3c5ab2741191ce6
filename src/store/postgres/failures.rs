//! Failure records: written under a fence, loaded at takeover; and parked keys.

use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::error::StoreError;
use super::session::Params;
use super::sql::Sql;
use crate::store::{Failing, Failure, FailureState, Loaded, Park, Partitions};

/// Longest stored error text, in characters.
const ERROR_MAX: usize = 2000;

/// Stores failures of rows whose partition the replica owns, and returns the `seq` of those stored. The owner's rows
/// are share-locked meanwhile, so a takeover waits for the write or the write sees the takeover.
pub(super) async fn record(
    client: &Client,
    sql: &Sql,
    failures: &[Failure],
    replica: Uuid,
) -> Result<Vec<i64>, StoreError> {
    if failures.is_empty() {
        return Ok(Vec::new());
    }
    fn column<'a, T>(failures: &'a [Failure], get: impl Fn(&'a Failure) -> T) -> Vec<T> {
        failures.iter().map(get).collect()
    }
    let seqs = column(failures, |f| f.seq);
    let hashes = column(failures, |f| f.hash);
    let keyed = column(failures, |f| f.keyed);
    let ids = column(failures, |f| f.event_id.as_str());
    let types = column(failures, |f| f.event_type.as_str());
    let keys = column(failures, |f| f.key.as_deref());
    let states = column(failures, |f| f.state.as_str());
    let attempts = column(failures, |f| f.attempts.min(i32::MAX as u32) as i32);
    let crashes = column(failures, |f| f.crashes.min(i32::MAX as u32) as i32);
    let reasons = column(failures, |f| f.reason.as_ref().map(|r| r.code.as_str()));
    let errors = column(failures, |f| f.reason.as_ref().map(|r| storable(&r.detail)));
    let waits = column(failures, |f| {
        f.retry_after.map(|wait| wait.as_micros() as f64)
    });
    // The number may belong to another event by now. (Without an order column it is made of the id.) If it did before, that
    // event is gone, and its record gives way.
    let same = if sql.has_order {
        format!(
            "and exists (select from {} o where {} = i.seq and {} = i.id)",
            sql.table, sql.seq, sql.id_text
        )
    } else {
        String::new()
    };
    let text = format!(
        "with owned as materialized (select partition from outrigger.partitions \
           where outbox = {outbox} and owner = $1 order by partition for share), \
         layout as (select partitions::int8 as n from outrigger.outboxes where outbox = {outbox}) \
         insert into outrigger.failures as f (outbox, seq, hash, keyed, event_id, event_type, key, state, attempts, crashes, \
           reason, error, next_attempt_at) \
         select {outbox}, i.seq, i.hash, i.keyed, i.id, i.type, i.key, i.state, i.attempts, i.crashes, i.reason, i.error, \
           clock_timestamp() + i.wait * interval '1 microsecond' \
         from unnest($2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) \
           as i (seq, hash, keyed, id, type, key, state, attempts, crashes, reason, error, wait), layout \
         where ((i.hash % n) + n) % n in (select partition from owned) {same} \
         on conflict (outbox, seq) do update set hash = excluded.hash, keyed = excluded.keyed, event_id = excluded.event_id, \
           event_type = excluded.event_type, key = excluded.key, state = excluded.state, attempts = excluded.attempts, \
           crashes = excluded.crashes, reason = excluded.reason, error = excluded.error, \
           first_failed_at = case when f.event_id = excluded.event_id then f.first_failed_at else clock_timestamp() end, \
           last_failed_at = clock_timestamp(), next_attempt_at = excluded.next_attempt_at \
         returning f.seq",
        outbox = sql.outbox
    );
    let rows = client
        .query_typed(
            &text,
            &[
                (&replica, Type::UUID),
                (&seqs, Type::INT8_ARRAY),
                (&hashes, Type::INT8_ARRAY),
                (&keyed, Type::BOOL_ARRAY),
                (&ids, Type::TEXT_ARRAY),
                (&types, Type::TEXT_ARRAY),
                (&keys, Type::TEXT_ARRAY),
                (&states, Type::TEXT_ARRAY),
                (&attempts, Type::INT4_ARRAY),
                (&crashes, Type::INT4_ARRAY),
                (&reasons, Type::TEXT_ARRAY),
                (&errors, Type::TEXT_ARRAY),
                (&waits, Type::FLOAT8_ARRAY),
            ],
        )
        .await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// Text as Postgres can hold it (no NUL), and not without end.
fn storable(text: &str) -> String {
    text.chars()
        .filter(|c| *c != '\0')
        .take(ERROR_MAX)
        .collect()
}

/// Removes records of rows that are no longer pending, and loads those that hold keys up, oldest first. If there are more
/// than `limit`, the keys of the others are parked.
///
/// A record outlives its row when somebody deletes or marks the row by hand, empties the table or makes it anew, or when
/// a replica that lost its partitions settles late. Nothing else would ever end the wait for such a row. Dead ones
/// hold nobody up and stay as long as their row is there.
pub(super) async fn load(
    client: &Client,
    sql: &Sql,
    partitions: &Partitions,
    (limit, released): (usize, usize),
) -> Result<Loaded, StoreError> {
    let (owned, count) = match partitions {
        Partitions::All => (vec![0], 1),
        Partitions::Some { owned, count } => {
            (owned.iter().map(|p| i64::from(*p)).collect(), *count)
        }
    };
    let ours = |hash: &str| format!("and {}", Sql::in_partitions(hash, count, "$1"));
    let filter = ours("f.hash");
    let params: Params<'_> = vec![(&owned, Type::INT8_ARRAY)];
    let outbox = &sql.outbox;
    let holds = format!("f.outbox = {outbox} and f.state in ('retrying', 'blocked')");
    let text = format!(
        "with over as (delete from outrigger.failures f where f.outbox = {outbox} {filter} \
           and not exists (select from {table} o where {same} and (f.state = 'dead' or {pending})) returning f.seq) \
         select f.seq, f.hash, f.keyed, f.state, \
           greatest(0, (extract(epoch from (f.next_attempt_at - clock_timestamp())) * 1000000)::int8) as retry_in \
         from outrigger.failures f where {holds} {filter} \
         and f.seq not in (select seq from over) and not (f.keyed and exists ( \
           select from outrigger.parked p where p.outbox = {outbox} and p.hash = f.hash)) order by f.seq limit {limit}",
        table = sql.table,
        same = sql.failure_join,
        pending = sql.pending,
    );
    let rows = client.query_typed(&text, &params).await?;
    let failing: Vec<Failing> = rows
        .iter()
        .map(|row| {
            Ok(Failing {
                seq: row.try_get(0)?,
                hash: row.try_get(1)?,
                keyed: row.try_get(2)?,
                state: state(row.try_get(3)?)?,
                retry_in: Duration::from_micros(
                    row.try_get::<_, Option<i64>>(4)?.unwrap_or(0).max(0) as u64,
                ),
            })
        })
        .collect::<Result<_, StoreError>>()?;
    let cut = failing.len() >= limit;
    if cut {
        let loaded: Vec<i64> = failing.iter().map(|row| row.hash).collect();
        let text = format!(
            "insert into outrigger.parked (outbox, hash) select distinct f.outbox, f.hash from outrigger.failures f \
             where {holds} and f.keyed {filter} and f.hash not in (select unnest($2)) on conflict do nothing"
        );
        let params: Params<'_> = vec![(&owned, Type::INT8_ARRAY), (&loaded, Type::INT8_ARRAY)];
        client.execute_typed(&text, &params).await?;
        // Rows of a key that is neither loaded nor parked could overtake its failed row.
        let text = format!(
            "select exists (select from outrigger.failures f where {holds} and f.keyed {filter} \
               and f.hash not in (select unnest($2)) and not exists ( \
                 select from outrigger.parked p where p.outbox = {outbox} and p.hash = f.hash))"
        );
        let row = client.query_typed_one(&text, &params).await?;
        if row.try_get(0)? {
            return Err(not_parked("INSERT"));
        }
    }
    let text = format!(
        "select p.hash from outrigger.parked p where p.outbox = {outbox} {} \
         and not exists (select from outrigger.failures f where {holds} and f.hash = p.hash) \
         order by p.hash limit {} + 1",
        ours("p.hash"),
        released
    );
    let rows = client.query_typed(&text, &params).await?;
    let mut without: Vec<i64> = rows
        .iter()
        .map(|row| Ok(row.try_get(0)?))
        .collect::<Result<_, StoreError>>()?;
    let more = without.len() > released;
    without.truncate(released);
    Ok(Loaded {
        failing,
        cut,
        released: without,
        more,
    })
}

fn not_parked(what: &str) -> StoreError {
    StoreError::unavailable(format!(
        "the {what} on outrigger.parked had no effect; check that table for triggers and rules"
    ))
}

/// Parks keys and unparks others, those whose partition the replica owns, and returns them. The owner's rows are
/// share-locked meanwhile: a late statement of an earlier owner unparks nothing. Fails if the table
/// does not reflect the change afterwards.
pub(super) async fn park(
    client: &Client,
    sql: &Sql,
    park: &Park,
    replica: Uuid,
) -> Result<Vec<i64>, StoreError> {
    let text = format!(
        "with owned as materialized (select partition from outrigger.partitions \
           where outbox = {outbox} and owner = $1 order by partition for share), \
         layout as (select partitions::int8 as n from outrigger.outboxes where outbox = {outbox}), \
         ours as materialized (select k.hash, k.park from (select unnest($2) as hash, true as park \
             union all select unnest($3), false) k, layout \
           where ((k.hash % n) + n) % n in (select partition from owned)), \
         before as materialized (select p.hash from outrigger.parked p join ours on p.outbox = {outbox} and p.hash = ours.hash), \
         parked as (insert into outrigger.parked (outbox, hash) select {outbox}, hash from ours where park \
           on conflict do nothing returning hash), \
         unparked as (delete from outrigger.parked p using ours where p.outbox = {outbox} and p.hash = ours.hash \
           and not ours.park returning p.hash) \
         select hash, park, case when park then hash in (select hash from before) or hash in (select hash from parked) \
           else hash not in (select hash from before) or hash in (select hash from unparked) end as done from ours",
        outbox = sql.outbox
    );
    let params: Params<'_> = vec![
        (&replica, Type::UUID),
        (&park.park, Type::INT8_ARRAY),
        (&park.unpark, Type::INT8_ARRAY),
    ];
    let rows = client.query_typed(&text, &params).await?;
    let mut keys = Vec::with_capacity(rows.len());
    for row in rows {
        let done: bool = row.try_get("done")?;
        if !done {
            let park: bool = row.try_get("park")?;
            return Err(not_parked(if park { "INSERT" } else { "DELETE" }));
        }
        keys.push(row.try_get("hash")?);
    }
    Ok(keys)
}

pub(super) fn state(text: &str) -> Result<FailureState, StoreError> {
    match text {
        "retrying" => Ok(FailureState::Retrying),
        "blocked" => Ok(FailureState::Blocked),
        "dead" => Ok(FailureState::Dead),
        "suspect" => Ok(FailureState::Suspect),
        "unsettled" => Ok(FailureState::Unsettled),
        "discarded" => Ok(FailureState::Discarded),
        "expired" => Ok(FailureState::Expired),
        other => Err(StoreError::schema(format!(
            "outrigger.failures holds the unknown state `{other}`: upgrade the binary"
        ))),
    }
}
