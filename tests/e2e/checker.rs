//! The checker objects to every kind of violation. A checker that cannot fail would prove nothing.

use crate::support::checker::{Arrival, Entry, FinalRow, Report, check};

fn entry(id: &str, key: Option<&str>, version: i64) -> Entry {
    Entry {
        id: id.into(),
        key: key.map(str::to_owned),
        version,
        data: format!("data of {id}"),
    }
}

fn arrival(id: &str) -> Arrival {
    Arrival {
        id: id.into(),
        data: format!("data of {id}"),
        bytes: format!("message of {id}").into(),
    }
}

fn published(id: &str) -> FinalRow {
    FinalRow {
        id: id.into(),
        published: true,
        failure: None,
    }
}

/// Two events of key `k`, one of key `l`, one without a key.
fn ledger() -> Vec<Entry> {
    vec![
        entry("a", Some("k"), 1),
        entry("b", Some("k"), 2),
        entry("c", Some("l"), 1),
        entry("d", None, 1),
    ]
}

fn rows() -> Vec<FinalRow> {
    ["a", "b", "c", "d"].map(published).to_vec()
}

fn arrivals(ids: &[&str]) -> Vec<Arrival> {
    ids.iter().map(|id| arrival(id)).collect()
}

/// Only what differs from a flawless run is expected.
#[track_caller]
fn objects(arrivals: &[Arrival], rows: &[FinalRow], expected: Report) {
    let report = check(&ledger(), arrivals, rows);
    assert_eq!(report, expected);
    let refused = std::panic::catch_unwind(|| report.assert_exact(4)).is_err();
    assert!(refused, "an imperfect run passed: {report:?}");
}

fn expected(arrived: usize) -> Report {
    Report {
        arrived,
        ..Report::default()
    }
}

fn list(ids: &[&str]) -> Vec<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

#[test]
fn a_flawless_run_passes() {
    for order in [
        ["a", "b", "c", "d"],
        ["d", "c", "a", "b"],
        ["a", "c", "d", "b"],
    ] {
        check(&ledger(), &arrivals(&order), &rows()).assert_exact(4);
    }
    // Rows may be gone once they are published.
    check(&ledger(), &arrivals(&["a", "b", "c", "d"]), &[]).assert_exact(4);
}

#[test]
fn lost_although_marked() {
    let report = Report {
        lost: list(&["b"]),
        ..expected(3)
    };
    objects(&arrivals(&["a", "c", "d"]), &rows(), report);
}

#[test]
fn lost_with_its_row() {
    let mut rows = rows();
    rows.remove(1);
    let report = Report {
        lost: list(&["b"]),
        ..expected(3)
    };
    objects(&arrivals(&["a", "c", "d"]), &rows, report);
}

#[test]
fn pending_and_failed_rows_are_not_lost_but_not_done() {
    let mut rows = rows();
    rows[1].published = false;
    rows[2].published = false;
    rows[2].failure = Some("dead".into());
    let report = Report {
        pending: list(&["b"]),
        failed: list(&["c dead"]),
        ..expected(2)
    };
    objects(&arrivals(&["a", "d"]), &rows, report);
}

#[test]
fn delivered_but_never_marked() {
    let mut rows = rows();
    rows[3].published = false;
    let report = Report {
        pending: list(&["d"]),
        ..expected(4)
    };
    objects(&arrivals(&["a", "b", "c", "d"]), &rows, report);
}

#[test]
fn phantom() {
    let report = Report {
        phantom: list(&["z"]),
        ..expected(4)
    };
    objects(&arrivals(&["a", "z", "b", "c", "d"]), &rows(), report);
}

#[test]
fn duplicated() {
    let arrivals = arrivals(&["a", "b", "a", "c", "d", "a"]);
    let report = Report {
        duplicated: list(&["a", "a"]),
        ..expected(4)
    };
    objects(&arrivals, &rows(), report);
    // Two copies are within a limit of two: order counts first occurrences only.
    check(&ledger(), &arrivals, &rows()).assert_delivered(4, 2);
    let limit = std::panic::catch_unwind(|| {
        check(&ledger(), &arrivals, &rows()).assert_delivered(4, 1);
    });
    assert!(limit.is_err());
}

