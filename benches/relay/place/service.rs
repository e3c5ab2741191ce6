//! A service within this program, on a thread of its own, that takes events and stores nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::Result;
use crate::arrivals::{Arrivals, Receipts};
use crate::process::cpu_time;

/// Answers a request, and notes the events in it.
pub(super) type Answer = fn(&Parts, &[u8], &Seen) -> Response<Full<Bytes>>;

pub(super) struct Service {
    pub(super) port: u16,
    seen: Arc<Seen>,
    /// What the kernel tells of its thread.
    thread: PathBuf,
}

/// What it knows of the events that it has taken.
#[derive(Default)]
pub(super) struct Seen {
    events: AtomicI64,
    last_body: AtomicUsize,
    arrivals: Mutex<Option<Arrivals>>,
}

impl Seen {
    /// An event whose body has so many bytes. Who it is is asked only if somebody wants to know.
    pub(super) fn note(&self, body: usize, id: impl FnOnce() -> Option<Uuid>) {
        self.events.fetch_add(1, Ordering::Relaxed);
        self.last_body.store(body, Ordering::Relaxed);
        let arrivals = self.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(arrivals) = arrivals.as_ref()
            && let Some(id) = id()
        {
            arrivals.note(id);
        }
    }

    fn watch(&self, arrivals: Option<Arrivals>) {
        *self.arrivals.lock().unwrap_or_else(PoisonError::into_inner) = arrivals;
    }
}

impl Service {
    /// Starts it; it lives as long as this program.
    pub(super) async fn open(answer: Answer) -> Result<Self> {
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
                if let Err(error) = serve(listener, answer, &served) {
                    eprintln!("the service failed: {error}");
                }
            })?;
        let thread = Path::new("/proc").join(told.await??).join("stat");
        Ok(Self { port, seen, thread })
    }

    pub(super) fn forget(&self) {
        self.seen.events.store(0, Ordering::Relaxed);
    }

    pub(super) fn count(&self) -> i64 {
        self.seen.events.load(Ordering::Relaxed)
    }

    pub(super) fn body_size(&self) -> usize {
        self.seen.last_body.load(Ordering::Relaxed)
    }

    /// Its processor time, in seconds.
    pub(super) fn cpu(&self) -> Result<f64> {
        Ok(cpu_time(&fs::read_to_string(&self.thread)?)?.as_secs_f64())
    }

    pub(super) fn receive(&self) -> Receipts {
        let arrivals = Arrivals::default();
        self.seen.watch(Some(arrivals.clone()));
        let seen = Arc::clone(&self.seen);
        Receipts::new(arrivals, async move {
            seen.watch(None);
            Ok(())
        })
    }
}

fn serve(listener: std::net::TcpListener, answer: Answer, seen: &Arc<Seen>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = TcpListener::from_std(listener)?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let seen = Arc::clone(seen);
            let service = service_fn(move |request: Request<Incoming>| {
                let seen = Arc::clone(&seen);
                async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect().await?.to_bytes();
                    hyper::Result::Ok(answer(&head, &body, &seen))
                }
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    })
}
