//! Message headers: the event's attributes in binary mode, and the row's transport headers.

use std::borrow::Cow;

use super::encode::HeaderPrefix;
use super::envelope::Envelope;
use super::flat_json::{self, Scalar};
use super::message::HeaderValue;
use crate::error::{Reason, ReasonCode};

/// Headers as a message carries them.
pub(super) type Headers = Vec<(String, HeaderValue)>;

/// Parses the `headers` column: a JSON object of scalars, sorted by name.
///
/// Strings, booleans and 64-bit integers keep their type. Any other number becomes a string with
/// exactly its JSON text, because AMQP's floats could not carry it unchanged. Null is absent.
/// With `binary`, names that begin like a CloudEvents attribute header (in any spelling that
/// receivers know) are refused: they would be read as attributes that nobody validated.
pub(super) fn parse_headers(json: Option<&str>, binary: bool) -> Result<Headers, Reason> {
    let Some(json) = json else {
        return Ok(Vec::new());
    };
    let members = flat_json::parse(json)
        .map_err(|how| Reason::new(ReasonCode::InvalidHeader, format!("column `headers` {how}")))?;
    let mut headers = Vec::with_capacity(members.len());
    for (name, value) in members {
        let refuse = |rule: &str| {
            let shown = flat_json::name(&name);
            Reason::new(ReasonCode::InvalidHeader, format!("header {shown} {rule}"))
        };
        if name.is_empty() {
            return Err(refuse("has an empty name"));
        }
        if binary
            && HeaderPrefix::ALL
                .iter()
                .any(|prefix| starts_with(&name, prefix.as_str()))
        {
            return Err(refuse(
                "is spelled like a CloudEvents attribute header; use `extensions` for event \
                 attributes, or another name",
            ));
        }
        let value = match value {
            Scalar::Null => continue,
            Scalar::Bool(value) => HeaderValue::Bool(value),
            Scalar::Text(text) => HeaderValue::Text(text.into_owned()),
            Scalar::Number(number) => number
                .parse()
                .map_or_else(|_| HeaderValue::Text(number.to_owned()), HeaderValue::Int),
            Scalar::Nested => {
                return Err(refuse(
                    "is an array or object; headers are strings, booleans or numbers",
                ));
            }
        };
        headers.push((name.into_owned(), value));
    }
    Ok(headers)
}

/// Receivers that came from HTTP compare header names without letter case.
fn starts_with(name: &str, prefix: &str) -> bool {
    name.as_bytes()
        .get(..prefix.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
}

/// The attributes of binary mode, in a fixed order, in their canonical string forms.
/// `datacontenttype` is not among them: it is the message's content type.
pub(super) fn attribute_headers(event: &Envelope<'_>, prefix: HeaderPrefix) -> Headers {
    let prefix = prefix.as_str();
    let fixed = [
        ("specversion", Some("1.0")),
        ("id", Some(event.id)),
        ("source", Some(event.source)),
        ("type", Some(event.event_type)),
        ("subject", event.subject),
        ("time", event.time.as_deref()),
        ("dataschema", event.schema),
    ];
    let fixed = fixed
        .into_iter()
        .filter_map(|(name, value)| Some((Cow::Borrowed(name), value?.to_owned())));
    let extensions = event
        .extensions
        .iter()
        .map(|(name, value)| (Cow::Borrowed(name.as_ref()), value.to_text()));
    fixed
        .chain(extensions)
        .map(|(name, value)| (format!("{prefix}{name}"), HeaderValue::Text(value)))
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn scalars_keep_type_and_text() {
        let json = r#"{"z":null,"b":true,"i":-7,"big":12345678901234567890,"f":0.10,"e":1e2,"s":"x","":null}"#;
        let error = parse_headers(Some(json), false).unwrap_err();
        assert_eq!(error.code, ReasonCode::InvalidHeader);
        assert!(error.detail.contains("empty name"), "{error}");

        let headers = parse_headers(Some(&json.replace(r#","":null"#, "")), false).unwrap();
        let text = |value: &str| HeaderValue::Text(value.to_owned());
        let expected = [
            ("b", HeaderValue::Bool(true)),
            ("big", text("12345678901234567890")),
            ("e", text("1e2")),
            ("f", text("0.10")),
            ("i", HeaderValue::Int(-7)),
            ("s", text("x")),
        ];
        assert_eq!(
            headers,
            expected.map(|(name, value)| (name.to_owned(), value))
        );
        assert_eq!(parse_headers(None, true), Ok(vec![]));
    }

    #[test]
    fn nested_values_and_non_objects_are_refused() {
        for (json, part) in [
            (r#"{"CC":["a"]}"#, "header `CC` is an array or object"),
            (r#"{"x":{}}"#, "header `x` is an array or object"),
            ("[]", "column `headers` is not a JSON object"),
            (
                r#"{"x":1,"x":2}"#,
                "column `headers` has the member `x` twice",
            ),
        ] {
            let error = parse_headers(Some(json), false).expect_err(json);
            assert_eq!(error.code, ReasonCode::InvalidHeader);
            assert!(error.detail.contains(part), "{error}");
        }
    }

    #[test]
    fn attribute_spellings_are_reserved_in_binary_mode_only() {
        for name in [
            "ce-id",
            "CE-custom",
            "cloudEvents:type",
            "cloudevents_x",
            "ce-",
        ] {
            let json = format!(r#"{{"{name}":"x"}}"#);
            let error = parse_headers(Some(&json), true).expect_err(name);
            assert!(error.detail.contains(name), "{error}");
            assert!(parse_headers(Some(&json), false).is_ok());
        }
        for name in ["x-ce-id", "ce", "cloudEvents", "é-ce-"] {
            let json = format!(r#"{{"{name}":"x"}}"#);
            assert!(parse_headers(Some(&json), true).is_ok(), "{name}");
        }
    }
}
