//! EventBridge: a bus with a rule that leads to a queue is a place. moto plays AWS; it is reached through a gate that can be
//! shut, and that says what AWS says when it wants less.

use std::collections::BTreeMap;
use std::net::TcpListener as StdListener;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use outrigger::error::ReasonCode;
use outrigger::event::encode::{Mode, STRUCTURED};
use outrigger::event::{HeaderValue, Message};
use outrigger::sink::Sink;
use outrigger::sink::eventbridge::{self, EventBridgeSettings};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use crate::moto::{Moto, exchange};
use crate::world::{Arrived, Place, Tuning, World};

const LIMIT: usize = 64 * 1024;

/// What the gate answers instead of moto.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) enum Mood {
    #[default]
    Well,
    /// Requests to put events get this code.
    Refuses(&'static str),
    /// Entries get this code whose detail has the text.
    RefusesEntry(&'static str, &'static str),
    /// Who asks about a bus is told to have no right to.
    TellsNothing,
    /// Only this key id is known.
    Knows(&'static str),
}

#[derive(Default)]
struct Gate {
    mood: Mood,
    connections: usize,
    /// Entries of each request to put events.
    requests: Vec<usize>,
    /// Questions about buses.
    questions: usize,
}

type Shared = Arc<Mutex<Gate>>;

pub(crate) struct EventBridgeWorld {
    pub(crate) moto: Moto,
    port: u16,
    gate: Shared,
    service: Mutex<Option<(oneshot::Sender<()>, JoinHandle<()>)>>,
}

impl Drop for EventBridgeWorld {
    fn drop(&mut self) {
        self.end();
    }
}

impl EventBridgeWorld {
    pub(crate) fn settings(&self, tuning: Tuning, known: &[&Place]) -> EventBridgeSettings {
        EventBridgeSettings {
            region: Some("eu-west-1".into()),
            endpoint: Some(format!("http://127.0.0.1:{}", self.port)),
            credentials_file: Some(self.moto.dir().join("credentials")),
            connections: tuning.lanes,
            timeout: tuning.confirm_timeout,
            max_request_size: LIMIT,
            known_destinations: known
                .iter()
                .map(|place| place.destination.clone())
                .collect(),
        }
    }

    /// Writes the file that the sinks read.
    pub(crate) fn credentials(&self, key_id: &str) {
        std::fs::write(
            self.moto.dir().join("credentials"),
            format!("[default]\naws_access_key_id = {key_id}\naws_secret_access_key = s3cret\n"),
        )
        .unwrap();
    }

    pub(crate) fn mood(&self, mood: Mood) {
        self.gate.lock().unwrap().mood = mood;
    }

    /// How many entries the requests had since the last time.
    pub(crate) fn requests(&self) -> Vec<usize> {
        std::mem::take(&mut self.gate.lock().unwrap().requests)
    }

    /// How many questions about buses there were since the last time.
    pub(crate) fn questions(&self) -> usize {
        std::mem::take(&mut self.gate.lock().unwrap().questions)
    }

    fn end(&self) {
        if let Some((stop, thread)) = self.service.lock().unwrap().take() {
            let _ = stop.send(());
            thread.join().unwrap();
        }
    }

    fn begin(&self, listener: StdListener) {
        listener.set_nonblocking(true).unwrap();
        let (stop, stopped) = oneshot::channel();
        let (gate, moto) = (Arc::clone(&self.gate), self.moto.port);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    () = serve(listener, moto, gate) => {}
                    _ = stopped => {}
                }
            });
        });
        *self.service.lock().unwrap() = Some((stop, thread));
    }
}

impl World for EventBridgeWorld {
    async fn start() -> Self {
        let listener = StdListener::bind("127.0.0.1:0").unwrap();
        let world = Self {
            moto: Moto::start().await,
            port: listener.local_addr().unwrap().port(),
            gate: Shared::default(),
            service: Mutex::new(None),
        };
        world.credentials("k");
        world.begin(listener);
        world
    }