#[test]
fn out_of_order() {
    let report = Report {
        out_of_order: list(&["a"]),
        ..expected(4)
    };
    objects(&arrivals(&["b", "c", "a", "d"]), &rows(), report);
}

#[test]
fn altered_payload() {
    let mut arrivals = arrivals(&["a", "b", "c", "d"]);
    arrivals[2].data.push(' ');
    let report = Report {
        altered: list(&["c"]),
        ..expected(4)
    };
    objects(&arrivals, &rows(), report);
}

#[test]
fn a_copy_that_differs() {
    let mut arrivals = arrivals(&["a", "b", "c", "d", "d"]);
    arrivals[4].bytes.push(b'x');
    let report = Report {
        duplicated: list(&["d"]),
        altered: list(&["d"]),
        ..expected(4)
    };
    objects(&arrivals, &rows(), report);
    let report = check(&ledger(), &arrivals, &rows());
    assert!(std::panic::catch_unwind(|| report.assert_delivered(4, 1)).is_err());
}

#[test]
fn an_envelope_that_differs_between_copies() {
    // The payload is the same; a header, a property or the routing key is not.
    let mut arrivals = arrivals(&["a", "b", "c", "d", "a", "a"]);
    arrivals[5].bytes = b"another envelope".to_vec();
    let report = check(&ledger(), &arrivals, &rows());
    assert_eq!(report.altered, list(&["a"]));
    assert_eq!(report.problems(4, 2), ["altered 1 (allowed 0)"]);
}

#[test]
fn order_is_judged_by_first_occurrences_and_per_key() {
    let three = |ids: &[&str]| {
        let mut ledger = ledger();
        ledger.push(entry("e", Some("k"), 3));
        check(&ledger, &arrivals(ids), &[]).out_of_order
    };
    // Copies of earlier events may come at any time after their first.
    assert_eq!(three(&["a", "b", "a", "e", "b", "c", "d"]), list(&[]));
    // Another key, or none, is no order at all.
    assert_eq!(three(&["d", "c", "a", "b", "e"]), list(&[]));
    // An event that came too early is in order; those it overtook are not, each of them.
    assert_eq!(three(&["e", "a", "b", "c", "d"]), list(&["a", "b"]));
    assert_eq!(three(&["a", "e", "b", "c", "d"]), list(&["b"]));
    // A copy that comes in time does not make good for a first that came late.
    assert_eq!(three(&["b", "a", "a", "b", "e", "c", "d"]), list(&["a"]));
}

#[test]
fn an_unmarked_row_that_arrived_is_work_left_and_not_a_loss() {
    let mut rows = rows();
    rows[0].published = false;
    let report = check(&ledger(), &arrivals(&["a", "b", "c", "d"]), &rows);
    assert_eq!(report.problems(4, 0), ["pending 1 (allowed 0)"]);
}

#[test]
fn a_phantom_is_never_counted_as_delivered() {
    let report = check(&ledger(), &arrivals(&["a", "b", "c", "z"]), &rows());
    assert_eq!(report.arrived, 3);
    assert_eq!(
        report.problems(4, 0),
        [
            "of 4 events 3 arrived",
            "lost 1 (allowed 0)",
            "phantom 1 (allowed 0)"
        ]
    );
}

#[test]
fn the_bound_on_copies_is_exact_and_forgives_nothing_else() {
    let arrivals = arrivals(&["b", "a", "a", "b", "c", "d", "d"]);
    let report = check(&ledger(), &arrivals, &rows());
    assert_eq!(
        report.problems(4, 3),
        ["out of order 1 (allowed 0)"],
        "three copies are within a bound of three"
    );
    assert_eq!(
        report.problems(4, 2),
        ["duplicated 3 (allowed 2)", "out of order 1 (allowed 0)"]
    );
    assert!(report.examples().contains("out of order: [\"a\"]"));
}

#[test]
fn nothing_at_all_proves_nothing() {
    let report = check(&[], &[], &[]);
    assert!(std::panic::catch_unwind(|| report.assert_exact(0)).is_err());
}
