//! A bank that learns every balance from events alone.
//!
//! It reads the events which `scripts/demo` writes, never looks at the database, and checks what
//! a consumer can check: every event is a valid CloudEvent (decoded by the official SDK, so not
//! by the code that encoded it), the events of an account arrive in order, and duplicates do no
//! harm because they are recognised by `source` and `id`. This is how "at least once" becomes
//! exactly-once *effects*; a real service keeps the ids it has seen in its own database.
//!
//! ```text
//! AMQP_URL=amqp://guest:guest@localhost cargo run --example bank_consumer
//! ```
//!
//! It declares its queue and runs until it gets TERM or Ctrl-C, reads what is left in the queue,
//! and reports. With `--report DIR` the report goes to files there: `balances.tsv` (account,
//! version, balance), `events.tsv` (id, times delivered) and `summary` (one `name value` a line;
//! while it runs, `progress` has the same form).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Parser;
use cloudevents::{AttributesReader, Data, Event};
use futures_util::StreamExt;
use jiff::Timestamp;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicQosOptions, ExchangeDeclareOptions,
    QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties, ExchangeKind};
use serde::Deserialize;
use tokio::signal::unix::{SignalKind, signal};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Rebuilds bank balances from `bank.account.changed` events.
#[derive(Parser)]
struct Args {
    /// Topic exchange the events are published to; declared if it does not exist.
    #[arg(long, default_value = "events")]
    exchange: String,
    /// Queue to read; declared if it does not exist.
    #[arg(long, default_value = "bank")]
    queue: String,
    /// Routing keys the queue is interested in.
    #[arg(long, default_value = "bank.#")]
    binding: String,
    /// Folder for the report; without it, the summary is printed.
    #[arg(long)]
    report: Option<PathBuf>,
}

/// What an event carries.
#[derive(Deserialize)]
struct Change {
    account: u64,
    delta: i64,
    /// Counts the changes of the account: 1, 2, 3, ...
    version: u64,
    /// When the row was written, just before its transaction committed.
    written_at: Timestamp,
}

#[derive(Default)]
struct Account {
    version: u64,
    balance: i64,
}

#[derive(Default)]
struct Bank {
    accounts: HashMap<u64, Account>,
    /// How often each event came, by source and id.
    seen: HashMap<(String, String), u32>,
    duplicated: u64,
    out_of_order: u64,
    /// Row written to event received, in microseconds, of first deliveries.
    latencies: Vec<u64>,
    arrivals: Option<(Instant, Instant)>,
}

impl Bank {
    /// Takes one delivered event into account.
    fn apply(&mut self, event: &Event, received: Timestamp) -> Result<()> {
        let now = Instant::now();
        self.arrivals = Some((self.arrivals.map_or(now, |(first, _)| first), now));

        match self.seen.entry((event.source().clone(), event.id().into())) {
            Entry::Occupied(mut again) => {
                *again.get_mut() += 1;
                self.duplicated += 1;
                return Ok(());
            }
            Entry::Vacant(first) => first.insert(1),
        };

        let change = change_of(event)?;
        let account = self.accounts.entry(change.account).or_default();
        if change.version != account.version + 1 {
            self.out_of_order += 1;
        }
        account.version = account.version.max(change.version);
        account.balance += change.delta;

        let latency = received.duration_since(change.written_at);
        self.latencies
            .push(u64::try_from(latency.as_micros()).unwrap_or(0));
        Ok(())
    }

    /// One `name value` a line: `scripts/demo` reads it, and so can people.
    fn summary(&mut self) -> String {
        self.latencies.sort_unstable();
        let active = self
            .arrivals
            .map_or(Duration::ZERO, |(first, last)| last - first);
        format!(
            "{}active_ms {}\nlatency_p50_us {}\nlatency_p99_us {}\nlatency_max_us {}\n",
            self.progress(),
            active.as_millis(),
            self.latency(0.5),
            self.latency(0.99),
            self.latency(1.0),
        )
    }

