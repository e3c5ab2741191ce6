//! Replicas and the partitions they own: leases on the database's clock.
//!
//! A replica's row carries its lease; a partition's row names its owner and is written only when that changes.
//! What keeps two replicas from owning one partition:
//!
//! * A claim locks the partition rows first, so of two claimers one waits and then sees the other's result.
//! * It then locks the dead owner's own row and looks again: a heartbeat in progress is waited for and wins.
//! * An owner counts as dead only when its lease is over *and* the claimer has itself been visible for a whole lease
//!   time of that owner. So a replica that is alone may renew by reading: as long as it sees nobody else,
//!   nobody else can have been visible for that long.
//! * The database's clock may be set back, or another server's be behind. A lease further ahead than two lease times was
//!   given before that and counts as over, and a replica that finds its own lease further ahead than one has been visible
//!   from now on only: so every owner has a whole lease time to renew by the new clock.
//! * Replicas that send events to different places are kept apart by an order that all see alike, the rank of an
//!   identity. Registrations of one outbox wait for each other and for claims, so ranks never tie. A claim is refused
//!   while a living replica of another identity has a lower rank, and it removes the dead ones among these: if one of
//!   them wakes up it registers again, as the newcomer.

use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::error::StoreError;
use super::inspect::Table;
use super::mapping::Field;
use super::security;
use super::session::{Session, begin};
use super::sql::{NOW_MS, SERVER_START, Sql};
use crate::store::configuration::Configuration;
use crate::store::{Claimed, PartitionRow, ReplicaRow, Tick, Told};

/// The answer to a registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registered {
    /// This replica's id, new at each registration.
    pub replica: Uuid,
    /// Number of partitions as stored, which wins over the one wanted.
    pub partitions: i32,
}

/// An owner that dies this soon after it took a partition may have died of one of its rows. One that
/// had been working for longer was hardly killed by what it had already published.
const SHORT: &str = "2 minutes";

/// Rows of replicas that own nothing and whose lease has been over for this many lease times are swept away.
const GRACE: i32 = 10;

/// When the lease of replica `r` is over. One further ahead than twice its time was given by a clock that has been set
/// back. Twice, since a replica notices a step that is longer than the time since its own last heartbeat, not a shorter one.
pub(super) const LEASE_UNTIL: &str = "(case when r.lease_until > clock_timestamp() + 2 * r.lease_ttl \
                                      then '-infinity' else r.lease_until end)";

/// Most parked keys that are counted.
const PARKED_COUNT_MAX: u32 = 100_000;

/// Whether replica `r` may live, for all that `me` can know: its lease lasts, or `me` has not been there for long enough
/// to be seen by one that is alone and does not renew.
pub(super) fn lives() -> String {
    format!(
        "greatest({LEASE_UNTIL}, coalesce(me.visible_since + r.lease_ttl, 'infinity')) >= clock_timestamp()"
    )
}

/// What a sign of life writes. With a lease of its own further ahead than any it could have been given, the clock was set
/// back: `me` has been visible from now on. `least()` ignores nulls.
const SIGN_OF_LIFE: &str = "lease_until = clock_timestamp() + lease_ttl, \
                            visible_since = case when lease_until > clock_timestamp() + lease_ttl then clock_timestamp() \
                              else least(visible_since, clock_timestamp()) end";

fn stale(outbox: &str) -> String {
    format!(
        "delete from outrigger.replicas r where r.outbox = {outbox} \
         and {LEASE_UNTIL} + r.lease_ttl * {GRACE} < clock_timestamp() \
         and not exists (select from outrigger.partitions p where p.outbox = r.outbox and p.owner = r.replica)"
    )
}

