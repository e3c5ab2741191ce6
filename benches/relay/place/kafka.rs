//! Kafka: a topic, and a bare publisher that awaits the confirms of its records.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{BorrowedMessage, Header, Headers as _, Message as _, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::util::AsyncRuntime;
use rdkafka::{Offset, TopicPartitionList};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{STRUCTURED, per_confirm, side_by_side};
use crate::Result;
use crate::arrivals::{Arrivals, Receipts};
use crate::outbox::{TEXT, message_size};

/// The default of OUTRIGGER_KAFKA_LANES.
const LANES: usize = 8;
const PARTITIONS: i32 = 8;
/// As many keys as the outbox has, so that as many partitions get records at a time.
const KEYS: usize = 10_000;
/// Longest wait for an answer of the cluster.
const ANSWER: Duration = Duration::from_secs(30);
/// How soon a consumer notices that it is to stop.
const POLL: Duration = Duration::from_millis(100);
const CONTENT_TYPE: &str = "content-type";
const EVENT_ID: &str = "id";

type Producer = FutureProducer<DefaultClientContext, Tokio>;

/// The runtime of this program. The library's own would take a feature that the relay does without.
struct Tokio;

impl AsyncRuntime for Tokio {
    type Delay = tokio::time::Sleep;

    fn spawn<T: Future<Output = ()> + Send + 'static>(task: T) {
        tokio::spawn(task);
    }

    fn delay_for(duration: Duration) -> Self::Delay {
        tokio::time::sleep(duration)
    }
}

pub(crate) struct Kafka {
    brokers: String,
    /// How many topics were made. Each has a name of its own: one that was deleted goes in its own time.
    topics: AtomicUsize,
}

impl Kafka {
    pub(crate) fn open(brokers: &str) -> Result<Self> {
        Ok(Self {
            brokers: brokers.to_owned(),
            topics: AtomicUsize::new(0),
        })
    }

    pub(crate) fn brokers(&self) -> &str {
        &self.brokers
    }

