//! The http sink: events are posted to a service, and its 2xx is the confirm.
//!
//! ```text
//! supervisor   connects when the service was out of reach, and reports the SinkState
//! lane         one connection that is kept, one request at a time
//! ```
//!
//! A message's `destination` is the path below `OUTRIGGER_HTTP_URL` (empty: that URL itself). Rows cannot choose
//! the host. A routing key has no meaning here.
//!
//! * [`HttpSettings`]: what can be set, and everything wrong with it at once.
//! * `target`: the URL, taken apart.
//! * `prepare`: a message becomes a request, or is refused for what HTTP cannot carry.
//! * `outcome`: statuses become verdicts.
//! * `culprits`: telling an event that the service cannot digest from a service that is ill.
//! * [`check`]: questions for the `check` command.

pub mod check;
mod connection;
mod culprits;
mod lane;
mod outcome;
mod prepare;
mod settings;
mod supervisor;
mod target;

pub use settings::HttpSettings;

use self::supervisor::Shared;
use super::{Sink, supervised};

/// Starts connecting in the background. Fails only for settings that cannot work, with all
/// problems at once; an unreachable service is a state, see [`Sink::state`].
///
/// Must be called within a tokio runtime.
pub fn start(settings: HttpSettings) -> Result<Box<dyn Sink>, Vec<String>> {
    let target = settings.target()?;
    Ok(supervised::start(Shared::new(settings, target)))
}
