//! `migrate`.

use std::process::Stdio;

use crate::tool::{Tool, server};

#[tokio::test]
async fn says_what_it_did_and_does_it_once() {
    let tool = Tool::empty().await;
    assert_eq!(
        tool.ok(&["migrate", "--dry-run"]),
        "would apply migration 1 (outrigger)\n\
         would create table \"outbox\"\n\
         would register \"outbox\" with its wake-up trigger\n"
    );
    assert_eq!(tool.count("pg_class where relname = 'outbox'").await, 0);
    assert_eq!(
        tool.ok(&["migrate"]),
        "applied migration 1 (outrigger)\n\
         created table public.outbox\n\
         registered public.outbox with its wake-up trigger\n"
    );
    assert_eq!(
        tool.ok(&["migrate"]),
        "schema outrigger is up to date (version 1)\n\
         registered public.outbox with its wake-up trigger\n"
    );
    assert_eq!(
        tool.ok(&["migrate", "--dry-run"]),
        "schema outrigger is up to date (version 1)\n\
         public.outbox is registered\n"
    );
}

#[tokio::test]
async fn the_trigger_can_be_left_out_and_removed() {
    let tool = Tool::new().await;
    let trigger = "pg_trigger where tgname = 'outrigger_wake_up'";
    assert_eq!(tool.count(trigger).await, 1);
    let text = tool.ok(&["migrate", "--no-trigger", "--dry-run"]);
    assert!(
        text.contains("would register public.outbox without"),
        "{text}"
    );
    assert_eq!(tool.count(trigger).await, 1);
    let text = tool.ok(&["migrate", "--no-trigger"]);
    assert!(text.contains("OUTRIGGER_RELAY_WAKE=poll"), "{text}");
    assert_eq!(tool.count(trigger).await, 0);
}

#[tokio::test]
async fn the_printed_sql_does_the_same() {
    let tool = Tool::empty().await;
    let nowhere = tool.with(&[("OUTRIGGER_DATABASE_URL", "")]).await;
    let sql = nowhere.ok(&["migrate", "--print"]);
    assert!(sql.starts_with("-- Outrigger"), "{sql}");
    assert!(sql.contains("attach('\"outbox\"', true)"));
    tool.sql(&sql).await;
    let text = tool.ok(&["migrate"]);
    assert!(
        text.starts_with("schema outrigger is up to date (version 1)\n"),
        "{text}"
    );
    let sql = nowhere.ok(&["migrate", "--print", "--no-trigger"]);
    assert!(sql.contains("attach('\"outbox\"', false)"));
}

#[tokio::test]
async fn many_replicas_migrate_at_once() {
    let tool = Tool::empty().await;
    let running: Vec<_> = (0..8)
        .map(|_| {
            tool.command(&["migrate"])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let outputs: Vec<_> = running
        .into_iter()
        .map(|child| child.wait_with_output().unwrap())
        .collect();
    for output in &outputs {
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    }
    let text = |output: &std::process::Output| String::from_utf8_lossy(&output.stdout).into_owned();
    let all: String = outputs.iter().map(text).collect();
    assert_eq!(all.matches("applied migration 1").count(), 1, "{all}");
    assert_eq!(all.matches("created table").count(), 1, "{all}");
    assert_eq!(all.matches("registered public.outbox").count(), 8, "{all}");
    assert_eq!(tool.count("outrigger.migrations").await, 1);
}

#[tokio::test]
async fn what_is_in_the_way_is_named() {
    let tool = Tool::empty().await;
    tool.sql("revoke create on database \"postgres\" from public")
        .await;
    let (poor, _) = tool.as_new_role().await;
    let text = poor.fails(1, &["migrate"]);
    assert!(text.contains("permission denied"), "{text}");
    assert!(text.contains("outrigger migrate --print"), "{text}");

    let mapped = tool
        .with(&[
            ("OUTRIGGER_OUTBOX_COLUMN_KEY", "aggregate"),
            ("OUTRIGGER_OUTBOX_TABLE", "events"),
        ])
        .await;
    let text = mapped.fails(1, &["migrate"]);
    assert!(
        text.contains("create it, or correct OUTRIGGER_OUTBOX_TABLE"),
        "{text}"
    );
    tool.sql("create table events (seq bigint, id uuid, type text)")
        .await;
    let text = mapped.fails(1, &["migrate"]);
    assert!(text.contains("no column `aggregate`"), "{text}");
    // And nothing is left behind by all that.
    let schemas = "pg_namespace where nspname = 'outrigger'";
    assert_eq!(tool.count(schemas).await, 0);
    // What was done before something failed is said.
    let fits = tool
        .with(&[
            ("OUTRIGGER_OUTBOX_TABLE", "events"),
            ("OUTRIGGER_OUTBOX_AFTER_PUBLISH", "delete"),
        ])
        .await;
    tool.sql("create function no() returns event_trigger language plpgsql as $$ begin raise 'no triggers here'; end $$; \
              create event trigger no on ddl_command_end when tag in ('CREATE TRIGGER') execute function no()")
        .await;
    let text = fits.fails(1, &["migrate"]);
    assert!(
        text.contains("schema `outrigger` was created, but the table could not be registered"),
        "{text}"
    );
    tool.sql("drop event trigger no").await;

    tool.sql("update outrigger.migrations set version = 99")
        .await;
    let text = tool.fails(1, &["migrate"]);
    assert!(text.contains("upgrade the binary"), "{text}");
}

#[tokio::test]
async fn an_unreachable_or_unknown_database_is_told_with_its_name() {
    let tool = Tool::empty().await;
    let port = crate::postgres::free_port();
    let url = format!("postgres://postgres@127.0.0.1:{port}/shop");
    let gone = tool.with(&[("OUTRIGGER_DATABASE_URL", &url)]).await;
    for command in ["migrate", "status", "pause"] {
        let text = gone.fails(1, &[command]);
        assert!(text.contains(&format!("127.0.0.1:{port}/shop: ")), "{text}");
        assert!(text.contains("hint: check that the server runs"), "{text}");
    }
    let url = server().await.url("nowhere");
    let wrong = tool.with(&[("OUTRIGGER_DATABASE_URL", &url)]).await;
    let text = wrong.fails(1, &["status"]);
    assert!(text.contains("create the database"), "{text}");
}
