//! The settings of the RabbitMQ sink, and everything that can be said about them without a broker.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};

use super::endpoint::Endpoint;
use crate::secret_file::{SecretFile, split_urls};
use crate::sink::urls::{listed, parse_each};
use crate::tls::{Files, half_a_pair};

/// RabbitMQ accepts no larger `max_message_size` than this.
const MAX_MESSAGE_SIZE_CEILING: usize = 512 * 1024 * 1024;

/// More channels than this only cost the broker memory.
const MAX_CHANNELS: usize = 256;

/// How to reach RabbitMQ and how to publish to it. Plain data.
#[derive(Debug, Clone)]
pub struct RabbitMqSettings {
    /// AMQP URLs of the brokers of one cluster, tried in this order. At least one.
    pub urls: Vec<SecretString>,
    /// How the user named the setting of the URLs, for messages; may be empty.
    pub url_name: String,
    /// Where the URLs are read again before each connection; takes the place of `urls`.
    pub url_file: Option<SecretFile>,
    /// Declare missing exchanges (durable, of [`exchange_type`](Self::exchange_type)) instead of
    /// only verifying that they exist.
    pub declare: bool,
    /// Type of the exchanges that [`declare`](Self::declare) creates.
    pub exchange_type: String,
    /// Publishing channels, each with one batch in flight: the sink's parallelism.
    pub channels: usize,
    /// How long a batch may wait for all of its confirms, writing included.
    pub confirm_timeout: Duration,
    /// PEM file with the certificate authorities to trust *instead of* the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM file with the client certificate chain.
    pub cert_file: Option<PathBuf>,
    /// PEM file with the client certificate's private key.
    pub key_file: Option<PathBuf>,
    /// Largest body in bytes that is sent; no larger than the broker's own `max_message_size`.
    pub max_message_size: usize,
    /// Let a message expire when its row does.
    pub expiration: bool,
    /// Name of the connection in the broker's management pages and logs.
    pub connection_name: String,
    /// The `app_id` property of every message; `None` means `outrigger`.
    pub app_id: Option<String>,
    /// Queues that must be there before anything is published; may be empty. While one is missing, or on a node that is
    /// down, the sink is not ready.
    pub queues: Vec<String>,
    /// How long events wait, without losing an attempt, for a queue of a route that once had one. Zero: not at all.
    pub unroutable_patience: Duration,
    /// Exchanges known from the configuration. The sink is not ready before they exist, so that
    /// a missing exchange is an outage and costs no event an attempt.
    pub known_destinations: Vec<String>,
}

impl Default for RabbitMqSettings {
    fn default() -> Self {
        Self {
            urls: Vec::new(),
            url_name: String::new(),
            url_file: None,
            declare: false,
            exchange_type: "topic".to_owned(),
            channels: 8,
            confirm_timeout: Duration::from_secs(30),
            ca_file: None,
            cert_file: None,
            key_file: None,
            max_message_size: 16 * 1024 * 1024,
            expiration: false,
            connection_name: "outrigger".to_owned(),
            app_id: None,
            queues: Vec::new(),
            unroutable_patience: Duration::from_secs(24 * 60 * 60),
            known_destinations: Vec::new(),
        }
    }
}

impl RabbitMqSettings {
    /// Everything wrong with these settings, each naming its variable. Never echoes a URL, which
    /// may hold a password. Reads no file and opens no connection.
    pub fn validate(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let endpoints = self.parse_urls(&mut problems);
        self.check_limits(&mut problems);
        self.check_names(&mut problems);
        self.check_tls(&endpoints, &mut problems);
        for endpoint in &endpoints {
            if endpoint
                .channel_max()
                .is_some_and(|max| usize::from(max) < self.channels + 1)
            {
                problems.push(format!(
                    "OUTRIGGER_RABBITMQ_URL allows fewer channels (channel_max) than \
                     OUTRIGGER_RABBITMQ_CHANNELS={} and one for checks need",
                    self.channels
                ));
            }
        }
        problems
    }

    /// Where events go: hosts, ports and vhost, without credentials. Equal for the same brokers, however they are
    /// written.
    pub fn target(&self) -> String {
        let endpoints = self.parse_urls(&mut Vec::new());
        let mut vhosts: Vec<&str> = endpoints.iter().map(Endpoint::vhost).collect();
        vhosts.sort_unstable();
        vhosts.dedup();
        let of = |vhost: &str| {
            let there = endpoints.iter().filter(|place| place.vhost() == vhost);
            let places = listed(there.map(|place| match place.host() {
                host if host.contains(':') => format!("[{host}]:{}", place.port()),
                host => format!("{host}:{}", place.port()),
            }));
            format!("{places} vhost {vhost}")
        };
        let all: Vec<String> = vhosts.into_iter().map(of).collect();
        all.join("; ")
    }

