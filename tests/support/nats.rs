//! A private NATS server, and a client of its protocol that shares nothing with the sink.
//!
//! Needs the package `nats-server`. The server lives under a small shell that waits on a pipe from this process: when
//! the process ends, in whatever way, the pipe closes and the shell stops the server and removes its folder.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

#[path = "keeper.rs"]
#[allow(clippy::duplicate_mod)]
mod keeper;
#[path = "ports.rs"]
#[allow(clippy::duplicate_mod)]
mod ports;
#[path = "scratch.rs"]
#[allow(clippy::duplicate_mod)]
mod scratch;

use keeper::Keeper;
use ports::free_ports;
use scratch::kept_folder;

/// Reached only when something hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the server; obeys `start`, `kill`, `freeze` and `thaw` on its input, and cleans up when that ends.
const KEEPER: &str = r#"
start() { "$NATS" --config "$DIR/nats.conf" >>"$DIR/output" 2>&1 </dev/null & server=$!; }
finish() { kill -KILL "$server" 2>/dev/null; wait "$server" 2>/dev/null; }
trap '' INT HUP TERM
start
while read -r command; do
    case "$command" in
        kill) finish; echo done ;;
        start) start; echo done ;;
        freeze) kill -STOP "$server"; echo done ;;
        thaw) kill -CONT "$server"; echo done ;;
    esac
done
finish
cd /
rm -rf "$DIR"
"#;

/// A running server.
pub struct NatsNode {
    keeper: Keeper,
    dir: PathBuf,
    port: u16,
    http: u16,
}

impl NatsNode {
    /// Starts a server with JetStream, with more lines in its configuration. `@DIR@` stands for its folder.
    pub async fn start_with(config: &str) -> Self {
        let dir = kept_folder("outrigger-nats-");
        let [port, http] = free_ports();
        let shown = dir.display().to_string();
        let config = format!(
            "listen: \"127.0.0.1:{port}\"\nhttp: \"127.0.0.1:{http}\"\n{}\n",
            config.replace("@DIR@", &shown)
        );
        std::fs::write(dir.join("nats.conf"), config).unwrap();
        let keeper = Keeper::start(KEEPER, &dir, [("NATS", program())]);
        let node = Self {
            keeper,
            dir,
            port,
            http,
        };
        node.ready().await;
        node
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Kills the server like a crash. What it has stored stays.
    pub fn kill(&self) {
        self.keeper.command("kill");
    }

    /// Starts a killed server again and waits until it serves.
    pub async fn revive(&self) {
        self.keeper.command("start");
        self.ready().await;
    }

    /// Stops the server's process without closing its connections.
    pub fn freeze(&self) {
        self.keeper.command("freeze");
    }

    /// Lets a frozen server go on.
    pub fn thaw(&self) {
        self.keeper.command("thaw");
    }

    async fn ready(&self) {
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
                std::fs::read_to_string(self.dir.join("output")).unwrap_or_default()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// An answer of the server's monitoring; `None` while it does not serve.
    pub async fn monitor(&self, path: &str) -> Option<Value> {
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
pub struct Raw {
    pub subject: String,
    /// Where an answer or an acknowledgement would go.
    pub reply: Option<String>,
    /// With their first line.
    pub headers: Vec<u8>,
    pub body: Vec<u8>,
}

/// Speaks the text protocol by hand.
pub struct RawClient {
    stream: BufReader<TcpStream>,
    inbox: String,
}

impl RawClient {
    /// Connects with these members in its CONNECT message, such as user and password.
    pub async fn connect(port: u16, login: Value) -> Self {
        Self::connect_knowing(port, |_| login).await
    }

    /// The same, with members that depend on what the server says about itself.
    pub async fn connect_knowing(port: u16, login: impl FnOnce(&Value) -> Value) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let mut client = Self {
            stream: BufReader::new(stream),
            inbox: format!("answers.{}", rand::random::<u64>()),
        };
        let greeting = client.line().await;
        let info = serde_json::from_str(greeting.strip_prefix("INFO ").unwrap()).unwrap();
        let mut connect =
            json!({"verbose": false, "headers": true, "no_responders": true, "name": "test"});
        for (name, value) in login(&info).as_object().into_iter().flatten() {
            connect[name] = value.clone();
        }
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
    pub async fn ask(&mut self, subject: &str, body: &str) -> Raw {
        self.send(subject, body).await;
        self.next().await
    }

    async fn send(&mut self, subject: &str, body: &str) {
        let size = body.len();
        self.write(&format!(
            "PUB {subject} {} {size}\r\n{body}\r\n",
            self.inbox
        ))
        .await;
    }

    async fn next(&mut self) -> Raw {
        loop {
            let line = self.line().await;
            let words: Vec<&str> = line.split(' ').collect();
            // The operation, subject and subscription, perhaps where to answer, and one size or two.
            let sizes = match words[0] {
                "MSG" => 1,
                "HMSG" => 2,
                "PING" => {
                    self.write("PONG\r\n").await;
                    continue;
                }
                _ => panic!("unexpected {line:?}"),
            };
            let size = |back: usize| words[words.len() - back].parse::<usize>().unwrap();
            let mut headers = self.take(size(1)).await;
            let body = headers.split_off(if sizes == 2 { size(2) } else { 0 });
            return Raw {
                subject: words[1].to_owned(),
                reply: (words.len() == 4 + sizes).then(|| words[3].to_owned()),
                headers,
                body,
            };
        }
    }

    /// Everything in a stream, oldest first.
    pub async fn stored(&mut self, stream: &str) -> Vec<Raw> {
        /// Messages asked for at once.
        const BATCH: usize = 32;
        let info = self
            .api(&format!("STREAM.INFO.{stream}"), Value::Null, 0)
            .await;
        let messages = info["state"]["messages"].as_u64().unwrap() as usize;
        // Nothing is acknowledged, and nothing may come a second time for that.
        let config = json!({"stream_name": stream, "config": {
            "deliver_policy": "all", "ack_policy": "explicit", "max_ack_pending": -1, "ack_wait": 3_600_000_000_000_u64,
        }});
        let created = self
            .api(&format!("CONSUMER.CREATE.{stream}"), config, 0)
            .await;
        let consumer = created["name"].as_str().unwrap().to_owned();
        let next = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}");
        let mut all = Vec::with_capacity(messages);
        while all.len() < messages {
            let batch = BATCH.min(messages - all.len());
            let question = json!({"batch": batch, "expires": 30_000_000_000_u64});
            self.send(&next, &question.to_string()).await;
            for _ in 0..batch {
                let message = self.next().await;
                let comes_from_it = |reply: &String| reply.starts_with("$JS.ACK.");
                assert!(
                    message.reply.as_ref().is_some_and(comes_from_it),
                    "{} of {messages}: {message:?}",
                    all.len()
                );
                all.push(message);
            }
        }
        all
    }

    /// Asks the JetStream API; an error is a panic unless its code is `allowed`.
    pub async fn api(&mut self, question: &str, body: Value, allowed: u64) -> Value {
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
pub fn parse_headers(block: &[u8]) -> BTreeMap<String, String> {
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
