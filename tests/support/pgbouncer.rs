//! PgBouncer in transaction mode in front of a server. Needs the package `pgbouncer`.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::postgres::{Postgres, free_port, give_to_server, server_user_shell};

/// A running pooler; ends with this value or with the test process.
pub struct PgBouncer {
    shell: Child,
    port: u16,
    _files: TempDir,
}

impl PgBouncer {
    pub async fn start(server: &Postgres, pool_size: usize) -> Self {
        let files = tempfile::tempdir().unwrap();
        let directory = files.path();
        let port = free_port();
        fs::write(directory.join("users"), "\"postgres\" \"\"\n").unwrap();
        fs::write(
            directory.join("pgbouncer.ini"),
            format!(
                "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
                 unix_socket_dir =\nauth_type = trust\nauth_file = {}/users\npool_mode = transaction\n\
                 default_pool_size = {pool_size}\n",
                server.port(),
                directory.display()
            ),
        )
        .unwrap();
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
        give_to_server(directory);
        let script = format!(
            "PATH=$PATH:/usr/sbin; '{}' -q {}/pgbouncer.ini </dev/null >/dev/null 2>&1 & p=$!; cat >/dev/null; kill $p",
            server.program("pgbouncer").display(),
            directory.display()
        );
        let shell = server_user_shell(&script)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let reachable = async {
            while tokio::net::TcpStream::connect(("127.0.0.1", port))
                .await
                .is_err()
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), reachable)
            .await
            .expect("pgbouncer listens (is it installed?)");
        Self {
            shell,
            port,
            _files: files,
        }
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Connection URL through the pooler.
    pub fn url(&self, database: &str) -> String {
        format!(
            "postgres://postgres@127.0.0.1:{}/{database}?sslmode=disable",
            self.port
        )
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}
