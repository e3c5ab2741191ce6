//! An http service that keeps every request it has answered with 2xx. Written by hand, so that it shares nothing with
//! the sink; it runs on a thread of its own, since scenarios come and go with their runtimes.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, HashMap};
use std::net::TcpListener as StdListener;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};

#[path = "ports.rs"]
#[allow(clippy::duplicate_mod)]
mod ports;

use ports::free_port;

/// A request that was answered with 2xx.
#[derive(Debug, Clone)]
pub struct Taken {
    /// By lower-case name.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

/// A path: what it took, and how it answers.
#[derive(Debug)]
struct Place {
    taken: Vec<Taken>,
    /// Status, and further header lines.
    answer: (u16, &'static str),
}

const GOOD: (u16, &str) = (202, "");

/// What outlives a crash of the service: its disk.
type Disk = Arc<Mutex<HashMap<String, Place>>>;

/// See the module.
pub struct Service {
    port: u16,
    disk: Disk,
    frozen: watch::Sender<bool>,
    running: Mutex<Option<(oneshot::Sender<()>, JoinHandle<()>)>>,
}

impl Drop for Service {
    fn drop(&mut self) {
        self.end();
    }
}

impl Service {
    pub fn start() -> Self {
        let service = Self {
            port: free_port(),
            disk: Disk::default(),
            frozen: watch::Sender::new(false),
            running: Mutex::new(None),
        };
        service.revive();
        service
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends it like a crash: no request is answered any more, and all connections end.
    pub fn kill(&self) {
        assert!(self.end(), "the service runs");
    }

    /// Starts it again, with all it has taken.
    pub fn revive(&self) {
        let listener = StdListener::bind(("127.0.0.1", self.port)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (stop, stopped) = oneshot::channel();
        let (disk, frozen) = (Arc::clone(&self.disk), self.frozen.subscribe());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    () = serve(listener, disk, frozen) => {}
                    _ = stopped => {}
                }
            });
        });
        *self.running.lock().unwrap() = Some((stop, thread));
    }

    fn end(&self) -> bool {
        let running = self.running.lock().unwrap().take();
        let Some((stop, thread)) = running else {
            return false;
        };
        // Fails when the thread is gone already.
        let _ = stop.send(());
        thread.join().unwrap();
        true
    }

    /// It takes requests and does nothing with them, until [`Self::thaw`].
    pub fn freeze(&self) {
        self.frozen.send_replace(true);
    }

    pub fn thaw(&self) {
        self.frozen.send_replace(false);
    }

    /// Takes what is posted to this path. Any other path is unknown.
    pub fn open(&self, path: &str) {
        let place = Place {
            taken: Vec::new(),
            answer: GOOD,
        };
        self.disk.lock().unwrap().insert(path.to_owned(), place);
    }

    /// Answers whatever is posted to this path with such a status and such header lines, and takes nothing.
    pub fn refuse(&self, path: &str, status: u16, headers: &'static str) {
        self.answer(path, (status, headers));
    }

    /// Takes what is posted to this path again.
    pub fn take_again(&self, path: &str) {
        self.answer(path, GOOD);
    }

    fn answer(&self, path: &str, answer: (u16, &'static str)) {
        let mut disk = self.disk.lock().unwrap();
        disk.get_mut(path).expect("an open path").answer = answer;
    }

    /// The same for every path.
    pub fn refuse_all(&self, status: u16, headers: &'static str) {
        for place in self.disk.lock().unwrap().values_mut() {
            place.answer = (status, headers);
        }
    }

    pub fn take_all_again(&self) {
        let (status, headers) = GOOD;
        self.refuse_all(status, headers);
    }

    /// All that a path took, in order. The path is unknown afterwards.
    pub fn close(&self, path: &str) -> Vec<Taken> {
        let place = self.disk.lock().unwrap().remove(path);
        place.expect("an open path").taken
    }
}

async fn serve(listener: TcpListener, disk: Disk, frozen: watch::Receiver<bool>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (disk, frozen) = (Arc::clone(&disk), frozen.clone());
        tokio::spawn(async move {
            // An error is a connection that ended.
            let _ = converse(stream, &disk, frozen).await;
        });
    }
}

async fn converse(
    stream: TcpStream,
    disk: &Disk,
    mut frozen: watch::Receiver<bool>,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if stream.read_line(&mut head).await? == 0 {
                return Ok(());
            }
        }
        let (path, headers) = parse(&head);
        let length = headers.get("content-length").expect("a length");
        let mut body = vec![0; length.parse().unwrap()];
        stream.read_exact(&mut body).await?;
        // Fails when the service is gone, and this with it.
        let _ = frozen.wait_for(|frozen| !frozen).await;
        let (status, more) = answer(disk, &path, Taken { headers, body });
        let answer = format!("HTTP/1.1 {status} X\r\n{more}content-length: 2\r\n\r\nok");
        stream.get_mut().write_all(answer.as_bytes()).await?;
    }
}

fn parse(head: &str) -> (String, BTreeMap<String, String>) {
    let mut lines = head.split("\r\n");
    let request = lines.next().unwrap();
    let path = request
        .strip_prefix("POST /")
        .and_then(|rest| rest.strip_suffix(" HTTP/1.1"))
        .unwrap_or_else(|| panic!("{request}"));
    let headers = lines
        .filter(|line| !line.is_empty())
        .map(|line| {
            let (name, value) = line.split_once(':').unwrap();
            (name.to_lowercase(), value.trim().to_owned())
        })
        .collect();
    (path.to_owned(), headers)
}

fn answer(disk: &Disk, path: &str, request: Taken) -> (u16, &'static str) {
    let mut disk = disk.lock().unwrap();
    let Some(place) = disk.get_mut(path) else {
        return (404, "");
    };
    if place.answer.0 / 100 == 2 {
        place.taken.push(request);
    }
    place.answer
}
