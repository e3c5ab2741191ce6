//! What the tests of the RabbitMQ sink share: a ready sink, messages, waiting with a limit.

#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used
)]

#[path = "verdicts.rs"]
mod verdicts;

use std::future::Future;
use std::time::Duration;

use outrigger::error::Verdict;
use outrigger::event::Message;
use outrigger::sink::rabbitmq::{self, RabbitMqSettings};
use outrigger::sink::{Lane, Sink, SinkState};
use secrecy::SecretString;
use tokio::sync::watch;

pub use verdicts::{Is, assert_verdicts, is};

/// Long enough for a busy machine; reached only when something hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Awaits `future`, or names what did not happen.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("not within {PATIENCE:?}: {what}"),
    }
}

pub fn settings(url: &str) -> RabbitMqSettings {
    RabbitMqSettings {
        urls: vec![SecretString::from(url)],
        channels: 2,
        ..RabbitMqSettings::default()
    }
}

/// A sink with its lanes.
pub struct Running {
    pub sink: Box<dyn Sink>,
    pub lanes: Vec<Box<dyn Lane>>,
    pub state: watch::Receiver<SinkState>,
}

impl Running {
    pub fn start(settings: RabbitMqSettings) -> Self {
        let mut sink = rabbitmq::start(settings).unwrap();
        let lanes = sink.lanes();
        let state = sink.state();
        Self { sink, lanes, state }
    }

    pub async fn ready(settings: RabbitMqSettings) -> Self {
        let mut running = Self::start(settings);
        running
            .await_state("the sink is ready", SinkState::is_ready)
            .await;
        running
    }

    pub async fn await_state(
        &mut self,
        what: &str,
        is: impl FnMut(&SinkState) -> bool,
    ) -> SinkState {
        let mut state = self.state.clone();
        match tokio::time::timeout(PATIENCE, state.wait_for(is)).await {
            Ok(state) => state.unwrap().clone(),
            Err(_) => panic!(
                "not within {PATIENCE:?}: {what}; {:?}",
                *self.state.borrow()
            ),
        }
    }

    pub async fn publish(&mut self, batch: &[Message]) -> Vec<Verdict> {
        let verdicts = within("a batch is published", self.lanes[0].publish(batch)).await;
        assert_eq!(verdicts.len(), batch.len());
        verdicts
    }

    pub async fn close(self) {
        drop(self.lanes);
        within("the sink closes", self.sink.close()).await;
    }
}

pub fn message(id: impl ToString, exchange: &str, routing_key: &str) -> Message {
    Message {
        seqs: vec![1],
        destination: exchange.to_owned(),
        routing_key: routing_key.to_owned(),
        body: id.to_string().into_bytes().into(),
        content_type: Some("application/json".into()),
        headers: Vec::new(),
        id: id.to_string(),
        event_type: "test".into(),
        time: None,
        expires_in: None,
        correlation_id: None,
        source: "/test".into(),
        key: None,
    }
}
