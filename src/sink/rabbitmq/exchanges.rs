//! Which exchanges exist, asked once per connection and remembered.
//!
//! Publishing to an exchange that does not exist closes the channel, and the fate of everything in
//! flight on it is lost. So every exchange is asked for, on the channel for questions, before its first
//! use. "It exists" is believed until the connection or a channel breaks; "it does not" only for a
//! second, so that an exchange created meanwhile is found.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lapin::options::ExchangeDeclareOptions;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, ErrorKind, ExchangeKind};
use tokio::time::timeout;

use super::link::{Link, STEP_TIMEOUT, explain};
use super::plugins::DELAYED;
use super::settings::RabbitMqSettings;
use super::words::{absent, forbidden, type_in};
use crate::error::{Reason, ReasonCode};

/// How long "does not exist" is believed.
const ABSENT_FOR: Duration = Duration::from_secs(1);

/// Names remembered at most: templates can produce any number of them.
const REMEMBERED: usize = 4096;

/// What is known about an exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// Publish.
    Known,
    /// Do not publish, for this reason.
    Absent(Reason),
    /// Ask the broker.
    Unknown,
}

enum Entry {
    Known,
    AbsentUntil(Instant, Reason),
}

/// The memory of one connection.
#[derive(Default)]
pub(super) struct Exchanges {
    entries: Mutex<HashMap<String, Entry>>,
    /// Types, as far as anybody wanted to know.
    kinds: Mutex<HashMap<String, Option<String>>>,
}

impl Exchanges {
    pub(super) fn standing(&self, name: &str) -> Standing {
        // The default exchange always exists.
        if name.is_empty() {
            return Standing::Known;
        }
        match self.entries().get(name) {
            None => Standing::Unknown,
            Some(Entry::Known) => Standing::Known,
            Some(Entry::AbsentUntil(end, reason)) if Instant::now() < *end => {
                Standing::Absent(reason.clone())
            }
            Some(Entry::AbsentUntil(..)) => Standing::Unknown,
        }
    }

    /// Forgets which exchanges exist: one has just proved not to.
    pub(super) fn doubt_all(&self) {
        self.entries()
            .retain(|_, entry| !matches!(entry, Entry::Known));
    }

