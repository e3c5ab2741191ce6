//! A private PostgreSQL server: own data directory, own port, gone when dropped.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

#[path = "ports.rs"]
#[allow(clippy::duplicate_mod)]
mod ports;
#[path = "scratch.rs"]
#[allow(clippy::duplicate_mod)]
mod scratch;

pub use ports::free_port;
use scratch::kept_folder;

/// A running server. One per test binary; every test makes its own database.
pub struct Postgres {
    directory: PathBuf,
    bin: PathBuf,
    port: u16,
    shell: Mutex<Child>,
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

    /// Starts a server after its folder was prepared, for example with certificates. In the settings `@DIR@` stands
    /// for the folder.
    pub async fn start_prepared(
        settings: &[String],
        prepare: impl Fn(&Path) + Send + 'static,
    ) -> Self {
        let settings = settings.to_vec();
        tokio::task::spawn_blocking(move || Self::start_filled(&fresh(), &settings, &prepare))
            .await
            .expect("starting PostgreSQL panicked")
    }

    /// Starts an asynchronous standby of this server, which it reaches at `port`.
    pub async fn standby(&self, port: u16) -> Self {
        let copy = format!(
            "'{}' -D data -h 127.0.0.1 -p {port} -U postgres -X stream -c fast -R",
            self.program("pg_basebackup").display()
        );
        tokio::task::spawn_blocking(move || Self::start_filled(&copy, &[], &|_| {}))
            .await
            .expect("starting a standby panicked")
    }

    /// The same as [`Self::start_with`], without a runtime.
    pub fn start_blocking(settings: &[String]) -> Self {
        Self::start_filled(&fresh(), settings, &|_| {})
    }

    /// Starts a server whose data directory is made by the command `fill`.
    fn start_filled(fill: &str, settings: &[String], prepare: &dyn Fn(&Path)) -> Self {
        let bin = find_bin();
        let directory = kept_folder("outrigger-pg-");
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).expect("permissions");
        prepare(&directory);
        let shown = directory.display().to_string();
        let settings: Vec<String> = settings
            .iter()
            .map(|setting| setting.replace("@DIR@", &shown))
            .collect();
        // The server refuses to run as root, so the directory must belong to somebody else.
        give_to_server(&directory);
        // Another process may take the port between choosing and binding it.
        for _ in 0..5 {
            if let Some(server) = Self::try_start(&bin, &directory, fill, free_port(), &settings) {
                return server;
            }
        }
        let log = fs::read_to_string(directory.join("log")).unwrap_or_default();
        // Nobody else would remove it: no server lives there.
        let _ = fs::remove_dir_all(&directory);
        panic!("PostgreSQL did not start:\n{log}");
    }

    /// The server lives under a shell that waits for its standard input to close. So it stops and vanishes when this
    /// value is dropped, and also when the test process exits, panics or is killed.
    fn try_start(
        bin: &Path,
        directory: &Path,
        fill: &str,
        port: u16,
        settings: &[String],
    ) -> Option<Self> {
        let mut options = format!(
            "-c port={port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={} -c fsync=off \
             -c full_page_writes=off -c max_connections=120 -c max_prepared_transactions=10 \
             -c shared_buffers=64MB -c dynamic_shared_memory_type=mmap -c log_min_messages=fatal -c log_line_prefix=%d:",
            directory.display()
        );
        for setting in settings {
            options += &format!(" -c {setting}");
        }
        let script = format!(
            "cd '{dir}' || exit 1; \
             test -d data || {fill} >log 2>&1 || exit 1; \
             '{bin}/pg_ctl' -D data -l log -w -t 60 -o '{options}' start >/dev/null 2>&1 || exit 1; \
             echo ready; cat >/dev/null; \
             '{bin}/pg_ctl' -D data -m immediate -w -t 30 stop >/dev/null 2>&1; cd /; rm -rf '{dir}'",
            dir = directory.display(),
            bin = bin.display(),
        );
        let mut shell = as_server_user(&script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell runs");
        let mut answer = String::new();
        let stdout = shell.stdout.take().expect("piped");
        BufReader::new(stdout)
            .read_line(&mut answer)
            .expect("readable");
        if answer.trim() != "ready" {
            let _ = shell.wait();
            return None;
        }
        Some(Self {
            directory: directory.to_owned(),
            bin: bin.to_owned(),
            port,
            shell: Mutex::new(shell),
            databases: AtomicU32::new(0),
        })
    }

    /// Connection URL of a database, as the superuser.
    pub fn url(&self, database: &str) -> String {
        self.url_as("postgres", database)
    }

    /// Connection URL of a database for a role.
    pub fn url_as(&self, role: &str, database: &str) -> String {
        format!(
            "postgres://{role}@127.0.0.1:{}/{database}?sslmode=disable",
            self.port
        )
    }

    /// Where its Unix socket is.
    pub fn socket_directory(&self) -> &Path {
        &self.directory
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
        let (client, connection) =
            tokio_postgres::connect(&self.url(database), tokio_postgres::NoTls)
                .await
                .expect("connect to the test server");
        tokio::spawn(connection);
        client
    }

    /// A program such as `psql`: of the server's installation, or else on the PATH.
    pub fn program(&self, name: &str) -> PathBuf {
        let server = self.bin.join("postgres");
        // The server may be a link into the folder where the rest of its installation is.
        let real = fs::canonicalize(&server).unwrap_or(server);
        let own = real.with_file_name(name);
        if own.is_file() {
            own
        } else {
            PathBuf::from(name)
        }
    }

    /// What the server logged so far; each entry begins with its database's name and a colon.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).expect("the server's log")
    }

    /// Kills the server and starts it again on the same port with the same settings.
    pub fn restart(&self) {
        self.control("-m immediate restart");
    }

    /// Stops the server like a crash. [`Self::revive`] starts it again.
    pub fn crash(&self) {
        self.control("-m immediate stop");
    }

    /// Starts a crashed server again, on the same port with the same settings.
    pub fn revive(&self) {
        // What `restart` does by itself: the last options are in a file.
        let options = self.directory.join("data/postmaster.opts");
        let options = fs::read_to_string(options).expect("the options of the last start");
        let (_, options) = options
            .trim()
            .split_once(' ')
            .expect("a program and options");
        self.control(&format!("-o '{options}' start"));
    }

    /// Makes a standby the primary.
    pub fn promote(&self) {
        self.control("promote");
    }

    fn control(&self, action: &str) {
        let script = format!(
            "cd '{1}' && '{0}' -D data -l log -w -t 60 {action} >/dev/null 2>&1",
            self.bin.join("pg_ctl").display(),
            self.directory.display(),
        );
        let status = as_server_user(&script).stdin(Stdio::null()).status();
        assert!(status.expect("a shell runs").success(), "pg_ctl {action}");
    }
}

