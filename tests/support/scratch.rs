//! Where the servers of tests keep their files.

#![allow(dead_code, unreachable_pub)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use tempfile::{Builder, TempDir};

/// A file system in memory, on nearly every Linux machine.
const MEMORY: &str = "/dev/shm";
/// Less room than this, as in a container with the usual 64 MiB, does not do.
const ROOM_KIB: u64 = 4 * 1024 * 1024;

/// A new folder, in memory if possible. RabbitMQ and Kafka confirm a message when the disk has it, and on a disk that is
/// busy writing what a compiler has left that takes seconds: no test of a relay should depend on it. What these servers
/// promise after a loss of power is theirs to test; a killed process loses nothing here either.
pub fn folder(prefix: &str) -> TempDir {
    static IN_MEMORY: LazyLock<bool> = LazyLock::new(|| room() >= ROOM_KIB);
    let mut builder = Builder::new();
    builder.prefix(prefix);
    let made = if *IN_MEMORY {
        builder.tempdir_in(MEMORY)
    } else {
        builder.tempdir()
    };
    made.expect("a temporary folder")
}

/// The same, removed by somebody else.
pub fn kept_folder(prefix: &str) -> PathBuf {
    folder(prefix).keep()
}

/// Free memory there, in KiB; nothing if nobody may write there.
fn room() -> u64 {
    if tempfile::tempfile_in(Path::new(MEMORY)).is_err() {
        return 0;
    }
    let df = ["-k", "--output=avail", MEMORY];
    let Ok(output) = Command::new("df").args(df).output() else {
        return 0;
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let avail = text.lines().last().unwrap_or_default();
    avail.trim().parse().unwrap_or(0)
}
