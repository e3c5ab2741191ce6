//! Nobody answered for a subject: is there no stream for it, or has the stream no leader just now?
//!
//! Both look alike to a publisher. The first is a refusal, the second an outage, which must not cost
//! any event an attempt.
//!
//! And before a stream is used: does it acknowledge at all? One with `no_ack` stores and keeps silent, so events would be
//! stored again and again, and none would ever count as published.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::api::{Stream, stream, streams_taking, takes};
use super::link::Link;
use crate::error::{Reason, ReasonCode, Verdict};

/// How long it is believed that nothing can be confirmed by a stream.
const UNFIT_FOR: Duration = Duration::from_secs(30);

/// Streams remembered at most: templates can produce any number of them.
const REMEMBERED: usize = 4_096;

/// What is known of streams on one connection.
#[derive(Default)]
pub(super) struct Streams(Mutex<Known>);

#[derive(Default)]
struct Known {
    link: u64,
    streams: HashMap<String, Option<(Instant, String)>>,
}

impl Streams {
    /// The verdict on messages to a stream by which nothing can be confirmed. Asks before its first use; who may not ask
    /// finds out by publishing.
    pub(super) async fn unfit(&self, link: &Link, name: &str) -> Option<Verdict> {
        let known = {
            let mut known = self.lock();
            if known.link != link.id() || known.streams.len() >= REMEMBERED {
                known.streams.clear();
                known.link = link.id();
            }
            known.streams.get(name).cloned()
        };
        let reason = match known {
            Some(None) => return None,
            Some(Some((at, reason))) if at.elapsed() < UNFIT_FOR => reason,
            _ => {
                let unfit = match stream(link, name).await {
                    Ok(Some(stream)) => stream.unfit.map(|unfit| unfit.of(name)),
                    // It may come to be.
                    Ok(None) => return None,
                    Err(trouble) => {
                        tracing::debug!(?trouble, name, "cannot find out about a stream");
                        None
                    }
                };
                let entry = unfit.clone().map(|reason| (Instant::now(), reason));
                self.lock().streams.insert(name.to_owned(), entry);
                unfit?
            }
        };
        Some(Verdict::Postponed {
            reason: Reason::new(
                ReasonCode::Other,
                format!("{reason}. The event waits, and no attempt is counted"),
            ),
            after: UNFIT_FOR,
        })
    }

    /// A stream did not answer: it may have been changed.
    pub(super) fn doubt(&self) {
        self.lock().streams.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a stream was silent for so long; `None` if it should have answered. `name` is the stream a message should have
/// ended in, or empty.
pub(super) async fn why_silent(link: &Link, name: &str, subject: &str) -> Option<String> {
    let names = match name {
        "" => streams_taking(link, subject).await.ok()?,
        name => vec![name.to_owned()],
    };
    for name in names {
        if let Ok(Some(stream)) = stream(link, &name).await
            && let Some(unfit) = stream.unfit
        {
            return Some(unfit.of(&name));
        }
    }
    None
}

/// Answers for one batch, so that a thousand messages to a missing stream cost one question.
#[derive(Default)]
pub(super) struct Inquiry {
    streams: HashMap<String, Option<Result<Stream, ()>>>,
    subjects: HashMap<String, bool>,
}

impl Inquiry {
    /// The verdict on a message that nobody took. `name` is the stream it should have ended in, or empty.
    pub(super) async fn verdict(&mut self, link: &Link, name: &str, subject: &str) -> Verdict {
        if name.is_empty() {
            return match self.anybody_takes(link, subject).await {
                Some(false) => unroutable(format!(
                    "no stream takes the subject `{subject}`; add it to a stream's subjects"
                )),
                Some(true) | None => Verdict::Unavailable,
            };
        }
        match self.stream(link, name).await {
            None => Verdict::Rejected(missing(name)),
            Some(Ok(stream)) if !stream.subjects.iter().any(|filter| takes(filter, subject)) => {
                unroutable(format!(
                    "stream `{name}` does not take the subject `{subject}`, only {}; add it to the \
                     stream's subjects, or correct OUTRIGGER_ROUTE_KEY",
                    shown(&stream.subjects)
                ))
            }
            // It is there and would take it: no leader at the moment.
            Some(Ok(_) | Err(())) => Verdict::Unavailable,
        }
    }

    /// Whether any stream takes the subject; `None` if JetStream does not say.
    async fn anybody_takes(&mut self, link: &Link, subject: &str) -> Option<bool> {
        if let Some(known) = self.subjects.get(subject) {
            return Some(*known);
        }
        match streams_taking(link, subject).await {
            Ok(streams) => {
                let any = !streams.is_empty();
                self.subjects.insert(subject.to_owned(), any);
                Some(any)
            }
            Err(trouble) => {
                tracing::debug!(?trouble, subject, "cannot find out who takes a subject");
                None
            }
        }
    }

    async fn stream(&mut self, link: &Link, name: &str) -> Option<&Result<Stream, ()>> {
        let known = self.streams.contains_key(name);
        if !known {
            let answer = match stream(link, name).await {
                Ok(answer) => answer.map(Ok),
                Err(trouble) => {
                    tracing::debug!(?trouble, name, "cannot find out about a stream");
                    Some(Err(()))
                }
            };
            self.streams.insert(name.to_owned(), answer);
        }
        self.streams.get(name)?.as_ref()
    }
}

/// Why nothing can go to this stream.
pub(super) fn missing(name: &str) -> Reason {
    Reason::new(
        ReasonCode::UnknownDestination,
        format!(
            "stream `{name}` does not exist; create it (`nats stream add {name}`), or correct \
             OUTRIGGER_ROUTE_DESTINATION"
        ),
    )
}

fn unroutable(detail: String) -> Verdict {
    Verdict::Rejected(Reason::new(ReasonCode::Unroutable, detail))
}

fn shown(subjects: &[String]) -> String {
    match subjects {
        [] => "nothing by subject".to_owned(),
        subjects => format!("`{}`", subjects.join("`, `")),
    }
}
