//! The other sinks that encrypt: NATS, and a service by https.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use outrigger::error::Verdict;
use outrigger::secret_file::SecretFile;
use outrigger::sink::http::{self, HttpSettings};
use outrigger::sink::nats::{self, NatsSettings};
use outrigger::sink::{Sink, SinkState};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::assert_says;
use crate::authority::{Files, acceptor, pem};
use crate::nats_node::NatsNode;
use crate::sink::{message, within};

/// Waits until the sink is down, or up.
pub async fn reaches(sink: &dyn Sink, ready: bool) -> SinkState {
    let mut state = sink.state();
    let wanted = state.wait_for(|state| match state {
        SinkState::Down(reason) => !ready && !reason.is_empty(),
        state => ready && state.is_ready(),
    });
    within("the sink's state", wanted).await.unwrap().clone()
}

#[tokio::test]
async fn nats_trusts_the_authority_it_is_told_and_shows_its_certificate() {
    let files = Files::new();
    let config = "jetstream { store_dir: \"@DIR@/js\" }\n\
                  tls { cert_file: \"CERTS/server.pem\", key_file: \"CERTS/server.key\", ca_file: \"CERTS/ca.pem\", \
                  verify: true }";
    let certificates = files.path("").display().to_string();
    let node = NatsNode::start_with(&config.replace("CERTS", &certificates)).await;
    files.write("trusted.pem", pem("other.pem"));
    let settings = NatsSettings {
        urls: vec![format!("tls://localhost:{}", node.port()).into()],
        ca_file: Some(files.path("trusted.pem")),
        cert_file: Some(files.path("client.pem")),
        key_file: Some(files.path("client.key")),
        ..NatsSettings::default()
    };
    let sink = nats::start(settings.clone()).unwrap();
    let state = reaches(&*sink, false).await;
    assert_says(
        "wrong authority",
        &format!("{state:?}"),
        &[
            "not signed by a trusted authority",
            "OUTRIGGER_NATS_CA_FILE",
        ],
    );
    // The next attempt reads the file again.
    files.write("trusted.pem", pem("ca.pem"));
    reaches(&*sink, true).await;
    sink.close().await;

    for (what, settings, parts) in [
        (
            "wrong name",
            NatsSettings {
                urls: vec![format!("tls://127.0.0.1:{}", node.port()).into()],
                ..settings.clone()
            },
            &["is for another name", "OUTRIGGER_NATS_URL"][..],
        ),
        (
            "no certificate",
            NatsSettings {
                cert_file: None,
                key_file: None,
                ..settings
            },
            &["OUTRIGGER_NATS_"],
        ),
    ] {
        let sink = nats::start(settings).unwrap();
        let state = reaches(&*sink, false).await;
        assert_says(what, &format!("{state:?}"), parts);
        sink.close().await;
    }
}

/// A service that takes what comes with the right token.
struct Service {
    port: u16,
    refused: Arc<AtomicUsize>,
    _serving: AbortOnDropHandle<()>,
}

impl Service {
    async fn start(certificate: &str, token: &'static str) -> Self {
        let acceptor = acceptor(certificate, false);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let refused = Arc::new(AtomicUsize::new(0));
        let counter = refused.clone();
        let serving = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, refused) = (acceptor.clone(), counter.clone());
                tokio::spawn(async move {
                    // A client that does not trust us, or only looks whether we are here.
                    let Ok(mut stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    // The connection is kept, so that nothing but the refusal tells the sink to look again.
                    loop {
                        let mut text = Vec::new();
                        // The body is one byte, so the request ends behind the empty line and that.
                        let is_whole = |text: &[u8]| match text.split_last() {
                            Some((_, head)) => head.ends_with(b"\r\n\r\n"),
                            None => false,
                        };
                        while !is_whole(&text) {
                            let Ok(byte) = stream.read_u8().await else {
                                return;
                            };
                            text.push(byte);
                        }
                        let text = String::from_utf8(text).unwrap();
                        let answer = match text.contains(&format!("authorization: {token}\r\n")) {
                            true => "204 No Content",
                            false => {
                                refused.fetch_add(1, Ordering::SeqCst);
                                "401 Unauthorized"
                            }
                        };
                        let answer = format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n");
                        if stream.write_all(answer.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self {
            port,
            refused,
            _serving: AbortOnDropHandle::new(serving),
        }
    }
}

#[tokio::test]
async fn https_trusts_the_authority_it_is_told_and_renews_its_token() {
    let files = Files::new();
    let service = Service::start("server", "Bearer second").await;
    let expired = Service::start("expired", "").await;
    files.write("trusted.pem", pem("other.pem"));
    files.write("token", "Bearer first\n");
    let to = |host: &str, port: u16| HttpSettings {
        url: format!("https://{host}:{port}/hooks").into(),
        authorization_file: Some(SecretFile::new(
            "OUTRIGGER_HTTP_AUTHORIZATION_FILE",
            files.path("token"),
        )),
        ca_file: Some(files.path("trusted.pem")),
        ..HttpSettings::default()
    };
    let mut sink = http::start(to("localhost", service.port)).unwrap();
    let state = reaches(&*sink, false).await;
    assert_says(
        "wrong authority",
        &format!("{state:?}"),
        &[
            "not signed by a trusted authority",
            "OUTRIGGER_HTTP_CA_FILE",
        ],
    );
    files.write("trusted.pem", pem("ca.pem"));
    reaches(&*sink, true).await;

    let mut lanes = sink.lanes();
    let batch = [message(1, "", "k")];
    let verdicts = lanes[0].publish(&batch).await;
    assert_eq!(verdicts, [Verdict::Unavailable]);
    assert_eq!(service.refused.load(Ordering::SeqCst), 1);
    files.write("token", "Bearer second\n");
    // Refused once more with the old one, which makes it look for a new one.
    let confirmed = async {
        while lanes[0].publish(&batch).await != [Verdict::Confirmed] {
            reaches(&*sink, true).await;
        }
    };
    within("the new token is used", confirmed).await;
    drop(lanes);
    sink.close().await;

    for (what, settings, parts) in [
        (
            "wrong name",
            to("127.0.0.1", service.port),
            &["is for another name", "OUTRIGGER_HTTP_URL"][..],
        ),
        (
            "expired",
            to("localhost", expired.port),
            &["expired", "OUTRIGGER_HTTP_URL"],
        ),
    ] {
        let sink = http::start(settings).unwrap();
        let state = reaches(&*sink, false).await;
        assert_says(what, &format!("{state:?}"), parts);
        sink.close().await;
    }
}
