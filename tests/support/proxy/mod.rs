//! A TCP proxy that knows frames, and breaks what passes through it as a test says: cut, reset, swallowed, held,
//! delayed, sliced; always, or at exactly the frame that matters.
//!
//! A relay gets two of its own, one to each server, so a fault can hit one relay and spare the other.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

pub mod frames;
mod framing;

use std::io;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use frames::{Conversation, Direction, Label, Protocol};

/// Frames read from one side and not yet written to the other. Then the sender has to wait, as with any network.
const FRAMES_MAX: usize = 1024;

/// The state of one direction.
#[derive(Debug, Clone, Default)]
pub struct Line {
    pub flow: Flow,
    /// Every frame arrives this much later; as many as ever are under way.
    pub delay: Duration,
    /// Single bytes instead of frames.
    pub slice: bool,
    /// Frames that vanish, while all others pass.
    pub swallow: Option<Label>,
}

/// Whether frames pass at all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Flow {
    #[default]
    Open,
    /// They wait.
    Held,
    /// They vanish, and nobody is told. A connection that lost frames is reset when the line opens again.
    Blackhole,
}

/// What happens at a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// It waits, and all behind it, until [`Proxy::release`].
    Hold,
    /// All connections end orderly, without it.
    Cut,
    /// All connections are reset, without it.
    Reset,
}

#[derive(Debug)]
struct Rule {
    label: Label,
    left: usize,
    act: Act,
    sprung: oneshot::Sender<()>,
}

/// Tells when its frame came by.
#[must_use]
#[derive(Debug)]
pub struct Trap(oneshot::Receiver<()>, Label);

impl Trap {
    /// Waits for the frame.
    pub async fn sprung(self) {
        let limit = Duration::from_secs(60);
        match tokio::time::timeout(limit, self.0).await {
            Ok(result) => result.expect("the proxy outlives its traps"),
            Err(_) => panic!("not within {limit:?}: {:?} passes the proxy", self.1),
        }
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Ending {
    generation: u64,
    reset: bool,
}

struct Shared {
    protocol: Protocol,
    port: u16,
    target: AtomicU16,
    lines: watch::Sender<[Line; 2]>,
    rules: Mutex<Vec<Rule>>,
    released: watch::Sender<u64>,
    endings: watch::Sender<Ending>,
}

/// A running proxy; gone when dropped, with its connections.
pub struct Proxy {
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

impl Proxy {
    /// Listens on a free port, on behalf of the server at `target`.
    pub async fn start(protocol: Protocol, target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            protocol,
            port,
            target: AtomicU16::new(target),
            lines: watch::Sender::default(),
            rules: Mutex::default(),
            released: watch::Sender::default(),
            endings: watch::Sender::default(),
        });
        let accepting = tokio::spawn({
            let shared = shared.clone();
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    tokio::spawn(shared.clone().serve(client));
                }
            }
        });
        Self { shared, accepting }
    }

    pub fn port(&self) -> u16 {
        self.shared.port
    }

    /// New connections lead to another server.
    pub fn lead_to(&self, target: u16) {
        self.shared.target.store(target, Ordering::Relaxed);
    }

    /// Changes the state of one direction, for connections there are and connections to come.
    pub fn line(&self, direction: Direction, change: impl FnOnce(&mut Line)) {
        let lines = &self.shared.lines;
        lines.send_modify(|lines| change(&mut lines[index(direction)]));
    }

    /// Changes both directions.
    pub fn lines(&self, change: impl Fn(&mut Line)) {
        self.line(Direction::ToServer, &change);
        self.line(Direction::ToClient, &change);
    }

    /// An ordinary network again.
    pub fn heal(&self) {
        self.lines(|line| *line = Line::default());
    }

    /// Acts at the `nth` frame of this kind from now on, once.
    pub fn at(&self, label: Label, nth: usize, act: Act) -> Trap {
        let protocol = self.shared.protocol;
        assert_eq!(
            label.is_postgres(),
            protocol == Protocol::Postgres,
            "{label:?} in {protocol:?}"
        );
        assert!(nth > 0, "frames are counted from 1");
        let (sprung, trap) = oneshot::channel();
        self.shared.rules.lock().unwrap().push(Rule {
            label,
            left: nth,
            act,
            sprung,
        });
        Trap(trap, label)
    }

    /// Lets go what is held.
    pub fn release(&self) {
        self.shared.released.send_modify(|count| *count += 1);
    }

    /// Ends all connections in an orderly way, and forgets what was under way.
    pub fn cut(&self) {
        self.shared.end(false);
    }

    /// Ends all connections without ceremony.
    pub fn reset(&self) {
        self.shared.end(true);
    }
}

