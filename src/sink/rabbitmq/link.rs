//! One connection to the broker, from opening to its certain end.
//!
//! lapin runs a connection on a thread of its own that lives until the socket does. Dropping or
//! timing out lapin's futures does not end it: a handshake that never finishes keeps thread and
//! socket for ever, and frames queued by a timed-out publish are still sent later, perhaps after
//! the event was published again. So a [`Link`] keeps a second handle to the socket and shuts it
//! down when the connection is given up. After that nothing can leave any more.

use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lapin::options::ConfirmSelectOptions;
use lapin::tcp::{AMQPUriTcpExt, RustlsConnector, TLSConfig};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{AsyncTcpStream, Channel, Connection, ConnectionProperties, ErrorKind};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::endpoint::Endpoint;
use super::exchanges::Exchanges;
use super::settings::RabbitMqSettings;
use crate::tls::{self, Names};

/// Limit for opening a channel, selecting confirms, declaring an exchange, or closing.
pub(super) const STEP_TIMEOUT: Duration = Duration::from_secs(5);

/// lapin never uses a channel number again whose channel the broker has closed, but hands it out
/// after the numbers wrapped around. So a failed opening is repeated with the next numbers.
const OPEN_ATTEMPTS: u32 = 3;

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// A connection that can be ended for certain. Ends when dropped.
pub(super) struct Link {
    connection: Connection,
    socket: Arc<Socket>,
    /// Set once nobody should use this connection any more, with the reason.
    ended: CancellationToken,
    reason: Mutex<Option<String>>,
    id: u64,
    vhost: String,
    user: String,
    login: Option<String>,
    pub(super) exchanges: Exchanges,
    /// Smallest body this broker has refused as too large.
    refused_size: AtomicUsize,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.socket.shut();
    }
}

impl Link {
    /// Connects and authenticates, within the endpoint's time limit.
    pub(super) async fn open(
        endpoint: &Endpoint,
        settings: &RabbitMqSettings,
    ) -> Result<Arc<Self>, String> {
        let connector = tls_connector(endpoint, settings).await?;
        let runtime = lapin::runtime::default_runtime().map_err(|error| error.to_string())?;
        let socket = Arc::new(Socket::default());
        let held = Arc::clone(&socket);
        let connecting = Connection::connector(
            endpoint.uri().clone(),
            runtime,
            async move |uri: AMQPUri, runtime| {
                // Without TLS first, to get hold of the socket itself.
                let plain = AMQPUri {
                    scheme: AMQPScheme::AMQP,
                    ..uri.clone()
                };
                let stream = plain
                    .connect_with_config_async(TLSConfig::default(), &runtime)
                    .await?;
                if let AsyncTcpStream::Plain(stream) = &stream {
                    let socket = stream.get_ref().as_fd().try_clone_to_owned()?;
                    held.hold(socket.into())?;
                }
                match &connector {
                    Some(connector) => {
                        Ok(stream.into_rustls(connector, &uri.authority.host).await?)
                    }
                    None => Ok(stream),
                }
            },
            properties(settings),
        );
        let limit = endpoint.connect_timeout();
        let connection = match timeout(limit, connecting).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => {
                socket.shut();
                return Err(explain_connect(&error, endpoint));
            }
            Err(_) => {
                socket.shut();
                return Err(format!(
                    "no answer from {endpoint} within {limit:?}; check host, port and whether \
                     this port speaks {}",
                    if endpoint.is_tls() {
                        "TLS"
                    } else {
                        "plain AMQP"
                    }
                ));
            }
        };
        Ok(Arc::new(Self {
            connection,
            socket,
            ended: CancellationToken::new(),
            reason: Mutex::new(None),
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            vhost: endpoint.vhost().to_owned(),
            user: endpoint.user().to_owned(),
            login: endpoint.login().map(str::to_owned),
            exchanges: Exchanges::default(),
            refused_size: AtomicUsize::new(usize::MAX),
        }))
    }

    /// Tells connections apart.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn vhost(&self) -> &str {
        &self.vhost
    }

    pub(super) fn user(&self) -> &str {
        &self.user
    }

    /// The user that the broker knows us by. `None` if a certificate says so.
    pub(super) fn login(&self) -> Option<&str> {
        self.login.as_deref()
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    pub(super) fn is_alive(&self) -> bool {
        self.connection.status().connected() && !self.ended.is_cancelled()
    }

    /// Whether the broker asked publishers to wait.
    pub(super) fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
    }

    pub(super) fn frame_max(&self) -> usize {
        // u32 always fits on the platforms that can run this.
        self.connection.configuration().frame_max() as usize
    }

    pub(super) fn refused_size(&self) -> usize {
        self.refused_size.load(Ordering::Relaxed)
    }

    pub(super) fn note_refused_size(&self, size: usize) {
        self.refused_size.fetch_min(size, Ordering::Relaxed);
    }

    /// Gives the connection up: nothing that is still queued will be sent.
    pub(super) fn end(&self, reason: &str) {
        {
            let mut first = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
            first.get_or_insert_with(|| reason.to_owned());
        }
        self.socket.shut();
        self.ended.cancel();
    }

    /// Resolves once somebody has called [`end`](Self::end), with the reason.
    pub(super) async fn ended(&self) -> String {
        self.ended.cancelled().await;
        let reason = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        reason.clone().unwrap_or_default()
    }

    /// Opens a channel.
    pub(super) async fn open_channel(&self) -> Result<Channel, String> {
        let mut last = String::new();
        for _ in 0..OPEN_ATTEMPTS {
            match timeout(STEP_TIMEOUT, self.connection.create_channel()).await {
                Ok(Ok(channel)) => return Ok(channel),
                Ok(Err(error)) => last = explain(&error),
                Err(_) => last = format!("no answer within {STEP_TIMEOUT:?}"),
            }
            if !self.is_alive() {
                break;
            }
        }
        Err(format!("cannot open a channel: {last}"))
    }

    /// Opens a channel with publisher confirms.
    pub(super) async fn open_confirm_channel(&self) -> Result<Channel, String> {
        let channel = self.open_channel().await?;
        match timeout(
            STEP_TIMEOUT,
            channel.confirm_select(ConfirmSelectOptions::default()),
        )
        .await
        {
            Ok(Ok(())) => Ok(channel),
            Ok(Err(error)) => Err(format!("cannot select confirms: {}", explain(&error))),
            Err(_) => Err(format!(
                "cannot select confirms: no answer within {STEP_TIMEOUT:?}"
            )),
        }
    }

    /// Closes politely if the broker still listens, and in any case for good.
    pub(super) async fn close(&self) {
        // While blocked lapin writes nothing at all, so a polite close would only wait.
        if self.is_alive() && !self.is_blocked() {
            let goodbye = lapin::types::ShortString::from("outrigger stops");
            // Whatever comes of it, the socket is closed next.
            let _ = timeout(STEP_TIMEOUT, self.connection.close(200, goodbye)).await;
        }
        self.end("closed");
    }
}

