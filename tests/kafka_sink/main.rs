//! The Kafka sink: against a real broker, and against librdkafka's mock cluster for faults that a real one
//! cannot be made to have at a given moment.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod broker;
mod faults;
#[path = "../support/kafka.rs"]
mod kafka;
mod secured;
#[path = "../support/verdicts.rs"]
mod verdicts;

use std::future::Future;
use std::time::Duration;

use outrigger::error::Verdict;
use outrigger::event::Message;
use outrigger::sink::kafka::KafkaSettings;
use outrigger::sink::{Lane, Sink, SinkState};
use tokio::sync::watch;

use verdicts::{Is, is};

/// Long enough for a busy machine; reached only when something hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// Awaits `future`, or names what did not happen.
async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("not within {PATIENCE:?}: {what}"),
    }
}

fn settings(brokers: &str) -> KafkaSettings {
    KafkaSettings {
        brokers: vec![brokers.to_owned()],
        lanes: 2,
        ..KafkaSettings::default()
    }
}

/// A sink with its lanes.
struct Running {
    sink: Box<dyn Sink>,
    lanes: Vec<Box<dyn Lane>>,
    state: watch::Receiver<SinkState>,
}

impl Running {
    fn start(settings: KafkaSettings) -> Self {
        let mut sink = outrigger::sink::kafka::start(settings).unwrap();
        let lanes = sink.lanes();
        let state = sink.state();
        Self { sink, lanes, state }
    }

    async fn ready(settings: KafkaSettings) -> Self {
        let mut running = Self::start(settings);
        running.await_ready().await;
        running
    }

    async fn await_ready(&mut self) {
        self.await_state("the sink is ready", SinkState::is_ready)
            .await;
    }

    async fn await_down(&mut self, part: &str) -> String {
        let state = self
            .await_state(
                &format!("down because of {part:?}"),
                |state| matches!(state, SinkState::Down(reason) if reason.contains(part)),
            )
            .await;
        let SinkState::Down(reason) = state else {
            unreachable!("asserted just now")
        };
        reason
    }

    async fn await_state(&mut self, what: &str, is: impl FnMut(&SinkState) -> bool) -> SinkState {
        within(what, self.state.wait_for(is)).await.unwrap().clone()
    }

    async fn publish(&mut self, batch: &[Message]) -> Vec<Verdict> {
        let verdicts = within("a batch is published", self.lanes[0].publish(batch)).await;
        assert_eq!(verdicts.len(), batch.len());
        verdicts
    }

    /// Publishes until all of it is confirmed, as the relay would.
    async fn publish_all(&mut self, batch: &[Message]) {
        let mut left = batch.to_vec();
        while !left.is_empty() {
            self.await_ready().await;
            let mut verdicts = self.publish(&left).await.into_iter();
            left.retain(|message| match verdicts.next() {
                Some(Verdict::Confirmed) => false,
                Some(Verdict::Unavailable) => true,
                refused => panic!("{}: {refused:?}", message.id),
            });
        }
    }

    async fn close(self) {
        drop(self.lanes);
        within("the sink closes", self.sink.close()).await;
    }
}

/// Its body is its id.
fn message(id: impl ToString, topic: &str, key: Option<&str>) -> Message {
    Message {
        seqs: vec![1],
        destination: topic.to_owned(),
        routing_key: String::new(),
        body: id.to_string().into_bytes().into(),
        content_type: Some("text/plain".into()),
        headers: Vec::new(),
        id: id.to_string(),
        event_type: "test".into(),
        time: None,
        expires_in: None,
        correlation_id: None,
        source: "/test".into(),
        key: key.map(str::to_owned),
    }
}

fn messages(topic: &str, count: usize) -> Vec<Message> {
    (0..count).map(|n| message(n, topic, None)).collect()
}

/// Compares verdicts, showing only the differences.
#[track_caller]
fn assert_verdicts(verdicts: &[Verdict], expected: impl Fn(usize) -> Is) {
    verdicts::assert_verdicts("Kafka", verdicts, expected);
}
