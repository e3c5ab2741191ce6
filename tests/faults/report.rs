//! What came out, as lines and as a table.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use crate::play::{Counts, LEASE, WINDOW};
use crate::runner::{Outcome, Results};
use crate::scenario::Scenario;
use crate::sink::Sink;

/// Rows of the fault list that are not played here, and why. The page of RabbitMQ has them.
const NOT_RUN: &[(&str, &str)] = &[
    (
        "4, 11: a cluster of three brokers changes its leader, or a quorum queue has no majority",
        "one node runs here. What the relay sees of either, a missing confirm, is `confirms-swallowed`",
    ),
    (
        "5: disk alarm",
        "blocks publishers with the same frame as `memory-alarm`; it needs a full disk",
    ),
    (
        "12: a user deleted, a password changed, a certificate expired",
        "a relay sees that connections end and that new ones are refused: `connections-closed`, `connection-limit` and \
         `tests/rabbitmq_sink/connection.rs`; passwords and certificates are replaced in `tests/tls/rotation.rs`",
    ),
    (
        "16: a full notification queue, a promoted standby",
        "the first takes 8 GB of notifications. What the relay sees is a silent listener: `listener-terminated`",
    ),
    (
        "20: partitions detached, TRUNCATE",
        "both remove rows on purpose, which no relay can tell from being told to forget them",
    ),
    (
        "21: the relay's own clock",
        "nothing to disturb: leases and waits are counted on the monotonic clock, and `tests/tidy.rs` fails when a \
         wall clock appears in the relay, a store or a sink",
    ),
    (
        "25: ten million rows, a million keys",
        "a question of speed: see [Benchmarks](benchmarks.md)",
    ),
    (
        "26: two releases side by side",
        "there is no earlier release. `mixed-settings` has replicas that disagree, and a schema newer than the binary",
    ),
    ("28: replication slots", "Outrigger uses none"),
];

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

/// Prints how one scenario went; if badly, how to repeat it.
pub(crate) fn line(outcome: &Outcome, full: bool) {
    let (name, seed) = (outcome.part.name(), outcome.seed);
    let problems = outcome.problems();
    let verdict = if problems.is_empty() { "ok" } else { "FAILED" };
    let counts = match &outcome.counts {
        Ok(counts) => numbers(counts),
        Err(_) => "no result".to_owned(),
    };
    let mut text = format!(
        "{verdict:6} {name} (seed {seed}, {}): {counts}",
        seconds(outcome.took)
    );
    if !problems.is_empty() {
        if let Ok(counts) = &outcome.counts {
            let _ = write!(text, "\n{}", counts.report.examples().trim_end());
        }
        let long = if full { " --full" } else { "" };
        let _ = write!(
            text,
            "\n       {}\n       again: cargo test{} --test faults -- --exact {name} --seed {seed}{long}",
            problems.join("\n       "),
            feature(outcome.part.sink),
        );
    }
    println!("{text}");
}

/// What cargo must be told for a sink that is not in the usual build.
fn feature(sink: Sink) -> &'static str {
    match sink {
        Sink::Kafka => " --features kafka",
        Sink::EventBridge => " --features eventbridge",
        _ => "",
    }
}

fn numbers(counts: &Counts) -> String {
    let report = &counts.report;
    format!(
        "committed {}, delivered {}, lost {}, phantom {}, duplicated {}/{}, out of order {}, altered {}, recovery {}",
        counts.committed,
        report.arrived,
        report.lost.len(),
        report.phantom.len(),
        report.duplicated.len(),
        counts.bound,
        order(report.out_of_order.len(), counts.order),
        report.altered.len(),
        seconds(counts.recovery),
    )
}

/// How many were out of order, unless that is no promise here.
fn order(count: usize, promised: bool) -> String {
    if promised {
        count.to_string()
    } else {
        format!("{count} (not promised)")
    }
}

/// Prints what failed.
pub(crate) fn summary(results: &Results) {
    let failed: Vec<_> = results
        .outcomes
        .iter()
        .filter(|outcome| !outcome.problems().is_empty())
        .map(|outcome| format!("{} (seed {})", outcome.part.name(), outcome.seed))
        .collect();
    let good = results.outcomes.len() - failed.len();
    println!("\nfault scenarios: {good} passed, {} failed", failed.len());
    for name in failed {
        println!("    {name}");
    }
}

/// One line of the table: a scenario with all its seeds.
#[derive(Default)]
struct Sum {
    runs: usize,
    committed: usize,
    delivered: usize,
    lost: usize,
    phantom: usize,
    duplicated: usize,
    bound: usize,
    out_of_order: usize,
    order: bool,
    altered: usize,
    recovery: Duration,
}

