//! What a sink's world must offer so that the checks can be played in it.

use std::collections::BTreeMap;
use std::time::Duration;

use outrigger::error::ReasonCode;
use outrigger::event::Message;
use outrigger::event::encode::Mode;
use outrigger::sink::Sink;

/// Where a message can go.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub destination: String,
    pub routing_key: String,
}

/// A message as a client saw it that shares nothing with the sink but the protocol.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Arrived {
    /// The message's id, however the protocol carries it.
    pub id: String,
    /// As the protocol's CloudEvents binding carries it.
    pub content_type: Option<String>,
    /// By lower-case name, decoded as the binding says, every value as text. Without what the
    /// protocol itself adds.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

/// What a test sets of a sink.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tuning {
    /// Lanes that publish side by side.
    pub lanes: usize,
    /// Longest wait for a confirm.
    pub confirm_timeout: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            lanes: 4,
            confirm_timeout: Duration::from_secs(30),
        }
    }
}

/// A private server and all that a test does to it. Every world can do all of this; where a protocol
/// has no such thing, the method says so with `None`.
pub(crate) trait World: Send + Sync + Sized + 'static {
    /// Starts a server of its own and waits until it serves.
    async fn start() -> Self;

    /// A sink that publishes to the server. It connects by itself, also when the server is away.
    /// `known` are the destinations that the settings name, which are awaited.
    fn sink(&self, tuning: Tuning, known: &[&Place]) -> Box<dyn Sink>;

    /// Whether a sink can find out about a destination without publishing to it, and waits for those it knows.
    fn awaits_destinations(&self) -> bool {
        true
    }

    /// A place that does not exist yet, with a name nobody else uses.
    fn place(&self, name: &str) -> Place;

    /// Makes a place exist, and keep what it gets.
    async fn open(&self, place: &Place);

    /// A routing key that an existing place takes nothing for, and why. `None`: a place takes all.
    fn nobody_listens(&self, place: &Place) -> Option<(Place, ReasonCode)>;

    /// Messages to an existing place that can never be carried, changed from a good one, and why.
    fn impossible(&self, good: &Message) -> Vec<(Message, ReasonCode)>;

    /// Messages to an existing place that look odd and must arrive all the same.
    fn odd(&self, good: &Message) -> Vec<Message>;

    /// Takes all that has arrived at a place, oldest first.
    async fn take(&self, place: &Place) -> Vec<Arrived>;

    /// Kills the server without a warning. What it has confirmed is on disk.
    async fn kill(&self);

    /// Starts the killed server again, with its disk.
    async fn revive(&self);

    /// Makes the server hold all publishers back.
    async fn block(&self);

    /// Whether the protocol can tell publishers that they are held back.
    fn tells_blocking(&self) -> bool {
        true
    }

    /// Ends that.
    async fn unblock(&self);

    /// The modes of events that the protocol can carry.
    fn modes(&self) -> &'static [Mode] {
        &[Mode::Structured, Mode::Binary, Mode::Batch]
    }

    /// Whether it carries headers beside the body, and the body byte for byte.
    fn keeps_messages(&self) -> bool {
        true
    }

    /// Whether a sink notices that the server has gone without publishing to it.
    fn notices_silently(&self) -> bool {
        true
    }

    /// How many connections of sinks the server has.
    async fn connections(&self) -> usize;
}
