//! What the server answered to a publish, as a verdict.

use async_nats::StatusCode;
use serde::Deserialize;

use super::api::{ApiError, Unfit};
use crate::error::{Reason, ReasonCode, Verdict};

/// What an answer means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Decided.
    Verdict(Verdict),
    /// Nobody took it. Whether that is a refusal takes a question, see `streams`.
    NobodyTook,
    /// The server or the account is full: everybody has to wait, with the server's words.
    Full(String),
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Ack {
    stream: String,
    seq: u64,
    error: Option<ApiError>,
}

/// Reads an answer. `stream` is where the message should have ended.
pub(super) fn read(
    status: Option<StatusCode>,
    payload: &[u8],
    stream: &str,
    size: usize,
) -> Outcome {
    if status == Some(StatusCode::NO_RESPONDERS) {
        return Outcome::NobodyTook;
    }
    let unknown = Outcome::Verdict(Verdict::Unavailable);
    let Ok(ack) = serde_json::from_slice::<Ack>(payload) else {
        // Somebody else listens on the subject and has answered first.
        tracing::debug!("an answer to a publish is no acknowledgement");
        return unknown;
    };
    match ack.error {
        Some(error) => refused(&error, stream, size),
        // A duplicate is confirmed as well: the server has had it before.
        None if !ack.stream.is_empty() && ack.seq > 0 => Outcome::Verdict(Verdict::Confirmed),
        None => unknown,
    }
}

/// The codes are those of the server's `errors.json`.
fn refused(error: &ApiError, stream: &str, size: usize) -> Outcome {
    let text = &error.description;
    let verdict = match (error.err_code, error.code) {
        // Limits of the account or the server, not of one stream.
        (10_002 | 10_023 | 10_028 | 10_047, _) => return Outcome::Full(text.clone()),
        (10_054, _) => Verdict::Impossible(Reason::new(
            ReasonCode::TooLarge,
            format!(
                "the message has {size} bytes with its headers, more than stream `{stream}` allows; raise its \
                 `max_msg_size`, or publish a reference instead of the data"
            ),
        )),
        (10_053, _) => Verdict::Impossible(Reason::new(
            ReasonCode::InvalidHeader,
            format!("{text}; move data from the headers into the body"),
        )),
        (10_060, _) => Verdict::Rejected(Reason::new(
            ReasonCode::Unroutable,
            format!(
                "the subject belongs to another stream than `{stream}`; correct the stream's subjects, \
                 OUTRIGGER_ROUTE_DESTINATION or OUTRIGGER_ROUTE_KEY"
            ),
        )),
        (10_109, _) => Verdict::Rejected(Reason::new(ReasonCode::Other, Unfit::Sealed.of(stream))),
        // The stream discards new messages when it is full (`discard: new`).
        (10_077, _) if text.starts_with("maximum ") => Verdict::Rejected(Reason::new(
            ReasonCode::Nack,
            format!("stream `{stream}` takes no more: {text}"),
        )),
        // The first of two equal messages is not safe yet.
        (10_158, _) | (_, 500..) => Verdict::Unavailable,
        (err_code, _) => Verdict::Rejected(Reason::new(
            ReasonCode::Other,
            format!("the server refused the message: {text} ({err_code})"),
        )),
    };
    Outcome::Verdict(verdict)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is(payload: &str) -> Outcome {
        read(None, payload.as_bytes(), "E", 7)
    }

    fn error(code: u16, err_code: u32, text: &str) -> Outcome {
        is(&format!(
            r#"{{"error":{{"code":{code},"err_code":{err_code},"description":"{text}"}},"stream":"E","seq":0}}"#
        ))
    }

    fn code(outcome: &Outcome) -> Option<ReasonCode> {
        match outcome {
            Outcome::Verdict(Verdict::Rejected(reason) | Verdict::Impossible(reason)) => {
                Some(reason.code)
            }
            _ => None,
        }
    }

    #[test]
    fn only_an_acknowledgement_confirms() {
        let confirmed = Outcome::Verdict(Verdict::Confirmed);
        assert_eq!(is(r#"{"stream":"E","seq":1}"#), confirmed);
        assert_eq!(
            is(r#"{"stream":"E","seq":1,"domain":"d","duplicate":true}"#),
            confirmed
        );
        let unknown = Outcome::Verdict(Verdict::Unavailable);
        for payload in ["", "+OK", "{}", r#"{"stream":"E"}"#, r#"{"seq":4}"#, "[]"] {
            assert_eq!(is(payload), unknown, "{payload}");
        }
        let nobody = read(Some(StatusCode::NO_RESPONDERS), b"", "E", 7);
        assert_eq!(nobody, Outcome::NobodyTook);
    }

    #[test]
    fn refusals_are_told_from_outages() {
        let full = error(503, 10_077, "maximum messages exceeded");
        assert_eq!(code(&full), Some(ReasonCode::Nack));
        let broken = error(503, 10_077, "no space left on device");
        assert_eq!(broken, Outcome::Verdict(Verdict::Unavailable));
        let leaderless = error(503, 10_008, "JetStream system temporarily unavailable");
        assert_eq!(leaderless, Outcome::Verdict(Verdict::Unavailable));
        let exhausted = error(500, 10_047, "insufficient storage resources available");
        assert!(matches!(exhausted, Outcome::Full(_)));
        let other = error(400, 10_060, "expected stream does not match");
        assert_eq!(code(&other), Some(ReasonCode::Unroutable));
        let sealed = error(400, 10_109, "invalid operation on sealed stream");
        assert_eq!(code(&sealed), Some(ReasonCode::Other));
        let large = error(400, 10_054, "message size exceeds maximum allowed");
        assert_eq!(code(&large), Some(ReasonCode::TooLarge));
        assert!(matches!(large, Outcome::Verdict(Verdict::Impossible(_))));
    }
}
