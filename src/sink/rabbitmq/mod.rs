//! The RabbitMQ sink: AMQP 0-9-1 through lapin, persistent, mandatory, confirmed.
//!
//! ```text
//! supervisor   opens a Link, watches it, reconnects with backoff, reports the SinkState
//! Link         one connection, and the means to end it for certain
//! lane         one batch at a time on a channel of its own: prepare, publish, await all confirms, decide
//! ```
//!
//! * [`RabbitMqSettings`]: what can be set, and everything wrong with it at once.
//! * `endpoint`: URLs.
//! * `flight`: a run of messages between its first frame and its last confirm.
//! * `channels`: how many there may be, and who has one.
//! * `routes`: which routes worked, which do not any more, which are refused.
//! * `words`: what the broker says when it refuses, and what to do about it.
//! * `refusals`: what a refusal or a return means for a message.
//! * `plugins`: exchanges that return what they keep.
//! * `queues`: queues that must be there.
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

mod channels;
pub mod check;
mod endpoint;
mod exchanges;
mod flight;
mod lane;
mod link;
mod outcome;
mod plugins;
mod prepare;
mod properties;
mod queues;
mod refusals;
mod routes;
mod settings;
mod supervisor;
mod suspects;
mod words;

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
