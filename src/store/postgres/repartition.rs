//! Changing the number of partitions while relays run.
//!
//! Which partition a row belongs to depends on their number, so nobody may own one while it changes. The
//! outbox is marked for a short while; every replica that sees the mark settles what it has in flight, gives its
//! partitions back and takes none. When nobody owns any, they are replaced in one transaction, and the replicas
//! start over with the new number. The mark runs out by itself if whoever set it dies.

use std::time::Duration;

use tokio_postgres::Client;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::error::StoreError;
use super::ownership::lives;
use super::session::begin;
use super::sql::Sql;
use super::{PostgresStore, run, timeout};

/// The answer to an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Repartition {
    /// The number was changed.
    Done,
    /// These replicas still own partitions (names, for people).
    Busy(Vec<String>),
}

impl PostgresStore {
    /// Asks every replica to give its partitions back, for this long from now. Zero takes it back.
    pub async fn stand_down(&self, horizon: Duration) -> Result<(), StoreError> {
        let text = format!(
            "update outrigger.outboxes set repartition_until = clock_timestamp() + $1 * interval '1 microsecond' \
             where outbox = {}",
            self.inner.sql.outbox
        );
        let micros = horizon.as_micros() as f64;
        run!(self, |client| client
            .execute_typed(&text, &[(&micros, Type::FLOAT8)]))?;
        Ok(())
    }

    /// Replaces the partitions by `partitions` new ones, if nobody owns any. `replica` is whoever asks: registered,
    /// and visible for a whole lease time if it is to outlast a dead owner, as for a claim.
    pub async fn repartition(
        &self,
        replica: Uuid,
        partitions: i32,
    ) -> Result<Repartition, StoreError> {
        let inner = &*self.inner;
        run!(self, |client| repartition(
            client, &inner.sql, replica, partitions
        ))
    }
}

async fn repartition(
    client: &mut Client,
    sql: &Sql,
    replica: Uuid,
    partitions: i32,
) -> Result<Repartition, StoreError> {
    let outbox = &sql.outbox;
    let transaction = begin(client).await?;
    // In the order of locks used everywhere: the outbox (registrations wait), partitions, replicas (heartbeats
    // wait). Each statement takes a fresh snapshot and sees what the locks before it waited for.
    for lock in [
        format!("select from outrigger.outboxes where outbox = {outbox} for update"),
        format!(
            "select from outrigger.partitions where outbox = {outbox} order by partition for update"
        ),
        format!(
            "select from outrigger.replicas where outbox = {outbox} order by replica for update"
        ),
    ] {
        transaction.query_typed(&lock, &[]).await?;
    }
    let busy = transaction
        .query_typed(
            &format!(
                "with me as (select visible_since from outrigger.replicas where outbox = {outbox} and replica = $1) \
                 select distinct r.name from outrigger.partitions p \
                 join outrigger.replicas r on r.outbox = p.outbox and r.replica = p.owner \
                 left join me on true where p.outbox = {outbox} and {} order by r.name",
                lives()
            ),
            &[(&replica, Type::UUID)],
        )
        .await?;
    if !busy.is_empty() {
        let names = busy
            .iter()
            .map(|row| row.try_get(0))
            .collect::<Result<_, _>>()?;
        return Ok(Repartition::Busy(names));
    }
    transaction
        .execute_typed(
            &format!("delete from outrigger.partitions where outbox = {outbox}"),
            &[],
        )
        .await?;
    transaction
        .execute_typed(
            &format!(
                "insert into outrigger.partitions (outbox, partition) \
                 select {outbox}, n from generate_series(0, $1 - 1) n"
            ),
            &[(&partitions, Type::INT4)],
        )
        .await?;
    transaction
        .execute_typed(
            &format!(
                "update outrigger.outboxes set partitions = $1, repartition_until = null where outbox = {outbox}"
            ),
            &[(&partitions, Type::INT4)],
        )
        .await?;
    transaction.commit().await?;
    Ok(Repartition::Done)
}
