//! The settings of the http sink, and everything that can be said about them without a service.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};

use super::target::Target;
use crate::secret_file::SecretFile;
use crate::tls::{Files, half_a_pair};

/// More connections than this are a mistake.
const MAX_CONNECTIONS: usize = 1024;

/// How to reach the service. Plain data.
#[derive(Debug, Clone)]
pub struct HttpSettings {
    /// Where events are posted, `http://` or `https://`. May hold `user:password@`.
    pub url: SecretString,
    /// Where the URL is read again when the service does not accept the credentials.
    pub url_file: Option<SecretFile>,
    /// The value of the `Authorization` header.
    pub authorization: Option<SecretString>,
    /// Where that value is read again when the service does not accept it.
    pub authorization_file: Option<SecretFile>,
    /// Requests under way side by side, each on a connection of its own: the sink's parallelism.
    pub connections: usize,
    /// How long one request may take.
    pub timeout: Duration,
    /// PEM file with the certificate authorities to trust *instead of* the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM file with the client certificate chain.
    pub cert_file: Option<PathBuf>,
    /// PEM file with the client certificate's private key.
    pub key_file: Option<PathBuf>,
    /// Largest body in bytes that is sent.
    pub max_message_size: usize,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self {
            url: SecretString::from(""),
            url_file: None,
            authorization: None,
            authorization_file: None,
            connections: 16,
            timeout: Duration::from_secs(30),
            ca_file: None,
            cert_file: None,
            key_file: None,
            max_message_size: 16 * 1024 * 1024,
        }
    }
}

impl HttpSettings {
    /// Everything wrong with these settings, each naming its variable. Never echoes the URL, which
    /// may hold a password. Reads no file and opens no connection.
    pub fn validate(&self) -> Vec<String> {
        self.target().err().unwrap_or_default()
    }

    /// Where events go, without credentials: scheme, host and port, and a digest of the path, which may be secret.
    /// Equal for the same service, however it is written.
    pub fn place(&self) -> String {
        let target = Target::parse(&self.url, None);
        target.map(|target| target.place()).unwrap_or_default()
    }

    /// The target as it is now, if a file has anything to say about it.
    pub(super) async fn target_now(&self) -> Result<Option<Target>, String> {
        if self.url_file.is_none() && self.authorization_file.is_none() {
            return Ok(None);
        }
        let mut settings = self.clone();
        if let Some(file) = &self.url_file {
            settings.url = file.read_again().await?;
        }
        if let Some(file) = &self.authorization_file {
            settings.authorization = Some(file.read_again().await?);
        }
        let target = settings.target();
        target.map(Some).map_err(|problems| problems.join("; "))
    }

    /// The parsed target, or every problem of [`validate`](Self::validate).
    pub(super) fn target(&self) -> Result<Target, Vec<String>> {
        let mut problems = Vec::new();
        let target = Target::parse(&self.url, self.authorization.as_ref());
        if self.url.expose_secret().is_empty() {
            problems.push(
                "OUTRIGGER_HTTP_URL is not set; give a URL such as `https://orders.internal/events`"
                    .to_owned(),
            );
        } else if let Err(problem) = &target {
            problems.push(problem.clone());
        }
        if !(1..=MAX_CONNECTIONS).contains(&self.connections) {
            problems.push(format!(
                "OUTRIGGER_HTTP_CONNECTIONS must be between 1 and {MAX_CONNECTIONS}, not {}",
                self.connections
            ));
        }
        if self.timeout.is_zero() {
            problems.push(
                "OUTRIGGER_HTTP_TIMEOUT must be longer than zero, for example `30s`".to_owned(),
            );
        }
        if self.max_message_size == 0 {
            problems.push("OUTRIGGER_HTTP_MAX_MESSAGE_SIZE must be more than zero".to_owned());
        }
        problems.extend(half_a_pair(
            "OUTRIGGER_HTTP",
            self.cert_file.as_ref(),
            self.key_file.as_ref(),
        ));
        match target {
            Ok(target) if problems.is_empty() => Ok(target),
            _ => Err(problems),
        }
    }

    /// What they say about TLS.
    pub(super) fn tls(&self) -> Files<'_> {
        Files::of(
            "OUTRIGGER_HTTP",
            self.ca_file.as_ref(),
            self.cert_file.as_ref(),
            self.key_file.as_ref(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_is_reported_at_once() {
        let settings = HttpSettings {
            url: "ftp://u:s3cret@h".into(),
            connections: 0,
            timeout: Duration::ZERO,
            max_message_size: 0,
            cert_file: Some("client.pem".into()),
            ..HttpSettings::default()
        };
        let problems = settings.validate();
        for (problem, part) in problems.iter().zip([
            "OUTRIGGER_HTTP_URL",
            "OUTRIGGER_HTTP_CONNECTIONS",
            "OUTRIGGER_HTTP_TIMEOUT",
            "OUTRIGGER_HTTP_MAX_MESSAGE_SIZE",
            "without OUTRIGGER_HTTP_KEY_FILE",
        ]) {
            assert!(problem.contains(part), "{problem:?} lacks {part:?}");
        }
        assert_eq!(problems.len(), 5, "{problems:#?}");
        assert!(!problems.concat().contains("s3cret"));
        let unset = HttpSettings::default().validate();
        assert!(
            unset.len() == 1 && unset[0].contains("not set"),
            "{unset:?}"
        );
    }
}
