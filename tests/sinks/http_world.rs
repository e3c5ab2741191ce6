//! http: a path that the service knows is a place. The service is written by hand, so that it shares nothing with
//! the sink; it runs on a thread of its own, since tests come and go with their runtimes.

use std::collections::{BTreeMap, HashMap};
use std::net::TcpListener as StdListener;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use outrigger::error::ReasonCode;
use outrigger::event::{HeaderValue, Message};
use outrigger::sink::Sink;
use outrigger::sink::http::{self, HttpSettings};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use crate::nats_world::percent_decoded;
use crate::world::{Arrived, Place, Tuning, World};

/// What outlives a crash of the service: its disk.
#[derive(Default)]
struct Disk {
    places: HashMap<String, Vec<Arrived>>,
    /// Status, further headers: what every request gets instead.
    trouble: Option<(u16, String)>,
    /// The same for one event, by its id.
    poison: HashMap<String, u16>,
    connections: usize,
    requests: usize,
}

type Shared = Arc<Mutex<Disk>>;

pub(crate) struct HttpWorld {
    port: u16,
    disk: Shared,
    service: Mutex<Option<(oneshot::Sender<()>, JoinHandle<()>)>>,
}

impl Drop for HttpWorld {
    fn drop(&mut self) {
        self.end();
    }
}

impl HttpWorld {
    fn end(&self) {
        if let Some((stop, thread)) = self.service.lock().unwrap().take() {
            let _ = stop.send(());
            thread.join().unwrap();
        }
    }

    fn begin(&self, listener: StdListener) {
        listener.set_nonblocking(true).unwrap();
        let (stop, stopped) = oneshot::channel();
        let disk = Arc::clone(&self.disk);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    () = serve(listener, disk) => {}
                    _ = stopped => {}
                }
            });
        });
        *self.service.lock().unwrap() = Some((stop, thread));
    }

    /// Answers all requests like this from now on.
    pub(crate) fn trouble(&self, answer: Option<(u16, &str)>) {
        let answer = answer.map(|(status, headers)| (status, headers.to_owned()));
        self.disk.lock().unwrap().trouble = answer;
    }

    /// Answers this event like this from now on.
    pub(crate) fn poison(&self, id: &str, status: u16) {
        self.disk
            .lock()
            .unwrap()
            .poison
            .insert(id.to_owned(), status);
    }

    pub(crate) fn requests(&self) -> usize {
        self.disk.lock().unwrap().requests
    }

    pub(crate) fn settings(&self, tuning: Tuning) -> HttpSettings {
        HttpSettings {
            url: format!("http://user:pa%3As@127.0.0.1:{}/hooks/?k=v", self.port).into(),
            connections: tuning.lanes,
            timeout: tuning.confirm_timeout,
            max_message_size: 64 * 1024,
            ..HttpSettings::default()
        }
    }
}

impl World for HttpWorld {
    async fn start() -> Self {
        let listener = StdListener::bind("127.0.0.1:0").unwrap();
        let world = Self {
            port: listener.local_addr().unwrap().port(),
            disk: Shared::default(),
            service: Mutex::new(None),
        };
        world.begin(listener);
        world
    }

    fn sink(&self, tuning: Tuning, _known: &[&Place]) -> Box<dyn Sink> {
        http::start(self.settings(tuning)).unwrap()
    }

    fn awaits_destinations(&self) -> bool {
        false
    }

    fn place(&self, name: &str) -> Place {
        Place {
            destination: format!("a b/{name}"),
            routing_key: String::new(),
        }
    }

    async fn open(&self, place: &Place) {
        let mut disk = self.disk.lock().unwrap();
        disk.places.insert(place.destination.clone(), Vec::new());
    }

    fn nobody_listens(&self, _place: &Place) -> Option<(Place, ReasonCode)> {
        None
    }

    fn impossible(&self, good: &Message) -> Vec<(Message, ReasonCode)> {
        let with = |name: &str, value: &str| {
            let headers = vec![(name.to_owned(), HeaderValue::Text(value.to_owned()))];
            (
                Message {
                    headers,
                    ..good.clone()
                },
                ReasonCode::InvalidHeader,
            )
        };
        let to = |destination: &str| Message {
            destination: destination.to_owned(),
            ..good.clone()
        };
        vec![
            (to("../admin"), ReasonCode::InvalidRoute),
            (to("a//b"), ReasonCode::InvalidRoute),
            with("a", "x\r\nhost: evil"),
            with("a b", "x"),
            with("Authorization", "Bearer other"),
            with("content-length", "0"),
            with("transfer-encoding", "chunked"),
            (
                Message {
                    body: vec![b'x'; 64 * 1024 + 1].into(),
                    ..good.clone()
                },
                ReasonCode::TooLarge,
            ),
        ]
    }

