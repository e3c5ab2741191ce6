//! The RabbitMQ sink over TLS: a private authority, and authentication by client certificate.
//!
//! Needs the `openssl` command to make the certificates.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/rabbitmq.rs"]
mod rabbitmq;
#[path = "support/sink.rs"]
mod support;

use std::path::Path;
use std::process::Command;

use outrigger::error::{ReasonCode, Verdict};
use outrigger::sink::SinkState;
use outrigger::sink::rabbitmq::RabbitMqSettings;
use outrigger::sink::rabbitmq::check::Probe;

use self::rabbitmq::RabbitMq;
use self::support::{Is, Running, is, message, settings};

/// An authority with a certificate for the broker and one for the user `relay`, and another
/// authority that signed neither.
const CERTIFICATES: &str = r#"
set -e
new() { openssl req -newkey rsa:2048 -nodes -keyout "$1.key" -subj "/CN=$2" "${@:3}" 2>/dev/null; }
for authority in ca other; do
    new $authority "$authority" -x509 -days 2 -out $authority.pem
done
new broker localhost -out broker.csr
new client relay -out client.csr
printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n' >broker.ext
printf 'extendedKeyUsage=clientAuth\nbasicConstraints=CA:FALSE\n' >client.ext
for name in broker client; do
    openssl x509 -req -in $name.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
        -extfile $name.ext -out $name.pem 2>/dev/null
done
chmod a+r ./*.key
printf '[rabbitmq_auth_mechanism_ssl].\n' >enabled_plugins
"#;

const CONFIG: &str = "
listeners.ssl.1 = 127.0.0.1:@TLS_PORT@
ssl_options.cacertfile = @DIR@/ca.pem
ssl_options.certfile = @DIR@/broker.pem
ssl_options.keyfile = @DIR@/broker.key
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = false
ssl_cert_login_from = common_name
auth_mechanisms.1 = EXTERNAL
auth_mechanisms.2 = PLAIN
";

fn make_certificates(dir: &Path) {
    let made = Command::new("bash")
        .args(["-c", CERTIFICATES])
        .current_dir(dir)
        .status();
    assert!(made.unwrap().success(), "openssl cannot make certificates");
}

#[tokio::test]
async fn authorities_and_client_certificates_are_honoured() {
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .unwrap()
        .port();
    let config = CONFIG.replace("@TLS_PORT@", &port.to_string());
    let node = RabbitMq::start_prepared(&config, make_certificates).await;
    node.ctl_ok(&["add_user", "relay", "unused"]);
    node.ctl_ok(&["set_permissions", "relay", "^$", ".*", "^$"]);
    let file = |name: &str| Some(node.dir().join(name));

    let with_password = RabbitMqSettings {
        ca_file: file("ca.pem"),
        ..settings(&format!("amqps://guest:guest@localhost:{port}"))
    };
    let mut running = Running::ready(with_password.clone()).await;
    let verdicts = running.publish(&[message(1, "", "nobody")]).await;
    assert_eq!(is(&verdicts[0]), Is::Rejected(ReasonCode::Unroutable));
    running.close().await;

    let probe = Probe::connect(&with_password, 0).await.unwrap();
    let tls = probe.broker().tls.clone().unwrap();
    assert!(tls.protocol.starts_with("TLSv1_"), "{tls:?}");
    probe.close().await;

    let by_certificate = RabbitMqSettings {
        cert_file: file("client.pem"),
        key_file: file("client.key"),
        ca_file: file("ca.pem"),
        ..settings(&format!("amqps://127.0.0.1:{port}?auth_mechanism=external"))
    };
    let running = Running::ready(by_certificate.clone()).await;
    let users = node.ctl_ok(&["list_connections", "user"]);
    assert!(users.contains("relay"), "{users}");
    running.close().await;

    for (refused, parts) in [
        (
            RabbitMqSettings {
                ca_file: file("other.pem"),
                ..with_password.clone()
            },
            ["certificate", "OUTRIGGER_RABBITMQ_CA_FILE"],
        ),
        (
            RabbitMqSettings {
                ca_file: file("missing.pem"),
                ..with_password.clone()
            },
            ["missing.pem", "OUTRIGGER_RABBITMQ_CA_FILE"],
        ),
        (
            RabbitMqSettings {
                key_file: file("broker.key"),
                ..by_certificate
            },
            ["OUTRIGGER_RABBITMQ_KEY_FILE", "belong together"],
        ),
        (
            RabbitMqSettings {
                ca_file: file("ca.pem"),
                ..settings(&format!("amqps://localhost:{}", node.port()))
            },
            ["cannot connect", "TLS"],
        ),
    ] {
        let mut running = Running::start(refused);
        let state = running
            .await_state(
                "down",
                |state| matches!(state, SinkState::Down(reason) if !reason.is_empty()),
            )
            .await;
        let shown = format!("{state:?}");
        assert!(parts.iter().all(|part| shown.contains(part)), "{shown}");
        let verdicts = running.publish(&[message(1, "", "k")]).await;
        assert_eq!(verdicts, [Verdict::Unavailable]);
        running.close().await;
    }
}
