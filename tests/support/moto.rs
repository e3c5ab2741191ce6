//! A private moto, which plays AWS: EventBridge and SQS, in memory. A bus is opened with a rule that sends all to a queue.
//!
//! Needs what `scripts/setup` puts into `.cache/moto`. The server lives under a small shell that waits on a pipe from
//! this process: when the process ends, in whatever way, the pipe closes, and the shell stops the server and
//! removes its folder. So one may be kept in a `static`, which Rust never drops.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

#[path = "keeper.rs"]
#[allow(clippy::duplicate_mod)]
mod keeper;
#[path = "scratch.rs"]
#[allow(clippy::duplicate_mod)]
mod scratch;

use keeper::Keeper;
use scratch::kept_folder;

/// Starting takes some seconds; a loaded machine gets its time.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// moto picks a free port and says which.
const KEEPER: &str = r#"
trap '' INT HUP TERM
"$PYTHON" "$SERVER" -H 127.0.0.1 -p 0 >output 2>&1 </dev/null & server=$!
read -r _
kill -KILL "$server" 2>/dev/null
wait "$server" 2>/dev/null
cd /
rm -rf "$DIR"
"#;

/// A running server.
pub struct Moto {
    _keeper: Keeper,
    dir: PathBuf,
    pub port: u16,
}

impl Moto {
    /// Starts it and waits until it serves.
    pub async fn start() -> Self {
        let program = concat!(env!("CARGO_MANIFEST_DIR"), "/.cache/moto/bin/python");
        let server = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/lib/moto/server.py");
        assert!(
            Path::new(program).exists(),
            "there is no {program}: scripts/setup fetches it"
        );
        let dir = kept_folder("outrigger-moto-");
        let environment = [
            ("PYTHON", program),
            ("SERVER", server),
            ("PYTHONUNBUFFERED", "1"),
        ];
        let keeper = Keeper::start(KEEPER, &dir, environment);
        let mut moto = Self {
            _keeper: keeper,
            dir,
            port: 0,
        };
        let limit = Instant::now() + START_TIMEOUT;
        loop {
            let said = std::fs::read_to_string(moto.dir.join("output")).unwrap_or_default();
            if let Some(port) = port_in(&said) {
                moto.port = port;
                return moto;
            }
            assert!(Instant::now() < limit, "moto does not start: {said}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Its folder, which lasts as long as the server.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Makes a bus whose events all go to a queue of its own.
    pub async fn open(&self, bus: &str) {
        let queue = queue_of(bus);
        // What was received once is not shown again.
        let name = json!({"QueueName": queue, "Attributes": {"VisibilityTimeout": "43200"}});
        self.ask("sqs", "AmazonSQS.CreateQueue", &name).await;
        self.bus("CreateEventBus", bus).await;
        let rule = json!({"Name": bus, "EventBusName": bus, "EventPattern": "{\"account\":[\"123456789012\"]}"});
        self.ask("events", "AWSEvents.PutRule", &rule).await;
        let queue = format!("arn:aws:sqs:eu-west-1:123456789012:{queue}");
        let target =
            json!({"Rule": bus, "EventBusName": bus, "Targets": [{"Id": "1", "Arn": queue}]});
        self.ask("events", "AWSEvents.PutTargets", &target).await;
    }

    /// `CreateEventBus` or `DeleteEventBus`.
    pub async fn bus(&self, what: &str, bus: &str) {
        let name = json!({"Name": bus});
        self.ask("events", &format!("AWSEvents.{what}"), &name)
            .await;
    }

    /// Takes what has arrived in the queue of a bus, as EventBridge has wrapped it.
    pub async fn take(&self, bus: &str) -> Vec<Value> {
        let queue = format!("{}/123456789012/{}", self.url(), queue_of(bus));
        let mut events = Vec::new();
        loop {
            let ask = json!({"QueueUrl": queue, "MaxNumberOfMessages": 10});
            let answer = self.ask("sqs", "AmazonSQS.ReceiveMessage", &ask).await;
            let messages = answer["Messages"].as_array().cloned().unwrap_or_default();
            if messages.is_empty() {
                return events;
            }
            for message in messages {
                events.push(serde_json::from_str(message["Body"].as_str().unwrap()).unwrap());
            }
        }
    }

    /// One request, with an answer.
    async fn ask(&self, service: &str, target: &str, body: &Value) -> Value {
        let body = body.to_string();
        let head = format!(
            "POST / HTTP/1.1\r\nhost: {service}.eu-west-1.amazonaws.com\r\nconnection: close\r\n\
             authorization: AWS4-HMAC-SHA256 Credential=k/20260101/eu-west-1/{service}/aws4_request, SignedHeaders=host, Signature=0\r\n\
             content-type: application/x-amz-json-1.0\r\nx-amz-target: {target}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let request = [head.as_bytes(), body.as_bytes()].concat();
        let (status, answer) = exchange(self.port, &request).await.unwrap();
        let text = String::from_utf8_lossy(&answer).into_owned();
        assert_eq!(status, 200, "{target}: {text}");
        serde_json::from_str(&text).unwrap_or_default()
    }
}

fn queue_of(bus: &str) -> String {
    format!("queue-{bus}")
}

fn port_in(said: &str) -> Option<u16> {
    let rest = said.split("Running on http://127.0.0.1:").nth(1)?;
    let end = rest.find(|c: char| !c.is_ascii_digit())?;
    rest[..end].parse().ok()
}

/// One request on a connection of its own, which the request must ask to close, and the answer's status and body.
pub async fn exchange(port: u16, request: &[u8]) -> std::io::Result<(u16, Vec<u8>)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(request).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
    let body = answer.split_off(end.unwrap() + 4);
    let status = String::from_utf8_lossy(&answer[9..12]).parse().unwrap();
    Ok((status, body))
}
