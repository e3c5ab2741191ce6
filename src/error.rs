//! Error kinds chosen for decisions, and the pure policy that turns a kind into an action.
//!
//! A sink reports what happened to each event as a [`Verdict`]; [`RetryPolicy::decide`] turns
//! verdict and attempt count into what the relay does. There is no other place where an
//! event's attempts are counted.

use std::fmt;
use std::time::Duration;

/// An error of the operating system without its number, which says nothing to people: `Connection refused (os error 111)`.
pub fn without_number(text: &str) -> String {
    let Some((before, rest)) = text.split_once(" (os error ") else {
        return text.to_owned();
    };
    match rest.split_once(')') {
        Some((number, after)) if number.bytes().all(|b| b.is_ascii_digit()) => {
            format!("{before}{}", without_number(after))
        }
        _ => text.to_owned(),
    }
}

/// An error with its causes, from the outside in, each said once: libraries often repeat an inner error in the outer one.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let said = inner.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = inner.source();
    }
    text
}

/// What went wrong with one event: a short code for metrics and filters, and a sentence for
/// the operator. Never contains payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// Stable code with bounded cardinality.
    pub code: ReasonCode,
    /// What happened, with the names involved and what to do about it.
    pub detail: String,
}

impl Reason {
    /// A reason with its explanation.
    pub fn new(code: ReasonCode, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.detail)
    }
}

/// Stable reason codes; stored in `outrigger.failures.reason` and used as a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ReasonCode {
    /// The broker refused the message (`basic.nack`), for example a full queue.
    Nack,
    /// The broker routed the message to no queue and returned it.
    Unroutable,
    /// The destination does not exist.
    UnknownDestination,
    /// The broker's permissions forbid publishing there.
    Forbidden,
    /// The message is larger than the broker or the protocol allows.
    TooLarge,
    /// The row cannot be expressed as a valid CloudEvent.
    InvalidEvent,
    /// The route template or override gives no usable destination or routing key.
    InvalidRoute,
    /// A header or property cannot be carried by the protocol.
    InvalidHeader,
    /// The database cannot hand the row out, for example since it holds bytes that are no text.
    Unreadable,
    /// The row was in flight at several crashes and is suspected to cause them.
    Poison,
    /// Any other refusal; the detail says which.
    Other,
}

impl ReasonCode {
    /// Every code, in the order of their declaration: counters are kept by it.
    pub const ALL: [ReasonCode; 11] = [
        Self::Nack,
        Self::Unroutable,
        Self::UnknownDestination,
        Self::Forbidden,
        Self::TooLarge,
        Self::InvalidEvent,
        Self::InvalidRoute,
        Self::InvalidHeader,
        Self::Unreadable,
        Self::Poison,
        Self::Other,
    ];

    /// The code as stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nack => "nack",
            Self::Unroutable => "unroutable",
            Self::UnknownDestination => "unknown_destination",
            Self::Forbidden => "forbidden",
            Self::TooLarge => "too_large",
            Self::InvalidEvent => "invalid_event",
            Self::InvalidRoute => "invalid_route",
            Self::InvalidHeader => "invalid_header",
            Self::Unreadable => "unreadable",
            Self::Poison => "poison",
            Self::Other => "other",
        }
    }
}

/// What a sink says about one event of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The broker confirmed the event *and* routed it to at least one queue. Durable.
    Confirmed,
    /// The broker answered and refused, now; a later attempt may succeed. Counts an attempt.
    Rejected(Reason),
    /// Refused, or not even sent, for a cause outside the event that concerns only some of them: the queue of its route is
    /// on a node that is down, say. Counts no attempt; the key is held, and the event is published again after the wait.
    Postponed {
        /// What it waits for.
        reason: Reason,
        /// How long until the next try.
        after: Duration,
    },
    /// No attempt can ever succeed. Dead at once.
    Impossible(Reason),
    /// The event's fate is unknown or it was never sent: connection lost, timeout, broker
    /// blocked. Burns no attempt; the event is published again.
    Unavailable,
}