pub(super) async fn register(
    client: &mut Client,
    sql: &Sql,
    name: &str,
    lease_ttl: Duration,
    wanted: i32,
    configuration: &Configuration,
) -> Result<Registered, StoreError> {
    let outbox = &sql.outbox;
    let transaction = begin(client).await?;
    // Also serialises registrations: the row stays locked until the partitions are there, and the rank.
    let row = transaction
        .query_typed_opt(
            &format!(
                "update outrigger.outboxes set partitions = coalesce(partitions, $1) where outbox = {outbox} \
                 returning partitions"
            ),
            &[(&wanted, Type::INT4)],
        )
        .await?;
    let Some(row) = row else {
        return Err(StoreError::schema(format!(
            "outbox {} is not registered: run `outrigger migrate`",
            sql.table
        )));
    };
    let partitions: i32 = row.try_get(0)?;
    transaction
        .execute_typed(
            &format!(
                "insert into outrigger.partitions (outbox, partition) \
                 select {outbox}, n from generate_series(0, $1 - 1) n on conflict do nothing"
            ),
            &[(&partitions, Type::INT4)],
        )
        .await?;
    transaction.execute_typed(&stale(outbox), &[]).await?;
    let replica = Uuid::new_v4();
    let micros = lease_ttl.as_micros() as f64;
    transaction
        .execute_typed(
            &format!(
                "with there as (select r.rank, r.identity, r.lease_until >= clock_timestamp() or exists \
                   (select from outrigger.partitions p where p.outbox = r.outbox and p.owner = r.replica) as counts \
                   from outrigger.replicas r where r.outbox = {outbox}) \
                 insert into outrigger.replicas \
                   (outbox, replica, name, version, lease_ttl, lease_until, configuration, identity, rank) \
                 select {outbox}, $1, $2, $3, ttl, clock_timestamp() + ttl, $5, $6, \
                   coalesce((select min(rank) from there where counts and identity = $6), \
                            (select max(rank) + 1 from there), 1) \
                 from (select $4 * interval '1 microsecond' as ttl) t"
            ),
            &[
                (&replica, Type::UUID),
                (&name, Type::TEXT),
                (&env!("CARGO_PKG_VERSION"), Type::TEXT),
                (&micros, Type::FLOAT8),
                (&configuration.to_json(), Type::JSONB),
                (&configuration.identity(), Type::TEXT),
            ],
        )
        .await?;
    transaction.commit().await?;
    Ok(Registered {
        replica,
        partitions,
    })
}

