//! A dashboard for Grafana, made from the names of the metrics.

use serde_json::{Value, json};

use super::table::*;

/// What is shown of one outbox: the variables of the dashboard.
const WHERE: &str = "namespace=~\"$namespace\", job=~\"$job\"";

/// How a panel is drawn.
#[derive(Clone, Copy)]
enum Draw {
    /// One number; the value from which on it is alarming.
    Number(f64),
    Lines,
    Heatmap,
}

struct Panel {
    title: &'static str,
    unit: &'static str,
    draw: Draw,
    width: u32,
    /// Expressions with their legends.
    queries: Vec<(String, &'static str)>,
}

fn metric(name: &str) -> String {
    format!("{name}{{{WHERE}}}")
}

fn filtered(name: &str, filter: &str) -> String {
    format!("{name}{{{WHERE}, {filter}}}")
}

fn rate(selector: &str) -> String {
    format!("rate({selector}[$__rate_interval])")
}

fn quantile(share: &str, name: &str) -> String {
    let buckets = rate(&metric(&format!("{name}_bucket")));
    format!("histogram_quantile({share}, sum by (le) ({buckets}))")
}

fn quantile_by(share: &str, name: &str, label: &str) -> String {
    let buckets = rate(&metric(&format!("{name}_bucket")));
    format!("histogram_quantile({share}, sum by (le, {label}) ({buckets}))")
}

fn rows() -> Vec<(&'static str, Vec<Panel>)> {
    let number = |title, unit, alarming, query: String| Panel {
        title,
        unit,
        draw: Draw::Number(alarming),
        width: 4,
        queries: vec![(query, "")],
    };
    let lines = |title, unit, queries| Panel {
        title,
        unit,
        draw: Draw::Lines,
        width: 12,
        queries,
    };
    let sum_by = |label: &str, selector: &str| format!("sum by ({label}) ({})", rate(selector));
    let max = |name: &str| format!("max({})", metric(name));
    let by_replica = "{{instance}}";
    vec![
        (
            "At a glance",
            vec![
                number("Oldest pending", "s", 60.0, max(OLDEST_PENDING.name)),
                number("Backlog", "short", 10_000.0, max(BACKLOG.name)),
                number(
                    "Published",
                    "cps",
                    f64::INFINITY,
                    format!("sum({})", rate(&metric(PUBLISHED.name))),
                ),
                number("Latency p99", "s", 10.0, quantile("0.99", END_TO_END.name)),
                number(
                    "Dead or blocked",
                    "short",
                    1.0,
                    format!(
                        "sum(max by (state) ({}))",
                        filtered(FAILED_EVENTS.name, "state=~\"dead|blocked\"")
                    ),
                ),
                number(
                    "Not connected",
                    "short",
                    1.0,
                    format!(
                        "count({0} == 0) or vector(0)",
                        metric(BROKER_CONNECTED.name)
                    ),
                ),
            ],
        ),
        (
            "Events",
            vec![
                lines(
                    "Published per second",
                    "cps",
                    vec![(sum_by("instance", &metric(PUBLISHED.name)), by_replica)],
                ),
                lines(
                    "Failed attempts per second",
                    "cps",
                    vec![(
                        sum_by("reason", &metric(PUBLISH_FAILURES.name)),
                        "{{reason}}",
                    )],
                ),
                lines(
                    "Backlog",
                    "short",
                    vec![
                        (max(BACKLOG.name), "backlog"),
                        (format!("sum({})", metric(IN_FLIGHT.name)), "in flight"),
                    ],
                ),
                lines(
                    "Oldest pending event",
                    "s",
                    vec![(max(OLDEST_PENDING.name), "age")],
                ),
                lines(
                    "Failed events",
                    "short",
                    vec![(
                        format!("max by (state) ({})", metric(FAILED_EVENTS.name)),
                        "{{state}}",
                    )],
                ),
                lines(
                    "Given up per second",
                    "cps",
                    vec![
                        (sum_by("reason", &metric(DEAD.name)), "dead: {{reason}}"),
                        (
                            sum_by("reason", &metric(BLOCKED.name)),
                            "blocked: {{reason}}",
                        ),
                        (sum_by("job", &metric(EXPIRED.name)), "expired"),
                        (sum_by("job", &metric(RETRIES.name)), "retries"),
                    ],
                ),
            ],
        ),
        (
            "Latency",
            vec![
                Panel {
                    title: "From creation to confirmation",
                    unit: "s",
                    draw: Draw::Heatmap,
                    width: 12,
                    queries: vec![(
                        sum_by("le", &metric(&format!("{}_bucket", END_TO_END.name))),
                        "{{le}}",
                    )],
                },
                lines(
                    "From creation to confirmation, quantiles",
                    "s",
                    vec![
                        (quantile("0.5", END_TO_END.name), "p50"),
                        (quantile("0.95", END_TO_END.name), "p95"),
                        (quantile("0.99", END_TO_END.name), "p99"),
                    ],
                ),
                lines(
                    "Publishing a batch",
                    "s",
                    vec![
                        (quantile("0.5", PUBLISH_SECONDS.name), "p50"),
                        (quantile("0.99", PUBLISH_SECONDS.name), "p99"),
                    ],
                ),
                lines(
                    "Database, p99",
                    "s",
                    vec![(
                        quantile_by("0.99", DATABASE_SECONDS.name, "operation"),
                        "{{operation}}",
                    )],
                ),
            ],
        ),
        (
            "Relay",
            vec![
                lines(
                    "Partitions owned",
                    "short",
                    vec![
                        (metric(PARTITIONS_OWNED.name), by_replica),
                        (max(PARTITIONS_UNOWNED.name), "nobody"),
                    ],
                ),
                lines(
                    "Reads per second, by what they are begun for",
                    "cps",
                    vec![(sum_by("reason", &metric(WAKEUPS.name)), "{{reason}}")],
                ),
                lines(
                    "Mean batch",
                    "short",
                    vec![(
                        format!(
                            "{} / {}",
                            sum_by("step", &metric(&format!("{}_sum", BATCH_EVENTS.name))),
                            sum_by("step", &metric(&format!("{}_count", BATCH_EVENTS.name)))
                        ),
                        "{{step}}",
                    )],
                ),
                lines(
                    "Connections: 1 is up",
                    "short",
                    vec![
                        (format!("min({})", metric(DATABASE_UP.name)), "database"),
                        (format!("min({})", metric(BROKER_CONNECTED.name)), "broker"),
                        (
                            format!("1 - max({})", metric(BROKER_BLOCKED.name)),
                            "broker takes events",
                        ),
                        (
                            format!("min({})", metric(LISTENER_CONNECTED.name)),
                            "listener",
                        ),
                        (format!("1 - max({})", metric(PAUSED.name)), "not paused"),
                    ],
                ),
            ],
        ),
        (
            "Table and process",
            vec![
                lines(
                    "Rows of the outbox",
                    "short",
                    vec![
                        (max(TABLE_LIVE_ROWS.name), "live"),
                        (max(TABLE_DEAD_ROWS.name), "dead"),
                    ],
                ),
                lines(
                    "Oldest snapshot",
                    "s",
                    vec![(
                        format!("max by (holder) ({})", metric(SNAPSHOT_SECONDS.name)),
                        "{{holder}}",
                    )],
                ),
                lines(
                    "CPU",
                    "percentunit",
                    vec![(rate(&metric(PROCESS_CPU.name)), by_replica)],
                ),
                lines(
                    "Memory",
                    "bytes",
                    vec![(metric(PROCESS_RESIDENT.name), by_replica)],
                ),
            ],
        ),
    ]
}

/// The dashboard as a file for Grafana.
pub fn dashboard() -> String {
    let mut panels = Vec::new();
    let (mut id, mut y) = (0, 0);
    for (title, row) in rows() {
        id += 1;
        panels.push(json!({
            "id": id, "type": "row", "title": title, "collapsed": false, "panels": [],
            "gridPos": { "h": 1, "w": 24, "x": 0, "y": y },
        }));
        y += 1;
        let (mut x, mut height) = (0, 0);
        for panel in row {
            id += 1;
            if x + panel.width > 24 {
                (x, y) = (0, y + height);
            }
            height = if matches!(panel.draw, Draw::Number(_)) {
                4
            } else {
                8
            };
            panels.push(drawn(id, x, y, height, &panel));
            x += panel.width;
        }
        y += height;
    }
    let variable = |name: &str, label: &str, query: String| {
        json!({
            "name": name, "label": label, "type": "query", "query": query, "refresh": 2, "sort": 1,
            "datasource": { "type": "prometheus", "uid": "${datasource}" },
            "includeAll": true, "multi": true, "allValue": ".*",
            "current": { "selected": true, "text": "All", "value": "$__all" },
        })
    };
    let all = json!({
        "uid": "outrigger", "title": "Outrigger", "tags": ["outrigger"],
        "schemaVersion": 39, "editable": true, "graphTooltip": 1, "refresh": "30s",
        "time": { "from": "now-1h", "to": "now" }, "timezone": "browser",
        "templating": { "list": [
            { "name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus" },
            variable("namespace", "Namespace", format!("label_values({}, namespace)", INFO.name)),
            variable("job", "Job", format!("label_values({}{{namespace=~\"$namespace\"}}, job)", INFO.name)),
        ] },
        "panels": panels,
    });
    format!("{all:#}\n")
}

fn drawn(id: u32, x: u32, y: u32, height: u32, panel: &Panel) -> Value {
    let source = json!({ "type": "prometheus", "uid": "${datasource}" });
    let heatmap = matches!(panel.draw, Draw::Heatmap);
    let targets: Vec<Value> = panel
        .queries
        .iter()
        .zip('A'..)
        .map(|((expr, legend), letter)| {
            json!({
                "refId": letter.to_string(), "expr": expr, "legendFormat": legend,
                "datasource": source, "format": if heatmap { "heatmap" } else { "time_series" },
            })
        })
        .collect();
    let mut defaults = json!({ "unit": panel.unit });
    let kind = match panel.draw {
        Draw::Number(alarming) => {
            let mut steps = vec![json!({ "color": "green", "value": null })];
            if alarming.is_finite() {
                steps.push(json!({ "color": "red", "value": alarming }));
            }
            defaults["thresholds"] = json!({ "mode": "absolute", "steps": steps });
            "stat"
        }
        Draw::Lines => {
            defaults["min"] = json!(0);
            "timeseries"
        }
        Draw::Heatmap => "heatmap",
    };
    json!({
        "id": id, "type": kind, "title": panel.title, "datasource": source, "targets": targets,
        "gridPos": { "h": height, "w": panel.width, "x": x, "y": y },
        "fieldConfig": { "defaults": defaults, "overrides": [] },
        "options": {},
    })
}
