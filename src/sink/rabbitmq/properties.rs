//! AMQP properties that a row sets for its message: reserved names among its headers.
//!
//! A property that the broker would refuse closes the channel, and whatever is on it with it. So values are
//! checked here, and a wrong one is the refusal of its row alone, by name.
//!
//! A dead letter obeys none of them (it must not expire, nor be refused once more) but has them as
//! headers, so that it still shows what its row wanted.

use lapin::BasicProperties;
use lapin::types::ShortString;

use super::prepare::short_size;
use crate::error::{Reason, ReasonCode};
use crate::event::{HeaderValue, Message};
use crate::sink::binding::is_dead_letter;

/// What the reserved names begin with, in lower case; no header may begin so in any case.
const PREFIX: &str = "amqp-";

/// The names, for whoever misspells one.
const NAMES: &str = "amqp-priority, amqp-expiration, amqp-reply-to, amqp-correlation-id, amqp-content-encoding, \
                     amqp-type, amqp-app-id and amqp-user-id";

/// The broker's limit: 2^32 - 1 ms.
const EXPIRATION_MAX: u64 = 4_294_967_295;

/// Stands for "the queue of the consumer on this very channel", which has none: the broker closes the channel.
const DIRECT_REPLY: &str = "amq.rabbitmq.reply-to";

/// Whether a header is a property of this message.
pub(super) fn is_property(message: &Message, name: &str) -> bool {
    has_prefix(name) && !is_dead_letter(message)
}

fn has_prefix(name: &str) -> bool {
    name.as_bytes()
        .get(..PREFIX.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(PREFIX.as_bytes()))
}

/// Sets the properties that the row asks for. `size` is that of the content header without them, in bytes, and what comes
/// back is that with them. `user` is the connection's, if it is known. `encoded` says that the body is an event written by us, not the row's payload.
pub(super) fn apply(
    mut properties: BasicProperties,
    mut size: usize,
    message: &Message,
    user: Option<&str>,
    encoded: bool,
) -> Result<(BasicProperties, usize), Reason> {
    for (name, value) in &message.headers {
        if !is_property(message, name) {
            continue;
        }
        let property = Property { name, value };
        let mut text = |old: &Option<ShortString>| -> Result<ShortString, Reason> {
            let text = property.text()?;
            size += short_size(text.as_str());
            size -= old.as_ref().map_or(0, |old| short_size(old.as_str()));
            Ok(text)
        };
        properties = match &name[PREFIX.len()..] {
            "priority" => {
                let priority = property.number(u8::MAX.into())?;
                size += usize::from(properties.priority().is_none());
                // Checked to fit.
                properties.with_priority(u8::try_from(priority).unwrap_or(u8::MAX))
            }
            "expiration" => {
                let millis = property.number(EXPIRATION_MAX)?.to_string();
                size += short_size(&millis);
                properties.with_expiration(millis.into())
            }
            "reply-to" => {
                let queue = text(properties.reply_to())?;
                if queue.as_str() == DIRECT_REPLY {
                    return Err(property.refuse(
                        "means a consumer on the relay's own channel, and there is none; name the queue itself",
                    ));
                }
                properties.with_reply_to(queue)
            }
            "correlation-id" => {
                let id = text(properties.correlation_id())?;
                properties.with_correlation_id(id)
            }
            "content-encoding" => {
                let encoding = text(properties.content_encoding())?;
                if encoded && !is_plain(encoding.as_str()) {
                    return Err(property.refuse(
                        "would be said of the whole event, whose body is plain JSON; publish such payloads with \
                         OUTRIGGER_EVENT_MODE=binary, or leave it out",
                    ));
                }
                properties.with_content_encoding(encoding)
            }
            "type" => {
                let kind = text(properties.kind())?;
                properties.with_type(kind)
            }
            "app-id" => {
                let id = text(properties.app_id())?;
                properties.with_app_id(id)
            }
            "user-id" => {
                let id = text(properties.user_id())?;
                if user.is_some_and(|user| user != id.as_str()) {
                    return Err(property.refuse(
                        "is not the user of the relay's connection, so the broker would refuse the message; it \
                         vouches for no other",
                    ));
                }
                properties.with_user_id(id)
            }
            _ => return Err(property.refuse(&format!("is no property; there are {NAMES}"))),
        };
    }
    Ok((properties, size))
}

/// Encodings that change nothing about JSON in UTF-8.
fn is_plain(encoding: &str) -> bool {
    ["utf-8", "utf8", "identity"]
        .iter()
        .any(|plain| plain.eq_ignore_ascii_case(encoding))
}

struct Property<'a> {
    name: &'a str,
    value: &'a HeaderValue,
}

