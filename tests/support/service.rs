//! An http service that keeps everything it has taken. Written by hand, so that it shares nothing with the sinks; it runs on a
//! thread of its own, since scenarios come and go with their runtimes.

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

/// What was taken.
#[derive(Debug, Clone)]
pub struct Taken {
    /// By lower-case name.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

/// What it took, and why it takes nothing now.
#[derive(Debug, Default)]
pub struct Place {
    pub taken: Vec<Taken>,
    pub refusal: Option<Refusal>,
}

/// A status, and what is said beside it.
pub type Refusal = (u16, &'static str);

/// By name.
pub type Places = HashMap<String, Place>;

/// What outlives a crash of the service: its disk.
type Disk = Arc<Mutex<Places>>;

/// Decides about a request to a path.
pub type Answer = fn(&mut Places, &str, Taken) -> Reply;

/// What is answered.
#[derive(Debug, Default)]
pub struct Reply {
    pub status: u16,
    /// Further header lines, each with its end.
    pub headers: &'static str,
    pub body: String,
}

/// See the module.
pub struct Service {
    port: u16,
    answer: Answer,
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
    /// One whose places are paths: it takes what is posted to them. A refusal is a status and further header lines.
    pub fn start() -> Self {
        Self::answering(take)
    }

    pub fn answering(answer: Answer) -> Self {
        let service = Self {
            port: free_port(),
            answer,
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
        let answer = self.answer;
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    () = serve(listener, disk, answer, frozen) => {}
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

    /// Makes a place. Any other is unknown.
    pub fn open(&self, place: &str) {
        let mut disk = self.disk.lock().unwrap();
        disk.insert(place.to_owned(), Place::default());
    }

    /// Takes nothing for this place, or takes things again.
    pub fn refuse(&self, place: &str, refusal: Option<Refusal>) {
        let mut disk = self.disk.lock().unwrap();
        disk.get_mut(place).expect("an open place").refusal = refusal;
    }

    /// The same for every place.
    pub fn refuse_all(&self, refusal: Option<Refusal>) {
        for place in self.disk.lock().unwrap().values_mut() {
            place.refusal = refusal;
        }
    }

    /// All that a place took, in order. It is unknown afterwards.
    pub fn close(&self, place: &str) -> Vec<Taken> {
        let place = self.disk.lock().unwrap().remove(place);
        place.expect("an open place").taken
    }
}

async fn serve(listener: TcpListener, disk: Disk, answer: Answer, frozen: watch::Receiver<bool>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (disk, frozen) = (Arc::clone(&disk), frozen.clone());
        tokio::spawn(async move {
            // An error is a connection that ended.
            let _ = converse(stream, &disk, answer, frozen).await;
        });
    }
}

async fn converse(
    stream: TcpStream,
    disk: &Disk,
    answer: Answer,
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
        let reply = answer(&mut disk.lock().unwrap(), &path, Taken { headers, body });
        let Reply {
            status,
            headers,
            body,
        } = reply;
        let length = body.len();
        let text =
            format!("HTTP/1.1 {status} X\r\n{headers}content-length: {length}\r\n\r\n{body}");
        stream.get_mut().write_all(text.as_bytes()).await?;
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

fn take(places: &mut Places, path: &str, request: Taken) -> Reply {
    let Some(place) = places.get_mut(path) else {
        return Reply {
            status: 404,
            ..Reply::default()
        };
    };
    if let Some((status, headers)) = place.refusal {
        return Reply {
            status,
            headers,
            ..Reply::default()
        };
    }
    place.taken.push(request);
    Reply {
        status: 202,
        body: "ok".to_owned(),
        ..Reply::default()
    }
}
