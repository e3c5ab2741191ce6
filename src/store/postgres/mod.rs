//! The outbox in PostgreSQL. The only place that knows tokio-postgres.
//!
//! * [`connect`], `dsn`, `dialects`, `service`, `options`, `tls`: from settings to connections, with libpq's meanings.
//! * [`mapping`], [`inspect`]: which table and columns; what the catalog says about them.
//! * [`migrate`]: schema, native table, grants.
//! * `security`: whether row-level security hides rows.
//! * `select`, `fetch`: what is read of a row, and which row cannot be read.
//! * `portion`: how much a read asks for where the server cuts reads short.
//! * `sql`, `read`, `settle`, `retention`, `failures`, `ownership`: what the relay does.
//! * [`listen`]: the wake-up hint. [`figures`]: what metrics need. [`status`], [`admin`], [`emit`], [`replay`]: what operators do. [`probe`], [`trial`]: what `check` asks.
//!
//! Every wait has a limit, and nothing depends on what a session keeps: no SET, no session lock. Statements are unnamed
//! and typed; the frequent ones are prepared where `session` allows it. So it all works through a transaction
//! pooler, LISTEN excepted.

pub mod admin;
pub mod connect;
mod dialects;
mod dsn;
pub mod emit;
pub mod error;
mod failures;
mod fetch;
pub mod figures;
pub mod inspect;
pub mod listen;
pub mod mapping;
mod mark;
pub mod migrate;
mod misfit;
mod options;
mod ownership;
mod portion;
pub mod probe;
mod read;
mod repartition;
pub mod replay;
mod retention;
mod security;
mod select;
mod service;
mod session;
mod settle;
mod sql;
pub mod status;
mod tls;
pub mod trial;

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use deadpool_postgres::{Object, Pool};
use tokio::time::timeout;
use uuid::Uuid;

pub use connect::ConnectSettings;
pub use error::{StoreError, StoreErrorKind};
pub use inspect::Capabilities;
use listen::Way;
pub use listen::{ListenState, Listener};
pub use mapping::{AfterPublish, Mapping, OutboxSettings, Preset};
pub use migrate::{Migrated, grants, print};
pub use ownership::Registered;
pub use repartition::Repartition;
pub use retention::{HISTORY_LOOKED_AT_MAX, History, RetentionStep};

use crate::store::configuration::Configuration;
use crate::store::{
    Claimed, Failure, FetchBatch, FetchRequest, Loaded, Park, Partitions, ReadBatch, ReadRequest,
    Settle, Tick, Told, Unsettled,
};
use connect::Connector;
use inspect::Table;
use portion::Portion;
use session::Session;
use sql::Sql;

/// How often policies are read where row-level security applies to the role.
const POLICIES_EVERY: Duration = Duration::from_secs(20);

/// Connections to the database, before anything is known about the outbox table.
#[derive(Debug, Clone)]
pub struct Database {
    connector: Connector,
    pool: Pool,
    timeout: Duration,
    mapping: Mapping,
}

impl Database {
    /// Reads the settings. Opens no connection yet.
    pub fn new(settings: &ConnectSettings, mapping: Mapping) -> Result<Self, StoreError> {
        let connector = Connector::new(settings)?;
        let pool = connector.pool(settings.pool_size, settings.timeout)?;
        let mapping = match connector.schema() {
            Some(schema) => mapping.in_schema(schema),
            None => mapping,
        };
        Ok(Self {
            connector,
            pool,
            timeout: settings.timeout,
            mapping,
        })
    }

    /// Host, port and database, for people. Never the password.
    pub fn target(&self) -> String {
        self.connector.target()
    }

    /// What the user gave the database's URL by, for messages.
    pub fn url_name(&self) -> &str {
        self.connector.url_name()
    }

    /// The mapping as configured.
    pub fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// Brings the schema `outrigger` up to date, creates a missing native table, registers the outbox.
    pub async fn migrate(&self, with_trigger: bool) -> Result<Migrated, StoreError> {
        let mut lease = self.lease().await?;
        // Longer than a statement may take otherwise: an index may have to be built, and other replicas waited for.
        let limit = self.timeout.max(Duration::from_secs(300));
        let result = timeout(
            limit,
            migrate::migrate(lease.client(), &self.mapping, with_trigger),
        )
        .await;
        lease.finish(result)
    }

