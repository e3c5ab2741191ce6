//! What `benches/relay` makes of its numbers. The benchmark itself has no test harness.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../benches/relay/report/mod.rs"]
#[allow(dead_code)]
mod report;

use report::sample::{median, percentile, thousands};
use report::{Curve, Curves, Fact, Figure, Line, Page, Report, Sample, Sweep, Target, Unit};

fn rates(rounds: &[f64]) -> Sample {
    Sample::new(Unit::PerSecond, rounds.iter().copied())
}

#[test]
fn the_middle_and_the_tail_are_found() {
    assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
    assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    assert!(median(&[]).is_nan());
    let values: Vec<f64> = (1..=200).map(f64::from).collect();
    assert_eq!(percentile(&values, 0.5), 100.0);
    assert_eq!(percentile(&values, 0.99), 198.0);
    assert_eq!(percentile(&values, 1.0), 200.0);
    // Nothing measured must not look like something fast.
    assert_eq!(percentile(&[], 0.5), f64::INFINITY);
}

#[test]
fn a_number_is_written_with_its_unit_and_its_spread() {
    let check = |unit, rounds: &[f64], expected: &str| {
        let sample = Sample::new(unit, rounds.iter().copied());
        assert_eq!(sample.text(), expected, "{rounds:?}");
    };
    check(Unit::PerSecond, &[12_345.4], "12,345/s");
    check(
        Unit::PerSecond,
        &[1_000.0, 3_000.0, 1_100.0],
        "1,100/s (1,000 to 3,000/s)",
    );
    check(Unit::PerSecond, &[1.94], "1.9/s");
    check(Unit::Milliseconds, &[2.0, 1.0], "1.5 ms (1.0 to 2.0 ms)");
    check(Unit::Milliseconds, &[12_000.0], "12,000 ms");
    // Cut, not rounded.
    check(Unit::Ratio, &[0.799], "0.79");
    check(Unit::Count, &[5.25], "5.2");
    check(Unit::Count, &[5_000.0], "5,000");
    check(Unit::Bytes, &[f64::NAN], "unknown");
    check(Unit::Bytes, &[], "unknown");
    let grouped: Vec<String> = [0.0, 999.4, 1000.0, 1_234_567.0].map(thousands).into();
    assert_eq!(grouped, ["0", "999", "1,000", "1,234,567"]);
}

#[test]
fn a_ratio_is_taken_in_each_round() {
    // The machine was twice as fast in the second round: the ratio of the medians would be 0.66.
    let reference = rates(&[100.0, 200.0]);
    let figure = Figure::new("a", rates(&[50.0, 150.0])).beside("B", &reference);
    assert_eq!(figure.ratio().unwrap().rounds, [0.5, 0.75]);
}

#[test]
fn two_rates_one_after_the_other_are_slower_than_either() {
    let first = rates(&[100.0, 300.0, f64::NAN]);
    let both = first.then(&rates(&[100.0, 150.0, 1.0]));
    assert_eq!(both.rounds[..2], [50.0, 100.0]);
    assert!(both.rounds[2].is_nan());
    assert_eq!(both.unit, Unit::PerSecond);
}

#[test]
fn a_target_is_met_or_not() {
    let check = |measured: &[f64], target, expected: (&str, &str)| {
        let figure =
            Figure::new("a", rates(measured)).beside("B: so to say", &rates(&[100.0, 100.0]));
        let cells = figure.target(target).cells();
        assert_eq!(
            (cells[1].as_str(), cells[5].as_str()),
            expected,
            "{measured:?}"
        );
    };
    check(
        &[80.0, 80.0],
        Target::ShareAtLeast(0.8),
        (">= 0.8 of B", "yes"),
    );
    check(
        &[79.9, 79.9],
        Target::ShareAtLeast(0.8),
        (">= 0.8 of B", "NO"),
    );
    check(
        &[200.0, 200.0],
        Target::TimesAtMost(2.0),
        ("<= 2 x B", "yes"),
    );
    check(
        &[201.0, 201.0],
        Target::TimesAtMost(2.0),
        ("<= 2 x B", "NO"),
    );
    check(&[2.0, 2.0], Target::AtMost(2.0), ("<= 2/s", "yes"));
    check(&[2.1, 2.1], Target::AtMost(2.0), ("<= 2/s", "NO"));
    check(&[0.0, 0.0], Target::AtMost(0.0), ("none", "yes"));
    check(&[1.0, 1.0], Target::AtLeast(0.9), (">= 0.9", "yes"));
    // Not a number is never a success.
    for target in [
        Target::ShareAtLeast(0.8),
        Target::TimesAtMost(2.0),
        Target::AtLeast(0.9),
        Target::AtMost(1.0),
    ] {
        let figure = Figure::new("a", rates(&[f64::NAN])).beside("B", &rates(&[1.0]));
        assert_eq!(figure.target(target).met(), Some(false), "{target:?}");
    }
    assert_eq!(Figure::new("a", rates(&[1.0])).met(), None);
}

