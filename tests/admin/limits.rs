//! Clients that stall, flood, or send what nobody asked for.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outrigger::admin::backlog::Watched;
use outrigger::admin::{Admin, CONNECTIONS_MAX, Facts, HEAD_MAX, Site};
use outrigger::relay::live::Live;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::client::{get, read_to_end, send};
use crate::support::{PATIENCE, within};

/// Between two bytes of a client that is slow on purpose: few enough for the limit on fields to play no part.
const DRIP: Duration = Duration::from_millis(100);

/// A listener of a relay that is still starting.
struct Listening {
    address: SocketAddr,
    _serving: AbortOnDropHandle<()>,
    _live: watch::Sender<Live>,
    _watched: watch::Sender<Watched>,
}

async fn listening() -> Listening {
    let (live_sender, live) = watch::channel(Live::starting());
    let (watched_sender, watched) = watch::channel(Watched::default());
    let site = Site {
        facts: Facts {
            version: "0",
            name: "name".into(),
            table: "outbox".into(),
            sink: "stdout",
            target: String::new(),
            destination: "events".into(),
            database: "nowhere".into(),
        },
        live,
        measured: Arc::default(),
        watched,
        history: Mutex::default(),
    };
    let admin = Admin::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    Listening {
        address: admin.address(),
        _serving: AbortOnDropHandle::new(tokio::spawn(admin.serve(Arc::new(site)))),
        _live: live_sender,
        _watched: watched_sender,
    }
}

#[tokio::test]
async fn only_reading_is_allowed_and_only_what_is_there() {
    let listening = listening().await;
    let address = listening.address;
    let missing = get(address, "/api").await;
    assert_eq!(missing.status, 404);
    assert!(missing.body.contains("/readyz"), "{missing:?}");
    for path in ["/", "/livez", "/readyz", "/metrics", "/status", "/api"] {
        for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "get"] {
            let body = "Content-Length: 2\r\n\r\n{}";
            for rest in ["\r\n", body] {
                let request = format!("{method} {path} HTTP/1.1\r\nHost: h\r\n{rest}");
                let answer = send(address, request.as_bytes()).await;
                assert_eq!(answer.status, 405, "{request:?}");
                assert!(answer.head.contains("\r\nallow: get, head"), "{answer:?}");
            }
        }
    }
    let head = send(address, b"HEAD /livez HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    for path in ["/livez", "/metrics", "/status", "/"] {
        let answer = get(address, path).await;
        assert_eq!(answer.status, 200, "{path}");
        assert!(answer.head.contains("cache-control: no-store"), "{path}");
    }
    assert_eq!(get(address, "/readyz").await.status, 503);
}

#[tokio::test]
async fn bodies_and_large_heads_are_refused() {
    let listening = listening().await;
    let address = listening.address;
    for framing in ["Content-Length: 1000000000", "Transfer-Encoding: chunked"] {
        let request = format!("GET /livez HTTP/1.1\r\nHost: h\r\n{framing}\r\n\r\n");
        // The body never comes, and nobody waits for it.
        assert_eq!(
            send(address, request.as_bytes()).await.status,
            413,
            "{framing}"
        );
    }
    let long = "x".repeat(2 * HEAD_MAX);
    let field = format!("GET /livez HTTP/1.1\r\nHost: h\r\nX-Long: {long}\r\n\r\n");
    assert_eq!(send(address, field.as_bytes()).await.status, 431);
    let path = format!("GET /{long} HTTP/1.1\r\nHost: h\r\n\r\n");
    let status = send(address, path.as_bytes()).await.status;
    assert!(matches!(status, 414 | 431), "{status}");
    let many: String = (0..100).map(|n| format!("X-{n}: 1\r\n")).collect();
    let many = format!("GET /livez HTTP/1.1\r\n{many}\r\n");
    assert_eq!(send(address, many.as_bytes()).await.status, 431);
    assert_eq!(send(address, b"what is this\r\n\r\n").await.status, 400);
    assert_eq!(get(address, "/livez").await.status, 200);
}

