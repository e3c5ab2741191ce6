//! RabbitMQ's side: the queue, the bare publishers, and a consumer that notes arrivals.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use futures_util::StreamExt;
use futures_util::future::{join_all, try_join_all};
use lapin::options::{
    BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions,
    ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ExchangeKind,
};

use super::per_confirm;
use crate::Result;
use crate::arrivals::{Arrivals, Receipts};
use crate::outbox::{TEXT, message_size};

const EXCHANGE: &str = "events";
const CHANNELS: usize = 8;
const PERSISTENT: u8 = 2;

/// The kinds of queues RabbitMQ offers, by their `x-queue-type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum QueueKind {
    #[default]
    Classic,
    Quorum,
    Stream,
}

impl QueueKind {
    pub(crate) const ALL: [Self; 3] = [Self::Classic, Self::Quorum, Self::Stream];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Classic => "classic",
            Self::Quorum => "quorum",
            Self::Stream => "stream",
        }
    }
}

pub(crate) struct Broker {
    url: String,
    connection: Connection,
    channel: Channel,
    /// How many queues were made. Each has a name of its own: a channel of RabbitMQ 3.10 crashes when a name
    /// it knows returns as another kind of queue.
    queues: AtomicUsize,
}

impl Broker {
    pub(crate) async fn open(url: &str) -> Result<Self> {
        let connection = Connection::connect(url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        let durable = ExchangeDeclareOptions {
            durable: true,
            ..Default::default()
        };
        channel
            .exchange_declare(
                EXCHANGE.into(),
                ExchangeKind::Topic,
                durable,
                FieldTable::default(),
            )
            .await?;
        Ok(Self {
            url: url.to_owned(),
            connection,
            channel,
            queues: AtomicUsize::new(0),
        })
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Connects anew: after an error, a channel or a connection is no good any more.
    pub(crate) async fn reopen(&mut self) -> Result<()> {
        let fresh = Self::open(&self.url).await?;
        let queues = self.queues.load(Ordering::Relaxed);
        fresh.queues.store(queues, Ordering::Relaxed);
        *self = fresh;
        Ok(())
    }

    /// The name of the present queue.
    fn queue(&self) -> ShortString {
        format!("bench-{}", self.queues.load(Ordering::Relaxed)).into()
    }

    /// Deletes the present queue, if there is one.
    pub(crate) async fn delete_queue(&self) -> Result<()> {
        let options = QueueDeleteOptions::default();
        self.channel.queue_delete(self.queue(), options).await?;
        Ok(())
    }

    /// A new, empty queue for all events: the messages of the measurement before cost the broker nothing more.
    pub(crate) async fn new_queue(&self, kind: QueueKind) -> Result<()> {
        let channel = &self.channel;
        self.delete_queue().await?;
        self.queues.fetch_add(1, Ordering::Relaxed);
        let name = self.queue();
        let durable = QueueDeclareOptions {
            durable: true,
            ..Default::default()
        };
        let mut arguments = FieldTable::default();
        let kind = AMQPValue::LongString(kind.name().into());
        arguments.insert("x-queue-type".into(), kind);
        channel
            .queue_declare(name.clone(), durable, arguments)
            .await?;
        channel
            .queue_bind(
                name,
                EXCHANGE.into(),
                "#".into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await?;
        Ok(())
    }

    /// How many messages are in the queue.
    pub(crate) async fn count(&self) -> Result<i64> {
        let only_look = QueueDeclareOptions {
            passive: true,
            ..Default::default()
        };
        let queue = self
            .channel
            .queue_declare(self.queue(), only_look, FieldTable::default())
            .await?;
        Ok(i64::from(queue.message_count()))
    }

    /// Takes one message from the queue and tells the size of its body.
    pub(crate) async fn body_size(&self) -> Result<usize> {
        let options = BasicGetOptions { no_ack: true };
        let message = self.channel.basic_get(self.queue(), options).await?;
        Ok(message.ok_or("the queue is empty")?.delivery.data.len())
    }

    /// The bare publisher: messages per second, confirmed, over several channels.
    pub(crate) async fn publish_many(
        &self,
        messages: i64,
        size: usize,
        kind: QueueKind,
    ) -> Result<f64> {
        self.new_queue(kind).await?;
        let per_channel = usize::try_from(messages)?.div_ceil(CHANNELS);
        let per_confirm = per_confirm(CHANNELS, size);
        let mut channels = Vec::new();
        for _ in 0..CHANNELS {
            channels.push(self.confirming().await?);
        }
        let began = Instant::now();
        let tasks = channels.into_iter().map(|channel| {
            tokio::spawn(async move {
                let body = vec![b'x'; size];
                let mut left = per_channel;
                while left > 0 {
                    let batch = left.min(per_confirm);
                    left -= batch;
                    let publishes = (0..batch).map(|_| send(&channel, &body, uuid::Uuid::now_v7()));
                    let confirms = try_join_all(publishes).await?;
                    for confirm in join_all(confirms).await {
                        routed(confirm?)?;
                    }
                }
                Result::Ok(channel)
            })
        });
        let mut done = Vec::new();
        for task in join_all(tasks).await {
            done.push(task??);
        }
        let rate = (per_channel * CHANNELS) as f64 / began.elapsed().as_secs_f64();
        for channel in done {
            channel.close(200, "done".into()).await?;
        }
        Ok(rate)
    }

    /// The publisher that waits for each confirm before the next message.
    pub(crate) async fn publish_one_by_one(&self, messages: i64) -> Result<f64> {
        self.new_queue(QueueKind::Classic).await?;
        let channel = self.confirming().await?;
        let body = vec![b'x'; message_size(TEXT)];
        let began = Instant::now();
        for _ in 0..messages {
            let id = uuid::Uuid::now_v7();
            routed(send(&channel, &body, id).await?.await?)?;
        }
        let rate = messages as f64 / began.elapsed().as_secs_f64();
        channel.close(200, "done".into()).await?;
        Ok(rate)
    }

    /// A channel that publishes single messages with an id.
    pub(crate) async fn direct(&self) -> Result<Direct> {
        Ok(Direct(self.confirming().await?))
    }

    /// Notes when each message arrives, until dropped. The queue must be new.
    pub(crate) async fn receive(&self) -> Result<Receipts> {
        let channel = self.connection.create_channel().await?;
        let mut deliveries = channel
            .basic_consume(
                self.queue(),
                "bench".into(),
                BasicConsumeOptions {
                    no_ack: true,
                    ..Default::default()
                },
                FieldTable::default(),
            )
            .await?;
        let arrivals = Arrivals::default();
        let noted = arrivals.clone();
        let task = tokio::spawn(async move {
            while let Some(Ok(delivery)) = deliveries.next().await {
                let id = delivery.properties.message_id().as_ref();
                if let Some(id) = id.and_then(|id| id.as_str().parse().ok()) {
                    noted.note(id);
                }
            }
        });
        Ok(Receipts::new(arrivals, async move {
            channel.close(200, "done".into()).await?;
            task.abort();
            Ok(())
        }))
    }

    async fn confirming(&self) -> Result<Channel> {
        let channel = self.connection.create_channel().await?;
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await?;
        Ok(channel)
    }
}

/// With the properties that the relay sets: the broker has work with each of them.
async fn send(
    channel: &Channel,
    body: &[u8],
    id: uuid::Uuid,
) -> lapin::Result<lapin::PublisherConfirm> {
    let now = jiff::Timestamp::now().as_second();
    let properties = BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_content_type("application/cloudevents+json".into())
        .with_message_id(id.to_string().into())
        .with_type("order.changed".into())
        .with_app_id("outrigger".into())
        .with_timestamp(u64::try_from(now).unwrap_or_default());
    let options = BasicPublishOptions {
        mandatory: true,
        ..Default::default()
    };
    channel
        .basic_publish(
            EXCHANGE.into(),
            "order.changed".into(),
            options,
            body,
            properties,
        )
        .await
}

fn routed(confirmation: Confirmation) -> Result<()> {
    match confirmation {
        Confirmation::Ack(None) => Ok(()),
        other => Err(format!("a message was not confirmed: {other:?}").into()),
    }
}

/// Publishes one message at a time.
pub(crate) struct Direct(Channel);

impl Direct {
    pub(crate) async fn publish(&self, id: uuid::Uuid) -> Result<()> {
        let body = vec![b'x'; message_size(TEXT)];
        routed(send(&self.0, &body, id).await?.await?)
    }
}
