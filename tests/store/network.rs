//! TLS in all its modes, and a transaction pooler in between.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use outrigger::store::postgres::{ListenState, OutboxSettings, StoreError, StoreErrorKind};
use outrigger::store::{ReadKind, ReadRequest};

use crate::fixture::{Fixture, database, from_start, request, server, settled};
use crate::pgbouncer::PgBouncer;
use crate::postgres::{Postgres, give_to_server, server_user_shell};

fn openssl(directory: &Path, arguments: &str) {
    let output = Command::new("openssl")
        .args(arguments.split_whitespace())
        .current_dir(directory)
        .output()
        .expect("openssl runs");
    assert!(
        output.status.success(),
        "openssl {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// An authority `ca`, a foreign one `other`, a server certificate for `localhost`, a client certificate for `certuser`.
fn certificates(directory: &Path) {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
    for name in ["ca", "other"] {
        openssl(
            directory,
            &format!("req -x509 {key} -keyout {name}.key -out {name}.pem -subj /CN={name}"),
        );
    }
    for (name, subject, extension) in [
        ("server", "localhost", "subjectAltName=DNS:localhost"),
        ("client", "certuser", "extendedKeyUsage=clientAuth"),
    ] {
        fs::write(
            directory.join("ext"),
            format!("basicConstraints=CA:FALSE\n{extension}\n"),
        )
        .unwrap();
        openssl(
            directory,
            &format!("req -new {key} -keyout {name}.key -out {name}.csr -subj /CN={subject}")
                .replace(" -days 2", ""),
        );
        openssl(
            directory,
            &format!(
                "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out {name}.pem"
            ),
        );
    }
}

async fn outcome(url: &str) -> Result<Option<String>, StoreError> {
    database(url, &OutboxSettings::default())
        .server_facts()
        .await
        .map(|facts| facts.tls)
}

#[tokio::test]
async fn every_sslmode_does_what_libpq_does() {
    let files = tempfile::tempdir().unwrap();
    let dir = files.path();
    certificates(dir);
    // The client's key must stay readable for the test, the server's for the server.
    fs::create_dir(dir.join("server")).unwrap();
    for name in ["server.key", "server.pem", "ca.pem"] {
        fs::copy(dir.join(name), dir.join("server").join(name)).unwrap();
    }
    fs::write(
        dir.join("server/hba"),
        "local all all trust\nhostssl all certuser all cert\nhostnossl all plainuser all trust\n\
         hostssl all postgres all trust\n",
    )
    .unwrap();
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(
        dir.join("server/server.key"),
        fs::Permissions::from_mode(0o600),
    )
    .unwrap();
    give_to_server(&dir.join("server"));
    let d = dir.display();
    let server = Postgres::start_with(&[
        "ssl=on".into(),
        format!("ssl_cert_file={d}/server/server.pem"),
        format!("ssl_key_file={d}/server/server.key"),
        format!("ssl_ca_file={d}/server/ca.pem"),
        format!("hba_file={d}/server/hba"),
    ])
    .await;
    let url = |user: &str, host: &str, rest: &str| {
        format!(
            "host={host} hostaddr=127.0.0.1 port={} dbname=postgres user={user} {rest}",
            server.port()
        )
    };
    let setup = database(
        &url("postgres", "localhost", "sslmode=require"),
        &OutboxSettings::default(),
    );
    assert!(
        setup
            .server_facts()
            .await
            .unwrap()
            .tls
            .unwrap()
            .starts_with("TLSv1.")
    );
    let made = server_user_shell(&format!(
        "{} -h '{}' -p {} -c 'create role certuser login; create role plainuser login'",
        server.program("psql").display(),
        server.socket_directory().display(),
        server.port()
    ))
    .stdout(Stdio::null())
    .status();
    assert!(made.unwrap().success());

    for (user, host, rest, tls) in [
        ("postgres", "localhost", String::new(), true),
        ("postgres", "localhost", "sslmode=prefer".into(), true),
        // The server refuses plain connections of this role, so `allow` goes on to TLS.
        ("postgres", "localhost", "sslmode=allow".into(), true),
        // And TLS connections of this one, so `prefer` falls back.
        ("plainuser", "localhost", "sslmode=prefer".into(), false),
        ("plainuser", "localhost", "sslmode=disable".into(), false),
        ("postgres", "127.0.0.1", "sslmode=require".into(), true),
        (
            "postgres",
            "127.0.0.1",
            format!("sslmode=require sslrootcert={d}/ca.pem"),
            true,
        ),
        (
            "postgres",
            "127.0.0.1",
            format!("sslmode=verify-ca sslrootcert={d}/ca.pem"),
            true,
        ),
        (
            "postgres",
            "localhost",
            format!("sslmode=verify-full sslrootcert={d}/ca.pem"),
            true,
        ),
        (
            "certuser",
            "localhost",
            format!(
                "sslmode=verify-full sslrootcert={d}/ca.pem sslcert={d}/client.pem sslkey={d}/client.key"
            ),
            true,
        ),
    ] {
        let found = outcome(&url(user, host, &rest)).await;
        assert_eq!(
            found.as_ref().map(Option::is_some),
            Ok(tls),
            "{user}@{host} {rest}: {found:?}"
        );
    }
    for (user, host, rest, says) in [
        (
            "postgres",
            "localhost",
            "sslmode=disable".into(),
            "pg_hba.conf",
        ),
        (
            "plainuser",
            "localhost",
            "sslmode=require".into(),
            "pg_hba.conf",
        ),
        (
            "postgres",
            "127.0.0.1",
            format!("sslmode=verify-full sslrootcert={d}/ca.pem"),
            "not valid for name",
        ),
        (
            "postgres",
            "localhost",
            format!("sslmode=verify-full sslrootcert={d}/other.pem"),
            "UnknownIssuer",
        ),
        (
            "postgres",
            "localhost",
            format!("sslmode=verify-ca sslrootcert={d}/other.pem"),
            "UnknownIssuer",
        ),
        (
            "postgres",
            "localhost",
            format!("sslmode=require sslrootcert={d}/other.pem"),
            "UnknownIssuer",
        ),
        (
            "certuser",
            "localhost",
            "sslmode=require".into(),
            "certificate",
        ),
    ] {
        let error = outcome(&url(user, host, &rest))
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains(says), "{user}@{host} {rest}: {error}");
    }
}

#[tokio::test]
async fn servers_without_tls() {
    let plain = server()
        .await
        .url("postgres")
        .replace("sslmode=disable", "");
    assert_eq!(
        outcome(&format!("{plain}sslmode=prefer")).await.unwrap(),
        None
    );
    let error = outcome(&format!("{plain}sslmode=require"))
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("server does not support TLS"),
        "{error}"
    );
}

