//! Alerting rules for Prometheus, made from the names of the metrics.

use std::fmt::Write as _;

use super::table::{
    BACKLOG, BROKER_BLOCKED, BROKER_CONNECTED, DATABASE_UP, DEAD, END_TO_END, FAILED_EVENTS, INFO,
    LISTENER_CONNECTED, OLDEST_PENDING, PARKED_KEYS, PARTITIONS_UNOWNED, PAUSED, PUBLISH_FAILURES,
    PUBLISHED, REPLICAS_DISAGREE, SNAPSHOT_SECONDS, TABLE_DEAD_ROWS, UNAVAILABLE,
};

/// An alert. `docs/runbook.md` has a section of the same name.
#[derive(Debug, Clone)]
pub struct Alert {
    /// Its name.
    pub name: &'static str,
    /// `critical`: events wait for somebody; `warning`: soon, or slower than usual.
    pub severity: &'static str,
    /// The condition, in PromQL.
    pub condition: String,
    /// How long it holds before somebody is told.
    pub lasts: &'static str,
    /// One sentence.
    pub summary: &'static str,
}

/// Replicas of one outbox are scraped as one job, so this is one outbox.
const OUTBOX: &str = "by (namespace, job)";

fn max(metric: &str) -> String {
    format!("max {OUTBOX} ({metric})")
}

fn min(metric: &str) -> String {
    format!("min {OUTBOX} ({metric})")
}

fn sum_of(of: &str) -> String {
    format!("sum {OUTBOX} ({of})")
}

