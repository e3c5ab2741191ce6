//! The lexical rules of CloudEvents 1.0.2: what a string, a URI and a media type may look like.
//!
//! Each rule answers with the sentence that says how it was broken, never with the value.

use fluent_uri::{Uri, UriRef};

/// Names that an extension may not take: the context attributes and the payload member.
const RESERVED: [&str; 9] = [
    "data",
    "datacontenttype",
    "dataschema",
    "id",
    "source",
    "specversion",
    "subject",
    "time",
    "type",
];

/// Longest extension name, so that the longest header prefix (`cloudEvents:`) and the name fit in
/// the 255 bytes of an AMQP short string. The same in every mode, so that changing the mode never
/// changes which rows are valid.
const EXTENSION_NAME_MAX: usize = 255 - "cloudEvents:".len();

/// Checks the CloudEvents `String` type: no control characters and no noncharacters.
pub(super) fn check_string(value: &str) -> Result<(), &'static str> {
    let allowed = if value.is_ascii() {
        value.bytes().all(|b| (0x20..0x7f).contains(&b))
    } else {
        value.chars().all(is_allowed)
    };
    if allowed {
        Ok(())
    } else {
        Err(
            "contains a control character (U+0000-U+001F, U+007F-U+009F) or a Unicode noncharacter; \
             remove it",
        )
    }
}

fn is_allowed(c: char) -> bool {
    let noncharacter = matches!(c, '\u{FDD0}'..='\u{FDEF}') || (c as u32) & 0xFFFE == 0xFFFE;
    !c.is_control() && !noncharacter
}

/// The text with a space for each character that [`check_string`] refuses.
pub(super) fn cleaned(value: &str) -> String {
    let clean = |c| if is_allowed(c) { c } else { ' ' };
    value.chars().map(clean).collect()
}

/// Checks a string that must say something.
pub(super) fn check_non_empty_string(value: &str) -> Result<(), &'static str> {
    if value.is_empty() {
        return Err("is empty");
    }
    check_string(value)
}

/// Checks an RFC 3986 URI-reference: absolute or relative, non-empty.
pub(super) fn check_uri_reference(value: &str) -> Result<(), &'static str> {
    if value.is_empty() {
        return Err("is empty");
    }
    match UriRef::parse(value) {
        Ok(_) => Ok(()),
        Err(_) => Err(
            "is not a URI-reference (RFC 3986); percent-encode spaces and non-ASCII characters, \
             for example `/orders/eu%20west`",
        ),
    }
}

/// Checks an RFC 3986 URI, which has a scheme.
///
/// CloudEvents refers to section 4.3 of the RFC, which knows no fragment. A fragment is accepted
/// nevertheless, because schema identifiers use it (`https://example.com/order.json#/line`) and
/// every SDK accepts it.
pub(super) fn check_uri(value: &str) -> Result<(), &'static str> {
    if value.is_empty() {
        return Err("is empty");
    }
    match Uri::parse(value) {
        Ok(_) => Ok(()),
        Err(_) => Err(
            "is not an absolute URI (RFC 3986); begin with a scheme, for example \
             `https://example.com/schemas/order.json`",
        ),
    }
}

/// Checks the name of an extension attribute.
///
/// The specification recommends at most 20 characters but does not demand it.
pub(super) fn check_extension_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("has an empty name");
    }
    if name.len() > EXTENSION_NAME_MAX {
        return Err("has a name longer than 243 characters; 20 or fewer are recommended");
    }
    if !name
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    {
        return Err("has a name with characters other than lower-case a-z and 0-9; rename it");
    }
    if RESERVED.contains(&name) {
        return Err("has the name of a CloudEvents attribute; use the column of that attribute");
    }
    Ok(())
}

/// Parses an RFC 2046 media type and says whether it declares JSON: `*/json` or `*/*+json`,
/// whatever its parameters and letter case.
pub(super) fn media_type_is_json(value: &str) -> Result<bool, &'static str> {
    if value.is_empty() {
        return Err("is empty");
    }
    parse_media_type(value)
        .ok_or("is not a media type (RFC 2046), for example `application/json` or `text/plain; charset=utf-8`")
}

fn parse_media_type(value: &str) -> Option<bool> {
    let (_, rest) = token(value)?;
    let (sub, rest) = token(rest.strip_prefix('/')?)?;
    parse_parameters(rest)?;
    let json_suffix = sub
        .len()
        .checked_sub("+json".len())
        // The suffix is cut out as bytes: tokens are ASCII, so any offset is a boundary.
        .is_some_and(|at| sub.as_bytes()[at..].eq_ignore_ascii_case(b"+json"));
    Some(sub.eq_ignore_ascii_case("json") || json_suffix)
}

