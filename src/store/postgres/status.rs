//! The outbox at a glance.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::timeout;
use tokio_postgres::Client;
use uuid::Uuid;

use super::error::StoreError;
use super::inspect::Table;
use super::mapping::{Field, quote};
use super::sql::Sql;
use super::{PostgresStore, run};

/// Most pending rows that a status counts.
pub const PENDING_COUNT_MAX: i64 = 100_000;

/// The outbox at a glance.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// Pending rows, failing ones included, counted up to [`PENDING_COUNT_MAX`].
    pub pending: i64,
    /// True when there are more than were counted.
    pub pending_capped: bool,
    /// Age of the first pending row, where the table has a creation time.
    pub oldest_pending: Option<Duration>,
    /// Records by state.
    pub retrying: i64,
    /// Records by state.
    pub blocked: i64,
    /// Records by state.
    pub dead: i64,
    /// Number of partitions, once a relay has registered.
    pub partitions: Option<i32>,
    /// Partitions without an owner.
    pub unowned: i64,
    /// Registered relays.
    pub replicas: Vec<ReplicaStatus>,
    /// How much longer writers skip the wake-up notification.
    pub awake_for: Duration,
    /// When and why an operator paused the relay.
    pub paused: Option<(Timestamp, Option<String>)>,
}

/// One relay, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// Its id.
    pub replica: Uuid,
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// When it started.
    pub registered_at: Timestamp,
    /// Time left of its lease. A relay that is alone does not renew it, so zero does not mean dead.
    pub lease_left: Duration,
    /// The partitions it owns.
    pub partitions: Vec<i32>,
}

impl PostgresStore {
    /// The outbox at a glance. Bounded: pending rows are counted up to a limit.
    pub async fn status(&self) -> Result<Status, StoreError> {
        let inner = &*self.inner;
        run!(self, |client| status(client, &inner.table, &inner.sql))
    }
}

async fn status(client: &Client, table: &Table, sql: &Sql) -> Result<Status, StoreError> {
    let age = match table.column(Field::CreatedAt) {
        Some(column) if sql.has_order => {
            let now = super::sql::now(column.kind);
            let created = format!("o.{}", quote(&column.name));
            format!(
                "(select case when isfinite({created}) then (extract(epoch from ({now} - {created})) * 1000000)::int8 end \
                 from {} o where {} and {} order by {} limit 1)",
                sql.table, sql.pending, sql.not_dead, sql.seq
            )
        }
        _ => "null::int8".into(),
    };
    let text = format!(
        "select (select count(*) from (select from {} o where {} and {} limit {}) p) as pending, {age} as age, \
           b.partitions, b.paused_at, b.pause_reason, \
           (select count(*) from outrigger.failures where outbox = b.outbox and state = 'retrying') as retrying, \
           (select count(*) from outrigger.failures where outbox = b.outbox and state = 'blocked') as blocked, \
           (select count(*) from outrigger.failures where outbox = b.outbox and state = 'dead') as dead, \
           (select count(*) from outrigger.partitions where outbox = b.outbox and owner is null) as unowned, \
           {} as awake_for \
         from outrigger.outboxes b where b.outbox = {}",
        sql.table,
        sql.pending,
        sql.not_dead,
        PENDING_COUNT_MAX + 1,
        sql.awake_for,
        sql.outbox
    );
    let row = client.query_typed_opt(&text, &[]).await?.ok_or_else(|| {
        StoreError::schema(format!(
            "outbox {} is not registered: run `outrigger migrate`",
            sql.table
        ))
    })?;
    let replicas = format!(
        "select r.replica, r.name, r.version, r.registered_at, \
           (extract(epoch from (r.lease_until - clock_timestamp())) * 1000000)::int8, \
           array(select p.partition from outrigger.partitions p \
             where p.outbox = r.outbox and p.owner = r.replica order by p.partition) \
         from outrigger.replicas r where r.outbox = {} order by r.name, r.replica",
        sql.outbox
    );
    let replicas = client.query_typed(&replicas, &[]).await?;
    let micros = |us: Option<i64>| Duration::from_micros(us.unwrap_or(0).max(0) as u64);
    let pending: i64 = row.try_get("pending")?;
    let paused_at: Option<Timestamp> = row.try_get("paused_at")?;
    let reason: Option<String> = row.try_get("pause_reason")?;
    Ok(Status {
        pending: pending.min(PENDING_COUNT_MAX),
        pending_capped: pending > PENDING_COUNT_MAX,
        oldest_pending: row
            .try_get::<_, Option<i64>>("age")?
            .map(|us| micros(Some(us))),
        retrying: row.try_get("retrying")?,
        blocked: row.try_get("blocked")?,
        dead: row.try_get("dead")?,
        partitions: row.try_get("partitions")?,
        unowned: row.try_get("unowned")?,
        awake_for: micros(row.try_get("awake_for")?),
        paused: paused_at.map(|at| (at, reason)),
        replicas: replicas
            .iter()
            .map(|row| {
                Ok(ReplicaStatus {
                    replica: row.try_get(0)?,
                    name: row.try_get(1)?,
                    version: row.try_get(2)?,
                    registered_at: row.try_get(3)?,
                    lease_left: micros(row.try_get(4)?),
                    partitions: row.try_get(5)?,
                })
            })
            .collect::<Result<_, StoreError>>()?,
    })
}
