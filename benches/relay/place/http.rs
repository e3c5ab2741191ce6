//! http: a service within this program, on a thread of its own, and a bare publisher that posts to it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName, USER_AGENT};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::{SOURCE, STRUCTURED, side_by_side};
use crate::Result;
use crate::arrivals::{Arrivals, Receipts, id_of};
use crate::outbox::{TEXT, message_size};
use crate::process::cpu_time;

/// The default of OUTRIGGER_HTTP_CONNECTIONS.
const CONNECTIONS: usize = 16;
const PATH: &str = "/events";
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

pub(crate) struct Http {
    port: u16,
    seen: Arc<Seen>,
    /// What the kernel tells of the service's thread.
    thread: PathBuf,
}

/// What the service knows of the requests that it has taken.
#[derive(Default)]
struct Seen {
    requests: AtomicI64,
    last_body: AtomicUsize,
    arrivals: Mutex<Option<Arrivals>>,
}

impl Seen {
    fn note(&self, identity: Option<&str>, body: usize) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.last_body.store(body, Ordering::Relaxed);
        let arrivals = self.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(arrivals) = arrivals.as_ref()
            && let Some(id) = identity.and_then(id_of)
        {
            arrivals.note(id);
        }
    }

    fn watch(&self, arrivals: Option<Arrivals>) {
        *self.arrivals.lock().unwrap_or_else(PoisonError::into_inner) = arrivals;
    }
}

impl Http {
    /// Starts the service, which lives as long as this program.
    pub(crate) async fn open() -> Result<Self> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let seen = Arc::new(Seen::default());
        let served = Arc::clone(&seen);
        let (tell, told) = oneshot::channel();
        std::thread::Builder::new()
            .name("service".into())
            .spawn(move || {
                // Nobody waits for it any more if this program ends.
                let _ = tell.send(fs::read_link("/proc/thread-self"));
                if let Err(error) = serve(listener, &served) {
                    eprintln!("the service failed: {error}");
                }
            })?;
        let thread = Path::new("/proc").join(told.await??).join("stat");
        Ok(Self { port, seen, thread })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}{PATH}", self.port)
    }

    pub(crate) fn forget(&self) {
        self.seen.requests.store(0, Ordering::Relaxed);
    }

    pub(crate) fn count(&self) -> i64 {
        self.seen.requests.load(Ordering::Relaxed)
    }

    pub(crate) fn body_size(&self) -> usize {
        self.seen.last_body.load(Ordering::Relaxed)
    }

    /// Processor time of the service, in seconds.
    pub(crate) fn cpu(&self) -> Result<f64> {
        Ok(cpu_time(&fs::read_to_string(&self.thread)?)?.as_secs_f64())
    }

    pub(crate) async fn publish_many(&self, messages: i64, size: usize) -> Result<f64> {
        self.forget();
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

    pub(crate) fn receive(&self) -> Receipts {
        let arrivals = Arrivals::default();
        self.seen.watch(Some(arrivals.clone()));
        let seen = Arc::clone(&self.seen);
        Receipts::new(arrivals, async move {
            seen.watch(None);
            Ok(())
        })
    }

    /// A connection.
    pub(crate) async fn client(&self) -> Result<Client> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        stream.set_nodelay(true)?;
        let (requests, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // Ends with its client. A lost connection shows as the client's error.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(Client {
            requests,
            authority: format!("127.0.0.1:{}", self.port),
        })
    }
}

fn serve(listener: std::net::TcpListener, seen: &Arc<Seen>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = TcpListener::from_std(listener)?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let seen = Arc::clone(seen);
            let service = service_fn(move |request| take(request, Arc::clone(&seen)));
            tokio::spawn(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    })
}

/// Reads everything and answers 204.
async fn take(
    request: Request<Incoming>,
    seen: Arc<Seen>,
) -> hyper::Result<Response<Empty<Bytes>>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let identity = head.headers.get(IDEMPOTENCY_KEY);
    let identity = identity.and_then(|identity| identity.to_str().ok());
    seen.note(identity, body.len());
    let mut response = Response::new(Empty::new());
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
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