impl Sum {
    fn add(&mut self, counts: &Counts) {
        let report = &counts.report;
        self.runs += 1;
        self.committed += counts.committed;
        self.delivered += report.arrived;
        self.lost += report.lost.len();
        self.phantom += report.phantom.len();
        self.duplicated += report.duplicated.len();
        self.bound += counts.bound;
        self.out_of_order += report.out_of_order.len();
        self.order = counts.order;
        self.altered += report.altered.len();
        self.recovery = self.recovery.max(counts.recovery);
    }
}

/// The pages beside one, as links.
fn pages(own: Sink) -> String {
    let page = |sink: Sink| match sink {
        Sink::RabbitMq => "reliability.md".to_owned(),
        sink => format!("reliability-{}.md", sink.name()),
    };
    let others = Sink::ALL.iter().filter(|sink| **sink != own);
    let links: Vec<_> = others
        .map(|sink| format!("[{}]({})", sink.title(), page(*sink)))
        .collect();
    links.join(", ")
}

/// What the sink publishes to, and what counts as delivered there. Also what must be known to read the numbers.
fn target(sink: Sink) -> (&'static str, &'static str) {
    match sink {
        Sink::RabbitMq => (
            "every message of the queue",
            "topic exchange,\n  durable classic queue",
        ),
        Sink::Nats => (
            "every message of the stream",
            "one stream on files.\n  It recognises repetitions for 100 ms only, instead of the usual two minutes, so that \
             *duplicated* counts what relays\n  publish twice and *altered* compares it; `repetitions-recognised` shows what \
             consumers see of that usually: nothing",
        ),
        Sink::Http => (
            "every request that was answered with 2xx",
            "a service that\n  answers when it has noted the event. *duplicated* is what it took twice; a service that \
             remembers `Idempotency-Key`\n  does not act on it",
        ),
        Sink::Kafka => (
            "every record of the topic",
            "a topic of\n  four partitions; order is that of each key's partition",
        ),
        Sink::EventBridge => (
            "every entry that was given an event id",
            "a bus of\n  that service, which keeps entries in the order they came in, as EventBridge does not promise to",
        ),
    }
}

/// The whole page.
pub(crate) fn render(results: &Results) -> String {
    let sink = results.sink.unwrap_or(Sink::RabbitMq);
    let seeds: Vec<_> = results.seeds.iter().map(u64::to_string).collect();
    let versions = results.versions.as_ref();
    let postgres = versions.map_or("?", |v| &v.postgres);
    let broker = versions.map_or("?", |v| &v.broker);
    let revision = results.revision.as_deref().unwrap_or("unknown");
    let length = if results.full { "long" } else { "short" };
    let (title, other, options) = match (sink, results.servers.as_str()) {
        (Sink::RabbitMq, "installed") => (
            "Reliability".to_owned(),
            "With other servers: [Reliability with newer servers](reliability-newest.md).".to_owned(),
            String::new(),
        ),
        (Sink::RabbitMq, name) => (
            format!("Reliability: {name} servers"),
            "With other servers: [Reliability](reliability.md) with the servers of the distribution."
                .to_owned(),
            format!(" --servers {name}"),
        ),
        (sink, _) => (
            format!("Reliability: {}", sink.title()),
            format!("With other sinks: {}.", pages(sink)),
            format!(" --sink {}", sink.name()),
        ),
    };
    let more = match (sink, results.servers.as_str()) {
        (Sink::RabbitMq, "installed") => {
            format!(
                "\nWith other sinks: {}.\n\nConditions that are ordinary elsewhere: [In other surroundings](surroundings.md).\n",
                pages(sink)
            )
        }
        _ => String::new(),
    };
    let (arrived, target) = target(sink);
    let mut page = format!(
        "<!-- Generated by `scripts/faults{options} --write`. Do not edit. -->
# {title}

What happens when things break: every fault is made between real relays and real servers, under load, and afterwards
three records are compared: what was committed (a ledger that writers fill in the same transactions as the
outbox), what arrived ({arrived}), and what the outbox says. {other}
{more}
- *lost*: committed, and neither delivered nor visibly waiting or dead. Must be 0.
- *phantom*: delivered, never committed. Must be 0.
- *duplicated*: further copies, beside how many the faults allow: the {WINDOW} events a replica may have in flight
  here, for each failure. 0 allowed means that nothing failed, and nothing may come twice.
- *out of order*: first delivered after a later event of its key. Must be 0, except where two relays are made owners
  of one partition, by force or by a database clock that jumps ahead.
- *altered*: payload not that of the row, or a copy that differs from the first in any byte. Must be 0.
- *recovery*: from the end of the fault until everything committed before is published; the longest of all seeds.
  Where a replica is killed or falls silent, this is the lease ({lease} s here, 10 s by default) and what has piled up.

Beside the table each scenario insists that outages burn no attempt of any event, that what should be dead is and
nothing else, that every relay stops cleanly in the end, and that no work is left.

Produced by `scripts/faults{options} --write` ({length} forms), which ends with an error if any number is not as it must be.
`scripts/faults{options} --only NAME --seed N` repeats one line.

- Outrigger {version} ({revision}), development build
- PostgreSQL {postgres} and {broker}, one node each, on one machine with everything else; {target};
  the servers' files in memory where the machine has room for that
- settings: `RELAY_LEASE_TTL={lease}s`, `RELAY_BATCH_SIZE` and `RELAY_MAX_IN_FLIGHT` {WINDOW}, strict ordering,
  `RETRY_MAX_ATTEMPTS=2` except where the broker refuses; the rest as by default
- load: 3 to 5 writers, 30 to 120 keys, 1 to 3 events a transaction, 1 in 20 rolled back; all drawn from the seed
- seeds: {seeds}

",
        lease = LEASE.as_secs(),
        version = env!("CARGO_PKG_VERSION"),
        seeds = seeds.join(", "),
    );
    page.push_str(&table(results));
    page.push_str(&left_out(results, sink));
    page
}

