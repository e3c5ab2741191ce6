//! NATS: a stream on files that takes all subjects below its own name.

use serde_json::{Value, json};

use super::arrival;
use crate::nats_node::{NatsNode, Raw, RawClient, parse_headers};
use crate::support::Arrival;
use crate::support::poison::Poison;

pub(super) const POISON: &[Poison] = &[
    ("routing_key", "'nowhere'", "unroutable"),
    ("routing_key", "repeat('x', 3501)", "invalid_route"),
    ("routing_key", "E'a\\nb'", "invalid_route"),
    ("routing_key", "'a..b'", "invalid_route"),
    ("routing_key", "'a.>'", "invalid_route"),
    ("routing_key", "'$JS.API.STREAM.LIST'", "invalid_route"),
    ("destination", "'a.b'", "invalid_route"),
    ("destination", "'nowhere'", "unroutable"),
    (
        "headers",
        "jsonb_build_object('h', repeat('x', 70000))",
        "invalid_header",
    ),
    ("headers", "'{\"Nats-Rollup\":\"all\"}'", "invalid_header"),
    ("headers", "'{\"a:b\":1}'", "invalid_header"),
];

/// Enough for the largest event of any scenario, and a store that can be filled.
const CONFIG: &str = r#"
max_payload: 16MB
jetstream { store_dir: "@DIR@/store", max_mem: 1MB, max_file: 512MB }
"#;

/// How long a stream recognises repetitions, in nanoseconds. As short as servers allow: copies are to be counted.
const SHORT_WINDOW: u64 = 100_000_000;

/// What streams have if nobody says anything.
const USUAL_WINDOW: u64 = 120_000_000_000;

/// Takes up all the room there is.
const FILLER: &str = "filler";

/// The server.
pub(crate) struct Nats {
    pub(crate) node: NatsNode,
}

/// What may change of a stream.
struct Stream<'a> {
    subjects: &'a str,
    max_msg_size: i32,
    duplicate_window: u64,
}

impl Nats {
    pub(super) async fn start() -> Self {
        Self {
            node: NatsNode::start_with(CONFIG).await,
        }
    }

    pub(super) async fn version(&self) -> String {
        let about = self.node.monitor("/varz").await.expect("a running server");
        format!("NATS {}", about["version"].as_str().expect("a version"))
    }

    async fn client(&self) -> RawClient {
        RawClient::connect(self.node.port(), Value::Null).await
    }

    async fn set(&self, verb: &str, place: &str, stream: Stream<'_>) {
        let config = json!({
            "name": place, "subjects": [format!("{}.>", stream.subjects)], "storage": "file", "num_replicas": 1,
            "retention": "limits", "discard": "old", "max_msg_size": stream.max_msg_size,
            "duplicate_window": stream.duplicate_window,
        });
        let question = format!("STREAM.{verb}.{place}");
        self.client().await.api(&question, config, 0).await;
    }

    fn usual(place: &str) -> Stream<'_> {
        Stream {
            subjects: place,
            max_msg_size: -1,
            duplicate_window: SHORT_WINDOW,
        }
    }

    pub(super) async fn open(&self, place: &str) {
        self.set("CREATE", place, Self::usual(place)).await;
    }

    /// The stream takes other subjects instead.
    pub(super) async fn refuse(&self, place: &str) {
        let elsewhere = format!("{place}-refused");
        let stream = Self::usual(&elsewhere);
        self.set("UPDATE", place, stream).await;
    }

    pub(super) async fn accept(&self, place: &str) {
        self.set("UPDATE", place, Self::usual(place)).await;
    }

    pub(super) async fn limit_size(&self, place: &str) {
        let stream = Stream {
            max_msg_size: 64 * 1024,
            ..Self::usual(place)
        };
        self.set("UPDATE", place, stream).await;
    }

    /// Repetitions are recognised as usual.
    pub(crate) async fn recognise(&self, place: &str) {
        let stream = Stream {
            duplicate_window: USUAL_WINDOW,
            ..Self::usual(place)
        };
        self.set("UPDATE", place, stream).await;
    }

    /// All that is stored. The stream is gone afterwards, and makes room for the next.
    pub(super) async fn arrivals(&self, place: &str) -> Vec<Arrival> {
        let mut client = self.client().await;
        let stored = client.stored(place).await;
        let delete = format!("STREAM.DELETE.{place}");
        client.api(&delete, Value::Null, 0).await;
        stored.into_iter().map(arrived).collect()
    }

    /// Fills the server's storage to the last byte.
    pub(super) async fn fill(&self) {
        let mut client = self.client().await;
        let config = json!({"name": FILLER, "subjects": [FILLER], "storage": "file"});
        let create = format!("STREAM.CREATE.{FILLER}");
        client.api(&create, config, 0).await;
        for size in [8_000_000, 250_000, 5_000, 100, 1] {
            let body = "x".repeat(size);
            loop {
                let raw = client.ask(FILLER, &body).await;
                let answer: Value = serde_json::from_slice(&raw.body).expect("an answer");
                if !answer["error"].is_null() {
                    break;
                }
            }
        }
    }

    /// Ends that.
    pub(super) async fn empty(&self) {
        let delete = format!("STREAM.DELETE.{FILLER}");
        self.client().await.api(&delete, Value::Null, 0).await;
    }
}

fn arrived(message: Raw) -> Arrival {
    let headers = parse_headers(&message.headers);
    let identity = headers.get("Nats-Msg-Id").expect("an identity");
    let id = identity.rsplit(' ').next().expect("source and id");
    let beside = format!("{headers:?}{}", message.subject);
    arrival(id.to_owned(), &message.body, beside.as_bytes())
}
