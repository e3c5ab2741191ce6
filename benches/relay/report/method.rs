//! The page that a run writes: its name, and how its figures were measured.

/// Where a report is shown, and what it says beside its figures.
#[derive(Debug, Clone)]
pub(crate) struct Page {
    /// Of its file, its data and the folder of its pictures.
    pub(crate) name: String,
    pub(crate) title: String,
    /// Follows the introduction: where else to look.
    pub(crate) see_also: String,
    /// How it was measured.
    pub(crate) method: String,
}

impl Default for Page {
    /// That of RabbitMQ.
    fn default() -> Self {
        Self {
            name: "benchmarks".into(),
            title: "Benchmarks".into(),
            see_also: String::new(),
            method: method(&[
                IN_TURNS, PUBLISHER, SQL, DRAIN, LATENCY, WRITERS, SNAPSHOT, QUERIES, WAL, BUFFERS,
                PROCESSORS, CPU,
            ]),
        }
    }
}

impl Page {
    /// That of another sink. `publisher` says what its bare publisher does.
    pub(crate) fn of_sink(name: &str, title: &str, publisher: &str) -> Self {
        let publisher = format!("- **Bare publisher (B)**: {publisher}");
        Self {
            name: format!("benchmarks-{name}"),
            title: format!("Benchmarks: {title}"),
            see_also: " What has to do with the database and not with the sink is measured\n\
                       [with RabbitMQ](benchmarks.md)."
                .into(),
            method: method(&[
                IN_TURNS,
                &publisher,
                SQL,
                HALVES,
                DRAIN_ELSEWHERE,
                LATENCY,
                PROCESSORS,
                CPU,
            ]),
        }
    }
}

fn method(items: &[&str]) -> String {
    format!("\n## How it was measured\n\n{}\n", items.join("\n"))
}

const IN_TURNS: &str = "- **In turns**: within a round, the reference runs first and each variant of the relay after it, then the next round
  begins. A ratio is taken within a round, so what disturbs the machine for a while disturbs both sides.";

const PUBLISHER: &str = "- **Bare publisher (B)**: the AMQP client library alone, persistent, mandatory, 8 channels, 200 messages per channel, then wait for
  their confirms (fewer for large messages: at most 16 MiB in all, as the relay); the same exchange, the same kind of queue and
  messages of the same size with the same properties, no database. *Window 1* waits for each confirm.";

const SQL: &str = "- **Bare SQL (S)**: one connection reads 1,000 rows with the relay's columns and marks (or deletes) them, then the next 1,000.";

const DRAIN: &str = "- **Drain**: a backlog is written, vacuumed and checkpointed, then one relay starts. The rate is taken between the first
  row published and the last, by the times in the rows. Queue and database are new each time; nobody consumes meanwhile.";

const LATENCY: &str = "- **Latency**: from the moment the INSERT's commit returns to the receipt by a consumer. *Direct* inserts a row into a
  plain table, and publishes after the commit returned; the two take turns.";

const WRITERS: &str = "- **Writers**: pgbench, 16 connections, one INSERT per transaction, prepared; the variants take turns.";

const SNAPSHOT: &str = "- **Held snapshot**: an idle REPEATABLE READ transaction that began before the backlog was written, so no vacuum can
  remove what the relay leaves behind.";

const QUERIES: &str = "- **Queries of an idle relay** are counted on the wire, between the relay and the server, for 20 s, once what the start has
  to do is done. (The server's own statistics tell some of the start's queries much later.)";

const WAL: &str = "- **WAL** is what the server wrote between two positions. Of an idle relay: less what the same server wrote in the same
  time without one.";

const BUFFERS: &str = "- **Buffers** are those the database touched, in memory or not, with the few of the measuring connection.";

const PROCESSORS: &str = "- **Where the processors' time goes**: from /proc/stat for the machine, and from /proc of the relay, of all processes of the database
  server, and of the measuring program; the broker's part is what is left.";

const CPU: &str = "- **CPU** is user and system time of the relay process, **memory** its VmRSS and VmHWM, the program's file included.";

/// Of other sinks than RabbitMQ.
const HALVES: &str = "- **S then B**: the rate of somebody who first reads and marks all rows, as fast as S, and then publishes all, as fast as B:
  1 / (1/S + 1/B). All of them share the processors, so doing both at the same time is not much faster on a small machine.";

const DRAIN_ELSEWHERE: &str = "- **Drain**: a backlog is written, vacuumed and checkpointed, then one relay starts. The rate is taken between the first
  row published and the last, by the times in the rows. Where the events go and the database are new each time; nobody consumes
  meanwhile. In the end as many messages must be there as rows were written.";
