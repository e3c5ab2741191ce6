//! The small shell that a server of tests lives under. It waits on a pipe from this process: when the process ends, in
//! whatever way, the pipe closes, and the shell stops the server and removes its folder.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

use std::ffi::OsStr;
use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

/// Dropped, it stops the server and waits until that is done.
pub struct Keeper(Mutex<Child>);

impl Keeper {
    /// Starts a shell in this folder, with further variables. The script answers each command with a line.
    pub fn start<N: AsRef<OsStr>, V: AsRef<OsStr>>(
        script: &str,
        dir: &Path,
        environment: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        let process = Command::new("sh")
            .args(["-c", script])
            .env("DIR", dir)
            .envs(environment)
            .current_dir(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // An interrupt typed at the terminal must not reach it: it cleans up by itself.
            .process_group(0)
            .spawn()
            .unwrap();
        Self(Mutex::new(process))
    }

    /// Sends a command and waits until it is carried out.
    pub fn command(&self, command: &str) {
        let mut process = self.0.lock().unwrap();
        writeln!(process.stdin.as_mut().unwrap(), "{command}").unwrap();
        let answers = process.stdout.as_mut().unwrap();
        let mut byte = [0];
        while byte != *b"\n" {
            answers.read_exact(&mut byte).unwrap();
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let process = self.0.get_mut().unwrap();
        drop(process.stdin.take());
        let _ = process.wait();
    }
}
