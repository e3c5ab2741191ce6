//! Questions to a broker for the `check` command. Everything returned is plain data.
//!
//! ```no_run
//! # use outrigger::sink::rabbitmq::{check::Probe, RabbitMqSettings};
//! # async fn example(settings: RabbitMqSettings) -> Result<(), String> {
//! let probe = Probe::connect(&settings, 0).await?;
//! println!("{:?}", probe.broker());
//! println!("{:?}", probe.exchange("events").await?);
//! probe.close().await;
//! # Ok(())
//! # }
//! ```

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use lapin::types::parsing::parse_field_table;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::channels::ChannelLimit;
use super::endpoint::Endpoint;
use super::exchanges::{Answer, declare, kind_of};
use super::lane::RabbitMqLane;
use super::link::{Link, TOO_MANY_CHANNELS};
pub use super::plugins::DELAYED;
use super::queues::missing;
use super::settings::RabbitMqSettings;
use super::supervisor::Shared;
use super::words::absent;
use crate::error::{Reason, Verdict};
use crate::event::Message;
use crate::sink::Lane;
use crate::tls;

/// A broker's first frame is a few hundred bytes; anything much longer is no broker.
const GREETING_MAX: usize = 64 * 1024;

/// Limits that may be met with, one after the other, until a connection has its channels.
const LIMITS_MAX: usize = 3;

/// What a broker says about itself, and what was agreed with it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Broker {
    /// Host, port and vhost.
    pub endpoint: String,
    /// The user name; never the password.
    pub user: String,
    /// `RabbitMQ`, or whatever else speaks AMQP 0-9-1 there.
    pub product: Option<String>,
    /// Its version.
    pub version: Option<String>,
    /// Its platform, such as `Erlang/OTP 27.1`.
    pub platform: Option<String>,
    /// The cluster it belongs to.
    pub cluster: Option<String>,
    /// SASL mechanisms it offers.
    pub mechanisms: Vec<String>,
    /// The TLS session, for `amqps://`.
    pub tls: Option<TlsSession>,
    /// Negotiated frame size in bytes: the limit for all headers of a message together.
    pub frame_max: u32,
    /// Negotiated number of channels.
    pub channel_max: u16,
    /// Why there are fewer channels than the settings ask for.
    pub limited: Option<String>,
    /// Negotiated heartbeat in seconds; 0 means none.
    pub heartbeat_secs: u16,
}

/// How a connection is encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSession {
    /// Such as `TLSv1_3`.
    pub protocol: String,
    /// Such as `TLS13_AES_256_GCM_SHA384`.
    pub cipher: String,
}

/// Whether an exchange is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exchange {
    /// It exists.
    Exists {
        /// Its type, if the user's permissions allow finding out.
        kind: Option<String>,
    },
    /// It does not exist, or the broker will not say, for this reason.
    Missing(Reason),
}

/// A connection for asking.
pub struct Probe {
    broker: Broker,
    link: Arc<Link>,
    settings: RabbitMqSettings,
}

impl Probe {
    /// Connects to the broker of URL number `position`, from 0.
    pub async fn connect(settings: &RabbitMqSettings, position: usize) -> Result<Self, String> {
        let endpoints = settings
            .endpoints()
            .map_err(|problems| problems.join("; "))?;
        let endpoint = endpoints
            .get(position)
            .ok_or_else(|| format!("OUTRIGGER_RABBITMQ_URL has no URL number {}", position + 1))?;
        // First the real connection: its errors are the ones with explanations. A limit that one connection meets with,
        // the next one keeps to, as the relay does.
        let limit = ChannelLimit::default();
        let mut link = Link::open(endpoint, settings).await?;
        let mut met = link.set_up(settings, &limit).await;
        for _ in 0..LIMITS_MAX {
            if !matches!(&met, Err(problem) if problem.contains(TOO_MANY_CHANNELS)) {
                break;
            }
            link.end("one channel too many");
            link = Link::open(endpoint, settings).await?;
            met = link.set_up(settings, &limit).await;
        }
        met?;
        let greeting = {
            let (endpoint, settings) = (endpoint.clone(), settings.clone());
            tokio::task::spawn_blocking(move || greet(&endpoint, &settings))
                .await
                .map_err(|error| format!("cannot ask the broker about itself: {error}"))?
                // It works, and only its name is unknown.
                .unwrap_or_else(|error| {
                    tracing::debug!(error, "the broker did not introduce itself");
                    Broker::default()
                })
        };
        let agreed = link.connection().configuration();
        let broker = Broker {
            endpoint: endpoint.to_string(),
            user: endpoint.user().to_owned(),
            frame_max: agreed.frame_max(),
            channel_max: agreed.channel_max(),
            heartbeat_secs: agreed.heartbeat(),
            limited: link.channels.plan().and_then(|plan| plan.limited.clone()),
            ..greeting
        };
        Ok(Self {
            broker,
            link,
            settings: settings.clone(),
        })
    }

    /// What answered.
    pub fn broker(&self) -> &Broker {
        &self.broker
    }

    /// Whether an exchange exists. Creates nothing, whatever the settings say. An error means that
    /// the connection broke.
    pub async fn exchange(&self, name: &str) -> Result<Exchange, String> {
        if name.is_empty() {
            let kind = Some("direct".to_owned());
            return Ok(Exchange::Exists { kind });
        }
        let Ok(exchange) = ShortString::try_new(name) else {
            return Ok(Exchange::Missing(absent(&self.link, name)));
        };
        let passive = declare(&self.link, &exchange, "topic", true).await?;
        if let Answer::No { code, text } = passive {
            let mut reason = absent(&self.link, name);
            if code != 404 {
                reason.detail = format!("the broker will not say whether `{name}` exists: {text}");
            }
            return Ok(Exchange::Missing(reason));
        }
        let kind = kind_of(&self.link, name).await?;
        Ok(Exchange::Exists { kind })
    }

