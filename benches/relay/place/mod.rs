//! Where the events go, with the bare publisher of its client: what the relay is compared with.
//!
//! A bare publisher uses the client library that the sink uses, as the sink does: as many messages on their way, the
//! same headers, every answer awaited and looked at. What it lacks is a database, keys and retries.

#[cfg(feature = "eventbridge")]
mod eventbridge;
mod http;
#[cfg(feature = "kafka")]
mod kafka;
mod nats;
mod rabbitmq;
mod service;

use std::future::Future;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use uuid::Uuid;

use crate::Result;
use crate::arrivals::Receipts;
pub(crate) use rabbitmq::{Broker, QueueKind};

/// Messages that a bare publisher has on their way before it waits for their answers: as many as the relay's lanes.
const PER_CONFIRM: usize = 200;
/// Bytes in flight at most: the default of the relay's OUTRIGGER_RELAY_MAX_IN_FLIGHT_BYTES.
const IN_FLIGHT_BYTES: usize = 16 << 20;
/// Who has written the events: OUTRIGGER_EVENT_SOURCE of the relays.
pub(crate) const SOURCE: &str = "/bench";
/// The events' type, which is also their routing key.
const TYPE: &str = "order.changed";
const STRUCTURED: &str = "application/cloudevents+json; charset=utf-8";
/// Longest wait until everything that was confirmed can be counted.
const COUNTED: Duration = Duration::from_secs(10);

/// The sinks that can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum SinkName {
    #[default]
    Rabbitmq,
    Nats,
    Http,
    Kafka,
    Eventbridge,
}

impl SinkName {
    /// The variable that says where it is; services are made here.
    pub(crate) fn variable(self) -> Option<&'static str> {
        match self {
            Self::Rabbitmq => Some("AMQP_URL"),
            Self::Nats => Some("NATS_URL"),
            Self::Http | Self::Eventbridge => None,
            Self::Kafka => Some("KAFKA_BROKERS"),
        }
    }

    /// As in OUTRIGGER_SINK.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Rabbitmq => "rabbitmq",
            Self::Nats => "nats",
            Self::Http => "http",
            Self::Kafka => "kafka",
            Self::Eventbridge => "eventbridge",
        }
    }

    /// For people.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Rabbitmq => "RabbitMQ",
            Self::Nats => "NATS JetStream",
            Self::Http => "http",
            Self::Kafka => "Kafka",
            Self::Eventbridge => "EventBridge",
        }
    }

    /// What the events of a drain end in.
    pub(crate) fn end(self) -> &'static str {
        match self {
            Self::Rabbitmq => "classic queue",
            Self::Nats => "one stream",
            Self::Http => "one service",
            Self::Kafka => "a topic with 8 partitions",
            Self::Eventbridge => "one bus",
        }
    }

    /// What the bare publisher does, for the page.
    pub(crate) fn bare_publisher(self) -> &'static str {
        match self {
            // Its page has its own words.
            Self::Rabbitmq => "",
            Self::Nats => {
                "async-nats alone, one connection, 8 tasks, each of which publishes 200 messages with an inbox for the\n  \
                 acknowledgements and then waits until JetStream has acknowledged all of them (fewer for large messages: at most\n  \
                 16 MiB in all, as the relay); the same subject, stream and headers (`Nats-Expected-Stream`, `Nats-Msg-Id`,\n  \
                 `Content-Type`), bodies of the same size, no database."
            }
            Self::Http => {
                "hyper alone, 16 connections that are kept, each with one request at a time; the same headers (`Content-Type`,\n  \
                 `Idempotency-Key`, `User-Agent`), bodies of the same size, no database. The service has a thread of its own in the same\n  \
                 process, whose time is not counted as the publisher's."
            }
            Self::Kafka => {
                "rdkafka's `FutureProducer` alone, idempotent, `acks=all`, with the sink's settings for queue, batches and\n  \
                 partitioner, 8 tasks, each of which sends 200 records and then waits until all of them are confirmed (fewer for large\n  \
                 records: at most 16 MiB in all, as the relay); the same topic and headers, as many keys, values of the same size, no\n  \
                 database."
            }
            Self::Eventbridge => {
                "AWS's SDK alone, one client with the sink's settings, 16 tasks, each with one request of ten entries at a time;\n  \
                 details that are JSON of the same size, every result looked at, no database. The service has a thread of its own in\n  \
                 the same process, whose time is not counted as the publisher's."
            }
        }
    }
}

/// Where the events go.
pub(crate) enum Place {
    Rabbitmq(Box<Broker>),
    Nats(Box<nats::Nats>),
    Http(http::Http),
    #[cfg(feature = "kafka")]
    Kafka(Box<kafka::Kafka>),
    #[cfg(feature = "eventbridge")]
    Eventbridge(eventbridge::EventBridge),
}

