//! What `check` predicts of surroundings: limits, tables, relays that wait.

use crate::check::{check, says};
use crate::postgres::free_port;
use crate::tool::{Tool, until_count};

/// Nothing but the database is checked.
const ALONE: &[(&str, &str)] = &[
    ("OUTRIGGER_SINK", "stdout"),
    ("OUTRIGGER_EVENT_SOURCE", "/t"),
];

#[tokio::test]
async fn a_table_that_a_crash_empties() {
    let tool = Tool::new().await.with(ALONE).await;
    let unlogged = "table public.outbox is UNLOGGED";
    assert!(!check(&tool, 0, &[]).to_string().contains(unlogged));
    tool.sql("alter table outbox set unlogged").await;
    says(&check(&tool, 0, &[]), "warning", unlogged);
    tool.sql("alter table outbox set logged").await;
    assert!(!check(&tool, 0, &[]).to_string().contains(unlogged));
    // One table below it is enough.
    tool.sql("create unlogged table child () inherits (outbox)")
        .await;
    says(&check(&tool, 0, &[]), "warning", unlogged);
}

#[tokio::test]
async fn connections_that_role_or_database_may_not_have() {
    let tool = Tool::new().await.with(ALONE).await;
    let (relay, role) = tool.as_new_role().await;
    tool.sql(&format!("alter role {role} connection limit 6"))
        .await;
    let json = check(&relay, 3, &[]).to_string();
    assert!(!json.contains("limited to"), "{json}");
    tool.sql(&format!("alter role {role} connection limit 5"))
        .await;
    let limited = format!(
        "role {role} is limited to 5 connections; a replica uses 3 at most, two during an update 6"
    );
    says(&check(&relay, 3, &[]), "warning", &limited);
    let name = &tool.name;
    tool.sql(&format!(
        "alter role {role} connection limit -1; alter database {name} connection limit 4"
    ))
    .await;
    let limited = format!("database {name} is limited to 4 connections");
    says(&check(&relay, 3, &[]), "warning", &limited);
    // No limit concerns a superuser.
    let json = check(&tool, 0, &[]).to_string();
    assert!(!json.contains("limited to"), "{json}");
}

#[tokio::test]
async fn a_relay_that_runs_and_does_not_publish() {
    let tool = Tool::new().await;
    let nobody = format!("amqp://127.0.0.1:{}", free_port());
    let relay = tool
        .with(&[
            ("OUTRIGGER_RABBITMQ_URL", &nobody),
            ("OUTRIGGER_EVENT_SOURCE", "/t"),
            ("OUTRIGGER_ADMIN_LISTEN", "off"),
            ("OUTRIGGER_RELAY_NAME", "orders-0"),
        ])
        .await;
    let running = relay.follow(&["run"]);
    tool.insert(1, "t").await;
    let waiting = "select count(*) from outrigger.replicas where waits_for is not null";
    until_count(
        &tool.client,
        "the relay says what it waits for",
        waiting,
        |n| n > 0,
    )
    .await;
    // The broker fails as well, which only its own words tell from a broker that takes nothing.
    let json = check(&relay, 3, &[]);
    says(&json, "warning", "`orders-0` does not publish: ");
    assert!(
        !json
            .to_string()
            .contains("one runs, with the same settings"),
        "{json:#}"
    );
    let (code, _) = running.stop("-TERM");
    assert_eq!(code, Some(0));
}

#[tokio::test]
async fn a_database_whose_triggers_forbid_what_migrate_does() {
    let tool = Tool::empty().await;
    tool.sql(
        "create function no_ddl() returns event_trigger language plpgsql as \
           $$ begin raise exception 'ask the database team'; end $$; \
         create event trigger no_ddl on ddl_command_start when tag in ('CREATE SCHEMA') execute function no_ddl()",
    )
    .await;
    let told = tool.fails(1, &["migrate"]);
    assert!(told.contains("ask the database team"), "{told}");
    assert!(
        told.contains("a trigger, an event trigger or a rule"),
        "{told}"
    );
    assert_eq!(
        tool.count("pg_namespace where nspname = 'outrigger'").await,
        0
    );
    tool.sql("drop event trigger no_ddl").await;
    tool.ok(&["migrate"]);
}
