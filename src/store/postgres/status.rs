//! The outbox at a glance.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::timeout;
use tokio_postgres::Client;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::error::StoreError;
use super::inspect::Table;
use super::mapping::{Field, quote};
use super::ownership::LEASE_UNTIL;
use super::sql::Sql;
use super::{PostgresStore, run};
use crate::store::SIGN_OF_LIFE;
use crate::store::configuration::Configuration;

/// A sign of life may be this late, and is one.
const SIGN_SLACK: Duration = Duration::from_secs(10);
/// Pending rows among which a key is looked for that has most of them.
const HOT_KEY_ROWS: i64 = 10_000;
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
    /// Published events whose rows could not be marked or deleted so far.
    pub unsettled: i64,
    /// Records of events that an operator gave up for good, kept as long as their rows.
    pub discarded: i64,
    /// Records of events whose time passed before they were published, kept as long as their rows.
    pub expired: i64,
    /// Failing and blocked keys that the database keeps because they are too many for memory.
    pub parked: i64,
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

impl Status {
    /// Events that have a failure record.
    pub fn recorded(&self) -> i64 {
        self.retrying + self.blocked + self.dead + self.unsettled
    }
}

/// One relay, for people.
#[derive(Debug, Clone, PartialEq)]
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
    /// How long ago it gave the last sign of life.
    pub sign_ago: Duration,
    /// Where and as what it sends events.
    pub configuration: Configuration,
    /// When that configuration came; lower is earlier.
    pub rank: i64,
    /// Why it does not publish, as it said itself.
    pub waits_for: Option<String>,
    /// Events it published per second of late, as it said itself.
    pub rate: f64,
    /// How long ago it published the last one, as far as it said so.
    pub published_ago: Option<Duration>,
    /// The partitions it owns.
    pub partitions: Vec<i32>,
}

impl ReplicaStatus {
    /// Whether it is a relay; a command registers for a moment, too.
    pub fn publishes(&self) -> bool {
        self.configuration.identity().is_some()
    }
}

/// Failed events of one kind.
#[derive(Debug, Clone, PartialEq)]
pub struct FailureGroup {
    /// Their state.
    pub state: String,
    /// Why, as a word; `None`: a crash.
    pub reason: Option<String>,
    /// Their type.
    pub event_type: String,
    /// How many.
    pub count: i64,
    /// When the first of them failed first.
    pub since: Timestamp,
    /// What was said of the latest.
    pub error: Option<String>,
}

impl Status {
    /// Whether a relay gave a sign of life lately: its lease lasts, or it is alone and needs none.
    pub fn lives(&self, replica: &ReplicaStatus) -> bool {
        !replica.lease_left.is_zero()
            || self.replicas.len() == 1 && replica.sign_ago < SIGN_OF_LIFE + SIGN_SLACK
    }

    /// The living relay that this one stands aside for, if any: it sends events elsewhere, and did so before.
    pub fn stands_aside_for(&self, replica: &ReplicaStatus) -> Option<&ReplicaStatus> {
        let identity = replica.configuration.identity()?;
        let living = || {
            self.replicas
                .iter()
                .filter(|other| self.lives(other) && other.publishes())
        };
        let same =
            |other: &&ReplicaStatus| other.configuration.identity().as_ref() == Some(&identity);
        let ours = living().filter(same).map(|other| other.rank).min();
        let first = living()
            .filter(|other| !same(other))
            .min_by_key(|other| other.rank)?;
        let ours = ours.unwrap_or(replica.rank);
        (first.rank < ours).then_some(first)
    }
}

