//! Numbered migrations of the schema `outrigger`, the native outbox table, and the grants.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use super::error::{StoreError, StoreErrorKind};
use super::inspect;
use super::mapping::{AfterPublish, Field, Mapping, literal, quote};
use super::session::begin;

/// One numbered step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Migration {
    /// Its number.
    pub version: i32,
    /// Its name, for people.
    pub name: &'static str,
    sql: &'static str,
}

/// All steps this binary knows, ascending.
pub const MIGRATIONS: &[Migration] = &[Migration {
    version: 1,
    name: "outrigger",
    sql: include_str!("../../../migrations/0001_outrigger.sql"),
}];

const OUTBOX_TABLE: &str = include_str!("../../../migrations/outbox_table.sql");

/// The server gave up waiting for a lock.
const LOCK_TIMEOUT: &str = "55P03";
/// How long [`migrate`] tries to get a lock that it may wait for only briefly at a time.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two tries.
const BETWEEN: Duration = Duration::from_secs(1);

/// Serialises migrating replicas; taken inside each step's transaction, so it works behind a pooler too.
const LOCK: &str = "select pg_advisory_xact_lock(hashtextextended('outrigger migrate', 0))";

impl Migration {
    /// Detects an edited or foreign step. FNV-1a: it guards against mistakes, not against malice.
    pub fn checksum(&self) -> String {
        let hash = self
            .sql
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
        format!("{hash:016x}")
    }

    fn record(&self) -> String {
        format!(
            "insert into outrigger.migrations (version, name, checksum) values ({}, {}, {});",
            self.version,
            literal(self.name),
            literal(&self.checksum())
        )
    }
}

/// What `migrate` did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Migrated {
    /// Steps applied by this call.
    pub applied: Vec<i32>,
    /// Whether this call created the outbox table.
    pub created_table: bool,
    /// The outbox's name, quoted and schema-qualified.
    pub outbox: String,
}

/// Brings schema and outbox up to date. Safe when many replicas do it at once.
pub(super) async fn migrate(
    client: &mut Client,
    mapping: &Mapping,
    with_trigger: bool,
) -> Result<Migrated, StoreError> {
    let mut done = Migrated::default();
    // A table that does not fit is told before anything is changed.
    if inspect::find(client, mapping).await?.is_none() && !mapping.is_native() {
        inspect::inspect(client, mapping).await?;
    }
    while let Some(version) = step(client).await? {
        done.applied.push(version);
    }
    let asked = Instant::now();
    loop {
        match register(client, mapping, with_trigger, &mut done).await {
            Err(error) if error.sqlstate() == Some(LOCK_TIMEOUT) && asked.elapsed() < PATIENCE => {
                // The writers that waited behind us go first.
                tokio::time::sleep(BETWEEN).await;
            }
            Err(error) if error.sqlstate() == Some(LOCK_TIMEOUT) => {
                return Err(error.during(&format!(
                    "{} is in use by a transaction that stays open (see pg_stat_activity, xact_start), and services must \
                     not wait behind `migrate`: run it again when that transaction is over",
                    mapping.quoted_table()
                )));
            }
            Err(error) if done.applied.is_empty() => return Err(error),
            // What was done stays done.
            Err(error) => {
                return Err(error.during(
                    "the schema `outrigger` was created, but the table could not be registered",
                ));
            }
            Ok(()) => return Ok(done),
        }
    }
}

/// Creates a missing native table and registers the outbox.
async fn register(
    client: &mut Client,
    mapping: &Mapping,
    with_trigger: bool,
    done: &mut Migrated,
) -> Result<(), StoreError> {
    let transaction = begin(client).await?;
    transaction.batch_execute(LOCK).await?;
    let mut created = false;
    if inspect::find(transaction.client(), mapping)
        .await?
        .is_none()
        && mapping.is_native()
    {
        transaction.batch_execute(&table_sql(mapping)).await?;
        created = true;
    }
    let table = inspect::inspect(transaction.client(), mapping).await?;
    transaction
        .query_typed(
            "select outrigger.attach($1::regclass, $2)",
            &[(&table.name, Type::TEXT), (&with_trigger, Type::BOOL)],
        )
        .await?;
    transaction.commit().await?;
    done.created_table = created;
    done.outbox = table.name;
    Ok(())
}

