//! The way to the collector: requests over one connection, plain or encrypted, on the thread that exports.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{HOST, HeaderValue};
use hyper_util::rt::TokioIo;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio_rustls::TlsConnector;

use crate::settings::Export;
use crate::tls::{self, Check, Files, Names, Trust};

/// Bytes of an answer that are read.
const ANSWER_MAX: usize = 64 << 10;

/// Sends requests to one collector, one after the other.
pub(super) struct Collector {
    /// Scheme, host and port, for people.
    name: String,
    tls: Option<Arc<ClientConfig>>,
    host: String,
    port: u16,
    authority: HeaderValue,
    timeout: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Made on the thread that exports, which waits in it: the relay's own thread has no part in this.
    runtime: Option<Runtime>,
    requests: Option<SendRequest<Full<Bytes>>>,
    /// Whether the last request failed, which was said then.
    failing: bool,
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Collector").field(&self.name).finish()
    }
}

impl Collector {
    /// Reads certificates; connects later.
    pub(super) fn new(export: &Export) -> Result<Self, String> {
        let url = &export.endpoint;
        let host = url.host_str().unwrap_or_default();
        let authority = match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        };
        Ok(Self {
            name: format!("{}://{authority}", url.scheme()),
            tls: match url.scheme() {
                "https" => Some(tls(export)?),
                _ => None,
            },
            port: url.port_or_known_default().unwrap_or(80),
            authority: HeaderValue::from_str(&authority).map_err(|error| error.to_string())?,
            host: host.trim_matches(['[', ']']).to_owned(),
            timeout: export.timeout,
            state: Mutex::default(),
        })
    }

    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State {
            runtime, requests, ..
        } = &mut *state;
        let runtime = match runtime {
            Some(runtime) => runtime,
            None => runtime.insert(Builder::new_current_thread().enable_all().build()?),
        };
        let result = runtime.block_on(async {
            let exchange = self.exchange(requests, request);
            let answer = tokio::time::timeout(self.timeout, exchange).await;
            answer.unwrap_or_else(|_| {
                let text = format!("no answer within {:?}", self.timeout);
                Err(io::Error::new(io::ErrorKind::TimedOut, text).into())
            })
        });
        if result.is_err() {
            state.requests = None;
        }
        let problem = match &result {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(format!("it answers {}", answer.status())),
            Err(error) => {
                let error = error.to_string();
                Some(tls::explain(&Names::collector(), &error).unwrap_or(error))
            }
        };
        self.report(&mut state.failing, problem);
        result
    }

    /// Says when it begins and when it ends.
    fn report(&self, failing: &mut bool, problem: Option<String>) {
        match (&problem, *failing) {
            (Some(reason), false) => tracing::warn!(
                collector = %self.name,
                reason,
                "spans cannot be exported and are lost; events are not"
            ),
            (None, true) => tracing::info!(collector = %self.name, "spans are exported again"),
            _ => {}
        }
        *failing = problem.is_some();
    }

    async fn exchange(
        &self,
        kept: &mut Option<SendRequest<Full<Bytes>>>,
        request: Request<Bytes>,
    ) -> Result<Response<Bytes>, HttpError> {
        let (mut parts, body) = request.into_parts();
        // The server wants the path alone, and the host beside it.
        let path = parts.uri.path_and_query().cloned();
        parts.uri = path.map(Into::into).unwrap_or_default();
        parts.headers.insert(HOST, self.authority.clone());
        let request = || Request::from_parts(parts.clone(), Full::new(body.clone()));
        // The collector may have closed it meanwhile. Spans that arrive twice are the same spans.
        if let Some(requests) = kept
            && requests.ready().await.is_ok()
            && let Ok(answer) = requests.send_request(request()).await
            && let Ok(answer) = whole(answer).await
        {
            return Ok(answer);
        }
        let requests = kept.insert(self.connect().await?);
        whole(requests.send_request(request()).await?).await
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, HttpError> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        stream.set_nodelay(true)?;
        match &self.tls {
            None => handshake(stream).await,
            Some(config) => {
                let name = ServerName::try_from(self.host.clone())?;
                let connector = TlsConnector::from(Arc::clone(config));
                handshake(connector.connect(name, stream).await?).await
            }
        }
    }
}

impl HttpClient for Collector {
    fn send_bytes<'s, 'f>(
        &'s self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'f>>
    where
        's: 'f,
        Self: 'f,
    {
        // The thread that asks has nothing else to do.
        Box::pin(std::future::ready(self.send(request)))
    }
}

async fn handshake(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<SendRequest<Full<Bytes>>, HttpError> {
    let (requests, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the connection; how it ended, the next request finds out.
    tokio::spawn(connection);
    Ok(requests)
}

async fn whole(answer: Response<hyper::body::Incoming>) -> Result<Response<Bytes>, HttpError> {
    let (parts, body) = answer.into_parts();
    let body = Limited::new(body, ANSWER_MAX).collect().await?.to_bytes();
    Ok(Response::from_parts(parts, body))
}

fn tls(export: &Export) -> Result<Arc<ClientConfig>, String> {
    let files = Files {
        names: Names::collector(),
        check: Check::ChainAndName,
        trust: Trust::new(export.ca_file.as_deref()),
        client: export
            .client
            .as_ref()
            .map(|(cert, key)| (cert.as_path(), key.as_path())),
    };
    tls::load(&files).map(Arc::new)
}