    /// Looks at the table and the schema's version, and returns the store.
    pub async fn open(&self) -> Result<PostgresStore, StoreError> {
        let mut lease = self.lease().await?;
        let client = lease.client();
        let result = timeout(self.timeout, async {
            migrate::check_version(client).await?;
            let table = inspect::inspect(client, &self.mapping).await?;
            security::check(client, &table).await?;
            Ok::<_, StoreError>(table)
        })
        .await;
        let table = lease
            .finish(result)
            .map_err(|error| error.with_grants(&needs(&self.mapping.quoted_table())))?;
        Ok(PostgresStore {
            inner: Arc::new(Inner {
                sql: Sql::new(&table, false),
                grants: needs(&table.name),
                table,
                database: self.clone(),
                hidden: Hidden::default(),
                portion: Portion::default(),
            }),
        })
    }

    /// Closes the pool; connections end as they come back.
    pub fn close(&self) {
        self.pool.close();
    }

    async fn lease(&self) -> Result<Lease<'_>, StoreError> {
        Ok(Lease {
            object: Some(
                self.pool
                    .get()
                    .await
                    .map_err(|error| self.connector.explain(error))?,
            ),
            connector: &self.connector,
        })
    }
}

/// The privileges a relay needs, in a few words; [`grants`] has them word for word.
fn needs(table: &str) -> String {
    format!(
        "SELECT, UPDATE and DELETE on {table} and on the tables of the schema outrigger; `outrigger check` prints the \
         missing GRANT statements"
    )
}

/// A pooled connection in use. Unless the work ran to its end, the statement is cancelled and the connection thrown away:
/// it may be busy, or in the middle of a transaction.
struct Lease<'a> {
    object: Option<Object>,
    connector: &'a Connector,
}

impl Lease<'_> {
    #[allow(
        clippy::expect_used,
        reason = "only `finish` and `drop` take the connection, and both end the lease"
    )]
    fn client(&mut self) -> &mut tokio_postgres::Client {
        let object = self.object.as_mut().expect("the lease holds a connection");
        &mut *object
    }

    #[allow(
        clippy::expect_used,
        reason = "only `finish` and `drop` take the connection, and both end the lease"
    )]
    fn session(&self) -> Session<'_> {
        let object = self.object.as_ref().expect("the lease holds a connection");
        Session::new(object, self.connector.is_direct())
    }

    fn finish<T, E: Into<StoreError>>(
        mut self,
        result: Result<Result<T, E>, tokio::time::error::Elapsed>,
    ) -> Result<T, StoreError> {
        match result {
            Ok(result) => {
                let result = result.map_err(|error| self.connector.explain(error));
                if let Some(object) = self.object.take()
                    && let Err(error) = &result
                {
                    object.statement_cache.clear();
                    if error.is_read_only() {
                        drop(Object::take(object));
                        self.connector.retire_sessions();
                    }
                }
                result
            }
            Err(_) => Err(StoreError::unavailable(
                "the database did not answer in time",
            )),
        }
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        if let Some(object) = self.object.take() {
            self.connector.cancel(&object);
            drop(Object::take(object));
        }
    }
}

/// The outbox of one table. Cheap to clone.
#[derive(Debug, Clone)]
pub struct PostgresStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    database: Database,
    table: Table,
    sql: Sql,
    grants: String,
    hidden: Hidden,
    portion: Portion,
}

/// Whether policies hide rows by now. Once they do, the table must be opened anew.
#[derive(Debug, Default)]
struct Hidden {
    checked_at: Mutex<Option<Instant>>,
    found: OnceLock<StoreError>,
}

impl Hidden {
    /// Whether it is time to read the policies again.
    fn is_due(&self) -> bool {
        let mut checked_at = self
            .checked_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let due = checked_at.is_none_or(|at| at.elapsed() > POLICIES_EVERY);
        if due {
            *checked_at = Some(Instant::now());
        }
        due
    }
}

/// Runs `$body` with a leased connection within the time limit.
macro_rules! run {
    ($self:ident, |$client:ident| $body:expr) => {
        run!($self, client, |$client| $body)
    };
    // `$as`: how the connection is used, `client` or `session`.
    ($self:ident, $as:ident, |$client:ident| $body:expr) => {{
        #[allow(unused_mut, reason = "a client is borrowed mutably, a session is not")]
        let mut lease = $self.inner.database.lease().await?;
        let $client = lease.$as();
        let result = timeout($self.inner.database.timeout, $body).await;
        lease
            .finish(result)
            .map_err(|error| error.with_grants(&$self.inner.grants))
    }};
}
use run;