/// Applies the next missing step, in its own transaction.
async fn step(client: &mut Client) -> Result<Option<i32>, StoreError> {
    let transaction = begin(client).await?;
    transaction.batch_execute(LOCK).await?;
    // Only now: another replica may just have applied it.
    let applied = applied(transaction.client()).await?;
    verify(&applied)?;
    let Some(next) = MIGRATIONS
        .iter()
        .find(|m| applied.iter().all(|(v, _)| *v != m.version))
    else {
        return Ok(None);
    };
    let during = |error: tokio_postgres::Error| {
        StoreError::from(error).during(&format!("migration {} ({})", next.version, next.name))
    };
    transaction.batch_execute(next.sql).await.map_err(during)?;
    transaction
        .batch_execute(&next.record())
        .await
        .map_err(during)?;
    transaction.commit().await.map_err(during)?;
    Ok(Some(next.version))
}

async fn applied(client: &Client) -> Result<Vec<(i32, String)>, StoreError> {
    let exists: bool = client
        .query_typed_one(
            "select to_regclass('outrigger.migrations') is not null",
            &[],
        )
        .await?
        .try_get(0)?;
    if !exists {
        return Ok(Vec::new());
    }
    let rows = client
        .query_typed(
            "select version, checksum from outrigger.migrations order by version",
            &[],
        )
        .await?;
    rows.iter()
        .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
        .collect()
}

fn verify(applied: &[(i32, String)]) -> Result<(), StoreError> {
    for (version, checksum) in applied {
        let Some(known) = MIGRATIONS.iter().find(|m| m.version == *version) else {
            return Err(StoreError::schema(format!(
                "the schema `outrigger` is at version {version}, which is newer than this binary knows ({}): upgrade \
                 the binary",
                MIGRATIONS.len()
            )));
        };
        if known.checksum() != *checksum {
            return Err(StoreError::schema(format!(
                "migration {version} was applied with other contents than this binary carries: the schema `outrigger` was \
                 made by a different build or edited by hand; restore outrigger.migrations or start from an empty schema"
            )));
        }
    }
    Ok(())
}

/// Checks that the schema is exactly what this binary expects.
pub(super) async fn check_version(client: &Client) -> Result<(), StoreError> {
    let applied = applied(client).await?;
    verify(&applied)?;
    if applied.len() < MIGRATIONS.len() {
        return Err(StoreError::schema(format!(
            "the schema `outrigger` is at version {} and this binary needs {}: run `outrigger migrate`",
            applied.len(),
            MIGRATIONS.len()
        )));
    }
    Ok(())
}

/// What `migrate` would do on an empty database, as plain SQL for other migration tools and psql.
pub fn print(mapping: &Mapping, with_trigger: bool) -> String {
    let mut out = String::from(
        "-- Outrigger: everything `outrigger migrate` does. Run it in one transaction (psql --single-transaction).\n",
    );
    for migration in MIGRATIONS {
        let _ = write!(
            out,
            "\n{}\n{}\n",
            migration.sql.trim_end(),
            migration.record()
        );
    }
    if mapping.is_native() {
        let _ = write!(out, "\n{}", table_sql(mapping));
    }
    let _ = write!(
        out,
        "\nselect outrigger.attach({}, {with_trigger});\n",
        literal(&mapping.quoted_table())
    );
    out
}

