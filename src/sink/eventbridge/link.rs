//! The way to EventBridge, and what may go wrong on it.

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_config::BehaviorVersion;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};
use aws_sdk_eventbridge::Client;
use aws_sdk_eventbridge::config::retry::RetryConfig;
use aws_sdk_eventbridge::config::timeout::TimeoutConfig;
use aws_sdk_eventbridge::config::{Builder, Region, StalledStreamProtectionConfig};
use aws_sdk_eventbridge::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_eventbridge::types::{PutEventsRequestEntry, PutEventsResultEntry};
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use secrecy::ExposeSecret as _;
use tokio::sync::watch;
use tokio::time::Instant;

use super::settings::EventBridgeSettings;
use super::words::explain;
use crate::secret_file::SecretFile;

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A bus that was there is looked up again after this long: events for one that was deleted meanwhile are dropped without
/// a word.
const BUS_IS_KNOWN_FOR: Duration = Duration::from_secs(30);

/// Buses remembered at most. Beyond that, the list starts afresh: rows name them.
const BUSES_MAX: usize = 1000;

/// What a request came to that was not carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    /// No answer, or one to the credentials: nothing can be published.
    Outage(String),
    /// Too much is asked of it, or it is ill: time will tell.
    Busy(String),
    /// This user may not.
    Forbidden(String),
    /// There is no such bus.
    Absent,
    /// It is about what was asked.
    Refused(String),
}

/// When a bus was last seen. Locked while it is looked up, so that lanes that need it together ask once.
type Seen = Arc<tokio::sync::Mutex<Option<Instant>>>;

/// A client with the credentials that were there when it was made, until it fails.
pub(super) struct Link {
    client: Client,
    buses: Mutex<HashMap<String, Seen>>,
    /// Why it is of no more use.
    failed: watch::Sender<Option<String>>,
}

impl Link {
    /// A client by AWS's own rules: variables, profiles, web identity, container and instance roles. Connects with the
    /// first request.
    pub(super) async fn open(settings: &EventBridgeSettings) -> Result<Self, String> {
        Ok(Self {
            client: Box::pin(client(settings)).await?,
            buses: Mutex::default(),
            failed: watch::Sender::new(None),
        })
    }

    pub(super) fn region(&self) -> String {
        let region = self.client.config().region();
        region.map(ToString::to_string).unwrap_or_default()
    }

    /// Nothing can be published by it.
    pub(super) fn fail(&self, reason: String) {
        self.failed
            .send_if_modified(|failed| match failed.is_none() {
                true => {
                    *failed = Some(reason);
                    true
                }
                false => false,
            });
    }

    /// Why it has failed, if it has.
    pub(super) fn failure(&self) -> Option<String> {
        self.failed.borrow().clone()
    }

    /// Waits until it has failed, and says why.
    pub(super) async fn failed(&self) -> String {
        let mut failed = self.failed.subscribe();
        // The sender is in here: there is no other error.
        let _ = failed.wait_for(Option::is_some).await;
        self.failure().unwrap_or_default()
    }

    /// Results in the order of the entries.
    pub(super) async fn put(
        &self,
        entries: Vec<PutEventsRequestEntry>,
    ) -> Result<Vec<PutEventsResultEntry>, Trouble> {
        let putting = self.client.put_events().set_entries(Some(entries));
        let answer = Box::pin(putting.send()).await;
        let answer = answer.map_err(|error| trouble(&error))?;
        Ok(answer.entries.unwrap_or_default())
    }

    /// Whether a bus exists; an empty name is the account's default bus.
    pub(super) async fn look_up(&self, bus: &str) -> Result<(), Trouble> {
        let name = Some(bus.to_owned()).filter(|name| !name.is_empty());
        let asking = self.client.describe_event_bus().set_name(name);
        let answer = Box::pin(asking.send()).await;
        answer.map(drop).map_err(|error| trouble(&error))
    }

    /// Whether a bus exists, as far as this user may know, or was seen a moment ago.
    pub(super) async fn know(&self, bus: &str) -> Result<(), Trouble> {
        let seen = self.seen(bus);
        let mut seen = seen.lock().await;
        if seen.is_some_and(|seen| seen.elapsed() < BUS_IS_KNOWN_FOR) {
            return Ok(());
        }
        // Whoever waited for this lock need not fail the same way for as long.
        if let Some(reason) = self.failure() {
            return Err(Trouble::Outage(reason));
        }
        *seen = None;
        match self.look_up(bus).await {
            // Whoever may only publish has to trust the route.
            Ok(()) | Err(Trouble::Forbidden(_)) => {
                *seen = Some(Instant::now());
                Ok(())
            }
            Err(trouble) => {
                if let Trouble::Outage(reason) = &trouble {
                    self.fail(reason.clone());
                }
                Err(trouble)
            }
        }
    }

    /// The next to publish to it looks it up.
    pub(super) fn forget(&self, bus: &str) {
        self.buses().remove(bus);
    }

    fn seen(&self, bus: &str) -> Seen {
        let mut buses = self.buses();
        if let Some(seen) = buses.get(bus) {
            return Arc::clone(seen);
        }
        if buses.len() >= BUSES_MAX {
            buses.clear();
        }
        Arc::clone(buses.entry(bus.to_owned()).or_default())
    }

