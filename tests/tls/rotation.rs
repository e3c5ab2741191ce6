//! Credentials and certificates that are replaced while the relay runs: the next connection uses the new ones, and a
//! file that is broken for a while is an outage, not an end.

use std::time::Duration;

use outrigger::secret_file::SecretFile;
use outrigger::store::postgres::{
    ConnectSettings, Database, Mapping, OutboxSettings, StoreError, StoreErrorKind,
};

use crate::authority::{Files, pem};
use crate::servers::{postgres, reload, to};
use crate::support::{PATIENCE, Servers, Stage, until};

/// Tries until it ends as wanted, and insists that no refusal on the way is one to give up at.
async fn eventually(database: &Database, what: &str, is: impl Fn(&Result<(), String>) -> bool) {
    until(what, PATIENCE, || async {
        let found = database.server_facts().await.map(|_| ());
        if let Err(error) = &found {
            assert_ne!(error.kind(), StoreErrorKind::Fatal, "{what}: {error}");
        }
        let found = found.map_err(|error: StoreError| error.to_string());
        if is(&found) {
            Ok(())
        } else {
            Err(format!("{found:?}"))
        }
    })
    .await;
}

async fn refused(database: &Database, what: &str, parts: &[&str]) {
    eventually(database, what, |found| {
        let Err(text) = found else { return false };
        parts.iter().all(|part| text.contains(part))
    })
    .await;
}

#[tokio::test]
async fn certificates_authorities_and_the_password_of_the_database_rotate() {
    let server = postgres("server").await;
    let files = Files::new();
    for (name, from) in [
        ("mine.pem", "client.pem"),
        ("mine.key", "client.key"),
        ("trusted.pem", "ca.pem"),
    ] {
        files.write(name, pem(from));
    }
    let with = |password: &str| {
        format!(
            "{} {password} sslmode=verify-full sslrootcert={} sslcert={} sslkey={}\n",
            to(&server, "localhost", "rotating"),
            files.path("trusted.pem").display(),
            files.path("mine.pem").display(),
            files.path("mine.key").display(),
        )
    };
    let url = |password: &str| with(&format!("password={password}"));
    files.write("url", &url("first"));
    let settings = ConnectSettings {
        url_file: Some(SecretFile::new(
            "OUTRIGGER_DATABASE_URL_FILE",
            files.path("url"),
        )),
        pool_size: 1,
        ..ConnectSettings::default()
    };
    let mapping = Mapping::new(&OutboxSettings::default()).unwrap();
    let database = Database::new(&settings, mapping).unwrap();
    database.server_facts().await.unwrap();

    // Everything changes on the server at once, as if it had been replaced.
    reload(&server, "foreign-server", "other").await;
    let admin = server.client("postgres").await;
    let change = "alter role rotating password 'second'; \
                  select pg_terminate_backend(pid) from pg_stat_activity where usename = 'rotating'";
    admin.batch_execute(change).await.unwrap();

    refused(
        &database,
        "the server's new authority is unknown",
        &["not signed by a trusted authority", "sslrootcert"],
    )
    .await;
    files.write("trusted.pem", pem("other.pem"));
    refused(
        &database,
        "the server does not know the client's authority",
        &["does not trust the authority", "sslcert"],
    )
    .await;
    files.write("mine.pem", "-----BEGIN CERTIFICATE-----\nhalf of");
    refused(
        &database,
        "the certificate is broken",
        &["sslcert", "mine.pem"],
    )
    .await;
    files.write("mine.pem", pem("foreign-client.pem"));
    refused(
        &database,
        "the key is still the old one",
        &[
            "sslcert",
            "sslkey",
            "do not make a usable client certificate",
        ],
    )
    .await;
    files.write("mine.key", pem("foreign-client.key"));
    refused(
        &database,
        "the password is still the old one",
        &["password authentication", "OUTRIGGER_DATABASE_URL"],
    )
    .await;
    files.write("url", "\n");
    refused(
        &database,
        "the URL is empty",
        &["OUTRIGGER_DATABASE_URL_FILE", "empty"],
    )
    .await;
    files.write("url", "mysql://");
    refused(&database, "the URL is none", &["database URL", "scheme"]).await;
    files.write("url", &url("second"));
    eventually(&database, "the new password is used", Result::is_ok).await;

    let passwords = files.path("passwords");
    files.write("passwords", "*:*:*:rotating:second\n");
    files.write("url", &with(&format!("passfile={}", passwords.display())));
    let change = "alter role rotating password 'third'; \
                  select pg_terminate_backend(pid) from pg_stat_activity where usename = 'rotating'";
    admin.batch_execute(change).await.unwrap();
    refused(
        &database,
        "the password file is still the old one",
        &["password authentication"],
    )
    .await;
    files.write("passwords", "*:*:*:rotating:third\n");
    let what = "the new password of the password file is used";
    eventually(&database, what, Result::is_ok).await;
}

