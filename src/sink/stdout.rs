//! JSON lines on standard output, for demos and debugging.
//!
//! One object per message, in batch order:
//!
//! ```json
//! {"destination":"events","routing_key":"order.placed","id":"…","content_type":"…","headers":{},"body":{…}}
//! ```
//!
//! A JSON body is shown as it is, numbers included, under `body`; other text under `body_text`;
//! anything else in base64 under `body_base64`. A message counts as confirmed once its line was
//! flushed. A write error (a full disk) makes the batch unavailable. A closed pipe ends the relay, as it ends any
//! program that prints: its reader (`head`) has seen enough, and will not come back.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use serde_json::value::RawValue;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{BoxFuture, Lane, Sink, SinkState};
use crate::error::Verdict;
use crate::event::{HeaderValue, Message};

/// A reader that does not read keeps us waiting no longer than this.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// After a failure the sink is down for this long, then writing is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

type Output = Arc<Mutex<dyn Write + Send>>;

/// Writes messages as JSON lines.
pub struct StdoutSink {
    output: Output,
    state: Arc<watch::Sender<SinkState>>,
}

impl StdoutSink {
    /// A sink that writes to standard output. Ready at once.
    pub fn new() -> Self {
        Self::with_output(io::stdout())
    }

    /// A sink that writes somewhere else.
    pub fn with_output(output: impl Write + Send + 'static) -> Self {
        Self {
            output: Arc::new(Mutex::new(output)),
            state: Arc::new(watch::Sender::new(SinkState::Ready)),
        }
    }
}

impl Default for StdoutSink {
    fn default() -> Self {
        Self::new()
    }
}

impl Sink for StdoutSink {
    fn kind(&self) -> &'static str {
        "stdout"
    }

    /// A single lane: lines have one order.
    fn lanes(&mut self) -> Vec<Box<dyn Lane>> {
        vec![Box::new(StdoutLane {
            output: Arc::clone(&self.output),
            state: Arc::clone(&self.state),
            stuck: None,
            said: None,
        })]
    }

    fn state(&self) -> watch::Receiver<SinkState> {
        self.state.subscribe()
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        // Every batch was flushed.
        Box::pin(std::future::ready(()))
    }
}

struct StdoutLane {
    output: Output,
    state: Arc<watch::Sender<SinkState>>,
    /// A write that did not finish in time, or whose batch was abandoned: it must end before the
    /// next one, or lines would mix.
    stuck: Option<JoinHandle<io::Result<()>>>,
    /// Why it was said to be down, until it prints again.
    said: Option<String>,
}

impl Lane for StdoutLane {
    fn publish<'a>(&'a mut self, batch: &'a [Message]) -> BoxFuture<'a, Vec<Verdict>> {
        Box::pin(async move {
            let verdict = match self.write(batch).await {
                Ok(()) => {
                    self.report(SinkState::Ready);
                    Verdict::Confirmed
                }
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    let reason = "standard output was closed by its reader";
                    self.report(SinkState::Ended(reason.to_owned()));
                    Verdict::Unavailable
                }
                Err(error) => {
                    let reason = format!("cannot write to standard output: {error}");
                    self.report(SinkState::Down(reason));
                    Verdict::Unavailable
                }
            };
            vec![verdict; batch.len()]
        })
    }
}

impl StdoutLane {
    async fn write(&mut self, batch: &[Message]) -> io::Result<()> {
        self.finish_write().await?;
        let mut lines = Vec::new();
        for message in batch {
            write_line(&mut lines, message)?;
        }
        let output = Arc::clone(&self.output);
        // Writing to a pipe blocks for as long as its reader likes.
        self.stuck = Some(tokio::task::spawn_blocking(move || {
            let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
            output.write_all(&lines)?;
            output.flush()
        }));
        self.finish_write().await
    }

    async fn finish_write(&mut self) -> io::Result<()> {
        let Some(writing) = &mut self.stuck else {
            return Ok(());
        };
        let Ok(written) = tokio::time::timeout(WRITE_TIMEOUT, writing).await else {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("its reader has read nothing for {WRITE_TIMEOUT:?}"),
            ));
        };
        self.stuck = None;
        written.unwrap_or_else(|error| Err(io::Error::other(error)))
    }

    fn report(&mut self, state: SinkState) {
        let changed = self.state.send_if_modified(|current| {
            let changed = *current != state;
            current.clone_from(&state);
            changed
        });
        match (changed, state) {
            (true, SinkState::Down(reason)) => {
                if self.said.as_deref() != Some(&*reason) {
                    tracing::warn!(reason, "the stdout sink is down");
                    self.said = Some(reason);
                }
                // Nothing tells when writing works again except writing.
                let state = Arc::downgrade(&self.state);
                tokio::spawn(async move {
                    tokio::time::sleep(RETRY_AFTER).await;
                    if let Some(state) = state.upgrade() {
                        state.send_replace(SinkState::Ready);
                    }
                });
            }
            (true, SinkState::Ended(reason)) => {
                tracing::info!("{reason}: stopping; what was not printed stays in the outbox");
            }
            // It has printed something.
            (_, SinkState::Ready) => self.said = None,
            _ => {}
        }
    }
}

