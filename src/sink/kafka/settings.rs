//! What can be set of the Kafka sink, and everything wrong with it at once.

use std::path::PathBuf;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use secrecy::{ExposeSecret, SecretString};

use crate::secret_file::SecretFile;
use crate::sink::urls::listed;

/// librdkafka's own bounds of `message.max.bytes`.
const MESSAGE_SIZE: std::ops::RangeInclusive<usize> = 1_000..=1_000_000_000;

/// What a record needs beside its key, value and headers in a request of its own.
pub(super) const RECORD_OVERHEAD: usize = 512;

/// Batches of records are not made larger than this, whatever a single record may have.
const RECORD_BATCH_SIZE: usize = 1_000_000;

/// How a client proves who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SaslMechanism {
    /// Name and password as they are; only over TLS.
    Plain,
    /// RFC 5802 with SHA-256.
    ScramSha256,
    /// RFC 5802 with SHA-512.
    ScramSha512,
}

/// How records are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// gzip.
    Gzip,
    /// Snappy.
    Snappy,
    /// LZ4.
    Lz4,
    /// Zstandard.
    Zstd,
}

/// Which partition a key belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Partitioner {
    /// As Kafka's own Java client has it.
    #[default]
    Murmur2,
    /// As clients made with librdkafka have it.
    Crc32,
}

/// The Kafka sink's settings.
#[derive(Debug, Clone)]
pub struct KafkaSettings {
    /// `host:port` of some brokers; the others are learned from them.
    pub brokers: Vec<String>,
    /// Whether connections are encrypted.
    pub tls: bool,
    /// PEM file of certificate authorities to trust instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM file of the client certificate chain.
    pub cert_file: Option<PathBuf>,
    /// PEM file of the client certificate's private key.
    pub key_file: Option<PathBuf>,
    /// How to log in. `None`: not by SASL.
    pub sasl: Option<SaslMechanism>,
    /// The user name for SASL.
    pub username: Option<String>,
    /// The password for SASL.
    pub password: Option<SecretString>,
    /// Where `password` was read from, to be read again for each producer.
    pub password_file: Option<SecretFile>,
    /// Batches that are published side by side.
    pub lanes: usize,
    /// Longest wait for the confirms of a batch.
    pub confirm_timeout: Duration,
    /// Largest record in bytes, headers included; no larger than the broker's `message.max.bytes`.
    pub max_message_size: usize,
    /// How records are compressed.
    pub compression: Compression,
    /// Which partition a key belongs to.
    pub partitioner: Partitioner,
    /// Topics known from the configuration. The sink is not ready before they exist, so that
    /// a missing topic is an outage and costs no event an attempt.
    pub known_destinations: Vec<String>,
}

impl Default for KafkaSettings {
    fn default() -> Self {
        Self {
            brokers: Vec::new(),
            tls: false,
            ca_file: None,
            cert_file: None,
            key_file: None,
            sasl: None,
            username: None,
            password: None,
            password_file: None,
            lanes: 8,
            confirm_timeout: Duration::from_secs(30),
            max_message_size: 1_000_000,
            compression: Compression::None,
            partitioner: Partitioner::Murmur2,
            known_destinations: Vec::new(),
        }
    }
}

impl KafkaSettings {
    /// Where events go: hosts and ports. Equal for the same brokers in any order.
    pub fn target(&self) -> String {
        listed(self.brokers.iter().map(|broker| broker.trim().to_owned()))
    }

