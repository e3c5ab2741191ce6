//! RabbitMQ: each broker, the exchanges that are known beforehand, and a test event.

use super::probe::{self, Words};
use super::report::Report;
use crate::assemble;
use crate::settings::Settings;
use crate::sink::rabbitmq::RabbitMqSettings;
use crate::sink::rabbitmq::check::{Broker, Exchange, Probe};

/// Checks everything about the broker.
pub(super) async fn check(report: &mut Report, event_type: Option<&str>, settings: &Settings) {
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
        && let Some(event_type) = event_type
    {
        let words = Words {
            destination: "exchange",
            key: "key",
            confirmed: "confirmed, and a queue took it",
            unroutable: "bind a queue, or probe with a type that is bound: --probe=TYPE",
        };
        let why_silent = || match connection.is_blocked() {
            true => (
                "the broker blocks publishers".to_owned(),
                "it has a memory or disk alarm: see `rabbitmqctl status`",
            ),
            false => (
                "no answer, or the connection broke".to_owned(),
                "see the broker's log",
            ),
        };
        let send = |message| connection.publish(message);
        probe::publish(report, settings, event_type, words, send, why_silent).await;
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
    let mut sound = true;
    for (what, destination) in probe::destinations(settings) {
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
