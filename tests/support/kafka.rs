//! A private Kafka node for tests: broker and controller in one, own ports, own folder, nothing left behind.
//!
//! Needs Java 17 and the jars that `scripts/setup` fetches into `.cache/kafka`. The node lives under a small shell
//! that waits on a pipe from this process: when the process ends, in whatever way, the pipe closes
//! and the shell stops the node and removes its folder. So a node may be kept in a `static`, which
//! Rust never drops.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message as _};
use rdkafka::{Offset, TopicPartitionList};

#[path = "keeper.rs"]
#[allow(clippy::duplicate_mod)]
mod keeper;
#[path = "ports.rs"]
#[allow(clippy::duplicate_mod)]
mod ports;
#[path = "scratch.rs"]
#[allow(clippy::duplicate_mod)]
mod scratch;

use keeper::Keeper;
use ports::free_ports;
use scratch::kept_folder;

/// Starting takes 3 to 10 seconds; a loaded machine gets its time.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// Longest wait for one answer.
const ANSWER: Duration = Duration::from_secs(30);

/// Runs the node; obeys `start`, `kill`, `freeze` and `thaw` on its input, and cleans up when that ends.
const KEEPER: &str = r#"
run() { exec java -Xms64m -Xmx256m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 \
    -Dorg.slf4j.simpleLogger.defaultLogLevel=error $JVM -cp "$JARS/*" "$@"; }
start() { run kafka.Kafka server.properties >>output 2>&1 </dev/null & server=$!; }
finish() { kill -KILL "$server" 2>/dev/null; wait "$server" 2>/dev/null; }
trap '' INT HUP TERM
(run kafka.tools.StorageTool format -t "$CLUSTER" -c server.properties $FORMAT) >output 2>&1 </dev/null ||
    echo 'FORMAT FAILED' >>output
start
while read -r command; do
    case "$command" in
        kill) finish; echo done ;;
        start) start; echo done ;;
        freeze) kill -STOP "$server"; echo done ;;
        thaw) kill -CONT "$server"; echo done ;;
    esac
done
finish
cd /
rm -rf "$DIR"
"#;

const PROPERTIES: &str = "
process.roles=broker,controller
node.id=1
controller.listener.names=CONTROLLER
inter.broker.listener.name=ADMIN
log.dirs=@DIR@/data
auto.create.topics.enable=false
num.network.threads=2
num.io.threads=2
background.threads=2
num.recovery.threads.per.data.dir=1
log.cleaner.threads=1
log.cleaner.dedupe.buffer.size=4194304
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
";

/// What a node is made with.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// Further lines for `server.properties`. `@DIR@` stands for the node's folder.
    pub properties: String,
    /// The security protocol of the listener `SINKS`; `PLAINTEXT` if empty.
    pub protocol: String,
    /// Further arguments of the command that formats the storage.
    pub format: String,
    /// Further arguments for Java.
    pub jvm: String,
}

/// A record as a consumer saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub partition: i32,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, String)>,
}

/// A running node.
pub struct Kafka {
    keeper: Keeper,
    dir: PathBuf,
    /// For the sinks under test, and for the tests themselves.
    ports: [u16; 2],
}

impl Kafka {
    /// Starts a node and waits until it serves.
    pub async fn start() -> Self {
        Self::start_with(Plan::default(), |_| {}).await
    }

    /// Starts a node of a kind, after its folder was prepared, for example with certificates.
    pub async fn start_with(plan: Plan, prepare: impl Fn(&Path)) -> Self {
        // Somebody may take a free port before the node does; then others are tried.
        let mut last = String::new();
        for _ in 0..3 {
            let node = Self::spawn(&plan, &prepare);
            match node.ready().await {
                Ok(()) => return node,
                Err(problem) => last = problem,
            }
        }
        panic!("Kafka does not start: {last}");
    }

