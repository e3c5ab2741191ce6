//! The admin listener: health and metrics for machines, a status page for people. Read-only.
//!
//! It shares the relay's one thread and an unprotected port, so nothing a client does may cost much or last long:
//!
//! * a connection carries one request and is over within [`CONNECTION_MAX`];
//! * the head of a request has [`HEAD_MAX`] bytes and comes within [`HEAD_TIME`]; a body is refused unread;
//! * there are at most [`CONNECTIONS_MAX`] connections. One more ends the oldest: an honest request is answered in
//!   the turn in which it arrives, so the oldest is one that stalls, and a flood cannot lock a probe out;
//! * no answer waits for the database or the broker. All are made from what the relay knows already.

pub mod backlog;
pub mod health;
pub mod history;
mod http;
pub mod probe;
mod process;
mod scrape;
mod status;
mod verdict;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};
use uuid::Uuid;

use crate::relay::live::Live;
use crate::store::ReplicaRow;
use crate::telemetry::metrics::Measured;
use backlog::Watched;
use history::{History, SAMPLE_EVERY};

/// Connections at a time.
pub const CONNECTIONS_MAX: usize = 64;
/// Bytes of the head of a request.
pub const HEAD_MAX: usize = 16 << 10;
/// Header fields of a request.
const FIELDS_MAX: usize = 64;
/// How long the head of a request may take.
pub const HEAD_TIME: Duration = Duration::from_secs(5);
/// How long a connection may take in all, a reader that takes its time included.
pub const CONNECTION_MAX: Duration = Duration::from_secs(15);
/// Pause after the system refused a connection (out of file descriptors), so that asking again does not become the
/// work of the thread.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// What does not change while the process runs.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Of the binary.
    pub version: &'static str,
    /// Of this replica.
    pub name: String,
    /// The outbox table, as configured.
    pub table: String,
    /// The kind of sink.
    pub sink: &'static str,
    /// Where it leads, without credentials; empty for standard output.
    pub target: String,
    /// The destination of events whose row names none, as configured.
    pub destination: String,
    /// Host, port and database, without credentials.
    pub database: String,
}

/// What the listener can tell.
#[derive(Debug)]
pub struct Site {
    /// Once and for all.
    pub facts: Facts,
    /// The relay.
    pub live: watch::Receiver<Live>,
    /// What is measured as it happens.
    pub measured: Arc<Measured>,
    /// What was seen in the database.
    pub watched: watch::Receiver<Watched>,
    /// What was; kept by [`Admin::serve`].
    pub history: Mutex<History>,
}

impl Site {
    fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The replicas whose lease lasts, as far as the last look says. A lone replica does not renew its lease: its proof
/// is that it sees nobody else.
fn replicas_alive(live: &Live, now: Instant) -> Vec<Uuid> {
    let Some(tick) = &live.tick else {
        return Vec::new();
    };
    let since = now.saturating_duration_since(live.ticked_at);
    let alive = |row: &ReplicaRow| match Some(row.replica) == live.replica {
        true => live.gauges.proven,
        false => row.alive_for > since,
    };
    let rows = tick.replicas.iter().filter(|row| alive(row));
    rows.map(|row| row.replica).collect()
}

/// The listener, bound and not serving yet.
#[derive(Debug)]
pub struct Admin {
    listener: TcpListener,
    address: SocketAddr,
}

impl Admin {
    /// Takes the port.
    ///
    /// # Errors
    /// When the system refuses, for example because the port is in use.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// Where it listens; the port is never 0.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until dropped.
    pub async fn serve(self, site: Arc<Site>) {
        let mut connections = JoinSet::new();
        // The oldest first.
        let mut handles: VecDeque<AbortHandle> = VecDeque::new();
        let mut samples = tokio::time::interval(SAMPLE_EVERY);
        samples.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        if handles.len() >= CONNECTIONS_MAX
                            && let Some(oldest) = handles.pop_front()
                        {
                            oldest.abort();
                        }
                        handles.push_back(connections.spawn(connection(stream, site.clone())));
                    }
                    Err(error) => {
                        tracing::debug!(%error, "the admin listener cannot accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                _ = samples.tick() => site.history().sample(&site, Instant::now()),
                Some(_) = connections.join_next() => handles.retain(|handle| !handle.is_finished()),
            }
        }
    }
}

async fn connection(stream: TcpStream, site: Arc<Site>) {
    let service = service_fn(move |request| {
        let answer = http::answer(&site, &request);
        async move { Ok::<_, std::convert::Infallible>(answer) }
    });
    let mut server = http1::Builder::new();
    server
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HEAD_MAX)
        .max_headers(FIELDS_MAX)
        .keep_alive(false);
    let served = server.serve_connection(TokioIo::new(stream), service);
    // Clients that break off, dawdle or speak another protocol are their own problem.
    let _ = tokio::time::timeout(CONNECTION_MAX, served).await;
}
