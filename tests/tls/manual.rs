//! Certificates exactly as the manuals of PostgreSQL and OpenSSL have them made: of X.509 version 1, self-signed, with a
//! common name only, with private authorities. psql, that is libpq, says what must happen to each.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use outrigger::sink::nats::{self, NatsSettings};
use tempfile::TempDir;
use tokio::sync::OnceCell;

use crate::nats_node::NatsNode;
use crate::postgres::outcome;
use crate::servers::to;
use crate::sink::{Running, settings as rabbitmq_settings};
use crate::sinks::reaches;
use crate::support::postgres::{Postgres, free_port};
use crate::support::rabbitmq::RabbitMq;

/// "Creating Certificates" in PostgreSQL's manual, for the host `localhost`. `openssl x509 -req` without extensions makes
/// a certificate of version 1, up to OpenSSL 3.3 by itself; `-days` and the files are as they stand there.
const MAKE: &str = r#"
set -e
cd "$1"
printf '[v3_ca]\nbasicConstraints = critical,CA:true\nsubjectKeyIdentifier = hash\n' > ca.cnf
printf '[v3_server]\nsubjectAltName = DNS:localhost\n' > san.cnf
# A self-signed certificate for the server.
openssl req -new -x509 -days 365 -nodes -text -out self.crt -keyout self.key -subj "/CN=localhost"
# An authority, and a certificate that it signs.
openssl req -new -nodes -text -out root.csr -keyout root.key -subj "/CN=root.example"
openssl x509 -req -in root.csr -text -days 3650 -extfile ca.cnf -extensions v3_ca -signkey root.key -out root.crt
openssl req -new -nodes -text -out leaf.csr -keyout leaf.key -subj "/CN=localhost"
openssl x509 -req -in leaf.csr -text -days 365 -CA root.crt -CAkey root.key -CAcreateserial -out leaf.crt
# The same with an intermediate authority, which the server hands out with its own certificate.
openssl req -new -nodes -text -out middle.csr -keyout middle.key -subj "/CN=middle.example"
openssl x509 -req -in middle.csr -text -days 1825 -extfile ca.cnf -extensions v3_ca -CA root.crt -CAkey root.key \
    -CAcreateserial -out middle.crt
openssl req -new -nodes -text -out deep.csr -keyout deep.key -subj "/CN=localhost"
openssl x509 -req -in deep.csr -text -days 365 -CA middle.crt -CAkey middle.key -CAcreateserial -out deep-alone.crt
cat deep-alone.crt middle.crt > deep.crt
# An authority of version 1, as older recipes have it.
openssl req -new -nodes -out old.csr -keyout old.key -subj "/CN=old.example"
openssl x509 -req -in old.csr -days 3650 -signkey old.key -out old.crt
openssl req -new -nodes -out aged.csr -keyout aged.key -subj "/CN=localhost"
openssl x509 -req -in aged.csr -days 365 -CA old.crt -CAkey old.key -CAcreateserial -out aged.crt
# A server that uses an authority's certificate.
openssl req -new -nodes -out boss.csr -keyout boss.key -subj "/CN=localhost"
openssl x509 -req -in boss.csr -days 365 -extfile ca.cnf -extensions v3_ca -CA root.crt -CAkey root.key \
    -CAcreateserial -out boss.crt
