//! The log's lines about failing events: one for each kind, at most every few seconds, and none left unsaid.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::error::ReasonCode;
use crate::store::{Failure, FailureState};

/// Lines about failing events of one kind appear at most this often.
const QUIET: Duration = Duration::from_secs(5);

type Kind = (FailureState, Option<ReasonCode>);

/// What was said about one kind, and what is still to be said.
#[derive(Debug)]
struct Said {
    at: Instant,
    unsaid: usize,
    /// Of those not said yet.
    example: Option<Failure>,
}

/// Sums up failures that come faster than anyone reads.
#[derive(Debug, Default)]
pub(super) struct Failing(HashMap<Kind, Said>);

impl Failing {
    /// Failures about to be recorded: one line for each kind, with an example. What comes too soon after the last line is
    /// summed up in the next one.
    pub(super) fn failed(&mut self, failures: &[Failure]) {
        for (kind, count, example) in self.due(failures, Instant::now()) {
            say(kind, count, &example);
        }
    }

    /// Says what was held back and is due; with `all`, everything, as at the end.
    pub(super) fn flush(&mut self, all: bool) {
        for (kind, count, example) in self.held_back(all, Instant::now()) {
            say(kind, count, &example);
        }
    }

    fn due(&mut self, failures: &[Failure], now: Instant) -> Vec<(Kind, usize, Failure)> {
        let mut kinds: HashMap<Kind, Vec<&Failure>> = HashMap::new();
        for failure in failures {
            let code = failure.reason.as_ref().map(|reason| reason.code);
            kinds
                .entry((failure.state, code))
                .or_default()
                .push(failure);
        }
        let mut lines = Vec::new();
        for (kind, failures) in kinds {
            let Some(example) = failures.first().map(|failure| (*failure).clone()) else {
                continue;
            };
            match self.0.get_mut(&kind) {
                Some(said) if now.saturating_duration_since(said.at) < QUIET => {
                    said.unsaid += failures.len();
                    said.example.get_or_insert(example);
                }
                said => {
                    let before = said.map_or(0, |said| said.unsaid);
                    lines.push((kind, failures.len() + before, example));
                    let said = Said {
                        at: now,
                        unsaid: 0,
                        example: None,
                    };
                    self.0.insert(kind, said);
                }
            }
        }
        lines
    }

    fn held_back(&mut self, all: bool, now: Instant) -> Vec<(Kind, usize, Failure)> {
        let mut lines = Vec::new();
        for (kind, said) in &mut self.0 {
            if (all || now.saturating_duration_since(said.at) >= QUIET)
                && let Some(example) = said.example.take()
            {
                lines.push((*kind, std::mem::take(&mut said.unsaid), example));
                said.at = now;
            }
        }
        lines
    }
}

fn say((state, code): Kind, count: usize, example: &Failure) {
    let (seq, id) = (example.seq, example.event_id.as_str());
    let (kind, attempts) = (example.event_type.as_str(), example.attempts);
    let detail = example
        .reason
        .as_ref()
        .map_or("", |reason| reason.detail.as_str());
    let reason = code.map_or("crash", ReasonCode::as_str);
    match state {
        FailureState::Retrying => tracing::warn!(
            count,
            reason,
            seq,
            id,
            r#type = kind,
            attempts,
            "event refused, will retry: {detail}"
        ),
        FailureState::Blocked => tracing::error!(
            count,
            reason,
            seq,
            id,
            r#type = kind,
            attempts,
            "event given up, its key is blocked until `outrigger dead retry` or `discard`: {detail}"
        ),
        FailureState::Dead => tracing::error!(
            count,
            reason,
            seq,
            id,
            r#type = kind,
            attempts,
            "event dead, see `outrigger dead list`: {detail}"
        ),
        FailureState::Unsettled => tracing::warn!(
            count,
            seq,
            id,
            r#type = kind,
            attempts,
            "event published, but its row could not be settled; that is tried again, the event is not published again: {detail}"
        ),
        FailureState::Suspect => tracing::warn!(
            count,
            seq,
            id,
            r#type = kind,
            "the last owner died soon after it took over: publishing its rows with care"
        ),
        // No failures: an operator records the one, a settle the other.
        FailureState::Discarded | FailureState::Expired => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Reason;

    fn dead(seq: i64) -> Failure {
        Failure {
            seq,
            hash: 0,
            keyed: false,
            event_id: String::new(),
            event_type: "t".to_owned(),
            key: None,
            state: FailureState::Dead,
            attempts: 1,
            crashes: 0,
            reason: Some(Reason::new(ReasonCode::Unroutable, "nowhere")),
            retry_after: None,
        }
    }

    #[test]
    fn every_failure_is_counted_in_some_line() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut failing = Failing::default();
        let counts = |lines: Vec<(Kind, usize, Failure)>| {
            lines
                .into_iter()
                .map(|(_, count, example)| (count, example.seq))
                .collect::<Vec<_>>()
        };
        assert_eq!(counts(failing.due(&[dead(1)], at(0))), [(1, 1)]);
        // Too soon: nothing yet, and nothing for the asking.
        assert_eq!(counts(failing.due(&[dead(2), dead(3)], at(1))), []);
        assert_eq!(counts(failing.due(&[dead(4)], at(2))), []);
        assert_eq!(counts(failing.held_back(false, at(4))), []);
        // Nothing else comes, and they are said all the same, once.
        assert_eq!(counts(failing.held_back(false, at(5))), [(3, 2)]);
        assert_eq!(counts(failing.held_back(true, at(20))), []);
        // Summed up in the next line.
        assert_eq!(counts(failing.due(&[dead(5)], at(6))), []);
        assert_eq!(counts(failing.due(&[dead(6)], at(11))), [(2, 6)]);
        // A stop says what is left.
        assert_eq!(counts(failing.due(&[dead(7)], at(12))), []);
        assert_eq!(counts(failing.held_back(true, at(12))), [(1, 7)]);
    }
}
