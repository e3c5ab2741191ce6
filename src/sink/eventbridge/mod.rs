//! The EventBridge sink: PutEvents, ten entries to a request, each with its own result.
//!
//! ```text
//! supervisor   opens a link, awaits the buses of the settings, replaces the link when it has failed, reports the SinkState
//! lane         one request at a time: prepare, look up buses, put, decide
//! ```
//!
//! * [`EventBridgeSettings`]: what can be set, and everything wrong with it at once.
//! * `link`: credentials, region, endpoint; the buses that were seen; and what went wrong with a request.
//! * `prepare`: a message becomes an entry, or is refused for what EventBridge cannot carry.
//! * `outcome`: results become verdicts.
//! * [`check`]: questions for the `check` command.
//!
//! **EventBridge takes events for a bus that does not exist**, says so with an event id, and drops them. So a bus is
//! looked up before its first use, and again from time to time.

pub mod check;
mod lane;
mod link;
mod outcome;
mod prepare;
mod settings;
mod supervisor;
mod words;

pub use settings::EventBridgeSettings;

use self::supervisor::Shared;
use super::{Sink, supervised};

/// Starts connecting in the background. Fails only for settings that cannot work, with all
/// problems at once; an unreachable service is a state, see [`Sink::state`].
///
/// Must be called within a tokio runtime.
pub fn start(settings: EventBridgeSettings) -> Result<Box<dyn Sink>, Vec<String>> {
    let problems = settings.validate();
    if !problems.is_empty() {
        return Err(problems);
    }
    Ok(supervised::start(Shared::new(settings)))
}