impl Property<'_> {
    fn refuse(&self, rule: &str) -> Reason {
        let shown: String = self
            .name
            .chars()
            .take(64)
            .flat_map(char::escape_debug)
            .collect();
        Reason::new(
            ReasonCode::InvalidHeader,
            format!("header `{shown}` {rule}"),
        )
    }

    fn text(&self) -> Result<ShortString, Reason> {
        let text = match self.value {
            HeaderValue::Text(text) => text.clone(),
            HeaderValue::Int(number) => number.to_string(),
            HeaderValue::Bool(_) => return Err(self.refuse("must be a text")),
        };
        if text.is_empty() {
            return Err(self.refuse("is empty; leave it out"));
        }
        let size = text.len();
        ShortString::try_new(text).map_err(|_| {
            self.refuse(&format!(
                "has {size} bytes, more than the 255 AMQP allows; shorten it"
            ))
        })
    }

    fn number(&self, max: u64) -> Result<u64, Reason> {
        let number = match self.value {
            HeaderValue::Int(number) => u64::try_from(*number).ok(),
            HeaderValue::Text(text) => text.parse().ok(),
            HeaderValue::Bool(_) => None,
        };
        number
            .filter(|number| *number <= max)
            .ok_or_else(|| self.refuse(&format!("must be a whole number from 0 to {max}")))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use crate::event::REASON_HEADER;
    use crate::sink::stdout::tests::message as any_message;

    fn message(headers: &[(&str, HeaderValue)]) -> Message {
        let headers = headers.iter();
        Message {
            headers: headers
                .map(|(name, value)| ((*name).to_owned(), value.clone()))
                .collect(),
            ..any_message(b"{}")
        }
    }

    fn text(text: &str) -> HeaderValue {
        HeaderValue::Text(text.to_owned())
    }

    fn applied(headers: &[(&str, HeaderValue)]) -> Result<BasicProperties, Reason> {
        let properties = BasicProperties::default();
        apply(properties, 0, &message(headers), Some("orders"), false).map(|(applied, _)| applied)
    }

    #[test]
    fn rows_set_properties() {
        let properties = applied(&[
            ("amqp-app-id", text("shop")),
            ("amqp-content-encoding", text("gzip")),
            ("amqp-correlation-id", HeaderValue::Int(7)),
            ("amqp-expiration", text("60000")),
            ("amqp-priority", HeaderValue::Int(9)),
            ("amqp-reply-to", text("answers")),
            ("amqp-type", text("Order")),
            ("amqp-user-id", text("orders")),
            ("x-tenant", text("blue")),
        ])
        .unwrap();
        let text = |value: &Option<ShortString>| value.as_ref().map(ToString::to_string);
        assert_eq!(text(properties.app_id()).as_deref(), Some("shop"));
        assert_eq!(text(properties.content_encoding()).as_deref(), Some("gzip"));
        assert_eq!(text(properties.correlation_id()).as_deref(), Some("7"));
        assert_eq!(text(properties.expiration()).as_deref(), Some("60000"));
        assert_eq!(*properties.priority(), Some(9));
        assert_eq!(text(properties.reply_to()).as_deref(), Some("answers"));
        assert_eq!(text(properties.kind()).as_deref(), Some("Order"));
        assert_eq!(text(properties.user_id()).as_deref(), Some("orders"));
        assert_eq!(*properties.headers(), None);
    }

    #[test]
    fn values_the_broker_would_refuse_name_their_header() {
        for (name, value, part) in [
            ("amqp-priority", HeaderValue::Int(256), "from 0 to 255"),
            ("amqp-priority", HeaderValue::Int(-1), "from 0 to 255"),
            ("amqp-priority", text("high"), "from 0 to 255"),
            ("amqp-priority", HeaderValue::Bool(true), "from 0 to 255"),
            ("amqp-expiration", text("60s"), "from 0 to 4294967295"),
            (
                "amqp-expiration",
                HeaderValue::Int(4_294_967_296),
                "from 0 to",
            ),
            (
                "amqp-reply-to",
                text("amq.rabbitmq.reply-to"),
                "name the queue",
            ),
            ("amqp-reply-to", text(""), "is empty"),
            ("amqp-reply-to", HeaderValue::Bool(true), "must be a text"),
            ("amqp-correlation-id", text(&"x".repeat(256)), "256 bytes"),
            ("amqp-user-id", text("somebody"), "is not the user"),
            ("amqp-prioritty", HeaderValue::Int(1), "amqp-priority"),
            ("AMQP-Priority", HeaderValue::Int(1), "is no property"),
            ("amqp-message-id", text("x"), "is no property"),
            ("amqp-", text("x"), "is no property"),
        ] {
            let reason = applied(&[(name, value)]).expect_err(name);
            assert_eq!(reason.code, ReasonCode::InvalidHeader);
            assert!(reason.detail.contains(part), "{reason}");
            assert!(
                reason.detail.contains(&format!("header `{name}`")),
                "{reason}"
            );
        }
    }

    #[test]
    fn an_encoding_is_that_of_the_payload() {
        let with = |encoding| message(&[("amqp-content-encoding", text(encoding))]);
        let apply = |message: Message| apply(BasicProperties::default(), 0, &message, None, true);
        apply(with("UTF-8")).unwrap();
        let reason = apply(with("gzip")).unwrap_err();
        assert!(reason.detail.contains("EVENT_MODE=binary"), "{reason}");
    }

    #[test]
    fn a_dead_letter_obeys_none() {
        let mut dead = message(&[
            ("amqp-priority", text("nonsense")),
            ("amqp-expiration", HeaderValue::Int(1)),
        ]);
        dead.headers.push((REASON_HEADER.to_owned(), text("nack")));
        let (properties, size) = apply(BasicProperties::default(), 0, &dead, None, true).unwrap();
        assert_eq!((properties, size), (BasicProperties::default(), 0));
        assert!(!is_property(&dead, "amqp-expiration"), "it is a header");
    }
}