    fn buses(&self) -> std::sync::MutexGuard<'_, HashMap<String, Seen>> {
        self.buses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Repetitions are made by the relay, which knows what was confirmed.
async fn client(settings: &EventBridgeSettings) -> Result<Client, String> {
    let http = aws_smithy_http_client::Builder::new()
        .tls_provider(Provider::Rustls(CryptoMode::Ring))
        .build_https();
    let mut loader = aws_config::defaults(BehaviorVersion::latest()).http_client(http.clone());
    let region = settings.region.clone().map(Region::new);
    if let Some(region) = region.clone() {
        loader = loader.region(region);
    }
    if let Some(path) = &settings.credentials_file {
        let variable = "OUTRIGGER_EVENTBRIDGE_CREDENTIALS_FILE";
        let content = SecretFile::new(variable, path).read_again().await?;
        let files = EnvConfigFiles::builder()
            .with_contents(EnvConfigFileKind::Credentials, content.expose_secret())
            .build();
        // For a profile that takes a role.
        let config = ProviderConfig::default()
            .with_http_client(http)
            .with_region(region);
        let provider = ProfileFileCredentialsProvider::builder()
            .configure(&config)
            .profile_files(files)
            .build();
        loader = loader.credentials_provider(provider);
    }
    let config = Box::pin(loader.load()).await;
    let region: &str = config.region().map(AsRef::as_ref).unwrap_or_default();
    if region.is_empty() {
        return Err(
            "no region; set OUTRIGGER_EVENTBRIDGE_REGION, or AWS_REGION, for example `eu-west-1`"
                .to_owned(),
        );
    }
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .operation_timeout(settings.timeout)
        .build();
    let mut builder = Builder::from(&config)
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts)
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
    if let Some(endpoint) = &settings.endpoint {
        builder = builder.endpoint_url(endpoint);
    }
    Ok(Client::from_conf(builder.build()))
}

/// What an answer to a whole request means.
fn trouble<E>(error: &SdkError<E>) -> Trouble
where
    E: ProvideErrorMetadata + Error + 'static,
{
    let SdkError::ServiceError(answer) = error else {
        return Trouble::Outage(explain(error));
    };
    let error = answer.err();
    classify(
        answer.raw().status().as_u16(),
        error.code(),
        error.message(),
    )
}

fn classify(status: u16, code: Option<&str>, message: Option<&str>) -> Trouble {
    let Some(code) = code else {
        let text = format!(
            "an answer with status {status} that is not EventBridge's; check OUTRIGGER_EVENTBRIDGE_ENDPOINT, and proxies in \
             between"
        );
        return match status {
            429 | 500.. => Trouble::Busy(text),
            _ => Trouble::Outage(text),
        };
    };
    let text = match message {
        Some(message) => format!("{code}: {message}"),
        None => code.to_owned(),
    };
    match code {
        "ResourceNotFoundException" => Trouble::Absent,
        "AccessDeniedException" | "AccessDenied" | "NotAuthorized" => Trouble::Forbidden(text),
        "UnrecognizedClientException"
        | "InvalidClientTokenId"
        | "InvalidSignatureException"
        | "SignatureDoesNotMatch"
        | "IncompleteSignature"
        | "IncompleteSignatureException"
        | "MissingAuthenticationToken"
        | "MissingAuthenticationTokenException"
        | "ExpiredToken"
        | "ExpiredTokenException"
        | "RequestExpired"
        | "RequestTimeTooSkewed"
        | "OptInRequired" => Trouble::Outage(format!(
            "the credentials are not accepted: {text}; check where they come from, the region, and this machine's clock"
        )),
        _ if is_busy(code) || status >= 500 || status == 429 => Trouble::Busy(text),
        _ => Trouble::Refused(text),
    }
}

/// Codes, of requests and of single entries, that are nobody's fault.
pub(super) fn is_busy(code: &str) -> bool {
    let parts = [
        "Throttl",
        "InternalFailure",
        "InternalException",
        "InternalError",
        "InternalServerError",
        "Unavailable",
    ];
    parts.iter().any(|part| code.contains(part))
        || matches!(
            code,
            "TooManyRequestsException"
                | "RequestLimitExceeded"
                | "LimitExceededException"
                | "RequestTimeout"
                | "RequestTimeoutException"
                | "SlowDown"
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_nobodys_fault_is_not_an_events() {
        for (status, code) in [
            (400, "ThrottlingException"),
            (400, "TooManyRequestsException"),
            (500, "InternalFailure"),
            (500, "WhateverException"),
            (503, "ServiceUnavailable"),
            (429, "WhateverException"),
        ] {
            let trouble = classify(status, Some(code), Some("text"));
            assert_eq!(trouble, Trouble::Busy(format!("{code}: text")));
        }
        for (status, code) in [
            (400, "ExpiredTokenException"),
            (403, "InvalidSignatureException"),
            (400, "UnrecognizedClientException"),
        ] {
            let trouble = classify(status, Some(code), None);
            assert!(
                matches!(&trouble, Trouble::Outage(text) if text.contains(code)),
                "{trouble:?}"
            );
        }
        let proxy = classify(403, None, None);
        assert!(
            matches!(&proxy, Trouble::Outage(text) if text.contains("403")),
            "{proxy:?}"
        );
        assert!(matches!(classify(502, None, None), Trouble::Busy(_)));
    }

    #[test]
    fn what_is_about_a_request_says_so() {
        let absent = classify(400, Some("ResourceNotFoundException"), None);
        assert_eq!(absent, Trouble::Absent);
        let denied = classify(400, Some("AccessDeniedException"), Some("no"));
        assert_eq!(
            denied,
            Trouble::Forbidden("AccessDeniedException: no".into())
        );
        let refused = classify(400, Some("ValidationException"), None);
        assert_eq!(refused, Trouble::Refused("ValidationException".into()));
    }
}
