//! The dead letter of an event: the same message, elsewhere, with notes that say why.

use super::encode::{Encoder, Mode};
use super::envelope::ExtensionValue;
use super::headers::parse_headers;
use super::message::{HeaderValue, Message};
use super::route::{DeadLetterRouter, Original};
use super::rules;
use super::{Data, Record};
use crate::error::{Reason, ReasonCode};

/// The header that only a dead letter has, where it has [headers](Explained::InHeaders).
pub const REASON_HEADER: &str = "x-outrigger-reason";

/// Longest explanation that a dead letter carries, in bytes.
const ERROR_MAX: usize = 1024;

/// Where a dead letter says why it is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Explained {
    /// In headers of the message: the event stays as it was.
    #[default]
    InHeaders,
    /// In extension attributes of the event, for sinks whose messages have no headers.
    InAttributes,
}

/// One thing that a dead letter says, by its name as a header and as an attribute. CloudEvents has lower-case letters
/// and digits for the latter, and asks for 20 at most.
struct Note {
    header: &'static str,
    attribute: &'static str,
    value: Value,
}

enum Value {
    Text(String),
    Count(u32),
}

impl Encoder {
    /// The message to publish for an event that was given up.
    ///
    /// Destination and routing key apart, it is that of the event (in batch mode: a batch of one) and some notes: the
    /// reason, its explanation, the attempts made and, if the event had a route, its destination and routing key. They
    /// are headers or attributes, as [`Explained`] says, and replace those of the same names.
    ///
    /// Of a row that is too large, or was not read, it has no payload; of one that was not read, only what is known of it.
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
        let unread = record.content.refusal().is_some();
        let without_payload;
        let record = if unread || reason.code == ReasonCode::TooLarge {
            without_payload = Record {
                data: Data::None,
                ..record.clone()
            };
            &without_payload
        } else {
            record
        };
        let mut event = self.envelope(record)?;
        let mut headers = parse_headers(record.headers.as_deref(), self.mode == Mode::Binary)?;
        // An event may be dead because it has no route; a constant dead-letter route still takes it.
        let original = self.router.route(record).ok();
        let route = router.route(&Original {
            record,
            source: event.source,
            content_type: event.content_type,
            route: original.as_ref().map(|(d, k)| (d.as_str(), k.as_str())),
            reason: reason.code,
        })?;
        // A row that was not read may have had a route of its own.
        let notes = notes(reason, attempts, original.filter(|_| !unread));
        match self.explained {
            Explained::InHeaders => {
                headers.retain(|(name, _)| notes.iter().all(|note| note.header != name));
                let added = notes.into_iter().map(Note::into_header);
                headers.extend(added);
            }
            Explained::InAttributes => {
                for note in notes {
                    let (name, value) = note.into_attribute();
                    event.set_extension(name, value);
                }
            }
        }
        Ok(self.message(record, &event, headers, route))
    }
}

fn notes(reason: &Reason, attempts: u32, original: Option<(String, String)>) -> Vec<Note> {
    let note = |header, attribute, value| Note {
        header,
        attribute,
        value,
    };
    let text = |header, attribute, value| note(header, attribute, Value::Text(value));
    let mut notes = vec![
        text(
            REASON_HEADER,
            "outriggerreason",
            reason.code.as_str().to_owned(),
        ),
        text(
            "x-outrigger-error",
            "outriggererror",
            explanation(&reason.detail),
        ),
        note(
            "x-outrigger-attempts",
            "outriggerattempts",
            Value::Count(attempts),
        ),
    ];
    if let Some((destination, routing_key)) = original {
        notes.push(text(
            "x-outrigger-original-destination",
            "outriggerdestination",
            destination,
        ));
        notes.push(text(
            "x-outrigger-original-routing-key",
            "outriggerroutingkey",
            routing_key,
        ));
    }
    notes
}

impl Note {
    fn into_header(self) -> (String, HeaderValue) {
        let value = match self.value {
            Value::Text(text) => HeaderValue::Text(text),
            Value::Count(count) => HeaderValue::Int(count.into()),
        };
        (self.header.to_owned(), value)
    }

    fn into_attribute(self) -> (&'static str, ExtensionValue<'static>) {
        let value = match self.value {
            Value::Text(text) => ExtensionValue::Text(text.into()),
            Value::Count(count) => ExtensionValue::Int(count.try_into().unwrap_or(i32::MAX)),
        };
        (self.attribute, value)
    }
}

/// A server's words, on one line: neither attributes nor the headers of every protocol may have control characters, or
/// blanks around them.
fn explanation(detail: &str) -> String {
    let text = rules::cleaned(detail);
    let text = text.trim();
    text[..text.floor_char_boundary(ERROR_MAX)]
        .trim_end()
        .to_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use crate::error::ReasonCode;
    use crate::event::encode::{BatchLimits, EncoderConfig, HeaderPrefix};
    use crate::event::envelope::Fill;
    use crate::event::route::Router;

    fn encoder(mode: Mode) -> Encoder {
        explaining(Explained::InHeaders, mode)
    }

    fn explaining(explained: Explained, mode: Mode) -> Encoder {
        Encoder::new(EncoderConfig {
            source: "/shop".into(),
            fill: Fill::default(),
            mode,
            explained,
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
    fn what_is_too_large_or_unread_goes_without_its_payload() {
        let router = DeadLetterRouter::new("dlx", "{{ reason }}").unwrap();
        let large = Record {
            data: Data::Json("[1]".into()),
            ..record()
        };
        let too_large = Reason::new(ReasonCode::TooLarge, "it is");
        let unread = Record {
            seq: 3,
            id: "id3".into(),
            event_type: "order".into(),
            key: Some("k".into()),
            content: crate::event::Content::of_size(2, 1),
            ..Record::default()
        };
        for (record, has_route) in [(large, true), (unread, false)] {
            let dead = encoder(Mode::Binary)
                .dead_letter(&record, &router, &too_large, 1)
                .unwrap();
            assert_eq!((dead.body.len(), dead.id.as_str()), (0, "id3"));
            assert_eq!(dead.routing_key, "too_large");
            let routed = dead
                .headers
                .iter()
                .any(|(name, _)| name == "x-outrigger-original-destination");
            assert_eq!(routed, has_route);
        }
    }

    #[test]
    fn the_original_event_with_reasons_in_its_attributes() {
        let router = DeadLetterRouter::new("dlx", "{{ reason }}").unwrap();
        let encoder = explaining(Explained::InAttributes, Mode::Structured);
        let record = Record {
            extensions: Some(
                r#"{"outriggerreason":"earlier","outriggerz":1,"tenant":"blue"}"#.into(),
            ),
            ..record()
        };
        let original = encoder.encode([&record]).messages.remove(0);
        let reason = Reason::new(ReasonCode::Nack, " a line\nand\u{7f} another\n");
        let dead = encoder.dead_letter(&record, &router, &reason, 10).unwrap();
        let added = concat!(
            r#""outriggerattempts":10,"outriggerdestination":"events","#,
            r#""outriggererror":"a line and  another","outriggerreason":"nack","#,
            r#""outriggerroutingkey":"order.s","outriggerz":1"#,
        );
        let body = std::str::from_utf8(&original.body).unwrap();
        let body = body.replace(r#""outriggerreason":"earlier","outriggerz":1"#, added);
        let expected = Message {
            body: body.into(),
            destination: "dlx".into(),
            routing_key: "nack".into(),
            ..original
        };
        assert_eq!(dead, expected, "headers and all");
        assert_ne!(dead.body, encoder.encode([&record]).messages[0].body);
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
