//! `emit`, `tail`, `replay`.

use std::io::Write as _;

use serde_json::{Value, json};

use crate::tool::Tool;

async fn row(tool: &Tool, id: &str) -> Value {
    let sql = format!("select to_jsonb(o)::text from outbox o where id = '{id}'");
    let text: String = tool.client.query_one(&sql, &[]).await.unwrap().get(0);
    serde_json::from_str(&text).unwrap()
}

#[tokio::test]
async fn emits_every_field() {
    let tool = Tool::new().await;
    let printed = tool.ok(&[
        "emit",
        "--type=order.placed",
        "--data={\"id\": 42}",
        "--key=order-42",
        "--subject=s",
        "--source=/shop",
        "--extension=tenant=a",
        "--header=x-a=1=2",
        "--destination=d",
        "--routing-key=r",
    ]);
    let row = row(&tool, printed.trim_end()).await;
    let expected = json!({
        "type": "order.placed", "data": {"id": 42}, "key": "order-42", "subject": "s", "source": "/shop",
        "extensions": {"tenant": "a"}, "headers": {"x-a": "1=2"}, "destination": "d", "routing_key": "r",
        "published_at": null,
    });
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&row[name], value, "{name}");
    }
}

#[tokio::test]
async fn the_payload_comes_from_a_file_or_standard_input() {
    let tool = Tool::new().await;
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write!(file, "[1, \"ü\"]").unwrap();
    let argument = format!("@{}", file.path().display());
    let id = tool.ok(&["emit", "--type", "t", "--data", &argument]);
    assert_eq!(row(&tool, id.trim_end()).await["data"], json!([1, "ü"]));
    let output = tool.run_with_input(&["emit", "--type", "t", "--data", "-"], "\"x\"\n");
    let id = String::from_utf8(output.stdout).unwrap();
    assert_eq!(row(&tool, id.trim_end()).await["data"], "x");
    let id = tool.ok(&["emit", "--type", "t"]);
    assert_eq!(row(&tool, id.trim_end()).await["data"], Value::Null);
    let text = tool.fails(1, &["emit", "--type", "t", "--data", "@/nowhere/x"]);
    assert!(text.contains("`/nowhere/x`"), "{text}");
}