/// The tick, and whether row-level security applies to this role.
pub(super) async fn tick(
    session: &Session<'_>,
    table: &Table,
    sql: &Sql,
    replica: Uuid,
    beat: Option<&Told>,
) -> Result<(Tick, bool), StoreError> {
    if let Some(told) = beat {
        let ago = told.published_ago.map(|ago| ago.as_micros() as f64);
        // A transaction of its own, finished before the read below takes its snapshot. So a claim that got hold of
        // our row before this heartbeat has committed by then and is visible in the read; and any claim after it
        // sees the new lease. With both in one statement, the read could miss a claim that the heartbeat waited for.
        session
            .execute(
                &format!(
                    "update outrigger.replicas set {SIGN_OF_LIFE}, \
                     waits_for = $2, rate = $3, published_at = clock_timestamp() - $4 * interval '1 microsecond' \
                     where outbox = {} and replica = $1",
                    sql.outbox
                ),
                vec![
                    (&replica, Type::UUID),
                    (&told.waits_for, Type::TEXT),
                    (&told.rate, Type::FLOAT8),
                    (&ago, Type::FLOAT8),
                ],
            )
            .await?;
    }
    let rows = session
        .query(&state(table, sql), vec![(&replica, Type::UUID)])
        .await?;
    let row = rows.first().ok_or_else(|| {
        StoreError::schema(format!(
            "outbox {} is not registered: run `outrigger migrate`",
            sql.table
        ))
    })?;
    // Asked each time: a lone relay without events writes nothing, and a server that is fenced keeps its sessions.
    if row.try_get("read_only")? {
        return Err(StoreError::read_only());
    }
    let numbers: Vec<i32> = row.try_get("partitions")?;
    let owners: Vec<Option<Uuid>> = row.try_get("owners")?;
    let ids: Vec<Uuid> = row.try_get("replicas")?;
    let names: Vec<String> = row.try_get("names")?;
    let alive_for: Vec<i64> = row.try_get("alive_for")?;
    let ranks: Vec<i64> = row.try_get("ranks")?;
    let conflicts: Vec<bool> = row.try_get("conflicts")?;
    let differs: Vec<Option<serde_json::Value>> = row.try_get("differs")?;
    let replicas = ids
        .into_iter()
        .zip(names)
        .zip(alive_for)
        .zip(ranks.into_iter().zip(conflicts).zip(differs));
    let tick = Tick {
        server_start: row.try_get("server_start")?,
        partitions: numbers
            .into_iter()
            .zip(owners)
            .map(|(partition, owner)| PartitionRow { partition, owner })
            .collect(),
        replicas: replicas
            .map(
                |(((replica, name), alive_for), ((rank, conflicts), differs))| ReplicaRow {
                    replica,
                    name,
                    alive_for: micros(Some(alive_for)).unwrap_or_default(),
                    rank,
                    conflicts,
                    differs: differs.as_ref().map(Configuration::from_json),
                },
            )
            .collect(),
        registered: row.try_get("registered")?,
        may_take_over: row.try_get("may_take_over")?,
        paused: row.try_get("paused")?,
        standing_down: row.try_get("standing_down")?,
        failures_version: row.try_get("failures_version")?,
        awake_for: micros(row.try_get("awake_for")?).unwrap_or_default(),
        unsettled: row.try_get("unsettled")?,
        parked: row.try_get::<_, i64>("parked")?.max(0) as u64,
        next_due_in: micros(row.try_get("next_due_in")?),
    };
    Ok((tick, row.try_get("secured")?))
}

fn micros(value: Option<i64>) -> Option<Duration> {
    value.map(|us| Duration::from_micros(us.max(0) as u64))
}

/// Everything a tick reads, in one statement. `$1`: this replica.
fn state(table: &Table, sql: &Sql) -> String {
    let outbox = &sql.outbox;
    // greatest() and least() ignore nulls.
    let due = match (&sql.available, table.column(Field::AvailableAt)) {
        (Some((at, now)), Some(_)) => format!(
            "least({}, (select case when isfinite({at}) then greatest(0, (extract(epoch from ({at} - {now})) * 1000000)::int8) \
               when {at} < {now} then 0::int8 end \
             from {} o where {} and {at} is not null and {} order by {at} limit 1))",
            retry_due(outbox),
            sql.table,
            sql.pending,
            sql.not_failing
        ),
        _ => retry_due(outbox),
    };
    format!(
        "with me as (select * from outrigger.replicas where outbox = {outbox} and replica = $1), \
         rs as (select r.replica, r.name, case when r.replica = $1 then r.lease_ttl else greatest({LEASE_UNTIL}, \
             coalesce((select visible_since from me), clock_timestamp()) + r.lease_ttl) - clock_timestamp() end as remaining, \
             r.rank, coalesce(r.identity <> (select identity from me), false) as conflicts, \
             case when r.configuration <> (select configuration from me) then r.configuration end as differs \
           from outrigger.replicas r where r.outbox = {outbox}), \
         ps as (select partition, owner from outrigger.partitions where outbox = {outbox}) \
         select coalesce((select array_agg(partition order by partition) from ps), '{{}}'::int4[]) as partitions, \
           coalesce((select array_agg(owner order by partition) from ps), '{{}}'::uuid[]) as owners, \
           coalesce((select array_agg(replica order by replica) from rs), '{{}}'::uuid[]) as replicas, \
           coalesce((select array_agg(name order by replica) from rs), '{{}}'::text[]) as names, \
           coalesce((select array_agg(ceil(extract(epoch from rs.remaining) * 1000000)::int8 order by replica) from rs), \
             '{{}}'::int8[]) as alive_for, \
           coalesce((select array_agg(rank order by replica) from rs), '{{}}'::int8[]) as ranks, \
           coalesce((select array_agg(conflicts order by replica) from rs), '{{}}'::bool[]) as conflicts, \
           coalesce((select array_agg(differs order by replica) from rs), '{{}}'::jsonb[]) as differs, \
           exists (select from me) as registered, \
           coalesce((select visible_since + lease_ttl < clock_timestamp() from me), false) as may_take_over, \
           b.paused_at is not null as paused, b.failures_version, \
           coalesce(b.repartition_until > clock_timestamp(), false) as standing_down, \
           {awake_for} as awake_for, {due} as next_due_in, {SERVER_START} as server_start, \
           current_setting('transaction_read_only')::bool as read_only, {secured} as secured, \
           exists (select from outrigger.failures f where f.outbox = {outbox} and f.state = 'unsettled') as unsettled, \
           (select count(*) from (select from outrigger.parked p where p.outbox = {outbox} limit {PARKED_COUNT_MAX}) p) as parked \
         from outrigger.outboxes b where b.outbox = {outbox}",
        awake_for = sql.awake_for,
        secured = security::applies(table),
    )
}

