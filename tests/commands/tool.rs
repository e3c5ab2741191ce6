//! The binary, a database for it, and what both say.

#![allow(dead_code)]

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::OnceCell;
use tokio_postgres::Client;

use crate::postgres::Postgres;

/// Reached only when something hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks, not instead of one.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Looks until `look` finds something. The last thing it saw instead is part of the panic.
#[track_caller]
pub fn until<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let began = Instant::now();
    loop {
        match look() {
            Ok(found) => return found,
            Err(seen) => assert!(began.elapsed() < PATIENCE, "{what}; last seen: {seen}"),
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Asks until the answer is as wanted.
pub async fn until_count(client: &Client, what: &str, query: &str, wanted: impl Fn(i64) -> bool) {
    let asked = async {
        loop {
            let row = client.query_one(query, &[]).await;
            let row = row.unwrap_or_else(|error| panic!("{query}: {error:?}"));
            if wanted(row.get(0)) {
                return;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    let asked = tokio::time::timeout(3 * PATIENCE, asked).await;
    asked.unwrap_or_else(|_| panic!("not in time: {what}"));
}

static SERVER: OnceCell<Postgres> = OnceCell::const_new();

pub async fn server() -> &'static Postgres {
    SERVER.get_or_init(Postgres::start).await
}

/// A database of the test's own, and the variables that lead the binary there.
pub struct Tool {
    pub name: String,
    pub client: Client,
    pub variables: Vec<(String, String)>,
}

impl Tool {
    /// An empty database.
    pub async fn empty() -> Self {
        let server = server().await;
        let name = server.create_database().await;
        let client = server.client(&name).await;
        let variables = vec![("OUTRIGGER_DATABASE_URL".to_owned(), server.url(&name))];
        Self {
            name,
            client,
            variables,
        }
    }

    /// A migrated database that knows no encoding.
    pub async fn of_bytes() -> Self {
        let server = server().await;
        let name = format!("{}_bytes", server.create_database().await);
        let client = server.client("postgres").await;
        let create = "encoding 'SQL_ASCII' locale 'C' template template0";
        client
            .batch_execute(&format!("create database {name} {create}"))
            .await
            .unwrap();
        let tool = Self {
            client: server.client(&name).await,
            variables: vec![("OUTRIGGER_DATABASE_URL".to_owned(), server.url(&name))],
            name,
        };
        tool.ok(&["migrate"]);
        tool
    }

    /// A migrated database.
    pub async fn new() -> Self {
        let tool = Self::empty().await;
        tool.ok(&["migrate"]);
        tool
    }

    /// The same database with more or other settings.
    pub async fn with(&self, more: &[(&str, &str)]) -> Self {
        let mut variables = self.variables.clone();
        variables.retain(|(name, _)| more.iter().all(|(other, _)| other != name));
        variables.extend(
            more.iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
        );
        Self {
            name: self.name.clone(),
            client: server().await.client(&self.name).await,
            variables,
        }
    }

    /// The same database as a role that may not do anything yet.
    pub async fn as_new_role(&self) -> (Self, String) {
        // Roles belong to the whole server.
        let role = format!("role_of_{}", self.name);
        self.sql(&format!("create role {role} login")).await;
        let url = server().await.url_as(&role, &self.name);
        let tool = self.with(&[("OUTRIGGER_DATABASE_URL", &url)]).await;
        (tool, role)
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
        command
            .args(args)
            .env_clear()
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs it with something on its standard input.
    pub fn run_with_input(&self, args: &[&str], input: &str) -> Output {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input.as_bytes()).unwrap();
        drop(stdin);
        child.wait_with_output().unwrap()
    }

    /// Runs it, insists on success, and returns what it printed.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(args)).unwrap()
    }

    /// Runs it, insists on this exit code, and returns what it said on standard error.
    #[track_caller]
    pub fn fails(&self, code: i32, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Runs `check`, insists on the exit code, and returns what it found out about the broker: result and text.
    #[track_caller]
    pub fn check_broker(&self, code: i32, more: &[&str]) -> Vec<(String, String)> {
        let output = self.run(&[&["check", "-o", "json"], more].concat());
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let checks = json["checks"].as_array().unwrap();
        checks
            .iter()
            .filter(|check| check["area"] == "broker")
            .map(|check| (text(&check["result"]), text(&check["text"])))
            .collect()
    }

    /// Runs a relay until no row is waiting, and stops it.
    pub async fn drain(&self) {
        // Its usual port may be somebody else's.
        let tool = self.with(&[("OUTRIGGER_ADMIN_LISTEN", "off")]).await;
        let relay = tool.follow(&["run"]);
        let open = "select count(*) from outbox o where published_at is null and not exists \
            (select from outrigger.failures f where f.seq = o.seq and f.state = 'dead')";
        until_count(&self.client, "no row is waiting", open, |n| n == 0).await;
        let (code, _) = relay.stop("-TERM");
        assert_eq!(code, Some(0));
    }

    /// Runs it in the background.
    pub fn follow(&self, args: &[&str]) -> Following {
        let mut child = self.command(args).stdout(Stdio::piped()).spawn().unwrap();
        let (send, lines) = channel();
        let stdout: ChildStdout = child.stdout.take().unwrap();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        Following { child, lines }
    }

    pub async fn sql(&self, text: &str) {
        self.client
            .batch_execute(text)
            .await
            .unwrap_or_else(|error| panic!("{text}: {error:?}"));
    }

    pub async fn count(&self, from: &str) -> i64 {
        let row = self
            .client
            .query_one(&format!("select count(*) from {from}"), &[])
            .await;
        row.unwrap_or_else(|error| panic!("{from}: {error:?}"))
            .get(0)
    }

    /// Inserts `n` events with keys `k0`, `k1`, ...
    pub async fn insert(&self, n: i64, event_type: &str) {
        self.sql(&format!(
            "insert into outbox (type, key, data) select '{event_type}', 'k' || (g - 1), '{{\"n\": 1}}' \
             from generate_series(1, {n}) g"
        ))
        .await;
    }

    /// Records a failure.
    pub async fn fail(&self, seq: i64, state: &str, reason: &str, error: &str) {
        self.sql(&format!(
            "insert into outrigger.failures (outbox, seq, hash, keyed, event_id, event_type, key, state, attempts, \
               crashes, reason, error, first_failed_at, last_failed_at) \
             select 'public.outbox', seq, 1, true, id::text, type, key, '{state}', 5, 0, '{reason}', $e${error}$e$, \
               now() - interval '3 hours', now() - {seq} * interval '1 minute' from outbox where seq = {seq}"
        ))
        .await;
    }
}

/// Insists on one of these results with this text.
#[track_caller]
pub fn says(found: &[(String, String)], result: &str, part: &str) {
    assert!(
        found
            .iter()
            .any(|(is, text)| is == result && text.contains(part)),
        "{result} {part:?} is not among {found:#?}"
    );
}

/// A command that goes on until it is told to stop.
pub struct Following {
    child: Child,
    lines: Receiver<String>,
}

impl Following {
    /// The next line of standard output.
    #[track_caller]
    pub fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("a line")
    }

    /// The next line, if it comes soon.
    pub fn line_within(&self, limit: Duration) -> Option<String> {
        self.lines.recv_timeout(limit).ok()
    }

    /// The next line that has this in it.
    #[track_caller]
    pub fn line_with(&self, part: &str) -> String {
        loop {
            let line = self.line();
            if line.contains(part) {
                return line;
            }
        }
    }

    /// Sends a signal, and returns the exit code and the lines not yet read.
    pub fn stop(mut self, signal: &str) -> (Option<i32>, Vec<String>) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args([signal, &pid]).status();
        assert!(sent.unwrap().success());
        let code = self.child.wait().unwrap().code();
        (code, self.lines.iter().collect())
    }
}
