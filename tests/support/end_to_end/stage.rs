//! One test's own database, exchange and queue on shared servers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use lapin::options::{
    ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ConnectionProperties, ExchangeKind};
use outrigger::settings::SETTINGS;
use outrigger::store::postgres::{
    ConnectSettings, Database, Mapping, OutboxSettings, PostgresStore,
};
use tokio_postgres::Client;

use super::checker::{Entry, FinalRow, Report, check};
use super::consumer::{Consumer, Delivery};
use super::postgres::Postgres;
use super::rabbitmq::RabbitMq;
use super::relay::Settings;
use super::wait::{PATIENCE, until};

/// A database server and a broker.
pub struct Servers {
    pub postgres: Postgres,
    pub rabbitmq: RabbitMq,
}

impl Servers {
    pub async fn start() -> Arc<Self> {
        let (postgres, rabbitmq) = tokio::join!(Postgres::start(), RabbitMq::start());
        Arc::new(Self { postgres, rabbitmq })
    }
}

/// A channel that sets up and looks at the broker.
pub struct Admin {
    channel: Channel,
    _connection: Connection,
}

impl Admin {
    pub async fn connect(url: &str) -> Self {
        let connection = Connection::connect(url, ConnectionProperties::default())
            .await
            .unwrap();
        let channel = connection.create_channel().await.unwrap();
        Self {
            channel,
            _connection: connection,
        }
    }

    pub async fn exchange(&self, name: &str, kind: ExchangeKind) {
        let options = ExchangeDeclareOptions {
            durable: true,
            ..ExchangeDeclareOptions::default()
        };
        let table = FieldTable::default();
        self.channel
            .exchange_declare(name.into(), kind, options, table)
            .await
            .unwrap();
    }

    pub async fn delete_exchange(&self, name: &str) {
        self.channel
            .exchange_delete(name.into(), ExchangeDeleteOptions::default())
            .await
            .unwrap();
    }

    pub async fn queue(&self, name: &str, arguments: &[(&str, AMQPValue)]) {
        let options = QueueDeclareOptions {
            durable: true,
            ..QueueDeclareOptions::default()
        };
        self.channel
            .queue_declare(name.into(), options, table(arguments))
            .await
            .unwrap();
    }

    pub async fn bind(
        &self,
        queue: &str,
        exchange: &str,
        key: &str,
        arguments: &[(&str, AMQPValue)],
    ) {
        self.channel
            .queue_bind(
                queue.into(),
                exchange.into(),
                key.into(),
                QueueBindOptions::default(),
                table(arguments),
            )
            .await
            .unwrap();
    }

    pub async fn unbind(&self, queue: &str, exchange: &str, key: &str) {
        let table = FieldTable::default();
        self.channel
            .queue_unbind(queue.into(), exchange.into(), key.into(), table)
            .await
            .unwrap();
    }
}

fn table(arguments: &[(&str, AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        table.insert((*name).into(), value.clone());
    }
    table
}

/// What a test plays on. Exchange and queue share the name.
pub struct Stage {
    pub servers: Arc<Servers>,
    pub database: String,
    pub sql: Client,
    pub name: String,
    pub admin: Admin,
    pub store: PostgresStore,
}

impl Stage {
    /// A native outbox; a topic exchange; a queue that gets everything.
    pub async fn new(servers: Arc<Servers>) -> Self {
        let stage = Self::bare(servers, "", &OutboxSettings::default()).await;
        stage.route("#").await;
        stage
    }

    /// Runs `ddl`, then migrates. The exchange has no queue yet.
    pub async fn bare(servers: Arc<Servers>, ddl: &str, outbox: &OutboxSettings) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("stage-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let database = servers.postgres.create_database().await;
        let sql = servers.postgres.client(&database).await;
        sql.batch_execute(ddl).await.unwrap();
        let store = migrated(&servers.postgres.url(&database), outbox).await;
        let admin = Admin::connect(&servers.rabbitmq.url()).await;
        admin.exchange(&name, ExchangeKind::Topic).await;
        Self {
            servers,
            database,
            sql,
            name,
            admin,
            store,
        }
    }

    /// A queue for `key`, named like the exchange.
    pub async fn route(&self, key: &str) {
        self.admin.queue(&self.name, &[]).await;
        self.admin.bind(&self.name, &self.name, key, &[]).await;
    }

    /// The least that a relay needs to serve this stage.
    pub fn settings(&self) -> Settings {
        let settings = Settings::default()
            .set("DATABASE_URL", self.servers.postgres.url(&self.database))
            .set("RABBITMQ_URL", self.servers.rabbitmq.url())
            .set("EVENT_SOURCE", "/test")
            .set("ROUTE_DESTINATION", &self.name);
        // Relays of one machine would fight for a fixed port.
        if SETTINGS.iter().any(|setting| setting.key == "admin.listen") {
            return settings.set("ADMIN_LISTEN", "127.0.0.1:0");
        }
        settings
    }

    pub async fn consumer(&self) -> Consumer {
        self.consumer_of(&self.name).await
    }

    pub async fn consumer_of(&self, queue: &str) -> Consumer {
        Consumer::start(&self.servers.rabbitmq.url(), queue).await
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
                 from outbox o left join outrigger.failures f on f.seq = o.seq",
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

    /// Compares ledger, deliveries and table.
    pub async fn check(&self, deliveries: &[Delivery]) -> (usize, Report) {
        let arrivals: Vec<_> = deliveries.iter().map(Delivery::arrival).collect();
        let ledger = self.ledger().await;
        let rows = self.rows().await;
        (ledger.len(), check(&ledger, &arrivals, &rows))
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