fn parse_parameters(mut rest: &str) -> Option<()> {
    loop {
        rest = rest.trim_start_matches([' ', '\t']);
        if rest.is_empty() {
            return Some(());
        }
        rest = rest.strip_prefix(';')?.trim_start_matches([' ', '\t']);
        if rest.is_empty() {
            // A trailing semicolon is common in the wild and harmless.
            return Some(());
        }
        let (_, after) = token(rest)?;
        let after = after.strip_prefix('=')?;
        rest = match after.strip_prefix('"') {
            Some(quoted) => skip_quoted(quoted)?,
            None => token(after)?.1,
        };
    }
}

/// Splits off an RFC 2045 token: printable ASCII without spaces and special characters.
fn token(text: &str) -> Option<(&str, &str)> {
    let is_token = |b: u8| b.is_ascii_graphic() && !br#"()<>@,;:\"/[]?="#.contains(&b);
    let end = text
        .bytes()
        .position(|b| !is_token(b))
        .unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

/// The rest after a quoted string whose opening quote is already consumed.
fn skip_quoted(text: &str) -> Option<&str> {
    let mut bytes = text.bytes().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' => return Some(&text[at + 1..]),
            b'\\' => {
                let (_, escaped) = bytes.next()?;
                if !(0x20..0x7f).contains(&escaped) {
                    return None;
                }
            }
            0x20..0x7f | b'\t' => {}
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_exclude_controls_and_noncharacters() {
        for good in [
            "",
            "a b",
            "~",
            "é",
            "\u{a0}",
            "日本",
            "\u{fdcf}",
            "\u{fdf0}",
            "\u{1f600}",
        ] {
            assert!(check_string(good).is_ok(), "{good:?}");
        }
        for bad in [
            "\0",
            "a\nb",
            "\t",
            "\u{1f}",
            "\u{7f}",
            "\u{80}",
            "é\u{9f}",
            "\u{fdd0}",
            "\u{fdef}",
            "\u{fffe}",
            "\u{ffff}",
            "\u{1fffe}",
            "\u{10ffff}",
        ] {
            assert!(check_string(bad).is_err(), "{bad:?}");
        }
        assert!(check_non_empty_string("").is_err());
    }

    #[test]
    fn sources_are_uri_references() {
        for good in [
            "/orders",
            "#fragment",
            "//authority/path",
            "https://cloudevents.io",
            "urn:uuid:6e8bc430",
            "mailto:a@b.c",
            "orders",
            "1-555-123-4567",
            "?q",
            "https://[::1]:8080/x",
        ] {
            assert!(check_uri_reference(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            " ",
            "a b",
            "http://[",
            "%zz",
            "é",
            "a\\b",
            "<x>",
            "1:x",
            "http://h:port/",
        ] {
            assert!(check_uri_reference(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn schemas_are_absolute() {
        for good in [
            "https://cloudevents.io/dataschema",
            "urn:x:y",
            "https://h/s.json#/a",
        ] {
            assert!(check_uri(good).is_ok(), "{good}");
        }
        for bad in ["", "/relative", "#f", "//h/p", "https://h/a b"] {
            assert!(check_uri(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn extension_names() {
        let longest = "a".repeat(243);
        for good in [
            "a",
            "0",
            "traceparent",
            "partitionkey",
            "abcdefghijklmnopqrstuvwxyz",
            &longest,
        ] {
            assert!(check_extension_name(good).is_ok(), "{good}");
        }
        let too_long = "a".repeat(244);
        for bad in [
            "",
            "MyExtension",
            "my.extension",
            "my_ext",
            "my-ext",
            "é",
            "id",
            "time",
            "data",
            "data_base64",
            "specversion",
            "a b",
            &too_long,
        ] {
            assert!(check_extension_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn media_types_and_json() {
        for (value, json) in [
            ("application/json", true),
            ("text/json", true),
            ("Application/JSON", true),
            ("application/vnd.order.v1+JSON; charset=utf-8", true),
            ("application/json;charset=\"utf\\\"8\"", true),
            ("application/json ; a=b;c=d", true),
            ("application/json;", true),
            ("x/+json", true),
            ("text/plain", false),
            ("application/xml", false),
            ("application/jsonlines", false),
            ("application/json+xml", false),
            ("json/xml", false),
            ("application/x-protobuf; proto=\"a.B\"", false),
        ] {
            assert_eq!(media_type_is_json(value), Ok(json), "{value}");
        }
        for bad in [
            "",
            "xyz",
            "/",
            "a/",
            "/b",
            "a/b/c",
            "a b/c",
            "a/b c",
            "a/b; c",
            "a/b; c=",
            "a/b; =d",
            "a/b; c=\"d",
            "a/b; c=\"d\\",
            "é/b",
            "a/b\n",
            " a/b",
            "a/b;c=\"\n\"",
            "a/b,c/d",
        ] {
            assert!(media_type_is_json(bad).is_err(), "{bad:?}");
        }
    }
}
