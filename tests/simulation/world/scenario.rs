//! What may go wrong in a run.

use outrigger::relay::core::window::Ordering;

use crate::random::Random;

/// What may go wrong in this run.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// Crashes, freezes, outages.
    pub faults: bool,
    /// The broker refuses some events.
    pub rejections: bool,
    pub ordering: Ordering,
    pub replicas: usize,
    /// Share of transactions that stay open for seconds, in percent.
    pub long_percent: u64,
    /// Writers hardly rest, so that keys fall behind.
    pub busy: bool,
    /// Somebody empties the table and restarts its sequence.
    pub emptied: bool,
    /// Configurations that send events to different places; a replica that starts has one of them.
    pub configurations: u64,
    /// Failing keys in memory; the others are parked.
    pub max_held: usize,
    /// For a while settling changes nothing, or some rows are locked.
    pub inert: bool,
}

impl Scenario {
    pub(super) fn draw(random: &mut Random) -> Self {
        let ordering = match random.below(8) {
            0 => Ordering::Pipelined,
            1 => Ordering::None,
            _ => Ordering::Strict,
        };
        Self {
            faults: random.chance(60),
            rejections: random.chance(50),
            ordering,
            replicas: random.between(1, 3) as usize,
            long_percent: random.below(20),
            busy: random.chance(30),
            emptied: random.chance(15),
            configurations: if random.chance(30) { 2 } else { 1 },
            inert: random.chance(20),
            max_held: [0, 1, 3, 10_000][random.below(4) as usize],
        }
    }
}
