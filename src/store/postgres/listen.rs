//! The wake-up hint: LISTEN on a connection of its own.
//!
//! The pool discards notifications, and a listener that stops reading its socket holds back vacuum for the whole
//! cluster. So this connection has a task that does nothing but read it, and notifications collapse into a counter
//! that can never be full. Nothing depends on a notification. After each (re)connect it sends itself one: any number
//! may have been missed, and its arrival proves that this works.

use std::future::poll_fn;
use std::time::Duration;

use rand::Rng as _;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_postgres::types::Type;
use tokio_postgres::{AsyncMessage, Client};
use tokio_util::task::AbortOnDropHandle;

use super::connect::Connector;
use super::error::{StoreError, StoreErrorKind};
use super::mapping::quote;
use super::probe;

/// Whether notifications arrive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenState {
    /// Not connected; the text says why (empty at first). Tried again with growing pauses.
    Down(String),
    /// Listening.
    Listening,
    /// The server, or a pooler in front of it, does not let us listen. Tried again rarely.
    Refused(String),
}

/// A running listener. Stops when dropped.
#[derive(Debug)]
pub struct Listener {
    wakes: watch::Receiver<u64>,
    state: watch::Receiver<ListenState>,
    task: JoinHandle<()>,
}

impl Listener {
    /// Starts listening in the background.
    pub(super) fn spawn(connector: Connector, channel: String) -> Self {
        let (wake, wakes) = watch::channel(0);
        let (report, state) = watch::channel(ListenState::Down(String::new()));
        let task = tokio::spawn(run(connector, channel, wake, report));
        Self { wakes, state, task }
    }

    /// Counts wake-ups: changes when somebody wrote, released partitions, or may have done so.
    pub fn wakes(&self) -> watch::Receiver<u64> {
        self.wakes.clone()
    }

    /// The state and its changes.
    pub fn state(&self) -> watch::Receiver<ListenState> {
        self.state.clone()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

const BACKOFF_FIRST: Duration = Duration::from_millis(200);
const BACKOFF_LAST: Duration = Duration::from_secs(15);
const REFUSED_PAUSE: Duration = Duration::from_secs(600);

async fn run(
    connector: Connector,
    channel: String,
    wake: watch::Sender<u64>,
    report: watch::Sender<ListenState>,
) {
    let mut backoff = BACKOFF_FIRST;
    loop {
        connector.set_direct(false);
        let error = match session(&connector, &channel, &wake, &report).await {
            End::Refused(error) => {
                tracing::warn!(%error, "LISTEN is refused; polling alone finds new events");
                report.send_replace(ListenState::Refused(error.to_string()));
                pause(REFUSED_PAUSE).await;
                continue;
            }
            End::Lost(error) => {
                backoff = BACKOFF_FIRST;
                error
            }
            End::Failed(error) => error,
        };
        tracing::debug!(%error, "the listening connection is down");
        report.send_replace(ListenState::Down(error.to_string()));
        pause(backoff).await;
        backoff = (backoff * 2).min(BACKOFF_LAST);
    }
}

/// Half to all of `ceiling`, so that replicas do not come back together.
async fn pause(ceiling: Duration) {
    let share = rand::rng().random_range(0.5..1.0);
    sleep(ceiling.mul_f64(share)).await;
}

enum End {
    /// Never got as far as listening.
    Failed(StoreError),
    /// Connected, but not allowed to listen.
    Refused(StoreError),
    /// Was listening.
    Lost(StoreError),
}

async fn session(
    connector: &Connector,
    channel: &str,
    wake: &watch::Sender<u64>,
    report: &watch::Sender<ListenState>,
) -> End {
    let deadline = connector.deadline();
    let (client, mut connection) = match timeout(deadline, connector.open()).await {
        Ok(Ok(opened)) => opened,
        Ok(Err(error)) => return End::Failed(error.into()),
        Err(_) => {
            return End::Failed(StoreError::unavailable(
                "timed out connecting to the database",
            ));
        }
    };
    let proof = format!("proof {:016x}", rand::random::<u64>());
    let mut asked = false;
    let mut listening = false;
    // The request is answered only while the connection is polled, so both run side by side.
    let mut request = Box::pin(timeout(
        deadline,
        listen(connector, &client, channel, &proof),
    ));
    let mut late = Box::pin(sleep(Duration::MAX));
    loop {
        tokio::select! {
            answer = &mut request, if !asked => match answer {
                Ok(Ok(())) => {
                    asked = true;
                    late = Box::pin(sleep(deadline));
                }
                Ok(Err(error)) => {
                    return match error.kind() {
                        StoreErrorKind::Unavailable => End::Failed(error),
                        _ => End::Refused(error),
                    };
                }
                Err(_) => return End::Failed(StoreError::unavailable("LISTEN timed out")),
            },
            () = &mut late, if !listening => {
                return End::Failed(StoreError::unavailable(
                    "a notification to ourselves did not arrive: if a pooler sits in between, connect directly or in \
                     session mode, or set OUTRIGGER_RELAY_WAKE=poll",
                ));
            }
            message = poll_fn(|cx| connection.poll_message(cx)) => match message {
                Some(Ok(AsyncMessage::Notification(note))) => {
                    if !listening && note.payload() == proof {
                        listening = true;
                        connector.set_direct(true);
                        report.send_replace(ListenState::Listening);
                    }
                    wake.send_modify(|count| *count += 1);
                }
                Some(Ok(_)) => {}
                Some(Err(error)) if listening => return End::Lost(error.into()),
                Some(Err(error)) => return End::Failed(error.into()),
                None => return End::Lost(StoreError::unavailable("the server closed the connection")),
            },
        }
    }
}

/// Listens, and sends itself a notification from a second, short-lived connection. Its arrival proves that
/// notifications arrive, and that a session is ours alone: a transaction pooler drops what comes for an idle client.
async fn listen(
    connector: &Connector,
    client: &Client,
    channel: &str,
    proof: &str,
) -> Result<(), StoreError> {
    // What one connection got past, such as a password, was right a moment ago: not a reason to give up for long.
    let opened = connector.open().await.map_err(StoreError::from);
    let (mut other, connection) =
        opened.map_err(|error| StoreError::unavailable(error.to_string()))?;
    let driver = AbortOnDropHandle::new(tokio::spawn(connection));
    if probe::shares_sessions(client, &mut other).await? {
        return Err(StoreError::schema(
            "a transaction pooler sits in between, which accepts LISTEN but delivers nothing: connect directly or in \
             session mode, or set OUTRIGGER_RELAY_WAKE=poll",
        ));
    }
    client
        .batch_execute(&format!("listen {}", quote(channel)))
        .await?;
    other
        .query_typed(
            "select pg_notify($1, $2)",
            &[(&channel, Type::TEXT), (&proof, Type::TEXT)],
        )
        .await?;
    drop(driver);
    Ok(())
}
