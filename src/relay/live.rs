//! How the relay stands, for whoever watches. Renewed a few times a second by the main loop, which waits for no
//! watcher.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::core::{Gauges, Totals};
use crate::sink::SinkState;
use crate::store::Tick;
use crate::store::configuration::Difference;
use crate::store::postgres::{ListenState, StoreError, StoreErrorKind};

/// Where a relay is between its start and its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Waiting for the database and the table; the main loop does not turn yet.
    Starting,
    /// The main loop turns.
    Running,
    /// Asked to stop: what is in flight is settled, and partitions are handed over.
    Stopping,
    /// The main loop is over; connections are being closed.
    Stopped,
}

/// A replica of the same outbox whose settings differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disagreement {
    /// Its name.
    pub name: String,
    /// In what.
    pub differences: Vec<Difference>,
}

/// How the living replicas of the outbox agree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peers {
    /// This replica takes no partition while those live that send events elsewhere.
    pub stands_aside: bool,
    /// Those whose settings differ from this one's.
    pub disagreements: Vec<Disagreement>,
}

/// One look at the relay.
#[derive(Debug, Clone)]
pub struct Live {
    /// When this was true. While the main loop turns, never much longer ago than a second.
    pub at: Instant,
    /// Where the relay is in its life.
    pub phase: Phase,
    /// Counters since the start.
    pub totals: Totals,
    /// The present state.
    pub gauges: Gauges,
    /// Whether this replica does what one of them does for all (retention).
    pub leads: bool,
    /// Nothing that this replica knows to be pending lies at or below this `seq`; `None`: anywhere.
    pub pending_above: Option<i64>,
    /// Age of the oldest event that waits or is in flight in this replica, where that is known.
    pub oldest: Option<Duration>,
    /// This replica, once registered.
    pub replica: Option<Uuid>,
    /// What the database refuses or why it is out of reach; `None`: the last statements went well.
    pub database: Option<String>,
    /// Why the outbox table or our own tables do not fit; `None`: they do.
    pub schema: Option<String>,
    /// Why published rows cannot be settled, so that nothing is published; `None`: they can.
    pub settling: Option<String>,
    /// Why no events of further keys are read, if no more failing keys can be held or parked; `None`: they are read.
    pub crowded: Option<String>,
    /// The sink.
    pub broker: SinkState,
    /// The wake-up hint; `None`: polling alone was asked for.
    pub listener: Option<ListenState>,
    /// Replicas and partitions, as last seen.
    pub tick: Option<Arc<Tick>>,
    /// When that was.
    pub ticked_at: Instant,
    /// How the living replicas agree.
    pub peers: Arc<Peers>,
    /// Since when something keeps this replica from publishing.
    pub trouble_since: Option<Instant>,
}

impl Live {
    /// A relay that has not reached its database yet.
    pub fn starting() -> Self {
        Self {
            at: Instant::now(),
            phase: Phase::Starting,
            totals: Totals::default(),
            gauges: Gauges::default(),
            leads: false,
            pending_above: None,
            oldest: None,
            replica: None,
            database: Some("not connected yet".into()),
            schema: Some("not looked at yet".into()),
            settling: None,
            crowded: None,
            broker: SinkState::Down(String::new()),
            listener: None,
            tick: None,
            ticked_at: Instant::now(),
            peers: Arc::default(),
            trouble_since: Some(Instant::now()),
        }
    }

    /// Why nothing can be published, if something is in the way that lasts. A pause is known to everyone.
    pub fn waits_for(&self) -> Option<String> {
        if let Some(why) = &self.schema {
            return Some(format!("the outbox table does not fit: {why}"));
        }
        if let Some(why) = &self.settling {
            return Some(format!("published rows cannot be settled: {why}"));
        }
        if let Some(why) = &self.crowded {
            return Some(why.clone());
        }
        match &self.broker {
            SinkState::Ready | SinkState::Impaired(_) => None,
            SinkState::Down(why) if why.is_empty() => {
                Some("not connected to the broker yet".into())
            }
            SinkState::Down(why) | SinkState::Ended(why) => Some(format!("the broker: {why}")),
            SinkState::Blocked(why) => Some(format!("the broker asks publishers to wait: {why}")),
        }
    }

    /// The outbox could not be opened; it will be tried again.
    pub fn not_opened(&mut self, error: &StoreError) {
        let text = Some(error.to_string());
        if error.kind() == StoreErrorKind::Schema {
            // Only a database that answers can show that a table does not fit.
            (self.database, self.schema) = (None, text);
        } else {
            self.database = text;
        }
    }
}
