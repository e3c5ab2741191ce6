//! From librdkafka's delivery reports to verdicts.
//!
//! | report | verdict |
//! |---|---|
//! | delivered (`acks=all`, so every replica in sync has it), at an offset of its own ([`super::offsets`]) | confirmed |
//! | delivered at no offset, or one that a record before had | unavailable |
//! | no connection, no leader, too few replicas in sync, purged, anything that librdkafka calls fatal | unavailable |
//! | no such topic or partition, no permission, refused by a rule of the topic | rejected |
//! | larger than the topic allows, no legal name for a topic | impossible |
//!
//! **A broker refuses batches of records, not records.** One record that is too large, or without the
//! key that a compacted topic demands, takes its whole batch with it. So such a report says nothing about a
//! record until that was sent alone: see [`Report::Shared`].

use std::sync::{Mutex, PoisonError};

use rdkafka::types::RDKafkaErrorCode as Code;
use tokio::sync::Notify;

use crate::error::{Reason, ReasonCode, Verdict};

/// What a delivery report says about one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Report {
    /// This record's own fate.
    Own(Verdict),
    /// Refused together with its batch; this is the verdict if it was alone.
    Shared(Verdict),
    /// The topic is not there (any more): worth forgetting that it was.
    Missing(Verdict),
}

/// The report for a record whose delivery failed with `code`.
pub(super) fn report(code: Code, topic: &str) -> Report {
    let reason =
        |reason, text: &str| Reason::new(reason, format!("topic `{topic}`: {text} ({code})"));
    let rejected = |code, text: &str| Verdict::Rejected(reason(code, text));
    match code {
        Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition => {
            Report::Missing(unknown_topic(topic))
        }
        Code::TopicAuthorizationFailed => Report::Own(forbidden(topic)),
        Code::InvalidTopic => Report::Own(Verdict::Impossible(reason(
            ReasonCode::InvalidRoute,
            "Kafka does not allow this name; correct the row's destination",
        ))),
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge | Code::InvalidMessageSize => {
            Report::Shared(Verdict::Impossible(reason(
                ReasonCode::TooLarge,
                "the record is larger than the topic's `max.message.bytes`; raise that, or lower \
             OUTRIGGER_KAFKA_MAX_MESSAGE_SIZE to match it",
            )))
        }
        Code::InvalidRecord | Code::InvalidMessage => Report::Shared(rejected(
            ReasonCode::Nack,
            "the broker refuses the record; a compacted topic takes none without a key",
        )),
        // Another one of the batch was wrong.
        Code::InvalidDifferentRecord => Report::Shared(Verdict::Unavailable),
        Code::InvalidTimestamp => Report::Own(rejected(
            ReasonCode::Nack,
            "the broker's clock and this one's differ by more than the topic allows (`message.timestamp…`); set the clocks right",
        )),
        Code::PolicyViolation => Report::Own(rejected(
            ReasonCode::Nack,
            "a policy of the broker refuses the record; see the broker's log",
        )),
        Code::UnsupportedCompressionType => Report::Own(rejected(
            ReasonCode::Other,
            "the broker or the topic does not know this compression; change OUTRIGGER_KAFKA_COMPRESSION",
        )),
        code if is_outage(code) => Report::Own(Verdict::Unavailable),
        _ => Report::Own(rejected(
            ReasonCode::Other,
            "the broker refuses the record; see its log",
        )),
    }
}

/// The verdict alone.
pub(super) fn verdict(code: Code, topic: &str) -> Verdict {
    match report(code, topic) {
        Report::Own(verdict) | Report::Shared(verdict) | Report::Missing(verdict) => verdict,
    }
}

/// The verdict on a message whose topic is not there.
pub(super) fn unknown_topic(topic: &str) -> Verdict {
    Verdict::Rejected(Reason::new(
        ReasonCode::UnknownDestination,
        format!("there is no topic `{topic}`; create it, or correct the row's destination"),
    ))
}

/// The verdict on a message whose topic is closed to us.
pub(super) fn forbidden(topic: &str) -> Verdict {
    Verdict::Rejected(Reason::new(
        ReasonCode::Forbidden,
        format!("this user may not write to topic `{topic}`; grant WRITE and DESCRIBE on it"),
    ))
}

/// Whether the cluster, the way to it, or our own producer is at fault, and not the record.
fn is_outage(code: Code) -> bool {
    use Code::*;
    matches!(
        code,
        // Said by librdkafka itself.
        BrokerDestroy
            | Fail
            | BrokerTransportFailure
            | Resolve
            | MessageTimedOut
            | AllBrokersDown
            | OperationTimedOut
            | QueueFull
            | ISRInsufficient
            | NodeUpdate
            | SSL
            | Interrupted
            | Authentication
            | TimedOutQueue
            | UnsupportedFeature
            | WaitCache
            | PurgeQueue
            | PurgeInflight
            | Retry
            | Fatal
            | Inconsistent
            | GaplessGuarantee
            | State
            | Fenced
            | UnknownBroker
            // Said by a broker.
            | Unknown
            | LeaderNotAvailable
            | NotLeaderForPartition
            | RequestTimedOut
            | BrokerNotAvailable
            | ReplicaNotAvailable
            | NetworkException
            | NotEnoughReplicas
            | NotEnoughReplicasAfterAppend
            | ClusterAuthorizationFailed
            | SaslAuthenticationFailed
            | KafkaStorageError
            | OutOfOrderSequenceNumber
            | DuplicateSequenceNumber
            | InvalidProducerEpoch
            | InvalidProducerIdMapping
            | UnknownProducerId
            | ProducerFenced
            | ThrottlingQuotaExceeded
            | FencedLeaderEpoch
            | StaleBrokerEpoch
            | UnknownLeaderEpoch
    )
}

