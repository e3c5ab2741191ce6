//! The page about existing tables: every statement, as it stands there, and what comes out in the end.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::postgres::Postgres;
use crate::server;

/// Reached only when something hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// The fenced blocks below a heading, with their language.
fn blocks(heading: &str) -> Vec<(String, String)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/existing-tables.md");
    let text = fs::read_to_string(path).unwrap();
    let below = text
        .split_once(&format!("\n## {heading}\n"))
        .unwrap_or_else(|| panic!("no section `{heading}`"))
        .1;
    let section = below.split("\n## ").next().unwrap();
    let mut blocks: Vec<(String, String)> = Vec::new();
    let mut open = false;
    for line in section.lines() {
        match line.strip_prefix("```") {
            Some("") if open => open = false,
            Some(language) => {
                blocks.push((language.to_owned(), String::new()));
                open = true;
            }
            None if open => {
                let (_, block) = blocks.last_mut().unwrap();
                *block += line;
                block.push('\n');
            }
            None => {}
        }
    }
    blocks
}

/// A database, and the variables that the page has exported so far.
struct Reader {
    server: &'static Postgres,
    url: String,
    variables: Vec<(String, String)>,
}

impl Reader {
    async fn new() -> Self {
        let server = server().await;
        let url = server.url(&server.create_database().await);
        let set = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        Self {
            variables: vec![
                set("OUTRIGGER_DATABASE_URL", &url),
                set("OUTRIGGER_EVENT_SOURCE", "/shop"),
                set("OUTRIGGER_SINK", "stdout"),
                set("OUTRIGGER_ADMIN_LISTEN", "off"),
                // As for any statement that is copied from the page.
                set("PATH", &std::env::var("PATH").unwrap()),
            ],
            server,
            url,
        }
    }

    /// Runs statements one by one, as psql does.
    fn sql(&self, text: &str) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        let done = Command::new(self.server.program("psql"))
            .args(["--no-psqlrc", "-qAt", "-v", "ON_ERROR_STOP=1", "-f"])
            .arg(file.path())
            .arg(&self.url)
            .output()
            .unwrap();
        assert!(
            done.status.success(),
            "{text}\n{}",
            String::from_utf8_lossy(&done.stderr)
        );
        String::from_utf8(done.stdout).unwrap().trim().to_owned()
    }

    /// Runs a block of shell, and keeps what it exports.
    fn shell(&mut self, text: &str) {
        let program = Path::new(env!("CARGO_BIN_EXE_outrigger"));
        let folder = program.parent().unwrap().display();
        let script = format!("PATH='{folder}':$PATH\n{text}\necho; echo VARIABLES; env");
        let done = Command::new("/bin/sh")
            .args(["-e", "-c", &script])
            .env_clear()
            .envs(self.variables.clone())
            .output()
            .unwrap();
        let said = String::from_utf8(done.stdout).unwrap();
        assert!(
            done.status.success(),
            "{text}\n{said}\n{}",
            String::from_utf8_lossy(&done.stderr)
        );
        let (_, variables) = said.rsplit_once("\nVARIABLES\n").unwrap();
        for (name, value) in variables.lines().filter_map(|line| line.split_once('=')) {
            if name.starts_with("OUTRIGGER_") && self.variables.iter().all(|(n, _)| n != name) {
                self.variables.push((name.to_owned(), value.to_owned()));
            }
        }
    }

    /// What `check` still warns of, but for what the test's server allows.
    fn warnings(&self) -> Vec<Value> {
        let done = Command::new(env!("CARGO_BIN_EXE_outrigger"))
            .args(["check", "-o", "json"])
            .env_clear()
            .envs(self.variables.clone())
            .output()
            .unwrap();
        let report: Value = serde_json::from_slice(&done.stdout).unwrap();
        let checks = report["checks"].as_array().unwrap();
        let odd = |check: &&Value| {
            // That no relay runs yet is what the next step of the page is about.
            check["result"] != "ok"
                && check["area"] != "relays"
                && !check["text"]
                    .as_str()
                    .unwrap()
                    .contains("PREPARE TRANSACTION")
        };
        checks.iter().filter(odd).cloned().collect()
    }

    /// Runs a relay until it has printed so many events and marked them, and returns them.
    fn relayed(&self, events: usize, left: &str) -> Vec<Value> {
        let mut relay = Command::new(env!("CARGO_BIN_EXE_outrigger"))
            .arg("run")
            .env_clear()
            .envs(self.variables.clone())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(relay.stdout.take().unwrap()).lines();
        let (send, received) = mpsc::channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        let mut bodies = Vec::new();
        while bodies.len() < events {
            let line = received.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|_| {
                let _ = relay.kill();
                panic!("{} of {events} events: {bodies:#?}", bodies.len())
            });
            let message: Value = serde_json::from_str(&line).unwrap();
            bodies.push(message["body"].clone());
        }
        let pid = relay.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &pid])
                .status()
                .unwrap()
                .success()
        );
        assert!(relay.wait().unwrap().success());
        // A clean stop settles everything, so nothing more came and nothing is left.
        bodies.extend(received.iter().map(Value::from));
        assert_eq!(bodies.len(), events, "{bodies:#?}");
        assert_eq!(self.sql(&format!("select count(*) from {left}")), "0");
        bodies
    }
}

