//! A private RabbitMQ node for tests: own ports, own folder, own Erlang port mapper, nothing left
//! behind.
//!
//! Needs the package `rabbitmq-server`, or a folder named in `SERVERS_BIN` that has `rabbitmq-server`,
//! `rabbitmqctl` and `epmd`, and runs as root or as an ordinary user. The node lives under a small shell
//! that waits on a pipe from this process: when the process ends, in whatever way, the pipe closes
//! and the shell stops the node and removes its folder. So a node may be kept in a `static`, which
//! Rust never drops.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use lapin::{Connection, ConnectionProperties};

#[path = "keeper.rs"]
#[allow(clippy::duplicate_mod)]
mod keeper;
#[path = "ports.rs"]
#[allow(clippy::duplicate_mod)]
mod ports;
#[path = "scratch.rs"]
#[allow(clippy::duplicate_mod)]
mod scratch;

use keeper::Keeper;
use ports::free_ports;
use scratch::kept_folder;

/// Starting takes 3 to 10 seconds; a loaded machine gets its time.
const START_TIMEOUT: Duration = Duration::from_secs(90);

/// Runs the node; obeys `start` and `kill` on its input, and cleans up when that ends.
const KEEPER: &str = r#"
start() { "$BIN/rabbitmq-server" >>"$DIR/output" 2>&1 </dev/null & server=$!; }
finish() { kill -KILL "$server" 2>/dev/null; wait "$server" 2>/dev/null; }
trap '' INT HUP TERM
"$EPMD" -port "$ERL_EPMD_PORT" >/dev/null 2>&1 </dev/null & epmd=$!
start
while read -r command; do
    case "$command" in
        kill) finish; echo done ;;
        start) start; echo done ;;
    esac
done
finish
kill -KILL "$epmd" 2>/dev/null
wait
rm -rf "$DIR"
"#;

/// A running node.
pub struct RabbitMq {
    keeper: Keeper,
    dir: PathBuf,
    bin: PathBuf,
    port: u16,
    environment: Vec<(&'static str, String)>,
}

impl RabbitMq {
    /// Starts a node and waits until it takes connections.
    pub async fn start() -> Self {
        Self::start_with("").await
    }

    /// Starts a node with more lines in its `rabbitmq.conf`. `@DIR@` stands for its folder.
    pub async fn start_with(config: &str) -> Self {
        Self::start_prepared(config, |_| {}).await
    }

    /// Starts a node after its folder was prepared, for example with certificates.
    pub async fn start_prepared(config: &str, prepare: impl Fn(&Path)) -> Self {
        // Somebody may take a free port before the node does; then others are tried.
        let mut last = String::new();
        for _ in 0..3 {
            let node = Self::spawn(config, None, &prepare);
            match node.ready().await {
                Ok(()) => return node,
                Err(problem) => last = problem,
            }
        }
        panic!("RabbitMQ does not start: {last}");
    }

    /// Starts one more node and joins it to the cluster of this one.
    pub async fn joined(&self) -> Self {
        let epmd_port = self.variable("ERL_EPMD_PORT").parse().unwrap();
        // Nodes trust each other by this file.
        let cookie = std::fs::read(self.dir.join(".erlang.cookie")).unwrap();
        let mut last = String::new();
        for _ in 0..3 {
            let node = Self::spawn("", Some(epmd_port), |dir| {
                use std::os::unix::fs::PermissionsExt;
                let path = dir.join(".erlang.cookie");
                std::fs::write(&path, &cookie).unwrap();
                std::fs::set_permissions(&path, PermissionsExt::from_mode(0o400)).unwrap();
            });
            match node.ready().await {
                Ok(()) => {
                    node.ctl_ok(&["stop_app"]);
                    node.ctl_ok(&["join_cluster", self.variable("RABBITMQ_NODENAME")]);
                    node.ctl_ok(&["start_app"]);
                    node.ready().await.unwrap();
                    return node;
                }
                Err(problem) => last = problem,
            }
        }
        panic!("RabbitMQ does not start: {last}");
    }

    fn variable(&self, name: &str) -> &str {
        let mut all = self.environment.iter();
        all.find(|(known, _)| *known == name).unwrap().1.as_str()
    }

