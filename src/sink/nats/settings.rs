//! The settings of the NATS sink, and everything that can be said about them without a server.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use url::Url;

use crate::secret_file::{SecretFile, split_urls};
use crate::sink::urls::{listed, parse_each, percent_decoded};
use crate::tls::{Files, half_a_pair};
use crate::user_info;

/// More lanes than this only cost memory.
const MAX_LANES: usize = 256;

/// How to reach NATS and how to publish to it. Plain data.
#[derive(Debug, Clone)]
pub struct NatsSettings {
    /// `nats://` or `tls://` URLs of the servers of one cluster, tried in this order. At least one. They
    /// may hold `user:password@` or `token@`.
    pub urls: Vec<SecretString>,
    /// How the user named the setting of the URLs, for messages; may be empty.
    pub url_name: String,
    /// Where the URLs are read again before each connection; takes the place of `urls`.
    pub url_file: Option<SecretFile>,
    /// A credentials file (JWT and seed), as `nsc` writes it.
    pub credentials_file: Option<PathBuf>,
    /// The seed of an NKey.
    pub nkey_seed: Option<SecretString>,
    /// Where the seed is read again before each connection; takes the place of `nkey_seed`.
    pub nkey_seed_file: Option<SecretFile>,
    /// Batches under way side by side: the sink's parallelism.
    pub lanes: usize,
    /// How long a batch may wait for all of its acknowledgements, writing included.
    pub confirm_timeout: Duration,
    /// PEM file with the certificate authorities to trust *instead of* the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM file with the client certificate chain.
    pub cert_file: Option<PathBuf>,
    /// PEM file with the client certificate's private key.
    pub key_file: Option<PathBuf>,
    /// First part of the subjects that answers come to.
    pub inbox_prefix: String,
    /// Name of the connection in the server's monitoring.
    pub connection_name: String,
    /// Streams known from the configuration. The sink is not ready before they exist, so that
    /// a missing stream is an outage and costs no event an attempt.
    pub known_destinations: Vec<String>,
}

impl Default for NatsSettings {
    fn default() -> Self {
        Self {
            urls: Vec::new(),
            url_name: String::new(),
            url_file: None,
            credentials_file: None,
            nkey_seed: None,
            nkey_seed_file: None,
            lanes: 8,
            confirm_timeout: Duration::from_secs(30),
            ca_file: None,
            cert_file: None,
            key_file: None,
            inbox_prefix: "_INBOX".to_owned(),
            connection_name: "outrigger".to_owned(),
            known_destinations: Vec::new(),
        }
    }
}

/// One server of the cluster. Shown without its secrets.
#[derive(Clone)]
pub(super) struct Server {
    /// Without user and password.
    pub(super) address: String,
    pub(super) host: String,
    pub(super) tls: bool,
    pub(super) user: Option<String>,
    pub(super) password: Option<SecretString>,
    pub(super) token: Option<SecretString>,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.address)
    }
}

impl Server {
    /// Never echoes the URL in its error, which may hold a password.
    fn parse(url: &SecretString) -> Result<Self, String> {
        let remedy = user_info::REMEDY;
        user_info::check(url.expose_secret()).map_err(|rule| format!("{rule}: {remedy}"))?;
        let url = Url::parse(url.expose_secret())
            .map_err(|error| format!("not a URL ({error}); {remedy}"))?;
        let tls = match url.scheme() {
            "nats" => false,
            "tls" => true,
            _ => return Err("unknown scheme; use `nats://` or, encrypted, `tls://`".to_owned()),
        };
        let host = url.host_str().filter(|host| !host.is_empty());
        let host = host.ok_or("no host; write `nats://host:4222`")?.to_owned();
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(format!(
                "nothing may follow host and port; other options are settings; {remedy}"
            ));
        }
        let decoded = |text: &str| {
            String::from_utf8(percent_decoded(text))
                .map_err(|_| "user or password is not valid UTF-8".to_owned())
        };
        let user = decoded(url.username())?;
        let password = url.password().map(decoded).transpose()?;
        let (user, token) = match password {
            Some(_) => (Some(user), None),
            None if user.is_empty() => (None, None),
            None => (None, Some(SecretString::from(user))),
        };
        Ok(Self {
            address: format!("{}://{host}:{}", url.scheme(), url.port().unwrap_or(4222)),
            host,
            tls,
            user,
            password: password.map(SecretString::from),
            token,
        })
    }

    fn has_credentials(&self) -> bool {
        self.user.is_some() || self.token.is_some()
    }
}