    /// Everything wrong with these settings, each naming its variable. Reads no file and opens no
    /// connection.
    pub fn validate(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut rule = |holds: bool, text: &str| {
            if !holds {
                problems.push(text.to_owned());
            }
        };
        rule(
            !self.brokers.is_empty(),
            "OUTRIGGER_KAFKA_BROKERS is not set; give some brokers, such as `kafka-1:9092,kafka-2:9092`",
        );
        rule(
            self.confirm_timeout >= Duration::from_millis(100),
            "OUTRIGGER_KAFKA_CONFIRM_TIMEOUT must be at least `100ms`",
        );
        rule(
            MESSAGE_SIZE.contains(&self.max_message_size),
            "OUTRIGGER_KAFKA_MAX_MESSAGE_SIZE must be between `1kB` and `1GB`",
        );
        rule(
            self.cert_file.is_some() == self.key_file.is_some(),
            "OUTRIGGER_KAFKA_CERT_FILE and OUTRIGGER_KAFKA_KEY_FILE go together; a client certificate \
             needs both",
        );
        rule(
            self.tls || (self.ca_file.is_none() && self.cert_file.is_none()),
            "OUTRIGGER_KAFKA_CA_FILE, _CERT_FILE and _KEY_FILE have no effect without \
             OUTRIGGER_KAFKA_TLS=true",
        );
        let password = self.password.is_some() || self.password_file.is_some();
        let login = (self.username.is_some(), password);
        rule(
            self.sasl.is_none() || login == (true, true),
            "OUTRIGGER_KAFKA_SASL_MECHANISM needs OUTRIGGER_KAFKA_USERNAME and OUTRIGGER_KAFKA_PASSWORD",
        );
        rule(
            self.sasl.is_some() || login == (false, false),
            "OUTRIGGER_KAFKA_USERNAME and OUTRIGGER_KAFKA_PASSWORD have no effect without \
             OUTRIGGER_KAFKA_SASL_MECHANISM",
        );
        problems
    }

    /// Whether the files can be read: OpenSSL's own words for it name neither file nor setting.
    pub(super) fn check_files(&self) -> Result<(), String> {
        for (variable, file) in [
            ("CA_FILE", &self.ca_file),
            ("CERT_FILE", &self.cert_file),
            ("KEY_FILE", &self.key_file),
        ] {
            if let Some(file) = file {
                std::fs::read(file).map_err(|error| {
                    let shown = file.display();
                    format!("cannot read OUTRIGGER_KAFKA_{variable}={shown}: {error}")
                })?;
            }
        }
        Ok(())
    }

