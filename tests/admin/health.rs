//! `outrigger health` against real relays, and against what only looks like one.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::client::{address_of, await_answer, get};
use crate::servers;
use crate::support::proxy::frames::{Label, Protocol};
use crate::support::proxy::{Act, Proxy};
use crate::support::{Settings, Stage};

/// Exit code, and what was printed where.
async fn health(settings: &Settings, args: &[&str]) -> (i32, String, String) {
    let output = settings.output(&[&["health"], args].concat()).await;
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let code = output.status.code().unwrap();
    (code, text(output.stdout), text(output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_stops_is_alive_and_not_ready_until_all_is_settled() {
    let stage = Stage::new(servers().await).await;
    let broker = Proxy::start(Protocol::Amqp, stage.servers.rabbitmq.port()).await;
    let url = stage.servers.rabbitmq.url();
    let direct = format!(":{}", stage.servers.rabbitmq.port());
    assert!(url.contains(&direct), "{url}");
    let url = url.replace(&direct, &format!(":{}", broker.port()));
    let mut relay = stage.settings().set("RABBITMQ_URL", url).start();
    let address = address_of(&relay).await;
    await_answer(address, "/readyz", "the relay is ready", |answer| {
        answer.status == 200
    })
    .await;
    // What a health check in the same container reads.
    let same = Settings::default().set("ADMIN_LISTEN", format!("0.0.0.0:{}", address.port()));
    let (code, answer, _) = health(&same, &["--ready"]).await;
    assert_eq!(code, 0);
    assert!(answer.ends_with("readyz check passed\n"), "{answer}");

    // Published, and the confirm is still on its way.
    let confirm = broker.at(Label::Confirm, 1, Act::Hold);
    stage.insert("type", "'t'").await;
    confirm.sprung().await;
    relay.signal("TERM");
    let draining = await_answer(address, "/readyz", "a stop makes it unready", |answer| {
        answer.status == 503
    })
    .await;
    let stopping =
        "relay failed: stopping, events in flight are settled and partitions handed over";
    assert!(
        draining.body.contains(&format!("[-]{stopping}")),
        "{}",
        draining.body
    );
    assert_eq!(draining.body.matches("[-]").count(), 1, "{}", draining.body);
    assert_eq!(get(address, "/livez").await.status, 200);
    let (code, answer, _) = health(&same, &[]).await;
    assert_eq!(
        (code, answer.as_str()),
        (0, "[+]loop ok\nlivez check passed\n")
    );
    let (code, answer, error) = health(&same, &["--ready"]).await;
    assert_eq!((code, answer.as_str()), (1, ""));
    assert_eq!(
        error,
        format!("error: http://{address}/readyz: {stopping}\n")
    );

    relay.assert_running();
    broker.release();
    let status = relay.exit(crate::support::PATIENCE).await;
    assert_eq!(status.code(), Some(0), "{}", relay.log());
    stage.await_settled().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_a_healthy_relay_is_named_in_one_line() {
    // Says nothing, ends at once, is something else, says too much.
    let endless = [b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), vec![b'x'; 1 << 20]].concat();
    let answers: [(Option<&[u8]>, &str); 4] = [
        (None, "no answer within 3 s"),
        (Some(b""), "not the answer of a relay: "),
        (
            Some(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
            "the answer is 404 Not Found, not 200",
        ),
        (Some(&endless), "not the answer of a relay: "),
    ];
    for (answer, expected) in answers {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let answer = answer.map(<[u8]>::to_vec);
        let serving = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0; 1024];
            let read = stream.read(&mut head).await.unwrap();
            assert!(head[..read].starts_with(b"GET /livez"));
            if let Some(answer) = answer {
                // Whoever has heard enough closes.
                let _ = stream.write_all(&answer).await;
                return;
            }
            // Until the other side gives up.
            let _ = stream.read(&mut head).await;
        });
        let settings = Settings::default().set("ADMIN_LISTEN", format!("0.0.0.0:{port}"));
        let (code, _, error) = health(&settings, &[]).await;
        assert_eq!(code, 1, "{error}");
        let expected = format!("error: http://127.0.0.1:{port}/livez: {expected}");
        assert!(error.starts_with(&expected), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
        serving.await.unwrap();
    }
}
