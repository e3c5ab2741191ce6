//! What an answer means.

use std::collections::HashSet;
use std::time::Duration;

use hyper::StatusCode;
use hyper::header::{DATE, HeaderMap, HeaderName, RETRY_AFTER};
use jiff::Timestamp;
use jiff::fmt::rfc2822;

use crate::error::{Reason, ReasonCode, Verdict};

/// A service that asks for more patience is asked again after this long all the same.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// So much of an answer is quoted, in bytes.
const QUOTED_MAX: usize = 200;

/// What an answer has in common with what was posted is left out from this length on, in bytes.
const COMMON: usize = 4;

/// Answers to larger bodies are not quoted: comparing would take too long.
const COMPARED_MAX: usize = 1024 * 1024;

/// An answer, as far as the sink cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Decided.
    Verdict(Verdict),
    /// Everybody has to wait: this long, if the service says how long.
    Busy(Option<Duration>),
    /// The service failed, at this event or altogether.
    Failed,
}

/// Reads status and headers. The body decides nothing. `path` is what was posted to.
pub(super) fn read(status: StatusCode, headers: &HeaderMap, path: &str, size: usize) -> Outcome {
    use ReasonCode::{Forbidden, InvalidHeader, Other, TooLarge, UnknownDestination};
    let rejected = |code: ReasonCode, remedy: &str| {
        let detail = format!("the service answered {status} to `{path}`; {remedy}");
        Outcome::Verdict(Verdict::Rejected(Reason::new(code, detail)))
    };
    let impossible = |code: ReasonCode, detail: String| {
        Outcome::Verdict(Verdict::Impossible(Reason::new(code, detail)))
    };
    match status.as_u16() {
        200..=299 => Outcome::Verdict(Verdict::Confirmed),
        300..=399 => rejected(
            Other,
            "redirects are not followed: set OUTRIGGER_HTTP_URL to where it leads",
        ),
        // About us, not about the event.
        401 | 407 | 408 | 425 | 429 => Outcome::Busy(retry_after(headers)),
        403 => rejected(Forbidden, "check what these credentials may do"),
        404 | 410 => rejected(
            UnknownDestination,
            "check OUTRIGGER_HTTP_URL and the event's route",
        ),
        413 => impossible(
            TooLarge,
            format!("the service does not take a body of {size} bytes ({status})"),
        ),
        431 => impossible(
            InvalidHeader,
            format!("the headers are too large for the service ({status})"),
        ),
        503 if headers.contains_key(RETRY_AFTER) => Outcome::Busy(retry_after(headers)),
        500.. => Outcome::Failed,
        _ => rejected(Other, "look for the cause in the service's log"),
    }
}

/// Adds the service's own words to a refusal.
pub(super) fn quote(outcome: &mut Outcome, answer: &[u8], posted: &[u8]) {
    if let Outcome::Verdict(Verdict::Rejected(reason) | Verdict::Impossible(reason)) = outcome
        && let Some(words) = words(answer, posted)
    {
        reason.detail = format!("{}. It says: {words}", reason.detail);
    }
}

/// The beginning of an answer, on one line. A service may repeat what was posted, and payloads have no business in logs:
/// whatever the two have in common is left out.
fn words(answer: &[u8], posted: &[u8]) -> Option<String> {
    if posted.len() > COMPARED_MAX {
        return None;
    }
    let answer = &answer[..answer.len().min(QUOTED_MAX)];
    let parts: HashSet<&[u8]> = answer.windows(COMMON).collect();
    let seen: HashSet<&[u8]> = posted
        .windows(COMMON)
        .filter(|part| parts.contains(part))
        .collect();
    let mut common = vec![false; answer.len()];
    for (at, part) in answer.windows(COMMON).enumerate() {
        if seen.contains(part) {
            common[at..at + COMMON].fill(true);
        }
    }
    let mut shown = Vec::with_capacity(answer.len());
    let mut left_out = false;
    for (byte, common) in answer.iter().zip(common) {
        if !common {
            shown.push(*byte);
        } else if !left_out {
            shown.extend("…".as_bytes());
        }
        left_out = common;
    }
    let text = String::from_utf8_lossy(&shown);
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let plain: String = line.chars().filter(|c| !c.is_control()).collect();
    (!plain.is_empty()).then(|| format!("`{plain}`"))
}

