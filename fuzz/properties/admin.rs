//! Whatever a client sends, the admin listener answers with HTTP or not at all, lets nothing but reading succeed, and
//! goes on.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use arbitrary::Arbitrary;
use outrigger::admin::backlog::Watched;
use outrigger::admin::{Admin, Facts, Site};
use outrigger::relay::live::Live;
use tokio::sync::watch;

/// A method and a path that may be known, and what follows.
#[derive(Debug, Clone, Arbitrary)]
pub struct Input {
    start: Option<(u8, u8)>,
    rest: Vec<u8>,
}

const METHODS: &[&str] = &["GET", "HEAD", "POST", "PUT", "OPTIONS", "PRI", "get"];
const PATHS: &[&str] = &[
    "/",
    "/livez",
    "/readyz?verbose",
    "/metrics",
    "/status",
    "*",
    "http://h/livez",
    "//livez",
];

/// A listener of a relay that is still starting, on a thread of its own.
static ADDRESS: LazyLock<SocketAddr> = LazyLock::new(|| {
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("a runtime").block_on(async {
            let (_live, live) = watch::channel(Live::starting());
            let (_watched, watched) = watch::channel(Watched::default());
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
            let admin = Admin::bind(([127, 0, 0, 1], 0).into())
                .await
                .expect("a free port");
            tell.send(admin.address()).expect("somebody waits");
            admin.serve(Arc::new(site)).await;
        });
    });
    told.recv().expect("the listener starts")
});

/// See the module.
pub fn check(input: Input) {
    let mut request = Vec::new();
    if let Some((method, path)) = input.start {
        let method = METHODS[usize::from(method) % METHODS.len()];
        let path = PATHS[usize::from(path) % PATHS.len()];
        request.extend_from_slice(format!("{method} {path} HTTP/1.1\r\n").as_bytes());
    }
    request.extend_from_slice(&input.rest);
    let Some(answer) = exchange(&request) else {
        return;
    };
    if answer.is_empty() {
        return;
    }
    let head = String::from_utf8_lossy(&answer);
    assert!(head.starts_with("HTTP/1."), "{head:?}");
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|text| text.parse::<u16>().ok());
    let status = status.expect("a status");
    let reads = request.trim_ascii_start().starts_with(b"GET ")
        || request.trim_ascii_start().starts_with(b"HEAD ");
    assert!(
        reads || status >= 400,
        "{status} to {:?}",
        String::from_utf8_lossy(&request)
    );
    assert!(status < 500 || status == 503, "{status}");
}

/// `None` if there is no port left to connect from.
fn exchange(request: &[u8]) -> Option<Vec<u8>> {
    let mut stream = match TcpStream::connect(*ADDRESS) {
        Ok(stream) => stream,
        Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {
            std::thread::sleep(Duration::from_millis(100));
            return None;
        }
        Err(error) => panic!("the listener is gone: {error}"),
    };
    let limit = Some(Duration::from_secs(30));
    stream.set_read_timeout(limit).expect("not zero");
    // It may answer, and close, before it has read everything.
    let _ = stream.write_all(request);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            panic!("neither an answer nor an end")
        }
        _ => Some(answer),
    }
}
