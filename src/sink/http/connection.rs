//! One connection to the service, plain or encrypted.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::settings::HttpSettings;
use super::target::Target;
use crate::error::without_number;
use crate::tls::{self, Names};

/// Limit for connecting, the TLS handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection that takes requests, one after the other. Dropping it closes it.
pub(super) struct Connection {
    pub(super) requests: SendRequest<Full<Bytes>>,
    driver: JoinHandle<()>,
    /// Whether a request was answered on it.
    pub(super) used: bool,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connection {
    /// Connects. `ended` hears of it when the service ends the connection.
    pub(super) async fn open(
        target: &Target,
        settings: &HttpSettings,
        ended: Arc<Notify>,
    ) -> Result<Self, String> {
        match timeout(CONNECT_TIMEOUT, connect(target, settings, ended)).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(format!("cannot connect to {target}: {error}")),
            Err(_) => Err(format!(
                "{target} did not answer within {CONNECT_TIMEOUT:?}; check OUTRIGGER_HTTP_URL, and firewalls in between"
            )),
        }
    }
}

async fn connect(
    target: &Target,
    settings: &HttpSettings,
    ended: Arc<Notify>,
) -> Result<Connection, String> {
    let stream = TcpStream::connect((target.host.as_str(), target.port))
        .await
        .map_err(|error| {
            format!(
                "{}; check OUTRIGGER_HTTP_URL: does the service run there?",
                without_number(&error.to_string())
            )
        })?;
    // Requests are written in one go; waiting for more would only delay them.
    stream
        .set_nodelay(true)
        .map_err(|error| error.to_string())?;
    if !target.tls {
        return handshake(stream, ended).await;
    }
    let settings = settings.clone();
    let config = tokio::task::spawn_blocking(move || tls::load(&settings.tls()))
        .await
        .map_err(|error| error.to_string())??;
    let name = ServerName::try_from(target.host.clone()).map_err(|error| error.to_string())?;
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .map_err(|error| {
            let error = error.to_string();
            tls::explain(&Names::of("OUTRIGGER_HTTP"), &error)
                .unwrap_or_else(|| format!("TLS: {error}"))
        })?;
    handshake(stream, ended).await
}

async fn handshake(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ended: Arc<Notify>,
) -> Result<Connection, String> {
    let (requests, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let driver = tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "an http connection broke");
        }
        ended.notify_one();
    });
    Ok(Connection {
        requests,
        driver,
        used: false,
    })
}
