//! Nobody answered for a subject: is there no stream for it, or has the stream no leader just now?
//!
//! Both look alike to a publisher. The first is a refusal, the second an outage, which must not cost
//! any event an attempt.

use std::collections::HashMap;

use super::api::{Stream, stream, streams_taking, takes};
use super::link::Link;
use crate::error::{Reason, ReasonCode, Verdict};

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
