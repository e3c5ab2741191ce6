//! A proxy that counts what a client says to a server: PostgreSQL messages or AMQP frames.
//!
//! What goes over the wire cannot be argued with, whatever the server's statistics include. Only
//! unencrypted connections can be counted.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What the client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Postgres,
    Amqp,
}

/// What was said so far, over all connections.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    pub connections: u64,
    /// PostgreSQL: how often the client sent something and waits for the answer (Sync, or a simple query).
    pub round_trips: u64,
    /// PostgreSQL: statements prepared under a name.
    pub prepared: u64,
    /// PostgreSQL: how often each statement ran, whether its text was sent or a name it was kept under.
    pub statements: BTreeMap<String, u64>,
    /// AMQP: frames.
    pub frames: u64,
    /// AMQP: `basic.publish` methods.
    pub publishes: u64,
}

impl Counts {
    /// Statements that contain this text.
    pub fn statements_with(&self, part: &str) -> u64 {
        let some = self
            .statements
            .iter()
            .filter(|(text, _)| text.contains(part));
        some.map(|(_, count)| count).sum()
    }

    /// All statements.
    pub fn all_statements(&self) -> u64 {
        self.statements.values().sum()
    }

    /// What was said since an earlier moment.
    pub fn since(&self, earlier: &Self) -> Self {
        let before = |text: &String| earlier.statements.get(text).copied().unwrap_or(0);
        let statements = self.statements.iter();
        let statements = statements.map(|(text, count)| (text.clone(), count - before(text)));
        Self {
            connections: self.connections - earlier.connections,
            round_trips: self.round_trips - earlier.round_trips,
            prepared: self.prepared - earlier.prepared,
            statements: statements.filter(|(_, count)| *count > 0).collect(),
            frames: self.frames - earlier.frames,
            publishes: self.publishes - earlier.publishes,
        }
    }
}

/// Ends, with all connections, when dropped.
pub struct CountingProxy {
    port: u16,
    counts: Arc<Mutex<Counts>>,
    task: JoinHandle<()>,
}

impl Drop for CountingProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl CountingProxy {
    /// Listens on a free port and passes everything on to `server` (host and port).
    pub async fn start(protocol: Protocol, server: String) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let counts = Arc::new(Mutex::new(Counts::default()));
        let shared = Arc::clone(&counts);
        let task = tokio::spawn(async move {
            // Dropped with this task, and the connections with it.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                lock(&shared).connections += 1;
                let (server, counts) = (server.clone(), Arc::clone(&shared));
                connections.spawn(async move {
                    // A connection that breaks is the client's affair.
                    let _ = pass_on(protocol, client, &server, &counts).await;
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { port, counts, task })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn counts(&self) -> Counts {
        lock(&self.counts).clone()
    }
}

fn lock(counts: &Mutex<Counts>) -> std::sync::MutexGuard<'_, Counts> {
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn pass_on(
    protocol: Protocol,
    client: TcpStream,
    server: &str,
    counts: &Mutex<Counts>,
) -> std::io::Result<()> {
    let server = TcpStream::connect(server).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let forth = async {
        let mut reader = Reader::new(protocol);
        let mut buffer = vec![0; 64 << 10];
        loop {
            let length = from_client.read(&mut buffer).await?;
            if length == 0 {
                return to_server.shutdown().await;
            }
            reader.take(&buffer[..length], counts);
            to_server.write_all(&buffer[..length]).await?;
        }
    };
    let back = async {
        tokio::io::copy(&mut from_server, &mut to_client).await?;
        to_client.shutdown().await
    };
    tokio::try_join!(forth, back).map(|_| ())
}

/// Finds the messages in what a client sends.
struct Reader {
    protocol: Protocol,
    /// The beginning of a message whose rest has not come yet.
    pending: Vec<u8>,
    /// Whether what comes next opens the connection: it has another form.
    opening: bool,
    /// Statements by name; the nameless one has an empty name.
    kept: HashMap<String, String>,
}

impl Reader {
    fn new(protocol: Protocol) -> Self {
        Self {
            protocol,
            pending: Vec::new(),
            opening: true,
            kept: HashMap::new(),
        }
    }

    fn take(&mut self, bytes: &[u8], counts: &Mutex<Counts>) {
        self.pending.extend_from_slice(bytes);
        let mut start = 0;
        while let Some(length) = self.message(&self.pending[start..]) {
            let message = &self.pending[start..start + length];
            if self.opening {
                self.opening = self.protocol == Protocol::Postgres && !is_startup(message);
            } else {
                note(self.protocol, message, &mut self.kept, &mut lock(counts));
            }
            start += length;
        }
        self.pending.drain(..start);
    }

    /// The length of the message at the beginning, once all of it is there.
    fn message(&self, bytes: &[u8]) -> Option<usize> {
        let length = match (self.protocol, self.opening) {
            (Protocol::Postgres, true) => number(bytes, 0)?,
            // The length counts itself, but not the type before it.
            (Protocol::Postgres, false) => 1 + number(bytes, 1)?,
            (Protocol::Amqp, true) => 8,
            // Type and channel before the length, an end mark after the payload.
            (Protocol::Amqp, false) => 7 + number(bytes, 3)? + 1,
        };
        (bytes.len() >= length).then_some(length)
    }
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?) as usize)
}

/// Whether it is the message after which typed ones follow, and not a question for encryption.
fn is_startup(message: &[u8]) -> bool {
    const VERSION_3: usize = 3 << 16;
    number(message, 4).is_some_and(|code| code >> 16 == VERSION_3 >> 16)
}

fn note(
    protocol: Protocol,
    message: &[u8],
    kept: &mut HashMap<String, String>,
    counts: &mut Counts,
) {
    let text = |at: usize| {
        let rest = message.get(at..).unwrap_or_default();
        let end = rest
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(rest.len());
        (
            String::from_utf8_lossy(&rest[..end]).into_owned(),
            at + end + 1,
        )
    };
    match (protocol, message[0]) {
        (Protocol::Postgres, b'Q') => {
            counts.round_trips += 1;
            *counts.statements.entry(text(5).0).or_default() += 1;
        }
        // The statement's name, then its text.
        (Protocol::Postgres, b'P') => {
            let (name, after_name) = text(5);
            counts.prepared += u64::from(!name.is_empty());
            kept.insert(name, text(after_name).0);
        }
        // The portal's name, then the statement's: it runs.
        (Protocol::Postgres, b'B') => {
            let (_, after_portal) = text(5);
            let statement = kept.get(&text(after_portal).0).cloned();
            let statement = statement.unwrap_or_else(|| "never prepared".to_owned());
            *counts.statements.entry(statement).or_default() += 1;
        }
        (Protocol::Postgres, b'S') => counts.round_trips += 1,
        (Protocol::Postgres, _) => {}
        (Protocol::Amqp, kind) => {
            counts.frames += 1;
            // A method frame of class `basic` (60) with the method `publish` (40).
            if kind == 1 && message.get(7..11) == Some([0, 60, 0, 40].as_slice()) {
                counts.publishes += 1;
            }
        }
    }
}