impl PostgresStore {
    /// Connects, checks the schema's version and looks at the table.
    pub async fn connect(settings: &ConnectSettings, mapping: Mapping) -> Result<Self, StoreError> {
        Database::new(settings, mapping)?.open().await
    }

    /// The same store for an outbox with this many partitions, as stored. With one partition all rows
    /// are one sequence, in order whatever their key.
    pub fn for_partitions(&self, partitions: i32) -> Self {
        let inner = &*self.inner;
        Self {
            inner: Arc::new(Inner {
                sql: Sql::new(&inner.table, partitions == 1),
                grants: inner.grants.clone(),
                table: inner.table.clone(),
                database: inner.database.clone(),
                hidden: Hidden::default(),
                portion: Portion::default(),
            }),
        }
    }

    /// Closes the pool; connections end as they come back.
    pub fn close(&self) {
        self.inner.database.close();
    }

    /// What the table allows.
    pub fn capabilities(&self) -> Capabilities {
        self.inner.table.capabilities()
    }

    /// The outbox's name, quoted and schema-qualified.
    pub fn outbox(&self) -> &str {
        &self.inner.table.name
    }

    /// Reads rows. See [`ReadRequest`].
    ///
    /// On a table without an order column, `seq` is a hash of the id: bounds of main and catch-up reads are ignored and
    /// rows come in no particular order. Rows recorded as suspects are read in their place, with their counts.
    ///
    /// Fails once row-level security may hide rows, which a tick notices. Where the server cuts reads short, fewer rows come
    /// than the limit allows.
    pub async fn read(&self, request: &ReadRequest) -> Result<ReadBatch, StoreError> {
        let inner = &*self.inner;
        if let Some(error) = inner.hidden.found.get() {
            return Err(error.clone());
        }
        let portion = inner.portion.of(request);
        let read = run!(self, session, |session| read::read(
            &session,
            &inner.table,
            &inner.sql,
            &portion
        ));
        inner.portion.learn(&read);
        read
    }

    /// Reads the rest of rows that a read left out. A row that cannot be read comes with the reason.
    pub async fn fetch(&self, request: &FetchRequest) -> Result<FetchBatch, StoreError> {
        let inner = &*self.inner;
        run!(self, session, |session| fetch::fetch(
            &session,
            &inner.table,
            &inner.sql,
            request,
            &inner.sql.pending
        ))
    }

    /// Marks or deletes finished rows. Idempotent. Returns those that are pending all the same, each with the reason; the
    /// others are settled, whoever did it. An error: the database is out of reach, nothing is known.
    ///
    /// Without an order column rows are found by hashing every id of the table, unless it has an index on
    /// `hashtextextended(id::text, 0)`.
    pub async fn settle(&self, settle: &Settle) -> Result<Vec<Unsettled>, StoreError> {
        let inner = &*self.inner;
        if settle.rows.is_empty() {
            return Ok(Vec::new());
        }
        if !settle.careful {
            let limit = inner.database.timeout;
            let done = run!(self, session, |session| settle::settle(
                &session, &inner.sql, settle, limit
            ));
            match done {
                Ok(done) if !done.doubtful && done.rows >= settle.rows.len() as u64 => {
                    return Ok(Vec::new());
                }
                // Settled by somebody else before, or not at all.
                Ok(_) => {
                    return run!(self, |client| settle::without_effect(
                        client, &inner.sql, settle
                    ));
                }
                Err(error) if error.is_outage() => return Err(error),
                // One row may be the cause.
                Err(_) => {}
            }
        }
        run!(self, |client| settle::carefully(client, &inner.sql, settle))
    }

    /// Stores failures of rows in partitions that `replica` owns; returns the `seq` of those stored.
    pub async fn record_failures(
        &self,
        failures: &[Failure],
        replica: Uuid,
    ) -> Result<Vec<i64>, StoreError> {
        let inner = &*self.inner;
        run!(self, |client| failures::record(
            client, &inner.sql, failures, replica
        ))
    }

