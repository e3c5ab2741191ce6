//! What the checks of all sinks share: the destinations known beforehand, and a test event.

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use uuid::Uuid;

use super::report::Report;
use crate::assemble;
use crate::error::{ReasonCode, Verdict};
use crate::event::{Data, Message, Record};
use crate::settings::Settings;

/// Longest wait for the answer to a test event.
const PROBE_LIMIT: Duration = Duration::from_secs(10);

/// How a sink words the outcome of a test event.
pub(super) struct Words<'a> {
    /// `exchange`, `stream`.
    pub(super) destination: &'a str,
    /// `key`, `subject`; empty where there are no routing keys.
    pub(super) key: &'a str,
    /// What a confirm proves.
    pub(super) confirmed: &'a str,
    /// What to do about an unroutable event.
    pub(super) unroutable: &'a str,
}

/// Destinations of events and of dead events: `Some(None)` if it depends on the event.
pub(super) fn destinations(settings: &Settings) -> [(&'static str, Option<Option<String>>); 2] {
    let events = assemble::router(settings)
        .ok()
        .map(|router| router.constant_destination());
    let dead = assemble::dead_letter_router(settings)
        .ok()
        .flatten()
        .map(|router| router.constant_destination());
    [("events", events), ("dead events", dead)]
}

/// Publishes a test event by `publish` and reports what came of it. `why_silent` is asked when there is no answer: what
/// it looks like, and what to do.
pub(super) async fn publish<F: Future<Output = Verdict>>(
    report: &mut Report,
    settings: &Settings,
    event_type: &str,
    words: Words<'_>,
    publish: impl FnOnce(Message) -> F,
    why_silent: impl FnOnce() -> (String, &'static str),
) {
    let message = match message(settings, event_type) {
        Ok(message) => message,
        Err(problem) => {
            report.warning(
                format!("no test event was sent: {problem}"),
                "the route templates need something that a test event does not have",
            );
            return;
        }
    };
    let mut way = format!(
        "test event of type {event_type} to {} `{}`",
        words.destination, message.destination
    );
    if !words.key.is_empty() {
        way += &format!(" with {} `{}`", words.key, message.routing_key);
    }
    match tokio::time::timeout(PROBE_LIMIT, publish(message)).await {
        Ok(Verdict::Confirmed) => report.ok(format!("{way}: {}", words.confirmed)),
        Ok(Verdict::Rejected(reason) | Verdict::Impossible(reason)) => report.failed(
            format!("{way}: {reason}"),
            if reason.code == ReasonCode::Unroutable {
                words.unroutable
            } else {
                ""
            },
        ),
        Ok(Verdict::Unavailable) | Err(_) => {
            let (looks, remedy) = why_silent();
            report.failed(format!("{way}: {looks}"), remedy);
        }
    }
}

/// A test event, encoded and routed like any other.
fn message(settings: &Settings, event_type: &str) -> Result<Message, String> {
    let (encoder, _) = assemble::encoder(settings)
        .map_err(|failure| failure.error.map(|e| e.to_string()).unwrap_or_default())?;
    let record = Record {
        id: Uuid::new_v4().to_string(),
        event_type: event_type.to_owned(),
        data: Data::Json(Bytes::from_static(b"{\"probe\":true}")),
        created_at: Some(Timestamp::now()),
        ..Record::default()
    };
    let encoded = encoder.encode([&record]);
    if let Some((_, reason)) = encoded.rejected.into_iter().next() {
        return Err(reason.to_string());
    }
    let message = encoded.messages.into_iter().next();
    message.ok_or_else(|| "it was not encoded".to_owned())
}