# A certificate of version 3 whose name is in the common name only, and one whose alternative name is another.
openssl req -new -x509 -days 365 -nodes -out other.crt -keyout other.key -subj "/CN=other.example"
# Signed by an authority that has the trusted one's name and another key.
openssl req -new -nodes -out false.csr -keyout false.key -subj "/CN=root.example"
openssl x509 -req -in false.csr -days 3650 -extfile ca.cnf -extensions v3_ca -signkey false.key -out false.crt
openssl req -new -nodes -out forged.csr -keyout forged.key -subj "/CN=localhost"
openssl x509 -req -in forged.csr -days 365 -CA false.crt -CAkey false.key -CAcreateserial -out forged.crt
# Signed by a certificate that is no authority's.
openssl req -new -nodes -out under.csr -keyout under.key -subj "/CN=localhost"
openssl x509 -req -in under.csr -days 365 -CA leaf.crt -CAkey leaf.key -CAcreateserial -out under-alone.crt
cat under-alone.crt leaf.crt > under.crt
# Over.
openssl req -new -nodes -out late.csr -keyout late.key -subj "/CN=localhost"
openssl x509 -req -in late.csr -days -1 -CA root.crt -CAkey root.key -CAcreateserial -out late.crt
"#;

/// The servers' certificates, and whether a client that trusts `root.crt` may accept them.
const CERTIFICATES: [&str; 9] = [
    "self", "leaf", "deep", "aged", "boss", "other", "forged", "under", "late",
];

async fn made() -> &'static Path {
    static MADE: OnceCell<TempDir> = OnceCell::const_new();
    MADE.get_or_init(|| async {
        let dir = tempfile::Builder::new()
            .prefix("outrigger-manual-")
            .tempdir()
            .unwrap();
        let done = Command::new("sh")
            .args(["-c", MAKE, "sh"])
            .arg(dir.path())
            .output()
            .unwrap();
        assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
        dir
    })
    .await
    .path()
}

/// A server with one of the certificates.
async fn server(made: &'static Path, name: &'static str) -> Postgres {
    let settings = [
        "ssl=on",
        "ssl_cert_file=@DIR@/server.pem",
        "ssl_key_file=@DIR@/server.key",
    ];
    Postgres::start_prepared(&settings.map(str::to_owned), move |dir| {
        for (from, to) in [("crt", "server.pem"), ("key", "server.key")] {
            fs::copy(made.join(format!("{name}.{from}")), dir.join(to)).unwrap();
        }
        let key = dir.join("server.key");
        fs::set_permissions(key, fs::Permissions::from_mode(0o600)).unwrap();
    })
    .await
}

