//! `status`, `pause`, `resume`.

use serde_json::Value;

use crate::tool::Tool;

#[tokio::test]
async fn an_empty_outbox_without_a_relay() {
    let tool = Tool::new().await;
    let text = tool.ok(&["status"]);
    let (first, rest) = text.split_once('\n').unwrap();
    assert!(first.starts_with("public.outbox @ 127.0.0.1:"), "{text}");
    assert_eq!(
        rest,
        "no relay is registered: start `outrigger run`\n\
         \npending    0\n\
         retrying   0\n\
         blocked    0\n\
         dead       0\nretention  published rows are deleted after 7d\n"
    );
}

#[tokio::test]
async fn backlog_replicas_and_failures() {
    let tool = Tool::new().await;
    tool.sql(
        "insert into outbox (type, created_at) values ('t', now() - interval '2 hours 5 minutes'); \
         insert into outbox (type, key) select 't', 'k' from generate_series(1, 1233)",
    )
    .await;
    tool.fail(2, "dead", "unroutable", "no queue").await;
    tool.fail(3, "blocked", "nack", "full\u{1b}[2J").await;
    tool.sql(
        "update outrigger.outboxes set partitions = 4; \
         insert into outrigger.replicas (outbox, replica, name, version, lease_ttl, lease_until) \
           values ('public.outbox', '00000000-0000-0000-0000-000000000001', 'pod-1', '0.1.0', '10s', \
             clock_timestamp() + interval '1 hour'); \
         insert into outrigger.partitions (outbox, partition, owner) \
           select 'public.outbox', p, case when p < 3 then '00000000-0000-0000-0000-000000000001'::uuid end \
           from generate_series(0, 3) p",
    )
    .await;
    let text = tool.ok(&["status"]);
    for part in [
        "1 of 4 partitions have no owner; 1,232 events wait\n",
        "pending    1,233, oldest 2h 5m; 1 retrying or blocked among them\n",
        "blocked    1, their keys wait for you\n",
        "dead       1\n",
        "hot key    `k` has 1,232 of the first 1,233 events\n",
        "pod-1    0.1.0    -",
        "alone",
        "3     0-2\n",
        "dead     unroutable  t     1",
        "full\\u{1b}[2J",
        "outrigger dead retry SEQ",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    assert!(!text.contains('\u{1b}'), "no colours in a pipe: {text}");

    let json = tool.json(&["status", "-o", "json"]);
    assert_eq!(json["outbox"], "public.outbox");
    assert_eq!(json["pending"], 1233);
    assert!(json["oldest_pending_seconds"].as_f64().unwrap() >= 7500.0);
    assert_eq!((&json["dead"], &json["blocked"]), (&1.into(), &1.into()));
    assert_eq!(
        json["replicas"][0]["partitions"],
        serde_json::json!([0, 1, 2])
    );
    // What was given up comes first.
    assert_eq!(json["failures"][0]["state"], "dead");
    assert_eq!(json["failures"][1]["error"], "full\u{1b}[2J");
    assert_eq!(json["state"], "unowned");
    assert_eq!(json["paused"], Value::Null);
}

/// Adds a replica whose last sign of life was so many seconds ago.
async fn replica(tool: &Tool, name: &str, sink: &str, rank: i32, silent: i32) {
    tool.sql(&format!(
        "insert into outrigger.replicas (outbox, replica, name, version, lease_ttl, lease_until, rank, configuration, waits_for) \
         values ('public.outbox', gen_random_uuid(), '{name}', '0.1.0', '10s', \
           clock_timestamp() + interval '10 s' - {silent} * interval '1 s', {rank}, \
           '{{\"sink\": \"{sink}\", \"target\": \"mq:5672 vhost /\", \"source\": \"/a\"}}', \
           case when {silent} = 3 then 'the broker: connection refused' end)"
    ))
    .await;
}

#[tokio::test]
async fn a_relay_that_died_is_not_shown_as_one_that_lives() {
    let tool = Tool::new().await;
    replica(&tool, "orders-0", "rabbitmq", 1, 86).await;
    tool.insert(1, "t").await;
    let text = tool.ok(&["status"]);
    for part in [
        "\nno sign of life from orders-0 for 1m 2",
        "is it running?; 1 event waits\n",
        "rabbitmq mq:5672 vhost /",
        "expired",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    let json = tool.json(&["status", "-o", "json"]);
    assert_eq!(json["state"], "no_sign_of_life");
    assert_eq!(json["replicas"][0]["alive"], false);
    let checked = tool
        .with(&[
            ("OUTRIGGER_EVENT_SOURCE", "/a"),
            ("OUTRIGGER_SINK", "stdout"),
        ])
        .await
        .run(&["check"]);
    let checked = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(checked.contains("1 event waits"), "{checked}");
    assert!(checked.contains("and no relay runs"), "{checked}");
}

#[tokio::test]
async fn what_replicas_wait_for_and_where_they_differ_is_shown() {
    let tool = Tool::new().await;
    replica(&tool, "orders-0", "rabbitmq", 1, 3).await;
    replica(&tool, "laptop", "stdout", 2, 1).await;
    tool.insert(3, "t").await;
    let text = tool.ok(&["status"]);
    for part in [
        "\nnot publishing: orders-0: the broker: connection refused; 3 events wait\n",
        "  orders-0: the broker: connection refused\n",
        "  laptop: stands aside for `orders-0`, which publishes to another place: \
         sink `rabbitmq` there, `stdout` here\n",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
}

#[tokio::test]
async fn a_pause_is_shown_with_its_reason() {
    let tool = Tool::new().await;
    assert_eq!(
        tool.ok(&["pause", "--dry-run", "--reason", "x"]),
        "would pause public.outbox\n"
    );
    assert_eq!(tool.json(&["status", "-o", "json"])["paused"], Value::Null);
    let text = tool.ok(&["pause", "--reason", "broker upgrade"]);
    assert!(text.starts_with("paused public.outbox;"), "{text}");
    let text = tool.ok(&["pause", "--reason", "another"]);
    assert!(text.contains("was paused already"), "{text}");
    assert!(text.ends_with(" (broker upgrade)\n"), "{text}");
    let text = tool.ok(&["status"]);
    assert!(text.contains("\npaused just now: broker upgrade"), "{text}");
    let json = tool.json(&["status", "-o", "json"]);
    assert_eq!(json["paused"]["reason"], "broker upgrade");
    let text = tool.ok(&["resume", "--dry-run"]);
    assert!(text.starts_with("would resume public.outbox"), "{text}");
    assert_eq!(tool.ok(&["resume"]), "resumed public.outbox\n");
    assert_eq!(tool.ok(&["resume"]), "public.outbox was not paused\n");
    assert_eq!(
        tool.ok(&["resume", "--dry-run"]),
        "public.outbox is not paused\n"
    );
}

#[tokio::test]
async fn watching_goes_on_until_interrupted() {
    let tool = Tool::new().await;
    let watching = tool.follow(&["status", "--watch", "-o", "json"]);
    let first: Value = serde_json::from_str(&watching.line()).unwrap();
    assert_eq!(first["pending"], 0);
    tool.insert(3, "t").await;
    loop {
        let next: Value = serde_json::from_str(&watching.line()).unwrap();
        if next["pending"] == 3 {
            break;
        }
    }
    // An outage is shown, and survived.
    tool.sql("alter table outrigger.outboxes rename to away")
        .await;
    watching.line_with("\"error\"");
    tool.sql("alter table outrigger.away rename to outboxes")
        .await;
    watching.line_with("\"pending\":3");
    assert_eq!(watching.stop("-INT").0, Some(0));

    let watching = tool.follow(&["status", "--watch"]);
    watching.line_with("pending    3");
    watching.line_with("pending    3");
    let (code, rest) = watching.stop("-TERM");
    assert_eq!(code, Some(0));
    assert!(rest.iter().all(|line| !line.contains('\u{1b}')), "{rest:?}");
}

#[tokio::test]
async fn what_is_missing_is_named() {
    let tool = Tool::empty().await;
    for args in [&["status"][..], &["dead", "list"], &["tail"], &["resume"]] {
        let text = tool.fails(1, args);
        assert!(text.contains("run `outrigger migrate`"), "{args:?}: {text}");
    }
    tool.ok(&["migrate"]);
    let (poor, role) = tool.as_new_role().await;
    let text = poor.fails(1, &["status"]);
    assert!(
        text.contains("permission denied for schema outrigger"),
        "{text}"
    );
    assert!(
        text.contains("`outrigger check` prints the missing GRANT"),
        "{text}"
    );

    // Looking needs no privilege to change anything.
    tool.sql(&format!(
        "grant usage on schema outrigger to {role}; \
         grant select on outbox to {role}; \
         grant select on all tables in schema outrigger to {role}; \
         alter role {role} set default_transaction_read_only = on"
    ))
    .await;
    tool.insert(1, "t").await;
    tool.fail(1, "dead", "nack", "full").await;
    assert_eq!(poor.json(&["status", "-o", "json"])["dead"], 1);
    assert!(poor.ok(&["dead", "list"]).contains("nack"));
    assert!(poor.ok(&["dead", "show", "1"]).contains("full"));
    let text = poor.fails(1, &["dead", "retry", "1"]);
    assert!(
        text.contains("point OUTRIGGER_DATABASE_URL to the primary"),
        "{text}"
    );
    tool.sql(&format!(
        "alter role {role} reset default_transaction_read_only"
    ))
    .await;
    for args in [&["dead", "retry", "1"][..], &["pause"]] {
        let text = poor.fails(1, args);
        assert!(
            text.contains("permission denied for table"),
            "{args:?}: {text}"
        );
        assert!(text.contains("the relay's role needs"), "{args:?}: {text}");
    }
}

#[tokio::test]
async fn published_rows_that_cannot_be_marked_have_a_line() {
    let tool = Tool::new().await;
    tool.insert(2, "t").await;
    assert!(!tool.ok(&["status"]).contains("unsettled"));
    tool.fail(1, "unsettled", "other", "a trigger").await;
    let text = tool.ok(&["status"]);
    assert!(
        text.contains("unsettled  1, published once, but their rows could not be marked"),
        "{text}"
    );
    assert!(text.contains("a trigger"), "{text}");
    let json: Value = serde_json::from_str(&tool.ok(&["status", "-o", "json"])).unwrap();
    assert_eq!(json["unsettled"], 1);
}
