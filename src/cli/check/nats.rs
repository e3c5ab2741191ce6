//! NATS: each server, the streams that are known beforehand, and a test event.

use std::time::Duration;

use super::probe::{self, Words};
use super::report::Report;
use crate::assemble;
use crate::settings::Settings;
use crate::sink::nats::check::{Probe, Server, Stream};

/// Checks everything about the server.
pub(super) async fn check(report: &mut Report, event_type: Option<&str>, settings: &Settings) {
    report.area("broker");
    let nats = assemble::nats(settings);
    if !probe::settings_are_sound(report, nats.validate()) {
        return;
    }
    let connection = probe::reach(
        report,
        nats.urls.len(),
        async |position| Probe::connect(&nats, position).await,
        |report, probe| introduce(report, &probe.server()),
        Probe::close,
        (
            "OUTRIGGER_NATS_URL",
            &settings.nats.url_name,
            "host, port, user, password, token, TLS",
        ),
    );
    let Some(connection) = connection.await else {
        return;
    };
    let look = async |report: &mut Report, what: &str, name: &str| {
        if name.is_empty() {
            report.ok(format!("{what}: whichever stream takes the subject"));
            return Ok(true);
        }
        let stream = connection.stream(name).await?;
        Ok(tell(report, what, name, &stream, nats.confirm_timeout))
    };
    if probe::look_at_destinations(report, settings, "stream", look).await
        && let Some(event_type) = event_type
    {
        let words = Words {
            destination: "stream",
            key: "subject",
            confirmed: "acknowledged by the stream",
            unroutable: "",
        };
        let why_silent = || {
            let looks = "no answer, or the server is full";
            (looks.to_owned(), "see the server's log")
        };
        let send = |message| connection.publish(message);
        probe::publish(report, settings, event_type, words, send, why_silent).await;
    }
    connection.close().await;
}

fn introduce(report: &mut Report, server: &Server) {
    let cluster = server.cluster.as_deref();
    let cluster = cluster.map(|name| format!(", cluster {name}"));
    let text = format!(
        "NATS {} at {}{}, messages up to {} bytes",
        server.version,
        server.address,
        cluster.unwrap_or_default(),
        server.max_payload
    );
    let how = server.encrypted.then_some("encrypted");
    let remedy = "use tls:// in OUTRIGGER_NATS_URL";
    probe::introduce(report, &text, &[&server.address], how, remedy);
}

/// False when a probe makes no sense any more.
fn tell(
    report: &mut Report,
    what: &str,
    name: &str,
    stream: &Stream,
    confirm_timeout: Duration,
) -> bool {
    match stream {
        Stream::Exists {
            subjects,
            replicas,
            storage,
            duplicate_window,
            needs_interest,
            unfit,
        } => {
            if let Some(unfit) = unfit {
                report.failed(format!("{what}: {unfit}"), "");
                return false;
            }
            let text = format!(
                "{what}: stream `{name}` takes {}; {storage}, {replicas} replicas, repetitions recognised for {}s",
                subjects.join(", "),
                duplicate_window.as_secs()
            );
            if storage == "memory" {
                report.warning(
                    format!("{text}: a restart of the server loses what was confirmed"),
                    "store the stream in files",
                );
            } else {
                report.ok(text);
            }
            if *needs_interest {
                report.warning(
                    format!(
                        "{what}: stream `{name}` keeps only what a consumer is interested in: without one it confirms \
                         events and drops them"
                    ),
                    "create the consumers first, or use another retention policy",
                );
            }
            if *duplicate_window < Duration::from_secs(1) {
                report.warning(
                    format!("{what}: stream `{name}` recognises no repetitions"),
                    "set its duplicate window, or rely on consumers that remember ids",
                );
            } else if *duplicate_window < confirm_timeout {
                report.warning(
                    format!(
                        "{what}: stream `{name}` recognises repetitions for {duplicate_window:?}, but an event that is not \
                         acknowledged is published again after {confirm_timeout:?}: it would be stored twice"
                    ),
                    "set its duplicate window to twice OUTRIGGER_NATS_CONFIRM_TIMEOUT or more",
                );
            }
            true
        }
        Stream::Missing(reason) => {
            report.failed(format!("{what}: {reason}"), "");
            false
        }
        Stream::Unknown => {
            report.warning(
                format!("{what}: this user may not ask about stream `{name}`"),
                "allow it to publish to $JS.API.STREAM.INFO.*, so that a missing stream holds events back \
                 instead of failing them",
            );
            true
        }
    }
}