    /// The name of the present topic.
    pub(crate) fn topic(&self) -> String {
        format!("bench-{}", self.topics.load(Ordering::Relaxed))
    }

    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers);
        config
    }

    fn admin(&self) -> Result<AdminClient<DefaultClientContext>> {
        Ok(self.config().create()?)
    }

    /// Deletes the present topic, if there is one.
    pub(crate) async fn delete_topic(&self) -> Result<()> {
        let (topic, options) = (self.topic(), AdminOptions::new());
        let deleted = self.admin()?.delete_topics(&[&topic], &options).await;
        // One that is not there is what the first call finds.
        deleted?;
        Ok(())
    }

    /// A new, empty topic for all events.
    pub(crate) async fn new_topic(&self) -> Result<()> {
        self.delete_topic().await?;
        self.topics.fetch_add(1, Ordering::Relaxed);
        let name = self.topic();
        let topic = NewTopic::new(&name, PARTITIONS, TopicReplication::Fixed(1));
        let options = AdminOptions::new().operation_timeout(Some(ANSWER));
        for created in self.admin()?.create_topics([&topic], &options).await? {
            created.map_err(|(name, code)| format!("cannot create topic `{name}`: {code}"))?;
        }
        // Until each partition has a leader that answers, a producer's first records might be put in doubt, or lost.
        let began = Instant::now();
        while let Err(error) = self.count().await {
            if began.elapsed() > ANSWER {
                return Err(error);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Calls a consumer's functions, which block.
    async fn consumer<T: Send + 'static>(
        &self,
        call: impl FnOnce(&BaseConsumer, &str) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (mut config, topic) = (self.config(), self.topic());
        config
            .set("group.id", "bench")
            .set("enable.auto.commit", "false");
        tokio::task::spawn_blocking(move || call(&config.create()?, &topic)).await?
    }

    /// Without transactions, offsets count records.
    pub(crate) async fn count(&self) -> Result<i64> {
        self.consumer(|consumer, topic| {
            let mut count = 0;
            for partition in 0..PARTITIONS {
                let (first, end) = consumer.fetch_watermarks(topic, partition, ANSWER)?;
                count += end - first;
            }
            Ok(count)
        })
        .await
    }

    pub(crate) async fn body_size(&self) -> Result<usize> {
        self.consumer(|consumer, topic| {
            consumer.assign(&from_the_start(topic)?)?;
            let record = consumer.poll(ANSWER).ok_or("the topic is empty")??;
            Ok(record.payload().map_or(0, <[u8]>::len))
        })
        .await
    }

    /// The sink's settings that have to do with speed.
    fn producer(&self) -> Result<Producer> {
        let mut config = self.config();
        for (name, value) in [
            ("enable.idempotence", "true"),
            ("acks", "all"),
            ("linger.ms", "0"),
            ("queue.buffering.max.messages", "100000"),
            ("queue.buffering.max.kbytes", "65536"),
            ("message.max.bytes", "1000512"),
            ("batch.size", "1000000"),
            ("partitioner", "murmur2_random"),
            // A measurement that takes longer has failed.
            ("message.timeout.ms", "30000"),
        ] {
            config.set(name, value);
        }
        Ok(config.create()?)
    }

    pub(crate) async fn publish_many(&self, messages: i64, size: usize) -> Result<f64> {
        self.new_topic().await?;
        // One for all, as the sink has.
        let producer = self.producer()?;
        let mut lanes: Vec<Lane> = (0..LANES)
            .map(|lane| self.lane_of(&producer, lane))
            .collect();
        let body: Arc<[u8]> = vec![b'x'; size].into();
        // The first record waits until the producer knows the topic and has its id. A relay that drains knows both.
        for lane in &mut lanes {
            lane.publish(std::iter::once(Uuid::now_v7()), &body).await?;
        }
        let per_confirm = per_confirm(LANES, size);
        side_by_side(lanes, messages, |mut lane, mut left| {
            let body = Arc::clone(&body);
            async move {
                while left > 0 {
                    let batch = left.min(per_confirm);
                    left -= batch;
                    lane.publish((0..batch).map(|_| Uuid::now_v7()), &body)
                        .await?;
                }
                Ok(())
            }
        })
        .await
    }

    fn lane_of(&self, producer: &Producer, lane: usize) -> Lane {
        Lane {
            producer: producer.clone(),
            topic: self.topic(),
            // Lanes go through the keys side by side.
            key: lane * KEYS / LANES,
        }
    }

    pub(crate) fn lane(&self) -> Result<Lane> {
        Ok(self.lane_of(&self.producer()?, 0))
    }

    pub(crate) fn receive(&self) -> Result<Receipts> {
        let mut config = self.config();
        config
            .set("group.id", "bench")
            .set("enable.auto.commit", "false");
        let consumer: BaseConsumer = config.create()?;
        consumer.assign(&from_the_start(&self.topic())?)?;
        let arrivals = Arrivals::default();
        let noted = arrivals.clone();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        // The client's queue blocks, so it is read by a thread of its own.
        let thread = std::thread::spawn(move || {
            while !stopped.is_cancelled() {
                if let Some(Ok(record)) = consumer.poll(POLL)
                    && let Some(id) = event_id(&record)
                {
                    noted.note(id);
                }
            }
        });
        Ok(Receipts::new(arrivals, async move {
            stop.cancel();
            let ended = tokio::task::spawn_blocking(move || thread.join()).await?;
            ended.map_err(|_| "the consumer panicked".into())
        }))
    }
}

fn event_id(record: &BorrowedMessage<'_>) -> Option<Uuid> {
    let headers = record.headers()?;
    let id = headers
        .iter()
        .find(|header| header.key == EVENT_ID)?
        .value?;
    std::str::from_utf8(id).ok()?.parse().ok()
}

fn from_the_start(topic: &str) -> Result<TopicPartitionList> {
    let mut all = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        all.add_partition_offset(topic, partition, Offset::Beginning)?;
    }
    Ok(all)
}

/// One batch at a time, of a producer that several share.
pub(crate) struct Lane {
    producer: Producer,
    topic: String,
    /// The number of the next key.
    key: usize,
}

impl Lane {
    /// Sends one record for each id and awaits all confirms.
    async fn publish(&mut self, ids: impl Iterator<Item = Uuid>, body: &[u8]) -> Result<()> {
        let mut confirms = Vec::new();
        for id in ids {
            self.key = (self.key + 1) % KEYS;
            let (key, id) = (format!("customer-{}", self.key), id.to_string());
            let header = |key, value| Header {
                key,
                value: Some(value),
            };
            let headers = OwnedHeaders::new_with_capacity(2)
                .insert(header(CONTENT_TYPE, STRUCTURED))
                .insert(header(EVENT_ID, &id));
            let record = FutureRecord::to(&self.topic)
                .key(&key)
                .payload(body)
                .headers(headers);
            let sent = self.producer.send_result(record);
            confirms.push(sent.map_err(|(error, _)| error)?);
        }
        for confirmed in try_join_all(confirms).await? {
            confirmed.map_err(|(error, _)| error)?;
        }
        Ok(())
    }

    pub(crate) async fn publish_one(&mut self, id: Uuid) -> Result<()> {
        let body = vec![b'x'; message_size(TEXT)];
        self.publish(std::iter::once(id), &body).await
    }
}