fn retry_due(outbox: &str) -> String {
    format!(
        "(select greatest(0, (extract(epoch from (f.next_attempt_at - clock_timestamp())) * 1000000)::int8) \
         from outrigger.failures f where f.outbox = {outbox} and f.state in ('retrying', 'unsettled') \
         order by f.next_attempt_at nulls first limit 1)"
    )
}

pub(super) async fn claim(
    client: &mut Client,
    sql: &Sql,
    replica: Uuid,
    wanted: &[i32],
) -> Result<Vec<Claimed>, StoreError> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let (outbox, lives) = (&sql.outbox, lives());
    let transaction = begin(client).await?;
    // Every statement below takes a fresh snapshot, so each sees what the locks before it waited for. Locks are taken
    // in one order everywhere: the outbox (registrations wait), partitions by number, replicas by id (heartbeats wait).
    transaction
        .query_typed(
            &format!("select from outrigger.outboxes where outbox = {outbox} for no key update"),
            &[],
        )
        .await?;
    transaction
        .query_typed(
            &format!(
                "select from outrigger.partitions where outbox = {outbox} and partition = any($1) \
                 order by partition for update"
            ),
            &[(&wanted, Type::INT4_ARRAY)],
        )
        .await?;
    transaction
        .query_typed(
            &format!(
                "select from outrigger.replicas where outbox = {outbox} order by replica for update"
            ),
            &[],
        )
        .await?;
    // A claim is a sign of life too: without it, a replica whose lease ran out could be swept away between
    // claiming and its next heartbeat.
    let alive = transaction
        .execute_typed(
            &format!(
                "update outrigger.replicas set {SIGN_OF_LIFE} where outbox = {outbox} and replica = $1"
            ),
            &[(&replica, Type::UUID)],
        )
        .await?;
    if alive == 0 {
        return Ok(Vec::new());
    }
    let rows = transaction
        .query_typed(
            &format!(
                "with me as (select visible_since, identity from outrigger.replicas \
                   where outbox = {outbox} and replica = $2), \
                 living as (select r.rank, coalesce(r.identity <> me.identity, false) as conflicts \
                   from outrigger.replicas r, me where r.outbox = {outbox} and (r.replica = $2 or {lives})), \
                 old as (select partition, owner, owned_since from outrigger.partitions \
                   where outbox = {outbox} and partition = any($1) and owner is distinct from $2) \
                 update outrigger.partitions p set owner = $2, owned_since = clock_timestamp() \
                 from old, me where p.outbox = {outbox} and p.partition = old.partition \
                   and coalesce((select min(rank) from living where conflicts) \
                     > (select min(rank) from living where not conflicts), true) \
                   and (old.owner is null or not exists (select from outrigger.replicas r \
                     where r.outbox = {outbox} and r.replica = old.owner and {lives})) \
                 returning p.partition, old.owner is not null and old.owned_since > clock_timestamp() - interval '{SHORT}'"
            ),
            &[(&wanted, Type::INT4_ARRAY), (&replica, Type::UUID)],
        )
        .await?;
    let mut claimed = rows
        .iter()
        .map(|row| {
            Ok(Claimed {
                partition: row.try_get(0)?,
                unclean: row.try_get(1)?,
            })
        })
        .collect::<Result<Vec<_>, StoreError>>()?;
    claimed.sort_unstable_by_key(|claimed| claimed.partition);
    if !claimed.is_empty() {
        // The dead of another identity: one that wakes up is a newcomer now.
        transaction
            .execute_typed(
                &format!(
                    "delete from outrigger.replicas r using outrigger.replicas me \
                     where me.outbox = {outbox} and me.replica = $1 and r.outbox = {outbox} \
                       and r.identity <> me.identity and r.rank < me.rank and not ({lives})"
                ),
                &[(&replica, Type::UUID)],
            )
            .await?;
    }
    transaction.commit().await?;
    Ok(claimed)
}

