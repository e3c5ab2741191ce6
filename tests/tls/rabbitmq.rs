//! RabbitMQ: which certificates the sink accepts, which of its own the broker accepts, and SASL EXTERNAL.

use std::path::PathBuf;

use futures_util::future::join_all;
use outrigger::error::{ReasonCode, Verdict};
use outrigger::sink::SinkState;
use outrigger::sink::rabbitmq::RabbitMqSettings;
use outrigger::sink::rabbitmq::check::Probe;

use crate::assert_says;
use crate::authority::Files;
use crate::servers::shared_broker;
use crate::sink::{Is, Running, is, message, settings};

/// What a client has at hand.
#[derive(Clone, Copy)]
struct Client<'a>(&'a Files);

impl Client<'_> {
    fn file(self, name: &str) -> Option<PathBuf> {
        Some(self.0.path(name))
    }

    /// With a password, and this authority.
    fn trusting(self, authority: &str, host: &str, port: u16) -> RabbitMqSettings {
        RabbitMqSettings {
            ca_file: self.file(authority),
            ..settings(&format!("amqps://guest:guest@{host}:{port}"))
        }
    }

    /// With a client certificate, too.
    fn showing(self, certificate: &str, settings: RabbitMqSettings) -> RabbitMqSettings {
        RabbitMqSettings {
            cert_file: self.file(&format!("{certificate}.pem")),
            key_file: self.file(&format!("{certificate}.key")),
            ..settings
        }
    }

    /// Authenticated by the client certificate alone.
    fn external(self, certificate: &str, port: u16) -> RabbitMqSettings {
        let url = format!("amqps://localhost:{port}?auth_mechanism=external");
        let settings = RabbitMqSettings {
            ca_file: self.file("ca.pem"),
            ..settings(&url)
        };
        self.showing(certificate, settings)
    }
}

#[tokio::test]
async fn a_private_authority_and_client_certificates_are_honoured() {
    let broker = shared_broker().await;
    let files = Files::new();
    let client = Client(&files);
    let mut running = Running::ready(client.trusting("ca.pem", "localhost", broker.tls)).await;
    let verdicts = running.publish(&[message(1, "", "nobody")]).await;
    assert_eq!(is(&verdicts[0]), Is::Rejected(ReasonCode::Unroutable));
    running.close().await;

    let with_password = client.trusting("ca.pem", "localhost", broker.tls);
    let probe = Probe::connect(&with_password, 0).await.unwrap();
    let tls = probe.broker().tls.clone().unwrap();
    assert!(tls.protocol.starts_with("TLSv1_"), "{tls:?}");
    probe.close().await;

    let mutual = client.showing(
        "client",
        client.trusting("ca.pem", "localhost", broker.mutual),
    );
    Running::ready(mutual).await.close().await;
    for port in [broker.tls, broker.mutual] {
        let running = Running::ready(client.external("client", port)).await;
        let users = broker.node.ctl_ok(&["list_connections", "user"]);
        assert!(users.contains("certuser"), "{users}");
        running.close().await;
    }
}

#[tokio::test]
async fn every_refusal_names_the_setting_and_the_next_step() {
    let broker = shared_broker().await;
    let files = Files::new();
    let client = Client(&files);
    let no_authority = RabbitMqSettings {
        ca_file: None,
        ..client.trusting("ca.pem", "localhost", broker.tls)
    };
    let cases = [
        (
            "wrong authority",
            client.trusting("other.pem", "localhost", broker.tls),
            &[
                "not signed by a trusted authority",
                "OUTRIGGER_RABBITMQ_CA_FILE",
            ][..],
        ),
        (
            "the system's authorities",
            no_authority,
            &["OUTRIGGER_RABBITMQ_CA_FILE"],
        ),
        (
            "no such file",
            client.trusting("nowhere.pem", "localhost", broker.tls),
            &["nowhere.pem", "OUTRIGGER_RABBITMQ_CA_FILE"],
        ),
        (
            "not a certificate",
            client.trusting("ca.key", "localhost", broker.tls),
            &["OUTRIGGER_RABBITMQ_CA_FILE"],
        ),
        (
            "wrong name",
            client.trusting("ca.pem", "127.0.0.1", broker.tls),
            &["is for another name", "OUTRIGGER_RABBITMQ_URL"],
        ),
        (
            "expired",
            client.trusting("ca.pem", "localhost", broker.expired),
            &[
                "expired",
                "renew the server's certificate",
                "OUTRIGGER_RABBITMQ_URL",
            ],
        ),
        (
            "no client certificate",
            client.trusting("ca.pem", "localhost", broker.mutual),
            &[
                "OUTRIGGER_RABBITMQ_CERT_FILE",
                "OUTRIGGER_RABBITMQ_KEY_FILE",
            ],
        ),
        (
            "client certificate of another authority",
            client.showing(
                "foreign-client",
                client.trusting("ca.pem", "localhost", broker.mutual),
            ),
            &["does not trust", "OUTRIGGER_RABBITMQ_CERT_FILE"],
        ),
        (
            "client certificate expired",
            client.showing(
                "expired-client",
                client.trusting("ca.pem", "localhost", broker.mutual),
            ),
            &["renew", "OUTRIGGER_RABBITMQ_CERT_FILE"],
        ),
        (
            "certificate and key of different people",
            RabbitMqSettings {
                key_file: client.file("stranger.key"),
                ..client.external("client", broker.tls)
            },
            &["OUTRIGGER_RABBITMQ_KEY_FILE", "belong together"],
        ),
        (
            "EXTERNAL as a user that does not exist",
            client.external("stranger", broker.tls),
            &[
                "rabbitmq_auth_mechanism_ssl",
                "OUTRIGGER_RABBITMQ_CERT_FILE",
            ],
        ),
        (
            "a port without TLS",
            client.trusting("ca.pem", "localhost", broker.node.port()),
            &["does not speak TLS", "OUTRIGGER_RABBITMQ_URL"],
        ),
        (
            "a port with TLS only",
            settings(&format!("amqp://guest:guest@localhost:{}", broker.tls)),
            &["amqps://", "OUTRIGGER_RABBITMQ_URL"],
        ),
    ];
    let cases = cases.map(|(what, settings, parts)| async move {
        let mut running = Running::start(settings);
        let state = running
            .await_state(
                "down",
                |state| matches!(state, SinkState::Down(reason) if !reason.is_empty()),
            )
            .await;
        assert_says(what, &format!("{state:?}"), parts);
        let verdicts = running.publish(&[message(1, "", "k")]).await;
        assert_eq!(verdicts, [Verdict::Unavailable], "{what}");
        running.close().await;
    });
    join_all(cases).await;
}