    /// Why not all queues of `OUTRIGGER_RABBITMQ_QUEUES` are there; `None` if they are, or none is named. An error means
    /// that the connection broke.
    pub async fn missing_queue(&self) -> Result<Option<String>, String> {
        missing(&self.link, &self.settings.queues).await
    }

    /// Publishes one message the way the sink does, and reports the broker's answer.
    pub async fn publish(&self, message: Message) -> Verdict {
        let settings = RabbitMqSettings {
            // Checking must not create exchanges.
            declare: false,
            ..self.settings.clone()
        };
        let shared = Shared::new(settings, Vec::new());
        shared.link.send_replace(Some(Arc::clone(&self.link)));
        let mut lane = RabbitMqLane::new(Arc::new(shared));
        let verdicts = lane.publish(&[message]).await;
        verdicts.into_iter().next().unwrap_or(Verdict::Unavailable)
    }

    /// Whether the broker asked publishers to wait. It says so only to those who have published.
    pub fn is_blocked(&self) -> bool {
        self.link.is_blocked()
    }

    /// Closes the connection, within a few seconds at most.
    pub async fn close(self) {
        self.link.close().await;
    }
}

/// Reads a broker's `connection.start`, which lapin does not hand out, from a connection of its
/// own that ends right after it.
fn greet(endpoint: &Endpoint, settings: &RabbitMqSettings) -> Result<Broker, String> {
    let text = |error: std::io::Error| error.to_string();
    let limit = endpoint.connect_timeout();
    let socket = connect(endpoint, limit).map_err(text)?;
    socket.set_read_timeout(Some(limit)).map_err(text)?;
    socket.set_write_timeout(Some(limit)).map_err(text)?;
    if !endpoint.is_tls() {
        return read_greeting(socket).map_err(text);
    }
    let mut stream = start_tls(endpoint, Arc::new(tls::load(&settings.tls())?), socket)?;
    let mut broker = read_greeting(&mut stream).map_err(text)?;
    let session = &stream.conn;
    if let (Some(protocol), Some(cipher)) = (
        session.protocol_version(),
        session.negotiated_cipher_suite(),
    ) {
        broker.tls = Some(TlsSession {
            protocol: format!("{protocol:?}"),
            cipher: format!("{:?}", cipher.suite()),
        });
    }
    Ok(broker)
}

fn connect(endpoint: &Endpoint, limit: Duration) -> std::io::Result<TcpStream> {
    let mut last = std::io::Error::from(std::io::ErrorKind::NotFound);
    for address in (endpoint.host(), endpoint.port()).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, limit) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn start_tls(
    endpoint: &Endpoint,
    config: Arc<ClientConfig>,
    socket: TcpStream,
) -> Result<StreamOwned<ClientConnection, TcpStream>, String> {
    let name = ServerName::try_from(endpoint.host().to_owned()).map_err(|e| e.to_string())?;
    let session = ClientConnection::new(config, name).map_err(|e| e.to_string())?;
    Ok(StreamOwned::new(session, socket))
}

fn read_greeting(mut stream: impl Read + Write) -> std::io::Result<Broker> {
    stream.write_all(b"AMQP\0\0\x09\x01")?;
    stream.flush()?;
    let mut head = [0; 7];
    stream.read_exact(&mut head)?;
    let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
    // A method frame on channel 0; a broker of another version answers with a header instead.
    if head[..3] != [1, 0, 0] || size > GREETING_MAX {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    let mut payload = vec![0; size];
    stream.read_exact(&mut payload)?;
    parse_greeting(&payload).ok_or_else(|| std::io::ErrorKind::InvalidData.into())
}

/// `connection.start`: class 10, method 10, two version bytes, properties, mechanisms, locales.
fn parse_greeting(payload: &[u8]) -> Option<Broker> {
    let rest = payload.strip_prefix(&[0, 10, 0, 10])?.get(2..)?;
    let (rest, properties) = parse_field_table(rest).ok()?;
    let size = u32::from_be_bytes(rest.get(..4)?.try_into().ok()?) as usize;
    let mechanisms = String::from_utf8_lossy(rest.get(4..4 + size)?).into_owned();
    let property = |name: &str| text_of(&properties, name);
    Some(Broker {
        product: property("product"),
        version: property("version"),
        platform: property("platform"),
        cluster: property("cluster_name"),
        mechanisms: mechanisms.split_whitespace().map(str::to_owned).collect(),
        ..Broker::default()
    })
}

fn text_of(table: &FieldTable, name: &str) -> Option<String> {
    match table.inner().get(name)? {
        AMQPValue::LongString(text) => Some(text.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_garbled_greeting_is_no_greeting() {
        for payload in [
            &b""[..],
            b"\0\x0a\0\x0a",
            b"\0\x0a\0\x0a\0\x09\xff\xff\xff\xff",
            b"HTTP/1.1",
        ] {
            assert_eq!(parse_greeting(payload), None);
        }
        let short = [0, 10, 0, 10, 0, 9, 0, 0, 0, 0, 0, 0, 0, 5, b'P'];
        assert_eq!(parse_greeting(&short), None);
        let plain = [0, 10, 0, 10, 0, 9, 0, 0, 0, 0, 0, 0, 0, 1, b'P'];
        assert_eq!(
            parse_greeting(&plain).map(|b| b.mechanisms),
            Some(vec!["P".to_owned()])
        );
    }
}
