//! The results of entries become verdicts.

use aws_sdk_eventbridge::types::PutEventsResultEntry;

use super::link::is_busy;
use crate::error::{Reason, ReasonCode, Verdict};

/// What became of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    Verdict(Verdict),
    /// It was not taken, and not for what it is.
    Busy(String),
}

pub(super) fn read(result: &PutEventsResultEntry, bus: &str) -> Outcome {
    let code = result.error_code().unwrap_or_default();
    let text = result.error_message().unwrap_or("no more is said");
    match (result.event_id(), code) {
        (Some(id), "") if !id.is_empty() => Outcome::Verdict(Verdict::Confirmed),
        (_, "") => Outcome::Busy("EventBridge gave neither an event id nor an error".to_owned()),
        (_, code) if is_busy(code) => Outcome::Busy(format!("{code} ({text})")),
        (_, "MalformedDetail") => Outcome::Verdict(Verdict::Impossible(Reason::new(
            ReasonCode::InvalidEvent,
            format!(
                "EventBridge does not take this as an event's detail (MalformedDetail: {text}); correct the row's payload"
            ),
        ))),
        (_, code) => {
            let (reason, remedy) = match code {
                code if code.contains("NotAuthorized") || code.contains("AccessDenied") => (
                    ReasonCode::Forbidden,
                    "grant events:PutEvents, also for this source, or correct the route",
                ),
                code if code.contains("NotFound") => (
                    ReasonCode::UnknownDestination,
                    "create the bus, or correct the route",
                ),
                _ => (ReasonCode::Other, "correct the row"),
            };
            let text = format!("bus `{bus}` refuses the event ({code}: {text}); {remedy}");
            Outcome::Verdict(Verdict::Rejected(Reason::new(reason, text)))
        }
    }
}

/// Why events for a bus are refused that does not exist.
pub(super) fn absent(bus: &str) -> Reason {
    Reason::new(
        ReasonCode::UnknownDestination,
        format!(
            "there is no event bus `{bus}` in this region and account; create it, or correct the route"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_event_id_is_a_confirm() {
        let result = |id: Option<&str>, code: Option<&str>| {
            let result = PutEventsResultEntry::builder()
                .set_event_id(id.map(str::to_owned))
                .set_error_code(code.map(str::to_owned));
            read(&result.build(), "b")
        };
        assert_eq!(
            result(Some("1"), None),
            Outcome::Verdict(Verdict::Confirmed)
        );
        for busy in [
            result(None, None),
            result(Some(""), None),
            result(None, Some("ThrottlingException")),
            result(None, Some("InternalFailure")),
            result(Some("1"), Some("ServiceUnavailable")),
        ] {
            assert!(matches!(busy, Outcome::Busy(_)), "{busy:?}");
        }
        let malformed = result(None, Some("MalformedDetail"));
        assert!(matches!(
            malformed,
            Outcome::Verdict(Verdict::Impossible(_))
        ));
        for (code, expected) in [
            ("NotAuthorizedForSource", ReasonCode::Forbidden),
            ("ResourceNotFoundException", ReasonCode::UnknownDestination),
            ("InvalidArgument", ReasonCode::Other),
        ] {
            match result(None, Some(code)) {
                Outcome::Verdict(Verdict::Rejected(reason)) => assert_eq!(reason.code, expected),
                other => panic!("{code}: {other:?}"),
            }
        }
    }
}
