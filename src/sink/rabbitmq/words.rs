//! What the broker says when it refuses something: whom it means, and what to do about it.
//!
//! One code stands for many causes (403: no permission, no *topic* permission, an internal exchange), so every error
//! quotes the broker's own words, and the remedy goes by them. They also name exchange, routing key or size, so that the
//! message that closed a channel is found without publishing its neighbours one at a time.

use lapin::protocol::AMQPError;

use super::link::Link;
use super::prepare::Prepared;
use crate::error::{Reason, ReasonCode};

/// Whom a refusal means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meant {
    /// Everything for this exchange.
    Exchange,
    /// Everything with this routing key for this exchange.
    Route,
    /// This message, for what it is.
    Message,
}

/// Whether a refusal names this message, and as what. `None` also for words that are not known.
pub(super) fn meant(refusal: &AMQPError, prepared: &Prepared, body: usize) -> Option<Meant> {
    let text = refusal.get_message().as_str();
    let exchange = prepared.exchange.as_str();
    match refusal.get_id() {
        404 if text.contains(&format!("no exchange '{exchange}' in vhost ")) => {
            Some(Meant::Exchange)
        }
        403 => {
            let key = prepared.routing_key.as_str();
            let topic = format!("access to topic '{key}' in exchange '{exchange}' in vhost ");
            let whole = format!("access to exchange '{exchange}' in vhost ");
            let internal = format!("internal exchange '{exchange}' in vhost ");
            if text.contains(&topic) {
                Some(Meant::Route)
            } else if text.contains(&whole) || text.contains(&internal) {
                Some(Meant::Exchange)
            } else {
                None
            }
        }
        406 => {
            let user = prepared.properties.user_id().as_ref();
            let sized = text.contains("message size") && text.contains(&format!(" {body} "));
            let named = user.is_some_and(|user| text.contains(&format!("'{}' but", user.as_str())));
            (sized || named).then_some(Meant::Message)
        }
        _ => None,
    }
}

/// Why nothing can go to an exchange that does not exist.
pub(super) fn absent(link: &Link, name: &str) -> Reason {
    let remedy = if name == "amq.default" {
        "the default exchange has an empty name: leave the destination empty, or write `{{ \"\" }}` in \
         OUTRIGGER_ROUTE_DESTINATION"
    } else {
        "declare it, or let Outrigger do so with OUTRIGGER_RABBITMQ_DECLARE=true"
    };
    Reason::new(
        ReasonCode::UnknownDestination,
        format!(
            "exchange `{name}` does not exist in vhost `{}`; {remedy}",
            link.vhost()
        ),
    )
}

/// Why the broker does not let this user publish there, by its words.
pub(super) fn forbidden(link: &Link, exchange: &str, text: &str) -> Reason {
    let (user, vhost) = (link.user(), link.vhost());
    let remedy = if text.contains("internal exchange") {
        "an internal exchange takes messages from other exchanges only: publish to one that is bound to it, or declare \
         it without `internal`"
            .to_owned()
    } else if text.contains("access to topic") {
        format!(
            "allow the routing key: `rabbitmqctl set_topic_permissions -p {vhost} {user} {exchange} WRITE READ`"
        )
    } else if text.contains("access to exchange") {
        format!(
            "grant it the write permission: `rabbitmqctl set_permissions -p {vhost} {user} CONFIGURE WRITE READ`"
        )
    } else {
        "see the broker's log".to_owned()
    };
    Reason::new(
        ReasonCode::Forbidden,
        format!(
            "user `{user}` may not publish to exchange `{exchange}` in vhost `{vhost}`: {text}; {remedy}"
        ),
    )
}