#[derive(Serialize)]
struct Line<'a> {
    destination: &'a str,
    routing_key: &'a str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<&'a str>,
    headers: Headers<'a>,
    #[serde(flatten)]
    body: Body<'a>,
}

struct Headers<'a>(&'a [(String, HeaderValue)]);

impl Serialize for Headers<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in self.0 {
            match value {
                HeaderValue::Text(text) => map.serialize_entry(name, text)?,
                HeaderValue::Bool(flag) => map.serialize_entry(name, flag)?,
                HeaderValue::Int(number) => map.serialize_entry(name, number)?,
            }
        }
        map.end()
    }
}

enum Body<'a> {
    Json(&'a RawValue),
    Text(&'a str),
    Binary(&'a [u8]),
}

impl Serialize for Body<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        match self {
            Body::Json(json) => map.serialize_entry("body", json)?,
            Body::Text(text) => map.serialize_entry("body_text", text)?,
            Body::Binary(bytes) => map.serialize_entry("body_base64", &STANDARD.encode(bytes))?,
        }
        map.end()
    }
}

/// Appends a message as one line.
pub(crate) fn write_line(lines: &mut Vec<u8>, message: &Message) -> io::Result<()> {
    let start = lines.len();
    let body = match std::str::from_utf8(&message.body) {
        Ok(text) => serde_json::from_str(text).map_or(Body::Text(text), Body::Json),
        Err(_) => Body::Binary(&message.body),
    };
    let line = Line {
        destination: &message.destination,
        routing_key: &message.routing_key,
        id: &message.id,
        content_type: message.content_type.as_deref(),
        headers: Headers(&message.headers),
        body,
    };
    serde_json::to_writer(&mut *lines, &line)?;
    // A JSON body keeps its line breaks. Inside strings they are escaped, so these are mere
    // white space.
    for byte in &mut lines[start..] {
        if matches!(byte, b'\n' | b'\r') {
            *byte = b' ';
        }
    }
    lines.push(b'\n');
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
pub(crate) mod tests {
    use bytes::Bytes;

    use super::*;

    pub(crate) fn message(body: &'static [u8]) -> Message {
        Message {
            seqs: vec![1],
            destination: "events".into(),
            routing_key: "a.b".into(),
            body: Bytes::from_static(body),
            content_type: None,
            headers: vec![
                ("n".into(), HeaderValue::Int(7)),
                ("flag".into(), HeaderValue::Bool(false)),
                ("text".into(), HeaderValue::Text("\"ü\n".into())),
            ],
            id: "id-1".into(),
            event_type: "t".into(),
            time: None,
            expires_in: None,
            correlation_id: None,
            source: "/s".into(),
            key: None,
        }
    }

    #[track_caller]
    fn check(body: &'static [u8], expected: &str) {
        let mut lines = Vec::new();
        write_line(&mut lines, &message(body)).unwrap();
        let line = String::from_utf8(lines).unwrap();
        let head = r#"{"destination":"events","routing_key":"a.b","id":"id-1","headers":{"n":7,"flag":false,"text":"\"ü\n"},"#;
        assert_eq!(line, format!("{head}{expected}}}\n"));
    }

    #[test]
    fn bodies_are_shown_as_what_they_are() {
        check(
            br#"{"n":12345678901234567890123,"x":0.10}"#,
            r#""body":{"n":12345678901234567890123,"x":0.10}"#,
        );
        check(b"[1,\r\n 2]", r#""body":[1,   2]"#);
        check(br#""text""#, r#""body":"text""#);
        check(b"two\nlines", r#""body_text":"two\nlines""#);
        check(b"", r#""body_text":"""#);
        check(b"\xff\x00", r#""body_base64":"/wA=""#);
    }

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<(Vec<u8>, bool)>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut inner = self.0.lock().unwrap();
            if inner.1 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            inner.0.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_write_error_makes_the_batch_unavailable_until_it_ends() {
        let output = Shared::default();
        let mut sink = StdoutSink::with_output(output.clone());
        let state = sink.state();
        let mut lane = sink.lanes().remove(0);
        let batch = [message(b"1"), message(b"2")];

        assert_eq!(lane.publish(&batch).await, vec![Verdict::Confirmed; 2]);
        assert_eq!(
            output
                .0
                .lock()
                .unwrap()
                .0
                .iter()
                .filter(|b| **b == b'\n')
                .count(),
            2
        );

        output.0.lock().unwrap().1 = true;
        assert_eq!(lane.publish(&batch).await, vec![Verdict::Unavailable; 2]);
        assert!(
            matches!(&*state.borrow(), SinkState::Down(reason) if reason.contains("standard output"))
        );

        output.0.lock().unwrap().1 = false;
        assert_eq!(lane.publish(&batch).await, vec![Verdict::Confirmed; 2]);
        assert!(state.borrow().is_ready());
    }
}