    fn spawn(config: &str, epmd_port: Option<u16>, prepare: impl Fn(&Path)) -> Self {
        let bin = bin();
        let dir = kept_folder("outrigger-rabbitmq-");
        let [port, dist_port, own_port] = free_ports();
        let epmd_port = epmd_port.unwrap_or(own_port);
        let shown = dir.display();
        let config = config.replace("@DIR@", &shown.to_string());
        write(
            &dir.join("rabbitmq.conf"),
            &format!("listeners.tcp.1 = 127.0.0.1:{port}\nlog.file.level = info\n{config}\n"),
        );
        write(&dir.join("rabbitmq-env.conf"), "");
        write(&dir.join("enabled_plugins"), "[].\n");
        prepare(&dir);
        let environment = vec![
            ("BIN", bin.display().to_string()),
            ("DIR", shown.to_string()),
            ("EPMD", epmd().display().to_string()),
            ("HOME", shown.to_string()),
            ("ERL_EPMD_PORT", epmd_port.to_string()),
            ("ERL_EPMD_ADDRESS", "127.0.0.1".to_owned()),
            ("RABBITMQ_NODENAME", format!("outrigger{port}@localhost")),
            ("RABBITMQ_DIST_PORT", dist_port.to_string()),
            ("RABBITMQ_CONFIG_FILE", format!("{shown}/rabbitmq")),
            (
                "RABBITMQ_CONF_ENV_FILE",
                format!("{shown}/rabbitmq-env.conf"),
            ),
            (
                "RABBITMQ_ENABLED_PLUGINS_FILE",
                format!("{shown}/enabled_plugins"),
            ),
            ("RABBITMQ_MNESIA_BASE", format!("{shown}/data")),
            ("RABBITMQ_LOG_BASE", format!("{shown}/log")),
            ("RABBITMQ_PID_FILE", format!("{shown}/pid")),
            (
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                "+sbwt none +sbwtdcpu none +sbwtdio none".to_owned(),
            ),
            // Makes the start script become the Erlang machine instead of its parent, so that
            // killing its process kills the node.
            ("RUNNING_UNDER_SYSTEMD", "1".to_owned()),
            ("LC_ALL", "C.UTF-8".to_owned()),
        ];
        let keeper = Keeper::start(KEEPER, &dir, environment.iter().cloned());
        Self {
            keeper,
            dir,
            bin,
            port,
            environment,
        }
    }

    /// URL of the default vhost as the user `guest`.
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port)
    }

    /// The AMQP port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The node's folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Kills the node like a crash. Durable data stays.
    pub fn kill(&self) {
        self.flush_definitions();
        self.keeper.command("kill");
    }

    /// With Mnesia exchanges, queues and bindings reach the disk a little later than they are confirmed: a kill soon after
    /// would leave events without a queue. Khepri has nothing to flush.
    fn flush_definitions(&self) {
        self.ctl_ok(&["eval", "catch mnesia:sync_log()."]);
    }

    /// Starts a killed node again and waits until it takes connections.
    pub async fn revive(&self) {
        self.keeper.command("start");
        self.ready().await.unwrap();
    }

    /// Kills the node and starts it again.
    pub async fn restart(&self) {
        self.kill();
        self.revive().await;
    }

    /// Runs `rabbitmqctl`. Takes a second or two.
    pub fn ctl(&self, args: &[&str]) -> Output {
        Command::new(self.bin.join("rabbitmqctl"))
            .args(args)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Runs `rabbitmqctl` and insists on its success.
    pub fn ctl_ok(&self, args: &[&str]) -> String {
        let output = self.ctl(args);
        assert!(output.status.success(), "rabbitmqctl {args:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    async fn ready(&self) -> Result<(), String> {
        let began = Instant::now();
        let url = self.url();
        loop {
            let connecting = Connection::connect(&url, ConnectionProperties::default());
            let problem = match tokio::time::timeout(Duration::from_secs(5), connecting).await {
                Ok(Ok(connection)) => {
                    let _ = connection.close(200, "OK".into()).await;
                    return Ok(());
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer".to_owned(),
            };
            let output = std::fs::read_to_string(self.dir.join("output")).unwrap_or_default();
            if began.elapsed() > START_TIMEOUT || output.contains("BOOT FAILED") {
                return Err(format!("{problem}\n{output}"));
            }
            // Between two attempts to connect, not instead of one.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
}

/// The one folder that all servers are to be taken from, if somebody chose one.
fn chosen() -> Option<PathBuf> {
    std::env::var_os("SERVERS_BIN")
        .filter(|dir| !dir.is_empty())
        .map(|dir| std::fs::canonicalize(dir).expect("SERVERS_BIN is a folder"))
}

/// The folder with the real scripts; those in Debian's `/usr/sbin` insist on the user `rabbitmq`.
fn bin() -> PathBuf {
    // Never both: falling back would test another broker than the one somebody chose.
    let candidates = match chosen() {
        Some(dir) => vec![dir],
        None => vec!["/usr/lib/rabbitmq/bin".into(), "/opt/rabbitmq/sbin".into()],
    };
    candidates
        .into_iter()
        .find(|dir| dir.join("rabbitmq-server").exists() && dir.join("rabbitmqctl").exists())
        .expect("RabbitMQ: install the package rabbitmq-server, or name its folder in SERVERS_BIN")
}

/// The port mapper of the Erlang that will run the node.
fn epmd() -> PathBuf {
    if let Some(dir) = chosen() {
        return dir.join("epmd");
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join("epmd"))
        .find(|epmd| epmd.exists())
        .expect("epmd is not in PATH: install Erlang")
}