/// Does what a section says, and returns the events, as type, key and payload.
async fn play(heading: &'static str, events: usize, left: &'static str) -> Vec<Value> {
    let mut reader = Reader::new().await;
    let run = move || {
        for (language, block) in blocks(heading) {
            match language.as_str() {
                "sql" => {
                    reader.sql(&block);
                }
                "sh" => reader.shell(&block),
                other => panic!("a block of {other}"),
            }
        }
        assert_eq!(reader.warnings(), Vec::<Value>::new(), "{heading}");
        let events = reader.relayed(events, left);
        events
            .iter()
            .map(|event| json!([event["type"], event["partitionkey"], event["data"]]))
            .collect()
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_textbook_table() {
    let events = play("The textbook table", 2, "shop_events where not published").await;
    assert_eq!(
        events,
        [
            json!(["order.paid", "order-1", {"id": 1}]),
            json!(["stock.counted", null, {"items": 7}]),
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_column_for_identity_and_order() {
    let heading = "One column for identity and order";
    let events = play(heading, 1, "outbox_messages where processed_at is null").await;
    assert_eq!(events, [json!(["order.placed", "42", {"id": 42}])]);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_order() {
    let mut events = play("No order", 2, "notifications where \"sentAt\" is null").await;
    events.sort_by_key(Value::to_string);
    assert_eq!(
        events,
        [
            json!(["mail.sent", null, {"to": "a"}]),
            json!(["mail.sent", null, {"to": "b"}]),
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status() {
    let events = play("A status", 1, "order_events where status = 'NEW'").await;
    assert_eq!(events, [json!(["order.placed", "1", {"n": 1}])]);
}

#[tokio::test(flavor = "multi_thread")]
async fn spring_modulith() {
    let left = "event_publication where completion_date is null or status <> 'COMPLETED'";
    let events = play("Spring Modulith", 1, left).await;
    assert_eq!(events, [json!(["shop.OrderPlaced", null, {"id": 7}])]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_the_service_does_not_write() {
    let heading = "A key that the service does not write";
    let events = play(heading, 1, "audit_events where not sent").await;
    assert_eq!(events, [json!(["order.viewed", "o-9", {"order": "o-9"}])]);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_tables() {
    let events = play("Large tables", 2, "big_events where not published").await;
    assert_eq!(events, [json!(["b", "k", 2]), json!(["c", "k", 3])]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_orm_may_read_what_the_database_drew() {
    let mut reader = Reader::new().await;
    for (language, block) in blocks("A status") {
        match language.as_str() {
            "sql" => {
                reader.sql(&block);
            }
            _ => reader.shell(&block),
        }
    }
    let [(_, grants)] = &blocks("ORMs")[..] else {
        panic!("one block of statements")
    };
    reader.sql(grants);
    let insert = "set role shop_writer; insert into order_events (type) values ('t') returning";
    reader.sql(&format!("{insert} seq, id"));
    // What was not granted is still refused.
    let refused = Command::new(reader.server.program("psql"))
        .args(["--no-psqlrc", "-c", &format!("{insert} data"), &reader.url])
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("permission denied"));
}
