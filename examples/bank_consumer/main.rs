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
//! NATS_URL=nats://localhost cargo run --example bank_consumer -- --from nats
//! KAFKA_BROKERS=localhost:9092 cargo run --features kafka --example bank_consumer -- --from kafka
//! cargo run --example bank_consumer -- --from http --listen 127.0.0.1:8080
//! AWS_ENDPOINT_URL=http://localhost:5000 cargo run --example bank_consumer -- --from eventbridge
//! ```
//!
//! It creates its queue, stream, topic or rule and runs until it gets TERM or Ctrl-C, reads what is left there,
//! and reports. With `--report DIR` the report goes to files there: `balances.tsv` (account,
//! version, balance), `events.tsv` (id, times delivered) and `summary` (one `name value` a line;
//! while it runs, `progress` has the same form).

mod eventbridge;
mod http;
#[cfg(feature = "kafka")]
mod kafka;
mod nats;
mod rabbitmq;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Parser;
use cloudevents::{AttributesReader, Data, Event};
use jiff::Timestamp;
use serde::Deserialize;
use tokio::signal::unix::{SignalKind, signal};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Rebuilds bank balances from `bank.account.changed` events.
#[derive(Parser)]
struct Args {
    /// Where events come from.
    #[arg(long, value_enum, default_value = "rabbitmq")]
    from: From,
    /// Topic exchange, NATS stream, Kafka topic or event bus that events are published to; created if it does not exist.
    #[arg(long, default_value = "events")]
    exchange: String,
    /// Queue, NATS consumer, Kafka consumer group or SQS queue to read; created if it does not exist.
    #[arg(long, default_value = "bank")]
    queue: String,
    /// Routing keys the queue is interested in.
    #[arg(long, default_value = "bank.#")]
    binding: String,
    /// Address to take events at, with `--from http`.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: String,
    /// Folder for the report; without it, the summary is printed.
    #[arg(long)]
    report: Option<PathBuf>,
}

/// Kinds of sources.
#[derive(Clone, Copy, clap::ValueEnum)]
enum From {
    #[value(name = "rabbitmq")]
    RabbitMq,
    Nats,
    #[cfg(feature = "kafka")]
    Kafka,
    #[value(name = "eventbridge")]
    EventBridge,
    Http,
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
fn structured(content_type: Option<&str>, body: &[u8]) -> Result<Event> {
    let content_type = content_type.unwrap_or_default();
    if !content_type.starts_with("application/cloudevents+json") {
        return Err(format!("content type `{content_type}` is not a CloudEvent").into());
    }
    Ok(serde_json::from_slice(body)?)
}

/// Writes a file so that a reader sees the old content or the new one, never half of it.
fn replace(path: &Path, text: &str) -> Result<()> {
    let draft = path.with_extension("new");
    fs::write(&draft, text)?;
    fs::rename(draft, path)?;
    Ok(())
}

/// Where events come from.
enum Source {
    RabbitMq(rabbitmq::Queue),
    Nats(nats::Consumer),
    #[cfg(feature = "kafka")]
    Kafka(kafka::Consumer),
    EventBridge(eventbridge::Consumer),
    Http(http::Service),
}

impl Source {
    async fn open(args: &Args) -> Result<Self> {
        let variable = |name: &str| {
            std::env::var(name).map_err(|_| format!("set {name} to the broker's address"))
        };
        Ok(match &args.from {
            From::RabbitMq => {
                Self::RabbitMq(rabbitmq::Queue::open(&variable("AMQP_URL")?, args).await?)
            }
            From::Nats => Self::Nats(nats::Consumer::open(&variable("NATS_URL")?, args).await?),
            #[cfg(feature = "kafka")]
            From::Kafka => {
                Self::Kafka(kafka::Consumer::open(&variable("KAFKA_BROKERS")?, args).await?)
            }
            From::EventBridge => {
                let endpoint = variable("AWS_ENDPOINT_URL")?;
                Self::EventBridge(eventbridge::Consumer::open(&endpoint, args).await?)
            }
            From::Http => Self::Http(http::Service::open(&args.listen).await?),
        })
    }

    /// The next event. Dropping the future loses none.
    async fn next(&mut self) -> Result<Event> {
        match self {
            Self::RabbitMq(source) => source.next().await,
            Self::Nats(source) => source.next().await,
            #[cfg(feature = "kafka")]
            Self::Kafka(source) => source.next().await,
            Self::EventBridge(source) => source.next().await,
            Self::Http(source) => source.next().await,
        }
    }

    /// The event is taken into account.
    fn taken(&mut self) {
        match self {
            Self::RabbitMq(source) => source.taken(),
            Self::Nats(source) => source.taken(),
            #[cfg(feature = "kafka")]
            Self::Kafka(source) => source.taken(),
            Self::EventBridge(source) => source.taken(),
            Self::Http(source) => source.taken(),
        }
    }

    /// Tells the broker about all that is taken into account.
    async fn acknowledge(&mut self) -> Result<()> {
        match self {
            Self::RabbitMq(source) => source.acknowledge().await,
            Self::Nats(source) => source.acknowledge().await,
            #[cfg(feature = "kafka")]
            Self::Kafka(source) => source.acknowledge(),
            Self::EventBridge(source) => source.acknowledge().await,
            // Each event is answered by itself.
            Self::Http(_) => Ok(()),
        }
    }

    /// Events that wait somewhere.
    async fn waiting(&mut self) -> Result<u64> {
        match self {
            Self::RabbitMq(source) => source.waiting().await,
            Self::Nats(source) => source.waiting().await,
            #[cfg(feature = "kafka")]
            Self::Kafka(source) => source.waiting().await,
            Self::EventBridge(source) => source.waiting().await,
            Self::Http(_) => Ok(0),
        }
    }
}

/// Reads until told to stop and nothing waits.
async fn consume(source: &mut Source, args: &Args, bank: &mut Bank) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    let mut stopping = false;
    let mut last_delivery = Instant::now();

    loop {
        tokio::select! {
            event = source.next() => {
                bank.apply(&event?, Timestamp::now())?;
                source.taken();
                last_delivery = Instant::now();
            }
            _ = terminate.recv() => stopping = true,
            _ = interrupt.recv() => stopping = true,
            _ = tick.tick() => {
                source.acknowledge().await?;
                if let Some(folder) = &args.report {
                    replace(&folder.join("progress"), &bank.progress())?;
                }
                let quiet = last_delivery.elapsed() > Duration::from_millis(250);
                if stopping && quiet && source.waiting().await? == 0 {
                    return Ok(());
                }
            }
        }
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let mut source = Source::open(&args).await?;
    let mut bank = Bank::default();
    consume(&mut source, &args, &mut bank).await?;
    match &args.report {
        Some(folder) => bank.write_report(folder)?,
        None => print!("{}", bank.summary()),
    }
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
