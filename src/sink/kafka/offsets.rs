//! What proves a confirm: an offset that no record before had.
//!
//! An idempotent producer numbers its batches, and a broker takes a number that it knows for a repetition: it stores
//! nothing and confirms, at the offset of the batch that it has (or with `DUPLICATE_SEQUENCE_NUMBER` and no offset, when that
//! is long ago), which librdkafka reports as delivered. If the two ever disagree about the numbers, records are
//! confirmed that are nowhere. A true repetition is of a batch whose confirm was lost, so its offset is new here.
//!
//! Invariant: of one producer, the confirmed offsets of a partition only grow. Partitions are confirmed in order, because
//! librdkafka waits for what is in flight before it repeats.

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
