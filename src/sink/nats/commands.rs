//! Headers of a row that command the server, of which a few are let through.
//!
//! They concern this one message: how long it is kept, and what the stream must look like for it to be stored. Those that
//! would delete messages of others (`Nats-Rollup`), or that the relay itself needs (`Nats-Msg-Id`,
//! `Nats-Expected-Stream`), are refused, and so is every name that a later server may give a meaning.

use crate::event::HeaderValue;

const PREFIX: &str = "Nats-";

const TTL: &str = "Nats-TTL";

/// The names that a row may use, as the server spells them: it looks at the case.
const ALLOWED: [&str; 4] = [
    TTL,
    "Nats-Expected-Last-Sequence",
    "Nats-Expected-Last-Subject-Sequence",
    "Nats-Expected-Last-Msg-Id",
];

/// Whether a header is for the server.
pub(super) fn is_command(name: &str) -> bool {
    name.get(..PREFIX.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(PREFIX))
}

/// The name and value to send, or the rule that is broken. `knows_ttl` says whether the server is new enough for `Nats-TTL`.
pub(super) fn checked(
    name: &str,
    value: &HeaderValue,
    knows_ttl: bool,
) -> Result<(&'static str, String), &'static str> {
    let Some(known) = ALLOWED
        .iter()
        .find(|known| known.eq_ignore_ascii_case(name))
    else {
        return Err(
            "is reserved: it would command the server; a row may set Nats-TTL and Nats-Expected-Last-Sequence, \
             -Subject-Sequence and -Msg-Id; rename it",
        );
    };
    let text = match value {
        HeaderValue::Text(text) => text.clone(),
        HeaderValue::Int(number) => number.to_string(),
        HeaderValue::Bool(_) => return Err("must be a text or a whole number"),
    };
    if *known == TTL {
        if !knows_ttl {
            return Err(
                "needs NATS server 2.11, and this one is older: it would keep the message for ever; upgrade the \
                 server, or leave the header out",
            );
        }
        if !is_ttl(&text) {
            return Err("must be whole seconds, 1 or more, a duration such as `1h30m`, or `never`");
        }
    } else if known.ends_with("Sequence") {
        if text.parse::<u64>().is_err() {
            return Err("must be a sequence number of the stream: a whole number, 0 or more");
        }
    } else if text.is_empty() {
        return Err("is empty; leave it out");
    }
    Ok((known, text))
}

/// As the server reads it: `never`, seconds, or a duration of Go, of at least a second.
fn is_ttl(text: &str) -> bool {
    text == "never" || text.parse::<u32>().is_ok_and(|seconds| seconds > 0) || {
        seconds(text).is_some_and(|seconds| seconds >= 1.0)
    }
}

fn seconds(mut text: &str) -> Option<f64> {
    let mut sum = 0.0;
    while !text.is_empty() {
        let number = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (value, rest) = text.split_at(number);
        let unit = rest
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(rest.len());
        let (unit, rest) = rest.split_at(unit);
        let factor = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        sum += value.parse::<f64>().ok()? * factor;
        text = rest;
    }
    Some(sum)
}

/// Whether a server of this version knows `Nats-TTL`. One whose version cannot be read is taken for new.
pub(super) fn knows_ttl(version: &str) -> bool {
    let mut parts = version.split('.').map(str::parse::<u32>);
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= (2, 11),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> HeaderValue {
        HeaderValue::Text(text.to_owned())
    }

    #[test]
    fn a_message_may_have_a_life_of_its_own() {
        for good in ["1", "60", "never", "1s", "1h30m", "90m", "1.5s", "2000ms"] {
            let sent = checked("nats-ttl", &text(good), true);
            assert_eq!(sent, Ok((TTL, good.to_owned())));
        }
        assert_eq!(
            checked(TTL, &HeaderValue::Int(60), true),
            Ok((TTL, "60".to_owned()))
        );
        assert!(checked(TTL, &HeaderValue::Bool(true), true).is_err());
        for bad in ["", "0", "-1", "soon", "1d", "500ms", "s"] {
            assert!(checked(TTL, &text(bad), true).is_err(), "{bad}");
        }
        // An older server would take no notice.
        assert!(checked(TTL, &text("60"), false).is_err_and(|rule| rule.contains("2.11")));
        for (version, knows) in [
            ("2.9.10", false),
            ("2.10.29", false),
            ("2.11.0-dev", true),
            ("2.12.1", true),
            ("3.0.0", true),
            ("dev", true),
        ] {
            assert_eq!(knows_ttl(version), knows, "{version}");
        }
    }

    #[test]
    fn a_message_may_expect_a_state_of_its_stream() {
        let name = "Nats-Expected-Last-Subject-Sequence";
        assert_eq!(
            checked(&name.to_lowercase(), &HeaderValue::Int(0), false),
            Ok((name, "0".to_owned()))
        );
        assert!(checked(name, &text("first"), false).is_err());
        assert!(checked(name, &HeaderValue::Int(-1), false).is_err());
        assert!(checked("Nats-Expected-Last-Msg-Id", &text(""), false).is_err());
        for reserved in [
            "Nats-Rollup",
            "Nats-Msg-Id",
            "nats-expected-stream",
            "Nats-New",
        ] {
            assert!(checked(reserved, &text("x"), true).is_err(), "{reserved}");
        }
    }
}