    /// What they say about TLS.
    pub(super) fn tls(&self) -> Files<'_> {
        Files::of(
            "OUTRIGGER_RABBITMQ",
            self.ca_file.as_ref(),
            self.cert_file.as_ref(),
            self.key_file.as_ref(),
        )
    }

    /// The parsed endpoints, or every problem of [`validate`](Self::validate).
    pub(super) fn endpoints(&self) -> Result<Vec<Endpoint>, Vec<String>> {
        let problems = self.validate();
        if problems.is_empty() {
            Ok(self.parse_urls(&mut Vec::new()))
        } else {
            Err(problems)
        }
    }

    /// The endpoints as they are now: those that were parsed, or what the file says by this time.
    pub(super) async fn endpoints_now(&self, parsed: &[Endpoint]) -> Result<Vec<Endpoint>, String> {
        let Some(file) = &self.url_file else {
            return Ok(parsed.to_vec());
        };
        let text = file.read_again().await?;
        let urls = split_urls(text.expose_secret()).map(SecretString::from);
        let settings = Self {
            urls: urls.collect(),
            ..self.clone()
        };
        settings.endpoints().map_err(|problems| problems.join("; "))
    }

    fn parse_urls(&self, problems: &mut Vec<String>) -> Vec<Endpoint> {
        if self.urls.is_empty() {
            problems.push(
                "OUTRIGGER_RABBITMQ_URL is not set; give an AMQP URL such as \
                 `amqp://user:password@host:5672/vhost`"
                    .to_owned(),
            );
        }
        parse_each(
            "OUTRIGGER_RABBITMQ_URL",
            &self.urls,
            Endpoint::parse,
            problems,
        )
    }

    fn check_limits(&self, problems: &mut Vec<String>) {
        if !(1..=MAX_CHANNELS).contains(&self.channels) {
            problems.push(format!(
                "OUTRIGGER_RABBITMQ_CHANNELS must be between 1 and {MAX_CHANNELS}, not {}",
                self.channels
            ));
        }
        if self.confirm_timeout.is_zero() {
            problems.push(
                "OUTRIGGER_RABBITMQ_CONFIRM_TIMEOUT must be longer than zero, for example `30s`"
                    .to_owned(),
            );
        }
        if !(1..=MAX_MESSAGE_SIZE_CEILING).contains(&self.max_message_size) {
            problems.push(format!(
                "OUTRIGGER_RABBITMQ_MAX_MESSAGE_SIZE must be between 1 byte and 512MiB \
                 (RabbitMQ's ceiling), not {} bytes",
                self.max_message_size
            ));
        }
    }

    fn check_names(&self, problems: &mut Vec<String>) {
        let mut short = |variable: &str, value: &str| {
            if value.len() > 255 {
                problems.push(format!(
                    "{variable} has {} bytes, more than the 255 of an AMQP short string; shorten it",
                    value.len()
                ));
            }
        };
        short("OUTRIGGER_RABBITMQ_EXCHANGE_TYPE", &self.exchange_type);
        short(
            "OUTRIGGER_RABBITMQ_APP_ID",
            self.app_id.as_deref().unwrap_or_default(),
        );
        for destination in &self.known_destinations {
            short("OUTRIGGER_ROUTE_DESTINATION", destination);
        }
        for queue in &self.queues {
            short("OUTRIGGER_RABBITMQ_QUEUES", queue);
        }
        if self.exchange_type.is_empty() {
            problems.push(
                "OUTRIGGER_RABBITMQ_EXCHANGE_TYPE is empty; use for example `topic`".to_owned(),
            );
        }
    }

    fn check_tls(&self, endpoints: &[Endpoint], problems: &mut Vec<String>) {
        problems.extend(half_a_pair(
            "OUTRIGGER_RABBITMQ",
            self.cert_file.as_ref(),
            self.key_file.as_ref(),
        ));
        let any_file =
            self.ca_file.is_some() || self.cert_file.is_some() || self.key_file.is_some();
        if any_file && !endpoints.is_empty() && !endpoints.iter().any(Endpoint::is_tls) {
            problems.push(
                "OUTRIGGER_RABBITMQ_CA_FILE, _CERT_FILE and _KEY_FILE only act on `amqps://` URLs, \
                 and OUTRIGGER_RABBITMQ_URL has none; use `amqps://` or unset them"
                    .to_owned(),
            );
        }
        if endpoints.iter().any(Endpoint::is_external) && self.cert_file.is_none() {
            problems.push(
                "auth_mechanism=external in OUTRIGGER_RABBITMQ_URL authenticates by client \
                 certificate; set OUTRIGGER_RABBITMQ_CERT_FILE and OUTRIGGER_RABBITMQ_KEY_FILE"
                    .to_owned(),
            );
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn with_url(url: &str) -> RabbitMqSettings {
        RabbitMqSettings {
            urls: vec![SecretString::from(url)],
            ..RabbitMqSettings::default()
        }
    }

    #[track_caller]
    fn check(settings: &RabbitMqSettings, expected: &[&str]) {
        let problems = settings.validate();
        assert_eq!(problems.len(), expected.len(), "{problems:#?}");
        for (problem, part) in problems.iter().zip(expected) {
            assert!(problem.contains(part), "{problem:?} lacks {part:?}");
        }
    }

    #[test]
    fn a_plain_url_is_all_that_is_needed() {
        check(&with_url("amqp://user:secret@broker:5672/shop"), &[]);
        check(
            &RabbitMqSettings::default(),
            &["OUTRIGGER_RABBITMQ_URL is not set"],
        );
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let settings = RabbitMqSettings {
            urls: vec!["amqp://a".into(), "http://b".into(), "amqp://c/d/e".into()],
            channels: 0,
            confirm_timeout: Duration::ZERO,
            max_message_size: usize::MAX,
            exchange_type: String::new(),
            app_id: Some("a".repeat(256)),
            known_destinations: vec!["d".repeat(300)],
            cert_file: Some("client.pem".into()),
            ..RabbitMqSettings::default()
        };
        check(
            &settings,
            &[
                "number 2",
                "number 3",
                "OUTRIGGER_RABBITMQ_CHANNELS",
                "OUTRIGGER_RABBITMQ_CONFIRM_TIMEOUT",
                "OUTRIGGER_RABBITMQ_MAX_MESSAGE_SIZE",
                "OUTRIGGER_RABBITMQ_APP_ID has 256 bytes",
                "OUTRIGGER_ROUTE_DESTINATION has 300 bytes",
                "OUTRIGGER_RABBITMQ_EXCHANGE_TYPE is empty",
                "without OUTRIGGER_RABBITMQ_KEY_FILE",
                "only act on `amqps://`",
            ],
        );
    }

    #[test]
    fn the_target_is_the_same_however_it_is_written() {
        let of = |urls: &[&str]| RabbitMqSettings {
            urls: urls.iter().map(|url| SecretString::from(*url)).collect(),
            ..RabbitMqSettings::default()
        };
        let target = |urls: &[&str]| of(urls).target();
        assert_eq!(target(&["amqp://Broker"]), "broker:5672 vhost /");
        for same in [
            &["amqp://u:secret@b:5672/shop", "amqp://u:secret@a/shop"][..],
            &["amqp://other:rotated@a/shop", "amqp://b/shop?heartbeat=5"],
        ] {
            assert_eq!(target(same), "a:5672, b:5672 vhost shop");
        }
        assert_eq!(target(&["amqp://a//"]), target(&["amqp://a/%2f"]));
        for other in [
            "amqp://a/other",
            "amqp://127.0.0.1/shop",
            "amqp://a:5673/shop",
        ] {
            assert_ne!(target(&[other]), target(&["amqp://a/shop"]), "{other}");
        }
        assert_eq!(target(&["amqps://[::1]/v"]), "[::1]:5671 vhost v");
    }

    #[test]
    fn external_needs_a_client_certificate() {
        let mut settings = with_url("amqps://broker/%2f?auth_mechanism=external");
        check(&settings, &["OUTRIGGER_RABBITMQ_CERT_FILE"]);
        settings.cert_file = Some("client.pem".into());
        settings.key_file = Some("client.key".into());
        check(&settings, &[]);
    }

    #[test]
    fn too_few_channels_in_the_url_are_noticed() {
        check(&with_url("amqp://broker?channel_max=8"), &["channel_max"]);
        check(&with_url("amqp://broker?channel_max=9"), &[]);
    }

    #[test]
    fn the_debug_form_hides_the_password() {
        let shown = format!("{:?}", with_url("amqp://user:s3cret@broker"));
        assert!(!shown.contains("s3cret"), "{shown}");
    }
}
