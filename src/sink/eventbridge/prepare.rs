//! A message becomes an entry of PutEvents, or is refused for what EventBridge cannot carry.

use aws_sdk_eventbridge::primitives::DateTime;
use aws_sdk_eventbridge::types::PutEventsRequestEntry;

use crate::error::{Reason, ReasonCode};
use crate::event::{HeaderValue, Message};

/// The header of a row that becomes `Resources`, comma separated.
const RESOURCES: &str = "resources";

/// The header of a row that becomes `TraceHeader`.
const TRACE: &str = "x-amzn-trace-id";

const BUS_MAX: usize = 1600;
const SOURCE_MAX: usize = 256;
const DETAIL_TYPE_MAX: usize = 128;
const TRACE_MAX: usize = 500;

/// What AWS counts for the time.
const TIME_SIZE: usize = 14;

/// An entry that can be sent.
#[derive(Debug, Clone)]
pub(super) struct Prepared {
    /// Its place in the batch.
    pub(super) index: usize,
    pub(super) entry: PutEventsRequestEntry,
    /// As AWS counts it.
    pub(super) size: usize,
}

/// `limit` is what an entry must stay below.
pub(super) fn prepare(index: usize, message: &Message, limit: usize) -> Result<Prepared, Reason> {
    let bus = &message.destination;
    if !is_bus(bus) {
        return Err(Reason::new(
            ReasonCode::InvalidRoute,
            "the destination is not the name or ARN of an event bus: letters, digits, `.`, `-`, `_` and `/`",
        ));
    }
    let detail_type = &message.routing_key;
    within(
        detail_type,
        DETAIL_TYPE_MAX,
        ReasonCode::InvalidRoute,
        "the detail-type (the routing key)",
    )?;
    let source = &message.source;
    within(source, SOURCE_MAX, ReasonCode::InvalidEvent, "the source")?;
    if source.starts_with("aws.") {
        return Err(Reason::new(
            ReasonCode::InvalidEvent,
            "sources that begin with `aws.` belong to AWS",
        ));
    }
    let detail = std::str::from_utf8(&message.body)
        .ok()
        .filter(|text| text.trim_start().starts_with('{'))
        .ok_or_else(|| Reason::new(ReasonCode::InvalidEvent, "the detail is not a JSON object"))?;
    let resources = match text_of(message, RESOURCES)? {
        Some(list) => {
            let names = list.split(',').map(|name| name.trim().to_owned());
            names.filter(|name| !name.is_empty()).collect()
        }
        None => Vec::new(),
    };
    let trace = text_of(message, TRACE)?;
    if let Some(trace) = trace {
        within(
            trace,
            TRACE_MAX,
            ReasonCode::InvalidHeader,
            "the header `x-amzn-trace-id`",
        )?;
    }
    let time = message
        .time
        .map(|time| DateTime::from_secs(time.as_second()));
    let size = time.map_or(0, |_| TIME_SIZE)
        + source.len()
        + detail_type.len()
        + detail.len()
        + resources.iter().map(String::len).sum::<usize>();
    if size >= limit {
        return Err(Reason::new(
            ReasonCode::TooLarge,
            format!(
                "the entry has {size} bytes and must stay below {limit} (OUTRIGGER_EVENTBRIDGE_MAX_REQUEST_SIZE)"
            ),
        ));
    }
    let entry = PutEventsRequestEntry::builder()
        .set_event_bus_name(Some(bus.clone()).filter(|bus| !bus.is_empty()))
        .source(source)
        .detail_type(detail_type)
        .detail(detail)
        .set_time(time)
        .set_resources(Some(resources).filter(|list| !list.is_empty()))
        .set_trace_header(trace.map(str::to_owned))
        .build();
    Ok(Prepared { index, entry, size })
}

/// An empty name is the account's default bus.
fn is_bus(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/.-_".contains(&byte);
    // A name has no colon, an ARN has five.
    let mut bytes = name.bytes();
    let named = match name.starts_with("arn:") {
        true => bytes.all(|byte| plain(byte) || byte == b':') && name.contains(":event-bus/"),
        false => bytes.all(plain),
    };
    named && name.len() <= BUS_MAX
}

fn within(text: &str, most: usize, code: ReasonCode, what: &str) -> Result<(), Reason> {
    let length = text.chars().count();
    if (1..=most).contains(&length) {
        return Ok(());
    }
    Err(Reason::new(
        code,
        format!("{what} has {length} characters; EventBridge takes 1 to {most}"),
    ))
}

fn text_of<'a>(message: &'a Message, wanted: &str) -> Result<Option<&'a str>, Reason> {
    let header = message.headers.iter();
    let mut header = header.filter(|(name, _)| name.eq_ignore_ascii_case(wanted));
    match header.next() {
        None => Ok(None),
        Some((_, HeaderValue::Text(text))) => Ok(Some(text)),
        Some(_) => Err(Reason::new(
            ReasonCode::InvalidHeader,
            format!("the header `{wanted}` is not a text"),
        )),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn message() -> Message {
        Message {
            seqs: vec![1],
            destination: "orders".into(),
            routing_key: "placed".into(),
            body: "{}".into(),
            content_type: None,
            headers: Vec::new(),
            id: "1".into(),
            event_type: "placed".into(),
            time: None,
            expires_in: None,
            correlation_id: None,
            source: "/shop".into(),
            key: None,
        }
    }

    #[test]
    fn the_size_is_what_aws_counts() {
        let mut message = message();
        let size = |message: &Message| prepare(0, message, 1000).unwrap().size;
        assert_eq!(size(&message), "/shop".len() + "placed".len() + "{}".len());
        message.time = Some("2026-01-02T03:04:05.6Z".parse().unwrap());
        assert_eq!(size(&message), 13 + 14);
        let list = HeaderValue::Text("arn:a, ,arn:ü".into());
        message.headers = vec![("Resources".into(), list)];
        let trace = HeaderValue::Text("Root=1".into());
        message.headers.push(("X-Amzn-Trace-Id".into(), trace));
        assert_eq!(size(&message), 27 + "arn:a".len() + "arn:ü".len());
        let entry = prepare(0, &message, 39).unwrap().entry;
        assert_eq!(entry.resources(), ["arn:a", "arn:ü"]);
        assert_eq!(entry.trace_header(), Some("Root=1"));
        assert_eq!(entry.time().unwrap().secs(), 1_767_323_045);
        let large = prepare(0, &message, 38).unwrap_err();
        assert_eq!(large.code, ReasonCode::TooLarge);
    }

    #[test]
    fn a_bus_is_a_name_or_an_arn() {
        let arn = "arn:aws:events:eu-west-1:123456789012:event-bus/orders";
        for good in ["", "default", "aws.partner/shop.test/1", arn] {
            assert!(is_bus(good), "{good}");
        }
        let queue = "arn:aws:sqs:eu-west-1:123456789012:orders";
        for bad in ["a b", "a:b", "ü", queue] {
            assert!(!is_bus(bad), "{bad}");
        }
        let default = Message {
            destination: String::new(),
            ..message()
        };
        let entry = prepare(0, &default, 1000).unwrap().entry;
        assert_eq!(entry.event_bus_name(), None);
    }
}
