//! Names in the dashboard and the alerts against the table.

#![allow(clippy::unwrap_used)]

use super::*;

/// The metrics that a text names.
fn named(text: &str) -> Vec<&str> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(|c| !word(c))
        .filter(|name| name.starts_with("outrigger_") || name.starts_with("process_"))
        .collect()
}

#[track_caller]
fn assert_known(text: &str) {
    for name in named(text) {
        let known = METRICS.iter().any(|metric| {
            let parts: &[&str] = match metric.kind {
                Kind::Histogram => &["_bucket", "_sum", "_count"],
                _ => &[""],
            };
            name.strip_prefix(metric.name)
                .is_some_and(|rest| parts.contains(&rest))
        });
        assert!(known, "{name} is not a metric: {text}");
    }
}

#[test]
fn the_dashboard_names_metrics_that_exist() {
    let dashboard: serde_json::Value = serde_json::from_str(&dashboard()).unwrap();
    let mut queries = 0;
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().unwrap();
            assert!(!named(query).is_empty(), "{query}");
            assert_known(query);
            queries += 1;
        }
    }
    assert!(queries > 30, "{queries}");
}

#[test]
fn alerts_name_metrics_that_exist_and_are_explained() {
    let runbook = include_str!("../../../docs/runbook.md");
    for alert in alerts() {
        assert_known(&alert.condition);
        let heading = format!("\n## {}\n", alert.name);
        assert!(runbook.contains(&heading), "{} has no section", alert.name);
    }
    assert_eq!(runbook.matches("\n## ").count(), alerts().len());
}

#[test]
fn a_name_that_does_not_exist_is_found() {
    let caught = std::panic::catch_unwind(|| assert_known("rate(outrigger_publish_total[5m])"));
    assert!(caught.is_err());
}
