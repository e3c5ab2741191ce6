//! One publishing lane: a connection that is kept, with one request at a time.
//!
//! So the events of a batch reach the service in order. An event that may or may not have been taken stops
//! its key for this batch: what follows must not overtake it.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::Request;
use hyper::body::Incoming;
use hyper::{Response, StatusCode};
use tokio::time::{Instant, timeout};

use super::connection::Connection;
use super::outcome::{Outcome, quote, read};
use super::prepare::prepare;
use super::supervisor::Shared;
use crate::error::{Reason, ReasonCode, Verdict};
use crate::event::Message;
use crate::sink::{BoxFuture, Lane};

/// A longer answer is not worth reading; the connection is closed instead.
const ANSWER_MAX: usize = 64 * 1024;

/// See the module.
pub(super) struct HttpLane {
    shared: Arc<Shared>,
    /// Taken out while a request is on it, so that one whose future is dropped is not used again.
    connection: Option<Connection>,
}

/// How a request ended.
enum Sent {
    Answered(Outcome, StatusCode),
    /// It was sent, and there is no answer.
    Silent(String),
    /// There is no connection.
    Unreachable(String),
}

impl Lane for HttpLane {
    fn publish<'a>(&'a mut self, batch: &'a [Message]) -> BoxFuture<'a, Vec<Verdict>> {
        Box::pin(self.publish_batch(batch))
    }
}

impl HttpLane {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            connection: None,
        }
    }

    async fn publish_batch(&mut self, batch: &[Message]) -> Vec<Verdict> {
        let mut verdicts = vec![Verdict::Unavailable; batch.len()];
        if !self.shared.status.is_ready() {
            self.shared.status.catch_up().await;
            return verdicts;
        }
        let begun = Instant::now();
        let mut stopped_keys = HashSet::new();
        for (message, verdict) in batch.iter().zip(&mut verdicts) {
            let key = message.key.as_deref();
            if key.is_some_and(|key| stopped_keys.contains(key)) {
                continue;
            }
            // Each request has its time; the batch as a whole has no more than twice that.
            if begun.elapsed() >= self.shared.settings.timeout {
                break;
            }
            *verdict = self.publish_one(message).await;
            if *verdict != Verdict::Unavailable {
                continue;
            }
            // A message of several events may hold several keys.
            if message.seqs.len() > 1 || !self.shared.status.is_ready() {
                break;
            }
            stopped_keys.extend(key);
        }
        verdicts
    }

    async fn publish_one(&mut self, message: &Message) -> Verdict {
        let settings = &self.shared.settings;
        let request = match prepare(message, &self.shared.target(), settings.max_message_size) {
            Ok(request) => request,
            Err(reason) => return Verdict::Impossible(reason),
        };
        let attempt = self.shared.culprits.begin();
        let what = match self.send(request, message).await {
            Sent::Answered(Outcome::Verdict(verdict), _) => {
                // Also a refusal shows that the service is well.
                self.shared.took(&message.id, attempt);
                return verdict;
            }
            Sent::Answered(Outcome::Busy(wait), status) => {
                let what = match status {
                    StatusCode::UNAUTHORIZED | StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
                        let problem = match self.shared.reread().await {
                            Ok(()) => "check OUTRIGGER_HTTP_AUTHORIZATION".to_owned(),
                            Err(problem) => problem,
                        };
                        format!("the service does not accept the credentials ({status}); {problem}")
                    }
                    _ => format!("the service asks to wait ({status})"),
                };
                self.shared.busy(&what, wait);
                return Verdict::Unavailable;
            }
            Sent::Unreachable(reason) => {
                self.shared.unreachable(reason);
                return Verdict::Unavailable;
            }
            Sent::Answered(Outcome::Failed, status) => format!("the service answered {status}"),
            Sent::Silent(reason) => reason,
        };
        let blamed = self.shared.culprits.failed_at(&message.id, attempt);
        self.shared.failed(&what);
        if blamed {
            let detail = format!(
                "{what}, again, and took other events meanwhile; look for the cause in its log"
            );
            return Verdict::Rejected(Reason::new(ReasonCode::Other, detail));
        }
        Verdict::Unavailable
    }

    /// A connection that was kept may have been closed by the service just now. That is how HTTP works and no
    /// failure, so the request is sent once more on a fresh one.
    async fn send(&mut self, request: Request<Full<Bytes>>, message: &Message) -> Sent {
        let limit = self.shared.settings.timeout;
        let path = request.uri().path().to_owned();
        for kept_may_be_stale in [true, false] {
            let mut connection = match self.connect().await {
                Ok(connection) => connection,
                Err(reason) => return Sent::Unreachable(reason),
            };
            let sending = connection.requests.send_request(request.clone());
            match timeout(limit, sending).await {
                Ok(Ok(response)) => {
                    return self.answered(connection, response, &path, message).await;
                }
                Ok(Err(error)) if kept_may_be_stale && connection.used => {
                    tracing::debug!(%error, "a kept connection was gone");
                }
                Ok(Err(error)) => {
                    return Sent::Silent(format!("the connection broke before an answer: {error}"));
                }
                Err(_) => return Sent::Silent(format!("no answer within {limit:?}")),
            }
        }
        Sent::Silent("the connection broke before an answer".to_owned())
    }

    /// The status decides. The body is read so that the connection can be kept, and to quote from it.
    async fn answered(
        &mut self,
        mut connection: Connection,
        response: Response<Incoming>,
        path: &str,
        message: &Message,
    ) -> Sent {
        let (head, body) = response.into_parts();
        // By the name that stands in the row, which the path may spell otherwise.
        let place = match message.destination.as_str() {
            "" => path.to_owned(),
            name if path.contains(name) => path.to_owned(),
            name => format!("{path}` for the destination `{name}"),
        };
        let mut outcome = read(head.status, &head.headers, &place, message.body.len());
        let reading = Limited::new(body, ANSWER_MAX).collect();
        if let Ok(Ok(answer)) = timeout(self.shared.settings.timeout, reading).await {
            quote(&mut outcome, &answer.to_bytes(), &message.body);
            connection.used = true;
            self.connection = Some(connection);
        }
        Sent::Answered(outcome, head.status)
    }

    async fn connect(&mut self) -> Result<Connection, String> {
        if let Some(mut kept) = self.connection.take()
            && !kept.requests.is_closed()
            && kept.requests.ready().await.is_ok()
        {
            return Ok(kept);
        }
        let ended = Arc::clone(&self.shared.ended);
        Connection::open(&self.shared.target(), &self.shared.settings, ended).await
    }
}
