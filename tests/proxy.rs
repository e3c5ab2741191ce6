//! The fault proxy of the tests does what it is told. One that silently passed everything on would make every
//! fault harmless.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/proxy/mod.rs"]
mod proxy;

use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use proxy::frames::{Conversation, Direction, Label, Protocol, Statement};
use proxy::{Act, Flow, Proxy};

use Direction::{ToClient, ToServer};

// ------------------------------------------------------------------------------------ frames

const AMQP: &[u8] = b"AMQP\0\0\x09\x01";

fn amqp(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![kind, 0, 1];
    frame.extend((payload.len() as u32).to_be_bytes());
    frame.extend(payload);
    frame.push(0xCE);
    frame
}

fn method(class: u8, method: u8) -> Vec<u8> {
    amqp(1, &[0, class, 0, method, 1, 2, 3])
}

fn postgres(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![kind];
    frame.extend((payload.len() as u32 + 4).to_be_bytes());
    frame.extend(payload);
    frame
}

fn startup() -> Vec<u8> {
    let payload = b"\0\x03\0\0user\0postgres\0\0";
    let mut frame = (payload.len() as u32 + 4).to_be_bytes().to_vec();
    frame.extend(payload);
    frame
}

/// Feeds bytes one by one: a frame must come out whole, and only when it is complete.
fn labels(talk: &mut Conversation, direction: Direction, bytes: &[u8]) -> Vec<Label> {
    let mut buffer = BytesMut::new();
    let mut out: Vec<u8> = Vec::new();
    let mut labels = Vec::new();
    for byte in bytes {
        buffer.extend_from_slice(&[*byte]);
        while let Some((frame, label)) = talk.next(direction, &mut buffer) {
            out.extend(&frame[..]);
            labels.push(label);
        }
    }
    assert!(buffer.is_empty(), "bytes are left: {buffer:?}");
    assert_eq!(out, bytes, "bytes change on their way");
    labels
}

#[test]
fn amqp_methods_are_told_apart() {
    let mut talk = Conversation::new(Protocol::Amqp);
    let mut sent = AMQP.to_vec();
    // A message: method, header, and a body that looks like another method.
    sent.extend(method(60, 40));
    sent.extend(amqp(2, &[0, 60, 0, 40]));
    sent.extend(amqp(3, &[0, 60, 0, 40]));
    sent.extend(amqp(8, &[]));
    let found = labels(&mut talk, ToServer, &sent);
    assert_eq!(
        found,
        [
            Label::Other,
            Label::Publish,
            Label::Other,
            Label::Other,
            Label::Other
        ]
    );
    let answers = [method(60, 80), method(60, 120), method(60, 50)].concat();
    let found = labels(&mut talk, ToClient, &answers);
    assert_eq!(found, [Label::Confirm, Label::Confirm, Label::Return]);
    // The same number means something else in the other direction.
    assert_eq!(
        labels(&mut talk, ToServer, &method(60, 80)),
        [Label::Other],
        "a consumer's ack"
    );
}

#[test]
fn postgres_answers_belong_to_their_statements() {
    let mut talk = Conversation::new(Protocol::Postgres);
    let settle = b"\0with done as (update \"public\".\"outbox\" o set \"published_at\" = now() where o.\"seq\" = any($1)\0\0\0";
    let read = b"s1\0select x as retry from y\0\0\0";
    let sent = [
        startup(),
        postgres(b'P', settle),
        postgres(b'B', b"\0\0\0\0"),
        postgres(b'E', b"\0\0\0\0\0"),
        postgres(b'S', b""),
        // Prepared under a name first, used later.
        postgres(b'P', read),
        postgres(b'S', b""),
        postgres(b'B', b"\0s1\0\0\0"),
        postgres(b'E', b"\0\0\0\0\0"),
        postgres(b'S', b""),
        postgres(b'Q', b"begin\0"),
    ]
    .concat();
    let asked: Vec<_> = labels(&mut talk, ToServer, &sent)
        .into_iter()
        .filter(|label| *label != Label::Other)
        .collect();
    assert_eq!(
        asked,
        [
            Label::Asked(Statement::Settle),
            Label::Asked(Statement::Read),
            Label::Asked(Statement::Other)
        ]
    );
    let ready = || postgres(b'Z', b"I");
    let answers = [
        postgres(b'C', b"UPDATE 1\0"),
        ready(),
        postgres(b'1', b""),
        ready(),
        postgres(b'D', b"\0\0"),
        postgres(b'D', b"\0\0"),
        postgres(b'C', b"SELECT 2\0"),
        ready(),
        postgres(b'E', b"SERROR\0\0"),
        ready(),
    ]
    .concat();
    let found: Vec<_> = labels(&mut talk, ToClient, &answers)
        .into_iter()
        .filter(|label| *label != Label::Other)
        .collect();
    assert_eq!(
        found,
        [
            Label::Answered(Statement::Settle),
            Label::Row(Statement::Read),
            Label::Row(Statement::Read),
            Label::Answered(Statement::Read)
        ]
    );
}

