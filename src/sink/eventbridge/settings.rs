//! The settings of the EventBridge sink, and everything that can be said about them without AWS.

use std::path::PathBuf;
use std::time::Duration;

use url::Url;

/// More connections than this are a mistake.
const MAX_CONNECTIONS: usize = 256;

/// How to reach EventBridge. Plain data.
#[derive(Debug, Clone)]
pub struct EventBridgeSettings {
    /// The region. `None`: what AWS's own variables and files say.
    pub region: Option<String>,
    /// A URL to use instead of AWS's.
    pub endpoint: Option<String>,
    /// A credentials file to use instead of AWS's chain of providers.
    pub credentials_file: Option<PathBuf>,
    /// Requests under way side by side: the sink's parallelism.
    pub connections: usize,
    /// How long one request may take.
    pub timeout: Duration,
    /// What all entries of a request together must stay below, in bytes as AWS counts them.
    pub max_request_size: usize,
    /// Buses to await before publishing.
    pub known_destinations: Vec<String>,
}

impl Default for EventBridgeSettings {
    fn default() -> Self {
        Self {
            region: None,
            endpoint: None,
            credentials_file: None,
            connections: 16,
            timeout: Duration::from_secs(30),
            max_request_size: 256 * 1024,
            known_destinations: Vec::new(),
        }
    }
}

impl EventBridgeSettings {
    /// Where events go: the region, and the endpoint where it is not AWS's own.
    pub fn target(&self) -> String {
        let region = self
            .region
            .as_deref()
            .unwrap_or("region of the environment");
        match &self.endpoint {
            Some(endpoint) => format!("{region} at {}", endpoint.trim_end_matches('/')),
            None => region.to_owned(),
        }
    }

    /// Everything wrong with these settings, each naming its variable. Reads no file and opens no connection.
    pub fn validate(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Some(endpoint) = &self.endpoint {
            let host = Url::parse(endpoint).ok();
            let host = host.filter(|url| matches!(url.scheme(), "http" | "https"));
            if endpoint.contains('@') {
                problems.push(
                    "OUTRIGGER_EVENTBRIDGE_ENDPOINT holds a user: AWS's own variables say how to log in"
                        .to_owned(),
                );
            } else if host.is_none_or(|url| !url.has_host()) {
                problems.push(
                    "OUTRIGGER_EVENTBRIDGE_ENDPOINT must be a URL such as `https://vpce-1.events.eu-west-1.vpce.amazonaws.com`"
                        .to_owned(),
                );
            }
        }
        if !(1..=MAX_CONNECTIONS).contains(&self.connections) {
            problems.push(format!(
                "OUTRIGGER_EVENTBRIDGE_CONNECTIONS must be between 1 and {MAX_CONNECTIONS}, not {}",
                self.connections
            ));
        }
        if self.timeout.is_zero() {
            problems.push(
                "OUTRIGGER_EVENTBRIDGE_TIMEOUT must be longer than zero, for example `30s`"
                    .to_owned(),
            );
        }
        if self.max_request_size == 0 {
            problems
                .push("OUTRIGGER_EVENTBRIDGE_MAX_REQUEST_SIZE must be more than zero".to_owned());
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_is_reported_at_once() {
        let settings = EventBridgeSettings {
            endpoint: Some("localhost:4566".into()),
            connections: 0,
            timeout: Duration::ZERO,
            max_request_size: 0,
            ..EventBridgeSettings::default()
        };
        let problems = settings.validate();
        assert_eq!(problems.len(), 4, "{problems:#?}");
        for (problem, name) in
            problems
                .iter()
                .zip(["ENDPOINT", "CONNECTIONS", "TIMEOUT", "MAX_REQUEST_SIZE"])
        {
            assert!(problem.contains(name), "{problem}");
        }
        assert!(EventBridgeSettings::default().validate().is_empty());
    }
}
