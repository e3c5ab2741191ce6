//! What the system says about this process. Linux only: elsewhere there is no `/proc`, and nothing is said.

use std::fs;

/// Ticks of CPU time per second. Fixed by the interface of the kernel on every platform that is built for.
const TICKS_PER_SECOND: f64 = 100.0;

/// Figures as Prometheus' own clients name them.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Process {
    /// CPU time, in seconds.
    pub(super) cpu_seconds: Option<f64>,
    /// Bytes.
    pub(super) resident: Option<f64>,
    /// Bytes.
    pub(super) virtual_memory: Option<f64>,
    /// Open file descriptors.
    pub(super) open_fds: Option<f64>,
    /// Limit of open file descriptors.
    pub(super) max_fds: Option<f64>,
    /// Seconds since 1970.
    pub(super) started: Option<f64>,
}

impl Process {
    /// Reads a few small files that the kernel makes up; nothing of it waits for a disk.
    pub(super) fn look() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let stat = read("/proc/self/stat");
        // The command's name is in parentheses and may hold anything; fields are counted behind it, from the third.
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .map(|(_, rest)| rest.split_whitespace().collect())
            .unwrap_or_default();
        let field = |number: usize| fields.get(number - 3)?.parse::<f64>().ok();
        let status = read("/proc/self/status");
        let kib = |name: &str| number_after(&status, name).map(|kib| kib * 1024.0);
        let booted = number_after(&read("/proc/stat"), "btime");
        Self {
            cpu_seconds: field(14)
                .zip(field(15))
                .map(|(user, system)| (user + system) / TICKS_PER_SECOND),
            resident: kib("VmRSS:"),
            virtual_memory: kib("VmSize:"),
            open_fds: fs::read_dir("/proc/self/fd")
                .ok()
                .map(|entries| entries.count() as f64),
            max_fds: number_after(&read("/proc/self/limits"), "Max open files"),
            started: booted
                .zip(field(22))
                .map(|(booted, ticks)| booted + ticks / TICKS_PER_SECOND),
        }
    }
}

/// The number that follows a line's beginning.
fn number_after(text: &str, name: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(all(test, target_os = "linux"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_described() {
        let process = Process::look();
        assert!(process.cpu_seconds.unwrap() >= 0.0);
        assert!(process.resident.unwrap() > 1e6);
        assert!(process.virtual_memory.unwrap() >= process.resident.unwrap());
        assert!(process.open_fds.unwrap() >= 3.0);
        assert!(process.max_fds.unwrap() >= process.open_fds.unwrap());
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_secs_f64();
        let started = process.started.unwrap();
        // Test binaries are built, not left running for days; the boot time is rounded to seconds.
        assert!(started < now + 2.0 && started > now - 86_400.0, "{started}");
    }
}
