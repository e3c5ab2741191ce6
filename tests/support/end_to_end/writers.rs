//! Services at work: transactions that change aggregates under their row locks and write an event with each change.
//! The ledger is a table written in the same transactions, so it holds exactly what was committed, also when a
//! server dies during a COMMIT and nobody is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IteratorRandom as _;
use rand::{Rng as _, SeedableRng as _};
use tokio::task::JoinSet;
use tokio_postgres::{Client, Error, NoTls, Statement};

use super::outbox::Outbox;
use super::wait::{PATIENCE, until};

/// Aggregates and ledger.
const TABLES: &str = "create table if not exists aggregates (key text primary key, version bigint not null default 1);
    create table if not exists ledger (id uuid primary key, key text not null, version bigint not null, \
      seq bigint not null, data text not null)";

/// One change. The outbox row is inserted after the lock on its aggregate is taken.
pub const CHANGE: &str = "with changed as (
        insert into aggregates (key) values ($1) on conflict (key) do update set version = aggregates.version + 1
        returning key, version),
    event as (
        insert into outbox (type, key, data)
        select 'changed', key, jsonb_build_object('key', key, 'version', version, 'padding', $2::text) from changed
        returning id, seq, data)
    insert into ledger select id, key, version, seq, data::text from changed, event";

/// How much to write.
#[derive(Debug, Clone)]
pub struct Load {
    pub writers: u64,
    pub keys: u32,
    /// Stop after about this many events; `None`: when told.
    pub events: Option<u64>,
    /// Between two transactions of one writer.
    pub pause: Duration,
    pub seed: u64,
}

/// Writers at work.
pub struct Writers {
    tasks: JoinSet<()>,
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicU64>,
}

impl Writers {
    pub async fn prepare(outbox: &Outbox) {
        outbox.run(TABLES).await;
    }

    pub async fn start(outbox: &Outbox, load: Load) -> Self {
        Self::prepare(outbox).await;
        let stop = Arc::new(AtomicBool::new(false));
        let committed = Arc::new(AtomicU64::new(0));
        let mut tasks = JoinSet::new();
        for number in 0..load.writers {
            let writer = Writer {
                url: outbox.postgres.url(&outbox.database),
                load: load.clone(),
                random: StdRng::seed_from_u64(load.seed.wrapping_add(number)),
                stop: stop.clone(),
                committed: committed.clone(),
            };
            tasks.spawn(writer.run());
        }
        Self {
            tasks,
            stop,
            committed,
        }
    }

    pub fn committed(&self) -> u64 {
        self.committed.load(Ordering::Relaxed)
    }

    /// Waits until `more` further events are committed.
    pub async fn await_more(&self, more: u64) {
        let wanted = self.committed() + more;
        until(
            &format!("{more} more events are committed"),
            PATIENCE,
            || async {
                let committed = self.committed();
                if committed >= wanted {
                    Ok(())
                } else {
                    Err(format!("{committed} of {wanted}"))
                }
            },
        )
        .await;
    }

    /// Ends them after their transactions.
    pub async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.finish().await;
    }

    /// Waits until they have written everything.
    pub async fn finish(mut self) {
        while let Some(result) = self.tasks.join_next().await {
            result.expect("a writer");
        }
    }
}

struct Writer {
    url: String,
    load: Load,
    random: StdRng,
    stop: Arc<AtomicBool>,
    committed: Arc<AtomicU64>,
}

impl Writer {
    async fn run(mut self) {
        while !self.done() {
            // The server may be away; then a new connection is tried. COMMITs of unknown fate are in the ledger or not.
            if self.session().await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    fn done(&self) -> bool {
        let enough = |events| self.committed.load(Ordering::Relaxed) >= events;
        self.stop.load(Ordering::Relaxed) || self.load.events.is_some_and(enough)
    }

    async fn session(&mut self) -> Result<(), Error> {
        let (client, connection) = tokio_postgres::connect(&self.url, NoTls).await?;
        let driver = tokio::spawn(connection);
        let result = self.transactions(&client).await;
        driver.abort();
        result
    }

    async fn transactions(&mut self, client: &Client) -> Result<(), Error> {
        let change = client.prepare(CHANGE).await?;
        while !self.done() {
            self.transaction(client, &change).await?;
            tokio::time::sleep(self.load.pause).await;
        }
        Ok(())
    }

    /// Some changes to different aggregates, locked in one order, so that writers never deadlock. Some are rolled back.
    async fn transaction(&mut self, client: &Client, change: &Statement) -> Result<(), Error> {
        let changes = self.random.random_range(1..=3);
        let keys = 0..self.load.keys;
        let mut keys = keys.choose_multiple(&mut self.random, changes);
        keys.sort_unstable();
        let give_up = self.random.random_ratio(1, 20);
        let padding = "x".repeat(self.random.random_range(0..400));
        client.batch_execute("begin").await?;
        for key in &keys {
            let key = format!("k{key}");
            client.execute(change, &[&key, &padding]).await?;
        }
        if give_up {
            return client.batch_execute("rollback").await;
        }
        client.batch_execute("commit").await?;
        self.committed
            .fetch_add(keys.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}