fn report() -> Report {
    let line = |label: &str, bare: f64, relay: f64| Line {
        label: label.into(),
        cells: vec![
            rates(&[bare]),
            rates(&[relay]),
            rates(&[relay]).over(&rates(&[bare])),
        ],
    };
    Report {
        command: "scripts/bench --write".into(),
        facts: vec![Fact {
            name: "machine",
            value: "2 cores".into(),
        }],
        figures: vec![
            Figure::new("fast", rates(&[90.0]))
                .beside("B", &rates(&[100.0]))
                .target(Target::ShareAtLeast(0.8)),
            Figure::new("slow", rates(&[70.0]))
                .beside("B", &rates(&[100.0]))
                .target(Target::ShareAtLeast(0.8)),
            Figure::new("just so", rates(&[7.0])).with("7 rows"),
        ],
        sweeps: vec![Sweep {
            id: "keys",
            title: "By <keys>",
            about: "Some rows.".into(),
            axis: "keys",
            columns: ["B", "relay", "ratio"].map(str::to_owned).into(),
            lines: vec![
                line("1", 20_000.0, 1_500.0),
                line("100", 20_000.0, f64::NAN),
            ],
            drawn: vec![0, 1],
        }],
        curves: vec![Curves {
            id: "memory",
            title: "Memory",
            about: "Over time.".into(),
            unit: Unit::Mebibytes,
            curves: vec![Curve {
                label: "strict".into(),
                points: vec![(0.0, 10.0), (5.0, 30.0)],
            }],
        }],
        failed: vec!["writers".into()],
        page: Page::default(),
    }
}

#[test]
fn the_page_says_what_was_missed_and_what_failed() {
    let page = report().markdown();
    for part in [
        "1 of 2 targets were reached in this run. Missed: slow. [Performance](performance.md) says what limits each of them. The part `writers` failed",
        "| fast | >= 0.8 of B | 90.0/s | B: 100/s | 0.90 | yes |",
        "| slow | >= 0.8 of B | 70.0/s | B: 100/s | 0.70 | NO |",
        "| just so (7 rows) | 7.0/s |  |  |",
        "- **machine**: 2 cores",
        "| 1 | 20,000/s | 1,500/s | 0.07 |",
        "![By <keys>](benchmarks/keys.svg)",
        "![Memory](benchmarks/memory.svg)",
        "`scripts/bench --write`",
    ] {
        assert!(page.contains(part), "{part:?} is missing in:\n{page}");
    }
    // What is aimed at comes first.
    assert!(page.find("## Targets") < page.find("## Without a target"));
    let text = report().text();
    for part in ["slow", "FAILED: writers", "machine: 2 cores", "By <keys>"] {
        assert!(text.contains(part), "{part:?} is missing in:\n{text}");
    }
}

#[test]
fn another_sink_has_a_page_of_its_own() {
    let of_sink = Report {
        page: Page::of_sink("nats", "NATS JetStream", "the client alone."),
        ..report()
    };
    let page = of_sink.markdown();
    for part in [
        "# Benchmarks: NATS JetStream\n",
        "[benchmarks-nats.json](benchmarks-nats.json)",
        "![By <keys>](benchmarks-nats/keys.svg)",
        "![Memory](benchmarks-nats/memory.svg)",
        "[with RabbitMQ](benchmarks.md)",
        "- **Bare publisher (B)**: the client alone.\n",
        "- **S then B**",
    ] {
        assert!(page.contains(part), "{part:?} is missing in:\n{page}");
    }
    for other in ["AMQP", "pgbench", "](benchmarks/"] {
        assert!(!page.contains(other), "{other:?} is in:\n{page}");
    }
    // Where it is shown is no result.
    let data = |report: &Report| serde_json::to_value(report).unwrap();
    assert_eq!(data(&of_sink), data(&report()));
}

#[test]
fn every_picture_of_the_page_is_drawn_and_well_formed() {
    let report = report();
    let pictures = report.pictures();
    let names: Vec<&str> = pictures.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["keys.svg", "memory.svg"]);
    for (name, picture) in &pictures {
        assert!(report.markdown().contains(&format!("(benchmarks/{name})")));
        assert!(
            picture.starts_with("<svg ") && picture.ends_with("</svg>\n"),
            "{name}"
        );
        // Neither a number that is none nor a character that ends an element.
        assert!(
            !picture.contains("NaN") && !picture.contains("inf"),
            "{name}: {picture}"
        );
        assert!(!picture.contains("<keys>"), "{name}");
        let opened = picture.matches("<text").count();
        assert!(
            opened > 5 && opened == picture.matches("</text>").count(),
            "{name}"
        );
        assert!(picture.contains("prefers-color-scheme:dark"));
    }
    let bars = pictures[0].1.matches(r#"<rect class="bar"#).count();
    // Two in the legend, and three that are known.
    assert_eq!(bars, 5);
    assert_eq!(pictures[1].1.matches("<polyline").count(), 1);
}

#[test]
fn the_data_holds_every_round_and_null_for_what_is_not_known() {
    let data = serde_json::to_value(report()).unwrap();
    assert_eq!(
        data["figures"][0]["reference"]["sample"]["rounds"][0],
        100.0
    );
    assert_eq!(data["figures"][0]["target"]["share_at_least"], 0.8);
    assert_eq!(data["figures"][0]["sample"]["unit"], "per_second");
    assert!(data["sweeps"][0]["lines"][1]["cells"][1]["rounds"][0].is_null());
    assert_eq!(data["curves"][0]["curves"][0]["points"][1][1], 30.0);
    assert_eq!(data["failed"][0], "writers");
}
