//! The programs of `docs/consuming.md`, as they stand there, with every event delivered twice.

use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use lapin::options::{
    ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties, ExchangeKind};
use serde_json::{Value, json};

use crate::known::Sdk;
use crate::nats_node::{NatsNode, RawClient};
use crate::rabbitmq::RabbitMq;
use crate::tool::{Tool, server};

/// Reached only when something hangs.
const PATIENCE: Duration = Duration::from_secs(180);

const EVENTS: i64 = 7;

/// The fenced block of a document that contains `part`.
fn block(document: &str, part: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("docs")
        .join(document);
    let text = fs::read_to_string(path).unwrap();
    let blocks = text.split("\n```").skip(1).step_by(2);
    let mut found = blocks.filter(|block| block.contains(part));
    let (Some(block), None) = (found.next(), found.next()) else {
        panic!("not exactly one `{part}` in {document}");
    };
    let (_, block) = block.split_once('\n').unwrap();
    format!("{block}\n")
}

/// A running program, ended with this.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Program {
    /// Starts what the page has for this language and broker, in the folder that is prepared for the language.
    fn start(sdk: Sdk, run: &Path, broker: &str, variables: &[(&str, &str)]) -> Self {
        let folder = run.parent().unwrap();
        let name = match (sdk, broker) {
            (Sdk::Python, _) => format!("consume_{broker}.py"),
            (Sdk::JavaScript, _) => format!("consume_{broker}.js"),
            (Sdk::Go, _) => format!("consume_{broker}.go"),
            (Sdk::Java, "rabbitmq") => "ConsumeRabbitMq.java".to_owned(),
            (Sdk::Java, _) => "ConsumeNats.java".to_owned(),
        };
        fs::write(folder.join(&name), block("consuming.md", &name)).unwrap();
        let mut command = match sdk {
            Sdk::Python => Command::new(folder.join("venv/bin/python")),
            Sdk::JavaScript => Command::new("node"),
            Sdk::Java => {
                let mut java = Command::new("java");
                java.args(["-cp", "target/dependency/*"]);
                java
            }
            Sdk::Go => {
                let program = format!("consume_{broker}");
                let built = Command::new("go")
                    .args(["build", "-o", &program, &name])
                    .current_dir(folder)
                    .output()
                    .unwrap();
                assert!(built.status.success(), "{built:?}");
                Command::new(folder.join(program))
            }
        };
        if sdk != Sdk::Go {
            command.arg(&name);
        }
        let child = command
            .current_dir(folder)
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .spawn();
        Self(child.unwrap())
    }

    /// Waits for what `look` looks for, as long as the program runs.
    async fn until<F: Future<Output = bool>>(&mut self, what: &str, mut look: impl FnMut() -> F) {
        let waiting = async {
            while !look().await {
                let ended = self.0.try_wait().unwrap();
                assert!(
                    ended.is_none(),
                    "the program has ended before {what}: {ended:?}"
                );
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        waited.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"));
    }
}

/// A database with an inbox, events of orders published twice, and what leads a program to it.
async fn shop(settings: &[(&str, &str)]) -> (Tool, String, String) {
    let tool = Tool::new().await;
    let inbox = block("idempotent-consumers.md", "create table inbox");
    tool.sql(&inbox).await;
    tool.sql("create table shipment (order_id bigint not null)")
        .await;
    tool.sql(&format!(
        "insert into outbox (type, key, data) select 'order.placed', 'order-' || n, jsonb_build_object('id', n) \
         from generate_series(1, {EVENTS}) n"
    ))
    .await;
    let common = [("OUTRIGGER_EVENT_SOURCE", "/services/orders")];
    let relay = tool.with(&[&common, settings].concat()).await;
    relay.drain().await;
    tool.sql("update outbox set published_at = null").await;
    relay.drain().await;
    let url = server().await.url(&tool.name);
    let user = url.split("://").nth(1).unwrap().split(['@', ':']).next();
    let jdbc = format!(
        "jdbc:postgresql://127.0.0.1:{}/{}?user={}&sslmode=disable",
        server().await.port(),
        tool.name,
        user.unwrap()
    );
    (tool, url, jdbc)
}

/// Every order once, and every event remembered.
async fn has_acted_once(tool: &Tool, sdk: Sdk) {
    let shipped = tool.count("shipment").await;
    let different = tool
        .count("(select distinct order_id from shipment) as different")
        .await;
    assert_eq!((shipped, different), (EVENTS, EVENTS), "{sdk:?}");
    assert_eq!(tool.count("inbox").await, EVENTS, "{sdk:?}");
}

fn prepared() -> Vec<(Sdk, PathBuf)> {
    let all = [Sdk::Python, Sdk::JavaScript, Sdk::Go, Sdk::Java].into_iter();
    all.filter_map(|sdk| Some((sdk, crate::prepared(sdk)?)))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_consume_from_rabbitmq() {
    let node = RabbitMq::start().await;
    let amqp = node.url();
    let connection = Connection::connect(&amqp, ConnectionProperties::default())
        .await
        .unwrap();
    let channel = connection.create_channel().await.unwrap();
    let none = FieldTable::default;
    let exchange = ExchangeDeclareOptions::default();
    channel
        .exchange_declare("events".into(), ExchangeKind::Topic, exchange, none())
        .await
        .unwrap();
    for (sdk, run) in prepared() {
        channel
            .queue_declare("orders".into(), QueueDeclareOptions::default(), none())
            .await
            .unwrap();
        let bind = QueueBindOptions::default();
        channel
            .queue_bind(
                "orders".into(),
                "events".into(),
                "order.#".into(),
                bind,
                none(),
            )
            .await
            .unwrap();
        let (tool, url, jdbc) = shop(&[("OUTRIGGER_RABBITMQ_URL", &amqp)]).await;
        let passive = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let queue = channel
            .queue_declare("orders".into(), passive, none())
            .await
            .unwrap();
        assert_eq!(
            i64::from(queue.message_count()),
            2 * EVENTS,
            "each event twice"
        );
        let variables = [
            ("DATABASE_URL", url.as_str()),
            ("JDBC_URL", &jdbc),
            ("AMQP_URL", &amqp),
        ];
        let mut program = Program::start(sdk, &run, "rabbitmq", &variables);
        program
            .until("everything is acknowledged", async || {
                let queues = ["list_queues", "-q", "--no-table-headers", "messages"];
                node.ctl_ok(&queues).trim() == "0"
            })
            .await;
        drop(program);
        has_acted_once(&tool, sdk).await;
        channel
            .queue_delete("orders".into(), QueueDeleteOptions::default())
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_consume_from_nats() {
    let node = NatsNode::start_with(r#"jetstream { store_dir: "@DIR@/store" }"#).await;
    let nats = format!("nats://127.0.0.1:{}", node.port());
    let mut client = RawClient::connect(node.port(), Value::Null).await;
    for (sdk, run) in prepared() {
        // The window for duplicates is over before events come again.
        let stream = json!({"name": "ORDERS", "subjects": ["orders.>"], "storage": "file", "duplicate_window": 100_000_000});
        client.api("STREAM.CREATE.ORDERS", stream, 0).await;
        let settings = [
            ("OUTRIGGER_SINK", "nats"),
            ("OUTRIGGER_NATS_URL", &nats),
            ("OUTRIGGER_ROUTE_DESTINATION", "ORDERS"),
            ("OUTRIGGER_ROUTE_KEY", "orders.{{ key | token }}"),
        ];
        let (tool, url, jdbc) = shop(&settings).await;
        let relay = tool
            .with(
                &[
                    &[("OUTRIGGER_EVENT_SOURCE", "/services/orders")][..],
                    &settings,
                ]
                .concat(),
            )
            .await;
        // A repetition within the window is stored once: they are published until all have come again.
        loop {
            let info = client.api("STREAM.INFO.ORDERS", Value::Null, 0).await;
            if info["state"]["messages"].as_i64().unwrap() >= 2 * EVENTS {
                break;
            }
            tool.sql("update outbox set published_at = null").await;
            relay.drain().await;
        }
        let variables = [
            ("DATABASE_URL", url.as_str()),
            ("JDBC_URL", &jdbc),
            ("NATS_URL", &nats),
        ];
        let mut program = Program::start(sdk, &run, "nats", &variables);
        let client = tokio::sync::Mutex::new(&mut client);
        program
            .until("everything is acknowledged", async || {
                let mut client = client.lock().await;
                let question = "CONSUMER.INFO.ORDERS.shipping";
                let info = client.api(question, Value::Null, 10_014).await;
                let left = |name: &str| info[name].as_u64();
                left("num_pending") == Some(0) && left("num_ack_pending") == Some(0)
            })
            .await;
        drop(program);
        has_acted_once(&tool, sdk).await;
        let client = client.into_inner();
        client.api("STREAM.DELETE.ORDERS", Value::Null, 0).await;
    }
}
