//! The writers of `examples/writers`, and the recipes of the documents, against a real server.
//!
//! `scripts/writers` prepares those that need a runtime of their own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    unreachable_pub
)]

mod existing;
#[path = "../../examples/writers/rust/orders.rs"]
mod orders;
#[path = "../support/postgres.rs"]
#[allow(dead_code)]
mod postgres;
mod recipes;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tokio::sync::OnceCell;
use tokio_postgres::Client;

use crate::postgres::Postgres;

static SERVER: OnceCell<Postgres> = OnceCell::const_new();

async fn server() -> &'static Postgres {
    SERVER.get_or_init(Postgres::start).await
}

/// A migrated database.
struct Shop {
    name: String,
    client: Client,
}

impl Shop {
    async fn new() -> Self {
        let server = server().await;
        let name = server.create_database().await;
        let migrate = Command::new(env!("CARGO_BIN_EXE_outrigger"))
            .arg("migrate")
            .env_clear()
            .env("OUTRIGGER_DATABASE_URL", server.url(&name))
            .output()
            .unwrap();
        assert!(migrate.status.success(), "{migrate:?}");
        let client = server.client(&name).await;
        Self { name, client }
    }

    /// A shop with orders, and the URL of a role that may write them and add events, and nothing else.
    async fn with_writer() -> (Self, String) {
        let shop = Self::new().await;
        // Roles belong to the whole server.
        let role = format!("writer_of_{}", shop.name);
        let schema = include_str!("../../examples/writers/schema.sql");
        let grants = format!(
            "create role {role} login; grant select, insert, update on orders to {role}; \
             grant insert on outbox to {role};"
        );
        shop.client.batch_execute(schema).await.unwrap();
        shop.client.batch_execute(&grants).await.unwrap();
        let url = server().await.url_as(&role, &shop.name);
        (shop, url)
    }

    /// The events in their order, and the orders.
    async fn written(&self) -> Value {
        let written = "select json_build_object('events', \
             (select json_agg(json_build_array(type, subject, key, data) order by seq) from outbox), \
             'orders', (select json_agg(json_build_array(id, customer, total::text, status)) from orders))";
        self.client.query_one(written, &[]).await.unwrap().get(0)
    }
}

/// What every writer leaves behind: the cancellation was refused, and its event went with it.
fn expected() -> Value {
    json!({
        "events": [
            ["order.placed", "42", "order-42", {"id": 42, "customer": "Zoë 🐇", "total": "99.90"}],
            ["order.paid", "42", "order-42", {"id": 42}],
        ],
        "orders": [[42, "Zoë 🐇", "99.90", "paid"]],
    })
}

/// What `scripts/writers` has prepared for a language.
fn prepared(language: &str) -> Option<PathBuf> {
    let run = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(".cache/writers")
        .join(language)
        .join("run");
    if run.is_file() {
        return Some(run);
    }
    let required = std::env::var("WRITERS_REQUIRED").unwrap_or_default();
    assert!(
        !required.split_whitespace().any(|name| name == language),
        "the {language} writer is required and not prepared: run scripts/writers"
    );
    eprintln!("skipped: the {language} writer is not prepared (scripts/writers does that)");
    None
}

async fn writer(language: &str) {
    let Some(run) = prepared(language) else {
        return;
    };
    let (shop, url) = Shop::with_writer().await;
    let jdbc = format!(
        "jdbc:postgresql://127.0.0.1:{}/{}?user=writer_of_{}&sslmode=disable",
        server().await.port(),
        shop.name,
        shop.name
    );
    let said = tokio::task::spawn_blocking(move || {
        Command::new(run)
            .env("DATABASE_URL", url)
            .env("JDBC_URL", jdbc)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    })
    .await
    .unwrap();
    assert!(
        said.status.success(),
        "{language}: {}",
        String::from_utf8_lossy(&said.stderr)
    );
    assert_eq!(
        String::from_utf8_lossy(&said.stdout).trim(),
        "order 42 is paid",
        "{language}"
    );
    assert_eq!(shop.written().await, expected(), "{language}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rust_writes_events() {
    let (shop, url) = Shop::with_writer().await;
    let (mut client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    let said = orders::run(&mut client).await.unwrap();
    assert_eq!(said, "order 42 is paid");
    assert_eq!(shop.written().await, expected());
}

#[tokio::test(flavor = "multi_thread")]
async fn python_writes_events() {
    writer("python").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn go_writes_events() {
    writer("go").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn java_writes_events() {
    writer("java").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_writes_events() {
    writer("node").await;
}