async fn tls_connector(
    endpoint: &Endpoint,
    settings: &RabbitMqSettings,
) -> Result<Option<RustlsConnector>, String> {
    if !endpoint.is_tls() {
        return Ok(None);
    }
    let settings = settings.clone();
    let config = tokio::task::spawn_blocking(move || tls::load(&settings.tls()))
        .await
        .map_err(|error| format!("cannot load certificates: {error}"))??;
    Ok(Some(RustlsConnector::from(Arc::new(config))))
}

fn properties(settings: &RabbitMqSettings) -> ConnectionProperties {
    ConnectionProperties::default()
        .with_connection_name(settings.connection_name.as_str().into())
        .with_client_property("product".into(), "Outrigger".into())
        .with_client_property("version".into(), env!("CARGO_PKG_VERSION").into())
}

/// The second handle to a connection's socket.
#[derive(Default)]
struct Socket(Mutex<SocketState>);

#[derive(Default)]
enum SocketState {
    #[default]
    Waiting,
    Held(TcpStream),
    Shut,
}

impl Socket {
    /// Keeps the handle; an error if the connection was given up before its socket was there.
    fn hold(&self, socket: TcpStream) -> std::io::Result<()> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*state, SocketState::Shut) {
            return Err(std::io::ErrorKind::ConnectionAborted.into());
        }
        *state = SocketState::Held(socket);
        Ok(())
    }

    fn shut(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let SocketState::Held(socket) = std::mem::replace(&mut *state, SocketState::Shut) {
            // Fails only if the socket is already closed.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

/// One line about a lapin error, without its nesting.
pub(super) fn explain(error: &lapin::Error) -> String {
    match error.kind() {
        ErrorKind::ProtocolError(error) => {
            format!("{} ({})", error.get_message(), error.get_id())
        }
        ErrorKind::IOError(error) => error.to_string(),
        _ => error.to_string(),
    }
}

fn explain_connect(error: &lapin::Error, endpoint: &Endpoint) -> String {
    let cause = explain(error);
    let known = match error.kind() {
        ErrorKind::ProtocolError(error) => match error.get_id() {
            403 if endpoint.is_external() => {
                "; the broker needs the plugin rabbitmq_auth_mechanism_ssl, the mechanism EXTERNAL, and a user \
                 named like the certificate in OUTRIGGER_RABBITMQ_CERT_FILE"
            }
            403 => "; check user, password and permissions in OUTRIGGER_RABBITMQ_URL",
            530 => "; check the vhost in OUTRIGGER_RABBITMQ_URL and the user's permissions on it",
            _ => "",
        },
        ErrorKind::IOError(_) if cause.contains("InvalidContentType") => {
            "; this port does not speak TLS: use `amqp://` in OUTRIGGER_RABBITMQ_URL, or the TLS port"
        }
        _ => "",
    };
    // It answers with an alert, which is no AMQP, or just hangs up.
    let speaks_otherwise = matches!(error.kind(), ErrorKind::ParsingError(_))
        || ["reset by peer", "broken pipe", "unexpected end"]
            .iter()
            .any(|part| cause.to_lowercase().contains(part));
    let hint = match known {
        "" if speaks_otherwise && !endpoint.is_tls() => {
            "; if this port speaks TLS only, use `amqps://` in OUTRIGGER_RABBITMQ_URL"
        }
        known => known,
    };
    let explained = match (known, endpoint.is_tls()) {
        ("", true) => tls::explain(&Names::of("OUTRIGGER_RABBITMQ"), &cause),
        _ => None,
    };
    let cause = explained.unwrap_or(cause);
    format!(
        "cannot connect to {endpoint} as `{}`: {cause}{hint}",
        endpoint.user()
    )
}