    fn spawn(plan: &Plan, prepare: impl Fn(&Path)) -> Self {
        let jars = jars();
        let dir = kept_folder("outrigger-kafka-");
        let [sinks, admin, controller] = free_ports();
        let protocol = match plan.protocol.as_str() {
            "" => "PLAINTEXT",
            protocol => protocol,
        };
        let properties = format!(
            "{PROPERTIES}\
             listeners=SINKS://127.0.0.1:{sinks},ADMIN://127.0.0.1:{admin},CONTROLLER://127.0.0.1:{controller}\n\
             listener.security.protocol.map=SINKS:{protocol},ADMIN:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
             advertised.listeners=SINKS://127.0.0.1:{sinks},ADMIN://127.0.0.1:{admin}\n\
             controller.quorum.voters=1@127.0.0.1:{controller}\n{}\n",
            plan.properties
        );
        let shown = dir.display().to_string();
        std::fs::write(
            dir.join("server.properties"),
            properties.replace("@DIR@", &shown),
        )
        .unwrap();
        prepare(&dir);
        let environment = [
            ("JARS", jars.display().to_string()),
            ("CLUSTER", "b3V0cmlnZ2VyLXRlc3RzIQ".to_owned()),
            ("FORMAT", plan.format.clone()),
            ("JVM", plan.jvm.replace("@DIR@", &shown)),
            ("LC_ALL", "C.UTF-8".to_owned()),
        ];
        let keeper = Keeper::start(KEEPER, &dir, environment);
        Self {
            keeper,
            dir,
            ports: [sinks, admin],
        }
    }

