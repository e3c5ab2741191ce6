//! The proxy counts right: otherwise no budget means anything.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::counting_proxy::{CountingProxy, Counts, Protocol};

/// What the proxy counts when a client sends these bytes, one write each. The server must get all of them.
async fn counted(protocol: Protocol, writes: &[&[u8]]) -> Counts {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap().to_string();
    let proxy = CountingProxy::start(protocol, address).await.unwrap();
    let mut client = TcpStream::connect(("127.0.0.1", proxy.port()))
        .await
        .unwrap();
    let (mut accepted, _) = server.accept().await.unwrap();
    let mut arrived = Vec::new();
    for bytes in writes {
        client.write_all(bytes).await.unwrap();
        let mut part = vec![0; bytes.len()];
        accepted.read_exact(&mut part).await.unwrap();
        arrived.extend(part);
    }
    assert_eq!(arrived, writes.concat());
    proxy.counts()
}

fn typed(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u32 + 4).to_be_bytes();
    [&[kind], &length[..], body].concat()
}

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&[kind, 0, 1], &length[..], payload, &[0xce]].concat()
}

#[tokio::test]
async fn statements_and_round_trips_are_counted_however_they_are_cut() {
    let ssl_request = [8_u32.to_be_bytes(), 80_877_103_u32.to_be_bytes()].concat();
    let startup = [8_u32.to_be_bytes(), (3_u32 << 16).to_be_bytes()].concat();
    let mut talk = startup;
    talk.extend(typed(b'P', b"\0select 1\0\0\0"));
    talk.extend(typed(b'B', b"\0\0"));
    talk.extend(typed(b'S', b""));
    talk.extend(typed(b'P', b"s1\0select 1\0\0\0"));
    talk.extend(typed(b'P', b"\0update t set n = 2\0\0\0"));
    talk.extend(typed(b'B', b"\0s1\0"));
    talk.extend(typed(b'B', b"\0\0"));
    talk.extend(typed(b'S', b""));
    talk.extend(typed(b'Q', b"begin\0"));
    talk.extend(typed(b'X', b""));
    for cut in 1..talk.len() - 1 {
        let (one, other) = talk.split_at(cut);
        let counts = counted(Protocol::Postgres, &[&ssl_request, one, other]).await;
        let statements: Vec<(&str, u64)> = counts
            .statements
            .iter()
            .map(|(text, count)| (text.as_str(), *count))
            .collect();
        assert_eq!(
            statements,
            [("begin", 1), ("select 1", 2), ("update t set n = 2", 1)],
            "cut at {cut}"
        );
        assert_eq!(
            (counts.round_trips, counts.prepared, counts.connections),
            (3, 1, 1),
            "cut at {cut}"
        );
    }
}

#[tokio::test]
async fn frames_and_messages_are_counted() {
    let publish = frame(1, &[0, 60, 0, 40, 0, 0]);
    let talk = [
        b"AMQP\0\0\x09\x01".to_vec(),
        frame(1, &[0, 10, 0, 11]),
        publish.clone(),
        frame(2, &[0; 20]),
        frame(3, b"a body that looks like one: \0\x3c\0\x28"),
        publish,
    ]
    .concat();
    let (one, other) = talk.split_at(21);
    let counts = counted(Protocol::Amqp, &[one, other]).await;
    assert_eq!((counts.frames, counts.publishes), (5, 2));
}

#[test]
fn what_came_before_is_not_counted_again() {
    let counts = |select: u64, round_trips| Counts {
        round_trips,
        statements: [("begin".to_owned(), 1), ("select".to_owned(), select)].into(),
        ..Counts::default()
    };
    let since = counts(5, 7).since(&counts(2, 3));
    assert_eq!((since.all_statements(), since.round_trips), (3, 4));
    assert_eq!(since.statements_with("begin"), 0);
}
