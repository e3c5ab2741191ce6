//! What proves a confirm: an offset that no record before had.
//!
//! librdkafka reports records of an idempotent producer as delivered that no broker says are there:
//!
//! - **By inference.** Request 1 fails, request 2 of its partition succeeds; since brokers take no gap in a producer's numbers,
//!   request 1 must have been stored after all (`rd_kafka_dr_implicit_ack`). But brokers do take a gap of a producer they
//!   do not know (`ProducerAppendInfo.checkSequence`; KAFKA-19880). So the first request of a new producer, or the first one
//!   to a new topic, may be refused (no leader yet), the second one stored, and the first one is lost. With Apache
//!   Kafka a confirm was inferred on 2 of 150 topics that were created while their first records came.
//! - **As a repetition.** A broker that takes a batch for one stores nothing and confirms it, at the offset of the batch that it
//!   has, or with `DUPLICATE_SEQUENCE_NUMBER` and no offset. Producer and broker need to agree about numbers for that.
//!
//! Either has no offset of its own. A true repetition has: its first confirm was lost, so the offset is new here. A
//! true inference has none, and is repeated in vain; that costs duplicates, and the other costs events.
//!
//! Invariant: of one producer, the confirmed offsets of a partition only grow. Partitions are confirmed in order, because
//! librdkafka waits for what is in flight before it repeats. What is inferred is reported before the request that it was
//! inferred from, so nothing behind a doubt counts as confirmed either.

use std::collections::HashMap;

/// The offsets that one producer's records were confirmed at.
#[derive(Debug, Default)]
pub(super) struct Offsets {
    /// By topic and partition, the highest so far; below zero, none.
    last: HashMap<String, Vec<i64>>,
    /// Whether one was confirmed that is not there.
    broken: bool,
}

/// A record was confirmed at an offset that is not its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doubt {
    /// The first one: the offset before it. Below zero: none.
    First(i64),
    /// Another one before it was: what this producer hears cannot be relied on any more.
    Again,
}

impl Offsets {
    /// Takes in a confirm. `Err`: it proves nothing.
    pub(super) fn confirmed(
        &mut self,
        topic: &str,
        partition: i32,
        offset: i64,
    ) -> Result<(), Doubt> {
        if self.broken {
            return Err(Doubt::Again);
        }
        let partition = usize::try_from(partition).unwrap_or_default();
        // Looked up once more only for a new topic: `entry` would need a name of its own each time.
        let partitions = match self.last.get_mut(topic) {
            Some(partitions) => partitions,
            None => self.last.entry(topic.to_owned()).or_default(),
        };
        if partitions.len() <= partition {
            partitions.resize(partition + 1, -1);
        }
        let last = &mut partitions[partition];
        if offset <= *last {
            self.broken = true;
            return Err(Doubt::First(*last));
        }
        *last = offset;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_grow_by_partition() {
        let mut offsets = Offsets::default();
        for (topic, partition, offset) in [
            ("a", 1, 0),
            ("a", 0, 0),
            ("b", 1, 0),
            ("a", 1, 1),
            ("a", 1, 9),
        ] {
            assert_eq!(offsets.confirmed(topic, partition, offset), Ok(()));
        }
        assert_eq!(offsets.confirmed("a", 1, 9), Err(Doubt::First(9)));
        assert_eq!(offsets.confirmed("a", 0, 1), Err(Doubt::Again));
    }

    #[test]
    fn a_confirm_without_an_offset_proves_nothing() {
        assert_eq!(
            Offsets::default().confirmed("a", 0, -1),
            Err(Doubt::First(-1))
        );
    }
}
