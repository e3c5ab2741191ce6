//! Exchanges of plugins that return messages although they keep them, or have had them before.
//!
//! A `basic.return` means that no queue was found. An exchange of type `x-delayed-message` finds none while it keeps a
//! message for later, one of type `x-message-deduplication` finds none for a repetition. Publishing such a message again
//! would deliver it again, or never end. Both act on a header of the message, so nothing else needs to be asked.

use super::exchanges::kind_of;
use super::link::Link;
use super::settings::RabbitMqSettings;
use crate::error::{Reason, ReasonCode, Verdict};
use crate::event::{HeaderValue, Message};

/// The type of exchanges that delay.
pub const DELAYED: &str = "x-delayed-message";

/// The type of exchanges that drop repetitions.
const DEDUPLICATING: &str = "x-message-deduplication";

/// The longest delay that the plugin takes for one, in milliseconds.
const DELAY_MAX: i64 = 0xffff_ffff;

/// What a header asks the exchange to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    Delay,
    Deduplicate,
}

/// What a message asks of an exchange, if it is one that can do it.
pub(super) fn wish(message: &Message) -> Option<Wish> {
    message
        .headers
        .iter()
        .find_map(|(name, value)| match name.as_str() {
            "x-delay" => {
                let delay = match value {
                    HeaderValue::Int(delay) => Some(*delay),
                    HeaderValue::Text(text) => text.parse().ok(),
                    HeaderValue::Bool(_) => None,
                };
                // Others are routed at once.
                delay
                    .filter(|delay| (1..DELAY_MAX).contains(delay))
                    .map(|_| Wish::Delay)
            }
            "x-deduplication-header" => Some(Wish::Deduplicate),
            _ => None,
        })
}

/// What a return means for a message with such a header. An error means that the broker could not be asked.
pub(super) async fn returned(
    link: &Link,
    settings: &RabbitMqSettings,
    message: &Message,
    wish: Wish,
    reason: &Reason,
) -> Result<Verdict, String> {
    let exchange = &message.destination;
    let known = kind_of(link, exchange).await?;
    let kind = known.as_deref().unwrap_or(&settings.exchange_type);
    let refused = |detail: String| {
        let detail = format!("{}; {detail}", reason.detail);
        Ok(Verdict::Impossible(Reason::new(
            ReasonCode::Unroutable,
            detail,
        )))
    };
    match (wish, kind) {
        // It has acknowledged the message and keeps it.
        (Wish::Delay, DELAYED) => Ok(Verdict::Confirmed),
        (Wish::Deduplicate, DEDUPLICATING) => refused(format!(
            "exchange `{exchange}` is of type {DEDUPLICATING}, which also returns what it drops as a repetition: no \
             further attempt could tell. See whether it arrived; leave out the header `x-deduplication-header`, or \
             let consumers recognise repetitions"
        )),
        (Wish::Delay, _) if known.is_none() => refused(format!(
            "it has the header `x-delay`, and this user may not find out the type of exchange `{exchange}`, which takes \
             the configure permission: if it delays messages, say so with OUTRIGGER_RABBITMQ_EXCHANGE_TYPE={DELAYED}, or \
             delay in the outbox with `available_at`"
        )),
        _ => Ok(Verdict::Rejected(reason.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_plugins_act_on_is_a_wish() {
        for (name, value, expected) in [
            ("x-delay", HeaderValue::Int(1000), Some(Wish::Delay)),
            (
                "x-delay",
                HeaderValue::Text("1000".into()),
                Some(Wish::Delay),
            ),
            ("x-delay", HeaderValue::Int(0), None),
            ("x-delay", HeaderValue::Int(-5), None),
            ("x-delay", HeaderValue::Int(DELAY_MAX), None),
            ("x-delay", HeaderValue::Text("soon".into()), None),
            (
                "x-deduplication-header",
                HeaderValue::Text("7".into()),
                Some(Wish::Deduplicate),
            ),
            ("x-other", HeaderValue::Int(1), None),
        ] {
            let message = Message {
                headers: vec![(name.to_owned(), value.clone())],
                ..crate::sink::stdout::tests::message(b"{}")
            };
            assert_eq!(wish(&message), expected, "{name} {value:?}");
        }
    }
}