impl PostgresStore {
    /// Failed events by state, reason and type, those that wait for people first.
    pub async fn failure_groups(&self, limit: i64) -> Result<Vec<FailureGroup>, StoreError> {
        let text = format!(
            "select state, reason, event_type, count(*), min(first_failed_at), \
               (array_agg(error order by last_failed_at desc))[1] \
             from outrigger.failures where outbox = {} and state <> 'suspect' group by 1, 2, 3 \
             order by array_position('{{dead,blocked,unsettled,retrying}}'::text[], state), 4 desc, 3 limit $1",
            self.inner.sql.outbox
        );
        let rows = run!(self, |client| client
            .query_typed(&text, &[(&limit, Type::INT8)]))?;
        rows.iter()
            .map(|row| {
                Ok(FailureGroup {
                    state: row.try_get(0)?,
                    reason: row.try_get(1)?,
                    event_type: row.try_get(2)?,
                    count: row.try_get(3)?,
                    since: row.try_get(4)?,
                    error: row.try_get(5)?,
                })
            })
            .collect()
    }

    /// Since when and why the outbox is paused.
    pub async fn paused(&self) -> Result<Option<(Timestamp, Option<String>)>, StoreError> {
        let text = format!(
            "select paused_at, pause_reason from outrigger.outboxes where outbox = {} and paused_at is not null",
            self.inner.sql.outbox
        );
        let row = run!(self, |client| client.query_typed_opt(&text, &[]))?;
        row.map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
            .transpose()
    }

    /// The key that has most of the first pending rows: itself, its rows, and the rows looked at. `None`: no key has
    /// more than one, or the table has no keys or no order.
    pub async fn hot_key(&self) -> Result<Option<(String, i64, i64)>, StoreError> {
        let inner = &*self.inner;
        let (table, sql) = (&inner.table, &inner.sql);
        let Some(key) = table.column(Field::Key).filter(|_| sql.has_order) else {
            return Ok(None);
        };
        let text = format!(
            "with p as materialized (select o.{}::text as key from {} o where {} and {} order by {} limit {HOT_KEY_ROWS}) \
             select key, count(*), (select count(*) from p) from p where key is not null group by 1 \
             having count(*) > 1 order by 2 desc limit 1",
            quote(&key.name),
            sql.table,
            sql.pending,
            sql.not_dead,
            sql.seq
        );
        let row = run!(self, |client| client.query_typed_opt(&text, &[]))?;
        row.map(|row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?)))
            .transpose()
    }

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
           (select count(*) from outrigger.failures where outbox = b.outbox and state = 'unsettled') as unsettled, \
           (select count(*) from outrigger.unpublished where outbox = b.outbox and state = 'discarded') as discarded, \
           (select count(*) from outrigger.unpublished where outbox = b.outbox and state = 'expired') as expired, \
           (select count(*) from outrigger.parked where outbox = b.outbox) as parked, \
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
           (extract(epoch from (greatest({until}, clock_timestamp()) - clock_timestamp())) * 1000000)::int8, \
           (extract(epoch from (clock_timestamp() - (r.lease_until - r.lease_ttl))) * 1000000)::int8, \
           r.configuration, r.rank, r.waits_for, r.rate, \
           (extract(epoch from (clock_timestamp() - r.published_at)) * 1000000)::int8, \
           array(select p.partition from outrigger.partitions p \
             where p.outbox = r.outbox and p.owner = r.replica order by p.partition) \
         from outrigger.replicas r where r.outbox = {} order by r.name, r.replica",
        sql.outbox,
        until = LEASE_UNTIL
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
        unsettled: row.try_get("unsettled")?,
        discarded: row.try_get("discarded")?,
        expired: row.try_get("expired")?,
        parked: row.try_get("parked")?,
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
                    sign_ago: micros(row.try_get(5)?),
                    configuration: Configuration::from_json(&row.try_get(6)?),
                    rank: row.try_get(7)?,
                    waits_for: row.try_get(8)?,
                    rate: row.try_get(9)?,
                    published_ago: row
                        .try_get::<_, Option<i64>>(10)?
                        .map(|us| micros(Some(us))),
                    partitions: row.try_get(11)?,
                })
            })
            .collect::<Result<_, StoreError>>()?,
    })
}