impl NatsSettings {
    pub(super) fn tls(&self) -> Files<'_> {
        Files::of(
            "OUTRIGGER_NATS",
            self.ca_file.as_ref(),
            self.cert_file.as_ref(),
            self.key_file.as_ref(),
        )
    }

    /// Everything wrong with these settings, each naming its variable. Never echoes a URL, which
    /// may hold a password. Reads no file and opens no connection.
    pub fn validate(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let servers = self.parse_urls(&mut problems);
        if !(1..=MAX_LANES).contains(&self.lanes) {
            problems.push(format!(
                "OUTRIGGER_NATS_LANES must be between 1 and {MAX_LANES}, not {}",
                self.lanes
            ));
        }
        if self.confirm_timeout.is_zero() {
            problems.push(
                "OUTRIGGER_NATS_CONFIRM_TIMEOUT must be longer than zero, for example `30s`"
                    .to_owned(),
            );
        }
        let prefix = &self.inbox_prefix;
        if prefix.split('.').any(str::is_empty) || prefix.contains([' ', '*', '>']) {
            problems.push(
                "OUTRIGGER_NATS_INBOX_PREFIX must be a subject without wildcards, for example `_INBOX`"
                    .to_owned(),
            );
        }
        let ways = [
            self.credentials_file.is_some(),
            self.nkey_seed.is_some(),
            servers.iter().any(Server::has_credentials),
        ];
        if ways.iter().filter(|way| **way).count() > 1 {
            problems.push(
                "OUTRIGGER_NATS_CREDENTIALS_FILE, OUTRIGGER_NATS_NKEY_SEED and a user or token in \
                 OUTRIGGER_NATS_URL are different ways to log in; keep one"
                    .to_owned(),
            );
        }
        problems.extend(half_a_pair(
            "OUTRIGGER_NATS",
            self.cert_file.as_ref(),
            self.key_file.as_ref(),
        ));
        problems
    }

    /// The parsed servers, or every problem of [`validate`](Self::validate).
    pub(super) fn servers(&self) -> Result<Vec<Server>, Vec<String>> {
        let problems = self.validate();
        if problems.is_empty() {
            Ok(self.parse_urls(&mut Vec::new()))
        } else {
            Err(problems)
        }
    }

    /// The servers as they are now: those that were parsed, or what the file says by this time.
    pub(super) async fn servers_now(&self, parsed: &[Server]) -> Result<Vec<Server>, String> {
        let Some(file) = &self.url_file else {
            return Ok(parsed.to_vec());
        };
        let text = file.read_again().await?;
        let urls = split_urls(text.expose_secret()).map(SecretString::from);
        let settings = Self {
            urls: urls.collect(),
            ..self.clone()
        };
        settings.servers().map_err(|problems| problems.join("; "))
    }

    /// Where events go: hosts and ports, without credentials. Equal for the same servers, however they are written.
    pub fn target(&self) -> String {
        let servers = self.parse_urls(&mut Vec::new());
        let bare = |server: &Server| {
            let bare = server.address.split_once("://");
            bare.map_or_else(|| server.address.clone(), |(_, bare)| bare.to_owned())
        };
        listed(servers.iter().map(bare))
    }

    fn parse_urls(&self, problems: &mut Vec<String>) -> Vec<Server> {
        if self.urls.is_empty() {
            problems.push(
                "OUTRIGGER_NATS_URL is not set; give a URL such as `nats://user:password@host:4222`"
                    .to_owned(),
            );
        }
        parse_each("OUTRIGGER_NATS_URL", &self.urls, Server::parse, problems)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn with_url(url: &str) -> NatsSettings {
        NatsSettings {
            urls: vec![SecretString::from(url)],
            ..NatsSettings::default()
        }
    }

    #[track_caller]
    fn check(settings: &NatsSettings, expected: &[&str]) {
        let problems = settings.validate();
        assert_eq!(problems.len(), expected.len(), "{problems:#?}");
        for (problem, part) in problems.iter().zip(expected) {
            assert!(problem.contains(part), "{problem:?} lacks {part:?}");
        }
    }

    #[test]
    fn the_target_is_the_same_however_it_is_written() {
        let target = |urls: &[&str]| {
            NatsSettings {
                urls: urls.iter().map(|url| SecretString::from(*url)).collect(),
                ..NatsSettings::default()
            }
            .target()
        };
        let expected = "a:4222, b:4222";
        assert_eq!(
            target(&["nats://u:secret@b/", "nats://token@a:4222"]),
            expected
        );
        assert_eq!(target(&["tls://A", "nats://b"]), expected);
        assert_ne!(target(&["nats://localhost"]), target(&["nats://127.0.0.1"]));
    }

    #[test]
    fn a_url_may_hold_a_user_or_a_token() {
        check(&with_url("nats://localhost"), &[]);
        let server = |url: &str| Server::parse(&SecretString::from(url)).unwrap();
        let plain = server("nats://broker");
        assert_eq!(plain.to_string(), "nats://broker:4222");
        assert!(!plain.has_credentials());
        let user = server("tls://o%40x:p%2fw@broker:4443");
        assert_eq!(user.user.as_deref(), Some("o@x"));
        assert_eq!(user.password.unwrap().expose_secret(), "p/w");
        assert!(user.tls);
        let token = server("nats://t0ken@broker");
        assert_eq!(token.token.as_ref().unwrap().expose_secret(), "t0ken");
        assert!(!token.to_string().contains("t0ken"));
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let settings = NatsSettings {
            urls: vec![
                "nats://a@b".into(),
                "http://s3cret@b".into(),
                "nats://c/d".into(),
            ],
            nkey_seed: Some("SU".into()),
            lanes: 0,
            confirm_timeout: Duration::ZERO,
            inbox_prefix: "a.>".into(),
            key_file: Some("client.key".into()),
            ..NatsSettings::default()
        };
        check(
            &settings,
            &[
                "number 2",
                "number 3",
                "OUTRIGGER_NATS_LANES",
                "OUTRIGGER_NATS_CONFIRM_TIMEOUT",
                "OUTRIGGER_NATS_INBOX_PREFIX",
                "different ways to log in",
                "without OUTRIGGER_NATS_CERT_FILE",
            ],
        );
        assert!(!settings.validate().concat().contains("s3cret"));
        check(&NatsSettings::default(), &["OUTRIGGER_NATS_URL is not set"]);
    }
}
