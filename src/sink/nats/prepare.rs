//! From [`Message`] to subject and headers, with every limit checked *before* publishing.
//!
//! What breaks the protocol ends the connection for everybody (a line that is too long), or makes the
//! server do something else than store an event (its own subjects and headers). It is refused here, alone
//! and with a reason.

use async_nats::{HeaderMap, HeaderName, HeaderValue};

use super::commands;
use crate::error::{Reason, ReasonCode};
use crate::event::Message;
use crate::sink::binding::{header_text, identity, is_binary, is_dead_letter, percent_encoded};

/// A protocol line has at most 4096 bytes, unless the server is told otherwise. It holds the subject, the inbox of
/// the answer and two sizes.
const SUBJECT_MAX: usize = 3500;

/// JetStream's limit for all headers of a message.
const HEADERS_MAX: usize = 64 * 1024 - 1;

/// The server's limit for names of streams.
const STREAM_MAX: usize = 255;

/// Subjects that command the server, or belong to somebody waiting for an answer.
const RESERVED: [&str; 3] = ["$JS.", "$SYS.", "_INBOX."];

const STRUCTURED_TYPE: &str = "Content-Type";
const BINARY_TYPE: &str = "ce-datacontenttype";

/// A message ready to be sent.
#[derive(Debug, Clone)]
pub(super) struct Prepared {
    /// Position in the batch.
    pub(super) index: usize,
    pub(super) headers: HeaderMap,
    /// Headers and body, in bytes.
    pub(super) size: usize,
}

/// What the server can do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Server {
    /// Its limit for headers and body together, in bytes.
    pub(super) max_payload: usize,
    /// Whether it knows the header `Nats-TTL`.
    pub(super) knows_ttl: bool,
}

/// Builds the headers of `message`, or says why NATS can never take it.
pub(super) fn prepare(index: usize, message: &Message, server: Server) -> Result<Prepared, Reason> {
    check_stream(&message.destination)?;
    check_subject(&message.routing_key)?;
    let mut headers = Headers::new();
    if !message.destination.is_empty() {
        headers.own("Nats-Expected-Stream", &message.destination);
    }
    if let Some(id) = identity(message) {
        headers.own("Nats-Msg-Id", &id);
    }
    if let Some(content_type) = &message.content_type {
        match is_binary(message) {
            true => headers.own(BINARY_TYPE, &percent_encoded(content_type)),
            false => headers.own(STRUCTURED_TYPE, content_type),
        }
    }
    for (name, value) in &message.headers {
        if commands::is_command(name) {
            // A dead letter must not meet the fate of its event again.
            if !is_dead_letter(message) {
                let (name, value) = commands::checked(name, value, server.knows_ttl)
                    .map_err(|rule| refusal(name, rule))?;
                headers.row(name, &value)?;
            }
        } else {
            headers.row(name, &header_text(name, value))?;
        }
    }
    if headers.size > HEADERS_MAX {
        return Err(Reason::new(
            ReasonCode::InvalidHeader,
            format!(
                "the headers take {} bytes, more than the {HEADERS_MAX} that JetStream carries; move data from \
                 the headers into the body",
                headers.size
            ),
        ));
    }
    let size = headers.size + message.body.len();
    let max_payload = server.max_payload;
    if size > max_payload {
        return Err(Reason::new(
            ReasonCode::TooLarge,
            format!(
                "the message has {size} bytes with its headers, more than the server's `max_payload` of \
                 {max_payload}; raise it, or publish a reference instead of the data"
            ),
        ));
    }
    Ok(Prepared {
        index,
        headers: headers.map,
        size,
    })
}

fn check_stream(name: &str) -> Result<(), Reason> {
    let bad = |c: char| c.is_whitespace() || c.is_control() || ".*>/\\".contains(c);
    if name.len() <= STREAM_MAX && !name.contains(bad) {
        return Ok(());
    }
    Err(Reason::new(
        ReasonCode::InvalidRoute,
        format!(
            "the destination cannot be the name of a stream: at most {STREAM_MAX} bytes, without spaces and `. * > / \\`"
        ),
    ))
}

