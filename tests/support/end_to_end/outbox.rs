//! One test's own database on a shared server: the outbox, its ledger, and their comparison with what was delivered.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use outrigger::settings::SETTINGS;
use outrigger::store::postgres::{
    ConnectSettings, Database, Mapping, OutboxSettings, PostgresStore,
};
use tokio_postgres::Client;

use super::checker::{Arrival, Entry, FinalRow, Report, check};
use super::postgres::Postgres;
use super::relay::Settings;
use super::wait::{PATIENCE, until};

/// See the module.
pub struct Outbox {
    pub postgres: Arc<Postgres>,
    pub database: String,
    pub sql: Client,
    pub store: PostgresStore,
}

impl Outbox {
    /// A new database. Runs `ddl`, then migrates.
    pub async fn new(postgres: Arc<Postgres>, ddl: &str, outbox: &OutboxSettings) -> Self {
        let database = postgres.create_database().await;
        let sql = postgres.client(&database).await;
        sql.batch_execute(ddl).await.unwrap();
        let store = migrated(&postgres.url(&database), outbox).await;
        Self {
            postgres,
            database,
            sql,
            store,
        }
    }

    /// What any relay needs to read it.
    pub fn source(&self) -> Settings {
        let settings = Settings::default()
            .set("DATABASE_URL", self.postgres.url(&self.database))
            .set("EVENT_SOURCE", "/test");
        // Relays of one machine would fight for a fixed port.
        if SETTINGS.iter().any(|setting| setting.key == "admin.listen") {
            return settings.set("ADMIN_LISTEN", "127.0.0.1:0");
        }
        settings
    }

    /// Another connection.
    pub async fn client(&self) -> Client {
        self.postgres.client(&self.database).await
    }

    pub async fn run(&self, sql: &str) {
        self.sql
            .batch_execute(sql)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    pub async fn count(&self, sql: &str) -> i64 {
        let row = self.sql.query_one(sql, &[]).await;
        row.unwrap_or_else(|error| panic!("{sql}: {error:?}"))
            .get(0)
    }

    /// First column of all rows, as text.
    pub async fn texts(&self, sql: &str) -> Vec<String> {
        let rows = self.sql.query(sql, &[]).await;
        let rows = rows.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// Waits until a count has this value.
    #[track_caller]
    pub fn await_count(&self, what: &str, sql: &str, wanted: i64) -> impl Future<Output = ()> {
        self.await_that(what, sql, PATIENCE, move |count| count == wanted)
    }

    /// Waits until a count is as wanted.
    #[track_caller]
    pub fn await_that(
        &self,
        what: &str,
        sql: &str,
        limit: Duration,
        wanted: impl Fn(i64) -> bool + Copy,
    ) -> impl Future<Output = ()> {
        until(what, limit, move || async move {
            let count = self.count(sql).await;
            if wanted(count) {
                Ok(())
            } else {
                Err(count.to_string())
            }
        })
    }

    /// Waits until no row is left to publish.
    #[track_caller]
    pub fn await_settled(&self) -> impl Future<Output = ()> {
        self.await_count(
            "every row is published",
            "select count(*) from outbox where published_at is null",
            0,
        )
    }

    /// Waits until living replicas own every partition, and `replicas` of them own some.
    #[track_caller]
    pub fn await_owned(&self, replicas: i64) -> impl Future<Output = ()> {
        self.await_count(
            "every partition is owned, by as many replicas",
            "select case when bool_and(r.replica is not null) then count(distinct p.owner) else 0 end \
             from outrigger.partitions p left join outrigger.replicas r \
               on r.replica = p.owner and r.lease_until > clock_timestamp()",
            replicas,
        )
    }

    /// What was committed, by writers that keep the ledger.
    pub async fn ledger(&self) -> Vec<Entry> {
        let rows = self
            .sql
            .query("select id::text, key, version, data from ledger", &[])
            .await
            .unwrap();
        rows.iter()
            .map(|row| Entry {
                id: row.get(0),
                key: row.get(1),
                version: row.get(2),
                data: row.get(3),
            })
            .collect()
    }

    /// What the table says.
    pub async fn rows(&self) -> Vec<FinalRow> {
        let rows = self
            .sql
            .query(
                "select o.id::text, o.published_at is not null, f.state \
                 from outbox o left join outrigger.failures f on f.seq = o.seq and f.event_id = o.id::text",
                &[],
            )
            .await
            .unwrap();
        rows.iter()
            .map(|row| FinalRow {
                id: row.get(0),
                published: row.get(1),
                failure: row.get(2),
            })
            .collect()
    }

    /// Compares ledger, arrivals and table; also tells how much was committed.
    pub async fn compare(&self, arrivals: &[Arrival]) -> (usize, Report) {
        let ledger = self.ledger().await;
        let rows = self.rows().await;
        (ledger.len(), check(&ledger, arrivals, &rows))
    }

    /// Inserts one row by named columns; answers its id.
    pub async fn insert(&self, columns: &str, values: &str) -> String {
        let text = format!("insert into outbox ({columns}) values ({values}) returning id::text");
        self.texts(&text).await.remove(0)
    }
}

/// The store of a database after migrating it.
pub async fn migrated(url: &str, outbox: &OutboxSettings) -> PostgresStore {
    let settings = ConnectSettings {
        url: Some(url.into()),
        ..ConnectSettings::default()
    };
    let database = Database::new(&settings, Mapping::new(outbox).unwrap()).unwrap();
    database.migrate(true).await.unwrap();
    database.open().await.unwrap()
}