/// The command that makes an empty data directory.
fn fresh() -> String {
    let initdb = find_bin().join("initdb");
    format!(
        "'{}' -D data -U postgres --auth=trust --encoding=UTF8 --locale=C --no-sync",
        initdb.display()
    )
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let mut shell = self.shell.lock().unwrap_or_else(PoisonError::into_inner);
        drop(shell.stdin.take());
        let _ = shell.wait();
    }
}

/// Makes a directory and all in it readable for the server, private keys included.
pub fn give_to_server(directory: &Path) {
    if is_root() {
        let status = Command::new("chown")
            .args(["-R", "postgres"])
            .arg(directory)
            .status();
        assert!(
            status.expect("chown runs").success(),
            "chown to the user postgres"
        );
    }
}

/// A shell command run as the user that runs the server.
pub fn server_user_shell(command: &str) -> Command {
    as_server_user(command)
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
    // A signal to the whole group, of a terminal or of `timeout`, must not reach it: it cleans up when this process ends.
    shell.current_dir("/").process_group(0);
    shell
}

/// The directory with `initdb`, `pg_ctl` and `postgres`: `SERVERS_BIN` if that is set, else on the PATH, else the
/// newest of Debian's.
fn find_bin() -> PathBuf {
    let complete = |dir: &Path| {
        ["initdb", "pg_ctl", "postgres"]
            .iter()
            .all(|name| dir.join(name).is_file())
    };
    if let Some(dir) = std::env::var_os("SERVERS_BIN").filter(|dir| !dir.is_empty()) {
        let dir = fs::canonicalize(dir).expect("SERVERS_BIN is a folder");
        // Falling back would test other servers than the ones somebody chose.
        assert!(complete(&dir), "no PostgreSQL in SERVERS_BIN, {dir:?}");
        return dir;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    if let Some(dir) = std::env::split_paths(&path).find(|dir| complete(dir)) {
        return dir;
    }
    let mut versions: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .map(|entries| {
            entries
                .flatten()
                .map(|entry| entry.path().join("bin"))
                .collect()
        })
        .unwrap_or_default();
    versions.retain(|dir| complete(dir));
    versions.sort_by_key(|dir| {
        let version = dir
            .parent()
            .and_then(Path::file_name)
            .and_then(|name| name.to_str());
        version
            .and_then(|name| name.parse::<u32>().ok())
            .unwrap_or(0)
    });
    versions
        .pop()
        .expect("PostgreSQL's server programs, on the PATH or in /usr/lib/postgresql/*/bin")
}