fn table_sql(mapping: &Mapping) -> String {
    // Identifiers end at 63 bytes; the server would cut the distinguishing suffix off.
    let mut stem = mapping.table_name();
    while stem.len() > 50 {
        stem = &stem[..stem.char_indices().next_back().map_or(0, |(i, _)| i)];
    }
    OUTBOX_TABLE
        .replace("{table}", &mapping.quoted_table())
        .replace("{one_payload}", &quote(&format!("{stem}_one_payload")))
        .replace("{pending}", &quote(&format!("{stem}_pending")))
        .replace("{delayed}", &quote(&format!("{stem}_delayed")))
}

/// The least privileges of the service that writes events and of the relay, as SQL.
///
/// The writer needs no SELECT: [`emit`](crate::store::postgres) generates the id itself. The relay needs DELETE in both
/// modes, since retention deletes what was marked. Operator commands that add rows (`emit`, `replay` with
/// new ids) need INSERT on the table besides.
pub fn grants(mapping: &Mapping, writer: &str, relay: &str) -> String {
    let (writer, relay, table) = (quote(writer), quote(relay), mapping.quoted_table());
    let mut out = String::new();
    if let Some((schema, _)) = mapping.schema_and_table() {
        let _ = writeln!(
            out,
            "grant usage on schema {} to {writer}, {relay};",
            quote(schema)
        );
    }
    let _ = write!(
        out,
        "grant insert on {table} to {writer};\n\
         -- Lets the wake-up trigger see that the relay is awake, and so leave out its notification:\n\
         grant select on all sequences in schema outrigger to {writer};\n\
         -- Only for writers that call outrigger.emit:\n\
         grant usage on schema outrigger to {writer};\n\
         grant execute on function outrigger.emit, outrigger.default_outbox to {writer};\n\
         grant select, delete on {table} to {relay};\n"
    );
    let marks: Vec<String> = mapping
        .wanted
        .iter()
        .filter(|w| w.field.is_mark() && mapping.after_publish == AfterPublish::Mark)
        // One that only a preset names may not be there.
        .filter(|w| w.required || w.field == Field::PublishedAt)
        .map(|w| quote(&w.column))
        .collect();
    if !marks.is_empty() {
        let _ = writeln!(
            out,
            "grant update ({}) on {table} to {relay};",
            marks.join(", ")
        );
    }
    let _ = write!(
        out,
        "grant usage on schema outrigger to {relay};\n\
         grant select on outrigger.migrations to {relay};\n\
         grant select, update on outrigger.outboxes to {relay};\n\
         grant select, update on all sequences in schema outrigger to {relay};\n\
         grant select, insert, update, delete on outrigger.replicas, outrigger.partitions, outrigger.failures, \
         outrigger.unpublished to {relay};\n\
         grant select, insert, delete on outrigger.parked to {relay};\n"
    );
    out
}

/// The stored version, for `check`; `None` if there is none or the role may not see it.
pub(super) async fn version(client: &Client) -> Result<Option<i32>, StoreError> {
    match applied(client).await {
        Ok(applied) => Ok(applied.last().map(|(version, _)| *version)),
        Err(error)
            if matches!(
                error.kind(),
                StoreErrorKind::Schema | StoreErrorKind::Permission
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn versions_count_from_one_without_gaps() {
        let versions: Vec<_> = MIGRATIONS.iter().map(|m| m.version).collect();
        let expected: Vec<_> = (1..=MIGRATIONS.len() as i32).collect();
        assert_eq!(versions, expected);
    }

    #[test]
    fn newer_and_edited_schemas_are_refused() {
        let first = (1, MIGRATIONS[0].checksum());
        assert!(verify(std::slice::from_ref(&first)).is_ok());
        let newer = verify(&[first, (99, "x".into())]).unwrap_err().to_string();
        assert!(newer.contains("upgrade the binary"), "{newer}");
        let edited = verify(&[(1, "x".into())]).unwrap_err().to_string();
        assert!(edited.contains("different build"), "{edited}");
    }
}