/// Every alert, in the order of the runbook.
pub fn alerts() -> Vec<Alert> {
    let alert = |name, severity, lasts, condition: String, summary| Alert {
        name,
        severity,
        condition,
        lasts,
        summary,
    };
    let rate = |metric: &str, labels: &str| sum_of(&format!("rate({metric}{labels}[5m])"));
    let published = rate(PUBLISHED.name, "");
    let refused = format!("{{reason!=\"{UNAVAILABLE}\"}}");
    let refused = rate(PUBLISH_FAILURES.name, &refused);
    let failed = |state: &str| format!("{}{{state=\"{state}\"}}", FAILED_EVENTS.name);
    // Each replica counts the failures of the whole outbox.
    let waiting_for_a_retry = format!(
        "sum {OUTBOX} (max by (namespace, job, state) ({}{{state=~\"retrying|blocked\"}}))",
        FAILED_EVENTS.name
    );
    vec![
        alert(
            "OutriggerNothingPublished",
            "critical",
            "5m",
            format!(
                "{} > {waiting_for_a_retry} and {published} == 0 unless {} == 1",
                max(BACKLOG.name),
                max(PAUSED.name)
            ),
            "Events wait and none is published.",
        ),
        alert(
            "OutriggerEventsLate",
            "warning",
            "5m",
            format!(
                "{} > 60 unless {} == 1",
                max(OLDEST_PENDING.name),
                max(PAUSED.name)
            ),
            "The oldest event has waited for more than a minute.",
        ),
        alert(
            "OutriggerEventsVeryLate",
            "critical",
            "5m",
            format!(
                "{} > 300 unless {} == 1",
                max(OLDEST_PENDING.name),
                max(PAUSED.name)
            ),
            "The oldest event has waited for more than five minutes.",
        ),
        alert(
            "OutriggerKeyBlocked",
            "critical",
            "0m",
            format!("{} > 0", max(&failed("blocked"))),
            "A key waits for an operator.",
        ),
        alert(
            "OutriggerEventsDead",
            "warning",
            "0m",
            format!("{} > 0", sum_of(&format!("increase({}[10m])", DEAD.name))),
            "Events were given up.",
        ),
        // The one before ends by itself ten minutes later; this one when somebody has acted.
        alert(
            "OutriggerDeadEventsWait",
            "warning",
            "15m",
            format!("{} > 0", max(&failed("dead"))),
            "Dead events wait to be retried or discarded.",
        ),
        alert(
            "OutriggerRowsUnsettled",
            "warning",
            "5m",
            format!("{} > 0", max(&failed("unsettled"))),
            "Published events whose rows cannot be marked or deleted.",
        ),
        alert(
            "OutriggerEventsRefused",
            "warning",
            "10m",
            format!("{refused} > 0.1 * ({published} + {refused})"),
            "More than a tenth of what is published is refused.",
        ),
        alert(
            "OutriggerBrokerDown",
            "critical",
            "2m",
            format!("{} == 0", max(BROKER_CONNECTED.name)),
            "No replica is connected to the broker.",
        ),
        alert(
            "OutriggerBrokerBlocked",
            "warning",
            "5m",
            format!("{} == 1", max(BROKER_BLOCKED.name)),
            "The broker asks publishers to wait.",
        ),
        alert(
            "OutriggerDatabaseDown",
            "critical",
            "2m",
            format!("{} == 0", max(DATABASE_UP.name)),
            "No replica gets an answer from the database.",
        ),
        alert(
            "OutriggerPartitionsUnowned",
            "critical",
            "1m",
            format!("{} > 0", min(PARTITIONS_UNOWNED.name)),
            "Nobody publishes the events of some partitions.",
        ),
        alert(
            "OutriggerReplicasDisagree",
            "warning",
            "10m",
            format!("{} > 0", max(REPLICAS_DISAGREE.name)),
            "Replicas of one outbox have different settings.",
        ),
        alert(
            "OutriggerManyKeysFail",
            "warning",
            "5m",
            format!("{} > 0", max(PARKED_KEYS.name)),
            "More keys fail or are blocked than a relay keeps in memory.",
        ),
        alert(
            "OutriggerAbsent",
            "critical",
            "5m",
            format!(
                "group {OUTBOX} (last_over_time({info}[6h])) unless group {OUTBOX} ({info}) or \
                 (absent({info}) unless on () group (last_over_time({info}[6h])))",
                info = INFO.name
            ),
            "The relay of an outbox is not scraped any more, or no relay is.",
        ),
        alert(
            "OutriggerSlow",
            "warning",
            "10m",
            format!(
                "histogram_quantile(0.99, sum by (namespace, job, le) (rate({}_bucket[5m]))) > 10",
                END_TO_END.name
            ),
            "One event in a hundred takes more than ten seconds.",
        ),
        alert(
            "OutriggerListenerDown",
            "warning",
            "15m",
            format!("{} == 0", min(LISTENER_CONNECTED.name)),
            "Notifications do not arrive; events of an idle service are found by polling.",
        ),
        alert(
            "OutriggerPaused",
            "warning",
            "1h",
            format!("{} == 1", max(PAUSED.name)),
            "The relay has been paused for an hour.",
        ),
        alert(
            "OutriggerVacuumHeldUp",
            "warning",
            "15m",
            format!(
                "{} > 3600 and {} > 1000000",
                max(SNAPSHOT_SECONDS.name),
                max(TABLE_DEAD_ROWS.name)
            ),
            "A transaction has been open for an hour, and dead rows pile up in the outbox.",
        ),
    ]
}

/// The rules as a file for Prometheus. `runbook`: the address of the runbook, for links that open from a pager.
pub fn rules(runbook: Option<&str>) -> String {
    let (annotation, page) = match runbook {
        Some(url) => ("runbook_url", url.trim_end_matches('#')),
        None => ("runbook", "docs/runbook.md"),
    };
    let mut out = String::from(
        "# Alerts for Outrigger. Made by `outrigger metrics --alerts`; docs/runbook.md says what to do about each.\n\
         #\n\
         # Replicas of one outbox must be scraped as one job, and those of another outbox as another.\n\
         groups:\n  - name: outrigger\n    rules:\n",
    );
    for alert in alerts() {
        // Writing to a String cannot fail. The texts are ours and hold nothing that YAML would take for its own.
        let _ = write!(
            out,
            "      - alert: {}\n        expr: >-\n          {}\n        for: {}\n        labels:\n          \
             severity: {}\n        annotations:\n          summary: {}\n          \
             {annotation}: {page}#{}\n",
            alert.name,
            alert.condition,
            alert.lasts,
            alert.severity,
            alert.summary,
            alert.name.to_lowercase()
        );
    }
    out
}
