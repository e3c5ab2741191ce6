//! The RabbitMQ sink: AMQP 0-9-1 through lapin, persistent, mandatory, confirmed.
//!
//! ```text
//! supervisor   opens a Link, watches it, reconnects with backoff, reports the SinkState
//! Link         one connection, and the means to end it for certain
//! lane         one channel, one batch at a time: prepare, publish, await all confirms, decide
//! ```
//!
//! * [`RabbitMqSettings`]: what can be set, and everything wrong with it at once.
//! * `endpoint`: URLs.
//! * `flight`: a run of messages between its first frame and its last confirm.
//! * `exchanges`: which exchanges exist, asked before their first use.
//! * `prepare`: a message becomes AMQP properties, or is refused for what AMQP cannot carry.
//! * `outcome`: confirms and returns become verdicts. Its docs explain why a single confirm proves
//!   nothing in lapin.
//! * `suspects`: finding the message that makes the broker close a channel or a connection.
//! * [`check`]: questions for the `check` command.
//!
//! **Two tasks never share a channel**: lapin draws the delivery tag and queues the frames under
//! two different locks, so confirms would be swapped.
//!
//! **lapin logs every returned message with its payload** at WARN, target
//! `lapin::returned_messages`, and other broker errors at ERROR. The log filter of the program must
//! keep that target off; what matters about returns and errors is in the verdicts and states.

pub mod check;
mod endpoint;
mod exchanges;
mod flight;
mod lane;
mod link;
mod outcome;
mod prepare;
mod properties;
mod settings;
mod supervisor;
mod suspects;

pub use settings::RabbitMqSettings;

use self::supervisor::Shared;
use super::{Sink, supervised};

/// Starts connecting in the background. Fails only for settings that cannot work, with all
/// problems at once; an unreachable broker is a state, see [`Sink::state`].
///
/// Must be called within a tokio runtime.
pub fn start(settings: RabbitMqSettings) -> Result<Box<dyn Sink>, Vec<String>> {
    let endpoints = settings.endpoints()?;
    Ok(supervised::start(Shared::new(settings, endpoints)))
}