    fn sink(&self, tuning: Tuning, known: &[&Place]) -> Box<dyn Sink> {
        eventbridge::start(self.settings(tuning, known)).unwrap()
    }

    fn modes(&self) -> &'static [Mode] {
        &[Mode::Structured]
    }

    /// An event is wrapped into an envelope, without headers, and its numbers are parsed.
    fn keeps_messages(&self) -> bool {
        false
    }

    fn notices_silently(&self) -> bool {
        false
    }

    fn place(&self, name: &str) -> Place {
        Place {
            destination: name.to_owned(),
            routing_key: "order.placed".to_owned(),
        }
    }

    async fn open(&self, place: &Place) {
        self.moto.open(&place.destination).await;
    }

    fn nobody_listens(&self, _place: &Place) -> Option<(Place, ReasonCode)> {
        None
    }

    fn impossible(&self, good: &Message) -> Vec<(Message, ReasonCode)> {
        let changed = |change: &dyn Fn(&mut Message)| {
            let mut message = good.clone();
            change(&mut message);
            message
        };
        let (route, event) = (ReasonCode::InvalidRoute, ReasonCode::InvalidEvent);
        vec![
            (changed(&|m| m.destination = "a b".into()), route),
            (changed(&|m| m.routing_key = String::new()), route),
            (changed(&|m| m.routing_key = "x".repeat(129)), route),
            (changed(&|m| m.source = "aws.orders".into()), event),
            (changed(&|m| m.source = String::new()), event),
            (changed(&|m| m.body = "[]".into()), event),
            (changed(&|m| m.body = vec![b'{', 0xff].into()), event),
            (
                changed(&|m| m.headers = vec![("Resources".into(), HeaderValue::Int(1))]),
                ReasonCode::InvalidHeader,
            ),
            (
                changed(&|m| m.body = format!("{{\"n\":\"{}\"}}", "x".repeat(LIMIT)).into()),
                ReasonCode::TooLarge,
            ),
        ]
    }

    fn odd(&self, good: &Message) -> Vec<Message> {
        let with = |name: &str, value: &str| Message {
            headers: vec![(name.to_owned(), HeaderValue::Text(value.to_owned()))],
            ..good.clone()
        };
        vec![
            with("resources", "arn:aws:s3:::a, arn:aws:s3:::b"),
            with("anything", "ü\0\r\n"),
            // moto pastes them into JSON as they are: no quotes.
            Message {
                routing_key: "ü 😀 '<&".into(),
                source: "ü 😀 '<&".into(),
                ..good.clone()
            },
        ]
    }

    async fn take(&self, place: &Place) -> Vec<Arrived> {
        let envelopes = self.moto.take(&place.destination).await;
        let arrived = envelopes.into_iter().map(|event| {
            let detail = &event["detail"];
            let id = detail["id"].as_str().or(detail["n"].as_str());
            Arrived {
                id: id.unwrap_or_default().to_owned(),
                content_type: Some(STRUCTURED.to_owned()),
                headers: BTreeMap::new(),
                body: detail.to_string().into_bytes(),
            }
        });
        arrived.collect()
    }

    /// Only the way to it: what moto knows is in its memory.
    async fn kill(&self) {
        self.end();
    }

    async fn revive(&self) {
        self.begin(StdListener::bind(("127.0.0.1", self.port)).unwrap());
    }

    async fn block(&self) {
        self.mood(Mood::Refuses("ThrottlingException"));
    }

    async fn unblock(&self) {
        self.mood(Mood::Well);
    }

    async fn connections(&self) -> usize {
        self.gate.lock().unwrap().connections
    }
}

async fn serve(listener: TcpListener, moto: u16, gate: Shared) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let gate = Arc::clone(&gate);
        tokio::spawn(async move {
            let _counted = Counted::new(&gate);
            // An error is a connection that ended.
            let _ = converse(stream, moto, &gate).await;
        });
    }
}

/// A connection, for as long as it lives.
struct Counted(Shared);

impl Counted {
    fn new(gate: &Shared) -> Self {
        gate.lock().unwrap().connections += 1;
        Self(Arc::clone(gate))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.lock().unwrap().connections -= 1;
    }
}

