//! One connection to the broker, from opening to its certain end.
//!
//! lapin runs a connection on a thread of its own that lives until the socket does. Dropping or
//! timing out lapin's futures does not end it: a handshake that never finishes keeps thread and
//! socket for ever, and frames queued by a timed-out publish are still sent later, perhaps after
//! the event was published again. So a [`Link`] keeps a second handle to the socket and shuts it
//! down when the connection is given up. After that nothing can leave any more.

use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lapin::options::ConfirmSelectOptions;
use lapin::tcp::{AMQPUriTcpExt, RustlsConnector, TLSConfig};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{AsyncTcpStream, Channel, Connection, ConnectionProperties, ErrorKind};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::channels::{ChannelLimit, Channels, Plan};
use super::endpoint::Endpoint;
use super::exchanges::Exchanges;
use super::settings::RabbitMqSettings;
use super::words::connection_remedy;
use crate::error::without_number;
use crate::tls::{self, Names};

/// Limit for opening a channel, selecting confirms, declaring an exchange, or closing.
pub(super) const STEP_TIMEOUT: Duration = Duration::from_secs(5);

/// Largest frame that is agreed on, in bytes. The client library sets aside 64 of them, twice: with no limit on either
/// side (`frame_max` 0, which means that) it would take all memory there is.
const FRAME_MAX: u32 = 1024 * 1024;

/// How a broker says that a user or a node has no more channels.
pub(super) const TOO_MANY_CHANNELS: &str = "number of channels opened";

/// How long a broker may take to forget the channels of a connection that has ended.
const RECOUNT: Duration = Duration::from_secs(1);

/// Other failures of opening a channel that are followed by one more attempt.
const OPEN_ATTEMPTS: u32 = 3;

/// lapin never uses a channel number again whose channel the broker has closed, but hands it out
/// after the numbers wrapped around. So an opening that fails for that is repeated with the next numbers; if there are
/// few of them, they are all spent one day.
const SPENT_MAX: u16 = 64;

/// How often it is asked whether lapin has forgotten a channel.
const FORGETTING: Duration = Duration::from_millis(10);

/// After this long it will not forget it any more.
const FORGETTING_MAX: Duration = Duration::from_millis(500);

