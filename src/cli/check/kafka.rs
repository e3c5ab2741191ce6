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
    if !probe::settings_are_sound(report, kafka.validate()) {
        return;
    }
    let connection = match Probe::connect(&kafka).await {
        Ok(connection) => connection,
        Err(error) => {
            let remedy = "check OUTRIGGER_KAFKA_BROKERS, and the settings of TLS and SASL";
            let (error, remedy) = probe::advised(error, remedy);
            report.failed(error, &remedy);
            return;
        }
    };
    introduce(report, &kafka, &connection);
    let look = async |report: &mut Report, what: &str, name: &str| {
        let status = connection.topic(name).await?;
        Ok(tell(report, what, name, &status))
    };
    let sound = probe::look_at_destinations(report, settings, "topic", look).await;
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
    let how = kafka.tls.then_some("encrypted");
    let remedy = "use a listener with TLS, and OUTRIGGER_KAFKA_TLS=true";
    probe::introduce(report, &text, &cluster.brokers, how, remedy);
}

/// False when a probe makes no sense any more.
fn tell(report: &mut Report, what: &str, name: &str, status: &TopicStatus) -> bool {
    match status {
        TopicStatus::Exists {
            partitions,
            replicas,
        } => {
            let text =
                format!("{what}: topic `{name}`, {partitions} partitions, {replicas} replicas");
            if *replicas > 1 {
                report.ok(text);
            } else {
                report.warning(
                    format!("{text}: a broker that is lost takes confirmed events with it"),
                    "replicate the topic, for example three times with min.insync.replicas=2",
                );
            }
            true
        }
        TopicStatus::Missing(reason) => {
            report.failed(format!("{what}: {reason}"), "");
            false
        }
    }
}