    /// Loads at most so many records that hold keys up, oldest first, and parked keys that none holds up.
    pub async fn load_failing(
        &self,
        partitions: &Partitions,
        limits: (usize, usize),
    ) -> Result<Loaded, StoreError> {
        let inner = &*self.inner;
        run!(self, |client| failures::load(
            client, &inner.sql, partitions, limits
        ))
    }

    /// Parks and unparks keys. Returns those for which it was done: the others are not the replica's.
    pub async fn park(&self, park: &Park, replica: Uuid) -> Result<Vec<i64>, StoreError> {
        let inner = &*self.inner;
        run!(self, |client| failures::park(
            client, &inner.sql, park, replica
        ))
    }

    /// Registers a replica. The number of partitions already stored wins over `partitions`.
    pub async fn register(
        &self,
        name: &str,
        lease_ttl: Duration,
        partitions: i32,
    ) -> Result<Registered, StoreError> {
        let none = Configuration::default();
        self.register_as(name, lease_ttl, partitions, &none).await
    }

    /// The same for a replica that publishes: as `configuration` says.
    pub async fn register_as(
        &self,
        name: &str,
        lease_ttl: Duration,
        partitions: i32,
        configuration: &Configuration,
    ) -> Result<Registered, StoreError> {
        let inner = &*self.inner;
        run!(self, |client| ownership::register(
            client,
            &inner.sql,
            name,
            lease_ttl,
            partitions,
            configuration
        ))
    }

    /// Reads who is there and who owns what; with `beat`, renews the lease before.
    ///
    /// Fails where the server takes no writes any more, which a relay with nothing to write would not notice.
    pub async fn tick(&self, replica: Uuid, beat: bool) -> Result<Tick, StoreError> {
        let told = Told::default();
        self.tick_telling(replica, beat.then_some(&told)).await
    }

    /// The same; a heartbeat says how the replica stands.
    pub async fn tick_telling(
        &self,
        replica: Uuid,
        beat: Option<&Told>,
    ) -> Result<Tick, StoreError> {
        let inner = &*self.inner;
        let tick = run!(self, session, |session| async {
            let (tick, applies) =
                ownership::tick(&session, &inner.table, &inner.sql, replica, beat).await?;
            // Policies may come at any time. They concern reads; the lease is kept.
            if applies
                && inner.hidden.is_due()
                && let Err(error) = security::check(session.client(), &inner.table).await
                && error.kind() == StoreErrorKind::Schema
            {
                let _ = inner.hidden.found.set(error);
            }
            Ok::<_, StoreError>(tick)
        })?;
        inner.database.connector.met(tick.server_start);
        Ok(tick)
    }

    /// Takes those of the partitions that are free or whose owner is dead.
    pub async fn claim(
        &self,
        replica: Uuid,
        partitions: &[i32],
    ) -> Result<Vec<Claimed>, StoreError> {
        let inner = &*self.inner;
        run!(self, |client| ownership::claim(
            client, &inner.sql, replica, partitions
        ))
    }

    /// Gives partitions up, where owned, and wakes the others.
    pub async fn release(&self, replica: Uuid, partitions: &[i32]) -> Result<(), StoreError> {
        let inner = &*self.inner;
        run!(self, |client| ownership::release(
            client,
            &inner.table,
            &inner.sql,
            replica,
            partitions
        ))
    }

    /// Gives everything up and leaves.
    pub async fn unregister(&self, replica: Uuid) -> Result<(), StoreError> {
        let inner = &*self.inner;
        run!(self, |client| ownership::unregister(
            client,
            &inner.table,
            &inner.sql,
            replica
        ))
    }

    /// Promises to poll for `horizon` from now, so that writers need not notify. Writes only when less than half
    /// of the horizon is left.
    pub async fn extend_awake(&self, horizon: Duration) -> Result<(), StoreError> {
        let inner = &*self.inner;
        run!(self, |client| ownership::extend_awake(
            client,
            &inner.table,
            &inner.sql,
            horizon
        ))
    }

    /// Starts listening for wake-ups.
    pub fn listen(&self) -> Listener {
        self.listen_by(&self.inner.database)
    }

    /// The same by another way to the same database, which need not be there yet.
    pub fn listen_by(&self, way: &Database) -> Listener {
        let inner = &*self.inner;
        Listener::spawn(Way {
            connector: way.connector.clone(),
            channel: inner.table.channel.clone(),
            pool: inner.database.pool.clone(),
            retired: inner.database.connector.retired(),
        })
    }
}
