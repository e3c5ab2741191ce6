//! The wake-up hint: LISTEN on a connection of its own.
//!
//! The pool discards notifications, and a listener that stops reading its socket holds back vacuum for the whole
//! cluster. So this connection has a task that does nothing but read it, and notifications collapse into a counter
//! that can never be full. Nothing depends on a notification. After each (re)connect it sends itself one: any number
//! may have been missed, and its arrival proves that this works.

use std::future::poll_fn;
use std::time::{Duration, Instant};

use deadpool_postgres::Pool;
use rand::Rng as _;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_postgres::types::Type;
use tokio_postgres::{AsyncMessage, Client};

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

/// How a listener gets at the database.
pub(super) struct Way {
    /// Opens its own connection.
    pub(super) connector: Connector,
    /// What it listens for.
    pub(super) channel: String,
    /// The relay's connections, one of which is borrowed for a moment.
    pub(super) pool: Pool,
    /// Changes when the relay's sessions turn out to lead to the wrong server.
    pub(super) retired: watch::Receiver<Option<Instant>>,
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
    pub(super) fn spawn(way: Way) -> Self {
        let (wake, wakes) = watch::channel(0);
        let (report, state) = watch::channel(ListenState::Down(String::new()));
        let task = tokio::spawn(run(way, wake, report));
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

/// A listener that is down for longer than this is worth a line: a restart of the server is over by then.
const SAID_AFTER: Duration = Duration::from_secs(30);

async fn run(mut way: Way, wake: watch::Sender<u64>, report: watch::Sender<ListenState>) {
    let mut backoff = BACKOFF_FIRST;
    let mut down: Option<Instant> = None;
    let mut said = String::new();
    loop {
        way.connector.set_direct(false);
        let ended = session(&mut way, &wake, &report).await;
        let (error, refused) = match ended {
            End::Refused(error) => (error, true),
            End::Lost(error) => {
                (backoff, down) = (BACKOFF_FIRST, None);
                said.clear();
                (error, false)
            }
            End::Failed(error) => (error, false),
        };
        let error = way.connector.explain(error);
        let text = error.to_string();
        let since = *down.get_or_insert_with(Instant::now);
        // Polling finds every event, so once is enough for one reason.
        if text != said && (refused || since.elapsed() >= SAID_AFTER) {
            let what = if refused {
                "LISTEN is refused"
            } else {
                "LISTEN does not work"
            };
            tracing::warn!(%error, "{what}; polling alone finds new events");
            said.clone_from(&text);
        } else {
            tracing::debug!(%error, "the listening connection is down");
        }
        if refused {
            report.send_replace(ListenState::Refused(text));
            pause(REFUSED_PAUSE).await;
        } else {
            report.send_replace(ListenState::Down(text));
            pause(backoff).await;
            backoff = (backoff * 2).min(BACKOFF_LAST);
        }
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
    way: &mut Way,
    wake: &watch::Sender<u64>,
    report: &watch::Sender<ListenState>,
) -> End {
    way.retired.mark_unchanged();
    let mut retired = way.retired.clone();
    let connector = &way.connector;
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
        listen(&way.pool, &client, &way.channel, &proof),
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
                let what = "a notification to ourselves did not arrive";
                return End::Failed(StoreError::unavailable(what).with_remedy(AROUND_POOLERS));
            }
            // A session with a server that was left behind hears nothing any more.
            Ok(()) = retired.changed() => {
                return End::Lost(StoreError::unavailable("the relay's server changed"));
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

const AROUND_POOLERS: &str = "if a pooler sits in between, set OUTRIGGER_DATABASE_LISTEN_URL to a direct connection, or \
                              OUTRIGGER_RELAY_WAKE=poll";

/// Listens, and sends itself a notification from one of the relay's connections. Its arrival proves that notifications
/// arrive, and that a session is ours alone: a transaction pooler drops what comes for an idle client.
async fn listen(
    pool: &Pool,
    client: &Client,
    channel: &str,
    proof: &str,
) -> Result<(), StoreError> {
    // What one connection got past, such as a password, was right a moment ago: not a reason to give up for long.
    let borrowed = pool.get().await.map_err(StoreError::from);
    let other = borrowed.map_err(|error| StoreError::unavailable(error.to_string()))?;
    if probe::shares_sessions(client, &other).await? {
        let what =
            "a transaction pooler sits in between, which accepts LISTEN but delivers nothing";
        return Err(StoreError::schema(what).with_remedy(AROUND_POOLERS));
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
    Ok(())
}