#[tokio::test]
async fn the_first_version_of_http_is_spoken() {
    let listening = listening().await;
    for (request, status) in [
        ("GET /livez HTTP/1.0\r\n\r\n", 200),
        ("HEAD /metrics HTTP/1.0\r\n\r\n", 200),
        // Not kept open, whatever the client asks for.
        ("GET /livez HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", 200),
        ("POST /livez HTTP/1.0\r\n\r\n", 405),
        ("GET /readyz HTTP/1.0\r\n\r\n", 503),
    ] {
        let answer = send(listening.address, request.as_bytes()).await;
        assert_eq!(answer.status, status, "{request:?}: {answer:?}");
    }
}

#[tokio::test]
async fn what_is_no_request_is_refused_and_forgotten() {
    let listening = listening().await;
    let address = listening.address;
    let tls_hello = [&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3][..], &[7; 500]].concat();
    let requests: &[&[u8]] = &[
        b"\r\n\r\n",
        &[0; 4096],
        &[255; 4096],
        &tls_hello,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /livez HTTP/9.9\r\n\r\n",
        b"GET  /livez HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /livez\r\n\r\n",
        b"GET /li\0vez HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: h\r\nno colon\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n: empty\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"GET /livez HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\nffff",
        b"CONNECT elsewhere:80 HTTP/1.1\r\nHost: elsewhere\r\n\r\n",
        b"GET http://elsewhere/api HTTP/1.1\r\nHost: elsewhere\r\n\r\n",
        b"GET /../../etc/passwd HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /%2e%2e/livez HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /livez/ HTTP/1.1\r\nHost: h\r\n\r\n",
    ];
    for request in requests {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let _ = stream.write_all(request).await;
        let _ = stream.shutdown().await;
        let answer = read_to_end(&mut stream).await;
        let shown = String::from_utf8_lossy(request);
        // Nothing at all, or a refusal.
        let refused = answer.is_empty() || answer.starts_with("HTTP/1.1 4");
        assert!(refused, "{shown:?}: {answer:?}");
    }
    assert_eq!(get(address, "/livez").await.status, 200);
}

#[tokio::test]
async fn as_many_as_may_come_at_once_are_all_answered() {
    let listening = listening().await;
    let address = listening.address;
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        clients.push(TcpStream::connect(address).await.unwrap());
    }
    for client in &mut clients {
        let request = b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n";
        client.write_all(request).await.unwrap();
    }
    for client in &mut clients {
        let answer = read_to_end(client).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

#[tokio::test]
async fn a_connection_carries_one_request() {
    let listening = listening().await;
    let twice = "GET /livez HTTP/1.1\r\nHost: h\r\n\r\n".repeat(2);
    let mut stream = TcpStream::connect(listening.address).await.unwrap();
    stream.write_all(twice.as_bytes()).await.unwrap();
    let answers = read_to_end(&mut stream).await;
    assert_eq!(answers.matches("HTTP/1.1 200").count(), 1, "{answers}");
}

#[tokio::test]
async fn a_client_that_never_finishes_its_request_is_let_go() {
    let listening = listening().await;
    let mut silent = TcpStream::connect(listening.address).await.unwrap();
    let mut slow = TcpStream::connect(listening.address).await.unwrap();
    slow.write_all(b"GET /livez HTTP/1.1\r\nHo").await.unwrap();
    // Always has one more header to send, and so is never idle.
    let mut dripping = TcpStream::connect(listening.address).await.unwrap();
    let dripped = async {
        let bytes = b"GET /livez HTTP/1.1\r\n"
            .iter()
            .chain(b"a: b\r\n".iter().cycle());
        for byte in bytes {
            if dripping.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(DRIP).await;
        }
    };
    within("the dripping client is let go", PATIENCE, dripped).await;
    // Ends because the listener ends it: neither client ever does.
    assert_eq!(read_to_end(&mut silent).await, "");
    let answer = read_to_end(&mut slow).await;
    assert!(!answer.contains("200"), "{answer}");
}

#[tokio::test]
async fn a_flood_of_stalled_connections_keeps_no_probe_out() {
    let listening = listening().await;
    let address = listening.address;
    let mut stalled = Vec::new();
    for _ in 0..2 * CONNECTIONS_MAX {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /").await.unwrap();
        stalled.push(stream);
    }
    // The listener is full, and each probe is answered all the same.
    for _ in 0..2 * CONNECTIONS_MAX {
        assert_eq!(get(address, "/livez").await.status, 200);
    }
    // Those that came first made room.
    assert_eq!(read_to_end(&mut stalled[0]).await, "");
}
