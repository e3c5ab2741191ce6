//! One connection to one server, from its begin to its end. It never comes back: the supervisor opens a new one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_nats::{AuthError, Client, ConnectErrorKind, ConnectOptions, Event, ServerError};
use tokio::sync::watch;
use tokio::time::timeout;

use super::commands::knows_ttl;
use super::credentials::Credentials;
use super::settings::{NatsSettings, Server};
use crate::error::{with_causes, without_number};
use crate::tls::{self, Names};

/// Limit for each step of connecting, and for taking leave.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// The server is asked for a sign of life this often; after two that fail the connection is over.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// Subjects remembered that this user may not publish to.
const FORBIDDEN_MAX: usize = 1024;

/// How the server says that this user may not publish to a subject. Nothing else tells: there is no answer to the
/// message itself.
const VIOLATION: &str = "permissions violation for publish to \"";

/// A connection. All that use it see its end.
pub(super) struct Link {
    client: Client,
    signals: Arc<Signals>,
    id: u64,
    server: String,
    knows_ttl: bool,
}

struct Signals {
    /// Why it ended.
    ended: watch::Sender<Option<String>>,
    /// Whether the library has let go of it.
    closed: watch::Sender<bool>,
    forbidden: watch::Sender<Vec<String>>,
}

impl Signals {
    fn end(&self, reason: &str) {
        self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            ended.get_or_insert_with(|| reason.to_owned());
            first
        });
    }

    fn note(&self, event: Event) {
        match event {
            Event::Disconnected => self.end("connection lost"),
            Event::Closed => {
                self.end("connection closed");
                self.closed.send_replace(true);
            }
            // Without reconnecting, giving up is the end as well.
            Event::ClientError(_) => {
                self.closed.send_replace(true);
            }
            Event::LameDuckMode => self.end("the server is shutting down"),
            Event::ServerError(ServerError::Other(text)) => match forbidden_subject(&text) {
                Some(subject) => self.forbidden.send_modify(|known| {
                    if known.len() >= FORBIDDEN_MAX {
                        known.clear();
                    }
                    known.push(subject.to_owned());
                }),
                None => tracing::debug!(error = text, "NATS reports an error"),
            },
            Event::ServerError(ServerError::AuthorizationViolation) => {
                self.end("the server does not accept these credentials any more");
            }
            _ => {}
        }
    }
}

impl Link {
    /// Connects and logs in.
    pub(super) async fn open(
        server: &Server,
        settings: &NatsSettings,
    ) -> Result<Arc<Self>, String> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let signals = Arc::new(Signals {
            ended: watch::Sender::new(None),
            closed: watch::Sender::new(false),
            forbidden: watch::Sender::new(Vec::new()),
        });
        let opened = Arc::new(AtomicBool::new(false));
        let options = options(server, settings, &signals, &opened).await?;
        let connecting = options.connect(server.address.as_str());
        let client = match timeout(STEP_TIMEOUT, connecting).await {
            Ok(Ok(client)) => client,
            Ok(Err(error)) => return Err(explain(server, &error)),
            Err(_) => return Err(format!("{server} did not answer within {STEP_TIMEOUT:?}")),
        };
        opened.store(true, Ordering::Release);
        let info = client.server_info();
        if !info.headers {
            return Err(format!(
                "{server} runs version {} without support for headers; 2.2 or later is needed",
                info.version
            ));
        }
        Ok(Arc::new(Self {
            client,
            signals,
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            server: server.to_string(),
            knows_ttl: knows_ttl(&info.version),
        }))
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// Tells connections apart.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// The server's address, without secrets.
    pub(super) fn server(&self) -> &str {
        &self.server
    }

    /// Whether the server knows the header `Nats-TTL`.
    pub(super) fn knows_ttl(&self) -> bool {
        self.knows_ttl
    }

    pub(super) fn is_alive(&self) -> bool {
        self.signals.ended.borrow().is_none()
    }