async fn converse(stream: TcpStream, moto: u16, gate: &Shared) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    loop {
        let (mut head, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            let (name, value) = line.split_once(':').unwrap_or_default();
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().unwrap();
            }
            if line == "\r\n" {
                head += "connection: close\r\n\r\n";
                break;
            }
            head += &line;
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        let (status, answer) = answer(moto, gate, &head, body).await?;
        let head = format!(
            "HTTP/1.1 {status} X\r\ncontent-type: application/x-amz-json-1.1\r\ncontent-length: {}\r\n\r\n",
            answer.len()
        );
        let answer = [head.as_bytes(), &answer].concat();
        stream.get_mut().write_all(&answer).await?;
    }
}

async fn answer(
    moto: u16,
    gate: &Shared,
    head: &str,
    body: Vec<u8>,
) -> std::io::Result<(u16, Vec<u8>)> {
    let request: Value = serde_json::from_slice(&body).unwrap();
    let puts = head.contains("AWSEvents.PutEvents");
    let mood = {
        let mut gate = gate.lock().unwrap();
        match puts {
            true => gate
                .requests
                .push(request["Entries"].as_array().unwrap().len()),
            false => gate.questions += 1,
        }
        gate.mood
    };
    let code = match mood {
        Mood::Refuses(code) if puts => code,
        Mood::TellsNothing if !puts => "AccessDeniedException",
        Mood::Knows(key) if !head.contains(&format!("Credential={key}/")) => {
            "UnrecognizedClientException"
        }
        Mood::RefusesEntry(code, text) if puts => {
            return refuse_entries(moto, head, request, code, text).await;
        }
        _ => {
            let answer = exchange(moto, &[head.as_bytes(), &body].concat()).await?;
            return Ok(match puts {
                true => as_eventbridge(&request, answer),
                false => answer,
            });
        }
    };
    let answer = json!({"__type": code, "message": "as the test wants it"});
    Ok((400, answer.to_string().into_bytes()))
}

/// EventBridge has no error for a bus that does not exist, whatever moto makes of it.
fn as_eventbridge(request: &Value, (status, answer): (u16, Vec<u8>)) -> (u16, Vec<u8>) {
    let text = String::from_utf8_lossy(&answer);
    if status == 200 || !text.contains("ResourceNotFoundException") {
        return (status, answer);
    }
    let entries = request["Entries"].as_array().unwrap();
    let dropped = vec![json!({"EventId": "00000000-0000-0000-0000-000000000000"}); entries.len()];
    let answer = json!({"FailedEntryCount": 0, "Entries": dropped});
    (200, answer.to_string().into_bytes())
}

/// moto gets the other entries.
async fn refuse_entries(
    moto: u16,
    head: &str,
    mut request: Value,
    code: &str,
    text: &str,
) -> std::io::Result<(u16, Vec<u8>)> {
    let entries = request["Entries"].as_array().unwrap().clone();
    let refused = |entry: &Value| entry["Detail"].as_str().unwrap().contains(text);
    let taken = entries.iter().filter(|entry| !refused(entry)).cloned();
    request["Entries"] = taken.collect();
    let body = request.to_string();
    let head: String = head
        .split_inclusive("\r\n")
        .map(
            |line| match line.to_lowercase().starts_with("content-length:") {
                true => format!("content-length: {}\r\n", body.len()),
                false => line.to_owned(),
            },
        )
        .collect();
    let (status, answer) = exchange(moto, &[head.as_bytes(), body.as_bytes()].concat()).await?;
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    let mut taken = answer["Entries"].as_array().unwrap().iter();
    let results: Vec<Value> = entries
        .iter()
        .map(|entry| match refused(entry) {
            true => json!({"ErrorCode": code, "ErrorMessage": "as the test wants it"}),
            false => taken.next().unwrap().clone(),
        })
        .collect();
    let failed = entries.iter().filter(|entry| refused(entry)).count();
    let answer = json!({"FailedEntryCount": failed, "Entries": results});
    Ok((status, answer.to_string().into_bytes()))
}
