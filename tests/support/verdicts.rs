//! Verdicts, compared.

#![allow(dead_code, unreachable_pub)]

use outrigger::error::{ReasonCode, Verdict};

/// What matters of a verdict, for comparing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Is {
    Confirmed,
    Rejected(ReasonCode),
    Impossible(ReasonCode),
    Postponed(ReasonCode),
    Unavailable,
}

pub fn is(verdict: &Verdict) -> Is {
    match verdict {
        Verdict::Confirmed => Is::Confirmed,
        Verdict::Rejected(reason) => Is::Rejected(reason.code),
        Verdict::Impossible(reason) => Is::Impossible(reason.code),
        Verdict::Postponed { reason, .. } => Is::Postponed(reason.code),
        Verdict::Unavailable => Is::Unavailable,
    }
}

/// Compares verdicts, showing only the differences.
#[track_caller]
pub fn assert_verdicts(context: &str, verdicts: &[Verdict], expected: impl Fn(usize) -> Is) {
    let wrong: Vec<_> = verdicts
        .iter()
        .enumerate()
        .filter(|(index, verdict)| is(verdict) != expected(*index))
        .map(|(index, verdict)| format!("{index}: {verdict:?}, not {:?}", expected(index)))
        .collect();
    assert!(wrong.is_empty(), "{context}: {wrong:#?}");
}