    /// Waits for the end, and says why.
    pub(super) async fn ended(&self) -> String {
        let mut ended = self.signals.ended.subscribe();
        match ended.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => "connection closed".to_owned(),
        }
    }

    /// The subjects that the server would not let us publish to, oldest first.
    pub(super) fn forbidden(&self) -> watch::Receiver<Vec<String>> {
        self.signals.forbidden.subscribe()
    }

    /// Gives the connection up, for this reason.
    pub(super) fn end(&self, reason: &str) {
        self.signals.end(reason);
    }

    /// Closes the connection, within a few seconds at most.
    pub(super) async fn close(&self) {
        let mut closed = self.signals.closed.subscribe();
        let leaving = async {
            if self.client.drain().await.is_ok() {
                let _ = closed.wait_for(|closed| *closed).await;
            }
        };
        let _ = timeout(Duration::from_secs(3), leaving).await;
        self.signals.end("closed");
    }
}

async fn options(
    server: &Server,
    settings: &NatsSettings,
    signals: &Arc<Signals>,
    opened: &Arc<AtomicBool>,
) -> Result<ConnectOptions, String> {
    let credentials = {
        let (server, settings) = (server.clone(), settings.clone());
        tokio::task::spawn_blocking(move || Credentials::load(&settings, &server))
            .await
            .map_err(|error| format!("cannot read the credentials: {error}"))??
    };
    let credentials = Arc::new(credentials);
    let opened = Arc::clone(opened);
    let authenticate = move |nonce: Vec<u8>| {
        // The library wants to reconnect. See the module `nats`.
        let answer = match opened.load(Ordering::Acquire) {
            true => Err("this connection is over".to_owned()),
            false => credentials.answer(&nonce),
        };
        async move { answer.map_err(AuthError::new) }
    };
    let signals = Arc::clone(signals);
    let note = move |event: Event| {
        signals.note(event);
        std::future::ready(())
    };
    let mut options = ConnectOptions::with_auth_callback(authenticate)
        .event_callback(note)
        .name(&settings.connection_name)
        .connection_timeout(STEP_TIMEOUT)
        .ping_interval(PING_INTERVAL)
        .max_reconnects(1)
        .reconnect_delay_callback(|_| Duration::ZERO)
        .ignore_discovered_servers()
        .custom_inbox_prefix(&settings.inbox_prefix)
        .no_echo()
        // Subjects are checked by `prepare`.
        .skip_subject_validation(true)
        .require_tls(server.tls);
    if server.tls || settings.ca_file.is_some() || settings.cert_file.is_some() {
        let settings = settings.clone();
        let config = tokio::task::spawn_blocking(move || tls::load(&settings.tls()))
            .await
            .map_err(|error| format!("cannot load certificates: {error}"))??;
        options = options.tls_client_config(config);
    }
    Ok(options)
}

fn explain(server: &Server, error: &async_nats::ConnectError) -> String {
    let chain = chain(error);
    if let Some(explained) = tls::explain(&Names::of("OUTRIGGER_NATS"), &chain) {
        return format!("cannot connect to {server}: {explained}");
    }
    match error.kind() {
        ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => format!(
            "{server} does not accept the credentials ({chain}); check OUTRIGGER_NATS_URL (user or token), the NKey or the credentials file"
        ),
        ConnectErrorKind::Tls => {
            format!(
                "{server}: {chain}; check OUTRIGGER_NATS_CA_FILE, and that the certificate fits `{}`",
                server.host
            )
        }
        _ => format!(
            "cannot connect to {server}: {chain}; check OUTRIGGER_NATS_URL: does NATS run there?"
        ),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    without_number(&with_causes(error)).replace("IO error: ", "")
}

/// From `Permissions Violation for Publish to "orders.placed"`.
fn forbidden_subject(text: &str) -> Option<&str> {
    let at = text.to_ascii_lowercase().find(VIOLATION)?;
    let (subject, _) = text[at + VIOLATION.len()..].split_once('"')?;
    Some(subject)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forbidden_subject_is_found() {
        let text = "Permissions Violation for Publish to \"orders.placed\"";
        assert_eq!(forbidden_subject(text), Some("orders.placed"));
        let lower = text.to_lowercase();
        assert_eq!(forbidden_subject(&lower), Some("orders.placed"));
        let other = "Permissions Violation for Subscription to \"a\"";
        assert_eq!(forbidden_subject(other), None);
    }
}
