//! The Kafka sink: librdkafka's idempotent producer with `acks=all`, through rdkafka.
//!
//! ```text
//! supervisor   keeps a Link, watches it, replaces it when it has failed, reports the SinkState
//! Link         one producer, and the means to end it for certain
//! lane         one batch at a time: prepare, look up topics, send, await all reports, decide
//! ```
//!
//! * [`KafkaSettings`]: what can be set, and everything wrong with it at once.
//! * `prepare`: a message becomes a record, or is refused for what Kafka cannot carry.
//! * `outcome`: delivery reports become verdicts.
//! * [`check`]: questions for the `check` command.
//!
//! **Order.** A key has one partition, librdkafka's queue keeps a partition's order through its own
//! repetitions, and no record is given up alone: without a confirm in time the whole producer goes.
//!
//! **Threads.** librdkafka has its own, one for each broker. Delivery reports come on the thread that polls it
//! and are written into the batch's place; the last one wakes the lane. Calls that block (metadata,
//! flush, the end of a producer) run on tokio's threads for that.

pub mod check;
mod lane;
mod link;
mod offsets;
mod outcome;
mod prepare;
mod settings;
mod supervisor;
mod words;

pub use settings::{Compression, KafkaSettings, Partitioner, SaslMechanism};

use self::supervisor::Shared;
use super::{Sink, supervised};

/// Starts connecting in the background. Fails only for settings that cannot work, with all
/// problems at once; an unreachable cluster is a state, see [`Sink::state`].
///
/// Must be called within a tokio runtime.
pub fn start(settings: KafkaSettings) -> Result<Box<dyn Sink>, Vec<String>> {
    let problems = settings.validate();
    if !problems.is_empty() {
        return Err(problems);
    }
    Ok(supervised::start(Shared::new(settings)))
}