/// Gives partitions up and tells the others, so that they look at once.
pub(super) async fn release(
    client: &Client,
    table: &Table,
    sql: &Sql,
    replica: Uuid,
    partitions: &[i32],
) -> Result<(), StoreError> {
    let text = format!(
        "with mine as (select partition from outrigger.partitions where outbox = {0} and owner = $1 \
           and partition = any($2) order by partition for update), \
         freed as (update outrigger.partitions p set owner = null, owned_since = null from mine \
           where p.outbox = {0} and p.partition = mine.partition returning 1) \
         select pg_notify($3, '') from freed limit 1",
        sql.outbox
    );
    client
        .query_typed(
            &text,
            &[
                (&replica, Type::UUID),
                (&partitions, Type::INT4_ARRAY),
                (&table.channel, Type::TEXT),
            ],
        )
        .await?;
    Ok(())
}

/// Gives everything up and leaves; sweeps away what others left behind.
pub(super) async fn unregister(
    client: &Client,
    table: &Table,
    sql: &Sql,
    replica: Uuid,
) -> Result<(), StoreError> {
    let text = format!(
        "with mine as (select partition from outrigger.partitions where outbox = {0} and owner = $1 \
           order by partition for update), \
         freed as (update outrigger.partitions p set owner = null, owned_since = null from mine \
           where p.outbox = {0} and p.partition = mine.partition returning 1), \
         me as (delete from outrigger.replicas where outbox = {0} and replica = $1 \
           and (select count(*) from freed) >= 0), \
         others as ({1} and r.replica <> $1) \
         select pg_notify($2, '')",
        sql.outbox,
        stale(&sql.outbox)
    );
    client
        .query_typed(
            &text,
            &[(&replica, Type::UUID), (&table.channel, Type::TEXT)],
        )
        .await?;
    Ok(())
}

/// Extends the promise to poll, if less than half of it is left. When it had lapsed, other quiet replicas are told, since
/// writers are silent from now on. Setting a sequence takes effect at once, so a little before they hear of it; they
/// also look with each tick.
pub(super) async fn extend_awake(
    client: &Client,
    table: &Table,
    sql: &Sql,
    horizon: Duration,
) -> Result<(), StoreError> {
    let text = format!(
        "with a as materialized (select coalesce(pg_sequence_last_value({0}), 0) as until, {NOW_MS} as now), \
         b as materialized (select a.*, setval({0}, a.now + $1) from a where a.until < a.now + $1 / 2) \
         select pg_notify($2, '') from b where b.until <= b.now",
        sql.awake
    );
    let horizon = i64::try_from(horizon.as_millis()).unwrap_or(i64::MAX / 2);
    client
        .query_typed(
            &text,
            &[(&horizon, Type::INT8), (&table.channel, Type::TEXT)],
        )
        .await?;
    Ok(())
}
