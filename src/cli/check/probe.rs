//! What the checks of all sinks share: reaching servers, the destinations known beforehand, and a test event.

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
fn destinations(settings: &Settings) -> [(&'static str, Option<Option<String>>); 2] {
    let events = assemble::router(settings)
        .ok()
        .map(|router| router.constant_destination());
    let dead = assemble::dead_letter_router(settings)
        .ok()
        .flatten()
        .map(|router| router.constant_destination());
    [("events", events), ("dead events", dead)]
}

/// Reports what is wrong with the settings of the sink; false if anything is.
pub(super) fn settings_are_sound(report: &mut Report, problems: Vec<String>) -> bool {
    let sound = problems.is_empty();
    for problem in problems {
        report.failed(problem, "");
    }
    sound
}

/// Tells who answered, and whether the connection is safe: `how` it is encrypted, if it is. Nobody listens between
/// programs of one machine.
pub(super) fn introduce(
    report: &mut Report,
    who: &str,
    addresses: &[impl AsRef<str>],
    how: Option<&str>,
    remedy: &str,
) {
    let is_local = |address: &str| {
        let host = address.split_once("//").map_or(address, |(_, host)| host);
        ["127.", "localhost", "[::1]", "::1"]
            .iter()
            .any(|name| host.starts_with(name))
    };
    match how {
        Some(how) => report.ok(format!("{who}, {how}")),
        None if addresses.iter().all(|address| is_local(address.as_ref())) => {
            report.ok(format!("{who}, not encrypted"));
        }
        None => report.warning(format!("{who}, not encrypted"), remedy),
    }
}

/// Tries every place; returns the first connection. The last argument: the setting of the places, what the user gave it
/// by, and what of it may be wrong. An error that names a setting says itself what to do.
pub(super) async fn reach<P>(
    report: &mut Report,
    places: usize,
    connect: impl AsyncFn(usize) -> Result<P, String>,
    introduce: impl Fn(&mut Report, &P),
    close: impl AsyncFn(P),
    (setting, given, parts): (&str, &str, &str),
) -> Option<P> {
    let mut first = None;
    let mut unreachable = Vec::new();
    for place in 0..places {
        match connect(place).await {
            Ok(probe) => {
                introduce(report, &probe);
                match first {
                    None => first = Some(probe),
                    Some(_) => close(probe).await,
                }
            }
            Err(error) => unreachable.push(error),
        }
    }
    for error in unreachable {
        let error = match given.starts_with(setting) {
            true => error,
            false => error.replace(setting, given),
        };
        let (error, remedy) = advised(error, &format!("check {given}: {parts}"));
        if first.is_some() {
            report.warning(format!("one of several servers: {error}"), &remedy);
        } else {
            report.failed(error, &remedy);
        }
    }
    first
}

/// An error and its advice: what it brings itself, behind the first semicolon, or else `general`. One is enough.
pub(super) fn advised(error: String, general: &str) -> (String, String) {
    match error.split_once("; ") {
        Some((error, advice)) => (error.to_owned(), advice.to_owned()),
        None => (error, general.to_owned()),
    }
}

/// Looks at the destinations that are known beforehand by `look`, which is told what for and which, and says whether
/// it is fine; an error means that no more can be asked. False when a test event makes no sense any more.
pub(super) async fn look_at_destinations(
    report: &mut Report,
    settings: &Settings,
    kind: &str,
    look: impl AsyncFn(&mut Report, &str, &str) -> Result<bool, String>,
) -> bool {
    let mut sound = true;
    for (what, destination) in destinations(settings) {
        match destination {
            None => {}
            Some(None) => report.ok(format!(
                "{what}: the {kind} depends on the event, and is looked for when one goes there"
            )),
            Some(Some(name)) => match look(report, what, &name).await {
                Ok(fine) => sound &= fine,
                Err(error) => {
                    report.failed(format!("{what}: {error}"), "");
                    return false;
                }
            },
        }
    }
    sound
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
        // What a relay would wait for, the operator must know now.
        Ok(Verdict::Postponed { reason, .. }) => report.failed(format!("{way}: {reason}"), ""),
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