/// What is not in the table, and why.
fn left_out(results: &Results, sink: Sink) -> String {
    let all = crate::scenario::all();
    let played = |name| {
        results
            .outcomes
            .iter()
            .any(|o| o.part.scenario.name == name)
    };
    let named = |wanted: &dyn Fn(&Scenario) -> bool| {
        let names = all.iter().filter(|scenario| wanted(scenario));
        let names: Vec<_> = names.map(|s| format!("`{}`", s.name)).collect();
        names.join(", ")
    };
    let mut text = String::new();
    let missing = named(&|s| s.sinks.contains(&sink) && !played(s.name));
    if !missing.is_empty() {
        let _ = writeln!(text, "\nOnly in the long form: {missing}.");
    }
    if sink != Sink::RabbitMq {
        let _ = writeln!(
            text,
            "\nNot played, since they are about what only other sinks have: {}. Faults that are played nowhere, and why: \
             [Reliability](reliability.md#not-played).",
            named(&|s| !s.sinks.contains(&sink))
        );
        return text;
    }
    text.push_str("\n## Not played\n\n| row | why |\n|---|---|\n");
    for (row, why) in NOT_RUN {
        let _ = writeln!(text, "| {row} | {why} |");
    }
    text
}

fn table(results: &Results) -> String {
    let mut sums: BTreeMap<usize, (&Outcome, Sum, usize)> = BTreeMap::new();
    let mut names: Vec<&str> = Vec::new();
    for outcome in &results.outcomes {
        let name = outcome.part.scenario.name;
        let place = names.iter().position(|n| *n == name).unwrap_or_else(|| {
            names.push(name);
            names.len() - 1
        });
        let (_, sum, failed) = sums
            .entry(place)
            .or_insert_with(|| (outcome, Sum::default(), 0));
        if let Ok(counts) = &outcome.counts {
            sum.add(counts);
        }
        *failed += usize::from(!outcome.problems().is_empty());
    }
    let mut text =
        "| row | scenario | fault | replicas | seeds | committed | delivered | lost | phantom \
        | duplicated / allowed | out of order | altered | recovery |\n\
        |---|---|---|---|---|---|---|---|---|---|---|---|---|\n"
            .to_owned();
    for (outcome, sum, failed) in sums.into_values() {
        let scenario = outcome.part.scenario;
        let name = match failed {
            0 => format!("`{}`", scenario.name),
            n => format!("`{}` (**{n} failed**)", scenario.name),
        };
        let _ = writeln!(
            text,
            "| {} | {name} | {} | {} | {} | {} | {} | {} | {} | {} / {} | {} | {} | {} |",
            scenario.row,
            scenario.fault,
            scenario.replicas,
            sum.runs,
            sum.committed,
            sum.delivered,
            sum.lost,
            sum.phantom,
            sum.duplicated,
            sum.bound,
            order(sum.out_of_order, sum.order),
            sum.altered,
            seconds(sum.recovery),
        );
    }
    text
}
