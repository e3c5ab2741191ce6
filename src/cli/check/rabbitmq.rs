//! RabbitMQ: each broker, the exchanges that are known beforehand, and a test event.

use super::probe::{self, Words};
use super::report::Report;
use crate::assemble;
use crate::settings::Settings;
use crate::sink::rabbitmq::RabbitMqSettings;
use crate::sink::rabbitmq::check::{Broker, DELAYED, Exchange, Probe};

/// Checks everything about the broker.
pub(super) async fn check(report: &mut Report, event_type: Option<&str>, settings: &Settings) {
    report.area("broker");
    let rabbitmq = assemble::rabbitmq(settings);
    if !probe::settings_are_sound(report, rabbitmq.validate()) {
        return;
    }
    let connection = probe::reach(
        report,
        rabbitmq.urls.len(),
        async |position| Probe::connect(&rabbitmq, position).await,
        |report, probe| introduce(report, probe.broker()),
        Probe::close,
        (
            "OUTRIGGER_RABBITMQ_URL",
            &settings.rabbitmq.url_name,
            "host, port, user, password, vhost, TLS",
        ),
    );
    let Some(connection) = connection.await else {
        return;
    };
    if let Some(limited) = &connection.broker().limited {
        report.warning(limited, "running relays of the same user count as well");
    }
    if !rabbitmq.queues.is_empty() {
        match connection.missing_queue().await {
            Ok(None) => report.ok(format!("queues: {} are there", rabbitmq.queues.join(", "))),
            Ok(Some(problem)) | Err(problem) => report.failed(problem, ""),
        }
    }
    let look = async |report: &mut Report, what: &str, name: &str| {
        let standing = connection.exchange(name).await?;
        Ok(tell(report, &rabbitmq, what, name, standing))
    };
    if probe::look_at_destinations(report, settings, "exchange", look).await
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

fn introduce(report: &mut Report, broker: &Broker) {
    let product = broker.product.as_deref().unwrap_or("an AMQP broker");
    let version = broker.version.as_deref().unwrap_or("of unknown version");
    let text = format!(
        "{product} {version} at {} as user {}",
        broker.endpoint, broker.user
    );
    let session = broker.tls.as_ref();
    let how = session.map(|tls| format!("{} {}", tls.protocol, tls.cipher));
    let remedy = "use amqps:// in OUTRIGGER_RABBITMQ_URL";
    probe::introduce(report, &text, &[&broker.endpoint], how.as_deref(), remedy);
}

/// False when a probe makes no sense any more.
fn tell(
    report: &mut Report,
    rabbitmq: &RabbitMqSettings,
    what: &str,
    name: &str,
    standing: Exchange,
) -> bool {
    match standing {
        Exchange::Exists { kind } => {
            let of_type = kind.as_deref().map(|kind| format!(" of type {kind}"));
            let text = format!("{what}: exchange `{name}`{}", of_type.unwrap_or_default());
            match kind {
                Some(kind) if rabbitmq.declare && kind != rabbitmq.exchange_type => {
                    report.warning(
                        format!("{text}, not {} as set", rabbitmq.exchange_type),
                        "correct OUTRIGGER_RABBITMQ_EXCHANGE_TYPE; the existing exchange is used as it is",
                    );
                }
                Some(kind) if kind == DELAYED => report.warning(
                    format!(
                        "{text}: it returns messages while it keeps them, and does not tell whether a queue takes them \
                         in the end; an event with `x-delay` counts as published once the exchange has it"
                    ),
                    "delays in the outbox (`available_at`) keep every promise",
                ),
                _ => report.ok(text),
            }
            true
        }
        Exchange::Missing(_) if rabbitmq.declare => {
            report.ok(format!(
                "{what}: exchange `{name}` does not exist yet; the relay declares it"
            ));
            false
        }
        Exchange::Missing(reason) => {
            report.failed(format!("{what}: {}", reason.detail), "");
            false
        }
    }
}
