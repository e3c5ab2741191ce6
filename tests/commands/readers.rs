//! Who should read what a relay writes, and does not: a log collector that hangs, a pager that waits, a terminal that is
//! closed.

use std::io::{BufRead as _, BufReader, PipeReader, PipeWriter, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use crate::postgres::free_port;
use crate::tool::{Tool, until};

/// Reached only when something hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// A pipe that is full, or soon will be, since nobody reads it.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut filling = writer.try_clone().unwrap();
    // It hangs until the reader is dropped.
    std::thread::spawn(move || while filling.write_all(&[b'.'; 512]).is_ok() {});
    (reader, writer)
}

/// A relay that prints.
fn relay(tool: &Tool) -> Command {
    let mut command = tool.command(&[]);
    command
        .env("OUTRIGGER_EVENT_SOURCE", "/shop")
        .env("OUTRIGGER_SINK", "stdout");
    command
}

fn terminate(relay: &Child) {
    signal(relay, "-TERM");
}

fn signal(relay: &Child, signal: &str) {
    let pid = relay.id().to_string();
    let sent = Command::new("kill").args([signal, &pid]).status();
    assert!(sent.unwrap().success());
}

fn ends(mut relay: Child) -> ExitStatus {
    until("the relay stops", || {
        let status = relay.try_wait().unwrap();
        status.ok_or_else(|| "it runs".to_owned())
    })
}

#[tokio::test]
async fn a_log_that_nobody_reads_stops_nothing() {
    let tool = Tool::new().await;
    let (unread, stderr) = full_pipe();
    let mut relay = relay(&tool)
        .env("OUTRIGGER_ADMIN_LISTEN", "off")
        .env("OUTRIGGER_LOG_LEVEL", "debug")
        .stdout(Stdio::piped())
        .stderr(stderr)
        .spawn()
        .unwrap();
    let (send, events) = std::sync::mpsc::channel();
    let stdout = BufReader::new(relay.stdout.take().unwrap());
    std::thread::spawn(move || stdout.lines().try_for_each(|line| send.send(line)));
    for _ in 0..20 {
        tool.sql("insert into outbox (type, data) values ('t', '1')")
            .await;
        events
            .recv_timeout(PATIENCE)
            .expect("an event, though nobody reads the log")
            .unwrap();
    }
    terminate(&relay);
    assert_eq!(ends(relay).code(), Some(0));
    drop(unread);
}

#[tokio::test]
async fn events_that_nobody_reads_do_not_keep_the_relay_from_leaving() {
    let tool = Tool::new().await;
    tool.sql("insert into outbox (type, data) select 't', '1' from generate_series(1, 500)")
        .await;
    let admin = free_port();
    let (unread, stdout) = full_pipe();
    let relay = relay(&tool)
        .env("OUTRIGGER_ADMIN_LISTEN", format!("127.0.0.1:{admin}"))
        .env("OUTRIGGER_RELAY_SHUTDOWN_TIMEOUT", "1s")
        .stdout(stdout)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until("an event is being printed", || {
        let metrics = page(admin, "/metrics");
        let mut flying = metrics
            .lines()
            .filter_map(|line| line.strip_prefix("outrigger_in_flight_events "));
        match flying.any(|count| count.trim() != "0") {
            true => Ok(()),
            false => Err(metrics),
        }
    });
    terminate(&relay);
    assert_eq!(ends(relay).code(), Some(1));
    drop(unread);
}

#[tokio::test]
async fn a_terminal_that_is_closed_ends_a_relay_in_order() {
    let tool = Tool::new().await;
    for nohup in [false, true] {
        let mut command = relay(&tool);
        if nohup {
            // What `nohup` does.
            let program = command.get_program().to_owned();
            let mut shell = Command::new("sh");
            shell.args(["-c", "trap '' HUP; exec \"$0\""]).arg(program);
            for (name, value) in command.get_envs() {
                shell.env(name, value.unwrap_or_default());
            }
            command = shell;
        }
        let mut relay = command
            .env("OUTRIGGER_ADMIN_LISTEN", "off")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut events = BufReader::new(relay.stdout.take().unwrap()).lines();
        tool.insert(1, "before").await;
        events.next().unwrap().unwrap();
        signal(&relay, "-HUP");
        if nohup {
            tool.insert(1, "after").await;
            events.next().unwrap().unwrap();
            terminate(&relay);
        }
        assert_eq!(ends(relay).code(), Some(0));
    }
}

fn page(port: u16, path: &str) -> String {
    let mut answer = String::new();
    if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) {
        let request = format!("GET {path} HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n");
        let _ = stream.write_all(request.as_bytes());
        let _ = stream.read_to_string(&mut answer);
    }
    answer
}
