//! The settings of the EventBridge sink, and what does not go with it.

use crate::Case;
use outrigger::settings::{Need, SinkKind};

const BASIC: &[(&str, &str)] = &[
    ("OUTRIGGER_DATABASE_URL", "postgres://u:p@db/orders"),
    ("OUTRIGGER_EVENT_SOURCE", "/orders"),
    ("OUTRIGGER_SINK", "eventbridge"),
];

#[track_caller]
fn check(variables: &[(&str, &str)], expected: &[&str]) {
    let case = Case::new(&[BASIC, variables].concat());
    let mut problems: Vec<String> = match case.load().settings(Need::Relay) {
        Ok(_) => Vec::new(),
        Err(report) => report.problems.iter().map(ToString::to_string).collect(),
    };
    // A build without EventBridge says so beside everything else.
    let missing = problems
        .iter()
        .position(|problem| problem.contains("without it"));
    let built = cfg!(feature = "eventbridge");
    assert_eq!(missing.is_none(), built, "{problems:#?}");
    if let Some(missing) = missing {
        let problem = problems.remove(missing);
        assert!(problem.contains("--features eventbridge"), "{problem}");
    }
    assert_eq!(problems.len(), expected.len(), "{problems:#?}");
    for (problem, part) in problems.iter().zip(expected) {
        assert!(problem.contains(part), "{problem:?} lacks {part:?}");
    }
}

#[test]
fn nothing_is_required_for_aws_has_its_own_ways() {
    check(&[], &[]);
    let case = Case::new(BASIC);
    let loaded = case.load();
    let settings = loaded.provisional();
    assert_eq!(settings.sink, SinkKind::EventBridge);
    assert_eq!(settings.eventbridge.region, None);
    assert_eq!(settings.eventbridge.max_request_size, 256 * 1024);
}

#[test]
fn what_an_entry_does_not_have_is_refused() {
    for (name, value, part) in [
        ("OUTRIGGER_EVENT_MODE", "binary", "must be `structured`"),
        ("OUTRIGGER_EVENT_MODE", "batch", "must be `structured`"),
        ("OUTRIGGER_EVENT_HEADER_PREFIX", "ce-", "no headers"),
        ("OUTRIGGER_EVENTBRIDGE_ENDPOINT", "localhost:4566", "http"),
        (
            "OUTRIGGER_EVENTBRIDGE_MAX_REQUEST_SIZE",
            "2MiB",
            "OUTRIGGER_EVENTBRIDGE_MAX_REQUEST_SIZE",
        ),
    ] {
        check(&[(name, value)], &[part]);
    }
}