impl Place {
    pub(crate) async fn open(sink: SinkName, address: &str) -> Result<Self> {
        Ok(match sink {
            SinkName::Rabbitmq => Self::Rabbitmq(Box::new(Broker::open(address).await?)),
            SinkName::Nats => Self::Nats(Box::new(nats::Nats::open(address).await?)),
            SinkName::Http => Self::Http(http::Http::open().await?),
            #[cfg(feature = "kafka")]
            SinkName::Kafka => Self::Kafka(Box::new(kafka::Kafka::open(address)?)),
            #[cfg(not(feature = "kafka"))]
            SinkName::Kafka => {
                return Err(
                    "this program was built without Kafka; build it with --features kafka".into(),
                );
            }
            #[cfg(feature = "eventbridge")]
            SinkName::Eventbridge => Self::Eventbridge(eventbridge::EventBridge::open().await?),
            #[cfg(not(feature = "eventbridge"))]
            SinkName::Eventbridge => {
                return Err(
                    "this program was built without EventBridge; build it with --features eventbridge"
                        .into(),
                );
            }
        })
    }

    /// The settings with which a relay publishes here.
    pub(crate) fn settings(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Rabbitmq(broker) => vec![("OUTRIGGER_RABBITMQ_URL", broker.url().to_owned())],
            Self::Nats(nats) => vec![
                ("OUTRIGGER_SINK", "nats".into()),
                ("OUTRIGGER_NATS_URL", nats.url().to_owned()),
            ],
            Self::Http(http) => vec![
                ("OUTRIGGER_SINK", "http".into()),
                ("OUTRIGGER_HTTP_URL", http.url()),
            ],
            #[cfg(feature = "kafka")]
            Self::Kafka(kafka) => vec![
                ("OUTRIGGER_SINK", "kafka".into()),
                ("OUTRIGGER_KAFKA_BROKERS", kafka.brokers().to_owned()),
                ("OUTRIGGER_ROUTE_DESTINATION", kafka.topic()),
            ],
            #[cfg(feature = "eventbridge")]
            Self::Eventbridge(bridge) => bridge.settings(),
        }
    }

    /// The server, with its version if it tells that.
    pub(crate) fn version(&self) -> Option<String> {
        match self {
            Self::Nats(nats) => Some(nats.version()),
            _ => None,
        }
    }

    /// For what only RabbitMQ has.
    pub(crate) fn rabbitmq(&self) -> Result<&Broker> {
        match self {
            Self::Rabbitmq(broker) => Ok(broker),
            _ => Err("this is measured with RabbitMQ only".into()),
        }
    }

    /// Connects anew after an error, where a connection would be no good any more.
    pub(crate) async fn reopen(&mut self) -> Result<()> {
        match self {
            Self::Rabbitmq(broker) => broker.reopen().await,
            Self::Nats(nats) => nats.reopen().await,
            Self::Http(_) => Ok(()),
            #[cfg(feature = "kafka")]
            Self::Kafka(_) => Ok(()),
            #[cfg(feature = "eventbridge")]
            Self::Eventbridge(_) => Ok(()),
        }
    }

    /// An empty place, so that the events of the measurement before cost nothing more. Of kinds there are several with
    /// RabbitMQ only.
    pub(crate) async fn new_queue(&self, kind: QueueKind) -> Result<()> {
        match self {
            Self::Rabbitmq(broker) => broker.new_queue(kind).await,
            Self::Nats(nats) => nats.new_stream().await,
            Self::Http(http) => {
                http.service.forget();
                Ok(())
            }
            #[cfg(feature = "kafka")]
            Self::Kafka(kafka) => kafka.new_topic().await,
            #[cfg(feature = "eventbridge")]
            Self::Eventbridge(bridge) => {
                bridge.service.forget();
                Ok(())
            }
        }
    }

    /// Leaves nothing behind.
    pub(crate) async fn clear(&self) -> Result<()> {
        match self {
            Self::Rabbitmq(broker) => broker.delete_queue().await,
            Self::Nats(nats) => nats.delete_stream().await,
            Self::Http(_) => Ok(()),
            #[cfg(feature = "kafka")]
            Self::Kafka(kafka) => kafka.delete_topic().await,
            #[cfg(feature = "eventbridge")]
            Self::Eventbridge(_) => Ok(()),
        }
    }

    /// How many messages have come here since it was empty.
    async fn count(&self) -> Result<i64> {
        match self {
            Self::Rabbitmq(broker) => broker.count().await,
            Self::Nats(nats) => nats.count().await,
            Self::Http(http) => Ok(http.service.count()),
            #[cfg(feature = "kafka")]
            Self::Kafka(kafka) => kafka.count().await,
            #[cfg(feature = "eventbridge")]
            Self::Eventbridge(bridge) => Ok(bridge.service.count()),
        }
    }

    /// Waits until there is a message for each of so many rows (or any, if several rows may share one), and tells how
    /// many there are. Quorum queues count a moment later than they confirm.
    pub(crate) async fn await_waiting(&self, rows: i64, each: bool) -> Result<i64> {
        let began = Instant::now();
        loop {
            let waiting = self.count().await?;
            if waiting == rows || (!each && waiting > 0) {
                return Ok(waiting);
            }
            if waiting > rows || began.elapsed() > COUNTED {
                return Err(format!("{waiting} messages for {rows} rows").into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The size of one message's body.
    pub(crate) async fn body_size(&self) -> Result<usize> {
        match self {
            Self::Rabbitmq(broker) => broker.body_size().await,
            Self::Nats(nats) => nats.body_size().await,
            Self::Http(http) => Ok(http.service.body_size()),
            #[cfg(feature = "kafka")]
            Self::Kafka(kafka) => kafka.body_size().await,
            #[cfg(feature = "eventbridge")]
            Self::Eventbridge(bridge) => Ok(bridge.service.body_size()),
        }
    }

    /// The bare publisher: messages per second, confirmed, into a new place.
    pub(crate) async fn publish_many(
        &self,
        messages: i64,
        size: usize,
        kind: QueueKind,
    ) -> Result<f64> {
        match self {
            Self::Rabbitmq(broker) => Box::pin(broker.publish_many(messages, size, kind)).await,
            Self::Nats(nats) => Box::pin(nats.publish_many(messages, size)).await,
            Self::Http(http) => http.publish_many(messages, size).await,
            #[cfg(feature = "kafka")]
            Self::Kafka(kafka) => kafka.publish_many(messages, size).await,
            #[cfg(feature = "eventbridge")]
            Self::Eventbridge(bridge) => bridge.publish_many(messages, size).await,
        }
    }

    /// Notes when each message arrives. The place must be new.
    pub(crate) async fn receive(&self) -> Result<Receipts> {
        match self {
            Self::Rabbitmq(broker) => Box::pin(broker.receive()).await,
            Self::Nats(nats) => Box::pin(nats.receive()).await,
            Self::Http(http) => Ok(http.service.receive()),
            #[cfg(feature = "kafka")]
            Self::Kafka(kafka) => kafka.receive(),
            #[cfg(feature = "eventbridge")]
            Self::Eventbridge(bridge) => Ok(bridge.service.receive()),
        }
    }

    /// A publisher of single messages into the present place.
    pub(crate) async fn direct(&self) -> Result<Direct> {
        Ok(match self {
            Self::Rabbitmq(broker) => Direct::Rabbitmq(broker.direct().await?),
            Self::Nats(nats) => Direct::Nats(Box::pin(nats.lane()).await?),
            Self::Http(http) => Direct::Http(http.client().await?),
            #[cfg(feature = "kafka")]
            Self::Kafka(kafka) => Direct::Kafka(kafka.lane()?),
            #[cfg(feature = "eventbridge")]
            Self::Eventbridge(bridge) => Direct::Eventbridge(bridge.client()),
        })
    }

    /// Processor time of a receiver within this program, in seconds.
    pub(crate) fn receiver_cpu(&self) -> Result<f64> {
        match self {
            Self::Http(http) => http.service.cpu(),
            #[cfg(feature = "eventbridge")]
            Self::Eventbridge(bridge) => bridge.service.cpu(),
            _ => Ok(0.0),
        }
    }
}

/// Publishes one message at a time.
pub(crate) enum Direct {
    Rabbitmq(rabbitmq::Direct),
    Nats(nats::Lane),
    Http(http::Client),
    #[cfg(feature = "kafka")]
    Kafka(kafka::Lane),
    #[cfg(feature = "eventbridge")]
    Eventbridge(eventbridge::Publisher),
}

impl Direct {
    pub(crate) async fn publish(&mut self, id: Uuid) -> Result<()> {
        match self {
            Self::Rabbitmq(direct) => direct.publish(id).await,
            Self::Nats(lane) => lane.publish_one(id).await,
            Self::Http(client) => client.publish_one(id).await,
            #[cfg(feature = "kafka")]
            Self::Kafka(lane) => lane.publish_one(id).await,
            #[cfg(feature = "eventbridge")]
            Self::Eventbridge(publisher) => publisher.publish_one(id).await,
        }
    }
}

/// How many messages of this size each of several publishers may have on their way.
fn per_confirm(publishers: usize, size: usize) -> usize {
    (IN_FLIGHT_BYTES / publishers / size).clamp(1, PER_CONFIRM)
}

/// The rate of several publishers side by side, each with its share of the messages.
async fn side_by_side<P, F>(
    publishers: Vec<P>,
    messages: i64,
    publish: impl Fn(P, usize) -> F,
) -> Result<f64>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let each = usize::try_from(messages)?.div_ceil(publishers.len());
    let all = each * publishers.len();
    let began = Instant::now();
    let publishing = publishers
        .into_iter()
        .map(|publisher| tokio::spawn(publish(publisher, each)));
    for task in publishing.collect::<Vec<_>>() {
        task.await??;
    }
    Ok(all as f64 / began.elapsed().as_secs_f64())
}
