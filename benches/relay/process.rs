//! Relays as child processes, and what they use.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use crate::Result;

/// How often memory is looked at while a relay is waited for.
const SAMPLE_EVERY: Duration = Duration::from_millis(100);

/// A relay process. Killed when dropped.
pub(crate) struct Relay {
    child: Child,
    log: PathBuf,
    pub(crate) spawned_at: jiff::Timestamp,
    started: Instant,
    /// Resident memory so far: seconds since the start, and MiB.
    memory: Vec<(f64, f64)>,
}

/// What a process has used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    pub(crate) cpu: Duration,
    pub(crate) resident_mib: f64,
    /// The part of it that is not the program's file.
    pub(crate) anonymous_mib: f64,
    pub(crate) peak_mib: f64,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Relay {
    pub(crate) fn new(child: Child, log: PathBuf, spawned_at: jiff::Timestamp) -> Self {
        Self {
            child,
            log,
            spawned_at,
            started: Instant::now(),
            memory: Vec::new(),
        }
    }

    /// Fails if the relay is gone. Called while it works, so it also notes the memory in use.
    pub(crate) fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            return Err(format!("the relay ended ({status}); see {}", self.log()).into());
        }
        let now = self.started.elapsed();
        let next = self
            .memory
            .last()
            .map_or(0.0, |(at, _)| at + SAMPLE_EVERY.as_secs_f64());
        if now.as_secs_f64() >= next {
            self.memory
                .push((now.as_secs_f64(), self.usage()?.resident_mib));
        }
        Ok(())
    }

    /// Resident memory over time: seconds since the start, and MiB.
    pub(crate) fn memory(&self) -> Vec<(f64, f64)> {
        self.memory.clone()
    }

    fn log(&self) -> String {
        self.log.display().to_string()
    }

    /// No mercy, like a crash.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends TERM.
    pub(crate) fn terminate(&self) -> Result<()> {
        let pid = self.child.id().to_string();
        let status = Command::new("kill").args(["-TERM", &pid]).status()?;
        if status.success() {
            return Ok(());
        }
        Err(format!("cannot send TERM to process {pid}").into())
    }

    /// Asks it to stop and waits for a clean end.
    pub(crate) async fn stop(mut self) -> Result<()> {
        self.terminate()?;
        self.ended().await
    }

    /// Waits for a clean end.
    pub(crate) async fn ended(&mut self) -> Result<()> {
        let began = Instant::now();
        loop {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => {
                    return Err(
                        format!("the relay stopped with {status}; see {}", self.log()).into(),
                    );
                }
                None if began.elapsed() > Duration::from_secs(30) => {
                    return Err("the relay did not stop in 30 s".into());
                }
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    pub(crate) fn usage(&self) -> Result<Usage> {
        let folder = Path::new("/proc").join(self.child.id().to_string());
        let status = fs::read_to_string(folder.join("status"))?;
        let mib = |name: &str| -> Result<f64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kb = line.and_then(|line| line.trim().split(' ').next()?.parse::<f64>().ok());
            Ok(kb.ok_or_else(|| format!("the kernel does not tell {name}"))? / 1024.0)
        };
        Ok(Usage {
            cpu: cpu_time(&fs::read_to_string(folder.join("stat"))?)?,
            resident_mib: mib("VmRSS:")?,
            anonymous_mib: mib("RssAnon:")?,
            peak_mib: mib("VmHWM:")?,
        })
    }
}

/// User and system time from `/proc/PID/stat`. Linux shows it to programs in hundredths of a second.
pub(crate) fn cpu_time(stat: &str) -> Result<Duration> {
    // The program's name comes second, in parentheses, and may contain anything.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: Vec<u64> = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse().ok())
        .collect();
    match ticks[..] {
        [user, system] => Ok(Duration::from_millis((user + system) * 10)),
        _ => Err("cannot read a process's CPU time".into()),
    }
}