#[test]
fn what_is_encrypted_passes_as_it_comes() {
    let mut talk = Conversation::new(Protocol::Postgres);
    let mut sent = vec![0, 0, 0, 8];
    sent.extend(80_877_103_u32.to_be_bytes());
    labels(&mut talk, ToServer, &sent);
    labels(&mut talk, ToClient, b"S");
    labels(&mut talk, ToServer, b"\x16\x03\x01 anything");
}

#[test]
fn statements_are_told_apart() {
    let check = |sql: &str, statement| assert_eq!(Statement::of(sql), statement, "{sql}");
    check("select o.seq, null as retry from o", Statement::Read);
    check(
        "delete from \"public\".\"outbox\" o where o.\"seq\" = any($1) and x in (select unnest($2))",
        Statement::Settle,
    );
    check(
        "with done as (delete from public.outbox o where o.seq = any($1)) select count(*)",
        Statement::Settle,
    );
    check(
        "with done as (update public.outbox o set x = 1), cleared as (delete from outrigger.failures f) select count(*)",
        Statement::Settle,
    );
    check(
        "with me as (select) insert into outrigger.failures as f (outbox) select",
        Statement::Record,
    );
    check(
        "update outrigger.replicas set lease_until = clock_timestamp() + lease_ttl, visible_since = x",
        Statement::Heartbeat,
    );
    check(
        "update outrigger.replicas set lease_until = clock_timestamp() + lease_ttl",
        Statement::Other,
    );
    check(
        "with me as (x) update outrigger.partitions p set owner = $2, owned_since",
        Statement::Claim,
    );
    check(
        "delete from outrigger.replicas r where x = any($1)",
        Statement::Other,
    );
    check("commit", Statement::Other);
}

#[test]
fn messages_and_acknowledgements_of_nats_are_found() {
    let mut talk = Conversation::new(Protocol::Nats);
    let hello = b"INFO {\"server_id\":\"MSG\"}\r\n";
    assert_eq!(labels(&mut talk, ToClient, hello), [Label::Other]);
    // Payloads may look like anything.
    let bytes = b"CONNECT {}\r\nSUB _INBOX.a.* 1\r\nPING\r\nPUB $JS.API.STREAM.INFO.E _INBOX.a.1 2\r\n\r\n\r\n\
                  HPUB e.a _INBOX.a.2 12 20\r\nNATS/1.0\r\n\r\nHPUB a \r\r\n";
    let expected = [
        Label::Other,
        Label::Other,
        Label::Other,
        Label::Other,
        Label::Publish,
    ];
    assert_eq!(labels(&mut talk, ToServer, bytes), expected);
    let bytes = b"PONG\r\nMSG _INBOX.a.1 1 37\r\n{\"type\":\"io.nats.jetstream.api.v1.x\"}\r\n\
                  MSG _INBOX.a.2 1 22\r\n{\"stream\":\"E\",\"seq\":1}\r\nHMSG _INBOX.a.3 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n";
    let expected = [Label::Other, Label::Other, Label::Confirm, Label::Confirm];
    assert_eq!(labels(&mut talk, ToClient, bytes), expected);
}

