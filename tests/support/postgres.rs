//! A private PostgreSQL server: own data directory, own port, gone when dropped.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A running server. One per test binary; every test makes its own database.
pub struct Postgres {
    directory: TempDir,
    bin: PathBuf,
    port: u16,
    databases: AtomicU32,
}

impl Postgres {
    /// Starts a server with the settings tests want.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts a server with further `name=value` settings.
    pub async fn start_with(settings: &[String]) -> Self {
        let settings = settings.to_vec();
        tokio::task::spawn_blocking(move || Self::start_blocking(&settings))
            .await
            .expect("starting PostgreSQL panicked")
    }

    /// The same without a runtime.
    pub fn start_blocking(settings: &[String]) -> Self {
        let bin = find_bin();
        let directory = tempfile::Builder::new().prefix("outrigger-pg-").tempdir().expect("temporary directory");
        if is_root() {
            // The server refuses to run as root, so the directory must belong to somebody else.
            run(Command::new("chown").arg("postgres").arg(directory.path()));
        }
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("permissions");
        let data = directory.path().join("data");
        run(&mut as_server_user(&format!(
            "{} -D {} -U postgres --auth=trust --encoding=UTF8 --locale=C --no-sync",
            bin.join("initdb").display(),
            data.display()
        )));
        // Another process may take the port between choosing and binding it.
        for _ in 0..5 {
            let port = free_port();
            let mut options = format!(
                "-c port={port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={} -c fsync=off \
                 -c synchronous_commit=off -c full_page_writes=off -c max_connections=120 \
                 -c max_prepared_transactions=10 -c shared_buffers=64MB -c log_min_messages=fatal",
                directory.path().display()
            );
            for setting in settings {
                options += &format!(" -c {setting}");
            }
            let started = as_server_user(&format!(
                "{} -D {} -l {} -w -t 60 -o '{options}' start",
                bin.join("pg_ctl").display(),
                data.display(),
                directory.path().join("log").display(),
            ))
            .stdout(Stdio::null())
            .status()
            .expect("pg_ctl runs");
            if started.success() {
                return Self {
                    directory,
                    bin,
                    port,
                    databases: AtomicU32::new(0),
                };
            }
        }
        let log = fs::read_to_string(directory.path().join("log")).unwrap_or_default();
        panic!("PostgreSQL did not start:\n{log}");
    }

    /// Connection URL of a database, as the superuser.
    pub fn url(&self, database: &str) -> String {
        self.url_as("postgres", database)
    }

    /// Connection URL of a database for a role.
    pub fn url_as(&self, role: &str, database: &str) -> String {
        format!("postgres://{role}@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Creates a fresh, empty database and returns its name.
    pub async fn create_database(&self) -> String {
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        let client = self.client("postgres").await;
        // Creating a database copies the template, which nobody else may do at the same time.
        client
            .batch_execute("select pg_advisory_lock(1)")
            .await
            .expect("lock");
        client
            .batch_execute(&format!("create database {name}"))
            .await
            .expect("create database");
        name
    }

    /// A plain connection as the superuser, driven in the background.
    pub async fn client(&self, database: &str) -> tokio_postgres::Client {
        let (client, connection) = tokio_postgres::connect(&self.url(database), tokio_postgres::NoTls)
            .await
            .expect("connect to the test server");
        tokio::spawn(connection);
        client
    }

    /// A program of the server's installation, such as `psql`.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    /// Stops the server at once and starts it again on the same port.
    pub fn restart(&self) {
        run(&mut self.pg_ctl("-m immediate -w -t 60 restart"));
    }

    fn pg_ctl(&self, arguments: &str) -> Command {
        as_server_user(&format!(
            "{} -D {} -l {} {arguments}",
            self.bin.join("pg_ctl").display(),
            self.directory.path().join("data").display(),
            self.directory.path().join("log").display(),
        ))
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let _ = self.pg_ctl("-m immediate -w -t 30 stop").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if is_root() {
            // The directory holds files of another user; TempDir removes it now that the server is gone.
            let _ = Command::new("chown").arg("-R").arg("root").arg(self.directory.path()).status();
        }
    }
}

fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output().expect("id runs");
    output.stdout.trim_ascii() == b"0"
}

fn as_server_user(command: &str) -> Command {
    let mut shell;
    if is_root() {
        shell = Command::new("su");
        shell.args(["postgres", "-s", "/bin/sh", "-c", command]);
    } else {
        shell = Command::new("/bin/sh");
        shell.args(["-c", command]);
    }
    shell.current_dir("/");
    shell
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    // A daemon inherits stdout and stderr; waiting for their end would wait for the daemon.
    let started = Instant::now();
    let status = output.status().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(status.success(), "{command:?}: {status}");
    assert!(started.elapsed() < Duration::from_secs(120), "{command:?} took too long");
}

fn free_port() -> u16 {
    let socket = TcpListener::bind("127.0.0.1:0").expect("free port");
    socket.local_addr().expect("local address").port()
}

/// The directory with `initdb`, `pg_ctl` and `postgres`: on the PATH, or the newest of Debian's.
fn find_bin() -> PathBuf {
    let complete = |dir: &Path| ["initdb", "pg_ctl", "postgres"].iter().all(|name| dir.join(name).is_file());
    let path = std::env::var_os("PATH").unwrap_or_default();
    if let Some(dir) = std::env::split_paths(&path).find(|dir| complete(dir)) {
        return dir;
    }
    let mut versions: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .map(|entries| entries.flatten().map(|entry| entry.path().join("bin")).collect())
        .unwrap_or_default();
    versions.retain(|dir| complete(dir));
    versions.sort_by_key(|dir| {
        let version = dir.parent().and_then(Path::file_name).and_then(|name| name.to_str());
        version.and_then(|name| name.parse::<u32>().ok()).unwrap_or(0)
    });
    versions.pop().expect("PostgreSQL's server programs, on the PATH or in /usr/lib/postgresql/*/bin")
}