/// The reports on one batch: written by librdkafka's thread, awaited by the lane.
pub(super) struct Reports {
    inner: Mutex<Inner>,
    done: Notify,
}

struct Inner {
    reports: Vec<Option<Report>>,
    missing: usize,
}

impl Reports {
    /// Room for `count` records, all of them open.
    pub(super) fn new(count: usize) -> Self {
        Self {
            inner: Mutex::new(Inner {
                reports: vec![None; count],
                missing: count,
            }),
            done: Notify::new(),
        }
    }

    /// Sets one; only the first report counts.
    pub(super) fn set(&self, index: usize, report: Report) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot @ None) = inner.reports.get_mut(index) {
            *slot = Some(report);
            inner.missing -= 1;
            if inner.missing == 0 {
                // One lane waits, and finds the permit also if it comes later.
                self.done.notify_one();
            }
        }
    }

    /// Waits until all are there.
    pub(super) async fn complete(&self) {
        let missing = |reports: &Self| {
            let inner = reports.inner.lock();
            inner.unwrap_or_else(PoisonError::into_inner).missing
        };
        while missing(self) > 0 {
            self.done.notified().await;
        }
    }

    /// What is there by now.
    pub(super) fn take(&self) -> Vec<Option<Report>> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.missing = 0;
        std::mem::take(&mut inner.reports)
    }
}

/// Goes with a record through librdkafka, and finds its report's place.
pub(super) struct Ticket {
    pub(super) reports: std::sync::Arc<Reports>,
    pub(super) index: usize,
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_no_rejection() {
        for code in [
            Code::BrokerTransportFailure,
            Code::MessageTimedOut,
            Code::QueueFull,
            Code::PurgeQueue,
            Code::PurgeInflight,
            Code::Fatal,
            Code::NotEnoughReplicas,
            Code::NotEnoughReplicasAfterAppend,
            Code::LeaderNotAvailable,
            Code::RequestTimedOut,
            Code::OutOfOrderSequenceNumber,
            Code::ClusterAuthorizationFailed,
            Code::KafkaStorageError,
        ] {
            assert_eq!(
                report(code, "t"),
                Report::Own(Verdict::Unavailable),
                "{code}"
            );
        }
    }

    #[test]
    fn refusals_say_why() {
        let code = |report| match report {
            Report::Own(Verdict::Rejected(reason) | Verdict::Impossible(reason))
            | Report::Shared(Verdict::Rejected(reason) | Verdict::Impossible(reason))
            | Report::Missing(Verdict::Rejected(reason) | Verdict::Impossible(reason)) => {
                assert!(reason.detail.contains("`t`"), "{reason}");
                reason.code
            }
            other => panic!("{other:?}"),
        };
        for (from, to) in [
            (Code::UnknownTopic, ReasonCode::UnknownDestination),
            (
                Code::UnknownTopicOrPartition,
                ReasonCode::UnknownDestination,
            ),
            (Code::TopicAuthorizationFailed, ReasonCode::Forbidden),
            (Code::InvalidTopic, ReasonCode::InvalidRoute),
            (Code::MessageSizeTooLarge, ReasonCode::TooLarge),
            (Code::InvalidRecord, ReasonCode::Nack),
            (Code::PolicyViolation, ReasonCode::Nack),
            (Code::InvalidConfig, ReasonCode::Other),
        ] {
            assert_eq!(code(report(from, "t")), to, "{from}");
        }
        assert!(matches!(
            report(Code::MessageSizeTooLarge, "t"),
            Report::Shared(Verdict::Impossible(_))
        ));
    }

    #[tokio::test]
    async fn the_first_report_counts_and_the_last_one_wakes() {
        let reports = Reports::new(2);
        reports.set(1, Report::Own(Verdict::Confirmed));
        reports.set(1, Report::Own(Verdict::Unavailable));
        reports.set(7, Report::Own(Verdict::Unavailable));
        reports.set(0, Report::Own(Verdict::Unavailable));
        reports.complete().await;
        assert_eq!(
            reports.take(),
            [
                Some(Report::Own(Verdict::Unavailable)),
                Some(Report::Own(Verdict::Confirmed))
            ]
        );
        // One that comes too late finds no place.
        reports.set(0, Report::Own(Verdict::Confirmed));
        Reports::new(0).complete().await;
    }
}
