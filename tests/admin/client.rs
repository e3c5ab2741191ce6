//! An HTTP client of a few lines: sends bytes, reads to the end.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{PATIENCE, Relay, until, within};

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    fn of(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
        Self {
            status: status.unwrap_or_else(|| panic!("no HTTP answer: {text:?}")),
            head: head.to_lowercase(),
            body: body.to_owned(),
        }
    }
}

/// Reads until the other side closes. A connection that is reset has ended, too.
pub async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = within(
        "the connection ends",
        PATIENCE,
        stream.read_to_end(&mut bytes),
    )
    .await;
    String::from_utf8(bytes).unwrap()
}

/// Sends these bytes and returns the answer.
pub async fn send(address: SocketAddr, request: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // It may answer, and close, before it has read everything.
    let _ = stream.write_all(request).await;
    Answer::of(&read_to_end(&mut stream).await)
}

pub async fn get(address: SocketAddr, path: &str) -> Answer {
    get_as(address, path, "*/*").await
}

pub async fn get_as(address: SocketAddr, path: &str, accept: &str) -> Answer {
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nAccept: {accept}\r\n\r\n");
    send(address, request.as_bytes()).await
}

/// Where a relay's listener is, from its log.
pub async fn address_of(relay: &Relay) -> SocketAddr {
    until("the relay names its port", PATIENCE, || async {
        relay.admin_address().ok_or_else(|| relay.log())
    })
    .await
}

/// Waits until an answer is as wanted.
pub async fn await_answer(
    address: SocketAddr,
    path: &str,
    what: &str,
    wanted: impl Fn(&Answer) -> bool,
) -> Answer {
    until(what, PATIENCE, || async {
        let answer = get(address, path).await;
        if wanted(&answer) {
            Ok(answer)
        } else {
            Err(answer.body)
        }
    })
    .await
}
