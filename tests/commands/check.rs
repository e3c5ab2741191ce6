//! `check`.

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties, ExchangeKind};
use serde_json::Value;
use tokio::sync::OnceCell;

use crate::rabbitmq::RabbitMq;
use crate::tool::{Tool, server};

async fn node() -> &'static RabbitMq {
    static NODE: OnceCell<RabbitMq> = OnceCell::const_new();
    NODE.get_or_init(RabbitMq::start).await
}

/// Nothing but the database is checked.
pub(crate) async fn alone(tool: &Tool) -> Tool {
    tool.with(&[
        ("OUTRIGGER_SINK", "stdout"),
        ("OUTRIGGER_EVENT_SOURCE", "/t"),
    ])
    .await
}

async fn with_broker(tool: &Tool, url: &str, exchange: &str) -> Tool {
    tool.with(&[
        ("OUTRIGGER_RABBITMQ_URL", url),
        ("OUTRIGGER_EVENT_SOURCE", "/t"),
        ("OUTRIGGER_ROUTE_DESTINATION", exchange),
    ])
    .await
}

/// Runs `check`, insists on the exit code, and returns the findings.
#[track_caller]
pub(crate) fn check(tool: &Tool, code: i32, more: &[&str]) -> Value {
    let output = tool.run(&[&["check", "-o", "json"], more].concat());
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["ok"], code == 0, "{json:#}");
    json
}

/// The findings of one kind: text and remedy.
fn found(json: &Value, result: &str) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let checks = json["checks"].as_array().unwrap();
    checks
        .iter()
        .filter(|check| check["result"] == result)
        .map(|check| {
            let remedy = check["remedy"].as_array().unwrap();
            let lines: Vec<_> = remedy.iter().map(text).collect();
            (text(&check["text"]), lines.join("\n"))
        })
        .collect()
}

/// Insists on exactly one finding of this kind, with these words in text and remedy.
#[track_caller]
pub(crate) fn only(json: &Value, result: &str, says: &str, remedy: &str) {
    let found = found(json, result);
    assert_eq!(found.len(), 1, "{json:#}");
    assert!(found[0].0.contains(says), "{found:?} lacks {says:?}");
    assert!(found[0].1.contains(remedy), "{found:?} lacks {remedy:?}");
}

#[track_caller]
pub(crate) fn says(json: &Value, result: &str, part: &str) {
    let found = found(json, result);
    assert!(
        found.iter().any(|(text, _)| text.contains(part)),
        "{part:?} is not among {found:#?}"
    );
}

#[tokio::test]
async fn row_level_security_that_hides_rows_is_predicted() {
    let tool = Tool::new().await;
    let (other, role) = tool.as_new_role().await;
    tool.sql(&tool.ok(&["check", "--grants", &role, &role]))
        .await;
    let relay = alone(&other).await;
    check(&relay, 0, &[]);
    tool.sql("alter table outbox enable row level security")
        .await;
    let json = check(&relay, 3, &[]);
    let words = format!("row-level security of table public.outbox may hide rows from role {role}");
    only(&json, "failed", &words, "");
    // Not that nothing is pending.
    let error = relay.fails(1, &["status"]);
    assert!(error.contains(&words), "{error}");
    tool.sql(&format!(
        "create policy outrigger on outbox to {role} using (true) with check (true)"
    ))
    .await;
    check(&relay, 0, &[]);
}

