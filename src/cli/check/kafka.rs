//! Kafka: the cluster, the topics that are known beforehand, and a test event.

use super::probe::{self, Words};
use super::report::Report;
use crate::assemble;
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
        let words = Words {
            destination: "topic",
            key: "",
            confirmed: "confirmed by all replicas in sync",
            unroutable: "",
        };
        let why_silent = || {
            let remedy = "are enough replicas in sync (min.insync.replicas)? See the brokers' logs";
            ("no confirm".to_owned(), remedy)
        };
        let send = |message| connection.publish(message);
        probe::publish(report, settings, event_type, words, send, why_silent).await;
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
    for (what, destination) in probe::destinations(settings) {
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
