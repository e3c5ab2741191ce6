//! The servers, the databases, and relays as child processes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use outrigger::store::postgres::{ConnectSettings, Database, Mapping, OutboxSettings};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls, Row};
use url::Url;

use crate::broker::Broker;
use crate::{Args, Result};

/// How much is measured.
pub(crate) struct Sizes {
    pub(crate) backlog: i64,
    pub(crate) keys: u32,
    /// Of the strict drain with its reference.
    pub(crate) rounds: usize,
    /// Backlog of the drains that are not the main one.
    pub(crate) variant: i64,
    pub(crate) hot_key: i64,
    pub(crate) snapshot: i64,
    pub(crate) latency_rows: usize,
    pub(crate) load: Duration,
    pub(crate) settle_down: Duration,
    pub(crate) idle: Duration,
    pub(crate) writers: Duration,
    pub(crate) writer_rounds: usize,
    pub(crate) lease: Duration,
    pub(crate) starts: usize,
}

impl Sizes {
    fn new(quick: bool) -> Self {
        let seconds = Duration::from_secs;
        if quick {
            Self {
                backlog: 50_000,
                keys: 10_000,
                rounds: 1,
                variant: 30_000,
                hot_key: 2_000,
                snapshot: 60_000,
                latency_rows: 100,
                load: seconds(4),
                settle_down: seconds(4),
                idle: seconds(6),
                writers: seconds(3),
                writer_rounds: 1,
                lease: seconds(4),
                starts: 3,
            }
        } else {
            Self {
                backlog: 200_000,
                keys: 10_000,
                rounds: 3,
                variant: 100_000,
                hot_key: 5_000,
                snapshot: 200_000,
                latency_rows: 300,
                load: seconds(10),
                settle_down: seconds(10),
                idle: seconds(20),
                writers: seconds(6),
                writer_rounds: 2,
                lease: seconds(10),
                starts: 5,
            }
        }
    }
}

/// Everything a measurement needs.
pub(crate) struct World {
    pub(crate) sizes: Sizes,
    pub(crate) broker: Broker,
    pub(crate) postgres_version: String,
    pub(crate) pgbench: PathBuf,
    pub(crate) work: PathBuf,
    /// On a database of its own, so that it does not count as traffic of the measured ones.
    pub(crate) admin: Client,
    /// The strict drain's rate, once measured: what half the load is half of.
    pub(crate) drain_rate: Option<f64>,
    /// The pipelined drain's, which one hot key is compared with.
    pub(crate) pipelined_rate: Option<f64>,
    outrigger: PathBuf,
    database_url: Url,
    amqp_url: String,
    databases: usize,
    relays: usize,
}

impl World {
    pub(crate) async fn open(args: &Args) -> Result<Self> {
        let variable =
            |name| std::env::var(name).map_err(|_| format!("set {name} to the server's address"));
        let database_url = Url::parse(&variable("DATABASE_URL")?)?;
        let amqp_url = variable("AMQP_URL")?;
        let admin = connect(&database_url).await?;
        let row = admin.query_one("show server_version", &[]).await?;
        // What follows the number names the packager.
        let version: String = row.try_get(0)?;
        Ok(Self {
            sizes: Sizes::new(args.quick),
            broker: Broker::open(&amqp_url).await?,
            postgres_version: version.split(' ').next().unwrap_or_default().to_owned(),
            pgbench: args.pgbench.clone(),
            work: args.work.clone(),
            admin,
            drain_rate: None,
            pipelined_rate: None,
            outrigger: args.outrigger.clone(),
            database_url,
            amqp_url,
            databases: 0,
            relays: 0,
        })
    }

    /// A new database with an empty outbox, so that nothing is left of the measurement before.
    pub(crate) async fn outbox(&mut self) -> Result<Outbox> {
        self.databases += 1;
        let name = format!("measure_{}", self.databases);
        let create = format!("create database {name}");
        self.admin.batch_execute(&create).await?;
        let mut url = self.database_url.clone();
        url.set_path(&name);
        let settings = ConnectSettings {
            url: Some(url.to_string().into()),
            ..ConnectSettings::default()
        };
        let database = Database::new(&settings, Mapping::new(&OutboxSettings::default())?)?;
        database.migrate(true).await?;
        database.close();
        let client = connect(&url).await?;
        Ok(Outbox { name, url, client })
    }

    /// Drops a database with whatever is still connected to it.
    pub(crate) async fn drop(&self, outbox: Outbox) -> Result<()> {
        drop(outbox.client);
        self.drop_database(&outbox.name).await
    }

    pub(crate) async fn drop_database(&self, name: &str) -> Result<()> {
        let statement = format!("drop database {name} with (force)");
        Ok(self.admin.batch_execute(&statement).await?)
    }