#[tokio::test]
async fn all_is_well() {
    let tool = Tool::new().await;
    let node = node().await;
    let connection = Connection::connect(&node.url(), ConnectionProperties::default())
        .await
        .unwrap();
    let channel = connection.create_channel().await.unwrap();
    let durable = ExchangeDeclareOptions {
        durable: true,
        ..Default::default()
    };
    let none = FieldTable::default;
    channel
        .exchange_declare("well".into(), ExchangeKind::Topic, durable, none())
        .await
        .unwrap();
    channel
        .queue_declare("well".into(), QueueDeclareOptions::default(), none())
        .await
        .unwrap();
    let bind = QueueBindOptions::default();
    channel
        .queue_bind("well".into(), "well".into(), "order.#".into(), bind, none())
        .await
        .unwrap();
    let tool = with_broker(&tool, &node.url(), "well").await;

    let text = tool.ok(&["check"]);
    for part in [
        "settings\n  ok       ",
        "  ok       127.0.0.1:",
        "as role postgres, not encrypted\n",
        "  ok       primary, takes writes\n",
        "  ok       schema outrigger, version 1\n",
        "  ok       table public.outbox\n",
        "columns: seq bigint, id uuid, type text, ",
        "  ok       ordering strict per key\n",
        "  ok       LISTEN works, and a notification arrived\n",
        "  ok       RabbitMQ ",
        "  ok       events: exchange `well` of type topic\n",
        "\nready to run: ",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    assert!(
        !text.contains('\u{1b}') && !text.contains("guest:guest"),
        "{text}"
    );
    let json = check(&tool, 0, &[]);
    // The test server allows prepared transactions.
    only(
        &json,
        "warning",
        "PREPARE TRANSACTION fails",
        "--no-trigger",
    );

    let json = check(&tool, 0, &["--probe=order.probed"]);
    says(
        &json,
        "ok",
        "key `order.probed`: confirmed, and a queue took it",
    );
    let passive = QueueDeclareOptions {
        passive: true,
        ..Default::default()
    };
    let queue = channel.queue_declare("well".into(), passive, none()).await;
    assert_eq!(queue.unwrap().message_count(), 1);
    let json = check(&tool, 3, &["--probe"]);
    only(
        &json,
        "failed",
        "key `outrigger.probe`: unroutable",
        "--probe=TYPE",
    );
}

#[tokio::test]
async fn a_missing_exchange_is_named() {
    let tool = Tool::new().await;
    let tool = with_broker(&tool, &node().await.url(), "nowhere").await;
    let json = check(&tool, 3, &["--probe"]);
    only(
        &json,
        "failed",
        "events: exchange `nowhere` does not exist in vhost `/`; declare it, or let Outrigger do so",
        "",
    );
    let declaring = tool.with(&[("OUTRIGGER_RABBITMQ_DECLARE", "true")]).await;
    for _ in 0..2 {
        let json = check(&declaring, 0, &[]);
        says(
            &json,
            "ok",
            "`nowhere` does not exist yet; the relay declares it",
        );
    }
    let dead = tool
        .with(&[
            ("OUTRIGGER_ROUTE_DESTINATION", "{{ type }}"),
            ("OUTRIGGER_RETRY_DEAD_LETTER_DESTINATION", "graveyard"),
        ])
        .await;
    let json = check(&dead, 3, &[]);
    says(&json, "ok", "events: the exchange depends on the event");
    only(
        &json,
        "failed",
        "dead events: exchange `graveyard` does not exist",
        "",
    );
}

#[tokio::test]
async fn brokers_that_cannot_be_used_are_named() {
    let tool = Tool::new().await;
    let good = node().await.url();
    let wrong = good.replace("guest:guest", "guest:hunter2");
    let closed = format!(
        "amqp://guest:guest@127.0.0.1:{}",
        crate::postgres::free_port()
    );
    for url in [&wrong, &closed] {
        let tool = with_broker(&tool, url, "amq.topic").await;
        let json = check(&tool, 3, &[]);
        only(&json, "failed", "", "OUTRIGGER_RABBITMQ_URL");
        assert!(!json.to_string().contains("hunter2"), "{json:#}");
        let both = with_broker(&tool, &format!("{url},{good}"), "amq.topic").await;
        let json = check(&both, 0, &[]);
        says(&json, "warning", "one of several servers: ");
    }
}

#[tokio::test]
async fn databases_that_cannot_be_used_are_named() {
    let empty = alone(&Tool::empty().await).await;
    let json = check(&empty, 3, &[]);
    says(&json, "failed", "there is no schema outrigger");
    says(&json, "failed", "run `outrigger migrate` to create it");
    let server = server().await;
    let port = crate::postgres::free_port();
    for (url, says, remedy) in [
        (
            server.url("nowhere"),
            "does not exist",
            "create the database",
        ),
        (
            server.url_as("nobody", &empty.name),
            "nobody",
            "check user and password",
        ),
        (
            format!("postgres://x@127.0.0.1:{port}/x"),
            "refused",
            "check that the server runs",
        ),
    ] {
        let tool = empty.with(&[("OUTRIGGER_DATABASE_URL", &url)]).await;
        only(&check(&tool, 3, &[]), "failed", says, remedy);
    }
    empty.ok(&["migrate"]);
    empty
        .sql("update outrigger.migrations set version = 9")
        .await;
    let json = check(&empty, 3, &[]);
    says(&json, "failed", "at version 9, this binary knows only 1");
}

#[tokio::test]
async fn read_only_sessions_are_found() {
    let tool = alone(&Tool::new().await).await;
    let (poor, role) = tool.as_new_role().await;
    tool.sql(&format!(
        "alter role {role} superuser; alter role {role} set default_transaction_read_only = on"
    ))
    .await;
    only(
        &check(&poor, 3, &[]),
        "failed",
        "sessions are read-only",
        "reset default_transaction_read_only",
    );
}

#[tokio::test]
async fn the_printed_grants_are_exactly_what_is_missing() {
    let tool = alone(&Tool::new().await).await;
    let (poor, role) = tool.as_new_role().await;
    let json = check(&poor, 3, &[]);
    let (_, statements) = found(&json, "failed")
        .into_iter()
        .find(|(text, _)| text.contains("lacks privileges"))
        .unwrap();
    tool.sql(&statements).await;
    let json = check(&poor, 0, &[]);
    says(
        &json,
        "ok",
        &format!("role {role} has every privilege it needs"),
    );
    says(&json, "ok", "LISTEN works");

    // The statements that can be had beforehand do as well.
    let tool = alone(&Tool::new().await).await;
    let (poor, relay) = tool.as_new_role().await;
    let writer = format!("writer_of_{}", tool.name);
    tool.sql(&format!("create role {writer} login")).await;
    let nowhere = tool.with(&[("OUTRIGGER_DATABASE_URL", "")]).await;
    let statements = nowhere.ok(&["check", "--grants", &writer, &relay]);
    tool.sql(&statements).await;
    check(&poor, 0, &[]);
    tool.sql(&format!(
        "set role {writer}; select outrigger.emit('t'); insert into outbox (type) values ('t')"
    ))
    .await;
}

#[tokio::test]
async fn the_table_must_suit_the_settings() {
    let tool = alone(&Tool::new().await).await;
    let mapped = tool
        .with(&[("OUTRIGGER_OUTBOX_COLUMN_KEY", "aggregate")])
        .await;
    only(
        &check(&mapped, 3, &[]),
        "failed",
        "no column `aggregate` (OUTRIGGER_OUTBOX_COLUMN_KEY)",
        "",
    );
    tool.sql("alter table outbox alter column seq set cache 10")
        .await;
    only(&check(&tool, 3, &[]), "failed", "CACHE above 1", "cache 1");
    tool.sql("alter table outbox alter column seq set cache 1")
        .await;

    tool.sql("drop index outbox_pending").await;
    let json = check(&tool, 0, &[]);
    let warnings = found(&json, "warning");
    let (_, statement) = warnings
        .iter()
        .find(|(text, _)| text.contains("no index of the pending rows"))
        .unwrap();
    tool.sql(statement).await;
    assert_eq!(
        found(&check(&tool, 0, &[]), "warning").len(),
        warnings.len() - 1
    );

    tool.sql("create table events (id uuid, aggregatetype text, aggregateid text, type text, payload jsonb)")
        .await;
    let debezium = tool
        .with(&[
            ("OUTRIGGER_OUTBOX_PRESET", "debezium"),
            ("OUTRIGGER_OUTBOX_TABLE", "events"),
            ("OUTRIGGER_OUTBOX_AFTER_PUBLISH", "delete"),
        ])
        .await;
    debezium.ok(&["migrate"]);
    let json = check(&debezium, 3, &[]);
    only(
        &json,
        "failed",
        "needs an order column",
        "generated always as identity",
    );
    let unordered = debezium.with(&[("OUTRIGGER_RELAY_ORDERING", "none")]).await;
    let json = check(&unordered, 0, &[]);
    let (_, statement) = found(&json, "warning")
        .into_iter()
        .find(|(text, _)| text.contains("no index"))
        .unwrap();
    tool.sql(&statement).await;
    let json = check(&unordered, 0, &[]);
    says(&json, "ok", "indexes");
    let marking = debezium
        .with(&[("OUTRIGGER_OUTBOX_AFTER_PUBLISH", "mark")])
        .await;
    only(
        &check(&marking, 3, &[]),
        "failed",
        "OUTRIGGER_OUTBOX_AFTER_PUBLISH=mark needs a column",
        "",
    );
}

#[tokio::test]
async fn a_missing_trigger_matters_only_to_those_who_listen() {
    let tool = alone(&Tool::new().await).await;
    tool.ok(&["migrate", "--no-trigger"]);
    only(
        &check(&tool, 0, &[]),
        "warning",
        "no wake-up trigger",
        "outrigger migrate",
    );
    let polling = tool.with(&[("OUTRIGGER_RELAY_WAKE", "poll")]).await;
    let json = check(&polling, 0, &[]);
    assert_eq!(json["summary"]["warning"], 0, "{json:#}");
    let text = polling.ok(&["check"]);
    assert!(text.contains("\nnothing wrong found: "), "{text}");
}

#[tokio::test]
async fn a_grant_that_a_restore_lost_is_named() {
    let tool = alone(&Tool::new().await).await;
    let writer = format!("writer_of_{}", tool.name);
    tool.sql(&format!(
        "create role {writer} login; grant insert on outbox to {writer}; \
         revoke select on sequence outrigger.\"awake:public.outbox\" from public"
    ))
    .await;
    let json = check(&tool, 0, &[]);
    let (text, statement) = found(&json, "warning")
        .into_iter()
        .find(|(text, _)| text.contains("each insert notifies"))
        .unwrap();
    assert!(text.contains(&writer), "{text}");
    tool.sql(&statement).await;
    assert!(
        !check(&tool, 0, &[])
            .to_string()
            .contains("each insert notifies")
    );
}

#[tokio::test]
async fn a_sequence_behind_its_table_is_found() {
    let tool = alone(&Tool::new().await).await;
    tool.insert(3, "t").await;
    check(&tool, 0, &[]);
    // As a restore of the data alone leaves it.
    tool.sql("alter table outbox alter seq restart; insert into outbox (seq, type) overriding system value values (9, 't')")
        .await;
    let json = check(&tool, 3, &[]);
    let (_, statement) = found(&json, "failed").remove(0);
    tool.sql(&statement).await;
    check(&tool, 0, &[]);
}

#[tokio::test]
async fn what_happens_to_the_history_is_said_before() {
    let tool = alone(&Tool::new().await).await;
    says(
        &check(&tool, 0, &[]),
        "ok",
        "published rows are deleted 7d after",
    );
    tool.insert(5, "t").await;
    tool.sql("update outbox set published_at = now() - interval '400 days' where seq < 4")
        .await;
    let json = check(&tool, 0, &[]);
    let expected =
        "3 published rows are older than 7d, the oldest by 400d, and the relay will delete them";
    says(&json, "warning", expected);
    let kept = tool.with(&[("OUTRIGGER_OUTBOX_RETENTION", "off")]).await;
    says(
        &check(&kept, 0, &[]),
        "ok",
        "published rows are kept for ever",
    );

    // A table that was there before keeps what it has, unless told otherwise; and what it did not mark would go out.
    tool.sql(
        "create table events (seq bigserial primary key, id uuid default gen_random_uuid(), type text, key text, \
           created_at timestamptz, published_at timestamptz); \
         create index on events (seq) where published_at is null; \
         insert into events (type, created_at, published_at) values ('t', now() - interval '400 days', '2020-01-01'), \
           ('t', now() - interval '400 days', null)",
    )
    .await;
    let mapped = tool.with(&[("OUTRIGGER_OUTBOX_TABLE", "events")]).await;
    mapped.ok(&["migrate"]);
    let json = check(&mapped, 0, &[]);
    says(&json, "ok", "published rows are kept for ever");
    says(
        &json,
        "warning",
        "1 rows count as not published, the oldest of them for 400d",
    );
}

#[tokio::test]
async fn broken_settings_do_not_hide_the_rest() {
    let tool = Tool::new().await;
    let tool = tool
        .with(&[
            ("OUTRIGGER_RELAY_BATCH_SIZE", "lots"),
            ("OUTRIGGER_OUTBX_TABLE", "x"),
        ])
        .await;
    let json = check(&tool, 3, &[]);
    for part in [
        "OUTRIGGER_RELAY_BATCH_SIZE=\"lots\"",
        "OUTRIGGER_OUTBX_TABLE",
        "OUTRIGGER_EVENT_SOURCE",
    ] {
        says(&json, "failed", part);
    }
    says(&json, "ok", "LISTEN works");
    says(&json, "warning", "skipped: invalid settings");
}

#[tokio::test]
async fn publications_without_a_replica_identity_are_found_before_they_stop_the_relay() {
    let tool = alone(&Tool::new().await).await;
    // A native table has a key, and is fine in any publication.
    tool.sql("create publication everything for all tables")
        .await;
    check(&tool, 0, &[]);
    tool.sql("alter table outbox drop constraint outbox_pkey cascade")
        .await;
    tool.sql("create index on outbox (seq)").await;
    only(
        &check(&tool, 3, &[]),
        "failed",
        "publication everything covers public.outbox, which has no replica identity",
        "replica identity full",
    );
    tool.sql("alter table outbox replica identity full").await;
    check(&tool, 0, &[]);
    tool.sql("alter table outbox replica identity default; drop publication everything")
        .await;
    tool.sql("create publication inserts for table outbox with (publish = 'insert')")
        .await;
    check(&tool, 0, &[]);
}

#[tokio::test]
async fn of_several_hosts_the_one_that_answered_is_named() {
    let tool = alone(&Tool::new().await).await;
    let port = server().await.port();
    let url = format!(
        "postgres://postgres@127.0.0.1:1,127.0.0.1:{port}/{}?sslmode=disable",
        tool.name
    );
    let tool = tool.with(&[("OUTRIGGER_DATABASE_URL", &url)]).await;
    let part = format!("(127.0.0.1:{port} took the connection)");
    says(&check(&tool, 0, &[]), "ok", &part);
}

#[tokio::test]
async fn the_remedy_is_said_once_and_names_what_the_user_set() {
    let tool = alone(&Tool::new().await).await;
    let port = server().await.port();
    let url = format!("postgres://postgres@127.0.0.1:{port}/nowhere?sslmode=disable");
    let tool = tool
        .with(&[("OUTRIGGER_DATABASE_URL", ""), ("DATABASE_URL", &url)])
        .await;
    only(
        &check(&tool, 3, &[]),
        "failed",
        "database \"nowhere\" does not exist (SQLSTATE 3D000)",
        "correct its name in DATABASE_URL",
    );
    let output = tool.run(&["status"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        said.matches("correct its name in DATABASE_URL").count(),
        1,
        "{said}"
    );
    assert!(!said.contains("OUTRIGGER_DATABASE_URL"), "{said}");
}

#[tokio::test]
async fn a_template_that_cannot_be_read_is_said_once() {
    let tool = Tool::new().await;
    let wrong = tool
        .with(&[
            ("OUTRIGGER_SINK", "stdout"),
            ("OUTRIGGER_EVENT_SOURCE", "/t"),
            ("OUTRIGGER_ROUTE_KEY", "{{ type"),
        ])
        .await;
    let output = wrong.run(&["check"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(text.matches("OUTRIGGER_ROUTE_KEY").count(), 1, "{text}");
    assert!(text.contains("skipped: invalid settings"), "{text}");
}
