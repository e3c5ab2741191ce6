//! NATS: a stream that takes all subjects below its own name is a place.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use outrigger::error::ReasonCode;
use outrigger::event::{HeaderValue, Message};
use outrigger::sink::Sink;
use outrigger::sink::nats::{self, NatsSettings};
use secrecy::SecretString;
use serde_json::{Value, json};

use crate::nats_node::{NatsNode, RawClient, parse_headers};
use crate::world::{Arrived, Place, Tuning, World};

/// What the connections of sinks are called.
const NAME: &str = "sink-under-test";

/// Small, so that little fills it.
const CONFIG: &str = r#"
max_payload: 65536
jetstream { store_dir: "@DIR@/store", max_mem: 1MB, max_file: 16MB }
"#;

const NOT_FOUND: u64 = 10059;
const NO_MESSAGE: u64 = 10037;

pub(crate) struct NatsWorld {
    node: NatsNode,
}

impl NatsWorld {
    async fn client(&self) -> RawClient {
        RawClient::connect(self.node.port(), Value::Null).await
    }
}

impl World for NatsWorld {
    async fn start() -> Self {
        let node = NatsNode::start_with(CONFIG).await;
        Self { node }
    }

    fn sink(&self, tuning: Tuning, known: &[&Place]) -> Box<dyn Sink> {
        let url = format!("nats://127.0.0.1:{}", self.node.port());
        let settings = NatsSettings {
            urls: vec![SecretString::from(url)],
            lanes: tuning.lanes,
            confirm_timeout: tuning.confirm_timeout,
            connection_name: NAME.into(),
            known_destinations: known
                .iter()
                .map(|place| place.destination.clone())
                .collect(),
            ..NatsSettings::default()
        };
        nats::start(settings).unwrap()
    }

    fn place(&self, name: &str) -> Place {
        Place {
            destination: name.to_owned(),
            routing_key: format!("{name}.heard"),
        }
    }

    async fn open(&self, place: &Place) {
        let name = &place.destination;
        let config = json!({
            "name": name, "subjects": [place.routing_key], "storage": "file", "num_replicas": 1,
            "retention": "limits", "discard": "old",
        });
        let question = format!("STREAM.CREATE.{name}");
        self.client().await.api(&question, config, 0).await;
    }

    fn nobody_listens(&self, place: &Place) -> Option<(Place, ReasonCode)> {
        let deaf = Place {
            routing_key: format!("{}.unheard", place.destination),
            ..place.clone()
        };
        Some((deaf, ReasonCode::Unroutable))
    }

    fn impossible(&self, good: &Message) -> Vec<(Message, ReasonCode)> {
        let (route, header) = (ReasonCode::InvalidRoute, ReasonCode::InvalidHeader);
        let changed = |change: &dyn Fn(&mut Message)| {
            let mut message = good.clone();
            change(&mut message);
            message
        };
        let with = |name: &str, value: &str| {
            let headers = vec![(name.to_owned(), HeaderValue::Text(value.to_owned()))];
            Message {
                headers,
                ..good.clone()
            }
        };
        vec![
            (changed(&|m| m.routing_key = "x".repeat(5000)), route),
            (changed(&|m| m.routing_key = String::new()), route),
            (changed(&|m| m.routing_key = "a b\r\nPING".into()), route),
            (
                changed(&|m| m.routing_key = format!("{}.*", m.destination)),
                route,
            ),
            (
                changed(&|m| m.routing_key = format!("$JS.API.STREAM.DELETE.{}", m.destination)),
                route,
            ),
            (changed(&|m| m.destination = "a.b".into()), route),
            (with("Nats-Rollup", "all"), header),
            (with("a", "x\r\nNats-Rollup: all"), header),
            (with("a:b", "x"), header),
            (with("big", &"x".repeat(70_000)), header),
            (
                changed(&|m| m.body = vec![b'x'; 65_500].into()),
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
            with("utf8", HeaderValue::Text("ü \u{10ffff} : x".into())),
            with("empty", HeaderValue::Text(String::new())),
            with("int", HeaderValue::Int(i64::MIN)),
            with("long", HeaderValue::Text("y".repeat(30_000))),
            Message {
                body: vec![0xff; 65_000].into(),
                ..good.clone()
            },
            Message {
                content_type: None,
                body: Vec::new().into(),
                ..good.clone()
            },
            // Whichever stream takes it.
            Message {
                destination: String::new(),
                ..good.clone()
            },
        ]
    }

    async fn take(&self, place: &Place) -> Vec<Arrived> {
        let mut client = self.client().await;
        let question = format!("STREAM.MSG.GET.{}", place.destination);
        let mut all = Vec::new();
        let mut next = 1;
        loop {
            // One after the other, whatever the subject.
            let body = json!({"seq": next, "next_by_subj": ">"});
            let answer = client.api(&question, body, NO_MESSAGE).await;
            if !answer["error"].is_null() {
                break;
            }
            let message = &answer["message"];
            next = message["seq"].as_u64().unwrap() + 1;
            all.push(arrived(message));
        }
        let purge = format!("STREAM.PURGE.{}", place.destination);
        client.api(&purge, Value::Null, 0).await;
        all
    }

    async fn kill(&self) {
        self.node.kill();
    }

    async fn revive(&self) {
        self.node.revive().await;
    }

    /// Fills the server's storage to the last byte.
    async fn block(&self) {
        let mut client = self.client().await;
        let config = json!({"name": "filler", "subjects": ["filler"], "storage": "file"});
        client.api("STREAM.CREATE.filler", config, 0).await;
        for size in [60_000, 1_000, 1] {
            loop {
                let raw = client.ask("filler", &"x".repeat(size)).await;
                let answer: Value = serde_json::from_slice(&raw.body).unwrap();
                if !answer["error"].is_null() {
                    break;
                }
            }
        }
    }

    async fn unblock(&self) {
        let mut client = self.client().await;
        client
            .api("STREAM.DELETE.filler", Value::Null, NOT_FOUND)
            .await;
    }

    async fn connections(&self) -> usize {
        let listed = self.node.monitor("/connz").await.unwrap();
        let names = listed["connections"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        names.iter().filter(|one| one["name"] == NAME).count()
    }
}

fn arrived(message: &Value) -> Arrived {
    let bytes = |name: &str| match message[name].as_str() {
        Some(text) => STANDARD.decode(text).unwrap(),
        None => Vec::new(),
    };
    let mut raw = parse_headers(&bytes("hdrs"));
    // `source id`, both percent-encoded.
    let id = raw.remove("Nats-Msg-Id").unwrap_or_default();
    let id = id.rsplit(' ').next().unwrap_or_default();
    raw.retain(|name, _| !name.starts_with("Nats-"));
    let structured = raw.remove("Content-Type");
    let headers: BTreeMap<String, String> = raw
        .into_iter()
        .map(|(name, value)| {
            let attribute = name.starts_with("ce-");
            let value = if attribute {
                percent_decoded(&value)
            } else {
                value
            };
            (name.to_lowercase(), value)
        })
        .collect();
    Arrived {
        id: percent_decoded(id),
        content_type: structured.or_else(|| headers.get("ce-datacontenttype").cloned()),
        headers: headers
            .into_iter()
            .filter(|(name, _)| name != "ce-datacontenttype")
            .collect(),
        body: bytes("data"),
    }
}

/// One round, as the binding says.
pub(crate) fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next().unwrap(), rest.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).unwrap()
}
