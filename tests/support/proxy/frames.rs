//! Bytes of a connection, cut into the frames of its protocol, and what each frame means to a test. No I/O.

use std::collections::{HashMap, HashSet, VecDeque};

use bytes::{Bytes, BytesMut};

use super::framing;

/// What is spoken on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// PostgreSQL's version 3, without TLS.
    Postgres,
    /// AMQP 0-9-1, without TLS.
    Amqp,
    /// The protocol of NATS, without TLS.
    Nats,
    /// HTTP/1.1, without TLS, every body with its length, one request at a time.
    Http,
    /// Kafka's, without TLS.
    Kafka,
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    ToServer,
    ToClient,
}

/// The relay's statements, told apart by their text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statement {
    /// Reads rows to publish.
    Read,
    /// Marks or deletes published rows.
    Settle,
    /// Records failures.
    Record,
    /// Renews the lease.
    Heartbeat,
    /// Takes partitions.
    Claim,
    Other,
}

/// What a frame means to a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Label {
    /// This statement is executed now.
    Asked(Statement),
    /// One row of its answer.
    Row(Statement),
    /// The end of its answer. Outside a transaction that was begun before, it is committed.
    Answered(Statement),
    /// The beginning of a message; in Kafka and EventBridge, of several.
    Publish,
    /// The broker takes responsibility for one message or several, or refuses to.
    Confirm,
    /// An unroutable message comes back.
    Return,
    Other,
}

impl Label {
    /// Whether such frames pass to or from PostgreSQL; otherwise it is the broker, whatever it speaks. `Other` passes
    /// everywhere.
    pub fn is_postgres(self) -> bool {
        match self {
            Self::Asked(_) | Self::Row(_) | Self::Answered(_) => true,
            Self::Publish | Self::Confirm | Self::Return => false,
            Self::Other => unreachable!("no test waits for a frame without a meaning"),
        }
    }
}

impl Statement {
    /// The statement with this text.
    pub fn of(sql: &str) -> Self {
        let settles = sql.starts_with("with done as (update ")
            || sql.starts_with("with done as (delete from ")
            || (sql.contains(" o set ") && sql.starts_with("update "))
            || (sql.contains(" = any($1)") && sql.starts_with("delete from "));
        if sql.contains("insert into outrigger.failures as f") {
            Self::Record
        } else if sql.starts_with("update outrigger.replicas set lease_until")
            && sql.contains("visible_since")
        {
            Self::Heartbeat
        } else if sql.contains("update outrigger.partitions p set owner = $2") {
            Self::Claim
        } else if settles && !sql.contains("outrigger.replicas") {
            Self::Settle
        } else if sql.contains(" as retry") {
            Self::Read
        } else {
            Self::Other
        }
    }
}

/// One connection: what was said so far, as far as it decides what the next frame means.
#[derive(Debug)]
pub struct Conversation {
    protocol: Protocol,
    begun: bool,
    /// Encrypted or unknown: passed on as it comes.
    opaque: bool,
    prepared: HashMap<String, Statement>,
    bound: Statement,
    /// Statements whose answers are due, one for each time the server will be ready again.
    due: VecDeque<Statement>,
    /// Whether the last HTTP request brought events.
    published: bool,
    /// Kafka's requests with records whose responses are due.
    produced: HashSet<[u8; 4]>,
    /// The port that a Kafka broker announces, and the one its clients are to use.
    announced: Option<(u16, u16)>,
}

impl Conversation {
    pub fn new(protocol: Protocol) -> Self {
        Self {
            protocol,
            begun: false,
            opaque: false,
            prepared: HashMap::new(),
            bound: Statement::Other,
            due: VecDeque::new(),
            published: false,
            produced: HashSet::new(),
            announced: None,
        }
    }

    /// The same, with a broker at port `from` whose clients are to find it at `to`.
    pub fn behind(protocol: Protocol, from: u16, to: u16) -> Self {
        Self {
            announced: Some((from, to)),
            ..Self::new(protocol)
        }
    }

