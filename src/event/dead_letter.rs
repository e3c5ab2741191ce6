//! The dead letter of an event: the same message, elsewhere, with headers that say why.

use super::Record;
use super::encode::{Encoder, Mode};
use super::envelope::Envelope;
use super::headers::parse_headers;
use super::message::{HeaderValue, Message};
use super::route::{DeadLetterRouter, Original};
use crate::error::Reason;

/// The header that only a dead letter has.
pub const REASON_HEADER: &str = "x-outrigger-reason";

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
            (REASON_HEADER, text(reason.code.as_str())),
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

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use crate::error::ReasonCode;
    use crate::event::encode::{BatchLimits, EncoderConfig, HeaderPrefix};
    use crate::event::route::Router;

    fn encoder(mode: Mode) -> Encoder {
        Encoder::new(EncoderConfig {
            source: "/shop".into(),
            mode,
            header_prefix: HeaderPrefix::Ce,
            router: Router::new("events", "{{ type }}.{{ subject }}").unwrap(),
            batch: BatchLimits::default(),
        })
        .unwrap()
    }

    fn record() -> Record {
        Record {
            seq: 3,
            id: "id3".into(),
            event_type: "order".into(),
            subject: Some("s".into()),
            headers: Some(r#"{"x-tenant":"blue","x-outrigger-reason":"earlier"}"#.into()),
            ..Record::default()
        }
    }

    fn nack() -> Reason {
        Reason::new(ReasonCode::Nack, "é".repeat(600))
    }

    #[test]
    fn the_original_message_with_reasons_added() {
        let router = DeadLetterRouter::new("dlx", "{{ routing_key }}.{{ reason }}.dlq").unwrap();
        for mode in [Mode::Structured, Mode::Binary, Mode::Batch] {
            let original = encoder(mode).encode([&record()]).messages.remove(0);
            let dead = encoder(mode)
                .dead_letter(&record(), &router, &nack(), 10)
                .unwrap();
            assert_eq!(dead.destination, "dlx");
            assert_eq!(dead.routing_key, "order.s.nack.dlq");

            let text = |value: &str| HeaderValue::Text(value.to_owned());
            let mut headers = original.headers.clone();
            headers.retain(|(name, _)| name != "x-outrigger-reason");
            assert_eq!(headers.len() + 1, original.headers.len());
            headers.extend(
                [
                    ("x-outrigger-reason", text("nack")),
                    // 1024 bytes at most, and never half a character.
                    ("x-outrigger-error", text(&"é".repeat(512))),
                    ("x-outrigger-attempts", HeaderValue::Int(10)),
                    ("x-outrigger-original-destination", text("events")),
                    ("x-outrigger-original-routing-key", text("order.s")),
                ]
                .map(|(name, value)| (name.to_owned(), value)),
            );
            let expected = Message {
                headers,
                destination: dead.destination.clone(),
                routing_key: dead.routing_key.clone(),
                ..original
            };
            assert_eq!(dead, expected);
        }
    }

    #[test]
    fn an_event_without_a_route_goes_to_a_constant_one() {
        let lost = Record {
            subject: None,
            ..record()
        };
        let reason = Reason::new(ReasonCode::InvalidRoute, "no subject");
        let constant = DeadLetterRouter::new("dlx", "dead").unwrap();
        let dead = encoder(Mode::Structured)
            .dead_letter(&lost, &constant, &reason, 1)
            .unwrap();
        assert_eq!(dead.routing_key, "dead");
        assert!(
            dead.headers
                .iter()
                .all(|(name, _)| !name.contains("original"))
        );

        let derived = DeadLetterRouter::new("dlx", "{{ routing_key }}.dlq").unwrap();
        let error = encoder(Mode::Structured)
            .dead_letter(&lost, &derived, &reason, 1)
            .unwrap_err();
        assert_eq!(error.code, ReasonCode::InvalidRoute);
        assert!(
            error
                .detail
                .contains("OUTRIGGER_RETRY_DEAD_LETTER_KEY needs `routing_key`")
        );
    }

    #[test]
    fn what_is_no_event_has_no_dead_letter() {
        let router = DeadLetterRouter::new("dlx", "dead").unwrap();
        let invalid = Record {
            id: String::new(),
            ..record()
        };
        let error = encoder(Mode::Binary)
            .dead_letter(&invalid, &router, &nack(), 1)
            .unwrap_err();
        assert_eq!(error.code, ReasonCode::InvalidEvent);
    }
}