    /// How connections are secured, in Kafka's own word.
    pub(super) fn protocol(&self) -> &'static str {
        match (self.tls, self.sasl.is_some()) {
            (false, false) => "plaintext",
            (true, false) => "ssl",
            (false, true) => "sasl_plaintext",
            (true, true) => "sasl_ssl",
        }
    }

    /// The password as it is now.
    pub(super) async fn current_password(&self) -> Result<Option<SecretString>, String> {
        match &self.password_file {
            Some(file) => file.read_again().await.map(Some),
            None => Ok(self.password.clone()),
        }
    }

    /// librdkafka's configuration. Holds the password in plain: never show it.
    pub(super) fn client_config(&self, password: Option<&SecretString>) -> ClientConfig {
        let mut config = ClientConfig::new();
        let mut set = |name: &str, value: &str| {
            config.set(name, value);
        };
        set("bootstrap.servers", &self.brokers.join(","));
        set("client.id", "outrigger");
        set("security.protocol", self.protocol());
        for (name, file) in [
            ("ssl.ca.location", &self.ca_file),
            ("ssl.certificate.location", &self.cert_file),
            ("ssl.key.location", &self.key_file),
        ] {
            if let Some(file) = file {
                set(name, &file.to_string_lossy());
            }
        }
        if let Some(mechanism) = self.sasl {
            let mechanism = match mechanism {
                SaslMechanism::Plain => "PLAIN",
                SaslMechanism::ScramSha256 => "SCRAM-SHA-256",
                SaslMechanism::ScramSha512 => "SCRAM-SHA-512",
            };
            set("sasl.mechanism", mechanism);
            set(
                "sasl.username",
                self.username.as_deref().unwrap_or_default(),
            );
            let password = password.map(ExposeSecret::expose_secret);
            set("sasl.password", password.unwrap_or_default());
        }

        set("enable.idempotence", "true");
        set("acks", "all");
        // Never gives up a single message: a later one of its key could still go then. The lane has
        // a limit instead, and gives up the whole producer.
        set("message.timeout.ms", "0");
        // Batches are handed over whole, and grow by themselves while others are in flight.
        set("linger.ms", "0");
        set("queue.buffering.max.messages", "100000");
        let room = (64 * 1024 * 1024).max(2 * self.max_message_size);
        set("queue.buffering.max.kbytes", &(room / 1024).to_string());
        let largest = self.max_message_size + RECORD_OVERHEAD;
        set("message.max.bytes", &largest.to_string());
        let batch = self.max_message_size.min(RECORD_BATCH_SIZE);
        set("batch.size", &batch.to_string());
        let compression = match self.compression {
            Compression::None => "none",
            Compression::Gzip => "gzip",
            Compression::Snappy => "snappy",
            Compression::Lz4 => "lz4",
            Compression::Zstd => "zstd",
        };
        set("compression.type", compression);
        let partitioner = match self.partitioner {
            Partitioner::Murmur2 => "murmur2_random",
            Partitioner::Crc32 => "consistent_random",
        };
        set("partitioner", partitioner);
        set("reconnect.backoff.max.ms", "5000");
        set("socket.keepalive.enable", "true");
        // A topic is looked up before its first use, so one that is gone is gone.
        set("topic.metadata.propagation.max.ms", "1000");
        set("log.connection.close", "false");
        config.set_log_level(RDKafkaLogLevel::Warning);
        config
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn good() -> KafkaSettings {
        KafkaSettings {
            brokers: vec!["kafka:9092".into()],
            ..KafkaSettings::default()
        }
    }

    #[track_caller]
    fn check(settings: &KafkaSettings, expected: &[&str]) {
        let problems = settings.validate();
        assert_eq!(problems.len(), expected.len(), "{problems:#?}");
        for (problem, part) in problems.iter().zip(expected) {
            assert!(problem.contains(part), "{problem:?} lacks {part:?}");
        }
    }

    #[test]
    fn brokers_are_all_that_is_needed() {
        check(&good(), &[]);
        check(&KafkaSettings::default(), &["OUTRIGGER_KAFKA_BROKERS"]);
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let settings = KafkaSettings {
            confirm_timeout: Duration::ZERO,
            max_message_size: 10,
            cert_file: Some("client.pem".into()),
            username: Some("orders".into()),
            ..KafkaSettings::default()
        };
        check(
            &settings,
            &[
                "BROKERS",
                "CONFIRM_TIMEOUT",
                "MAX_MESSAGE_SIZE",
                "needs both",
                "KAFKA_TLS=true",
                "without OUTRIGGER_KAFKA_SASL_MECHANISM",
            ],
        );
        let half = KafkaSettings {
            sasl: Some(SaslMechanism::Plain),
            username: Some("orders".into()),
            ..good()
        };
        check(&half, &["needs OUTRIGGER_KAFKA_USERNAME"]);
    }

    #[test]
    fn librdkafka_takes_every_choice() {
        use Compression::{Gzip, Lz4, None as Plain, Snappy, Zstd};
        for compression in [Plain, Gzip, Snappy, Lz4, Zstd] {
            for partitioner in [Partitioner::Murmur2, Partitioner::Crc32] {
                for sasl in [
                    None,
                    Some(SaslMechanism::Plain),
                    Some(SaslMechanism::ScramSha256),
                    Some(SaslMechanism::ScramSha512),
                ] {
                    for tls in [false, true] {
                        let settings = KafkaSettings {
                            compression,
                            partitioner,
                            sasl,
                            tls,
                            username: sasl.map(|_| "orders".into()),
                            password: sasl.map(|_| "s3cret".into()),
                            ..good()
                        };
                        check(&settings, &[]);
                        let created = settings
                            .client_config(settings.password.as_ref())
                            .create::<rdkafka::producer::BaseProducer>();
                        assert!(created.is_ok(), "{settings:?}: {:?}", created.err());
                    }
                }
            }
        }
    }

    #[test]
    fn the_debug_form_hides_the_password() {
        let settings = KafkaSettings {
            password: Some("s3cret".into()),
            ..good()
        };
        assert!(!format!("{settings:?}").contains("s3cret"));
    }
}
