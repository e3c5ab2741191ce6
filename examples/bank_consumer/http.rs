//! Events by HTTP: each is answered once it is taken into account.

use std::convert::Infallible;

use bytes::Bytes;
use cloudevents::Event;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

use crate::{Result, structured};

type Posted = (Event, oneshot::Sender<()>);

pub(crate) struct Service {
    posted: mpsc::Receiver<Posted>,
    current: Option<oneshot::Sender<()>>,
}

impl Service {
    pub(crate) async fn open(address: &str) -> Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let (post, posted) = mpsc::channel(1);
        tokio::spawn(async move {
            // A listener that fails ends the service, and with it `next`.
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                let post = post.clone();
                let service = service_fn(move |request| answer(request, post.clone()));
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Ok(Self {
            posted,
            current: None,
        })
    }

    pub(crate) async fn next(&mut self) -> Result<Event> {
        let (event, done) = self.posted.recv().await.ok_or("cannot listen any more")?;
        self.current = Some(done);
        Ok(event)
    }

    pub(crate) fn taken(&mut self) {
        if let Some(done) = self.current.take() {
            // Whoever posted it may have left.
            let _ = done.send(());
        }
    }
}

/// 204 once the event counts, 400 if it is none, 503 if it did not count.
async fn answer(
    request: Request<Incoming>,
    post: mpsc::Sender<Posted>,
) -> std::result::Result<Response<Empty<Bytes>>, Infallible> {
    let mut response = Response::new(Empty::new());
    *response.status_mut() = match read(request).await {
        Err(_) => StatusCode::BAD_REQUEST,
        Ok(event) => {
            let (done, counted) = oneshot::channel();
            let posted = post.send((event, done)).await.is_ok();
            match posted && counted.await.is_ok() {
                true => StatusCode::NO_CONTENT,
                false => StatusCode::SERVICE_UNAVAILABLE,
            }
        }
    };
    Ok(response)
}

async fn read(request: Request<Incoming>) -> Result<Event> {
    let content_type = request.headers().get(CONTENT_TYPE).cloned();
    let body = request.into_body().collect().await?.to_bytes();
    structured(
        content_type.as_ref().and_then(|value| value.to_str().ok()),
        &body,
    )
}