/// A refusal that has to do with what the message is.
pub(super) fn unfit(refusal: &AMQPError, body: usize) -> Option<Reason> {
    let text = refusal.get_message().as_str();
    if refusal.get_id() != 406 {
        None
    } else if text.contains("message size") {
        Some(Reason::new(
            ReasonCode::TooLarge,
            format!(
                "the broker refused a body of {body} bytes: {text}; raise its `max_message_size`, \
                 or lower OUTRIGGER_RABBITMQ_MAX_MESSAGE_SIZE to match it"
            ),
        ))
    } else if text.contains("user_id property") {
        Some(Reason::new(
            ReasonCode::InvalidHeader,
            format!(
                "the broker refused the message: {text}; leave the property out, let it name the user of \
                 OUTRIGGER_RABBITMQ_URL, or give that user the tag `impersonator`"
            ),
        ))
    } else {
        None
    }
}

/// What to do about an error that ended a connection, or that none could be opened for.
pub(super) fn connection_remedy(code: u16, text: &str, user: &str, host: &str) -> Option<String> {
    let text = text.to_lowercase();
    let remedy = match code {
        403 if user == "guest" && !is_local(host) => {
            "check the password in OUTRIGGER_RABBITMQ_URL; and by default `guest` may log in from the broker's own host \
             only, so create another user"
                .to_owned()
        }
        403 => "check user, password and permissions in OUTRIGGER_RABBITMQ_URL".to_owned(),
        530 if text.contains("number of channels opened for user") => format!(
            "all connections of this user count; raise the limit with `rabbitmqctl set_user_limits {user} \
             '{{\"max-channels\": N}}'`, or lower OUTRIGGER_RABBITMQ_CHANNELS"
        ),
        530 if text.contains("number of channels") => {
            "raise the broker's limit, or lower OUTRIGGER_RABBITMQ_CHANNELS".to_owned()
        }
        530 if text.contains("user connection limit") => format!(
            "raise it with `rabbitmqctl set_user_limits {user} '{{\"max-connections\": N}}'`, or close other connections \
             of this user; a relay needs one"
        ),
        530 if text.contains("limit") => {
            "raise it with `rabbitmqctl set_vhost_limits -p VHOST '{\"max-connections\": N}'` (or the node's \
             `connection_max`), or close other connections; a relay needs one"
                .to_owned()
        }
        530 if text.contains("not found") => {
            "correct the vhost in OUTRIGGER_RABBITMQ_URL, or create it: `rabbitmqctl add_vhost NAME`".to_owned()
        }
        530 if text.contains("refused for user") => format!(
            "this user has no permissions on that vhost: `rabbitmqctl set_permissions -p VHOST {user} CONFIGURE WRITE \
             READ`"
        ),
        530 => "check the vhost in OUTRIGGER_RABBITMQ_URL and the user's permissions on it".to_owned(),
        541 if text.contains("vhost") => {
            "the vhost is down: `rabbitmqctl restart_vhost`, and see the broker's log".to_owned()
        }
        503 if text.contains("unknown exchange type") => {
            "correct OUTRIGGER_RABBITMQ_EXCHANGE_TYPE, or enable the broker's plugin that has this type".to_owned()
        }
        _ => return None,
    };
    Some(remedy)
}

fn is_local(host: &str) -> bool {
    host == "localhost" || host.starts_with("127.") || host == "::1"
}

