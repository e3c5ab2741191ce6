//! A sink that confirms everything at once: measures what the rest of the relay can do.

use tokio::sync::watch;

use super::{BoxFuture, Lane, Sink, SinkState};
use crate::error::Verdict;
use crate::event::Message;

/// Confirms and forgets.
pub struct DiscardSink {
    lanes: usize,
    state: watch::Sender<SinkState>,
}

impl DiscardSink {
    /// A sink with this many lanes, at least one. Ready at once.
    pub fn new(lanes: usize) -> Self {
        Self {
            lanes: lanes.max(1),
            state: watch::Sender::new(SinkState::Ready),
        }
    }
}

impl Sink for DiscardSink {
    fn kind(&self) -> &'static str {
        "discard"
    }

    fn lanes(&mut self) -> Vec<Box<dyn Lane>> {
        (0..self.lanes)
            .map(|_| Box::new(DiscardLane) as Box<dyn Lane>)
            .collect()
    }

    fn state(&self) -> watch::Receiver<SinkState> {
        self.state.subscribe()
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
}

struct DiscardLane;

impl Lane for DiscardLane {
    fn publish<'a>(&'a mut self, batch: &'a [Message]) -> BoxFuture<'a, Vec<Verdict>> {
        Box::pin(std::future::ready(vec![Verdict::Confirmed; batch.len()]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_lane_confirms_everything() {
        let mut sink = DiscardSink::new(3);
        assert!(sink.state().borrow().is_ready());
        let mut lanes = sink.lanes();
        assert_eq!(lanes.len(), 3);
        let batch = vec![crate::sink::stdout::tests::message(b"{}"); 5];
        assert_eq!(lanes[2].publish(&batch).await, vec![Verdict::Confirmed; 5]);
        assert_eq!(lanes[0].publish(&[]).await, vec![]);
        Box::new(sink).close().await;
    }
}
