//! From [`Message`] to a request, as the CloudEvents HTTP binding says.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue,
    USER_AGENT,
};
use hyper::{Method, Request};

use super::target::Target;
use crate::error::{Reason, ReasonCode};
use crate::event::Message;
use crate::sink::binding::{header_text, identity};

/// What a service may recognise a repetition by.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// Headers that frame the request or say who we are; a row cannot set them.
const RESERVED: [&str; 13] = [
    "authorization",
    "connection",
    "content-length",
    "content-type",
    "expect",
    "host",
    "idempotency-key",
    "keep-alive",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Builds the request for `message`, or says why it can never be sent.
pub(super) fn prepare(
    message: &Message,
    target: &Target,
    max_message_size: usize,
) -> Result<Request<Full<Bytes>>, Reason> {
    let size = message.body.len();
    if size > max_message_size {
        return Err(Reason::new(
            ReasonCode::TooLarge,
            format!(
                "the body has {size} bytes, more than OUTRIGGER_HTTP_MAX_MESSAGE_SIZE allows ({max_message_size} \
                 bytes); raise it, or publish a reference instead of the data"
            ),
        ));
    }
    let path = target.path_to(&message.destination).ok_or_else(|| {
        Reason::new(
            ReasonCode::InvalidRoute,
            "the destination is no path below OUTRIGGER_HTTP_URL: it has an empty part, `.` or `..`",
        )
    })?;
    let mut request = Request::new(Full::new(message.body.clone()));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = path.parse().map_err(|_| {
        Reason::new(
            ReasonCode::InvalidRoute,
            format!(
                "the destination makes a path of {} bytes that is no URI",
                path.len()
            ),
        )
    })?;
    let headers = request.headers_mut();
    headers.insert(HOST, target.authority.clone());
    // Also of an empty body: some servers insist.
    headers.insert(CONTENT_LENGTH, HeaderValue::from(size));
    let agent = concat!("outrigger/", env!("CARGO_PKG_VERSION"));
    headers.insert(USER_AGENT, HeaderValue::from_static(agent));
    if let Some(authorization) = &target.authorization {
        headers.insert(AUTHORIZATION, authorization.clone());
    }
    if let Some(content_type) = &message.content_type {
        headers.insert(CONTENT_TYPE, value("content-type", content_type)?);
    }
    if let Some(identity) = identity(message) {
        // A string of structured headers; nothing in it needs escaping once it is percent-encoded, but a backslash.
        let quoted = format!("\"{}\"", identity.replace('\\', "%5C"));
        headers.insert(IDEMPOTENCY_KEY, value(IDEMPOTENCY_KEY, &quoted)?);
    }
    for (name, header) in &message.headers {
        add(headers, name, &header_text(name, header))?;
    }
    Ok(request)
}

/// A header that a row has brought, or an attribute.
fn add(headers: &mut HeaderMap, name: &str, text: &str) -> Result<(), Reason> {
    let refuse = |rule: &str| {
        let detail = format!("header `{}` {rule}", name.escape_debug());
        Reason::new(ReasonCode::InvalidHeader, detail)
    };
    let Ok(header) = HeaderName::from_bytes(name.as_bytes()) else {
        return Err(refuse("has a name that HTTP cannot carry"));
    };
    if RESERVED.contains(&header.as_str()) {
        return Err(refuse(
            "is set by the relay or belongs to the connection; rename it",
        ));
    }
    if headers.contains_key(&header) {
        return Err(refuse("is there twice, apart from upper and lower case"));
    }
    if text.trim() != text {
        return Err(refuse(
            "has a value with white space at its ends, which would be lost",
        ));
    }
    headers.insert(header, value(name, text)?);
    Ok(())
}

fn value(name: &str, text: &str) -> Result<HeaderValue, Reason> {
    HeaderValue::from_bytes(text.as_bytes()).map_err(|_| {
        Reason::new(
            ReasonCode::InvalidHeader,
            format!(
                "header `{}` has control characters in its value, which HTTP cannot carry",
                name.escape_debug()
            ),
        )
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::event::HeaderValue as Value;
    use crate::event::encode::STRUCTURED;
    use crate::sink::stdout::tests::message as any_message;

    fn message() -> Message {
        Message {
            headers: Vec::new(),
            content_type: Some(STRUCTURED.into()),
            ..any_message(b"{}")
        }
    }

    fn target() -> Target {
        let authorization = "Bearer t".into();
        Target::parse(&"https://h/hooks".into(), Some(&authorization)).unwrap()
    }

    #[test]
    fn a_request_carries_the_event() {
        let sent = Message {
            headers: vec![
                ("ce-subject".into(), Value::Text("ü 1".into())),
                ("X-Tenant".into(), Value::Text("blau".into())),
                ("x-try".into(), Value::Int(2)),
            ],
            ..message()
        };
        let request = prepare(&sent, &target(), 100).unwrap();
        assert_eq!(request.method(), Method::POST);
        assert_eq!(request.uri(), "/hooks/events");
        let header = |name: &str| request.headers()[name].to_str().unwrap();
        assert_eq!(header("host"), "h");
        assert_eq!(header("authorization"), "Bearer t");
        assert_eq!(header("content-type"), STRUCTURED);
        assert_eq!(header("idempotency-key"), "\"/s id-1\"");
        assert_eq!(header("ce-subject"), "%C3%BC%201");
        assert_eq!(header("x-tenant"), "blau");
        assert_eq!(header("x-try"), "2");
    }

    #[test]
    fn what_http_cannot_carry_is_refused() {
        for (name, text, part) in [
            ("", "x", "name"),
            ("a b", "x", "name"),
            ("ü", "x", "name"),
            ("Authorization", "Bearer other", "rename"),
            ("Content-Length", "0", "rename"),
            ("a", "x\r\ny", "control characters"),
            ("a", " x", "ends"),
        ] {
            let headers = vec![(name.to_owned(), Value::Text(text.into()))];
            let reason = prepare(
                &Message {
                    headers,
                    ..message()
                },
                &target(),
                100,
            )
            .unwrap_err();
            assert_eq!(reason.code, ReasonCode::InvalidHeader);
            assert!(reason.detail.contains(part), "{reason}");
        }
        let twice = ["a", "A"].map(|name| (name.to_owned(), Value::Bool(true)));
        let headers = twice.to_vec();
        let reason = prepare(
            &Message {
                headers,
                ..message()
            },
            &target(),
            100,
        )
        .unwrap_err();
        assert!(reason.detail.contains("twice"), "{reason}");
        let destination = "../admin".to_owned();
        let reason = prepare(
            &Message {
                destination,
                ..message()
            },
            &target(),
            100,
        )
        .unwrap_err();
        assert_eq!(reason.code, ReasonCode::InvalidRoute);
        let reason = prepare(&message(), &target(), 1).unwrap_err();
        assert_eq!(reason.code, ReasonCode::TooLarge);
    }
}