fn check_subject(subject: &str) -> Result<(), Reason> {
    let problem = if subject.is_empty() {
        "is empty".to_owned()
    } else if subject.len() > SUBJECT_MAX {
        format!("has {} bytes, more than {SUBJECT_MAX}", subject.len())
    } else if subject.contains(|c: char| c.is_whitespace() || c.is_control()) {
        "contains white space".to_owned()
    } else if subject.split('.').any(str::is_empty) {
        "has an empty part; parts are separated by single dots".to_owned()
    } else if subject.split('.').any(|token| token == "*" || token == ">") {
        "contains a wildcard".to_owned()
    } else if let Some(prefix) = RESERVED.iter().find(|prefix| subject.starts_with(**prefix)) {
        format!("begins with `{prefix}`, which is reserved for the server")
    } else {
        return Ok(());
    };
    Err(Reason::new(
        ReasonCode::InvalidRoute,
        format!("the routing key cannot be a subject: it {problem}"),
    ))
}

fn refusal(name: &str, rule: &str) -> Reason {
    let detail = format!("header `{}` {rule}", name.escape_debug());
    Reason::new(ReasonCode::InvalidHeader, detail)
}

/// A header map and its encoded size.
struct Headers {
    map: HeaderMap,
    size: usize,
}

impl Headers {
    fn new() -> Self {
        Self {
            map: HeaderMap::new(),
            // Version line and the empty line at the end.
            size: "NATS/1.0\r\n\r\n".len(),
        }
    }

    fn own(&mut self, name: &'static str, value: &str) {
        self.size += name.len() + value.len() + ": \r\n".len();
        self.map.insert(HeaderName::from_static(name), value);
    }

    /// A header that a row has brought.
    fn row(&mut self, name: &str, value: &str) -> Result<(), Reason> {
        let refuse = |rule: &str| refusal(name, rule);
        let printable = |byte: u8| byte.is_ascii_graphic() && byte != b':';
        if name.is_empty() || !name.bytes().all(printable) {
            return Err(refuse(
                "has a name that NATS cannot carry: printable ASCII without spaces and colons",
            ));
        }
        if name.eq_ignore_ascii_case(STRUCTURED_TYPE) || name.eq_ignore_ascii_case(BINARY_TYPE) {
            return Err(refuse("is set by the relay; remove it"));
        }
        if value.trim() != value {
            return Err(refuse(
                "has a value with white space at its ends, which would be lost",
            ));
        }
        let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse::<HeaderValue>())
        else {
            return Err(refuse(
                "has a value with a line break, which NATS cannot carry",
            ));
        };
        self.size += AsRef::<str>::as_ref(&name).len() + value.as_str().len() + ": \r\n".len();
        self.map.insert(name, value);
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use crate::event::encode::STRUCTURED;
    use crate::event::{HeaderValue as Value, REASON_HEADER};
    use crate::sink::stdout::tests::message as any_message;

    fn server(max_payload: usize) -> Server {
        Server {
            max_payload,
            knows_ttl: false,
        }
    }

    fn message() -> Message {
        Message {
            headers: Vec::new(),
            content_type: Some(STRUCTURED.into()),
            ..any_message(b"{}")
        }
    }

    fn header(message: &Message, name: &str) -> Option<String> {
        let prepared = prepare(0, message, server(1 << 20)).unwrap();
        prepared.headers.get(name).map(|value| value.to_string())
    }

    #[track_caller]
    fn refused(message: &Message, code: ReasonCode, part: &str) {
        let reason = prepare(0, message, server(1024)).unwrap_err();
        assert_eq!(reason.code, code, "{reason}");
        assert!(reason.detail.contains(part), "{reason} lacks {part:?}");
    }

    #[test]
    fn an_event_is_known_by_source_and_id() {
        assert_eq!(
            header(&message(), "Nats-Msg-Id").as_deref(),
            Some("/s id-1")
        );
        assert_eq!(
            header(&message(), "Nats-Expected-Stream").as_deref(),
            Some("events")
        );
        let several = Message {
            seqs: vec![1, 2],
            ..message()
        };
        assert_eq!(header(&several, "Nats-Msg-Id"), None);
        let dead = Message {
            headers: vec![(REASON_HEADER.into(), Value::Text("nack".into()))],
            ..message()
        };
        assert_eq!(header(&dead, "Nats-Msg-Id"), None);
        let anywhere = Message {
            destination: String::new(),
            ..message()
        };
        assert_eq!(header(&anywhere, "Nats-Expected-Stream"), None);
    }

