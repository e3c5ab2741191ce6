//! Outboxes: one database each, filled with a backlog, waited for, and looked at afterwards.

use std::time::{Duration, Instant};

use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls, Row};
use url::Url;

use crate::Result;
use crate::process::Relay;

/// Length of the text in the payload: with the envelope around it, an event has about 1 KiB.
pub(crate) const TEXT: usize = 814;
/// What surrounds the text in a structured message, about.
const AROUND: usize = 206;
/// Texts begin at one of so many places of a longer one.
const SHIFTS: usize = 64;
/// Pause between two looks at the outbox.
const LOOK: Duration = Duration::from_millis(10);

/// Size of a structured message whose payload holds a text of this length.
pub(crate) fn message_size(text: usize) -> usize {
    text + AROUND
}

pub(crate) async fn connect(url: &Url) -> Result<Client> {
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

/// The rows of a backlog.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seed {
    pub(crate) rows: i64,
    pub(crate) keys: i64,
    /// Length of the text in each payload.
    pub(crate) text: usize,
}

/// The rates at which rows were published, by the times in the rows.
pub(crate) struct Rates {
    pub(crate) all: f64,
    /// Of the last tenth in relation to the first.
    pub(crate) last_to_first: f64,
    /// Rows marked by one statement, on average.
    pub(crate) per_settle: f64,
}

impl Outbox {
    /// Another connection.
    pub(crate) async fn connect(&self) -> Result<Client> {
        connect(&self.url).await
    }

    pub(crate) async fn row(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Row> {
        Ok(self.client.query_one(sql, params).await?)
    }

    /// Writes a backlog, numbered from 1 in a new outbox, and leaves the server nothing to do for it later.
    pub(crate) async fn seed(&self, seed: Seed) -> Result<()> {
        // On a connection that ends: what it counted is then in the server's statistics, before anything is measured.
        let client = self.connect().await?;
        insert(&client, seed).await?;
        client.batch_execute("vacuum (analyze) outbox").await?;
        client.batch_execute("checkpoint").await?;
        drop(client);
        self.await_alone().await
    }

    /// Writes a backlog in one transaction, under the eyes of relays.
    pub(crate) async fn insert(&self, seed: Seed) -> Result<()> {
        insert(&self.client, seed).await
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
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Waits until no row up to this one is pending. Asks for the last one first, which costs next to nothing.
    pub(crate) async fn await_all(
        &self,
        last: i64,
        relay: &mut Relay,
        limit: Duration,
    ) -> Result<()> {
        let began = Instant::now();
        self.await_row(last, relay, limit).await?;
        let pending = "select exists (select from outbox where published_at is null and seq <= $1)";
        while self.row(pending, &[&last]).await?.try_get(0)? {
            relay.check()?;
            if began.elapsed() > limit {
                return Err(format!("rows were still pending after {limit:?}").into());
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Waits until nobody but us is connected: what the others counted is then in the server's statistics. Whoever
    /// just holds a snapshot counts nothing.
    pub(crate) async fn await_alone(&self) -> Result<()> {
        let others = "select count(*) from pg_stat_activity where datname = current_database() \
                      and backend_type = 'client backend' and pid <> pg_backend_pid() \
                      and state <> 'idle in transaction'";
        let began = Instant::now();
        while self.row(others, &[]).await?.try_get::<_, i64>(0)? > 0 {
            if began.elapsed() > Duration::from_secs(10) {
                return Err("connections of a relay that ended are still open after 10 s".into());
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// How fast the rows above `after` up to `up_to` were published. A batch is marked at one time, so each rate counts the rows that came
    /// after its first moment.
    pub(crate) async fn rates(&self, after: i64, up_to: i64) -> Result<Rates> {
        let row = self
            .row(
                "with o as (select extract(epoch from published_at)::float8 as at, \
                                   ntile(10) over (order by published_at) as tenth \
                            from outbox where seq > $1 and seq <= $2), \
                 f as (select tenth, min(at) as first, max(at) as last from o group by tenth), \
                 r as (select f.tenth, count(*) filter (where o.at > f.first) / nullif(f.last - f.first, 0) as rate \
                       from f join o using (tenth) group by f.tenth, f.first, f.last) \
                 select (select count(*) filter (where at > (select min(at) from o)) / nullif(max(at) - min(at), 0) from o), \
                        (select rate from r where tenth = 10) / (select nullif(rate, 0) from r where tenth = 1), \
                        (select count(*)::float8 / count(distinct at) from o)",
                &[&after, &up_to],
            )
            .await?;
        let rate: Option<f64> = row.try_get(0)?;
        let last_to_first: Option<f64> = row.try_get(1)?;
        Ok(Rates {
            all: rate.ok_or("all rows were published in one batch; measure more rows")?,
            last_to_first: last_to_first.unwrap_or(f64::NAN),
            per_settle: row.try_get(2)?,
        })
    }
}

async fn insert(client: &Client, seed: Seed) -> Result<()> {
    let statement = "insert into outbox (type, key, data) \
         select 'order.changed', 'customer-' || n % $2::int8, \
                jsonb_build_object('number', n, 'text', substr($4::text, 1 + (n % $5::int8)::int4, $3::int4)) \
         from generate_series(1::int8, $1::int8) n";
    let text = hardly_compressible(seed.text + SHIFTS);
    let length = i32::try_from(seed.text)?;
    let shifts = SHIFTS as i64;
    client
        .execute(
            statement,
            &[&seed.rows, &seed.keys, &length, &text, &shifts],
        )
        .await?;
    Ok(())
}

/// Hexadecimal digits in no order, the same in each run: the database stores large values compressed, and a repeated
/// letter would shrink to nothing.
fn hardly_compressible(length: usize) -> String {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut text = String::with_capacity(length + 16);
    while text.len() < length {
        // Marsaglia's xorshift.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        text += &format!("{state:016x}");
    }
    text.truncate(length);
    text
}
