//! A running sink, messages, and waiting with a limit.

use std::future::Future;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use outrigger::error::Verdict;
use outrigger::event::Message;
use outrigger::sink::{Lane, Sink, SinkState};
use tokio::sync::watch;

pub(crate) use crate::verdicts::{Is, assert_verdicts};
use crate::world::{Arrived, Place, Tuning, World};

/// Long enough for a busy machine; reached only when something hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// Awaits `future`, or names what did not happen.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("not within {PATIENCE:?}: {what}"),
    }
}

/// A sink with its lanes.
pub(crate) struct Running {
    pub(crate) sink: Box<dyn Sink>,
    pub(crate) lanes: Vec<Box<dyn Lane>>,
    pub(crate) state: watch::Receiver<SinkState>,
}

impl Running {
    pub(crate) fn start(mut sink: Box<dyn Sink>) -> Self {
        let lanes = sink.lanes();
        assert!(!lanes.is_empty(), "a sink without lanes");
        let state = sink.state();
        Self { sink, lanes, state }
    }

    pub(crate) async fn ready(world: &impl World, known: &[&Place]) -> Self {
        let mut running = Self::start(world.sink(Tuning::default(), known));
        running.await_state("ready", SinkState::is_ready).await;
        running
    }

    pub(crate) async fn await_state(
        &mut self,
        what: &str,
        is: impl FnMut(&SinkState) -> bool,
    ) -> SinkState {
        within(what, self.state.wait_for(is)).await.unwrap().clone()
    }

    pub(crate) async fn publish(&mut self, batch: &[Message]) -> Vec<Verdict> {
        publish(&mut *self.lanes[0], batch).await
    }

    pub(crate) async fn close(self) {
        drop(self.lanes);
        within("the sink closes", self.sink.close()).await;
    }
}

pub(crate) async fn publish(lane: &mut dyn Lane, batch: &[Message]) -> Vec<Verdict> {
    let verdicts = within("a batch is published", lane.publish(batch)).await;
    assert_eq!(verdicts.len(), batch.len(), "one verdict per message");
    verdicts
}

/// Publishes what is left until all of it is confirmed, in order, as the relay would. Nothing may be rejected.
pub(crate) async fn publish_all(
    lane: &mut dyn Lane,
    mut state: watch::Receiver<SinkState>,
    messages: &[Message],
) {
    let mut left = messages.to_vec();
    while !left.is_empty() {
        within("ready", state.wait_for(SinkState::is_ready))
            .await
            .unwrap();
        let verdicts = publish(lane, &left).await;
        let mut verdicts = verdicts.into_iter();
        left.retain(|message| match verdicts.next() {
            Some(Verdict::Confirmed) => false,
            Some(Verdict::Unavailable) => true,
            refused => panic!("{}: an outage is no rejection: {refused:?}", message.id),
        });
    }
}

/// A name no other test uses; fit for any protocol.
pub(crate) fn unique(name: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{name}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A fresh place, open.
pub(crate) async fn open(world: &impl World, name: &str) -> Place {
    let place = world.place(&unique(name));
    world.open(&place).await;
    place
}

pub(crate) fn message(id: impl ToString, place: &Place) -> Message {
    Message {
        seqs: vec![1],
        destination: place.destination.clone(),
        routing_key: place.routing_key.clone(),
        body: format!("{{\"n\":\"{}\"}}", id.to_string()).into(),
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

pub(crate) fn messages(ids: &[String], place: &Place) -> Vec<Message> {
    ids.iter().map(|id| message(id, place)).collect()
}

pub(crate) fn ids(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{prefix}-{n}")).collect()
}

pub(crate) fn ids_of(arrived: &[Arrived]) -> Vec<String> {
    arrived.iter().map(|arrived| arrived.id.clone()).collect()
}

/// Only the first time of each.
pub(crate) fn first_times(ids: Vec<String>) -> Vec<String> {
    let mut seen = std::collections::HashSet::new();
    ids.into_iter()
        .filter(|id| seen.insert(id.clone()))
        .collect()
}