    fn progress(&self) -> String {
        format!(
            "delivered {}\nduplicated {}\nout_of_order {}\naccounts {}\n",
            self.seen.len(),
            self.duplicated,
            self.out_of_order,
            self.accounts.len(),
        )
    }

    /// The smallest latency that at least this share of the events kept. Sorted by now.
    fn latency(&self, share: f64) -> u64 {
        let rank = (self.latencies.len() as f64 * share).ceil() as usize;
        self.latencies
            .get(rank.saturating_sub(1))
            .copied()
            .unwrap_or(0)
    }

    fn write_report(&mut self, folder: &Path) -> Result<()> {
        let mut balances = String::new();
        for (number, account) in &self.accounts {
            writeln!(
                balances,
                "{number}\t{}\t{}",
                account.version, account.balance
            )?;
        }
        let mut events = String::new();
        for ((_, id), times) in &self.seen {
            writeln!(events, "{id}\t{times}")?;
        }
        fs::write(folder.join("balances.tsv"), balances)?;
        fs::write(folder.join("events.tsv"), events)?;
        replace(&folder.join("summary"), &self.summary())
    }
}

/// The change inside an event, or why it is not one.
fn change_of(event: &Event) -> Result<Change> {
    if event.ty() != "bank.account.changed" {
        return Err(format!("unexpected type `{}`", event.ty()).into());
    }
    let Some(Data::Json(data)) = event.data() else {
        return Err("the event has no JSON data".into());
    };
    let change = Change::deserialize(data)?;
    let key = event
        .extension("partitionkey")
        .map(ToString::to_string)
        .unwrap_or_default();
    if key != change.account.to_string() {
        return Err(format!("partition key `{key}` for account {}", change.account).into());
    }
    Ok(change)
}

/// Decodes a message in CloudEvents structured mode.
fn decode(delivery: &Delivery) -> Result<Event> {
    let content_type = delivery
        .properties
        .content_type()
        .as_ref()
        .map_or("", |text| text.as_str());
    if !content_type.starts_with("application/cloudevents+json") {
        return Err(format!("content type `{content_type}` is not a CloudEvent").into());
    }
    Ok(serde_json::from_slice(&delivery.data)?)
}

/// Writes a file so that a reader sees the old content or the new one, never half of it.
fn replace(path: &Path, text: &str) -> Result<()> {
    let draft = path.with_extension("new");
    fs::write(&draft, text)?;
    fs::rename(draft, path)?;
    Ok(())
}

/// Declares the queue and everything it needs, so that no event goes nowhere.
async fn declare(channel: &Channel, args: &Args) -> Result<()> {
    let durable = ExchangeDeclareOptions {
        durable: true,
        ..Default::default()
    };
    channel
        .exchange_declare(
            args.exchange.as_str().into(),
            ExchangeKind::Topic,
            durable,
            FieldTable::default(),
        )
        .await?;
    let durable = QueueDeclareOptions {
        durable: true,
        ..Default::default()
    };
    channel
        .queue_declare(args.queue.as_str().into(), durable, FieldTable::default())
        .await?;
    channel
        .queue_bind(
            args.queue.as_str().into(),
            args.exchange.as_str().into(),
            args.binding.as_str().into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        )
        .await?;
    Ok(())
}

/// Messages waiting in the queue that were not handed to this consumer yet.
async fn waiting(channel: &Channel, queue: &str) -> Result<u32> {
    let only_look = QueueDeclareOptions {
        passive: true,
        ..Default::default()
    };
    let state = channel
        .queue_declare(queue.into(), only_look, FieldTable::default())
        .await?;
    Ok(state.message_count())
}

