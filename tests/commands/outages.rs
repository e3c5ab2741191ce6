//! Databases and readers that go away, come back, or stop taking writes: what a relay does, and what it says.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::postgres::{Postgres, free_port};
use crate::tool::{Tool, until, until_count};

/// Reached only when something hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// A relay that prints its events, and what it logs.
struct Printing {
    child: Child,
    events: Receiver<String>,
    log: Arc<Mutex<String>>,
    admin: u16,
}

impl Printing {
    fn start(tool: &Tool) -> Self {
        let admin = free_port();
        let mut child = tool
            .command(&[])
            .env("OUTRIGGER_EVENT_SOURCE", "/shop")
            .env("OUTRIGGER_SINK", "stdout")
            .env("OUTRIGGER_ADMIN_LISTEN", format!("127.0.0.1:{admin}"))
            .env("NO_COLOR", "1")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (send, events) = channel();
        let stdout = child.stdout.take().unwrap();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        let log = Arc::new(Mutex::new(String::new()));
        let (stderr, heard) = (child.stderr.take().unwrap(), Arc::clone(&log));
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                *heard.lock().unwrap() += &(line + "\n");
            }
        });
        Self {
            child,
            events,
            log,
            admin,
        }
    }

    fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits for the event of this type.
    #[track_caller]
    fn event(&self, kind: &str) {
        let until = Instant::now() + PATIENCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let line = self.events.recv_timeout(left);
            let line = line.unwrap_or_else(|_| panic!("no event {kind}; log:\n{}", self.log()));
            if line.contains(&format!("\"routing_key\":\"{kind}\"")) {
                return;
            }
        }
    }

    /// What a page of the admin listener says.
    fn page(&self, path: &str) -> String {
        let mut answer = String::new();
        if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.admin)) {
            let request =
                format!("GET {path} HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n");
            let _ = stream.write_all(request.as_bytes());
            let _ = stream.read_to_string(&mut answer);
        }
        answer
    }

    /// Waits until the probe, in full, has this in it.
    #[track_caller]
    fn ready_says(&self, part: &str) {
        until(&format!("readiness says {part:?}"), || {
            let said = self.page("/readyz?verbose");
            match said.contains(part) {
                true => Ok(()),
                false => Err(format!("{said}; log:\n{}", self.log())),
            }
        });
    }
}

