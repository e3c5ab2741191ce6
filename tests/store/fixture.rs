//! One server per test binary, one fresh database per test.

use std::time::Duration;

use outrigger::error::{Reason, ReasonCode};
use outrigger::event::Record;
use outrigger::store::postgres::{
    ConnectSettings, Database, Mapping, OutboxSettings, PostgresStore,
};
use outrigger::store::{Failure, FailureState, Partitions, ReadKind, ReadRequest, Settle, Settled};
use tokio::sync::OnceCell;
use tokio_postgres::Client;

use crate::postgres::Postgres;

static SERVER: OnceCell<Postgres> = OnceCell::const_new();

pub async fn server() -> &'static Postgres {
    SERVER.get_or_init(Postgres::start).await
}

/// A migrated database with a native outbox.
pub struct Fixture {
    pub name: String,
    pub client: Client,
    pub store: PostgresStore,
}

pub fn connect_settings(url: &str) -> ConnectSettings {
    ConnectSettings {
        url: Some(url.into()),
        pool_size: 4,
        timeout: Duration::from_secs(20),
        ..ConnectSettings::default()
    }
}

pub fn database(url: &str, settings: &OutboxSettings) -> Database {
    Database::new(&connect_settings(url), Mapping::new(settings).unwrap()).unwrap()
}

impl Fixture {
    pub async fn new() -> Self {
        Self::with("", &OutboxSettings::default()).await
    }

    /// Runs `ddl`, migrates and opens.
    pub async fn with(ddl: &str, settings: &OutboxSettings) -> Self {
        Self::build(server().await, ddl, settings).await
    }

    /// The native outbox on a server of the test's own.
    pub async fn on(server: &Postgres) -> Self {
        Self::build(server, "", &OutboxSettings::default()).await
    }

    /// The native outbox in a database that knows no encoding.
    pub async fn of_bytes() -> Self {
        let server = server().await;
        let name = format!("{}_bytes", server.create_database().await);
        let create =
            format!("create database {name} encoding 'SQL_ASCII' locale 'C' template template0");
        let client = server.client("postgres").await;
        client.batch_execute(&create).await.unwrap();
        Self::fill(server, name, "", &OutboxSettings::default()).await
    }

    async fn build(server: &Postgres, ddl: &str, settings: &OutboxSettings) -> Self {
        let name = server.create_database().await;
        Self::fill(server, name, ddl, settings).await
    }

    async fn fill(server: &Postgres, name: String, ddl: &str, settings: &OutboxSettings) -> Self {
        let client = server.client(&name).await;
        client.batch_execute(ddl).await.unwrap();
        let database = database(&server.url(&name), settings);
        database.migrate(true).await.unwrap();
        let store = database.open().await.unwrap();
        Self {
            name,
            client,
            store,
        }
    }

    pub async fn sql(&self, text: &str) {
        self.client
            .batch_execute(text)
            .await
            .unwrap_or_else(|error| panic!("{text}: {error:?}"));
    }

    pub async fn count(&self, text: &str) -> i64 {
        self.client.query_one(text, &[]).await.unwrap().get(0)
    }

    /// Inserts `n` events with keys `k0..k{keys}`.
    pub async fn insert(&self, n: i64, keys: i64) {
        self.sql(&format!(
            "insert into outbox (type, key, data) select 't', 'k' || g % {keys}, jsonb_build_object('n', g) \
             from generate_series(1, {n}) g"
        ))
        .await;
    }

    pub async fn seqs(&self, request: &ReadRequest) -> Vec<i64> {
        self.store
            .read(request)
            .await
            .unwrap()
            .rows
            .iter()
            .map(|row| row.seq)
            .collect()
    }
}

/// A row that failed three times and is due at once.
pub fn failure(row: &Record, state: FailureState) -> Failure {
    Failure {
        seq: row.seq,
        hash: row.hash,
        keyed: row.keyed,
        event_id: row.id.clone(),
        event_type: row.event_type.clone(),
        key: row.key.clone(),
        state,
        attempts: 3,
        crashes: 2,
        reason: Some(Reason::new(ReasonCode::Nack, "queue full")),
        retry_after: Some(Duration::ZERO),
    }
}

/// A row that was read, as it is settled.
pub fn row_settled(row: &Record) -> Settled {
    Settled {
        seq: row.seq,
        id: row.id.clone(),
    }
}

/// What a relay that read these rows would settle. Rows that are not there get an id of their own.
pub async fn settled(store: &PostgresStore, seqs: &[i64], failed_before: &[i64]) -> Settle {
    let first = seqs.iter().min().copied().unwrap_or_default();
    let rows = store.tail(first - 1, 1_000).await.unwrap();
    let settled = |seq: &i64| Settled {
        seq: *seq,
        id: rows
            .iter()
            .find(|row| row.record.seq == *seq)
            .map_or_else(|| format!("none of {seq}"), |row| row.record.id.clone()),
    };
    Settle {
        rows: seqs.iter().map(settled).collect(),
        failed_before: failed_before.to_vec(),
        expired: Vec::new(),
        careful: false,
    }
}

pub fn request(kind: ReadKind) -> ReadRequest {
    ReadRequest {
        kind,
        partitions: Partitions::All,
        skip_keys: vec![],
        known: vec![],
        limit: 1000,
        source: None,
        byte_limit: 1 << 24,
        whole: 1 << 24,
        max_event: 1 << 24,
    }
}

pub fn from_start() -> ReadRequest {
    request(ReadKind::Main { after: None })
}
