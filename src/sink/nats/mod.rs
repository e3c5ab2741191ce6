//! The NATS JetStream sink: acknowledged by the stream, pipelined, de-duplicated by the server.
//!
//! ```text
//! supervisor   opens a Link, awaits the stream of the settings, watches, reconnects, reports the SinkState
//! Link         one connection that never comes back by itself
//! lane         an inbox for acknowledgements, one batch at a time: prepare, publish all, await all
//! ```
//!
//! A message's `destination` is the stream it must end in (empty: whichever takes the subject), its
//! `routing_key` the subject.
//!
//! * [`NatsSettings`]: what can be set, and everything wrong with it at once.
//! * `credentials`: token, password, NKey or credentials file.
//! * `prepare`: a message becomes subject and headers, or is refused for what NATS cannot carry.
//! * `outcome`: acknowledgements become verdicts.
//! * `api`: questions to JetStream; `streams` uses them to tell a missing stream from one without a leader.
//! * [`check`]: questions for the `check` command.
//!
//! **The client library reconnects by itself and sends what it still has buffered.** That would let
//! a batch that was given up appear later, behind its own repetition. So a link lives as long as its one
//! connection: the second authentication fails on purpose, and the library gives up.

mod api;
pub mod check;
mod commands;
mod credentials;
mod lane;
mod link;
mod outcome;
mod prepare;
mod settings;
mod streams;
mod supervisor;

pub use settings::NatsSettings;

use self::supervisor::Shared;
use super::{Sink, supervised};

/// Starts connecting in the background. Fails only for settings that cannot work, with all
/// problems at once; an unreachable server is a state, see [`Sink::state`].
///
/// Must be called within a tokio runtime.
pub fn start(settings: NatsSettings) -> Result<Box<dyn Sink>, Vec<String>> {
    let servers = settings.servers()?;
    Ok(supervised::start(Shared::new(settings, servers)))
}
