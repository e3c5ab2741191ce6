//! What the CloudEvents bindings of several protocols have in common.

use std::borrow::Cow;

use crate::event::{HeaderValue, Message, REASON_HEADER};

/// Prefix of attribute headers in the bindings of HTTP and NATS.
pub(super) const ATTRIBUTE: &str = "ce-";

/// A header that only an attribute in binary mode has.
const SPEC_VERSION: &str = "ce-specversion";

/// Whether the message is an event in binary mode: attributes in headers, payload as body.
pub(super) fn is_binary(message: &Message) -> bool {
    message.headers.iter().any(|(name, _)| name == SPEC_VERSION)
}

/// Whether the message is the dead letter of an event.
pub(super) fn is_dead_letter(message: &Message) -> bool {
    message
        .headers
        .iter()
        .any(|(name, _)| name == REASON_HEADER)
}

/// What a repetition can be recognised by: source and id, the identity of an event, both percent-encoded.
///
/// The id alone will not do: a receiver may get events of several sources, and would drop one of two equal ids.
/// Several events in one message have no identity, since they may be grouped otherwise the next time. Nor
/// has a dead letter, which would otherwise swallow the event itself if that is retried.
pub(super) fn identity(message: &Message) -> Option<String> {
    (message.seqs.len() == 1 && !is_dead_letter(message)).then(|| {
        let (source, id) = (
            percent_encoded(&message.source),
            percent_encoded(&message.id),
        );
        format!("{source} {id}")
    })
}

/// A header's value as text. Attributes are percent-encoded, as the bindings demand; others stay as they are.
pub(super) fn header_text<'a>(name: &str, value: &'a HeaderValue) -> Cow<'a, str> {
    match value {
        HeaderValue::Text(text) if name.starts_with(ATTRIBUTE) => percent_encoded(text),
        HeaderValue::Text(text) => Cow::Borrowed(text),
        HeaderValue::Bool(flag) => Cow::Borrowed(if *flag { "true" } else { "false" }),
        HeaderValue::Int(number) => Cow::Owned(number.to_string()),
    }
}

/// Space, double quote, percent, and all that is not printable ASCII, as `%XY`.
pub(super) fn percent_encoded(text: &str) -> Cow<'_, str> {
    let plain = |byte: u8| matches!(byte, 0x21..=0x7e) && byte != b'"' && byte != b'%';
    if text.bytes().all(plain) {
        return Cow::Borrowed(text);
    }
    let mut encoded = String::with_capacity(text.len() + 16);
    for byte in text.bytes() {
        if plain(byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push('%');
            for digit in [byte >> 4, byte & 15] {
                encoded.push(char::from(b"0123456789ABCDEF"[usize::from(digit)]));
            }
        }
    }
    Cow::Owned(encoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_specification() {
        assert_eq!(
            percent_encoded("Euro € 😀"),
            "Euro%20%E2%82%AC%20%F0%9F%98%80"
        );
        assert_eq!(percent_encoded("a\"b%c\u{7f}~!"), "a%22b%25c%7F~!");
        assert!(matches!(percent_encoded("/plain-1.0"), Cow::Borrowed(_)));
    }

    #[test]
    fn only_attributes_are_encoded() {
        let text = HeaderValue::Text("a b".into());
        assert_eq!(header_text("ce-subject", &text), "a%20b");
        assert_eq!(header_text("x-note", &text), "a b");
        assert_eq!(header_text("x", &HeaderValue::Bool(true)), "true");
        assert_eq!(header_text("x", &HeaderValue::Int(-3)), "-3");
    }
}