    #[test]
    fn the_content_type_tells_the_mode() {
        let structured = message().content_type;
        assert_eq!(header(&message(), "Content-Type"), structured);
        let binary = Message {
            headers: vec![("ce-specversion".into(), Value::Text("1.0".into()))],
            content_type: Some("text/plain; charset=utf-8".into()),
            ..message()
        };
        assert_eq!(header(&binary, "Content-Type"), None);
        assert_eq!(
            header(&binary, "ce-datacontenttype").as_deref(),
            Some("text/plain;%20charset=utf-8")
        );
    }

    #[test]
    fn what_is_no_route_is_refused() {
        let route = ReasonCode::InvalidRoute;
        for (subject, part) in [
            ("", "empty"),
            ("a b", "white space"),
            ("a\r\nPUB x", "white space"),
            ("a..b", "empty part"),
            (".a", "empty part"),
            ("a.*", "wildcard"),
            ("a.>", "wildcard"),
            ("$JS.API.STREAM.DELETE.E", "reserved"),
            ("_INBOX.x", "reserved"),
        ] {
            let routing_key = subject.to_owned();
            refused(
                &Message {
                    routing_key,
                    ..message()
                },
                route,
                part,
            );
        }
        let routing_key = "s".repeat(SUBJECT_MAX + 1);
        refused(
            &Message {
                routing_key,
                ..message()
            },
            route,
            "3501 bytes",
        );
        for name in ["a.b", "a b", "a*", "a/b"] {
            let destination = name.to_owned();
            refused(
                &Message {
                    destination,
                    ..message()
                },
                route,
                "name of a stream",
            );
        }
        let fine = Message {
            routing_key: "/services/orders.a*b.ü.$KV".into(),
            ..message()
        };
        prepare(0, &fine, server(1024)).unwrap();
    }

    #[test]
    fn what_is_no_header_is_refused() {
        for (name, value, part) in [
            ("", "x", "printable"),
            ("a b", "x", "printable"),
            ("a:b", "x", "printable"),
            ("ü", "x", "printable"),
            ("Nats-Rollup", "all", "reserved"),
            ("nats-msg-id", "x", "reserved"),
            ("content-type", "x", "set by the relay"),
            ("a", "x\ny", "line break"),
            ("a", " x", "ends"),
        ] {
            let headers = vec![(name.to_owned(), Value::Text(value.into()))];
            refused(
                &Message {
                    headers,
                    ..message()
                },
                ReasonCode::InvalidHeader,
                part,
            );
        }
        let headers = vec![("h".to_owned(), Value::Text("x".repeat(HEADERS_MAX)))];
        refused(
            &Message {
                headers,
                ..message()
            },
            ReasonCode::InvalidHeader,
            "65535",
        );
    }

    #[test]
    fn a_row_may_command_what_concerns_its_message() {
        let name = "Nats-Expected-Last-Subject-Sequence";
        let mut message = Message {
            headers: vec![(name.to_lowercase(), Value::Int(7))],
            ..message()
        };
        assert_eq!(header(&message, name).as_deref(), Some("7"));
        let reason = (REASON_HEADER.to_owned(), Value::Text("other".into()));
        message.headers.push(reason);
        message
            .headers
            .push(("Nats-Rollup".into(), Value::Text("all".into())));
        assert_eq!(header(&message, name), None, "a dead letter");
        assert_eq!(header(&message, "Nats-Rollup"), None);
    }

    #[test]
    fn headers_and_body_share_the_limit() {
        let overhead = prepare(0, &message(), server(1024)).unwrap().size - 2;
        let body = |size: usize| Message {
            body: vec![b'x'; size].into(),
            ..message()
        };
        prepare(0, &body(1024 - overhead), server(1024)).unwrap();
        refused(&body(1025 - overhead), ReasonCode::TooLarge, "max_payload");
    }
}
