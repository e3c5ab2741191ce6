//! A private NATS server, and a client of its protocol that shares nothing with the sink.
//!
//! Needs the package `nats-server`. The server dies with this process.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

#[path = "../support/ports.rs"]
#[allow(clippy::duplicate_mod)]
mod ports;
#[path = "../support/scratch.rs"]
#[allow(clippy::duplicate_mod)]
mod scratch;

use ports::free_ports;
use scratch::folder;

/// Reached only when something hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the server; stops it when its input ends, which it does when the tests end, in whatever way.
const KEEPER: &str = r#"
trap '' INT HUP TERM
"$NATS" --config "$DIR/nats.conf" >>"$DIR/output" 2>&1 </dev/null & server=$!
read -r _
kill -KILL "$server"
wait "$server" 2>/dev/null
"#;

pub(crate) struct NatsNode {
    dir: tempfile::TempDir,
    port: u16,
    http: u16,
    keeper: Mutex<Option<Child>>,
}

impl Drop for NatsNode {
    fn drop(&mut self) {
        self.kill();
    }
}

impl NatsNode {
    /// Starts a server with JetStream, with more lines in its configuration. `@DIR@` stands for its folder.
    pub(crate) async fn start_with(config: &str) -> Self {
        let dir = folder("outrigger-nats-");
        let [port, http] = free_ports();
        let node = Self {
            dir,
            port,
            http,
            keeper: Mutex::new(None),
        };
        let shown = node.dir.path().display().to_string();
        let config = format!(
            "listen: \"127.0.0.1:{port}\"\nhttp: \"127.0.0.1:{http}\"\n{}\n",
            config.replace("@DIR@", &shown)
        );
        std::fs::write(node.dir.path().join("nats.conf"), config).unwrap();
        node.revive().await;
        node
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn kill(&self) {
        if let Some(mut keeper) = self.keeper.lock().unwrap().take() {
            drop(keeper.stdin.take());
            keeper.wait().unwrap();
        }
    }

    pub(crate) async fn revive(&self) {
        let keeper = Command::new("sh")
            .args(["-c", KEEPER])
            .env("NATS", program())
            .env("DIR", self.dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        *self.keeper.lock().unwrap() = Some(keeper);
        let began = Instant::now();
        // JetStream restores its streams after the port is open.
        while self
            .monitor("/healthz")
            .await
            .is_none_or(|health| health["status"] != "ok")
        {
            assert!(
                began.elapsed() < PATIENCE,
                "nats-server does not start: {}",
                std::fs::read_to_string(self.dir.path().join("output")).unwrap_or_default()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// An answer of the server's monitoring; `None` while it does not serve.
    pub(crate) async fn monitor(&self, path: &str) -> Option<Value> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.http)).await.ok()?;
        let request = format!("GET {path} HTTP/1.0\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        let (_, body) = answer.split_once("\r\n\r\n")?;
        serde_json::from_str(body).ok()
    }
}

/// A message as the protocol delivers it.
#[derive(Debug)]
pub(crate) struct Raw {
    pub(crate) body: Vec<u8>,
}

/// Speaks the text protocol by hand.
pub(crate) struct RawClient {
    stream: BufReader<TcpStream>,
    inbox: String,
}

impl RawClient {
    /// Connects with these members in its CONNECT message, such as user and password.
    pub(crate) async fn connect(port: u16, login: Value) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let mut client = Self {
            stream: BufReader::new(stream),
            inbox: format!("answers.{}", rand::random::<u64>()),
        };
        let mut connect =
            json!({"verbose": false, "headers": true, "no_responders": true, "name": "test"});
        for (name, value) in login.as_object().into_iter().flatten() {
            connect[name] = value.clone();
        }
        assert!(client.line().await.starts_with("INFO "));
        client
            .write(&format!(
                "CONNECT {connect}\r\nSUB {} 1\r\nPING\r\n",
                client.inbox
            ))
            .await;
        while client.line().await != "PONG" {}
        client
    }

    /// Asks and awaits the one answer.
    pub(crate) async fn ask(&mut self, subject: &str, body: &str) -> Raw {
        let size = body.len();
        self.write(&format!(
            "PUB {subject} {} {size}\r\n{body}\r\n",
            self.inbox
        ))
        .await;
        loop {
            let line = self.line().await;
            let words: Vec<&str> = line.split(' ').collect();
            match words[0] {
                "PING" => self.write("PONG\r\n").await,
                "MSG" => {
                    let body = self.take(words.last().unwrap().parse().unwrap()).await;
                    return Raw { body };
                }
                "HMSG" => {
                    let size = |back: usize| words[words.len() - back].parse::<usize>().unwrap();
                    let (headers, total) = (size(2), size(1));
                    let body = self.take(total).await.split_off(headers);
                    return Raw { body };
                }
                _ => panic!("unexpected {line:?}"),
            }
        }
    }

    /// Asks the JetStream API; an error is a panic unless its code is `allowed`.
    pub(crate) async fn api(&mut self, question: &str, body: Value, allowed: u64) -> Value {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let raw = self.ask(&format!("$JS.API.{question}"), &body).await;
        let answer: Value =
            serde_json::from_slice(&raw.body).unwrap_or_else(|_| panic!("{question}: {raw:?}"));
        let error = &answer["error"];
        assert!(
            error.is_null() || error["err_code"] == allowed,
            "{question}: {answer}"
        );
        answer
    }

    async fn write(&mut self, text: &str) {
        self.stream
            .get_mut()
            .write_all(text.as_bytes())
            .await
            .unwrap();
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        let reading = self.stream.read_line(&mut line);
        tokio::time::timeout(PATIENCE, reading)
            .await
            .expect("an answer of the server")
            .unwrap();
        line.trim_end().to_owned()
    }

    /// So many bytes and a line break.
    async fn take(&mut self, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size + 2];
        self.stream.read_exact(&mut bytes).await.unwrap();
        bytes.truncate(size);
        bytes
    }
}

/// The header block, its first line left out.
pub(crate) fn parse_headers(block: &[u8]) -> BTreeMap<String, String> {
    let text = std::str::from_utf8(block).unwrap();
    let lines = text.split("\r\n").skip(1).filter(|line| !line.is_empty());
    lines
        .map(|line| {
            let (name, value) = line.split_once(':').unwrap();
            (name.to_owned(), value.trim().to_owned())
        })
        .collect()
}

fn program() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into()])
        .map(|dir| dir.join("nats-server"))
        .find(|program| program.exists())
        .expect("nats-server is not in PATH: run scripts/setup")
}
