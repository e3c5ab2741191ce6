//! TLS and SASL, and users without permission. Needs the `openssl` command to make certificates.

use std::path::Path;
use std::process::Command;

use outrigger::secret_file::SecretFile;
use outrigger::sink::kafka::check::Probe;
use outrigger::sink::kafka::{KafkaSettings, SaslMechanism};
use tokio::sync::OnceCell;

use crate::kafka::{Kafka, Plan};
use crate::{Running, messages};

const PASSWORD: &str = "s3cret-of-the-relay";

/// An authority with a certificate for the broker and one for the user `relay`, and another authority.
const CERTIFICATES: &str = r#"
set -e
new() { openssl req -newkey rsa:2048 -nodes -keyout "$1.key" -subj "/CN=$2" "${@:3}" 2>/dev/null; }
for authority in ca other; do
    new $authority "$authority" -x509 -days 2 -out $authority.pem
done
new broker localhost -out broker.csr
printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n' >broker.ext
openssl x509 -req -in broker.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
    -extfile broker.ext -out broker.pem 2>/dev/null
cat broker.key broker.pem >broker.both.pem
"#;

fn plan() -> Plan {
    let jaas = |module: &str, rest: &str| {
        format!("org.apache.kafka.common.security.{module} required {rest};")
    };
    let plain = jaas(
        "plain.PlainLoginModule",
        &format!("user_relay=\"{PASSWORD}\" user_stranger=\"other\""),
    );
    let scram = jaas("scram.ScramLoginModule", "");
    Plan {
        protocol: "SASL_SSL".into(),
        format: format!("--add-scram SCRAM-SHA-256=[name=relay,password={PASSWORD}]"),
        properties: format!(
            "ssl.keystore.type=PEM\n\
             ssl.keystore.location=@DIR@/broker.both.pem\n\
             sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256\n\
             listener.name.sinks.plain.sasl.jaas.config={plain}\n\
             listener.name.sinks.scram-sha-256.sasl.jaas.config={scram}\n\
             authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
             super.users=User:ANONYMOUS;User:relay\n"
        ),
        jvm: String::new(),
    }
}

fn make_certificates(dir: &Path) {
    let made = Command::new("bash")
        .args(["-c", CERTIFICATES])
        .current_dir(dir)
        .status();
    assert!(made.unwrap().success(), "openssl cannot make certificates");
}

async fn node() -> &'static Kafka {
    static NODE: OnceCell<Kafka> = OnceCell::const_new();
    NODE.get_or_init(|| async {
        let node = Kafka::start_with(plan(), make_certificates).await;
        node.topic("events", 1, &[]).await;
        node
    })
    .await
}

async fn settings(mechanism: SaslMechanism, user: &str, password: &str) -> KafkaSettings {
    let node = node().await;
    KafkaSettings {
        tls: true,
        ca_file: Some(node.dir().join("ca.pem")),
        sasl: Some(mechanism),
        username: Some(user.into()),
        password: Some(password.into()),
        known_destinations: vec!["events".into()],
        ..crate::settings(&node.address())
    }
}

#[tokio::test]
async fn tls_and_passwords() {
    for mechanism in [SaslMechanism::Plain, SaslMechanism::ScramSha256] {
        let mut running = Running::ready(settings(mechanism, "relay", PASSWORD).await).await;
        running.publish_all(&messages("events", 10)).await;
        running.close().await;
    }
}

#[tokio::test]
async fn a_wrong_password_is_an_outage_with_a_reason() {
    for mechanism in [SaslMechanism::Plain, SaslMechanism::ScramSha256] {
        let mut running = Running::start(settings(mechanism, "relay", "wr0ng-one").await);
        let reason = running.await_down("OUTRIGGER_KAFKA_PASSWORD").await;
        assert!(!reason.contains("wr0ng-one"), "{reason}");
        running.close().await;
    }
}

#[tokio::test]
async fn a_password_that_was_replaced_is_used() {
    let file = node().await.dir().join("password");
    std::fs::write(&file, "wr0ng-one\n").unwrap();
    let rotated = KafkaSettings {
        password: None,
        password_file: Some(SecretFile::new("OUTRIGGER_KAFKA_PASSWORD_FILE", &file)),
        ..settings(SaslMechanism::ScramSha256, "relay", PASSWORD).await
    };
    let mut running = Running::start(rotated);
    running.await_down("OUTRIGGER_KAFKA_PASSWORD").await;
    std::fs::write(&file, PASSWORD).unwrap();
    running.await_ready().await;
    running.publish_all(&messages("events", 10)).await;
    running.close().await;
}

#[tokio::test]
async fn an_unknown_authority_is_an_outage_with_a_reason() {
    let dir = node().await.dir();
    let other = KafkaSettings {
        ca_file: Some(dir.join("other.pem")),
        ..settings(SaslMechanism::Plain, "relay", PASSWORD).await
    };
    let mut running = Running::start(other);
    running.await_down("OUTRIGGER_KAFKA_CA_FILE").await;
    running.close().await;

    let absent = KafkaSettings {
        ca_file: Some(dir.join("absent.pem")),
        ..settings(SaslMechanism::Plain, "relay", PASSWORD).await
    };
    let mut running = Running::start(absent);
    running.await_down("absent.pem").await;
    running.close().await;
}

#[tokio::test]
async fn a_user_without_permission_is_told_so() {
    let stranger = settings(SaslMechanism::Plain, "stranger", "other").await;
    let mut running = Running::start(stranger.clone());
    running.await_down("events").await;
    running.close().await;

    let probe = Probe::connect(&stranger).await.unwrap();
    let refused = probe.idempotence().await.unwrap_err();
    assert!(refused.contains("uthorization"), "{refused}");
    probe.close().await;
}
