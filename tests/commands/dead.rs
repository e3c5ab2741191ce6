//! `dead list|show|retry|discard`.

use serde_json::json;

use crate::tool::Tool;

/// Five failed events: 1 and 2 dead, 3 blocked, 4 retrying, 5 suspect; 6 has not failed.
async fn failing() -> Tool {
    let tool = Tool::new().await;
    tool.insert(3, "order.placed").await;
    tool.insert(3, "invoice.sent").await;
    tool.fail(1, "dead", "unroutable", "no queue").await;
    tool.fail(2, "dead", "nack", &"long ".repeat(40)).await;
    tool.fail(3, "blocked", "nack", "full").await;
    tool.fail(4, "retrying", "nack", "full").await;
    tool.fail(5, "suspect", "", "").await;
    tool
}

fn seqs(tool: &Tool, more: &[&str]) -> Vec<i64> {
    let args = [&["dead", "list", "-o", "json"], more].concat();
    let rows = tool.json(&args);
    let rows = rows.as_array().unwrap();
    rows.iter()
        .map(|row| row["seq"].as_i64().unwrap())
        .collect()
}

async fn id(tool: &Tool, seq: i64) -> String {
    let sql = format!("select id::text from outbox where seq = {seq}");
    tool.client.query_one(&sql, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn lists_by_every_filter() {
    let tool = failing().await;
    for (filter, expected) in [
        (&[][..], &[1, 2, 3, 4][..]),
        (&["--type", "order.*"], &[1, 2, 3]),
        (&["--type", "order"], &[]),
        (&["--type", "%"], &[]),
        (&["--key", "k0"], &[1, 4]),
        (&["--reason", "nack"], &[2, 3, 4]),
        (&["--state", "blocked", "--state", "dead"], &[1, 2, 3]),
        (&["--older-than", "150s"], &[3, 4]),
        (&["--newer-than", "150s"], &[1, 2]),
        (&["--limit", "2"], &[1, 2]),
    ] {
        assert_eq!(seqs(&tool, filter), expected, "{filter:?}");
    }
    let output = tool.run(&["dead", "list", "--limit", "2"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].starts_with("SEQ  TYPE"), "{text}");
    assert!(lines[1].contains("order.placed  k0   dead"), "{text}");
    // Seconds may have passed since the rows were written: `1m ago` or `1m 2s ago`.
    assert!(
        lines[1].contains("3h ago  ") && lines[1].contains("  1m "),
        "{text}"
    );
    assert!(lines[2].ends_with('…'), "long errors are cut: {text}");
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "there are more than 2: use --limit or a filter\n"
    );
    let json = tool.json(&["dead", "list", "-o", "json", "--limit", "1"]);
    assert_eq!(json[0]["attempts"], 5);
    assert_eq!(json[0]["id"], json!(id(&tool, 1).await));

    let none = tool.run(&["dead", "list", "--key", "none"]);
    assert_eq!((none.status.code(), none.stdout.len()), (Some(0), 0));
    assert_eq!(none.stderr, b"no failed events\n");
    assert_eq!(
        tool.ok(&["dead", "list", "--key", "none", "-o", "json"]),
        "[]\n"
    );
    let text = tool.fails(2, &["dead", "list", "--older-than", "soon"]);
    assert!(text.contains("write for example `30m`"), "{text}");
}

#[tokio::test]
async fn shows_everything_about_one() {
    let tool = failing().await;
    tool.sql(
        "update outbox set extensions = '{\"tenant\": \"a\"}', routing_key = 'r', data = '{\"secret\": 1}' where seq = 3",
    )
    .await;
    let by_id = tool.ok(&["dead", "show", &id(&tool, 3).await]);
    let text = tool.ok(&["dead", "show", "3"]);
    assert_eq!(text.lines().next(), by_id.lines().next());
    for part in [
        "blocked: given up, its key waits for you",
        "error         full\n",
        "routing key   r\n",
        "extensions    {\"tenant\": \"a\"}\n",
        "payload       13 B (shown with --data)\n",
        "outrigger dead retry 3 ",
        "outrigger dead discard 3 ",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    assert!(!text.contains("secret"), "{text}");
    let text = tool.ok(&["dead", "show", "3", "--data"]);
    assert!(text.contains("payload       {\"secret\": 1}\n"), "{text}");
    let json = tool.json(&["dead", "show", "3", "-o", "json"]);
    assert_eq!(json["state"], "blocked");
    assert_eq!(json["event"]["extensions"]["tenant"], "a");
    assert_eq!(json["event"].get("data"), None);
    // Its row may be gone.
    tool.sql("delete from outbox where seq = 3").await;
    let text = tool.ok(&["dead", "show", "3"]);
    assert!(text.contains("its row is gone"), "{text}");
    assert!(tool.ok(&["dead", "show", "5"]).contains("suspect"));

    for unknown in ["6", "77", "nonsense"] {
        let text = tool.fails(1, &["dead", "show", unknown]);
        assert!(
            text.contains(&format!("no failed event `{unknown}`")),
            "{text}"
        );
    }
}

#[tokio::test]
async fn retries_what_is_named() {
    let tool = failing().await;
    let retried = "outrigger.failures where state = 'retrying' and attempts = 0";
    let second = id(&tool, 2).await;
    assert_eq!(
        tool.ok(&["dead", "retry", "1", &second, "--dry-run"]),
        "would retry 2 events\n"
    );
    // One name is wrong, so nothing happens.
    let text = tool.fails(1, &["dead", "retry", "1", "77", "x"]);
    assert!(text.contains("no failed event `77`, `x`"), "{text}");
    assert_eq!(tool.count(retried).await, 0);
    assert_eq!(
        tool.ok(&["dead", "retry", "1", &second]),
        "2 events will be tried again\n"
    );
    assert_eq!(tool.count(retried).await, 2);
    assert_eq!(
        tool.ok(&[
            "dead", "retry", "--all", "--type", "*.placed", "--state", "blocked"
        ]),
        "1 event will be tried again\n"
    );
    assert_eq!(
        tool.ok(&["dead", "retry", "--all", "--key", "none"]),
        "0 events will be tried again\n"
    );
    // Four have failed; a suspect has not.
    assert_eq!(
        tool.ok(&["dead", "retry", "--all"]),
        "4 events will be tried again\n"
    );
    let text = tool.fails(2, &["dead", "retry"]);
    assert!(text.contains("<EVENTS|--all>"), "{text}");
    let text = tool.fails(2, &["dead", "list", "--reason", "unrouteable"]);
    assert!(text.contains("unroutable"), "{text}");
    tool.fails(2, &["dead", "retry", "1", "--all"]);
}

#[tokio::test]
async fn discards_what_was_given_up() {
    let tool = failing().await;
    assert_eq!(
        tool.ok(&["dead", "discard", "--all", "--dry-run"]),
        "would discard 3 events\n"
    );
    assert_eq!(tool.count("outrigger.failures").await, 5);
    assert_eq!(
        tool.ok(&["dead", "discard", "--all", "--reason", "unroutable"]),
        "discarded 1 event\n"
    );
    assert_eq!(tool.count("outbox where published_at is not null").await, 1);
    assert_eq!(
        tool.ok(&["dead", "discard", "--all"]),
        "discarded 2 events\n"
    );
    assert_eq!(
        seqs(&tool, &[]),
        [4],
        "what is retried has not been given up"
    );
    let text = tool.fails(1, &["dead", "discard", "1"]);
    assert!(text.contains("is over: discarded, "), "{text}");
    assert_eq!(tool.ok(&["dead", "discard", "4"]), "discarded 1 event\n");
    assert_eq!(tool.count("outbox where published_at is null").await, 2);

    // They stay visible, and nothing takes them for published ones.
    assert_eq!(seqs(&tool, &["--state", "discarded"]), [1, 2, 3, 4]);
    assert_eq!(seqs(&tool, &[]), [] as [i64; 0]);
    let text = tool.ok(&["dead", "show", "1"]);
    for part in [
        "given up for good, never published",
        " by role ",
        "error         no queue\n",
        "replay 1 --include-discarded",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    assert!(!text.contains("dead retry"), "{text}");
    assert!(
        tool.ok(&["status"])
            .contains("\ndiscarded  4, never published: ")
    );
    assert_eq!(tool.json(&["status", "-o", "json"])["discarded"], 4);
    let text = tool.fails(1, &["dead", "retry", "2"]);
    assert!(text.contains("replay 2 --include-discarded"), "{text}");
    let text = tool.fails(2, &["dead", "retry", "--all", "--state", "discarded"]);
    assert!(text.contains("--include-discarded"), "{text}");
}

#[tokio::test]
async fn a_row_of_no_text_is_dead_and_no_command_stumbles_over_it() {
    let tool = Tool::of_bytes().await;
    tool.sql(
        "set client_encoding = 'SQL_ASCII'; \
         insert into outbox (type, key, data) values ('odd', E'caf\\351', '1'), ('odd', 'k', E'\"caf\\351\"'); \
         insert into outbox (type, key, data) select 'good', 'k', to_jsonb(g) from generate_series(1, 20) g",
    )
    .await;
    let relay = tool
        .with(&[
            ("OUTRIGGER_SINK", "stdout"),
            ("OUTRIGGER_EVENT_SOURCE", "/t"),
        ])
        .await;
    relay.drain().await;
    assert_eq!(
        tool.count("outbox where published_at is not null").await,
        20
    );
    let dead = tool.json(&["dead", "list", "-o", "json"]);
    let dead = dead.as_array().unwrap();
    let told: Vec<_> = dead
        .iter()
        .map(|row| {
            (
                row["seq"].as_i64().unwrap(),
                row["reason"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(told, [(1, "unreadable"), (2, "unreadable")]);
    assert_eq!(
        (&dead[0]["key"], &dead[1]["key"]),
        (&json!(null), &json!("k"))
    );
    let shown = tool.ok(&["dead", "show", "2", "--data"]);
    assert!(
        shown.contains("column `data` cannot be read: it holds bytes that are not valid UTF-8"),
        "{shown}"
    );
    tool.ok(&["status"]);
    tool.ok(&["replay", "--type", "*", "--from", "1h"]);
    assert_eq!(tool.count("outbox where published_at is not null").await, 0);
    // Once it can be read, it goes.
    tool.sql("update outbox set key = 'caf' where seq = 1")
        .await;
    tool.ok(&["dead", "retry", "1"]);
    relay.drain().await;
    assert_eq!(
        tool.count("outbox where published_at is not null").await,
        21
    );
    assert_eq!(seqs(&tool, &[]), [2]);
}
