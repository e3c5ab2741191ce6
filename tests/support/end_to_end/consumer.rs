//! A consumer that records every delivery of a queue and acknowledges it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::watch;

use super::checker::Arrival;
use super::wait::{PATIENCE, within};

/// Message id of the message that says "there is no more".
const END: &str = "end-of-test";

/// One delivery.
#[derive(Debug, Clone)]
pub struct Delivery {
    pub id: String,
    pub exchange: String,
    pub routing_key: String,
    pub body: Vec<u8>,
    pub properties: BasicProperties,
    pub redelivered: bool,
    pub at: Instant,
}

impl Delivery {
    /// A header's text, or its number or boolean written out.
    pub fn header(&self, name: &str) -> Option<String> {
        let table = self.properties.headers().as_ref()?;
        table.inner().get(name).map(|value| match value {
            AMQPValue::LongString(text) => String::from_utf8_lossy(text.as_bytes()).into_owned(),
            AMQPValue::LongInt(number) => number.to_string(),
            AMQPValue::LongLongInt(number) => number.to_string(),
            AMQPValue::Boolean(flag) => flag.to_string(),
            other => panic!("header {name} is {other:?}"),
        })
    }

    pub fn content_type(&self) -> Option<&str> {
        self.properties.content_type().as_ref().map(|t| t.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("UTF-8")
    }

    /// The `data` member of a structured event, byte for byte.
    pub fn data(&self) -> &str {
        data_of(&self.body)
    }

    pub fn arrival(&self) -> Arrival {
        let mut bytes = self.body.clone();
        bytes.extend(format!("{:?}{}", self.properties, self.routing_key).into_bytes());
        Arrival {
            id: self.id.clone(),
            data: self.data().to_owned(),
            bytes,
        }
    }
}

/// The `data` member of a structured event, byte for byte.
pub fn data_of(body: &[u8]) -> &str {
    #[derive(Deserialize)]
    struct Event<'a> {
        #[serde(borrow)]
        data: &'a RawValue,
    }
    serde_json::from_slice::<Event<'_>>(body)
        .expect("a structured event with JSON data")
        .data
        .get()
}

/// Reads one queue until the test ends.
pub struct Consumer {
    queue: String,
    channel: Channel,
    deliveries: Arc<Mutex<Vec<Delivery>>>,
    /// How many, and how many different ones.
    counts: watch::Receiver<(usize, usize)>,
    _connection: Connection,
}

impl Consumer {
    pub async fn start(url: &str, queue: &str) -> Self {
        let connection = Connection::connect(url, ConnectionProperties::default())
            .await
            .unwrap();
        let channel = connection.create_channel().await.unwrap();
        channel
            .basic_qos(1000, BasicQosOptions::default())
            .await
            .unwrap();
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await
            .unwrap();
        let mut stream = channel
            .basic_consume(
                queue.into(),
                "".into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            )
            .await
            .unwrap();
        let deliveries = Arc::new(Mutex::new(Vec::new()));
        let (sender, counts) = watch::channel((0, 0));
        let record = deliveries.clone();
        tokio::spawn(async move {
            let mut different = HashSet::new();
            while let Some(Ok(delivery)) = stream.next().await {
                let at = Instant::now();
                delivery.ack(BasicAckOptions::default()).await.unwrap();
                let id = delivery.properties.message_id().clone();
                let id = id.map(|id| id.as_str().to_owned()).unwrap_or_default();
                different.insert(id.clone());
                let mut all = record.lock().unwrap();
                all.push(Delivery {
                    id,
                    exchange: delivery.exchange.as_str().to_owned(),
                    routing_key: delivery.routing_key.as_str().to_owned(),
                    properties: delivery.properties,
                    redelivered: delivery.redelivered,
                    body: delivery.data,
                    at,
                });
                // Nobody may be waiting.
                let _ = sender.send((all.len(), different.len()));
            }
        });
        Self {
            queue: queue.to_owned(),
            channel,
            deliveries,
            counts,
            _connection: connection,
        }
    }

    pub fn deliveries(&self) -> Vec<Delivery> {
        self.deliveries.lock().unwrap().clone()
    }

    pub fn ids(&self) -> Vec<String> {
        let all = self.deliveries.lock().unwrap();
        all.iter().map(|delivery| delivery.id.clone()).collect()
    }

    /// Deliveries so far.
    pub fn count(&self) -> usize {
        self.counts.borrow().0
    }

    /// Waits for `count` different events.
    pub async fn await_different(&self, count: usize) {
        self.await_different_for(count, PATIENCE).await;
    }

    pub async fn await_different_for(&self, count: usize, limit: Duration) {
        let mut counts = self.counts.clone();
        let enough = counts.wait_for(|(_, different)| *different >= count);
        let result = tokio::time::timeout(limit, enough).await.map(drop);
        assert!(
            result.is_ok(),
            "not within {limit:?}: {count} different deliveries from {}; there are {:?}",
            self.queue,
            *self.counts.borrow()
        );
    }

    /// Waits for `count` deliveries, copies counted.
    pub async fn await_count(&self, count: usize) -> Vec<Delivery> {
        let mut counts = self.counts.clone();
        let enough = counts.wait_for(|(all, _)| *all >= count);
        let result = tokio::time::timeout(PATIENCE, enough).await.map(drop);
        assert!(
            result.is_ok(),
            "not within {PATIENCE:?}: {count} deliveries from {}; there are {:?}",
            self.queue,
            *self.counts.borrow()
        );
        self.deliveries()
    }

    fn find(&self, id: &str) -> Option<Delivery> {
        let all = self.deliveries.lock().unwrap();
        all.iter().find(|delivery| delivery.id == id).cloned()
    }

    /// Waits for the delivery of this event.
    pub async fn await_id(&self, id: &str, limit: Duration) -> Delivery {
        let mut counts = self.counts.clone();
        let found = async {
            loop {
                if let Some(found) = self.find(id) {
                    return found;
                }
                counts.changed().await.expect("the consumer runs");
            }
        };
        within(&format!("delivery of {id}"), limit, found).await
    }

    /// Everything that is in the queue now, as one list. Appends a last message and waits for it, so nothing that
    /// was published before can be missed.
    pub async fn finish(&self) -> Vec<Delivery> {
        self.channel
            .basic_publish(
                "".into(),
                self.queue.as_str().into(),
                BasicPublishOptions::default(),
                b"",
                BasicProperties::default().with_message_id(END.into()),
            )
            .await
            .unwrap()
            .await
            .unwrap();
        self.await_id(END, PATIENCE).await;
        let mut all = self.deliveries.lock().unwrap();
        all.retain(|delivery| delivery.id != END);
        all.clone()
    }
}