#[tokio::test]
async fn everything_but_listen_works_behind_a_transaction_pooler() {
    let f = Fixture::new().await;
    let pooler = PgBouncer::start(server().await, 3).await;
    let url = pooler.url(&f.name);
    let database = database(&url, &OutboxSettings::default());
    assert!(database.server_facts().await.unwrap().pooled);
    database.migrate(true).await.unwrap();
    let store = database.open().await.unwrap();
    // The pooler would accept LISTEN and deliver nothing; the listener says so instead.
    let listener = store.listen();
    let mut state = listener.state();
    let refused = state
        .wait_for(|state| matches!(state, ListenState::Refused(why) if why.contains("pooler")));
    tokio::time::timeout(Duration::from_secs(20), refused)
        .await
        .expect("LISTEN is off")
        .unwrap();
    f.insert(200, 20).await;
    // More clients than sessions, so statements of one client wander between them.
    let work = (0..6).map(|i| {
        let store = store.clone();
        tokio::spawn(async move {
            let me = store
                .register(&format!("r{i}"), Duration::from_secs(10), 6)
                .await
                .unwrap()
                .replica;
            for round in 0..20 {
                store.tick(me, true).await.unwrap();
                store.claim(me, &[i]).await.unwrap();
                let batch = store
                    .read(&ReadRequest {
                        limit: 5,
                        ..from_start()
                    })
                    .await
                    .unwrap();
                assert!(batch.holders.is_some());
                store.read(&request(ReadKind::Retries)).await.unwrap();
                store
                    .settle(&settled(&store, &[i64::from(i) * 20 + round + 1], &[]).await)
                    .await
                    .unwrap();
                store
                    .extend_awake(Duration::from_millis(100))
                    .await
                    .unwrap();
            }
            store.unregister(me).await.unwrap();
        })
    });
    for task in work.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    assert_eq!(
        f.count("select count(*) from outbox where published_at is not null")
            .await,
        120
    );
    let error = store
        .read(&ReadRequest {
            limit: 1,
            ..from_start()
        })
        .await
        .map(|batch| batch.rows.len());
    assert_eq!(error, Ok(1));
}