/// Whether libpq connects, and if so whether by TLS.
fn psql(server: &Postgres, home: &Path, url: &str) -> Option<bool> {
    let answer = Command::new(server.program("psql"))
        .args([
            "-XAtc",
            "select ssl from pg_stat_ssl where pid = pg_backend_pid()",
        ])
        .arg("-d")
        .arg(url)
        .env_clear()
        .env("HOME", home)
        .output()
        .unwrap();
    answer
        .status
        .success()
        .then(|| String::from_utf8_lossy(&answer.stdout).trim() == "t")
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_the_manual_are_taken_as_libpq_takes_them() {
    let made = made().await;
    // Without a file of its own, libpq has nothing to verify by.
    let home = tempfile::tempdir().unwrap();
    let mut compared = 0;
    for name in CERTIFICATES {
        let server = server(made, name).await;
        for mode in ["prefer", "require", "verify-ca", "verify-full"] {
            for root in ["", "root", "self", "old", "other"] {
                // What is not verified by psql for lack of a file is verified by the system's authorities here.
                if root.is_empty() && mode.starts_with("verify") {
                    continue;
                }
                for host in ["localhost", "db.example"] {
                    let mut url = format!("{} sslmode={mode}", to(&server, host, "postgres"));
                    if !root.is_empty() {
                        let file = made.join(format!("{root}.crt"));
                        url = format!("{url} sslrootcert={}", file.display());
                    }
                    let expected = match psql(&server, home.path(), &url) {
                        // libpq verifies by a file that is there and, with this mode, goes on without TLS if it
                        // must not trust the server. Encryption that trusts nothing still keeps listeners out.
                        Some(_) if mode == "prefer" => Some(true),
                        expected => expected,
                    };
                    let found = outcome(&url).await;
                    let tls = found.as_ref().ok().map(Option::is_some);
                    assert_eq!(tls, expected, "{name} by {url}: {found:?}");
                    compared += 1;
                    if let Err(error) = found {
                        let text = error.to_string();
                        assert!(
                            text.contains("OUTRIGGER_DATABASE_URL") || text.contains("renew"),
                            "{text}"
                        );
                        for raw in [
                            "Other",
                            "invalid peer certificate",
                            "UnknownIssuer",
                            "alert",
                        ] {
                            assert!(!text.contains(raw), "{name} by {url}: {text}");
                        }
                    }
                }
            }
        }
    }
    assert_eq!(compared, 9 * (4 * 5 - 2) * 2);
}

/// What each sink must say of a server with this certificate if `root.crt` is trusted: `None` is accepted.
const SINKS: [(&str, &str, Option<&str>); 5] = [
    ("leaf", "root", None),
    ("self", "self", None),
    ("deep", "root", None),
    ("forged", "root", Some("signature")),
    ("leaf", "self", Some("not signed by a trusted authority")),
];

#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_with_such_certificates_is_trusted_as_well() {
    let made = made().await;
    let node = RabbitMq::start_prepared("", |_| {}).await;
    for (name, root, refusal) in SINKS {
        let port = free_port();
        // The broker's own manual: certificate, key, and the authorities that it hands out.
        let authority = match name {
            "deep" => "middle",
            _ => root,
        };
        let start = format!(
            "ok = rabbit_networking:start_ssl_listener({{\"127.0.0.1\", {port}}}, [{{certfile, \"{0}/{name}.crt\"}}, \
             {{keyfile, \"{0}/{name}.key\"}}, {{cacertfile, \"{0}/{authority}.crt\"}}], 2).",
            shared(made).display()
        );
        node.ctl_ok(&[
            "eval",
            &format!("{{ok, _}} = application:ensure_all_started(ssl), {start}"),
        ]);
        let settings = outrigger::sink::rabbitmq::RabbitMqSettings {
            ca_file: Some(made.join(format!("{root}.crt"))),
            ..rabbitmq_settings(&format!("amqps://guest:guest@localhost:{port}"))
        };
        match refusal {
            None => Running::ready(settings).await.close().await,
            Some(words) => {
                let sink = outrigger::sink::rabbitmq::start(settings).unwrap();
                let said = format!("{:?}", reaches(&*sink, false).await);
                assert!(said.contains(words), "{name}: {said}");
                assert!(
                    said.contains("OUTRIGGER_RABBITMQ_CA_FILE"),
                    "{name}: {said}"
                );
                sink.close().await;
            }
        }
    }
}

/// The files, where a server's own user may read them.
fn shared(made: &Path) -> &Path {
    fs::set_permissions(made, fs::Permissions::from_mode(0o755)).unwrap();
    for entry in fs::read_dir(made).unwrap() {
        fs::set_permissions(entry.unwrap().path(), fs::Permissions::from_mode(0o644)).unwrap();
    }
    made
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_with_such_certificates_is_trusted_as_well() {
    let made = made().await;
    for (name, root, refusal) in SINKS {
        let config = format!(
            "jetstream {{ store_dir: \"@DIR@/js\" }}\n\
             tls {{ cert_file: \"{0}/{name}.crt\", key_file: \"{0}/{name}.key\" }}",
            shared(made).display()
        );
        let node = NatsNode::start_with(&config).await;
        let sink = nats::start(NatsSettings {
            urls: vec![format!("tls://localhost:{}", node.port()).into()],
            ca_file: Some(made.join(format!("{root}.crt"))),
            ..NatsSettings::default()
        })
        .unwrap();
        let state = reaches(&*sink, refusal.is_none()).await;
        if let Some(words) = refusal {
            let said = format!("{state:?}");
            assert!(said.contains(words), "{name}: {said}");
            assert!(said.contains("OUTRIGGER_NATS_CA_FILE"), "{name}: {said}");
        }
        sink.close().await;
    }
}
