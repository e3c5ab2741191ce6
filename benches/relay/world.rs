//! The servers, and everything a measurement needs of them.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use outrigger::store::postgres::{ConnectSettings, Database, Mapping, OutboxSettings};
use tokio_postgres::Client;
use url::Url;

use crate::outbox::{Outbox, connect};
use crate::place::{Place, SOURCE, SinkName};
use crate::process::Relay;
use crate::sizes::Sizes;
use crate::{Args, Result};

/// Settings of a relay, by variable, that are not the defaults.
pub(crate) type Settings<'a> = &'a [(&'a str, &'a str)];

/// Everything a measurement needs.
pub(crate) struct World {
    pub(crate) sizes: Sizes,
    pub(crate) sink: SinkName,
    pub(crate) place: Place,
    pub(crate) postgres_version: String,
    pub(crate) pgbench: PathBuf,
    pub(crate) work: PathBuf,
    /// On a database of its own, so that it does not count as traffic of the measured ones.
    pub(crate) admin: Client,
    /// The strict drain's rate, once measured: what the loads are parts of.
    pub(crate) drain_rate: Option<f64>,
    outrigger: PathBuf,
    database_url: Url,
    databases: usize,
    relays: usize,
}

impl World {
    pub(crate) async fn open(args: &Args, work: PathBuf) -> Result<Self> {
        let database_url = Url::parse(&args.database_url)?;
        let admin = connect(&database_url).await?;
        let row = admin.query_one("show server_version", &[]).await?;
        // What follows the number names the packager.
        let version: String = row.try_get(0)?;
        Ok(Self {
            sizes: Sizes::new(args.quick, args.rounds),
            sink: args.sink,
            place: Place::open(args.sink, &args.address).await?,
            postgres_version: version.split(' ').next().unwrap_or_default().to_owned(),
            pgbench: args.pgbench.clone(),
            work,
            admin,
            drain_rate: None,
            outrigger: args.outrigger.clone(),
            database_url,
            databases: 0,
            relays: 0,
        })
    }

    /// A new database with an empty outbox, so that nothing is left of the measurement before.
    pub(crate) async fn outbox(&mut self) -> Result<Outbox> {
        self.databases += 1;
        let name = format!("bench_{}", self.databases);
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

    /// Starts a relay with the defaults, except for these settings.
    pub(crate) fn relay(&mut self, outbox: &Outbox, settings: Settings<'_>) -> Result<Relay> {
        self.relay_at(&outbox.url, settings)
    }

    /// The same with another way to the database.
    pub(crate) fn relay_at(&mut self, database: &Url, settings: Settings<'_>) -> Result<Relay> {
        self.relays += 1;
        let log = self.work.join(format!("relay-{}.log", self.relays));
        let spawned_at = jiff::Timestamp::now();
        let mut command = Command::new(&self.outrigger);
        command
            .arg("run")
            .env_clear()
            .env("OUTRIGGER_DATABASE_URL", database.as_str())
            .env("OUTRIGGER_EVENT_SOURCE", SOURCE)
            .envs(self.place.settings())
            .env("OUTRIGGER_RELAY_NAME", format!("relay-{}", self.relays))
            .envs(settings.iter().copied());
        // Several relays of one machine would fight for a fixed port.
        if outrigger::settings::SETTINGS
            .iter()
            .any(|setting| setting.key == "admin.listen")
        {
            command.env("OUTRIGGER_ADMIN_LISTEN", "127.0.0.1:0");
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()?;
        Ok(Relay::new(child, log, spawned_at))
    }

    /// Makes ready for the next part after one has failed.
    pub(crate) async fn recover(&mut self) -> Result<()> {
        self.place.reopen().await
    }

    /// Up to where the server has written its log, in bytes.
    pub(crate) async fn wal(&self) -> Result<f64> {
        let sql = "select (pg_current_wal_insert_lsn() - '0/0')::float8";
        Ok(self.admin.query_one(sql, &[]).await?.try_get(0)?)
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
