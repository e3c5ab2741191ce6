//! `docs/metrics.md`.

use std::fmt::Write as _;

use super::{Kind, METRICS, Metric};

const HEAD: &str = "\
# Metrics

<!-- Made by `outrigger metrics --reference`; scripts/check-docs --write renews it. -->

`/metrics` of the admin listener (`OUTRIGGER_ADMIN_LISTEN`, port 9647), in the Prometheus text format or, if asked for,
OpenMetrics. A scrape asks nobody: it writes down what the relay knows. What takes a look at the database is looked
at on a slow clock of its own, and never by scanning the table.

Each replica speaks for itself; where a figure is about the whole outbox, `max` over replicas is right. Names, labels and their
values are part of the [interface](stability.md).

[Operating](operating.md#watch) says what to watch; `outrigger metrics --dashboard` prints a Grafana dashboard,
`outrigger metrics --alerts` alerting rules, each with a [page that says what to do](runbook.md).

";

/// Every metric with its labels and meaning, in Markdown.
pub fn markdown() -> String {
    let mut out = HEAD.to_owned();
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "| metric | type | labels | meaning |\n|---|---|---|---|"
    );
    for metric in METRICS {
        let kind = match metric.kind {
            Kind::Info => "gauge, always 1",
            kind => kind.as_str(),
        };
        let mut meaning = metric.help.to_owned();
        if !metric.note.is_empty() {
            meaning = format!("{meaning} {}", metric.note);
        }
        let _ = writeln!(
            out,
            "| `{}` | {kind} | {} | {meaning} |",
            metric.name,
            labels(metric)
        );
    }
    out
}

fn labels(metric: &Metric) -> String {
    let labels = metric.labels.iter().map(|label| {
        let values = (label.values)();
        let values: Vec<String> = values.iter().map(|value| format!("`{value}`")).collect();
        match values.is_empty() {
            true => format!("`{}`", label.name),
            false => format!("`{}`: {}", label.name, values.join(", ")),
        }
    });
    labels.collect::<Vec<_>>().join("; ")
}