#[tokio::test]
async fn a_payload_of_bytes_keeps_its_backslashes() {
    let tool = Tool::empty().await;
    tool.sql(
        "create table outbox (seq bigint generated always as identity primary key, id uuid, type text, \
         data bytea, published_at timestamptz)",
    )
    .await;
    tool.ok(&["migrate"]);
    tool.ok(&["emit", "--type", "t", "--data", r#""a\nb\\""#]);
    assert_eq!(
        tool.count(r#"outbox where convert_from(data, 'UTF8') = '"a\nb\\"'"#)
            .await,
        1
    );
}

#[tokio::test]
async fn the_insert_can_be_printed_and_run() {
    let tool = Tool::new().await;
    let args = [
        "emit",
        "--type",
        "it's",
        "--data",
        r#""\\ '""#,
        "--key",
        "k",
        "--dry-run",
    ];
    let sql = tool.ok(&args);
    assert!(
        sql.starts_with("insert into public.outbox (\"type\", "),
        "{sql}"
    );
    assert_eq!(tool.count("outbox").await, 0);
    tool.sql(&sql).await;
    assert_eq!(
        tool.count(r"outbox where type = 'it''s' and data #>> '{}' = '\ ''' and key = 'k'")
            .await,
        1
    );
}

#[tokio::test]
async fn what_would_be_dead_at_once_is_refused() {
    let tool = Tool::new().await;
    for (args, says) in [
        (&["--data", "{secret"][..], "--data is not JSON"),
        (
            &["--extension", "a=1", "--extension", "a=2"],
            "--extension a is given twice",
        ),
        (&["--extension", "Bad-Name=1"], "invalid_event"),
        (&["--source", "not a uri"], "source"),
        (&["--subject", ""], "subject"),
    ] {
        let text = tool.fails(2, &[&["emit", "--type", "t"], args].concat());
        assert!(text.contains(says), "{args:?}: {text}");
        assert!(!text.contains("secret"), "{text}");
    }
    assert_eq!(tool.count("outbox").await, 0);
    let debezium = tool
        .with(&[
            ("OUTRIGGER_OUTBOX_PRESET", "debezium"),
            ("OUTRIGGER_OUTBOX_AFTER_PUBLISH", "delete"),
            ("OUTRIGGER_OUTBOX_TABLE", "events"),
        ])
        .await;
    tool.sql("create table events (id uuid, aggregatetype text, aggregateid text, type text, payload jsonb)")
        .await;
    debezium.ok(&["emit", "--type", "t", "--key", "7", "--data", "{}"]);
    assert_eq!(tool.count("events where aggregateid = '7'").await, 1);
    let text = debezium.fails(1, &["emit", "--type", "t", "--subject", "s"]);
    assert!(text.contains("OUTRIGGER_OUTBOX_COLUMN_SUBJECT"), "{text}");
    let text = debezium.fails(1, &["tail"]);
    assert!(text.contains("OUTRIGGER_OUTBOX_COLUMN_SEQ"), "{text}");
}

#[tokio::test]
async fn tail_shows_each_state_once() {
    let tool = Tool::new().await;
    tool.insert(2, "before").await;
    let mut command = tool.command(&["tail", "--type", "order.*"]);
    // What is said on standard error tells that it has begun.
    let mut child = command
        .stderr(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut errors = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut errors, &mut line).unwrap();
    assert_eq!(line, "following public.outbox; Ctrl-C ends\n");
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    let mut next = || lines.next().unwrap().unwrap();

    tool.insert(1, "other").await;
    tool.sql("insert into outbox (type, key) values ('order.placed', e'k\\x1b7')")
        .await;
    let line = next();
    assert!(
        line.contains("order.placed") && line.ends_with("pending"),
        "{line}"
    );
    assert!(line.contains("k\\u{1b}7"), "{line}");
    tool.fail(4, "retrying", "nack", "full").await;
    assert!(next().ends_with("retrying"));
    tool.sql("delete from outrigger.failures; update outbox set published_at = now()")
        .await;
    let line = next();
    assert!(
        line.contains("       4  order.placed") && line.ends_with("published"),
        "{line}"
    );
    let pid = child.id().to_string();
    std::process::Command::new("kill")
        .args(["-INT", &pid])
        .status()
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(lines.next().is_none());
}

#[tokio::test]
async fn tail_speaks_json_and_hides_payloads_unless_asked() {
    let tool = Tool::new().await;
    for (args, shown) in [(&[][..], false), (&["--data"], true)] {
        let tail = tool.follow(&[&["tail", "-o", "json", "--key", "k0"], args].concat());
        // Nothing tells when it has begun, so events are written until one is seen.
        let line = loop {
            tool.insert(2, "t").await;
            if let Some(line) = tail.line_within(std::time::Duration::from_millis(200)) {
                break line;
            }
        };
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&value["type"], &value["key"]), (&json!("t"), &json!("k0")));
        assert_eq!(value["state"], "pending");
        assert_eq!(value.get("data").is_some(), shown, "{line}");
        assert_eq!(tail.stop("-INT").0, Some(0));
    }
}

#[tokio::test]
async fn replays_what_is_chosen() {
    let tool = Tool::new().await;
    tool.insert(3, "order.placed").await;
    tool.insert(3, "invoice.sent").await;
    tool.sql(
        "update outbox set published_at = now(), created_at = now() - seq * interval '1 hour' where seq < 6",
    )
    .await;
    let second: String = tool
        .client
        .query_one("select id::text from outbox where seq = 2", &[])
        .await
        .unwrap()
        .get(0);
    for (args, expected) in [
        (&["--from", "10h"][..], 5),
        (&["--from", "150m"], 2),
        (&["--from", "10h", "--to", "150m"], 3),
        (&["--from", "10h", "--type", "order.*"], 3),
        (&["--from", "10h", "--type", "order.*", "--key", "k1"], 1),
        (&["--from", "2000-01-01T00:00:00Z"], 5),
        (&["4", &second], 2),
        (&["--from", "10h", "--key", "nobody"], 0),
    ] {
        let output = tool.run(&[&["replay", "--dry-run"], args].concat());
        let events = if expected == 1 { "event" } else { "events" };
        assert_eq!(
            String::from_utf8(output.stdout).unwrap(),
            format!("would replay {expected} {events}\n"),
            "{args:?}"
        );
        let explained = String::from_utf8(output.stderr).unwrap();
        assert_eq!(
            explained.contains("OUTRIGGER_OUTBOX_RETENTION"),
            expected == 0
        );
    }
    // Pending, and mistyped: what was named and is not found must not pass for done.
    for named in ["6", "nonsense"] {
        let text = tool.fails(1, &["replay", named]);
        assert!(
            text.contains("none of the named events is published"),
            "{text}"
        );
    }
    assert_eq!(tool.count("outbox where published_at is null").await, 1);
    assert_eq!(
        tool.ok(&["replay", "4", &second]),
        "2 events will be published again\n"
    );
    assert_eq!(tool.count("outbox where published_at is null").await, 3);
    assert_eq!(
        tool.ok(&["replay", "--from", "10h", "--new-ids"]),
        "3 events will be published again\n"
    );
    assert_eq!(tool.count("outbox where published_at is null").await, 6);
    assert_eq!(tool.count("outbox").await, 9);
}

#[tokio::test]
async fn what_never_was_published_is_not_replayed_unasked() {
    let tool = Tool::new().await;
    tool.insert(3, "order.placed").await;
    tool.sql("update outbox set expires_at = now() - interval '1 hour' where seq = 2")
        .await;
    tool.fail(3, "dead", "nack", "full").await;
    tool.ok(&["dead", "discard", "3"]);
    tool.with(&[
        ("OUTRIGGER_SINK", "stdout"),
        ("OUTRIGGER_EVENT_SOURCE", "/t"),
    ])
    .await
    .drain()
    .await;
    let expired = tool.json(&["dead", "list", "-o", "json", "--state", "expired"]);
    assert_eq!(
        (&expired[0]["seq"], expired.as_array().unwrap().len()),
        (&2.into(), 1)
    );
    for (more, replayed, said) in [
        (
            &[][..],
            "1 event",
            "1 discarded event is left out (--include-discarded)\n1 expired event is left out (--include-expired)\n",
        ),
        (
            &["--include-discarded"],
            "2 events",
            "1 expired event is left out (--include-expired)\n",
        ),
        (
            &["--include-discarded", "--include-expired"],
            "3 events",
            "",
        ),
    ] {
        let output = tool.run(&[&["replay", "--from", "1h", "--dry-run"], more].concat());
        let text = |bytes| String::from_utf8(bytes).unwrap();
        assert_eq!(text(output.stdout), format!("would replay {replayed}\n"));
        assert_eq!(text(output.stderr), said);
    }
    let text = tool.fails(1, &["replay", "3"]);
    assert!(
        text.contains("none of the named events was published"),
        "{text}"
    );
    assert!(
        text.contains("1 discarded event is left out (--include-discarded)"),
        "{text}"
    );
    assert_eq!(
        tool.ok(&["replay", "--from", "1h"]),
        "1 event will be published again\n"
    );
    assert_eq!(tool.count("outbox where published_at is null").await, 1);
    assert_eq!(
        tool.ok(&["replay", "3", "--include-discarded"]),
        "1 event will be published again\n"
    );
    assert_eq!(tool.json(&["status", "-o", "json"])["discarded"], 0);
}

#[tokio::test]
async fn a_long_replay_tells_its_progress_sparsely() {
    let tool = Tool::new().await;
    tool.sql(
        "insert into outbox (type, published_at) select 't', now() from generate_series(1, 3500)",
    )
    .await;
    let output = tool.run(&["replay", "--from", "1h"]);
    assert_eq!(output.stdout, b"3,500 events will be published again\n");
    let progress = String::from_utf8(output.stderr).unwrap();
    assert_eq!(progress, "replaying: 1,000 of 3,500\n");
}

#[tokio::test]
async fn replays_that_make_no_sense_are_refused() {
    let tool = Tool::new().await;
    let deleting = tool
        .with(&[("OUTRIGGER_OUTBOX_AFTER_PUBLISH", "delete")])
        .await;
    let text = deleting.fails(2, &["replay", "--from", "1h"]);
    assert!(
        text.contains("OUTRIGGER_OUTBOX_AFTER_PUBLISH=delete removes events"),
        "{text}"
    );
    assert!(
        text.contains("OUTRIGGER_OUTBOX_AFTER_PUBLISH=mark"),
        "{text}"
    );
    let text = tool.fails(2, &["replay", "--from", "1h", "--to", "2h"]);
    assert!(text.contains("is not before"), "{text}");
    let text = tool.fails(2, &["replay", "--from", "yesterday"]);
    assert!(text.contains("how long ago, such as `2h`"), "{text}");
    tool.fails(2, &["replay", "--key", "k"]);
}

#[tokio::test]
async fn events_are_shown_as_they_would_be_sent_and_nothing_is_settled() {
    let tool = Tool::new().await;
    let text = tool.fails(2, &["tail", "--as-sent"]);
    assert!(text.contains("OUTRIGGER_EVENT_SOURCE"), "{text}");
    let tool = tool.with(&[("OUTRIGGER_EVENT_SOURCE", "/orders")]).await;
    tool.sql(
        "insert into outbox (type, key, data, published_at) values ('order.old', 'k', '0', now()); \
         insert into outbox (type, key, data) values ('order.placed', 'k', '{\"n\": 1.0}'); \
         insert into outbox (type, key, source) values ('bad', 'k', 'not a uri'); \
         insert into outbox (type, key, available_at) values ('later', 'k', now() + interval '1 day')",
    )
    .await;
    let following = tool.follow(&["tail", "--as-sent"]);
    let line = following.line();
    // The payload is as it was written.
    assert!(line.contains(r#""data":{"n": 1.0}"#), "{line}");
    let message: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(message["destination"], "events");
    assert_eq!(message["routing_key"], "order.placed");
    assert_eq!(message["body"]["source"], "/orders");
    assert_eq!(message["body"]["partitionkey"], "k");
    // New ones follow.
    tool.insert(1, "order.new").await;
    let message: Value = serde_json::from_str(&following.line()).unwrap();
    assert_eq!(message["routing_key"], "order.new");
    let (code, rest) = following.stop("-INT");
    assert_eq!((code, rest.len()), (Some(0), 0), "{rest:?}");
    let pending = "outbox where published_at is null";
    assert_eq!(tool.count(pending).await, 4);
    for table in ["replicas", "partitions", "failures"] {
        assert_eq!(tool.count(&format!("outrigger.{table}")).await, 0);
    }
}

#[tokio::test]
async fn an_event_is_emitted_with_id_type_of_content_and_times() {
    let tool = Tool::new().await;
    let args = [
        "emit",
        "--type",
        "t",
        "--id",
        "0d3c7a58-6f0e-4f4e-9f0b-5b0f6a1f8e11",
        "--content-type",
        "application/vnd.x+json",
        "--data",
        "{}",
        "--available-at",
        "2h",
        "--expires-at",
        "2100-01-01T00:00:00Z",
    ];
    assert_eq!(tool.ok(&args), "0d3c7a58-6f0e-4f4e-9f0b-5b0f6a1f8e11\n");
    let written = "outbox where content_type = 'application/vnd.x+json' and expires_at = '2100-01-01 00:00:00+00' \
        and available_at between now() + interval '110 minutes' and now() + interval '121 minutes'";
    assert_eq!(tool.count(written).await, 1);
    let text = tool.fails(2, &["emit", "--type", "t", "--available-at", "tomorrow"]);
    assert!(text.contains("in how long, such as `2h`"), "{text}");
    // The relay's role need not write events.
    let (other, role) = tool.as_new_role().await;
    for grant in tool
        .ok(&["check", "--grants", "postgres", &role])
        .lines()
        .filter(|line| line.ends_with(&format!("to {role};")))
    {
        tool.sql(grant).await;
    }
    tool.sql(&format!(
        "grant select, insert, update, delete on all tables in schema outrigger to {role}"
    ))
    .await;
    let text = other.fails(1, &["emit", "--type", "t"]);
    assert!(text.contains("INSERT on the outbox"), "{text}");
    assert!(!text.contains("DELETE"), "{text}");
}
