//! `check` with NATS and http.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use crate::check::{check, only, says};
use crate::nats_node::{NatsNode, RawClient};
use crate::postgres::free_port;
use crate::tool::Tool;

const JETSTREAM: &str = r#"jetstream { store_dir: "@DIR@/store", max_mem: 1MB, max_file: 16MB }
authorization { user: relay, password: hunter2 }"#;

async fn stream(node: &NatsNode, name: &str, storage: &str, window: u64) {
    let login = json!({"user": "relay", "pass": "hunter2"});
    let mut client = RawClient::connect(node.port(), login).await;
    let config = json!({
        "name": name, "subjects": [format!("{name}.>")], "storage": storage, "num_replicas": 1,
        "retention": "limits", "discard": "old", "duplicate_window": window,
    });
    client
        .api(&format!("STREAM.CREATE.{name}"), config, 0)
        .await;
}

async fn messages(node: &NatsNode, name: &str) -> u64 {
    let login = json!({"user": "relay", "pass": "hunter2"});
    let mut client = RawClient::connect(node.port(), login).await;
    let info = client
        .api(&format!("STREAM.INFO.{name}"), json!(null), 0)
        .await;
    info["state"]["messages"].as_u64().unwrap()
}

#[tokio::test]
async fn nats_and_its_streams() {
    let node = NatsNode::start_with(JETSTREAM).await;
    stream(&node, "good", "file", 120_000_000_000).await;
    stream(&node, "fleeting", "memory", 100_000_000).await;
    let url = format!("nats://relay:hunter2@127.0.0.1:{}", node.port());
    let tool = Tool::new().await;
    let towards = async |destination: &str, url: &str| {
        tool.with(&[
            ("OUTRIGGER_SINK", "nats"),
            ("OUTRIGGER_NATS_URL", url),
            ("OUTRIGGER_EVENT_SOURCE", "/t"),
            ("OUTRIGGER_ROUTE_DESTINATION", destination),
            ("OUTRIGGER_ROUTE_KEY", "good.{{ type }}"),
        ])
        .await
    };

    let good = towards("good", &url).await;
    let json = check(&good, 0, &["--probe=heard"]);
    says(&json, "ok", "NATS 2.");
    says(&json, "ok", "events: stream `good` takes good.>; file, ");
    says(
        &json,
        "ok",
        "to stream `good` with subject `good.heard`: acknowledged by the stream",
    );
    assert_eq!(messages(&node, "good").await, 1);
    check(&good, 0, &[]);
    assert_eq!(messages(&node, "good").await, 1, "published unasked");

    let json = check(&towards("fleeting", &url).await, 0, &[]);
    says(&json, "warning", "loses what was confirmed");
    says(&json, "warning", "recognises no repetitions");

    let json = check(&towards("nowhere", &url).await, 3, &["--probe"]);
    only(
        &json,
        "failed",
        "events: stream `nowhere` does not exist",
        "",
    );

    let wrong = url.replace("hunter2", "s3cret");
    let closed = format!("nats://relay:hunter2@127.0.0.1:{}", free_port());
    for bad in [&wrong, &closed] {
        let json = check(&towards("good", bad).await, 3, &[]);
        only(&json, "failed", "", "check OUTRIGGER_NATS_URL");
        let said = json.to_string();
        assert!(
            !said.contains("s3cret") && !said.contains("hunter2"),
            "{said}"
        );
        let json = check(&towards("good", &format!("{bad},{url}")).await, 0, &[]);
        says(&json, "warning", "one of several servers: ");
    }
}

/// Answers every request with this status, and counts them.
fn service(status: &'static str) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/events", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    // It ends with the test process.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            answer(stream.unwrap(), status, &count);
        }
    });
    (url, asked)
}

fn answer(mut stream: TcpStream, status: &str, count: &AtomicUsize) {
    let mut request = Vec::new();
    let mut part = [0; 4096];
    // The body of a test event is one object, in one piece with the head or after it.
    while !request.ends_with(b"}") {
        match stream.read(&mut part) {
            // Somebody who only looks whether there is a connection.
            Ok(0) | Err(_) => return,
            Ok(size) => request.extend_from_slice(&part[..size]),
        }
    }
    count.fetch_add(1, Ordering::SeqCst);
    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    stream.write_all(answer.as_bytes()).unwrap();
}

#[tokio::test]
async fn a_service_that_takes_events_by_http() {
    let tool = Tool::new().await;
    let towards = async |url: &str| {
        tool.with(&[
            ("OUTRIGGER_SINK", "http"),
            ("OUTRIGGER_HTTP_URL", url),
            ("OUTRIGGER_EVENT_SOURCE", "/t"),
        ])
        .await
    };

    let (url, asked) = service("204 No Content");
    let good = towards(&url).await;
    says(&check(&good, 0, &[]), "ok", "service at http://127.0.0.1:");
    assert_eq!(asked.load(Ordering::SeqCst), 0, "posted unasked");
    let json = check(&good, 0, &["--probe"]);
    says(&json, "ok", "the service took it");
    assert_eq!(asked.load(Ordering::SeqCst), 1);

    let (url, _) = service("422 Unprocessable Content");
    let json = check(&towards(&url).await, 3, &["--probe"]);
    only(&json, "failed", "422", "");

    let (url, _) = service("503 Service Unavailable");
    let json = check(&towards(&url).await, 3, &["--probe"]);
    only(&json, "failed", "503", "see the service's log");

    let closed = format!("http://127.0.0.1:{}/", free_port());
    let json = check(&towards(&closed).await, 3, &[]);
    only(&json, "failed", "", "check OUTRIGGER_HTTP_URL");
}
