//! The relay as users run it, with everything counted that it says to PostgreSQL and RabbitMQ.

use std::sync::Arc;

use tokio::sync::OnceCell;

use crate::counting_proxy::{CountingProxy, Counts, Protocol};
use crate::support::{PATIENCE, Relay, Servers, Stage, until};
use crate::{at_least, at_most};

/// Enough that rows are left to read when counting ends: a relay that has nothing to read polls, as
/// often as time allows.
const ROWS: i64 = 40_000;
const COUNTED: i64 = 20_000;
/// Rows in memory, read and not yet settled: the default of OUTRIGGER_RELAY_MAX_IN_FLIGHT.
const IN_FLIGHT: u64 = 4_000;
/// Rows of one read: the default of OUTRIGGER_RELAY_BATCH_SIZE. A read waits until there is room for all of them.
const PER_READ: u64 = 1_000;
/// Rows of one settle, at least, on average. A lane's batch has up to 200 and is worth a statement of its own.
const PER_SETTLE: u64 = 100;
/// Statements that come once: looking at the table, registering, taking the partitions, and reading before the first row
/// is there.
const AT_START: u64 = 40;
/// Frames of a message: method, header, body. None is split: a frame takes 128 KiB.
const FRAMES: u64 = 3;
/// Reads in all their forms, settles and ticks, on two connections.
const PREPARED: u64 = 2 * 12;
/// Frames that open the connection and its channels, and heartbeats.
const FRAMES_AT_START: u64 = 100;

async fn servers() -> Arc<Servers> {
    static SERVERS: OnceCell<Arc<Servers>> = OnceCell::const_new();
    SERVERS.get_or_init(Servers::start).await.clone()
}

/// A relay whose every word is counted.
struct Counted {
    stage: Stage,
    postgres: CountingProxy,
    rabbitmq: CountingProxy,
    relay: Relay,
}

impl Counted {
    async fn start(rows: i64, settings: &[(&str, &str)]) -> Self {
        let stage = Stage::new(servers().await).await;
        stage
            .run(&format!(
                "insert into outbox (type, key, data) \
                 select 't', 'k' || n % 10000, jsonb_build_object('n', n) from generate_series(1, {rows}) n"
            ))
            .await;
        let proxy =
            |protocol, port: u16| CountingProxy::start(protocol, format!("127.0.0.1:{port}"));
        let ports = [stage.servers.postgres.port(), stage.servers.rabbitmq.port()];
        let postgres = proxy(Protocol::Postgres, ports[0]).await.unwrap();
        let rabbitmq = proxy(Protocol::Amqp, ports[1]).await.unwrap();
        let through =
            |url: String, from: u16, to: u16| url.replace(&format!(":{from}/"), &format!(":{to}/"));
        let database = through(
            stage.servers.postgres.url(&stage.database),
            ports[0],
            postgres.port(),
        );
        let broker = through(stage.servers.rabbitmq.url(), ports[1], rabbitmq.port());
        let mut settings_of_relay = stage
            .settings()
            .set("DATABASE_URL", database)
            .set("RABBITMQ_URL", broker);
        for (name, value) in settings {
            settings_of_relay = settings_of_relay.set(name, value);
        }
        let relay = settings_of_relay.start();
        Self {
            stage,
            postgres,
            rabbitmq,
            relay,
        }
    }

    async fn await_published(&self, up_to: i64) {
        let left =
            format!("select count(*) from outbox where seq <= {up_to} and published_at is null");
        self.stage.await_count("rows are published", &left, 0).await;
    }
}

fn settles(counts: &Counts) -> u64 {
    counts.statements_with("set \"published_at\" =")
}