    /// Starts a relay with these settings beside the necessary ones.
    pub(crate) fn relay(&mut self, outbox: &Outbox, settings: &[(&str, &str)]) -> Result<Relay> {
        self.relays += 1;
        let log = self.work.join(format!("relay-{}.log", self.relays));
        let spawned_at = jiff::Timestamp::now();
        let child = Command::new(&self.outrigger)
            .arg("run")
            .env_clear()
            .env("OUTRIGGER_DATABASE_URL", outbox.url.as_str())
            .env("OUTRIGGER_RABBITMQ_URL", &self.amqp_url)
            .env("OUTRIGGER_EVENT_SOURCE", "/measure")
            .env("OUTRIGGER_RELAY_NAME", format!("relay-{}", self.relays))
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()?;
        Ok(Relay {
            child,
            log,
            spawned_at,
        })
    }

    /// The end of the last relay's log.
    pub(crate) fn log_tails(&self) -> String {
        let log = self.work.join(format!("relay-{}.log", self.relays));
        let text = fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(10)..];
        format!("the last relay's log ends with:\n{}", tail.join("\n"))
    }
}

async fn connect(url: &Url) -> Result<Client> {
    let (client, connection) = tokio_postgres::connect(url.as_str(), NoTls).await?;
    // Ends with its client. A lost connection shows as the client's error.
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(client)
}

/// An outbox in a database of its own.
pub(crate) struct Outbox {
    pub(crate) name: String,
    pub(crate) url: Url,
    pub(crate) client: Client,
}

impl Outbox {
    /// Another connection.
    pub(crate) async fn connect(&self) -> Result<Client> {
        connect(&self.url).await
    }

    pub(crate) async fn row(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Row> {
        Ok(self.client.query_one(sql, params).await?)
    }

    /// Writes a backlog whose events have about 1 KiB on the wire. Numbered from 1.
    pub(crate) async fn seed(&self, rows: i64, keys: u32) -> Result<()> {
        self.client
            .execute(
                "insert into outbox (type, key, data) \
                 select 'order.changed', 'customer-' || n % $2::int8, \
                        jsonb_build_object('number', n, 'text', repeat('x', $3::int4)) \
                 from generate_series(1::int8, $1::int8) n",
                &[&rows, &i64::from(keys), &TEXT],
            )
            .await?;
        self.client.batch_execute("vacuum (analyze) outbox").await?;
        Ok(self.client.batch_execute("checkpoint").await?)
    }

    /// Whether the row is published: marked, or gone.
    pub(crate) async fn is_published(&self, seq: i64) -> Result<bool> {
        let sql = "select not exists (select from outbox where seq = $1 and published_at is null)";
        Ok(self.row(sql, &[&seq]).await?.try_get(0)?)
    }

    /// Waits until a row is published.
    pub(crate) async fn await_row(
        &self,
        seq: i64,
        relay: &mut Relay,
        limit: Duration,
    ) -> Result<()> {
        let began = Instant::now();
        while !self.is_published(seq).await? {
            relay.check()?;
            if began.elapsed() > limit {
                return Err(format!("row {seq} was not published in {limit:?}").into());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Waits until no row is pending. Asks for the last one first, which costs next to nothing.
    pub(crate) async fn await_all(
        &self,
        last: i64,
        relay: &mut Relay,
        limit: Duration,
    ) -> Result<()> {
        let began = Instant::now();
        self.await_row(last, relay, limit).await?;
        let pending = "select exists (select from outbox where published_at is null)";
        while self.row(pending, &[]).await?.try_get(0)? {
            relay.check()?;
            if began.elapsed() > limit {
                return Err(format!("rows were still pending after {limit:?}").into());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }
}

/// Length of the text in the payload: with the envelope around it, an event has about 1 KiB.
pub(crate) const TEXT: i32 = 814;

/// A relay process. Killed when dropped.
pub(crate) struct Relay {
    child: Child,
    log: PathBuf,
    pub(crate) spawned_at: jiff::Timestamp,
}

/// What a process has used.
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
    /// Fails if the relay is gone.
    pub(crate) fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(format!("the relay ended ({status}); see {}", self.log()).into()),
        }
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
fn cpu_time(stat: &str) -> Result<Duration> {
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
        _ => Err("cannot read the relay's CPU time".into()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_an_odd_name() {
        let stat = "12 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 150 25 0 0 20 0 4 0 99";
        assert_eq!(cpu_time(stat).unwrap(), Duration::from_millis(1750));
        assert!(cpu_time("12 (a) S 1 2 3").is_err());
    }
}
