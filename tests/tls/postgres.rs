//! PostgreSQL: each `sslmode`, with the right, a wrong and no authority, by the right and a wrong name, to servers with a
//! good certificate, an expired one, and none.

use futures_util::future::join_all;
use outrigger::store::postgres::{ConnectSettings, Database, Mapping, OutboxSettings, StoreError};

use crate::assert_says;
use crate::authority::Files;
use crate::servers::{good_postgres, postgres, to};
use crate::support::postgres::Postgres;

const SETTING: &str = "OUTRIGGER_DATABASE_URL";

/// Which TLS the connection got, if any.
pub async fn outcome(url: &str) -> Result<Option<String>, StoreError> {
    connected(url).await.map(|(tls, _)| tls)
}

/// The same, and why it is none although TLS was tried.
async fn connected(url: &str) -> Result<(Option<String>, Option<String>), StoreError> {
    let settings = ConnectSettings {
        url: Some(url.into()),
        ..ConnectSettings::default()
    };
    let mapping = Mapping::new(&OutboxSettings::default()).unwrap();
    let database = Database::new(&settings, mapping)?;
    let facts = database.server_facts().await?;
    let fallback = database.tls_fallback();
    database.close();
    Ok((facts.tls, fallback))
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Server {
    Good,
    Expired,
    Plain,
}

/// What libpq's documentation promises: encrypted or not, or the parts of the refusal.
fn expected(server: Server, mode: &str, root: &str, host: &str) -> Result<bool, Vec<&'static str>> {
    let must = matches!(mode, "require" | "verify-ca" | "verify-full");
    let chain = must && (mode != "require" || !root.is_empty());
    match (server, mode) {
        (Server::Plain, _) if must => Err(vec!["server does not support TLS", "switch on `ssl`"]),
        (Server::Plain, _) => Ok(false),
        // The server lets this user in with TLS only.
        (_, "disable") => Err(vec!["pg_hba.conf", "sslmode=require"]),
        // Two things are wrong, and either may be found first.
        (Server::Expired, _) if chain && root != "ca" => Err(vec!["sslrootcert"]),
        (Server::Expired, _) if chain => Err(vec!["expired", "renew the server's certificate"]),
        // Without a file, the system's authorities; some machines have none.
        (_, _) if chain && root != "ca" => Err(vec!["sslrootcert"]),
        (_, "verify-full") if host != "localhost" => {
            Err(vec!["is for another name", "sslmode=verify-ca"])
        }
        _ => Ok(true),
    }
}

#[tokio::test]
async fn every_sslmode_does_what_libpq_does() {
    let (good, expired, plain) =
        tokio::join!(good_postgres(), postgres("expired"), Postgres::start(),);
    let admin = plain.client("postgres").await;
    admin
        .batch_execute("create role tlsuser login")
        .await
        .unwrap();
    let files = Files::new();
    let mut cases = Vec::new();
    for mode in [
        "disable",
        "allow",
        "prefer",
        "require",
        "verify-ca",
        "verify-full",
    ] {
        for root in ["", "ca", "other"] {
            for host in ["localhost", "db.example"] {
                for (server, url) in [
                    (Server::Good, to(good, host, "tlsuser")),
                    (Server::Expired, to(&expired, host, "tlsuser")),
                    (Server::Plain, to(&plain, host, "tlsuser")),
                ] {
                    let file = files.path(&format!("{root}.pem"));
                    let root_part = match root {
                        "" => String::new(),
                        _ => format!("sslrootcert={}", file.display()),
                    };
                    let what = format!("{server:?} sslmode={mode} root={root:?} host={host}");
                    cases.push(async move {
                        let found = outcome(&format!("{url} sslmode={mode} {root_part}")).await;
                        (what, found, expected(server, mode, root, host))
                    });
                }
            }
        }
    }
    let results = join_all(cases).await;
    assert_eq!(results.len(), 6 * 3 * 2 * 3);
    for (what, found, expected) in results {
        match (found, expected) {
            (Ok(tls), Ok(encrypted)) => assert_eq!(tls.is_some(), encrypted, "{what}"),
            (Err(error), Err(parts)) => {
                let text = error.to_string();
                let names_it = text.contains(SETTING) || text.contains("the database URL");
                assert!(names_it, "{what}: {text}");
                if !(what.starts_with("Expired") && parts == ["sslrootcert"]) {
                    assert_says(&what, &text, &parts);
                }
            }
            (found, expected) => panic!("{what}: {found:?}, not {expected:?}"),
        }
    }
}

#[tokio::test]
async fn what_is_tried_second_is_said_to_be_allowed() {
    let server = good_postgres().await;
    // The server refuses TLS connections of this role, so `prefer` falls back.
    for (mode, encrypted) in [("prefer", false), ("disable", false), ("allow", false)] {
        let url = format!("{} sslmode={mode}", to(server, "localhost", "plainuser"));
        let (tls, fallback) = connected(&url).await.unwrap();
        assert_eq!(tls.is_some(), encrypted, "{mode}: {tls:?}");
        // Going on without what was asked for first is never silent.
        assert_eq!(fallback.is_some(), mode == "prefer", "{mode}: {fallback:?}");
    }
    let url = format!("{} sslmode=require", to(server, "localhost", "plainuser"));
    let error = outcome(&url).await.unwrap_err().to_string();
    assert_says(
        "require",
        &error,
        &["pg_hba.conf", "sslmode=disable", SETTING],
    );
    // Nothing about TLS at all: libpq's default.
    let tls = outcome(&to(server, "localhost", "tlsuser")).await.unwrap();
    assert!(tls.unwrap().starts_with("TLSv1."));
}

#[tokio::test]
async fn client_certificates_are_shown_and_judged() {
    let server = good_postgres().await;
    let files = Files::new();
    let to = to(server, "localhost", "certuser");
    let client = |certificate: &str, key: &str| {
        let (certificate, key) = (files.path(certificate), files.path(key));
        format!(
            "{to} sslmode=verify-full sslrootcert={} sslcert={} sslkey={}",
            files.path("ca.pem").display(),
            certificate.display(),
            key.display()
        )
    };
    let same = |name: &str| client(&format!("{name}.pem"), &format!("{name}.key"));
    assert!(outcome(&same("client")).await.unwrap().is_some());
    for (what, url, parts) in [
        (
            "none",
            format!("{to} sslmode=require"),
            &["sslcert", "sslkey", SETTING][..],
        ),
        (
            "of another authority",
            same("foreign-client"),
            &["does not trust the authority", "sslcert", SETTING],
        ),
        (
            "expired",
            same("expired-client"),
            &["has expired", "renew", "sslcert", SETTING],
        ),
        (
            "of somebody else",
            same("stranger"),
            &["authentication failed", "sslcert", SETTING],
        ),
        (
            "with another key",
            client("client.pem", "stranger.key"),
            &[
                "sslcert",
                "sslkey",
                "do not make a usable client certificate",
            ],
        ),
        (
            "without its file",
            client("nowhere.pem", "client.key"),
            &["sslcert", "nowhere.pem"],
        ),
        (
            "without its key",
            client("client.pem", "nowhere.key"),
            &["sslkey", "nowhere.key"],
        ),
        (
            "that is none",
            client("client.key", "client.key"),
            &["sslcert", "no certificate"],
        ),
    ] {
        let error = outcome(&url).await.unwrap_err().to_string();
        assert_says(what, &error, parts);
    }
}
