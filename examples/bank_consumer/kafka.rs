//! Events from a Kafka topic, by a consumer group. Creates the topic, so that no event goes nowhere.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use cloudevents::Event;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Headers as _, Message as _, OwnedMessage};
use tokio::sync::mpsc;

use crate::{Args, Result, structured};

const PARTITIONS: i32 = 8;
const ANSWER: Duration = Duration::from_secs(10);

pub(crate) struct Consumer {
    consumer: Arc<BaseConsumer>,
    messages: mpsc::Receiver<std::result::Result<OwnedMessage, KafkaError>>,
    topic: String,
    current: Option<OwnedMessage>,
    /// Where each partition goes on after what was handed out.
    next: HashMap<i32, i64>,
    /// The last offset of each partition that is taken into account and not acknowledged.
    taken: HashMap<i32, i64>,
}

impl Consumer {
    pub(crate) async fn open(brokers: &str, args: &Args) -> Result<Self> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", brokers);
        create(&config, &args.exchange).await?;
        config.set("group.id", &args.queue);
        config.set("auto.offset.reset", "earliest");
        // Only what was taken into account is committed, in the background.
        config.set("enable.auto.offset.store", "false");
        config.set("auto.commit.interval.ms", "500");
        let consumer: Arc<BaseConsumer> = Arc::new(config.create()?);
        consumer.subscribe(&[&args.exchange])?;
        // The client's queue blocks, so it is read by a thread of its own, until nobody listens any more.
        let (sender, messages) = mpsc::channel(1000);
        let polled = Arc::clone(&consumer);
        std::thread::spawn(move || {
            while !sender.is_closed() {
                if let Some(message) = polled.poll(Duration::from_millis(100)) {
                    let message = message.map(|message| message.detach());
                    if sender.blocking_send(message).is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Self {
            consumer,
            messages,
            topic: args.exchange.clone(),
            current: None,
            next: HashMap::new(),
            taken: HashMap::new(),
        })
    }

    pub(crate) async fn next(&mut self) -> Result<Event> {
        let message = self.messages.recv().await;
        let message = message.ok_or("the consumer of Kafka ended")??;
        self.next.insert(message.partition(), message.offset() + 1);
        let content_type = message.headers().and_then(|headers| {
            let header = headers.iter().find(|header| header.key == "content-type");
            std::str::from_utf8(header?.value?).ok()
        });
        let event = structured(content_type, message.payload().unwrap_or_default())?;
        self.current = Some(message);
        Ok(event)
    }

    pub(crate) fn taken(&mut self) {
        if let Some(message) = self.current.take() {
            self.taken.insert(message.partition(), message.offset());
        }
    }

    pub(crate) fn acknowledge(&mut self) -> Result<()> {
        for (partition, offset) in self.taken.drain() {
            self.consumer.store_offset(&self.topic, partition, offset)?;
        }
        Ok(())
    }

    /// Records of the topic that were not handed out yet.
    pub(crate) async fn waiting(&mut self) -> Result<u64> {
        let (consumer, topic) = (Arc::clone(&self.consumer), self.topic.clone());
        let ends = tokio::task::spawn_blocking(move || {
            (0..PARTITIONS)
                .map(|partition| {
                    Ok((
                        partition,
                        consumer.fetch_watermarks(&topic, partition, ANSWER)?.1,
                    ))
                })
                .collect::<std::result::Result<Vec<_>, KafkaError>>()
        });
        let left = ends.await??.into_iter().map(|(partition, end)| {
            let next = self.next.get(&partition).copied().unwrap_or(0);
            end.saturating_sub(next).max(0) as u64
        });
        Ok(left.sum())
    }
}

async fn create(config: &ClientConfig, topic: &str) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> = config.create()?;
    let topic = NewTopic::new(topic, PARTITIONS, TopicReplication::Fixed(1));
    let options = AdminOptions::new().operation_timeout(Some(ANSWER));
    for answer in admin.create_topics([&topic], &options).await? {
        match answer {
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((topic, code)) => return Err(format!("topic `{topic}`: {code}").into()),
        }
    }
    Ok(())
}
