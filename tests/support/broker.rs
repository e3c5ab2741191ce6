//! A broker that does as it is told: speaks AMQP 0-9-1 frames, and confirms, returns, closes or
//! keeps silent in any order a test chooses.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

use amq_protocol::frame::{AMQPContentHeader, AMQPFrame, WriteContext, gen_frame, parse_frame};
use amq_protocol::protocol::{
    AMQPClass, BasicProperties, basic, channel, confirm, connection, exchange,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Listens on a free port.
pub struct Broker {
    listener: TcpListener,
}

impl Broker {
    pub async fn listen() -> Self {
        Self {
            listener: TcpListener::bind("127.0.0.1:0").await.unwrap(),
        }
    }

    pub fn url(&self) -> String {
        format!("amqp://{}", self.listener.local_addr().unwrap())
    }

    /// A connection on which nothing has been said yet.
    pub async fn accept_raw(&self) -> TcpStream {
        let (stream, _) = self.listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// A connection after its handshake, with all its channels open.
    pub async fn accept(&self) -> Client {
        let mut client = Client {
            stream: self.accept_raw().await,
            received: Vec::new(),
            kind: None,
        };
        client.handshake().await;
        // Two to publish on, with confirms, and one for questions.
        for _ in 0..5 {
            match client.frame().await {
                Some(AMQPFrame::Method(number, method)) => client.grant(number, method).await,
                other => panic!("unexpected {other:?}"),
            }
        }
        client
    }
}

/// One message the sink has published.
#[derive(Debug, Clone)]
pub struct Published {
    pub channel: u16,
    pub exchange: String,
    pub routing_key: String,
    pub id: String,
}

/// The sink's end of a connection, seen from the broker.
pub struct Client {
    stream: TcpStream,
    received: Vec<u8>,
    /// The type of every exchange, told to whoever declares another one.
    pub kind: Option<&'static str>,
}

impl Client {
    async fn handshake(&mut self) {
        let mut header = [0; 8];
        self.stream.read_exact(&mut header).await.unwrap();
        assert_eq!(&header, b"AMQP\0\0\x09\x01");
        let start = connection::Start {
            version_major: 0,
            version_minor: 9,
            server_properties: Default::default(),
            mechanisms: "PLAIN".into(),
            locales: "en_US".into(),
        };
        self.send_method(
            0,
            AMQPClass::Connection(connection::AMQPMethod::Start(start)),
        )
        .await;
        self.frame().await.unwrap();
        let tune = connection::Tune {
            channel_max: 2047,
            frame_max: 131_072,
            heartbeat: 60,
        };
        self.send_method(0, AMQPClass::Connection(connection::AMQPMethod::Tune(tune)))
            .await;
        self.frame().await.unwrap();
        self.frame().await.unwrap();
        let ok = connection::OpenOk {};
        self.send_method(0, AMQPClass::Connection(connection::AMQPMethod::OpenOk(ok)))
            .await;
    }

    /// The next frame, heartbeats aside; `None` when the connection ends.
    pub async fn frame(&mut self) -> Option<AMQPFrame> {
        loop {
            if let Ok((rest, frame)) = parse_frame(&self.received[..]) {
                let consumed = self.received.len() - rest.len();
                self.received.drain(..consumed);
                match frame {
                    AMQPFrame::Heartbeat => continue,
                    frame => return Some(frame),
                }
            }
            match self.stream.read_buf(&mut self.received).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// The next `count` messages; grants every request (channels, confirms, exchanges) meanwhile.
    /// Fewer when the connection ends.
    pub async fn published(&mut self, count: usize) -> Vec<Published> {
        let mut published: Vec<Published> = Vec::new();
        let mut complete = 0;
        while complete < count {
            let Some(frame) = self.frame().await else {
                published.truncate(complete);
                break;
            };
            match frame {
                AMQPFrame::Method(
                    number,
                    AMQPClass::Basic(basic::AMQPMethod::Publish(publish)),
                ) => {
                    assert!(publish.mandatory);
                    published.push(Published {
                        channel: number,
                        exchange: publish.exchange.to_string(),
                        routing_key: publish.routing_key.to_string(),
                        id: String::new(),
                    });
                }
                AMQPFrame::Header(_, header) => {
                    let id = header.properties.message_id().clone().unwrap();
                    published.last_mut().unwrap().id = id.to_string();
                    remaining(&mut complete, header.body_size);
                    self.skip_body(header.body_size, &mut complete).await;
                }
                AMQPFrame::Method(number, method) => self.grant(number, method).await,
                other => panic!("unexpected {other:?}"),
            }
        }
        published
    }

    /// Grants requests until the connection ends; counts the messages published until then.
    pub async fn serve_until_end(&mut self) -> usize {
        self.published(usize::MAX).await.len()
    }

    async fn skip_body(&mut self, mut size: u64, complete: &mut usize) {
        while size > 0 {
            match self.frame().await {
                Some(AMQPFrame::Body(_, part)) => size -= part.len() as u64,
                Some(other) => panic!("unexpected {other:?}"),
                None => return,
            }
            remaining(complete, size);
        }
    }

    async fn grant(&mut self, number: u16, method: AMQPClass) {
        if let AMQPClass::Exchange(exchange::AMQPMethod::Declare(declare)) = &method
            && !declare.passive
            && let Some(kind) = self.kind
        {
            let text = format!(
                "PRECONDITION_FAILED - inequivalent arg 'type' for exchange '{}' in vhost '/': received '{}' but current is \
                 ''{kind}''",
                declare.exchange, declare.kind
            );
            return self.close_channel(number, 406, &text).await;
        }
        let answer = match method {
            AMQPClass::Channel(channel::AMQPMethod::Open(_)) => {
                AMQPClass::Channel(channel::AMQPMethod::OpenOk(channel::OpenOk {}))
            }
            AMQPClass::Channel(channel::AMQPMethod::Close(_)) => {
                AMQPClass::Channel(channel::AMQPMethod::CloseOk(channel::CloseOk {}))
            }
            AMQPClass::Channel(channel::AMQPMethod::CloseOk(_)) => return,
            AMQPClass::Confirm(confirm::AMQPMethod::Select(_)) => {
                AMQPClass::Confirm(confirm::AMQPMethod::SelectOk(confirm::SelectOk {}))
            }
            AMQPClass::Exchange(exchange::AMQPMethod::Declare(_)) => {
                AMQPClass::Exchange(exchange::AMQPMethod::DeclareOk(exchange::DeclareOk {}))
            }
            AMQPClass::Connection(connection::AMQPMethod::Close(_)) => {
                AMQPClass::Connection(connection::AMQPMethod::CloseOk(connection::CloseOk {}))
            }
            AMQPClass::Connection(connection::AMQPMethod::CloseOk(_)) => return,
            other => panic!("unexpected {other:?}"),
        };
        self.send_method(number, answer).await;
    }

    pub async fn ack(&mut self, channel: u16, delivery_tag: u64, multiple: bool) {
        let ack = basic::Ack {
            delivery_tag,
            multiple,
        };
        self.send_method(channel, AMQPClass::Basic(basic::AMQPMethod::Ack(ack)))
            .await;
    }

    pub async fn nack(&mut self, channel: u16, delivery_tag: u64, multiple: bool) {
        let nack = basic::Nack {
            delivery_tag,
            multiple,
            requeue: false,
        };
        self.send_method(channel, AMQPClass::Basic(basic::AMQPMethod::Nack(nack)))
            .await;
    }

    /// Returns a message as unroutable, with an empty body.
    pub async fn give_back(&mut self, channel: u16, exchange: &str, routing_key: &str, id: &str) {
        let give_back = basic::Return {
            reply_code: 312,
            reply_text: "NO_ROUTE".into(),
            exchange: exchange.into(),
            routing_key: routing_key.into(),
        };
        let method = AMQPClass::Basic(basic::AMQPMethod::Return(give_back));
        let header = AMQPContentHeader {
            class_id: 60,
            body_size: 0,
            properties: BasicProperties::default().with_message_id(id.into()),
        };
        self.send_method(channel, method).await;
        self.send(AMQPFrame::Header(channel, header)).await;
    }

    pub async fn close_channel(&mut self, channel: u16, reply_code: u16, reply_text: &str) {
        let close = channel::Close {
            reply_code,
            reply_text: reply_text.into(),
            class_id: 60,
            method_id: 40,
        };
        self.send_method(
            channel,
            AMQPClass::Channel(channel::AMQPMethod::Close(close)),
        )
        .await;
    }

    pub async fn close_connection(&mut self, reply_code: u16, reply_text: &str) {
        let close = connection::Close {
            reply_code,
            reply_text: reply_text.into(),
            class_id: 60,
            method_id: 40,
        };
        self.send_method(
            0,
            AMQPClass::Connection(connection::AMQPMethod::Close(close)),
        )
        .await;
    }

    async fn send_method(&mut self, channel: u16, method: AMQPClass) {
        self.send(AMQPFrame::Method(channel, method)).await;
    }

    async fn send(&mut self, frame: AMQPFrame) {
        let mut buffer = vec![0; 16 * 1024];
        let context = WriteContext::from(std::io::Cursor::new(&mut buffer[..]));
        let size = gen_frame(&frame)(context).unwrap().into_inner().1 as usize;
        // The sink may have ended the connection meanwhile.
        let _ = self.stream.write_all(&buffer[..size]).await;
    }
}

/// Counts a message once its body is complete.
fn remaining(complete: &mut usize, bytes: u64) {
    if bytes == 0 {
        *complete += 1;
    }
}