#[test]
fn requests_and_responses_of_http_are_found() {
    let mut talk = Conversation::new(Protocol::Http);
    let bytes = b"POST /a HTTP/1.1\r\nContent-Length: 6\r\n\r\nA\r\n\r\nBPOST /a HTTP/1.1\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(labels(&mut talk, ToServer, bytes), [Label::Publish; 2]);
    let bytes = b"HTTP/1.1 202 X\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 204 X\r\n\r\n";
    assert_eq!(labels(&mut talk, ToClient, bytes), [Label::Confirm; 2]);
}

fn kafka(parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    [&(body.len() as u32).to_be_bytes()[..], &body].concat()
}

#[test]
fn requests_of_kafka_that_bring_records_are_found_with_their_responses() {
    let mut talk = Conversation::new(Protocol::Kafka);
    let request = |kind: u8, number: u8| kafka(&[&[0, kind, 0, 9], &[0, 0, 0, number], b"rest"]);
    let bytes = [request(3, 1), request(0, 2), request(0, 3)].concat();
    let expected = [Label::Other, Label::Publish, Label::Publish];
    assert_eq!(labels(&mut talk, ToServer, &bytes), expected);
    let response = |number: u8| kafka(&[&[0, 0, 0, number], b"rest"]);
    let bytes = [response(1), response(2), response(3), response(3)].concat();
    let expected = [Label::Other, Label::Confirm, Label::Confirm, Label::Other];
    assert_eq!(labels(&mut talk, ToClient, &bytes), expected);
}

#[test]
fn clients_of_kafka_stay_behind_the_proxy() {
    let mut talk = Conversation::behind(Protocol::Kafka, 9092, 20_000);
    let told = |port: u32| kafka(&[b"\0\0\0\x01\x0a127.0.0.1", &port.to_be_bytes(), b"\0"]);
    let mut buffer = BytesMut::from(&[told(9092), told(9093)].concat()[..]);
    for expected in [20_000, 9093] {
        let (frame, _) = talk.next(ToClient, &mut buffer).unwrap();
        assert_eq!(frame, told(expected));
    }
}

// ------------------------------------------------------------------------------------- proxy

/// Both ends of a connection through a proxy.
struct Pair {
    proxy: Proxy,
    client: TcpStream,
    server: TcpStream,
}

impl Pair {
    async fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let proxy = Proxy::start(Protocol::Amqp, port).await;
        let mut client = TcpStream::connect(("127.0.0.1", proxy.port()))
            .await
            .unwrap();
        let mut server = listener.accept().await.unwrap().0;
        client.write_all(AMQP).await.unwrap();
        assert_eq!(take(&mut server, AMQP.len()).await, AMQP);
        Self {
            proxy,
            client,
            server,
        }
    }
}

/// This many bytes, or fewer if the connection ends.
async fn take(stream: &mut TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let reading = stream.take(count as u64).read_to_end(&mut bytes).await;
    reading.unwrap();
    bytes
}

/// Insists that nothing comes for a while.
async fn silent(stream: &mut TcpStream) {
    let mut byte = [0];
    let reading = tokio::time::timeout(Duration::from_millis(200), stream.read(&mut byte));
    assert!(reading.await.is_err(), "something came: {byte:?}");
}

#[tokio::test]
async fn everything_passes_in_both_directions_until_an_end() {
    let mut pair = Pair::open().await;
    let talk: Vec<u8> = (0..200).flat_map(|n| method(60, n)).collect();
    pair.client.write_all(&talk).await.unwrap();
    assert_eq!(take(&mut pair.server, talk.len()).await, talk);
    // Half-closed: the other direction goes on.
    pair.client.shutdown().await.unwrap();
    assert_eq!(take(&mut pair.server, 1).await, b"");
    pair.server.write_all(&method(60, 80)).await.unwrap();
    assert_eq!(take(&mut pair.client, 15).await, method(60, 80));
    drop(pair.server);
    assert_eq!(take(&mut pair.client, 1).await, b"");
}