/// From `inequivalent arg 'type' for exchange 'x' in vhost '/': received 'topic' but current is
/// 'fanout'`. Names with a dash come in two pairs of quotes.
pub(super) fn type_in(text: &str) -> Option<String> {
    let (_, after) = text.split_once("inequivalent arg 'type'")?;
    let (_, current) = after.split_once("current is '")?;
    let (kind, _) = current.trim_start_matches('\'').split_once('\'')?;
    (!kind.is_empty()).then(|| kind.to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
    use lapin::types::ShortString;
    use lapin::{BasicProperties, protocol::AMQPError};

    use super::*;

    fn soft(kind: AMQPSoftError, text: &str) -> AMQPError {
        AMQPError::new(
            AMQPErrorKind::Soft(kind),
            ShortString::try_new(text).unwrap(),
        )
    }

    fn prepared(exchange: &str, key: &str) -> Prepared {
        Prepared {
            index: 0,
            exchange: exchange.into(),
            routing_key: key.into(),
            properties: BasicProperties::default().with_user_id("bob".into()),
        }
    }

    /// The words of RabbitMQ 3.10; later ones say `write access to`.
    #[test]
    fn refusals_name_whom_they_mean() {
        use AMQPSoftError::{ACCESSREFUSED, NOTFOUND, PRECONDITIONFAILED};
        for (kind, text, expected) in [
            (
                NOTFOUND,
                "NOT_FOUND - no exchange 'e' in vhost '/'",
                Some(Meant::Exchange),
            ),
            (NOTFOUND, "NOT_FOUND - no exchange 'ee' in vhost '/'", None),
            (
                ACCESSREFUSED,
                "ACCESS_REFUSED - access to exchange 'e' in vhost '/' refused for user 'u'",
                Some(Meant::Exchange),
            ),
            (
                ACCESSREFUSED,
                "ACCESS_REFUSED - cannot publish to internal exchange 'e' in vhost '/'",
                Some(Meant::Exchange),
            ),
            (
                ACCESSREFUSED,
                "ACCESS_REFUSED - write access to topic 'a.b' in exchange 'e' in vhost '/' refused for user 'u'",
                Some(Meant::Route),
            ),
            (
                ACCESSREFUSED,
                "ACCESS_REFUSED - access to topic 'a.c' in exchange 'e' in vhost '/' refused for user 'u'",
                None,
            ),
            (
                PRECONDITIONFAILED,
                "PRECONDITION_FAILED - message size 77 is larger than configured max size 7",
                Some(Meant::Message),
            ),
            (
                PRECONDITIONFAILED,
                "PRECONDITION_FAILED - user_id property set to 'bob' but authenticated user was 'guest'",
                Some(Meant::Message),
            ),
            (
                PRECONDITIONFAILED,
                "PRECONDITION_FAILED - something else",
                None,
            ),
        ] {
            assert_eq!(
                meant(&soft(kind, text), &prepared("e", "a.b"), 77),
                expected,
                "{text}"
            );
        }
    }

    #[test]
    fn the_type_is_found_in_the_refusal() {
        let refusal = |kind: &str| {
            format!(
                "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'a' in vhost '/': received 'topic' but \
                 current is {kind}"
            )
        };
        assert_eq!(type_in(&refusal("'fanout'")).as_deref(), Some("fanout"));
        // As Erlang writes an atom with a dash.
        let dashed = type_in(&refusal("''x-delayed-message''"));
        assert_eq!(dashed.as_deref(), Some("x-delayed-message"));
        let other = "PRECONDITION_FAILED - inequivalent arg 'durable' for exchange 'a' in vhost \
                     '/': received 'true' but current is 'false'";
        assert_eq!(type_in(other), None);
    }

    #[test]
    fn limits_are_not_taken_for_a_wrong_vhost() {
        let hard = AMQPHardError::NOTALLOWED;
        let code = AMQPError::new(hard.into(), "x".into()).get_id();
        for (text, part) in [
            (
                "NOT_ALLOWED - connection refused for user 'u': user connection limit (0) is reached",
                "set_user_limits",
            ),
            (
                "NOT_ALLOWED - access to vhost 'v' refused for user 'u': connection limit (0) is reached",
                "set_vhost_limits",
            ),
            (
                "NOT_ALLOWED - number of channels opened for user 'u' has reached the maximum allowed user limit of (3)",
                "max-channels",
            ),
            ("NOT_ALLOWED - vhost nope not found", "add_vhost"),
            (
                "NOT_ALLOWED - access to vhost '/' refused for user 'u'",
                "set_permissions",
            ),
        ] {
            let remedy = connection_remedy(code, text, "u", "broker").unwrap();
            assert!(remedy.contains(part), "{text}: {remedy}");
        }
        assert!(
            connection_remedy(403, "Login was refused", "guest", "10.0.0.1")
                .unwrap()
                .contains("own host")
        );
        assert!(
            !connection_remedy(403, "Login was refused", "guest", "localhost")
                .unwrap()
                .contains("own host")
        );
    }
}
