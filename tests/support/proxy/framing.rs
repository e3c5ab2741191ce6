//! Where the frames of NATS, HTTP and Kafka end, and which of them matter. No I/O.

use bytes::BytesMut;

use super::frames::{Direction, Label};

/// The place behind the first `pattern` in `bytes`.
fn behind(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    let at = bytes.windows(pattern.len()).position(|w| w == pattern)?;
    Some(at + pattern.len())
}

/// NATS: a line; behind that of a message, its headers and payload, whose size is the line's last word.
pub fn nats_length(buffer: &[u8]) -> Option<usize> {
    let line = behind(buffer, b"\r\n")?;
    if !matches!(operation(buffer), b"PUB" | b"HPUB" | b"MSG" | b"HMSG") {
        return Some(line);
    }
    let text = std::str::from_utf8(&buffer[..line]).ok()?;
    let size: usize = text.trim_end().rsplit(' ').next()?.parse().ok()?;
    Some(line + size + b"\r\n".len())
}

/// Only events are published with headers. What JetStream says about itself names its kind; acknowledgements do not.
pub fn nats_label(direction: Direction, frame: &[u8]) -> Label {
    let about_itself = || behind(frame, b"io.nats.jetstream.api").is_some();
    match (direction, operation(frame)) {
        (Direction::ToServer, b"HPUB") => Label::Publish,
        (Direction::ToClient, b"MSG" | b"HMSG") if !about_itself() => Label::Confirm,
        _ => Label::Other,
    }
}

fn operation(frame: &[u8]) -> &[u8] {
    let end = frame.iter().position(|byte| b" \r".contains(byte));
    &frame[..end.unwrap_or(frame.len())]
}

/// HTTP/1.1: a head, and as much behind it as `content-length` says.
pub fn http_length(buffer: &[u8]) -> Option<usize> {
    let head = behind(buffer, b"\r\n\r\n")?;
    let text = String::from_utf8_lossy(&buffer[..head]).to_lowercase();
    let length = text
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))
        .and_then(|length| length.trim().parse().ok());
    Some(head + length.unwrap_or(0))
}

/// Whether a request brings events: all do, but for questions about a bus of EventBridge.
pub fn http_publishes(request: &[u8]) -> bool {
    behind(request, b"AWSEvents.DescribeEventBus").is_none()
}

/// Kafka: its length in four bytes, then request or response.
pub fn kafka_length(buffer: &[u8]) -> Option<usize> {
    let length = buffer.get(..4)?.try_into().ok()?;
    Some(4 + u32::from_be_bytes(length) as usize)
}

/// The number that a request and its response have in common, if this request brings records.
pub fn kafka_produce(request: &[u8]) -> Option<[u8; 4]> {
    const PRODUCE: [u8; 2] = [0, 0];
    (request.get(4..6)? == PRODUCE)
        .then(|| request.get(8..12)?.try_into().ok())
        .flatten()
}

/// The same number of a response.
pub fn kafka_response(response: &[u8]) -> Option<[u8; 4]> {
    response.get(4..8)?.try_into().ok()
}

/// Kafka's brokers tell clients where to find them. Whoever is to stay behind a proxy is told the proxy's port.
pub fn kafka_readdress(response: &mut BytesMut, from: u16, to: u16) {
    let address = |port: u16| {
        let mut bytes = b"127.0.0.1".to_vec();
        bytes.extend(u32::from(port).to_be_bytes());
        bytes
    };
    let (from, to) = (address(from), address(to));
    let mut start = 0;
    while let Some(end) = behind(&response[start..], &from) {
        let end = start + end;
        response[end - from.len()..end].copy_from_slice(&to);
        start = end;
    }
}
