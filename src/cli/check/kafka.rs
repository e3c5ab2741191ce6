//! Kafka: the cluster, the topics that are known beforehand, and a test event.

use super::broker::{PROBE_LIMIT, message};
use super::report::Report;
use crate::assemble;
use crate::error::Verdict;
use crate::settings::Settings;
use crate::sink::kafka::KafkaSettings;
use crate::sink::kafka::check::{Probe, TopicStatus};

/// Checks everything about the cluster.
pub(super) async fn check(report: &mut Report, event_type: Option<&str>, settings: &Settings) {
    report.area("broker");
    let kafka = assemble::kafka(settings);
    let problems = kafka.validate();
    if !problems.is_empty() {
        for problem in problems {
            report.failed(problem, "");
        }
        return;
    }
    let connection = match Probe::connect(&kafka).await {
        Ok(connection) => connection,
        Err(error) => {
            let remedy = "check OUTRIGGER_KAFKA_BROKERS, and the settings of TLS and SASL";
            report.failed(error, remedy);
            return;
        }
    };
    introduce(report, &kafka, &connection);
    let sound = topics(report, settings, &connection).await;
    match connection.idempotence().await {
        Ok(()) => report.ok("idempotent producer: repetitions after an error make no duplicates"),
        Err(error) => report.failed(
            format!("no idempotent producer: {error}"),
            "grant WRITE on a topic, or IDEMPOTENT_WRITE on the cluster before Kafka 2.8",
        ),
    }
    if let (true, Some(event_type)) = (sound, event_type) {
        publish(report, settings, &connection, event_type).await;
    }
    connection.close().await;
}

fn introduce(report: &mut Report, kafka: &KafkaSettings, connection: &Probe) {
    let cluster = connection.cluster();
    let id = cluster.id.as_deref().unwrap_or("without an id");
    let brokers = cluster.brokers.join(", ");
    let user = kafka.username.as_deref();
    let user = user.map(|user| format!(" as user {user}"));
    let text = format!("Kafka cluster {id}: {brokers}{}", user.unwrap_or_default());
    let local = ["127.", "localhost", "[::1]"];
    let is_local = |broker: &String| local.iter().any(|host| broker.starts_with(host));
    if kafka.tls {
        report.ok(format!("{text}, encrypted"));
    } else if cluster.brokers.iter().all(is_local) {
        report.ok(format!("{text}, not encrypted"));
    } else {
        report.warning(
            format!("{text}, not encrypted"),
            "use a listener with TLS, and OUTRIGGER_KAFKA_TLS=true",
        );
    }
}

/// False when a probe makes no sense any more.
async fn topics(report: &mut Report, settings: &Settings, connection: &Probe) -> bool {
    let mut sound = true;
    let events = assemble::router(settings)
        .ok()
        .map(|router| router.constant_destination());
    let dead = assemble::dead_letter_router(settings)
        .ok()
        .flatten()
        .map(|router| router.constant_destination());
    for (what, destination) in [("events", events), ("dead events", dead)] {
        let name = match destination {
            None => continue,
            Some(None) => {
                report.ok(format!(
                    "{what}: the topic depends on the event, and is looked for when one goes there"
                ));
                continue;
            }
            Some(Some(name)) => name,
        };
        match connection.topic(&name).await {
            Ok(TopicStatus::Exists {
                partitions,
                replicas,
            }) => {
                let text =
                    format!("{what}: topic `{name}`, {partitions} partitions, {replicas} replicas");
                if replicas > 1 {
                    report.ok(text);
                } else {
                    report.warning(
                        format!("{text}: a broker that is lost takes confirmed events with it"),
                        "replicate the topic, for example three times with min.insync.replicas=2",
                    );
                }
            }
            Ok(TopicStatus::Missing(reason)) => {
                report.failed(format!("{what}: {reason}"), "");
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
        "test event of type {event_type} to topic `{}`",
        message.destination
    );
    match tokio::time::timeout(PROBE_LIMIT, connection.publish(message)).await {
        Ok(Verdict::Confirmed) => {
            report.ok(format!("{way}: confirmed by all replicas in sync"));
        }
        Ok(Verdict::Rejected(reason) | Verdict::Impossible(reason)) => {
            report.failed(format!("{way}: {reason}"), "");
        }
        Ok(Verdict::Unavailable) | Err(_) => report.failed(
            format!("{way}: no confirm"),
            "are enough replicas in sync (min.insync.replicas)? See the brokers' logs",
        ),
    }
}