fn index(direction: Direction) -> usize {
    match direction {
        Direction::ToServer => 0,
        Direction::ToClient => 1,
    }
}

impl Shared {
    fn end(&self, reset: bool) {
        self.endings.send_modify(|ending| {
            ending.generation += 1;
            ending.reset = reset;
        });
    }

    /// What to do at this frame.
    fn act(&self, label: Label) -> Option<Act> {
        if label == Label::Other {
            return None;
        }
        let mut rules = self.rules.lock().unwrap();
        let rule = rules.iter_mut().position(|rule| {
            let same = rule.label == label;
            rule.left -= usize::from(same && rule.left > 0);
            same && rule.left == 0
        })?;
        let rule = rules.swap_remove(rule);
        // Nobody may be waiting.
        let _ = rule.sprung.send(());
        Some(rule.act)
    }

    async fn serve(self: Arc<Self>, client: TcpStream) {
        let mut endings = self.endings.subscribe();
        let port = self.target.load(Ordering::Relaxed);
        let target = ("127.0.0.1", port);
        // A server that is away: the client's connection ends as soon as it began.
        let Ok(server) = TcpStream::connect(target).await else {
            return;
        };
        client.set_nodelay(true).unwrap();
        server.set_nodelay(true).unwrap();
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = server.into_split();
        let conversation = Conversation::behind(self.protocol, port, self.port);
        let conversation = Mutex::new(conversation);
        let reset = {
            let up = self.pump(
                Direction::ToServer,
                &conversation,
                &mut from_client,
                &mut to_server,
            );
            let down = self.pump(
                Direction::ToClient,
                &conversation,
                &mut from_server,
                &mut to_client,
            );
            // Either side may end alone and still listen; an error ends both.
            let both = async { tokio::try_join!(up, down).is_err() };
            tokio::select! {
                biased;
                _ = endings.changed() => endings.borrow().reset,
                failed = both => failed,
            }
        };
        if reset {
            for half in [to_client, to_server] {
                // Fails when the connection is gone already.
                let _ = half.as_ref().set_zero_linger();
                // Dropped, it would say goodbye first.
                half.forget();
            }
        }
    }

    /// Moves frames in one direction until its sender ends.
    async fn pump(
        &self,
        direction: Direction,
        conversation: &Mutex<Conversation>,
        from: &mut OwnedReadHalf,
        to: &mut OwnedWriteHalf,
    ) -> io::Result<()> {
        let (sender, frames) = mpsc::channel(FRAMES_MAX);
        tokio::try_join!(
            read(direction, conversation, from, sender),
            self.write(direction, frames, to),
        )?;
        Ok(())
    }

    async fn write(
        &self,
        direction: Direction,
        mut frames: mpsc::Receiver<Passing>,
        to: &mut OwnedWriteHalf,
    ) -> io::Result<()> {
        let mut lines = self.lines.subscribe();
        let mut released = self.released.subscribe();
        let mut lost = false;
        while let Some(frame) = frames.recv().await {
            // Before the test learns of the frame, so that no release can be missed.
            released.borrow_and_update();
            match self.act(frame.label) {
                Some(Act::Hold) => {
                    released.changed().await.map_err(io::Error::other)?;
                }
                Some(act) => {
                    self.end(act == Act::Reset);
                    std::future::pending().await
                }
                None => {}
            }
            let place = index(direction);
            let delay = lines.borrow()[place].delay;
            tokio::time::sleep_until(frame.at + delay).await;
            let moves = |lines: &[Line; 2]| lines[place].flow != Flow::Held;
            let line = {
                let moving = lines.wait_for(moves).await;
                moving.map_err(io::Error::other)?[place].clone()
            };
            if line.flow == Flow::Blackhole {
                lost = true;
                continue;
            }
            if lost {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            if line.swallow == Some(frame.label) {
                continue;
            }
            if line.slice {
                for byte in &frame.bytes {
                    to.write_all(&[*byte]).await?;
                }
            } else {
                to.write_all(&frame.bytes).await?;
            }
        }
        to.shutdown().await
    }
}

/// A frame on its way.
struct Passing {
    at: Instant,
    bytes: Bytes,
    label: Label,
}

async fn read(
    direction: Direction,
    conversation: &Mutex<Conversation>,
    from: &mut OwnedReadHalf,
    frames: mpsc::Sender<Passing>,
) -> io::Result<()> {
    let mut buffer = BytesMut::with_capacity(64 * 1024);
    while from.read_buf(&mut buffer).await? > 0 {
        loop {
            let next = conversation.lock().unwrap().next(direction, &mut buffer);
            let Some((bytes, label)) = next else { break };
            let at = Instant::now();
            let frame = Passing { at, bytes, label };
            if frames.send(frame).await.is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}
