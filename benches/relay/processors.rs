//! Who uses the machine's processors meanwhile: what stands in the way of a higher rate.

use std::fs;

use crate::Result;
use crate::process::cpu_time;
use crate::report::{Line, Sample, Sweep, Unit};
use crate::world::World;

/// Processor time used so far, in seconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Processors {
    /// All processors together, busy or not.
    all: f64,
    busy: f64,
    /// The database server with all its processes; unknown if it is not on this machine.
    database: f64,
    /// This program, without a receiver within it.
    own: f64,
}

/// What one event cost, in microseconds of one processor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Account {
    /// The relay, or this program where it publishes or reads itself.
    program: f64,
    database: f64,
    /// Everything else: the broker, the kernel's own work, and this program where it only measures.
    rest: f64,
    /// The share of all processors that was in use.
    busy: f64,
    processors: f64,
}

impl Processors {
    pub(crate) async fn now(world: &World) -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat")?;
        let first = stat.lines().next().unwrap_or_default();
        // proc(5): user, nice, system, idle, iowait, irq, softirq, steal; guests are part of user.
        let ticks = first.split_whitespace().skip(1).take(8);
        let ticks: Vec<f64> = ticks.filter_map(|field| field.parse().ok()).collect();
        let [_, _, _, idle, waiting, ..] = ticks[..] else {
            return Err("cannot read /proc/stat".into());
        };
        let all: f64 = ticks.iter().sum();
        let own = fs::read_to_string("/proc/self/stat")?;
        Ok(Self {
            all: all / 100.0,
            busy: (all - idle - waiting) / 100.0,
            database: database(world).await?,
            own: cpu_time(&own)?.as_secs_f64() - world.place.receiver_cpu()?,
        })
    }

    /// What was used since, by event. `relay` is what the relay used, in seconds, if one worked.
    pub(crate) fn since(self, later: Self, relay: Option<f64>, events: i64) -> Account {
        let by_event = |seconds: f64| seconds * 1e6 / events as f64;
        let (all, busy) = (later.all - self.all, later.busy - self.busy);
        let database = later.database - self.database;
        let program = relay.unwrap_or(later.own - self.own);
        Account {
            program: by_event(program),
            database: by_event(database),
            rest: by_event(busy - database - program),
            busy: busy / all,
            processors: std::thread::available_parallelism().map_or(1.0, |n| n.get() as f64),
        }
    }
}

/// The postmaster is the parent of each session. What its ended children used, it has inherited.
async fn database(world: &World) -> Result<f64> {
    let row = world
        .admin
        .query_one("select pg_backend_pid()", &[])
        .await?;
    let session: i32 = row.try_get(0)?;
    let Some(postmaster) = Process::read(&session.to_string()).map(|process| process.parent) else {
        return Ok(f64::NAN);
    };
    let mut used = Process::read(&postmaster).map_or(f64::NAN, |p| p.used + p.inherited);
    for entry in fs::read_dir("/proc")? {
        let process = Process::read(&entry?.file_name().to_string_lossy());
        used += process.map_or(0.0, |process| {
            if process.parent == postmaster {
                process.used
            } else {
                0.0
            }
        });
    }
    Ok(used)
}

struct Process {
    parent: String,
    /// In seconds.
    used: f64,
    /// By children that have ended.
    inherited: f64,
}

impl Process {
    /// `None` if there is no such process (any more).
    fn read(id: &str) -> Option<Self> {
        id.parse::<u32>().ok()?;
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        let (_, fields) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        // proc(5), less the two fields before: the parent is the 4th, times of ended children the 16th and 17th.
        let ticks = |index: usize| fields.get(index)?.parse::<f64>().ok();
        Some(Self {
            parent: (*fields.get(1)?).to_owned(),
            used: cpu_time(&stat).ok()?.as_secs_f64(),
            inherited: (ticks(13)? + ticks(14)?) / 100.0,
        })
    }
}

/// One line of the table below for each thing that was measured, with its rounds.
pub(crate) fn table(
    id: &'static str,
    title: &'static str,
    about: String,
    measured: Vec<(String, Vec<Account>)>,
) -> Sweep {
    let line = |(label, rounds): (String, Vec<Account>)| {
        let sample = |unit, value: fn(&Account) -> f64| Sample::new(unit, rounds.iter().map(value));
        Line {
            label,
            cells: vec![
                sample(Unit::Microseconds, |a| a.program),
                sample(Unit::Microseconds, |a| a.database),
                sample(Unit::Microseconds, |a| a.rest),
                sample(Unit::Microseconds, Account::together),
                sample(Unit::Ratio, |a| a.busy),
                sample(Unit::PerSecond, |a| {
                    a.processors * 1e6 / (a.database + a.rest)
                }),
            ],
        }
    };
    Sweep {
        id,
        title,
        about,
        axis: "what",
        columns: [
            "publisher or relay",
            "PostgreSQL",
            "broker and everything else",
            "together",
            "processors in use",
            "rate if the publisher or relay cost nothing",
        ]
        .map(str::to_owned)
        .into(),
        lines: measured.into_iter().map(line).collect(),
        drawn: Vec::new(),
    }
}

impl Account {
    fn together(&self) -> f64 {
        self.program + self.database + self.rest
    }
}