    fn odd(&self, good: &Message) -> Vec<Message> {
        let with = |name: &str, value: HeaderValue| Message {
            headers: vec![(name.to_owned(), value)],
            ..good.clone()
        };
        vec![
            with("utf8", HeaderValue::Text("ü \u{10ffff}".into())),
            with("empty", HeaderValue::Text(String::new())),
            with("X-Int", HeaderValue::Int(i64::MIN)),
            Message {
                body: vec![0xff; 64 * 1024].into(),
                ..good.clone()
            },
            Message {
                content_type: None,
                body: Vec::new().into(),
                ..good.clone()
            },
        ]
    }

    async fn take(&self, place: &Place) -> Vec<Arrived> {
        let mut disk = self.disk.lock().unwrap();
        std::mem::take(disk.places.get_mut(&place.destination).unwrap())
    }

    async fn kill(&self) {
        self.end();
    }

    async fn revive(&self) {
        self.begin(StdListener::bind(("127.0.0.1", self.port)).unwrap());
    }

    async fn block(&self) {
        self.trouble(Some((503, "retry-after: 1\r\n")));
    }

    async fn unblock(&self) {
        self.trouble(None);
    }

    async fn connections(&self) -> usize {
        self.disk.lock().unwrap().connections
    }
}

async fn serve(listener: TcpListener, disk: Shared) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let disk = Arc::clone(&disk);
        tokio::spawn(async move {
            let _counted = Counted::new(&disk);
            // An error is a connection that ended.
            let _ = converse(stream, &disk).await;
        });
    }
}

/// A connection, for as long as it lives.
struct Counted(Shared);

impl Counted {
    fn new(disk: &Shared) -> Self {
        disk.lock().unwrap().connections += 1;
        Self(Arc::clone(disk))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.lock().unwrap().connections -= 1;
    }
}

async fn converse(stream: TcpStream, disk: &Shared) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if stream.read_line(&mut head).await? == 0 {
                return Ok(());
            }
        }
        let (request, headers) = parse(&head);
        let length = headers.get("content-length").map_or("0", String::as_str);
        let mut body = vec![0; length.parse().unwrap()];
        stream.read_exact(&mut body).await?;
        let (status, more) = answer(disk, &request, headers, body);
        let answer = format!("HTTP/1.1 {status} X\r\n{more}content-length: 2\r\n\r\nok");
        stream.get_mut().write_all(answer.as_bytes()).await?;
    }
}

fn parse(head: &str) -> (String, BTreeMap<String, String>) {
    let mut lines = head.split("\r\n");
    let request = lines.next().unwrap().to_owned();
    let headers = lines
        .filter(|line| !line.is_empty())
        .map(|line| {
            let (name, value) = line.split_once(':').unwrap();
            (name.to_lowercase(), value.trim().to_owned())
        })
        .collect();
    (request, headers)
}

fn answer(
    disk: &Shared,
    request: &str,
    mut headers: BTreeMap<String, String>,
    body: Vec<u8>,
) -> (u16, String) {
    let mut disk = disk.lock().unwrap();
    disk.requests += 1;
    let path = request
        .strip_prefix("POST /hooks/")
        .and_then(|rest| rest.strip_suffix("?k=v HTTP/1.1"))
        .unwrap_or_else(|| panic!("{request}"));
    // `user:pa:s`
    let login = headers.remove("authorization");
    assert_eq!(login.as_deref(), Some("Basic dXNlcjpwYTpz"));
    let key = headers.remove("idempotency-key").unwrap_or_default();
    let id = key.trim_matches('"').rsplit(' ').next().unwrap_or_default();
    let id = percent_decoded(id);
    if let Some((status, more)) = &disk.trouble {
        return (*status, more.clone());
    }
    if let Some(status) = disk.poison.get(&id) {
        return (*status, String::new());
    }
    let Some(place) = disk.places.get_mut(&percent_decoded(path)) else {
        return (404, String::new());
    };
    for name in ["host", "user-agent", "content-length"] {
        headers.remove(name).unwrap();
    }
    place.push(Arrived {
        id,
        content_type: headers.remove("content-type"),
        headers: headers
            .into_iter()
            .map(|(name, value)| {
                let attribute = name.starts_with("ce-");
                let value = if attribute {
                    percent_decoded(&value)
                } else {
                    value
                };
                (name, value)
            })
            .collect(),
        body,
    });
    (202, String::new())
}
