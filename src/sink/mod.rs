//! Where events go: the contract every sink keeps.
//!
//! A [`Sink`] offers a fixed number of [`Lane`]s. One lane carries one batch at a time and is
//! used by one task; several lanes overlap. What the relay relies on:
//!
//! * **One verdict per message, in the order of the batch**, whatever happens.
//! * **`Confirmed` means durable and routed** to at least one queue, for *that very message*.
//!   Anything less certain is `Unavailable`.
//! * **Order**: messages of one batch reach a destination in batch order. Lanes are unordered
//!   among each other; the relay never has one key on two lanes at once.
//! * **An outage is not a rejection**: connection loss, timeouts and a blocked broker give
//!   `Unavailable` and burn nothing.
//! * **One bad message never takes its neighbours with it**: what the protocol cannot carry is
//!   refused before it is sent, with a reason.
//! * **Bounded**: `publish` returns within the confirm timeout plus the time to write the batch. While a
//!   broker blocks publishers, a batch already on its way waits: giving it up would only repeat it.
//! * The sink reconnects by itself, with jittered backoff, and reports through [`SinkState`].

#[cfg(any(
    feature = "rabbitmq",
    feature = "nats",
    feature = "http",
    feature = "kafka",
    feature = "eventbridge"
))]
mod backoff;
// What sinks share need not all be used by one that is built alone.
#[cfg(any(
    feature = "rabbitmq",
    feature = "nats",
    feature = "http",
    feature = "kafka"
))]
#[cfg_attr(not(feature = "default"), allow(dead_code))]
mod binding;
pub mod discard;
#[cfg(feature = "eventbridge")]
pub mod eventbridge;
#[cfg(feature = "http")]
pub mod http;
#[cfg(feature = "kafka")]
pub mod kafka;
#[cfg(feature = "nats")]
pub mod nats;
#[cfg(feature = "rabbitmq")]
pub mod rabbitmq;
pub mod stdout;
#[cfg(any(
    feature = "rabbitmq",
    feature = "nats",
    feature = "http",
    feature = "kafka",
    feature = "eventbridge"
))]
#[cfg_attr(not(feature = "default"), allow(dead_code))]
mod supervised;
#[cfg(any(
    feature = "rabbitmq",
    feature = "nats",
    feature = "http",
    feature = "kafka"
))]
#[cfg_attr(not(feature = "default"), allow(dead_code))]
mod urls;

use std::future::Future;
use std::pin::Pin;

use tokio::sync::watch;

use crate::error::Verdict;
use crate::event::Message;

/// A boxed future, so that sinks can be chosen at run time.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Whether a sink can take events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SinkState {
    /// Connecting or reconnecting; the text says why it is not connected (empty at first).
    Down(String),
    /// Ready to publish.
    Ready,
    /// Ready, but not all is well: fewer channels than wanted, say. The text says what, and what to do.
    Impaired(String),
    /// Connected, but the broker asked publishers to wait (RabbitMQ: `connection.blocked`).
    Blocked(String),
    /// There is nowhere to publish to any more, and never will be (standard output was closed): the relay stops.
    Ended(String),
}

impl SinkState {
    /// Whether batches may be handed over.
    pub fn is_ready(&self) -> bool {
        matches!(self, SinkState::Ready | SinkState::Impaired(_))
    }
}

/// One publishing lane (a channel). Owned by one task; one batch at a time.
pub trait Lane: Send {
    /// Publishes `batch` and returns one verdict per message, in order.
    ///
    /// Cancel-safety: dropping the future leaves the fate of the batch unknown; the lane must
    /// recover (fresh channel) before its next batch.
    fn publish<'a>(&'a mut self, batch: &'a [Message]) -> BoxFuture<'a, Vec<Verdict>>;

    /// Told before a message is published whose event was [postponed](Verdict::Postponed) before, perhaps by a relay
    /// that does not live any more: what this sink knows of its route may have begun with that.
    fn has_waited(&self, _message: &Message) {}
}

/// A destination system.
pub trait Sink: Send {
    /// The kind, as in `OUTRIGGER_SINK`.
    fn kind(&self) -> &'static str;

    /// Hands out the lanes; called once. Their number is the sink's parallelism.
    fn lanes(&mut self) -> Vec<Box<dyn Lane>>;

    /// The current state and its changes.
    fn state(&self) -> watch::Receiver<SinkState>;

    /// Closes cleanly, within a few seconds at most. Called after all lanes were dropped.
    fn close(self: Box<Self>) -> BoxFuture<'static, ()>;
}
