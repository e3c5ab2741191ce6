//! `outrigger run` as a real process, configured by environment variables alone.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::wait::{PATIENCE, until};

/// The environment of a relay.
#[derive(Debug, Clone, Default)]
pub struct Settings(BTreeMap<String, String>, Option<u64>);

impl Settings {
    /// Sets `OUTRIGGER_` plus `name`.
    #[must_use]
    pub fn set(mut self, name: &str, value: impl ToString) -> Self {
        self.0
            .insert(format!("OUTRIGGER_{name}"), value.to_string());
        self
    }

    /// Sets a variable that is not ours.
    #[must_use]
    pub fn variable(mut self, name: &str, value: impl ToString) -> Self {
        self.0.insert(name.to_owned(), value.to_string());
        self
    }

    /// Ends the process when its data takes more bytes, like a memory limit.
    #[must_use]
    pub fn limited(mut self, bytes: u64) -> Self {
        self.1 = Some(bytes);
        self
    }

    pub fn start(&self) -> Relay {
        Relay::start(self)
    }

    /// Runs another command with the same settings.
    pub async fn output(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
        command.args(args).env_clear().envs(&self.0);
        tokio::task::spawn_blocking(move || command.output().expect("the binary runs"))
            .await
            .expect("the command ends")
    }

    /// The same; it must succeed. Returns what it printed.
    pub async fn run(&self, args: &[&str]) -> String {
        let output = self.output(args).await;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(
            output.status.success(),
            "{args:?}: {}",
            text(&output.stderr)
        );
        text(&output.stdout)
    }
}

/// A running relay; killed when dropped. Its log and its status are printed if the test fails while it runs, the log
/// always with `OUTRIGGER_TEST_LOG` set.
pub struct Relay {
    child: Child,
    name: String,
    log: Arc<Mutex<Vec<String>>>,
}

impl Relay {
    fn start(settings: &Settings) -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        // The kernel ends it with the thread that runs the test, however that ends.
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "prlimit"])
            .arg(format!(
                "--data={}",
                settings
                    .1
                    .map_or("unlimited".to_owned(), |bytes| bytes.to_string())
            ))
            .args([env!("CARGO_BIN_EXE_outrigger"), "run"])
            .env_clear()
            .env("PATH", path)
            .env("NO_COLOR", "1")
            .env("RUST_BACKTRACE", "1")
            .envs(&settings.0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let log = Arc::new(Mutex::new(Vec::new()));
        let lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        // Ends with the process.
        std::thread::spawn({
            let log = log.clone();
            move || {
                for line in lines.map_while(Result::ok) {
                    log.lock().unwrap().push(line);
                }
            }
        });
        let name = settings.0.get("OUTRIGGER_RELAY_NAME");
        Self {
            name: name.cloned().unwrap_or_else(|| child.id().to_string()),
            child,
            log,
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    /// Where its admin listener is, once its log says so.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        let log = self.log.lock().unwrap();
        let line = log.iter().find(|line| line.contains("admin listener"))?;
        let address = &line[line.find("127.0.0.1:")?..];
        let end = address.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == ':'));
        address[..end.unwrap_or(address.len())].parse().ok()
    }

    /// What `/status` says, if it still answers.
    fn status(&self) -> Option<String> {
        self.get("/status")
    }

    /// What the admin listener answers, head and all.
    pub fn get(&self, path: &str) -> Option<String> {
        let patience = Duration::from_secs(2);
        let mut stream = TcpStream::connect_timeout(&self.admin_address()?, patience).ok()?;
        stream.set_read_timeout(Some(patience)).ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    /// Waits for a line of the log that contains `part`.
    /// Waits until the admin listener's answer has each of these parts.
    pub async fn await_answer(&self, path: &str, parts: &[&str]) {
        until(&format!("{path} says {parts:?}"), PATIENCE, || async {
            let answer = self.get(path).unwrap_or_default();
            match parts.iter().all(|part| answer.contains(part)) {
                true => Ok(()),
                false => Err(answer),
            }
        })
        .await;
    }

    pub async fn await_log(&self, part: &str) {
        self.await_log_for(part, Duration::from_secs(20)).await;
    }

    pub async fn await_log_for(&self, part: &str, limit: Duration) {
        until(&format!("the relay logs {part:?}"), limit, || async {
            let log = self.log();
            if log.contains(part) { Ok(()) } else { Err(log) }
        })
        .await;
    }

    /// Sends a signal, by name (`TERM`, `STOP`, `CONT`).
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([&format!("-{name}"), &self.child.id().to_string()])
            .status()
            .expect("kill runs");
        assert!(status.success(), "kill -{name}");
    }

    /// Kills it like a crash.
    pub fn kill(mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("waited for");
    }

    /// Asks it to stop and insists that it does so cleanly.
    pub async fn stop(mut self) {
        self.signal("TERM");
        let status = self.exit(Duration::from_secs(30)).await;
        assert_eq!(status.code(), Some(0), "{status}; {}", self.log());
    }

    /// Waits for its end.
    pub async fn exit(&mut self, limit: Duration) -> ExitStatus {
        let child = Mutex::new(&mut self.child);
        until("the relay exits", limit, || async {
            let status = child.lock().unwrap().try_wait();
            status.expect("a child").ok_or_else(|| "running".into())
        })
        .await
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_some()
    }

    /// Insists that it still runs.
    #[track_caller]
    pub fn assert_running(&mut self) {
        let status = self.child.try_wait().expect("a child");
        assert!(status.is_none(), "exited with {status:?}");
    }

    /// What it has used of the processor so far.
    pub fn processor_time(&self) -> Duration {
        let path = format!("/proc/{}/stat", self.child.id());
        let stat = std::fs::read_to_string(path).expect("a running process");
        // Behind the name in brackets: the state, and then user and system time as the 12th and 13th, in hundredths.
        let fields = &stat[stat.rfind(')').expect("a name") + 2..];
        let ticks = fields.split(' ').skip(11).take(2);
        let ticks = ticks.map(|ticks| ticks.parse::<u64>().expect("ticks"));
        Duration::from_millis(ticks.sum::<u64>() * 10)
    }

    /// Resident memory in KiB.
    pub fn resident_kib(&self) -> u64 {
        self.status_of("VmRSS:")
    }

    /// The most resident memory that it ever had, in KiB.
    pub fn peak_kib(&self) -> u64 {
        self.status_of("VmHWM:")
    }

    fn status_of(&self, what: &str) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).expect("a running process");
        let line = status.lines().find_map(|line| line.strip_prefix(what));
        let number = line.and_then(|line| line.split_whitespace().next());
        number
            .and_then(|n| n.parse().ok())
            .expect("a number of KiB")
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let status = std::thread::panicking()
            .then(|| self.get("/status"))
            .flatten();
        // Both fail when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() || std::env::var_os("OUTRIGGER_TEST_LOG").is_some() {
            eprintln!("--- log of relay {} ---\n{}", self.name, self.log());
        }
        if let Some(status) = status {
            eprintln!("--- its status ---\n{status}");
        }
    }
}