/// Seconds, or a date; a date is compared with the service's own clock.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let until = date(headers, &RETRY_AFTER)?;
            let now = date(headers, &DATE)?;
            Duration::try_from(until.duration_since(now)).unwrap_or_default()
        }
    };
    Some(wait.min(RETRY_AFTER_MAX))
}

fn date(headers: &HeaderMap, name: &HeaderName) -> Option<Timestamp> {
    let text = headers.get(name)?.to_str().ok()?;
    rfc2822::DateTimeParser::new().parse_timestamp(text).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn answer(status: u16, headers: &[(&str, &str)]) -> Outcome {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name = name.parse::<HeaderName>().unwrap();
            map.insert(name, value.parse().unwrap());
        }
        read(StatusCode::from_u16(status).unwrap(), &map, "a", 7)
    }

    #[test]
    fn the_service_is_quoted_but_never_what_was_posted() {
        let refusal = || answer(400, &[]);
        let quoted = |answer: &str, posted: &str| {
            let mut outcome = refusal();
            quote(&mut outcome, answer.as_bytes(), posted.as_bytes());
            match outcome {
                Outcome::Verdict(Verdict::Rejected(reason)) => reason.detail,
                other => panic!("{other:?}"),
            }
        };
        let posted = r#"{"name":"Jane Doe"}"#;
        let told = quoted("invalid\n\tcontent type", posted);
        assert!(told.ends_with("It says: `invalid content type`"), "{told}");
        let told = quoted(r#"{"error":"Jane Doe is not known"}"#, posted);
        assert!(
            told.contains("is not known") && !told.contains("Jane"),
            "{told}"
        );
        assert!(!quoted("", posted).contains("It says"));
        let long = quoted(&"x".repeat(5_000), posted);
        assert!(long.len() < 400, "{long}");
        let mut fine = Outcome::Verdict(Verdict::Confirmed);
        quote(&mut fine, b"thanks", b"");
        assert_eq!(fine, Outcome::Verdict(Verdict::Confirmed));
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
    fn statuses_are_sorted() {
        for status in [200, 201, 202, 204] {
            assert_eq!(answer(status, &[]), Outcome::Verdict(Verdict::Confirmed));
        }
        for (status, expected) in [
            (301, ReasonCode::Other),
            (400, ReasonCode::Other),
            (403, ReasonCode::Forbidden),
            (404, ReasonCode::UnknownDestination),
            (410, ReasonCode::UnknownDestination),
            (413, ReasonCode::TooLarge),
            (422, ReasonCode::Other),
            (431, ReasonCode::InvalidHeader),
        ] {
            assert_eq!(code(&answer(status, &[])), Some(expected), "{status}");
        }
        for status in [401, 408, 429] {
            assert_eq!(answer(status, &[]), Outcome::Busy(None), "{status}");
        }
        for status in [500, 502, 503, 504, 599] {
            assert_eq!(answer(status, &[]), Outcome::Failed, "{status}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let busy = |seconds| Outcome::Busy(Some(Duration::from_secs(seconds)));
        assert_eq!(answer(503, &[("retry-after", "120")]), busy(120));
        assert_eq!(answer(429, &[("retry-after", "99999999")]), busy(3600));
        let date = ("date", "Fri, 31 Dec 1999 23:59:00 GMT");
        let later = ("retry-after", "Fri, 31 Dec 1999 23:59:59 GMT");
        assert_eq!(answer(503, &[later, date]), busy(59));
        let earlier = ("retry-after", "Fri, 31 Dec 1999 23:58:00 GMT");
        assert_eq!(answer(503, &[earlier, date]), busy(0));
        assert_eq!(answer(429, &[("retry-after", "soon")]), Outcome::Busy(None));
    }
}