    /// `host:port` of the listener for sinks.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.ports[0])
    }

    /// The port of the listener for sinks.
    pub fn port(&self) -> u16 {
        self.ports[0]
    }

    /// Its release, as the jars are called.
    pub fn version(&self) -> String {
        let names = std::fs::read_dir(jars()).unwrap().flatten();
        let mut names = names.filter_map(|entry| entry.file_name().into_string().ok());
        let version = names.find_map(|name| {
            let name = name.strip_prefix("kafka_")?.strip_suffix(".jar")?;
            name.split_once('-').map(|(_, version)| version.to_owned())
        });
        version.expect("kafka_SCALA-VERSION.jar")
    }

    /// The node's folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Kills the node like a crash. What it has written stays.
    pub fn kill(&self) {
        self.keeper.command("kill");
    }

    /// Starts a killed node again and waits until it serves.
    pub async fn revive(&self) {
        self.keeper.command("start");
        self.ready().await.unwrap();
    }

    /// Stops the node's process without closing its connections.
    pub fn freeze(&self) {
        self.keeper.command("freeze");
    }

    /// Lets a frozen node go on.
    pub fn thaw(&self) {
        self.keeper.command("thaw");
    }

    /// Connections that clients have to the listener for sinks.
    pub fn connections(&self) -> usize {
        let port = format!(":{:04X}", self.ports[0]);
        // Address and port of the other end, then the state; 01 is ESTABLISHED.
        let to_us = |line: &&str| {
            let mut fields = line.split_whitespace().skip(2);
            fields.next().is_some_and(|remote| remote.ends_with(&port))
                && fields.next() == Some("01")
        };
        ["/proc/net/tcp", "/proc/net/tcp6"]
            .iter()
            .map(|file| {
                let text = std::fs::read_to_string(file).unwrap_or_default();
                text.lines().filter(to_us).count()
            })
            .sum()
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", format!("127.0.0.1:{}", self.ports[1]));
        config
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.client().create().unwrap()
    }

    /// Creates a topic, and waits until its partitions can take records: a producer's first ones might be put in doubt before.
    pub async fn topic(&self, name: &str, partitions: i32, config: &[(&str, &str)]) {
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        for (name, value) in config {
            topic = topic.set(name, value);
        }
        let created = self
            .admin()
            .create_topics(
                [&topic],
                &AdminOptions::new().operation_timeout(Some(ANSWER)),
            )
            .await
            .unwrap();
        created.into_iter().next().unwrap().unwrap();
        let (config, name) = (self.client(), name.to_owned());
        tokio::task::spawn_blocking(move || {
            let client: BaseConsumer = config.create().unwrap();
            let began = Instant::now();
            for partition in 0..partitions {
                // Answered by the partition's leader; the broker may not know yet that it is the one.
                while let Err(error) = client.fetch_watermarks(&name, partition, ANSWER) {
                    assert!(began.elapsed() < ANSWER, "topic {name}: {error}");
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
        })
        .await
        .unwrap();
    }

    /// Deletes a topic.
    pub async fn delete_topic(&self, name: &str) {
        let deleted = self
            .admin()
            .delete_topics(
                &[name],
                &AdminOptions::new().operation_timeout(Some(ANSWER)),
            )
            .await
            .unwrap();
        deleted.into_iter().next().unwrap().unwrap();
    }

    /// Replaces a topic's configuration.
    pub async fn configure(&self, name: &str, key: &str, value: &str) {
        let change = AlterConfig::new(ResourceSpecifier::Topic(name)).set(key, value);
        let changed = self
            .admin()
            .alter_configs([&change], &AdminOptions::new())
            .await
            .unwrap();
        changed.into_iter().next().unwrap().unwrap();
    }

    /// Reads a topic from the given offsets to its end, partition by partition, and moves the offsets there.
    pub async fn read(&self, name: &str, offsets: &Arc<Mutex<Vec<i64>>>) -> Vec<Record> {
        let (config, name, offsets) = (self.client(), name.to_owned(), Arc::clone(offsets));
        tokio::task::spawn_blocking(move || read(config, &name, &mut offsets.lock().unwrap()))
            .await
            .unwrap()
    }

    /// Everything in a topic.
    pub async fn read_all(&self, name: &str) -> Vec<Record> {
        self.read(name, &Arc::default()).await
    }

    async fn ready(&self) -> Result<(), String> {
        let began = Instant::now();
        let config = self.client();
        let output = self.dir.join("output");
        tokio::task::spawn_blocking(move || {
            let client: BaseConsumer = config.create().unwrap();
            loop {
                let asked = client.fetch_metadata(None, Duration::from_secs(1));
                if asked.is_ok_and(|metadata| !metadata.brokers().is_empty()) {
                    return Ok(());
                }
                let output = std::fs::read_to_string(&output).unwrap_or_default();
                let broken = ["FORMAT FAILED", "Exiting Kafka due to"]
                    .iter()
                    .any(|sign| output.contains(sign));
                if began.elapsed() > START_TIMEOUT || broken {
                    return Err(output);
                }
            }
        })
        .await
        .unwrap()
    }
}

/// Reads a topic from `offsets` on, by partition, and moves them.
pub fn read(mut config: ClientConfig, name: &str, offsets: &mut Vec<i64>) -> Vec<Record> {
    config
        .set("group.id", "tests")
        .set("enable.auto.commit", "false")
        .set("fetch.wait.max.ms", "50");
    let consumer: BaseConsumer = config.create().unwrap();
    let metadata = consumer.fetch_metadata(Some(name), ANSWER).unwrap();
    let partitions = metadata.topics()[0].partitions().len();
    offsets.resize(partitions, 0);
    let mut records = Vec::new();
    for (partition, offset) in offsets.iter_mut().enumerate() {
        let partition = i32::try_from(partition).unwrap();
        let (_, end) = consumer.fetch_watermarks(name, partition, ANSWER).unwrap();
        let mut assigned = TopicPartitionList::new();
        assigned
            .add_partition_offset(name, partition, Offset::Offset(*offset))
            .unwrap();
        consumer.assign(&assigned).unwrap();
        while *offset < end {
            let record = consumer
                .poll(ANSWER)
                .unwrap_or_else(|| panic!("topic {name} ends at {offset} of {end}"))
                .unwrap();
            *offset = record.offset() + 1;
            let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap().to_vec()).unwrap();
            let headers = record
                .headers()
                .into_iter()
                .flat_map(|headers| headers.iter());
            records.push(Record {
                partition,
                key: record.key().map(<[u8]>::to_vec),
                value: record.payload().map(<[u8]>::to_vec),
                headers: headers
                    .map(|header| (header.key.to_owned(), text(header.value)))
                    .collect(),
            });
        }
    }
    records
}

/// The folder with Kafka's jars.
fn jars() -> PathBuf {
    let jars = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/kafka/jars");
    assert!(
        jars.is_dir(),
        "Kafka's jars are missing: run scripts/setup, which fetches them into .cache/kafka"
    );
    assert!(
        Command::new("java").arg("-version").output().is_ok(),
        "Kafka needs java in PATH, 17 or later: install for example default-jre-headless"
    );
    jars
}