fn reads(counts: &Counts) -> u64 {
    counts.statements_with("pg_current_snapshot()")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_takes_few_statements_and_frames() {
    let counted = Counted::start(ROWS, &[]).await;
    counted.await_published(COUNTED).await;
    let [database, broker] = [&counted.postgres, &counted.rabbitmq].map(CountingProxy::counts);
    // Counted after the rest, so that what was said until then concerns at most these.
    let done = "select count(*) from outbox where published_at is not null";
    let settled = counted.stage.count(done).await as u64;

    at_most(
        "reads",
        reads(&database),
        (settled + IN_FLIGHT) / PER_READ + 5,
    );
    // Each read asks once who may still commit late.
    at_most(
        "looks at locks",
        database.statements_with("pg_locks"),
        reads(&database) + 1,
    );
    at_least(
        "rows per settle",
        COUNTED as u64 / settles(&database).max(1),
        PER_SETTLE,
    );
    at_least("settles", settles(&database), 1);
    let ticks = database.statements_with("with me as");
    let sweeps = database.statements_with("o.\"seq\" <= $2");
    // What the admin listener tells comes from looks on a slow clock, however long the drain takes.
    let looks =
        database.statements_with("with due as") + database.statements_with("pg_prepared_xacts");
    at_least("looks for the admin listener", looks, 1);
    let other = database.all_statements()
        - 2 * reads(&database)
        - settles(&database)
        - ticks
        - sweeps
        - looks;
    at_most(
        &format!("statements that come once: {:#?}", database.statements),
        other,
        AT_START,
    );
    // Each of the frequent statements is prepared once a connection, which is a round trip more.
    at_most("statements prepared", database.prepared, PREPARED);
    at_most(
        "round trips",
        database.round_trips,
        database.all_statements() + database.prepared,
    );
    at_most("connections to the database", database.connections, 4);

    let published = settled + IN_FLIGHT;
    at_most("messages", broker.publishes, published);
    at_least("messages", broker.publishes, COUNTED as u64);
    at_most(
        "frames",
        broker.frames,
        FRAMES * broker.publishes + FRAMES_AT_START,
    );
    at_most("connections to the broker", broker.connections, 1);
    counted.relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn batch_mode_puts_many_events_into_a_message() {
    let counted = Counted::start(COUNTED, &[("EVENT_MODE", "batch")]).await;
    counted.await_published(COUNTED).await;
    let broker = counted.rabbitmq.counts();
    // Up to 100 events of one route share a message; a lane's batch of 200 makes two, and the last ones may be smaller.
    at_most("messages", broker.publishes, COUNTED as u64 / 50);
    at_least("messages", broker.publishes, COUNTED as u64 / 100);
    counted.relay.stop().await;
}

/// Ticks to look at: each is at most 0.8 s after the one before, so this covers some fallback polls (every 4 s) and
/// sweeps (every 5 s).
const TICKS: u64 = 12;

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_relay_asks_little_and_writes_nothing() {
    let counted = Counted::start(1, &[]).await;
    counted.await_published(1).await;
    let ticks = |counts: &Counts| counts.statements_with("with me as");
    let proxy = &counted.postgres;
    let await_ticks = async |wanted: u64| {
        let what = format!("tick {wanted}");
        until(&what, PATIENCE, || async {
            let seen = ticks(&proxy.counts());
            if seen >= wanted {
                Ok(())
            } else {
                Err(seen.to_string())
            }
        })
        .await;
        proxy.counts()
    };
    // The reading that follows the first row is over a few ticks later.
    let settled = ticks(&proxy.counts());
    let before = await_ticks(settled + 4).await;
    let idle = await_ticks(ticks(&before) + TICKS).await.since(&before);

    let asked = format!("{:#?}", idle.statements);
    let others = idle.all_statements() - ticks(&idle);
    // Both follow the clock: late ticks come with fewer polls, not with more. A poll is two statements, a sweep one.
    at_most(
        &format!("statements beside {TICKS} ticks: {asked}"),
        others,
        TICKS,
    );
    at_most(
        "round trips",
        idle.round_trips,
        idle.all_statements() + idle.prepared,
    );
    // The pool opens its second when two statements first meet.
    at_most("new connections", idle.connections, 1);
    // The pool's two, the listener, and the one that tested it at the start and is closed.
    at_most("connections", proxy.counts().connections, 4);
    for (text, times) in &idle.statements {
        let lower = text.to_lowercase();
        if lower.starts_with("update outrigger.replicas ") {
            // A relay that is alone gives a sign of life once a minute, and these ticks take some ten seconds.
            at_most("signs of life", *times, 1);
            continue;
        }
        let writes = ["insert ", "update ", "delete ", "notify "]
            .iter()
            .any(|verb| lower.contains(verb));
        assert!(!writes, "an idle relay writes: {text}");
    }
    assert!(!idle.statements.is_empty());
    counted.relay.stop().await;
}