/// Reads until told to stop and the queue is empty.
async fn consume(channel: &Channel, args: &Args, bank: &mut Bank) -> Result<()> {
    let mut deliveries = channel
        .basic_consume(
            args.queue.as_str().into(),
            "bank_consumer".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        )
        .await?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    let mut stopping = false;
    let mut last_delivery = Instant::now();
    let mut unacknowledged = None;

    loop {
        tokio::select! {
            delivery = deliveries.next() => {
                let delivery = delivery.ok_or("the broker cancelled the consumer")??;
                bank.apply(&decode(&delivery)?, Timestamp::now())?;
                last_delivery = Instant::now();
                unacknowledged = Some(delivery.acker);
            }
            _ = terminate.recv() => stopping = true,
            _ = interrupt.recv() => stopping = true,
            _ = tick.tick() => {
                // One acknowledgement covers everything before it.
                if let Some(acker) = unacknowledged.take() {
                    acker.ack(BasicAckOptions { multiple: true }).await?;
                }
                if let Some(folder) = &args.report {
                    replace(&folder.join("progress"), &bank.progress())?;
                }
                let quiet = last_delivery.elapsed() > Duration::from_millis(250);
                if stopping && quiet && waiting(channel, &args.queue).await? == 0 {
                    return Ok(());
                }
            }
        }
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let url = std::env::var("AMQP_URL").map_err(|_| "set AMQP_URL to the broker's address")?;

    let connection = Connection::connect(&url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    // Enough to stay busy between two acknowledgements, and a limit all the same.
    channel
        .basic_qos(10_000, BasicQosOptions::default())
        .await?;
    declare(&channel, &args).await?;

    let mut bank = Bank::default();
    consume(&channel, &args, &mut bank).await?;
    match &args.report {
        Some(folder) => bank.write_report(folder)?,
        None => print!("{}", bank.summary()),
    }
    connection.close(200, "done".into()).await?;
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event(id: &str, account: u64, version: u64, delta: i64) -> Event {
        serde_json::from_value(json!({
            "specversion": "1.0", "id": id, "source": "/bank", "type": "bank.account.changed",
            "partitionkey": account.to_string(), "datacontenttype": "application/json",
            "data": {
                "account": account, "version": version, "delta": delta,
                "written_at": "2026-01-02T03:04:05.000100+00:00",
            },
        }))
        .unwrap()
    }

    fn received() -> Timestamp {
        "2026-01-02T03:04:05.000400Z".parse().unwrap()
    }

    #[test]
    fn balances_grow_from_events_and_duplicates_do_no_harm() {
        let mut bank = Bank::default();
        for (id, account, version, delta) in [
            ("a", 1, 1, 50),
            ("b", 2, 1, 7),
            ("c", 1, 2, -20),
            ("a", 1, 1, 50),
        ] {
            bank.apply(&event(id, account, version, delta), received())
                .unwrap();
        }
        assert_eq!(bank.accounts[&1].balance, 30);
        assert_eq!(bank.accounts[&2].balance, 7);
        assert_eq!((bank.duplicated, bank.out_of_order), (1, 0));
        assert_eq!(bank.seen.len(), 3);
        assert_eq!(bank.latencies, [300, 300, 300]);
    }

    #[test]
    fn an_overtaken_event_and_a_gap_are_noticed() {
        let mut bank = Bank::default();
        for (id, version) in [("a", 1), ("c", 3), ("b", 2), ("d", 4)] {
            bank.apply(&event(id, 1, version, 1), received()).unwrap();
        }
        assert_eq!(bank.out_of_order, 2);
        assert_eq!(bank.accounts[&1].version, 4);
    }

    #[test]
    fn an_event_under_a_foreign_key_is_refused() {
        let mut wrong = event("a", 1, 1, 1);
        wrong.set_extension("partitionkey", "2");
        let refused = Bank::default().apply(&wrong, received()).unwrap_err();
        assert!(
            refused.to_string().contains("partition key `2`"),
            "{refused}"
        );
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        let mut bank = Bank {
            latencies: (1..=200).rev().collect(),
            ..Bank::default()
        };
        let summary = bank.summary();
        assert!(summary.contains("latency_p50_us 100\n"), "{summary}");
        assert!(summary.contains("latency_p99_us 198\n"), "{summary}");
        assert!(summary.contains("latency_max_us 200\n"), "{summary}");
        assert!(Bank::default().summary().contains("latency_p50_us 0\n"));
    }
}
