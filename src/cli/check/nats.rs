//! NATS: each server, the streams that are known beforehand, and a test event.

use std::time::Duration;

use super::probe::{self, Words};
use super::report::Report;
use crate::assemble;
use crate::settings::Settings;
use crate::sink::nats::NatsSettings;
use crate::sink::nats::check::{Probe, Server, Stream};

/// Checks everything about the server.
pub(super) async fn check(report: &mut Report, event_type: Option<&str>, settings: &Settings) {
    report.area("broker");
    let nats = assemble::nats(settings);
    let problems = nats.validate();
    if !problems.is_empty() {
        for problem in problems {
            report.failed(problem, "");
        }
        return;
    }
    let Some(connection) = reach(report, &nats).await else {
        return;
    };
    if streams(report, settings, &connection).await
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

/// Tries every URL; returns the first connection.
async fn reach(report: &mut Report, nats: &NatsSettings) -> Option<Probe> {
    let mut first = None;
    let mut unreachable = Vec::new();
    for position in 0..nats.urls.len() {
        match Probe::connect(nats, position).await {
            Ok(probe) => {
                introduce(report, &probe.server());
                match first {
                    None => first = Some(probe),
                    Some(_) => probe.close().await,
                }
            }
            Err(error) => unreachable.push(error),
        }
    }
    for error in unreachable {
        let remedy = "check OUTRIGGER_NATS_URL: host, port, user, password, token, TLS";
        if first.is_some() {
            report.warning(format!("one of several servers: {error}"), remedy);
        } else {
            report.failed(error, remedy);
        }
    }
    first
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
    let local = ["//127.", "//localhost", "//[::1]"];
    let is_local = local.iter().any(|host| server.address.contains(host));
    if server.encrypted {
        report.ok(format!("{text}, encrypted"));
    } else if is_local {
        report.ok(format!("{text}, not encrypted"));
    } else {
        report.warning(
            format!("{text}, not encrypted"),
            "use tls:// in OUTRIGGER_NATS_URL",
        );
    }
}

/// False when a probe makes no sense any more.
async fn streams(report: &mut Report, settings: &Settings, connection: &Probe) -> bool {
    let mut sound = true;
    for (what, destination) in probe::destinations(settings) {
        let name = match destination {
            None => continue,
            Some(None) => {
                report.ok(format!(
                    "{what}: the stream depends on the event, and is found out when one goes there"
                ));
                continue;
            }
            Some(Some(name)) => name,
        };
        if name.is_empty() {
            report.ok(format!("{what}: whichever stream takes the subject"));
            continue;
        }
        match connection.stream(&name).await {
            Ok(stream) => sound &= tell(report, what, &name, &stream),
            Err(error) => {
                report.failed(format!("{what}: {error}"), "");
                return false;
            }
        }
    }
    sound
}

fn tell(report: &mut Report, what: &str, name: &str, stream: &Stream) -> bool {
    match stream {
        Stream::Exists {
            subjects,
            replicas,
            storage,
            duplicate_window,
        } => {
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
            } else if subjects.is_empty() {
                report.failed(
                    format!("{what}: stream `{name}` takes no subjects; it is a mirror"),
                    "publish to the stream it mirrors",
                );
                return false;
            } else {
                report.ok(text);
            }
            if *duplicate_window < Duration::from_secs(1) {
                report.warning(
                    format!("{what}: stream `{name}` recognises no repetitions"),
                    "set its duplicate window, or rely on consumers that remember ids",
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