    /// Takes the first frame out of `buffer`, if it is complete.
    pub fn next(&mut self, direction: Direction, buffer: &mut BytesMut) -> Option<(Bytes, Label)> {
        if buffer.is_empty() {
            return None;
        }
        if self.opaque {
            return Some((buffer.split().freeze(), Label::Other));
        }
        let length = match self.protocol {
            Protocol::Postgres => self.postgres_length(direction, buffer),
            Protocol::Amqp => self.amqp_length(direction, buffer),
            Protocol::Nats => framing::nats_length(buffer),
            Protocol::Http => framing::http_length(buffer),
            Protocol::Kafka => framing::kafka_length(buffer),
        }?;
        if buffer.len() < length {
            return None;
        }
        let mut frame = buffer.split_to(length);
        let label = match (self.protocol, direction) {
            (Protocol::Postgres, Direction::ToServer) => self.postgres_to_server(&frame),
            (Protocol::Postgres, Direction::ToClient) => self.postgres_to_client(&frame),
            (Protocol::Amqp, _) => self.amqp(direction, &frame),
            (Protocol::Nats, _) => framing::nats_label(direction, &frame),
            (Protocol::Http, _) => self.http(direction, &frame),
            (Protocol::Kafka, _) => self.kafka(direction, &mut frame),
        };
        Some((frame.freeze(), label))
    }

    fn postgres_length(&self, direction: Direction, buffer: &[u8]) -> Option<usize> {
        // The very first packet has no type.
        if direction == Direction::ToServer && !self.begun {
            return number(buffer, 0);
        }
        Some(1 + number(buffer, 1)?)
    }

    fn postgres_to_server(&mut self, frame: &[u8]) -> Label {
        const TLS: usize = 80_877_103;
        if !self.begun {
            self.begun = true;
            self.opaque = number(frame, 4) == Some(TLS);
            return Label::Other;
        }
        let body = &frame[5..];
        match frame[0] {
            b'P' => {
                let mut texts = body.split(|byte| *byte == 0);
                let name = text(texts.next());
                self.prepared
                    .insert(name, Statement::of(&text(texts.next())));
                Label::Other
            }
            b'B' => {
                let name = text(body.split(|byte| *byte == 0).nth(1));
                let found = self.prepared.get(&name);
                self.bound = found.copied().unwrap_or(Statement::Other);
                Label::Asked(self.bound)
            }
            b'S' => {
                let bound = std::mem::replace(&mut self.bound, Statement::Other);
                self.due.push_back(bound);
                Label::Other
            }
            b'Q' => {
                let statement = Statement::of(&text(body.split(|byte| *byte == 0).next()));
                self.due.push_back(statement);
                Label::Asked(statement)
            }
            _ => Label::Other,
        }
    }

    fn postgres_to_client(&mut self, frame: &[u8]) -> Label {
        let statement = self.due.front().copied().unwrap_or(Statement::Other);
        match frame[0] {
            b'D' => Label::Row(statement),
            b'C' => Label::Answered(statement),
            b'Z' => {
                self.due.pop_front();
                Label::Other
            }
            _ => Label::Other,
        }
    }

    fn amqp_length(&self, direction: Direction, buffer: &[u8]) -> Option<usize> {
        const HEADER: usize = 8;
        const AROUND: usize = 8;
        if direction == Direction::ToServer && !self.begun {
            return Some(HEADER);
        }
        Some(number(buffer, 3)? + AROUND)
    }

    fn amqp(&mut self, direction: Direction, frame: &[u8]) -> Label {
        if direction == Direction::ToServer && !self.begun {
            self.begun = true;
            return Label::Other;
        }
        const METHOD: u8 = 1;
        let (Some([class, method]), METHOD) = (frame.get(7..11).map(numbers), frame[0]) else {
            return Label::Other;
        };
        match (direction, class, method) {
            (Direction::ToServer, 60, 40) => Label::Publish,
            (Direction::ToClient, 60, 80 | 120) => Label::Confirm,
            (Direction::ToClient, 60, 50) => Label::Return,
            _ => Label::Other,
        }
    }

    fn http(&mut self, direction: Direction, frame: &[u8]) -> Label {
        if direction == Direction::ToServer {
            self.published = framing::http_publishes(frame);
        }
        match (self.published, direction) {
            (false, _) => Label::Other,
            (true, Direction::ToServer) => Label::Publish,
            (true, Direction::ToClient) => Label::Confirm,
        }
    }

    fn kafka(&mut self, direction: Direction, frame: &mut BytesMut) -> Label {
        if direction == Direction::ToServer {
            let Some(number) = framing::kafka_produce(frame) else {
                return Label::Other;
            };
            self.produced.insert(number);
            return Label::Publish;
        }
        if framing::kafka_response(frame).is_some_and(|number| self.produced.remove(&number)) {
            return Label::Confirm;
        }
        if let Some((from, to)) = self.announced {
            framing::kafka_readdress(frame, from, to);
        }
        Label::Other
    }
}

/// The 32-bit number at this place.
fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let four = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(u32::from_be_bytes(four) as usize)
}

fn numbers(four: &[u8]) -> [u16; 2] {
    [[four[0], four[1]], [four[2], four[3]]].map(u16::from_be_bytes)
}

fn text(bytes: Option<&[u8]>) -> String {
    String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned()
}
