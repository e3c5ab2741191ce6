//! What the log says: one line per change of state, and one a minute while it lasts; never a payload.

use std::time::{Duration, Instant};

use super::failing::Failing;
use super::health::Health;
use crate::sink::SinkState;
use crate::store::postgres::Registered;
use crate::store::{Claimed, ranges};
use crate::telemetry::lasting::{Lasting, in_words};

/// Lines about a lasting condition appear at most this often.
const MINUTE: Duration = Duration::from_secs(60);

/// A sink that was away for a shorter time is not worth a line.
const WORTH_A_LINE: Duration = Duration::from_secs(2);

/// A sink that has been ready for so long is back.
const STEADY: Duration = Duration::from_secs(3);

/// Remembers what was said, so that it is said once.
#[derive(Debug, Default)]
pub(super) struct Report {
    health: Health,
    /// The sink takes nothing, since when.
    sink_away: Option<Lasting>,
    /// It is back, since when, and how long it was away. One that comes and goes counts as away.
    sink_back: Option<(Instant, Duration)>,
    paused: bool,
    /// Nothing can be settled.
    unsettled: Minutely,
    /// Keys are parked.
    parked: Minutely,
    /// No more keys can be held.
    crowded: Minutely,
    /// What is said of failing events.
    pub(super) failing: Failing,
    waited_in_vain: Option<Instant>,
}

impl Report {
    /// The database's state, shared with the tasks that ask it.
    pub(super) fn health(&self) -> Health {
        self.health.clone()
    }

    /// Whether the table should be looked at again.
    pub(super) fn wants_reopening(&self) -> bool {
        self.health.schema().is_some()
    }

    /// The core has nothing to do, and names a time to come back that has passed.
    pub(super) fn waits_in_vain(&mut self) {
        if self.waited_in_vain.is_none_or(|at| at.elapsed() >= MINUTE) {
            self.waited_in_vain = Some(Instant::now());
            tracing::error!(
                "the relay waits for a moment that has passed; this is a defect, please report it with the lines before"
            );
        }
    }

    /// The table was looked at again.
    pub(super) fn reopened(&self) {
        self.health.reopened();
        tracing::info!("the outbox table was looked at again");
    }

    /// Says again what still keeps events waiting, `waiting` of them in memory, and when it is over. The sink says by
    /// itself when it goes away. Called with each turn of the main loop.
    pub(super) fn remind(&mut self, sink: &'static str, state: &SinkState, waiting: usize) {
        self.health.remind(waiting);
        let why = match state {
            SinkState::Ready | SinkState::Impaired(_) => {
                let Some(away) = &self.sink_away else {
                    return;
                };
                let (back, was_away) = *self
                    .sink_back
                    .get_or_insert_with(|| (Instant::now(), away.for_how_long()));
                if was_away < WORTH_A_LINE || back.elapsed() >= STEADY {
                    (self.sink_away, self.sink_back) = (None, None);
                    if was_away >= WORTH_A_LINE {
                        let away = in_words(was_away);
                        tracing::info!(waiting, "{sink} is ready again, after {away}");
                    }
                }
                return;
            }
            SinkState::Down(why) | SinkState::Blocked(why) | SinkState::Ended(why) => why,
        };
        self.sink_back = None;
        let away = self.sink_away.get_or_insert_with(Lasting::begins);
        if let Some(lasted) = away.due() {
            let why = if why.is_empty() {
                "not connected yet"
            } else {
                why
            };
            tracing::warn!(waiting, "still waiting for {sink}, {lasted}: {why}");
        }
    }

    /// Whether an operator has paused the outbox.
    pub(super) fn paused(&mut self, paused: bool) {
        if paused == std::mem::replace(&mut self.paused, paused) {
            return;
        }
        if paused {
            tracing::warn!("paused by an operator; events wait until `outrigger resume`");
        } else {
            tracing::info!("resumed by an operator");
        }
    }

    /// Whether publishing waits because published rows cannot be settled, and why.
    pub(super) fn settling(&mut self, problem: Option<&str>) {
        match self.unsettled.is(problem.is_some()) {
            Some(true) => tracing::error!(
                "published rows cannot be settled; nothing is published until they can be: {}",
                problem.unwrap_or_default()
            ),
            Some(false) => tracing::info!("published rows can be settled again"),
            None => {}
        }
    }

    /// How many failing keys the database keeps, because they are too many for memory.
    pub(super) fn parked(&mut self, keys: u64) {
        match self.parked.is(keys > 0) {
            Some(true) => tracing::warn!(
                keys,
                "more keys fail or are blocked than are kept in memory, the database keeps the others (outrigger.parked); \
                 events of other keys do not wait for them, see `outrigger status`"
            ),
            Some(false) => tracing::info!("the failing keys fit in memory again"),
            None => {}
        }
    }

    /// Whether no further keys are read, and why.
    pub(super) fn crowded(&mut self, problem: Option<&str>) {
        match self.crowded.is(problem.is_some()) {
            Some(true) => tracing::error!("{}", problem.unwrap_or_default()),
            Some(false) => tracing::info!("events of all keys are read again"),
            None => {}
        }
    }
}

/// A condition that is said when it begins, once a minute while it lasts, and when it is over.
#[derive(Debug, Default)]
struct Minutely(Option<Instant>);

impl Minutely {
    /// Whether to say that it lasts, or that it is over.
    fn is(&mut self, lasting: bool) -> Option<bool> {
        if !lasting {
            return self.0.take().map(|_| false);
        }
        let due = self.0.is_none_or(|said| said.elapsed() >= MINUTE);
        due.then(|| {
            self.0 = Some(Instant::now());
            true
        })
    }
}

/// What is said while no more than these keys can be held.
pub(super) fn crowded(keys: usize) -> String {
    format!(
        "{keys} keys wait for an event that fails or is blocked and could not be moved to outrigger.parked yet, so no \
         event of any other key is read"
    )
}

pub(super) fn registered(registered: &Registered, wanted: i32) {
    let (replica, partitions) = (registered.replica, registered.partitions);
    tracing::info!(%replica, partitions, "registered");
    if partitions != wanted {
        tracing::warn!(
            stored = partitions,
            configured = wanted,
            "OUTRIGGER_RELAY_PARTITIONS differs from the stored number, which is followed"
        );
    }
}

pub(super) fn claimed(claimed: &[Claimed]) {
    if !claimed.is_empty() {
        let partitions: Vec<i32> = claimed.iter().map(|claimed| claimed.partition).collect();
        let (count, which) = (partitions.len(), ranges(&partitions));
        tracing::info!(partitions = count, which, "partitions taken");
    }
}

pub(super) fn released(partitions: &[i32]) {
    let (count, which) = (partitions.len(), ranges(partitions));
    tracing::info!(partitions = count, which, "partitions released");
}