/// Changes the broker's password of `rotating`, and ends its connections.
const CHANGE: &str = r#"
ok = rabbit_auth_backend_internal:change_password(<<"rotating">>, <<"second">>, <<"test">>),
[rabbit_networking:close_connection(Pid, "rotation")
    || [{pid, Pid}, {user, <<"rotating">>}] <- rabbit_networking:connection_info_all([pid, user])].
"#;

#[tokio::test]
async fn a_relay_goes_on_when_the_passwords_of_both_sides_rotate() {
    let (postgres, broker) = tokio::join!(postgres("server"), crate::servers::broker());
    let (tls, files) = (broker.tls, Files::new());
    let servers = Servers {
        postgres: postgres.into(),
        rabbitmq: broker.node,
    };
    let stage = Stage::new(servers.into()).await;
    let consumer = stage.consumer().await;
    let database = |password: &str| {
        format!(
            "postgres://rotating:{password}@localhost:{}/{}?hostaddr=127.0.0.1&sslmode=verify-full&sslrootcert={}\
             &sslcert={}&sslkey={}",
            stage.servers.postgres.port(),
            stage.database,
            files.path("ca.pem").display(),
            files.path("client.pem").display(),
            files.path("client.key").display(),
        )
    };
    let broker = |password: &str| format!("amqps://rotating:{password}@localhost:{tls}");
    files.write("database", &database("first"));
    files.write("broker", &broker("first"));
    let settings = stage
        .settings()
        .set("DATABASE_URL", "")
        .set("DATABASE_URL_FILE", files.path("database").display())
        .set("RABBITMQ_URL", "")
        .set("RABBITMQ_URL_FILE", files.path("broker").display())
        .set("RABBITMQ_CA_FILE", files.path("ca.pem").display());
    let mut relay = settings.start();
    let first = stage.insert("type, key, data", "'t', 'k', '1'").await;
    consumer.await_id(&first, PATIENCE).await;

    let change = "alter role rotating password 'second'; \
                  select pg_terminate_backend(pid) from pg_stat_activity where usename = 'rotating'";
    stage.run(change).await;
    stage.servers.rabbitmq.ctl_ok(&["eval", CHANGE]);
    let second = stage.insert("type, key, data", "'t', 'k', '2'").await;
    relay.await_log("password authentication failed").await;
    relay.await_log("ACCESS_REFUSED").await;
    files.write("broker", "amqps://rotating:half\u{a0}of@\n");
    relay.await_log("OUTRIGGER_RABBITMQ_URL: ").await;
    files.write("broker", "");
    relay.await_log("OUTRIGGER_RABBITMQ_URL_FILE=").await;
    relay.assert_running();

    files.write("database", &database("second"));
    files.write("broker", &broker("second"));
    consumer.await_id(&second, Duration::from_secs(60)).await;
    stage.await_settled().await;
    let log = relay.log();
    for secret in ["first@", "second@", "half"] {
        assert!(!log.contains(secret), "{log}");
    }
    relay.stop().await;
}
