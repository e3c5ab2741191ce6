//! Each broker, the exchanges that are known beforehand, and a test event.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use uuid::Uuid;

use super::report::Report;
use crate::assemble;
use crate::error::Verdict;
use crate::event::{Data, Message, Record};
use crate::settings::Settings;
use crate::sink::rabbitmq::RabbitMqSettings;
use crate::sink::rabbitmq::check::{Broker, Exchange, Probe};

/// Longest wait for the answer to a test event.
pub(super) const PROBE_LIMIT: Duration = Duration::from_secs(10);

/// Checks everything about the broker.
pub(super) async fn check(report: &mut Report, probe: Option<&str>, settings: &Settings) {
    report.area("broker");
    let rabbitmq = assemble::rabbitmq(settings);
    let problems = rabbitmq.validate();
    if !problems.is_empty() {
        for problem in problems {
            report.failed(problem, "");
        }
        return;
    }
    let Some(connection) = reach(report, &rabbitmq).await else {
        return;
    };
    if exchanges(report, settings, &rabbitmq, &connection).await
        && let Some(event_type) = probe
    {
        publish(report, settings, &connection, event_type).await;
    }
    connection.close().await;
}

/// Tries every URL; returns the first connection.
async fn reach(report: &mut Report, rabbitmq: &RabbitMqSettings) -> Option<Probe> {
    let mut first = None;
    let mut unreachable = Vec::new();
    for position in 0..rabbitmq.urls.len() {
        match Probe::connect(rabbitmq, position).await {
            Ok(probe) => {
                introduce(report, probe.broker());
                match first {
                    None => first = Some(probe),
                    Some(_) => probe.close().await,
                }
            }
            Err(error) => unreachable.push(error),
        }
    }
    for error in unreachable {
        let remedy = "check OUTRIGGER_RABBITMQ_URL: host, port, user, password, vhost, TLS";
        if first.is_some() {
            report.warning(format!("one of several brokers: {error}"), remedy);
        } else {
            report.failed(error, remedy);
        }
    }
    first
}

fn introduce(report: &mut Report, broker: &Broker) {
    let product = broker.product.as_deref().unwrap_or("an AMQP broker");
    let version = broker.version.as_deref().unwrap_or("of unknown version");
    let text = format!(
        "{product} {version} at {} as user {}",
        broker.endpoint, broker.user
    );
    let local = ["127.", "localhost", "[::1]"];
    let is_local = local.iter().any(|host| broker.endpoint.contains(host));
    match &broker.tls {
        Some(tls) => report.ok(format!("{text}, {} {}", tls.protocol, tls.cipher)),
        None if is_local => report.ok(format!("{text}, not encrypted")),
        None => report.warning(
            format!("{text}, not encrypted"),
            "use amqps:// in OUTRIGGER_RABBITMQ_URL",
        ),
    }
}

/// False when a probe makes no sense any more.
async fn exchanges(
    report: &mut Report,
    settings: &Settings,
    rabbitmq: &RabbitMqSettings,
    connection: &Probe,
) -> bool {
    let events = assemble::router(settings)
        .ok()
        .map(|router| router.constant_destination());
    let dead = assemble::dead_letter_router(settings)
        .ok()
        .flatten()
        .map(|router| router.constant_destination());
    let mut sound = true;
    for (what, destination) in [("events", events), ("dead events", dead)] {
        let name = match destination {
            None => continue,
            Some(None) => {
                report.ok(format!(
                    "{what}: the exchange depends on the event, and is looked for when one goes there"
                ));
                continue;
            }
            Some(Some(name)) => name,
        };
        match connection.exchange(&name).await {
            Ok(Exchange::Exists { kind }) => {
                let of_type = kind.as_deref().map(|kind| format!(" of type {kind}"));
                let text = format!("{what}: exchange `{name}`{}", of_type.unwrap_or_default());
                match kind {
                    Some(kind) if rabbitmq.declare && kind != rabbitmq.exchange_type => {
                        report.warning(
                            format!("{text}, not {} as set", rabbitmq.exchange_type),
                            "correct OUTRIGGER_RABBITMQ_EXCHANGE_TYPE; the existing exchange is used as it is",
                        );
                    }
                    _ => report.ok(text),
                }
            }
            Ok(Exchange::Missing(_)) if rabbitmq.declare => {
                report.ok(format!(
                    "{what}: exchange `{name}` does not exist yet; the relay declares it"
                ));
                sound = false;
            }
            Ok(Exchange::Missing(reason)) => {
                report.failed(format!("{what}: {}", reason.detail), "");
                sound = false;
            }
            Err(error) => {
                report.failed(format!("{what}: {error}"), "");
                return false;
            }
        }
    }
    sound
}

async fn publish(report: &mut Report, settings: &Settings, connection: &Probe, event_type: &str) {
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
    let way = format!(
        "test event of type {event_type} to exchange `{}` with key `{}`",
        message.destination, message.routing_key
    );
    match tokio::time::timeout(PROBE_LIMIT, connection.publish(message)).await {
        Ok(Verdict::Confirmed) => report.ok(format!("{way}: confirmed, and a queue took it")),
        Ok(Verdict::Rejected(reason) | Verdict::Impossible(reason)) => report.failed(
            format!("{way}: {reason}"),
            if reason.code == crate::error::ReasonCode::Unroutable {
                "bind a queue, or probe with a type that is bound: --probe=TYPE"
            } else {
                ""
            },
        ),
        Ok(Verdict::Unavailable) | Err(_) if connection.is_blocked() => report.failed(
            format!("{way}: the broker blocks publishers"),
            "it has a memory or disk alarm: see `rabbitmqctl status`",
        ),
        Ok(Verdict::Unavailable) | Err(_) => report.failed(
            format!("{way}: no answer, or the connection broke"),
            "see the broker's log",
        ),
    }
}

/// A test event, encoded and routed like any other.
pub(super) fn message(settings: &Settings, event_type: &str) -> Result<Message, String> {
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