    fn kinds(&self) -> MutexGuard<'_, HashMap<String, Option<String>>> {
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, name: &str, entry: Entry) {
        let mut entries = self.entries();
        if entries.len() >= REMEMBERED {
            entries.clear();
        }
        entries.insert(name.to_owned(), entry);
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks the broker about `name`, or creates it if the settings say so. An error means that the
/// question could not be asked.
pub(super) async fn ask(
    link: &Link,
    name: &str,
    settings: &RabbitMqSettings,
) -> Result<Standing, String> {
    let Ok(exchange) = ShortString::try_new(name) else {
        // Checked before; no exchange can have such a name.
        return Ok(Standing::Absent(absent(link, name)));
    };
    let mut undeclared = None;
    if settings.declare {
        match declare(link, &exchange, &settings.exchange_type, false).await? {
            Answer::Yes => {
                link.exchanges.remember(name, Entry::Known);
                return Ok(Standing::Known);
            }
            // It may exist with another type, or be off limits for declaring: look.
            Answer::No { text, .. } => undeclared = Some(text),
        }
    }
    match declare(link, &exchange, "topic", true).await? {
        Answer::Yes => {
            link.exchanges.remember(name, Entry::Known);
            Ok(Standing::Known)
        }
        Answer::No { code, text } => {
            let reason = match code {
                404 => match undeclared {
                    Some(text) => undeclarable(link, name, &text),
                    None => absent(link, name),
                },
                403 => forbidden(link, name, &text),
                _ => Reason::new(
                    ReasonCode::Other,
                    format!("the broker would not say whether exchange `{name}` exists: {text}"),
                ),
            };
            let end = Instant::now() + ABSENT_FOR;
            link.exchanges
                .remember(name, Entry::AbsentUntil(end, reason.clone()));
            Ok(Standing::Absent(reason))
        }
    }
}

pub(super) enum Answer {
    Yes,
    /// The broker closed the channel with this code and text.
    No {
        code: u16,
        text: String,
    },
}

/// One `exchange.declare` on the channel for questions.
pub(super) async fn declare(
    link: &Link,
    exchange: &ShortString,
    kind: &str,
    passive: bool,
) -> Result<Answer, String> {
    let asked = link.channels.ask(link, async |channel| {
        let declaring = declare_on(link, &channel, exchange.clone(), kind, passive);
        let answer = declaring.await?;
        let left = matches!(answer, Answer::Yes).then_some(channel);
        Ok((answer, left))
    });
    asked.await
}

async fn declare_on(
    link: &Link,
    channel: &Channel,
    exchange: ShortString,
    kind: &str,
    passive: bool,
) -> Result<Answer, String> {
    let options = ExchangeDeclareOptions {
        passive,
        durable: true,
        ..ExchangeDeclareOptions::default()
    };
    let mut arguments = FieldTable::default();
    if kind == DELAYED {
        // It wants to know how it routes when the delay is over.
        arguments.insert(
            "x-delayed-type".into(),
            AMQPValue::LongString("topic".into()),
        );
    }
    let declared = channel.exchange_declare(exchange, exchange_kind(kind), options, arguments);
    match timeout(STEP_TIMEOUT, declared).await {
        Ok(Ok(())) => Ok(Answer::Yes),
        Ok(Err(error)) => match error.kind() {
            ErrorKind::ProtocolError(refusal) if link.is_alive() => Ok(Answer::No {
                code: refusal.get_id(),
                text: refusal.get_message().as_str().to_owned(),
            }),
            _ => Err(explain(&error)),
        },
        Err(_) => Err(format!("no answer about exchanges within {STEP_TIMEOUT:?}")),
    }
}

/// The type of an exchange that exists; `None` if this user may not find out. An error means that the question could
/// not be asked.
pub(super) async fn kind_of(link: &Link, name: &str) -> Result<Option<String>, String> {
    let known = link.exchanges.kinds().get(name).cloned();
    if let Some(known) = known {
        return Ok(known);
    }
    let Ok(exchange) = ShortString::try_new(name) else {
        return Ok(None);
    };
    // A passive declare does not tell the type, but an ordinary one of an existing exchange does: it succeeds for the
    // same type and is refused with the actual type otherwise. Without the configure permission it is just refused.
    let kind = match declare(link, &exchange, "headers", false).await? {
        Answer::Yes => Some("headers".to_owned()),
        Answer::No { code: 406, text } => type_in(&text),
        Answer::No { .. } => None,
    };
    let mut kinds = link.exchanges.kinds();
    if kinds.len() >= REMEMBERED {
        kinds.clear();
    }
    kinds.insert(name.to_owned(), kind.clone());
    Ok(kind)
}

fn exchange_kind(name: &str) -> ExchangeKind {
    match name {
        "direct" => ExchangeKind::Direct,
        "fanout" => ExchangeKind::Fanout,
        "headers" => ExchangeKind::Headers,
        "topic" => ExchangeKind::Topic,
        other => ExchangeKind::Custom(other.to_owned()),
    }
}

/// It does not exist, and could not be declared.
fn undeclarable(link: &Link, name: &str, text: &str) -> Reason {
    Reason::new(
        ReasonCode::UnknownDestination,
        format!(
            "exchange `{name}` does not exist in vhost `{}` and cannot be declared: {text}; grant user `{}` the \
             configure permission, or declare it yourself",
            link.vhost(),
            link.user()
        ),
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_and_forgets_what_it_doubts() {
        let exchanges = Exchanges::default();
        assert_eq!(exchanges.standing(""), Standing::Known);
        assert_eq!(exchanges.standing("a"), Standing::Unknown);
        exchanges.remember("a", Entry::Known);
        assert_eq!(exchanges.standing("a"), Standing::Known);
        exchanges.doubt_all();
        assert_eq!(exchanges.standing("a"), Standing::Unknown);
        for n in 0..2 * REMEMBERED {
            exchanges.remember(&n.to_string(), Entry::Known);
        }
        assert!(exchanges.entries().len() <= REMEMBERED);
    }

    #[test]
    fn absence_is_believed_only_until_its_end() {
        let exchanges = Exchanges::default();
        let reason = Reason::new(ReasonCode::UnknownDestination, "gone");
        let now = Instant::now();
        let later = now + Duration::from_secs(60);
        exchanges.remember("a", Entry::AbsentUntil(later, reason.clone()));
        exchanges.remember("b", Entry::AbsentUntil(now, reason.clone()));
        assert_eq!(exchanges.standing("a"), Standing::Absent(reason));
        assert_eq!(exchanges.standing("b"), Standing::Unknown);
    }
}
