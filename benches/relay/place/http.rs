//! http: a service that answers everything with 204, and a bare publisher that posts to it.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::SendRequest;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName, USER_AGENT};
use hyper::http::request::Parts;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use uuid::Uuid;

use super::service::{Seen, Service};
use super::{SOURCE, STRUCTURED, side_by_side};
use crate::Result;
use crate::arrivals::id_of;
use crate::outbox::{TEXT, message_size};

/// The default of OUTRIGGER_HTTP_CONNECTIONS.
const CONNECTIONS: usize = 16;
const PATH: &str = "/events";
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

pub(crate) struct Http {
    pub(super) service: Service,
}

impl Http {
    pub(super) async fn open() -> Result<Self> {
        let service = Service::open(take).await?;
        Ok(Self { service })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}{PATH}", self.service.port)
    }

    pub(crate) async fn publish_many(&self, messages: i64, size: usize) -> Result<f64> {
        self.service.forget();
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            clients.push(self.client().await?);
        }
        let body = Bytes::from(vec![b'x'; size]);
        side_by_side(clients, messages, |mut client, count| {
            let body = body.clone();
            async move {
                for _ in 0..count {
                    client.post(Uuid::now_v7(), body.clone()).await?;
                }
                Ok(())
            }
        })
        .await
    }

    /// A connection.
    pub(crate) async fn client(&self) -> Result<Client> {
        let stream = TcpStream::connect(("127.0.0.1", self.service.port)).await?;
        stream.set_nodelay(true)?;
        let (requests, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // Ends with its client. A lost connection shows as the client's error.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(Client {
            requests,
            authority: format!("127.0.0.1:{}", self.service.port),
        })
    }
}

/// Reads everything and answers 204.
fn take(head: &Parts, body: &[u8], seen: &Seen) -> Response<Full<Bytes>> {
    seen.note(body.len(), || {
        let identity = head.headers.get(IDEMPOTENCY_KEY)?;
        id_of(identity.to_str().ok()?)
    });
    let mut response = Response::default();
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// A connection with one request at a time.
pub(crate) struct Client {
    requests: SendRequest<Full<Bytes>>,
    authority: String,
}

impl Client {
    async fn post(&mut self, id: Uuid, body: Bytes) -> Result<()> {
        let request = Request::post(PATH)
            .header(HOST, &self.authority)
            .header(CONTENT_LENGTH, body.len())
            .header(USER_AGENT, concat!("outrigger/", env!("CARGO_PKG_VERSION")))
            .header(CONTENT_TYPE, STRUCTURED)
            .header(IDEMPOTENCY_KEY, format!("\"{SOURCE} {id}\""))
            .body(Full::new(body))?;
        self.requests.ready().await?;
        let response = self.requests.send_request(request).await?;
        let status = response.status();
        response.into_body().collect().await?;
        if status.is_success() {
            return Ok(());
        }
        Err(format!("a message was answered with {status}").into())
    }

    pub(crate) async fn publish_one(&mut self, id: Uuid) -> Result<()> {
        self.post(id, vec![b'x'; message_size(TEXT)].into()).await
    }
}
