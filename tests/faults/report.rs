//! What came out, as lines and as a table.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use crate::play::{Counts, LEASE, WINDOW};
use crate::runner::{Outcome, Results};

/// Rows of the fault list that are not played here, and why.
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
    let (name, seed) = (outcome.scenario.name, outcome.seed);
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
            "\n       {}\n       again: cargo test --test faults -- --exact {name} --seed {seed}{long}",
            problems.join("\n       ")
        );
    }
    println!("{text}");
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
        .map(|outcome| format!("{} (seed {})", outcome.scenario.name, outcome.seed))
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

/// The whole page.
pub(crate) fn render(results: &Results) -> String {
    let seeds: Vec<_> = results.seeds.iter().map(u64::to_string).collect();
    let versions = results.versions.as_ref();
    let postgres = versions.map_or("?", |v| &v.postgres);
    let rabbitmq = versions.map_or("?", |v| &v.rabbitmq);
    let revision = results.revision.as_deref().unwrap_or("unknown");
    let length = if results.full { "long" } else { "short" };
    let (title, other, servers) = match results.servers.as_str() {
        "installed" => (
            "Reliability".to_owned(),
            "[Reliability with newer servers](reliability-newest.md)",
            String::new(),
        ),
        name => (
            format!("Reliability: {name} servers"),
            "[Reliability](reliability.md) with the servers of the distribution",
            format!(" --servers {name}"),
        ),
    };
    let mut page = format!(
        "<!-- Generated by `scripts/faults{servers} --write`. Do not edit. -->
# {title}

What happens when things break: every fault is made between real relays and real servers, under load, and afterwards
three records are compared: what was committed (a ledger that writers fill in the same transactions as the
outbox), what arrived (every message of the queue), and what the outbox says. With other servers: {other}.

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

Produced by `scripts/faults{servers} --write` ({length} forms), which ends with an error if any number is not as it must be.
`scripts/faults{servers} --only NAME --seed N` repeats one line.

- Outrigger {version} ({revision}), development build
- PostgreSQL {postgres} and RabbitMQ {rabbitmq}, one node each, on one machine with everything else; topic exchange,
  durable classic queue; their files in memory where the machine has room for that
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
    let played = |name| results.outcomes.iter().any(|o| o.scenario.name == name);
    let missing = crate::scenario::all()
        .into_iter()
        .filter(|s| !played(s.name));
    let missing: Vec<_> = missing.map(|s| format!("`{}`", s.name)).collect();
    if !missing.is_empty() {
        let _ = writeln!(page, "\nOnly in the long form: {}.", missing.join(", "));
    }
    page.push_str("\n## Not played\n\n| row | why |\n|---|---|\n");
    for (row, why) in NOT_RUN {
        let _ = writeln!(page, "| {row} | {why} |");
    }
    page
}

fn table(results: &Results) -> String {
    let mut sums: BTreeMap<usize, (&Outcome, Sum, usize)> = BTreeMap::new();
    let mut names: Vec<&str> = Vec::new();
    for outcome in &results.outcomes {
        let name = outcome.scenario.name;
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
        let scenario = outcome.scenario;
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