#[tokio::test]
async fn a_frame_is_held_with_all_behind_it() {
    let mut pair = Pair::open().await;
    let trap = pair.proxy.at(Label::Publish, 2, Act::Hold);
    let talk = [method(60, 40), method(60, 40), method(60, 70)].concat();
    pair.client.write_all(&talk).await.unwrap();
    trap.sprung().await;
    assert_eq!(take(&mut pair.server, 15).await, method(60, 40));
    silent(&mut pair.server).await;
    pair.server.write_all(&method(60, 80)).await.unwrap();
    assert_eq!(
        take(&mut pair.client, 15).await,
        method(60, 80),
        "only one direction waits"
    );
    pair.proxy.release();
    assert_eq!(take(&mut pair.server, 30).await, talk[15..]);
}

#[tokio::test]
async fn connections_end_before_the_frame() {
    for act in [Act::Cut, Act::Reset] {
        let mut pair = Pair::open().await;
        let trap = pair.proxy.at(Label::Publish, 2, act);
        let talk = [method(60, 40), method(60, 40)].concat();
        pair.client.write_all(&talk).await.unwrap();
        trap.sprung().await;
        let mut arrived = Vec::new();
        let end = pair.server.read_to_end(&mut arrived).await;
        match act {
            Act::Reset => assert_eq!(
                end.unwrap_err().kind(),
                std::io::ErrorKind::ConnectionReset,
                "no reset"
            ),
            _ => assert_eq!((end.unwrap(), &arrived), (15, &method(60, 40))),
        }
    }
}

#[tokio::test]
async fn swallowed_frames_are_missing_and_others_are_not() {
    let mut pair = Pair::open().await;
    pair.proxy
        .line(ToClient, |line| line.swallow = Some(Label::Confirm));
    let answers = [method(60, 80), method(60, 50), method(60, 120)].concat();
    pair.server.write_all(&answers).await.unwrap();
    assert_eq!(take(&mut pair.client, 15).await, method(60, 50));
    silent(&mut pair.client).await;
    pair.proxy.heal();
    pair.server.write_all(&method(60, 80)).await.unwrap();
    assert_eq!(take(&mut pair.client, 15).await, method(60, 80));
}

#[tokio::test]
async fn a_blackhole_swallows_and_breaks_the_connection_when_it_closes() {
    let mut pair = Pair::open().await;
    pair.proxy
        .line(ToServer, |line| line.flow = Flow::Blackhole);
    pair.client.write_all(&method(60, 40)).await.unwrap();
    silent(&mut pair.server).await;
    pair.proxy.heal();
    pair.client.write_all(&method(60, 40)).await.unwrap();
    let end = pair.server.read_to_end(&mut Vec::new()).await;
    assert_eq!(
        end.unwrap_err().kind(),
        std::io::ErrorKind::ConnectionReset,
        "frames are missing, and nobody knows"
    );
}

#[tokio::test]
async fn a_held_line_waits_and_loses_nothing() {
    let mut pair = Pair::open().await;
    pair.proxy.lines(|line| line.flow = Flow::Held);
    pair.client.write_all(&method(60, 40)).await.unwrap();
    silent(&mut pair.server).await;
    pair.proxy.heal();
    assert_eq!(take(&mut pair.server, 15).await, method(60, 40));
}

#[tokio::test]
async fn delay_is_per_frame_and_slices_are_bytes() {
    let mut pair = Pair::open().await;
    let delay = Duration::from_millis(300);
    pair.proxy.line(ToServer, |line| {
        line.delay = delay;
        line.slice = true;
    });
    let talk: Vec<u8> = (0..20).flat_map(|n| method(60, n)).collect();
    let began = Instant::now();
    pair.client.write_all(&talk).await.unwrap();
    assert_eq!(take(&mut pair.server, talk.len()).await, talk);
    let took = began.elapsed();
    // Twenty frames one after the other would take six seconds.
    assert!(took >= delay && took < delay * 10, "{took:?}");
}

#[tokio::test]
async fn a_server_that_is_away_ends_the_connection() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = gone.local_addr().unwrap().port();
    drop(gone);
    let proxy = Proxy::start(Protocol::Amqp, port).await;
    let mut client = TcpStream::connect(("127.0.0.1", proxy.port()))
        .await
        .unwrap();
    assert_eq!(take(&mut client, 1).await, b"");
}
