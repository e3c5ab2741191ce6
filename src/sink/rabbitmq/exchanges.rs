//! Which exchanges exist, asked once per connection and remembered.
//!
//! Publishing to an exchange that does not exist closes the channel, and the fate of everything in
//! flight on it is lost. So every exchange is asked for, on a channel of its own, before its first
//! use. "It exists" is believed until the connection or a channel breaks; "it does not" only for a
//! second, so that an exchange created meanwhile is found.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lapin::options::ExchangeDeclareOptions;
use lapin::types::{FieldTable, ShortString};
use lapin::{ErrorKind, ExchangeKind};
use tokio::time::timeout;

use super::link::{Link, STEP_TIMEOUT, explain};
use super::settings::RabbitMqSettings;
use crate::error::{Reason, ReasonCode};

/// How long "does not exist" is believed.
const ABSENT_FOR: Duration = Duration::from_secs(1);

/// How long messages to an exchange that refused one are published one at a time.
const CAREFUL_FOR: Duration = Duration::from_secs(30);

/// Names remembered at most: templates can produce any number of them.
const REMEMBERED: usize = 4096;

/// What is known about an exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// Publish.
    Known,
    /// It exists but refuses messages: publish one at a time, so that each refusal has one cause.
    Careful,
    /// Do not publish, for this reason.
    Absent(Reason),
    /// Ask the broker.
    Unknown,
}

enum Entry {
    Known,
    CarefulUntil(Instant),
    AbsentUntil(Instant, Reason),
}

/// The memory of one connection.
#[derive(Default)]
pub(super) struct Exchanges(Mutex<HashMap<String, Entry>>);

impl Exchanges {
    pub(super) fn standing(&self, name: &str) -> Standing {
        // The default exchange always exists.
        if name.is_empty() {
            return Standing::Known;
        }
        match self.entries().get(name) {
            None => Standing::Unknown,
            Some(Entry::Known) => Standing::Known,
            Some(Entry::CarefulUntil(end)) if Instant::now() < *end => Standing::Careful,
            Some(Entry::CarefulUntil(_)) => Standing::Known,
            Some(Entry::AbsentUntil(end, reason)) if Instant::now() < *end => {
                Standing::Absent(reason.clone())
            }
            Some(Entry::AbsentUntil(..)) => Standing::Unknown,
        }
    }

    /// A message to this exchange was refused by itself.
    pub(super) fn be_careful_with(&self, name: &str) {
        self.remember(name, Entry::CarefulUntil(Instant::now() + CAREFUL_FOR));
    }

    /// Forgets which exchanges exist: one has just proved not to.
    pub(super) fn doubt_all(&self) {
        self.entries()
            .retain(|_, entry| !matches!(entry, Entry::Known));
    }

    fn remember(&self, name: &str, entry: Entry) {
        let mut entries = self.entries();
        if entries.len() >= REMEMBERED {
            entries.clear();
        }
        entries.insert(name.to_owned(), entry);
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
    if settings.declare {
        match declare(link, &exchange, kind(&settings.exchange_type), false).await? {
            Answer::Yes => {
                link.exchanges.remember(name, Entry::Known);
                return Ok(Standing::Known);
            }
            // It may exist with another type, or be off limits for declaring: look.
            Answer::No { code, text } => {
                tracing::debug!(exchange = name, code, text, "cannot declare the exchange");
            }
        }
    }
    match declare(link, &exchange, ExchangeKind::Topic, true).await? {
        Answer::Yes => {
            link.exchanges.remember(name, Entry::Known);
            Ok(Standing::Known)
        }
        Answer::No { code, text } => {
            let reason = match code {
                404 => absent(link, name),
                403 => forbidden(link, name),
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

/// One `exchange.declare` on a channel of its own.
pub(super) async fn declare(
    link: &Link,
    exchange: &ShortString,
    kind: ExchangeKind,
    passive: bool,
) -> Result<Answer, String> {
    let channel = link.open_channel().await?;
    let options = ExchangeDeclareOptions {
        passive,
        durable: true,
        ..ExchangeDeclareOptions::default()
    };
    let declared = channel.exchange_declare(exchange.clone(), kind, options, FieldTable::default());
    let answer = match timeout(STEP_TIMEOUT, declared).await {
        Ok(Ok(())) => Answer::Yes,
        Ok(Err(error)) => match error.kind() {
            ErrorKind::ProtocolError(refusal) if link.is_alive() => {
                return Ok(Answer::No {
                    code: refusal.get_id(),
                    text: refusal.get_message().as_str().to_owned(),
                });
            }
            _ => return Err(explain(&error)),
        },
        Err(_) => return Err(format!("no answer about exchanges within {STEP_TIMEOUT:?}")),
    };
    // A channel that does not close in time is closed with the connection.
    let _ = timeout(STEP_TIMEOUT, channel.close(200, ShortString::from("OK"))).await;
    Ok(answer)
}

pub(super) fn kind(name: &str) -> ExchangeKind {
    match name {
        "direct" => ExchangeKind::Direct,
        "fanout" => ExchangeKind::Fanout,
        "headers" => ExchangeKind::Headers,
        "topic" => ExchangeKind::Topic,
        other => ExchangeKind::Custom(other.to_owned()),
    }
}

pub(super) fn absent(link: &Link, name: &str) -> Reason {
    Reason::new(
        ReasonCode::UnknownDestination,
        format!(
            "exchange `{name}` does not exist in vhost `{}`; declare it, or let Outrigger do so \
             with OUTRIGGER_RABBITMQ_DECLARE=true",
            link.vhost()
        ),
    )
}

pub(super) fn forbidden(link: &Link, name: &str) -> Reason {
    Reason::new(
        ReasonCode::Forbidden,
        format!(
            "user `{}` may not publish to exchange `{name}` in vhost `{}`; grant it the write \
             permission (and the topic permission, if used)",
            link.user(),
            link.vhost()
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
        exchanges.be_careful_with("b");
        assert_eq!(exchanges.standing("a"), Standing::Known);
        assert_eq!(exchanges.standing("b"), Standing::Careful);
        exchanges.doubt_all();
        assert_eq!(exchanges.standing("a"), Standing::Unknown);
        assert_eq!(exchanges.standing("b"), Standing::Careful);
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
        exchanges.remember("c", Entry::CarefulUntil(now));
        assert_eq!(exchanges.standing("a"), Standing::Absent(reason));
        assert_eq!(exchanges.standing("b"), Standing::Unknown);
        assert_eq!(exchanges.standing("c"), Standing::Known);
    }
}
