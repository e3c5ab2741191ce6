//! The dead letter of an event: the same message, elsewhere, with headers that say why.

use super::Record;
use super::encode::{Encoder, Mode};
use super::envelope::Envelope;
use super::headers::parse_headers;
use super::message::{HeaderValue, Message};
use super::route::{DeadLetterRouter, Original};
use crate::error::Reason;

/// Longest explanation carried in a header, in bytes.
const ERROR_MAX: usize = 1024;

impl Encoder {
    /// The message to publish for an event that was given up.
    ///
    /// Body, content type and headers are those of the original (in batch mode: a batch of one).
    /// Added are `x-outrigger-reason`, `x-outrigger-error`, `x-outrigger-attempts`, and, if the
    /// event had a route, `x-outrigger-original-destination` and
    /// `x-outrigger-original-routing-key`; they replace headers of the same names.
    ///
    /// There is no dead letter for a row that cannot be expressed as a CloudEvent, or for which
    /// the dead-letter templates give no route: the reason says so.
    pub fn dead_letter(
        &self,
        record: &Record,
        router: &DeadLetterRouter,
        reason: &Reason,
        attempts: u32,
    ) -> Result<Message, Reason> {
        let event = Envelope::new(record, &self.source)?;
        let headers = parse_headers(record.headers.as_deref(), self.mode == Mode::Binary)?;
        // An event may be dead because it has no route; a constant dead-letter route still takes it.
        let original = self.router.route(record).ok();
        let route = router.route(&Original {
            record,
            source: event.source,
            route: original.as_ref().map(|(d, k)| (d.as_str(), k.as_str())),
            reason: reason.code,
        })?;
        let mut message = self.message(record, &event, headers, route);

        let text = |value: &str| HeaderValue::Text(value.to_owned());
        let mut added = vec![
            ("x-outrigger-reason", text(reason.code.as_str())),
            ("x-outrigger-error", text(bounded(&reason.detail))),
            ("x-outrigger-attempts", HeaderValue::Int(attempts.into())),
        ];
        if let Some((destination, routing_key)) = &original {
            added.push(("x-outrigger-original-destination", text(destination)));
            added.push(("x-outrigger-original-routing-key", text(routing_key)));
        }
        message
            .headers
            .retain(|(name, _)| added.iter().all(|(known, _)| known != name));
        message.headers.extend(
            added
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value)),
        );
        Ok(message)
    }
}

fn bounded(text: &str) -> &str {
    &text[..text.floor_char_boundary(ERROR_MAX)]
}