/// What the relay does with a failed event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Publish again after this wait; the attempt is counted.
    Retry {
        /// How long to wait, jitter included.
        after: Duration,
    },
    /// Give up: dead letter, release the key.
    Dead,
    /// Give up but keep the key blocked until an operator acts.
    Block,
}

/// What happens to an event whose attempts are used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnExhausted {
    /// Record it as dead and let later events of its key go on.
    #[default]
    Dead,
    /// Keep its key blocked until `dead retry` or `dead discard`.
    Block,
}

/// How often and how patiently a rejected event is tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts in all, the first included. At least 1.
    pub max_attempts: u32,
    /// Wait after the first failed attempt.
    pub backoff_initial: Duration,
    /// Ceiling of the wait.
    pub backoff_max: Duration,
    /// What to do when the attempts are used up.
    pub on_exhausted: OnExhausted,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: 10,
            backoff_initial: Duration::from_millis(500),
            backoff_max: Duration::from_secs(300),
            on_exhausted: OnExhausted::Dead,
        }
    }
}

impl RetryPolicy {
    /// The action after attempt number `attempts` (1 = the first) was rejected.
    ///
    /// `jitter` in `0.0..1.0` is drawn by the caller, so the policy stays pure. The wait doubles
    /// per attempt up to the ceiling, then is spread over its upper half ("equal jitter"), so that
    /// events which failed together do not come back together.
    pub fn decide(&self, attempts: u32, jitter: f64) -> Action {
        if attempts >= self.max_attempts {
            return self.exhausted();
        }
        let doublings = attempts.saturating_sub(1).min(30);
        let ceiling = self
            .backoff_initial
            .saturating_mul(1 << doublings)
            .min(self.backoff_max);
        let after = ceiling.mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0));
        Action::Retry { after }
    }

    /// The action for an event that has no attempts left.
    pub fn exhausted(&self) -> Action {
        match self.on_exhausted {
            OnExhausted::Dead => Action::Dead,
            OnExhausted::Block => Action::Block,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> RetryPolicy {
        RetryPolicy {
            max_attempts: 4,
            backoff_initial: Duration::from_millis(100),
            backoff_max: Duration::from_millis(300),
            on_exhausted: OnExhausted::Dead,
        }
    }

    #[test]
    fn waits_double_up_to_the_ceiling_and_stay_within_their_upper_half() {
        for (attempt, full_ms) in [(1, 100), (2, 200), (3, 300)] {
            for (jitter, share) in [(0.0, 0.5), (0.5, 0.75), (1.0, 1.0)] {
                let expected = Duration::from_millis(full_ms).mul_f64(share);
                assert_eq!(
                    policy().decide(attempt, jitter),
                    Action::Retry { after: expected }
                );
            }
        }
    }

    #[test]
    fn numbers_of_the_operating_system_are_left_out() {
        for (text, expected) in [
            ("a: refused (os error 111)", "a: refused"),
            ("refused (os error 111); b (os error 2): c", "refused; b: c"),
            ("no (os error", "no (os error"),
        ] {
            assert_eq!(without_number(text), expected);
        }
    }

    #[test]
    fn the_last_attempt_ends_as_configured() {
        assert_eq!(policy().decide(4, 0.3), Action::Dead);
        let blocking = RetryPolicy {
            on_exhausted: OnExhausted::Block,
            ..policy()
        };
        assert_eq!(blocking.decide(9, 0.3), Action::Block);
    }

    #[test]
    fn huge_attempt_numbers_do_not_overflow() {
        let patient = RetryPolicy {
            max_attempts: u32::MAX,
            ..policy()
        };
        assert_eq!(
            patient.decide(u32::MAX - 1, 1.0),
            Action::Retry {
                after: Duration::from_millis(300)
            }
        );
    }

    #[test]
    fn codes_are_distinct() {
        let mut codes: Vec<_> = ReasonCode::ALL.iter().map(|c| c.as_str()).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), ReasonCode::ALL.len());
    }
}