/// A connection that can be ended for certain. Ends when dropped.
pub(super) struct Link {
    connection: Connection,
    socket: Arc<Socket>,
    /// Set once nobody should use this connection any more, with the reason.
    ended: CancellationToken,
    /// Set once no more channels can be opened.
    retire: CancellationToken,
    reason: Mutex<Option<String>>,
    vhost: String,
    user: String,
    login: Option<String>,
    host: String,
    pub(super) exchanges: Exchanges,
    pub(super) channels: Channels,
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
        let mut uri = endpoint.uri().clone();
        let frame_max = uri.query.frame_max.filter(|max| *max != 0);
        uri.query.frame_max = Some(frame_max.unwrap_or(FRAME_MAX).min(FRAME_MAX));
        let connecting = Connection::connector(
            uri,
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
            retire: CancellationToken::new(),
            reason: Mutex::new(None),
            vhost: endpoint.vhost().to_owned(),
            user: endpoint.user().to_owned(),
            login: endpoint.login().map(str::to_owned),
            host: endpoint.host().to_owned(),
            exchanges: Exchanges::default(),
            channels: Channels::new(),
            refused_size: AtomicUsize::new(usize::MAX),
        }))
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
        let numbers = self.connection.configuration().channel_max();
        let (mut spent, mut failed) = (0, 0);
        let begun = Instant::now();
        loop {
            let error = match timeout(STEP_TIMEOUT, self.connection.create_channel()).await {
                Ok(Ok(channel)) => return Ok(channel),
                Ok(Err(error)) => error,
                Err(_) => {
                    return Err(format!(
                        "cannot open a channel: no answer within {STEP_TIMEOUT:?}"
                    ));
                }
            };
            if !self.is_alive() {
                return Err(format!("cannot open a channel: {}", self.explain(&error)));
            }
            match error.kind() {
                ErrorKind::ProtocolError(_) => spent += 1,
                // lapin takes a moment to forget a channel that was closed.
                ErrorKind::ChannelsLimitReached if begun.elapsed() < FORGETTING_MAX => {
                    sleep(FORGETTING).await;
                }
                _ => failed += 1,
            }
            if spent >= numbers.min(SPENT_MAX)
                || failed >= OPEN_ATTEMPTS
                || begun.elapsed() >= STEP_TIMEOUT
            {
                self.retire.cancel();
                return Err(format!("cannot open a channel: {}", self.explain(&error)));
            }
        }
    }

    /// Gives the connection up, unless it is on its way out already and others may still use it.
    pub(super) fn give_up(&self, reason: &str) {
        if !self.retire.is_cancelled() {
            self.end(reason);
        }
    }

    /// Resolves once no more channels can be opened, so that the connection should be replaced as soon as nothing is in
    /// flight on it.
    pub(super) async fn retiring(&self) {
        self.retire.cancelled().await;
    }

    /// Opens all channels of this connection, as many as the settings want and the limits allow.
    pub(super) async fn set_up(
        &self,
        settings: &RabbitMqSettings,
        limit: &ChannelLimit,
    ) -> Result<(), String> {
        let channel_max = self.connection.configuration().channel_max();
        let plan = Plan::make(settings.channels, channel_max, limit);
        let Err((opened, problem)) = self.channels.open(self, plan).await else {
            return Ok(());
        };
        if problem.contains(TOO_MANY_CHANNELS) {
            limit.learn(opened, &problem);
            // The broker counts channels of a closed connection for a moment longer.
            sleep(RECOUNT).await;
        }
        Err(problem)
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
            Ok(Err(error)) => Err(format!("cannot select confirms: {}", self.explain(&error))),
            Err(_) => Err(format!(
                "cannot select confirms: no answer within {STEP_TIMEOUT:?}"
            )),
        }
    }

    /// One line about an error, with what to do about it where that is known.
    pub(super) fn explain(&self, error: &lapin::Error) -> String {
        let text = explain(error);
        let remedy = match error.kind() {
            ErrorKind::ProtocolError(error) => connection_remedy(
                error.get_id(),
                error.get_message().as_str(),
                &self.user,
                &self.host,
            ),
            _ => None,
        };
        match remedy {
            Some(remedy) => format!("{text}; {remedy}"),
            None => text,
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
        _ => without_number(&error.to_string()).replace("IO error: ", ""),
    }
}

fn explain_connect(error: &lapin::Error, endpoint: &Endpoint) -> String {
    let cause = explain(error);
    let known = match error.kind() {
        ErrorKind::ProtocolError(error) if error.get_id() == 403 && endpoint.is_external() => Some(
            "the broker needs the plugin rabbitmq_auth_mechanism_ssl, the mechanism EXTERNAL, and a user named like the \
             certificate in OUTRIGGER_RABBITMQ_CERT_FILE"
                .to_owned(),
        ),
        ErrorKind::ProtocolError(error) => connection_remedy(
            error.get_id(),
            error.get_message().as_str(),
            endpoint.user(),
            endpoint.host(),
        ),
        ErrorKind::IOError(_) if cause.contains("InvalidContentType") => Some(
            "this port does not speak TLS: use `amqp://` in OUTRIGGER_RABBITMQ_URL, or the TLS port"
                .to_owned(),
        ),
        _ => None,
    };
    // It answers with an alert, which is no AMQP, or just hangs up.
    let speaks_otherwise = matches!(error.kind(), ErrorKind::ParsingError(_))
        || ["reset by peer", "broken pipe", "unexpected end", "aborted"]
            .iter()
            .any(|part| cause.to_lowercase().contains(part));
    let explained = match (&known, endpoint.is_tls()) {
        (None, true) => tls::explain(&Names::of("OUTRIGGER_RABBITMQ"), &cause),
        _ => None,
    };
    let hint = match known {
        None if speaks_otherwise && !endpoint.is_tls() => {
            "; is this RabbitMQ's AMQP port (usually 5672)? If it speaks TLS only, use `amqps://` in OUTRIGGER_RABBITMQ_URL"
                .to_owned()
        }
        None if cause.contains("refused") => {
            "; check that RabbitMQ runs there: host and port in OUTRIGGER_RABBITMQ_URL".to_owned()
        }
        None => String::new(),
        Some(known) => format!("; {known}"),
    };
    let cause = explained.unwrap_or(cause);
    format!(
        "cannot connect to {endpoint} as `{}`: {cause}{hint}",
        endpoint.user()
    )
}