impl Drop for Printing {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Another database server for the tool, and the URL with all of these servers in it.
async fn on(servers: &[&Postgres]) -> Tool {
    let name = servers[0].create_database().await;
    let hosts: Vec<String> = servers
        .iter()
        .map(|server| format!("127.0.0.1:{}", server.port()))
        .collect();
    let url = format!(
        "postgres://postgres@{}/{name}?sslmode=disable",
        hosts.join(",")
    );
    let tool = Tool {
        client: servers[0].client(&name).await,
        name,
        variables: vec![("OUTRIGGER_DATABASE_URL".to_owned(), url)],
    };
    tool.ok(&["migrate"]);
    tool
}

async fn fence(tool: &Tool, on: bool) {
    let value = if on { "on" } else { "off" };
    tool.sql("set default_transaction_read_only = off").await;
    tool.sql(&format!(
        "alter system set default_transaction_read_only = {value}"
    ))
    .await;
    tool.sql("select pg_reload_conf()").await;
}

async fn until_zero(client: &tokio_postgres::Client, what: &str, query: &str) {
    until_count(client, what, query, |n| n == 0).await;
}

/// A switchover that fences the old primary and leaves its sessions open: to them it is a server that only refuses to
/// write, and an idle relay writes nothing.
async fn follows_a_switchover(replicas: usize) {
    let old = Postgres::start().await;
    let new = old.standby(old.port()).await;
    let tool = on(&[&old, &new]).await;
    let relays: Vec<_> = (0..replicas).map(|_| Printing::start(&tool)).collect();
    for relay in &relays {
        relay.ready_says("[+]listener ok");
    }
    tool.sql("insert into outbox (type, key) values ('before', 'k')")
        .await;
    let (seen, quiet) = (
        Instant::now(),
        "select count(*) from outbox where published_at is null",
    );
    until_zero(&tool.client, "published", quiet).await;
    let behind = "select count(*) from (select) x where not exists \
        (select from pg_stat_replication where replay_lsn = pg_current_wal_lsn())";
    until_zero(&tool.client, "the standby has everything", behind).await;

    fence(&tool, true).await;
    new.promote();
    let client = new.client(&tool.name).await;
    client
        .batch_execute("insert into outbox (type, key) values ('after', 'k')")
        .await
        .unwrap();
    until_zero(&client, "published there", quiet).await;
    println!(
        "{replicas} replicas: {:?} after the first event",
        seen.elapsed()
    );
    let sessions = "select count(*) from pg_stat_activity where application_name = 'outrigger'";
    until_zero(&tool.client, "no session is left behind", sessions).await;
    for relay in &relays {
        relay.ready_says("readyz check passed");
        relay.ready_says("[+]listener ok");
    }
    // The listening connections moved as well: this one is heard of.
    client
        .batch_execute("insert into outbox (type, key) values ('later', 'k')")
        .await
        .unwrap();
    until_zero(&client, "published there", quiet).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_idle_relay_follows_a_switchover_that_keeps_its_sessions() {
    follows_a_switchover(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_relays_follow_a_switchover_that_keeps_their_sessions() {
    follows_a_switchover(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_takes_no_writes_for_a_while_is_waited_for() {
    let server = Postgres::start().await;
    let tool = on(&[&server]).await;
    let relay = Printing::start(&tool);
    tool.sql("insert into outbox (type) values ('before')")
        .await;
    relay.event("before");
    relay.ready_says("readyz check passed");
    fence(&tool, true).await;
    // Idle, and yet it notices.
    relay.ready_says("the server takes no writes: it is a standby, or read-only");
    relay.ready_says("[-]database failed");
    assert!(
        relay
            .log()
            .contains("the database takes no writes; events wait"),
        "{}",
        relay.log()
    );
    fence(&tool, false).await;
    tool.sql("insert into outbox (type) values ('after')").await;
    relay.event("after");
    relay.ready_says("readyz check passed");
    assert!(
        relay.log().contains("the database answers again"),
        "{}",
        relay.log()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_has_seen_enough_ends_a_relay_that_prints() {
    let tool = Tool::new().await;
    let mut relay = Printing::start(&tool);
    tool.sql("insert into outbox (type) values ('first')").await;
    relay.event("first");
    // As `outrigger | head -1` does it.
    relay.events = channel().1;
    // The thread that reads for us notices with the line it cannot hand on; the relay with the next one.
    let ended = async {
        loop {
            tool.sql("insert into outbox (type) values ('more')").await;
            tokio::time::sleep(Duration::from_millis(50)).await;
            if let Some(status) = relay.child.try_wait().unwrap() {
                return status;
            }
        }
    };
    let status = tokio::time::timeout(PATIENCE, ended).await;
    let (status, log) = (status.expect("the relay ends"), relay.log());
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(
        log.contains("standard output was closed by its reader: stopping"),
        "{log}"
    );
    // But for what it says of this sink when it starts.
    assert_eq!(log.matches("WARN").count(), 1, "{log}");
    assert!(
        log.contains("events are printed here and marked as published"),
        "{log}"
    );
    // What nobody took is still to be published, and the partitions were handed over.
    assert_ne!(tool.count("outbox where published_at is null").await, 0);
    assert_eq!(
        tool.count("outrigger.partitions where owner is not null")
            .await,
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_is_dropped_under_a_relay_is_told_with_what_to_do() {
    let tool = Tool::new().await;
    let relay = Printing::start(&tool);
    tool.insert(1, "before").await;
    relay.event("before");
    tool.sql("drop schema outrigger cascade").await;
    tool.sql("insert into outbox (type, data) values ('meanwhile', '1')")
        .await;
    relay.ready_says("(SQLSTATE 42P01); run `outrigger migrate`");
    tool.ok(&["migrate"]);
    relay.event("meanwhile");
    relay.ready_says("readyz check passed");
}