#[tokio::test]
async fn a_server_that_vanishes_is_unavailable_and_comes_back() {
    let own = Postgres::start().await;
    let f = Fixture::on(&own).await;
    let listener = f.store.listen();
    let mut state = listener.state();
    state
        .wait_for(|state| *state == ListenState::Listening)
        .await
        .unwrap();
    // A statement in flight when the server dies.
    f.sql("begin; lock table outbox").await;
    let stuck = tokio::spawn({
        let store = f.store.clone();
        async move { store.read(&from_start()).await }
    });
    let watcher = own.client(&f.name).await;
    let waiting = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    tokio::time::timeout(Duration::from_secs(20), async {
        while watcher
            .query_one(waiting, &[])
            .await
            .unwrap()
            .get::<_, i64>(0)
            == 0
        {}
    })
    .await
    .expect("the read waits for the lock");
    own.restart();
    assert_eq!(
        stuck.await.unwrap().unwrap_err().kind(),
        StoreErrorKind::Unavailable
    );
    let recovered = async {
        while let Err(error) = f.store.read(&from_start()).await {
            assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{error}");
        }
    };
    tokio::time::timeout(Duration::from_secs(20), recovered)
        .await
        .expect("reads work again");
    tokio::time::timeout(
        Duration::from_secs(20),
        state.wait_for(|state| *state == ListenState::Listening),
    )
    .await
    .expect("listening again")
    .unwrap();
}

#[tokio::test]
async fn a_statement_that_hangs_times_out_and_its_connection_is_thrown_away() {
    let f = Fixture::new().await;
    let mut settings = crate::fixture::connect_settings(&server().await.url(&f.name));
    settings.timeout = Duration::from_millis(300);
    settings.pool_size = 1;
    let mapping = outrigger::store::postgres::Mapping::new(&OutboxSettings::default()).unwrap();
    let store = outrigger::store::postgres::PostgresStore::connect(&settings, mapping)
        .await
        .unwrap();
    f.sql("begin; lock table outbox").await;
    let error = store.read(&from_start()).await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    assert!(error.to_string().contains("in time"), "{error}");
    // The server is told, and stops waiting for the lock although it is still held.
    let waiting = "select count(*) from pg_locks where not granted \
        and database = (select oid from pg_database where datname = current_database())";
    tokio::time::timeout(Duration::from_secs(20), async {
        while f.count(waiting).await > 0 {}
    })
    .await
    .expect("the statement is cancelled");
    f.sql("rollback").await;
    store.read(&from_start()).await.unwrap();
    // A cancelled call leaves no open transaction behind in the only connection either.
    f.sql("begin; lock table outrigger.partitions").await;
    let me = store.register("a", Duration::from_secs(10), 4);
    let _ = tokio::time::timeout(Duration::from_millis(50), me).await;
    f.sql("rollback").await;
    store.read(&from_start()).await.unwrap();
    let open = "select count(*) from pg_stat_activity where datname = current_database() and state like 'idle in%'";
    assert_eq!(f.count(open).await, 0);
}
