//! The relay core against a model of Postgres and RabbitMQ: thousands of seeded runs of concurrent
//! writers, late commits, crashes, freezes, outages, rejections and hand-overs, each checked against
//! the delivery contract.
//!
//! `SIM_SEEDS=n` changes the number of runs. A failing seed is replayed, with a log of everything that
//! happened, by `SIM_SEED=n cargo test --test simulation replay -- --nocapture`.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used
)]

mod database;
mod random;
mod world;

use outrigger::relay::core::window::Ordering;
use world::{Outcome, Scenario, World};

/// A deliberately broken relay, to show that the simulation notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// The relay as it is.
    None,
    /// Each confirm's own word is taken for the fate of its message.
    TrustEachConfirm,
    /// Reading by a cursor: late commits below it are not looked for.
    CursorWithoutSweep,
    /// A failing event is retried behind later events of its key.
    RetryBehindItsKey,
    /// Rows are marked when they are sent, not when they are confirmed.
    SettleBeforeConfirm,
    /// A partition is claimed without regard to its owner's lease.
    TwoOwners,
    /// The bound of a read ignores who may still commit below it.
    IgnoreLocks,
    /// Failure records are matched with rows by number alone.
    RecordsByNumber,
    /// Replicas of different configurations share the partitions.
    MixConfigurations,
    /// A replica that was taken for dead keeps its place before those that took over.
    SleepersKeepTheirPlace,
    /// A settle is believed, whatever it changed.
    BelieveSettles,
    /// A read fails if one of its rows cannot be read.
    ReadAllOrNothing,
    /// Keys that are parked are read all the same.
    ReadParkedKeys,
    /// Keys are unparked by whoever settles their failing row, not by their owner when it has caught up.
    UnparkWhenSettled,
    /// After a crash, rows are read whole before it is recorded that they will be.
    ReadBeforeRecording,
}

impl Mutation {
    /// Makes sure the situation arises in which the variant is wrong.
    fn adjust(self, scenario: &mut Scenario) {
        match self {
            Mutation::None | Mutation::ReadAllOrNothing => {}
            Mutation::ReadBeforeRecording => scenario.faults = true,
            Mutation::ReadParkedKeys | Mutation::UnparkWhenSettled => {
                scenario.rejections = true;
                scenario.ordering = Ordering::Strict;
                scenario.max_held = 0;
            }
            Mutation::TrustEachConfirm | Mutation::RetryBehindItsKey => {
                scenario.rejections = true;
                scenario.ordering = Ordering::Strict;
            }
            Mutation::CursorWithoutSweep | Mutation::IgnoreLocks => {
                scenario.ordering = Ordering::Strict;
                scenario.faults = false;
                scenario.long_percent = 20;
            }
            Mutation::RecordsByNumber => {
                scenario.rejections = true;
                scenario.emptied = true;
            }
            Mutation::BelieveSettles => {
                scenario.faults = false;
                scenario.inert = true;
            }
            Mutation::SettleBeforeConfirm => scenario.faults = true,
            Mutation::SleepersKeepTheirPlace => {
                scenario.faults = true;
                scenario.replicas = 3;
                scenario.configurations = 2;
            }
            Mutation::MixConfigurations => {
                scenario.faults = false;
                scenario.replicas = 3;
                scenario.configurations = 2;
            }
            Mutation::TwoOwners => {
                scenario.faults = false;
                scenario.replicas = 3;
                scenario.ordering = Ordering::Strict;
            }
        }
    }
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|value| value.parse().expect("a whole number"))
}

fn run(seed: u64, mutation: Mutation, verbose: bool) -> Result<Outcome, String> {
    let outcome = std::panic::catch_unwind(|| World::new(seed, mutation, verbose).run());
    outcome.unwrap_or_else(|_| Err("the core panicked".to_owned()))
}

#[test]
fn ten_thousand_seeds_keep_every_promise() {
    let seeds = setting("SIM_SEEDS").unwrap_or(10_000);
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get() as u64);
    let mut failed: Vec<(u64, String)> = Vec::new();
    let mut total = Outcome::default();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn(move || {
                    let mut failed = Vec::new();
                    let mut total = Outcome::default();
                    for seed in (thread..seeds).step_by(threads as usize) {
                        match run(seed, Mutation::None, false) {
                            Ok(outcome) => {
                                total.committed += outcome.committed;
                                total.delivered += outcome.delivered;
                                total.duplicates += outcome.duplicates;
                                total.dead += outcome.dead;
                                total.faults += outcome.faults;
                                total.handovers += outcome.handovers;
                                total.parked += outcome.parked;
                            }
                            Err(error) => failed.push((seed, error)),
                        }
                        if failed.len() > 20 {
                            break;
                        }
                    }
                    (failed, total)
                })
            })
            .collect();
        for worker in workers {
            let (some, outcome) = worker.join().unwrap();
            failed.extend(some);
            total.committed += outcome.committed;
            total.delivered += outcome.delivered;
            total.duplicates += outcome.duplicates;
            total.dead += outcome.dead;
            total.faults += outcome.faults;
            total.handovers += outcome.handovers;
            total.parked += outcome.parked;
        }
    });
    println!("{seeds} seeds: {total:?}");
    failed.sort();
    for (seed, error) in failed.iter().take(10) {
        println!("seed {seed}: {error}");
        println!("  replay: SIM_SEED={seed} cargo test --test simulation replay -- --nocapture");
    }
    assert!(
        failed.is_empty(),
        "{} of {seeds} seeds failed",
        failed.len()
    );
    // The runs are not vacuous.
    assert!(total.faults > 0 && total.duplicates > 0 && total.dead > 0);
    assert!(total.handovers > 0 && total.parked > 0);
}

/// Replays one seed with a log; without `SIM_SEED`, a fixed one, so that the log keeps working.
#[test]
fn replay() {
    let seed = setting("SIM_SEED");
    let outcome = run(seed.unwrap_or(1), Mutation::None, seed.is_some());
    println!("{outcome:?}");
    outcome.unwrap();
}

fn is_caught(mutation: Mutation) {
    let caught =
        (0..500).find_map(|seed| run(seed, mutation, false).err().map(|error| (seed, error)));
    let (seed, error) =
        caught.unwrap_or_else(|| panic!("{mutation:?} was not noticed in 500 seeds"));
    println!("{mutation:?}: seed {seed}: {error}");
    assert!(
        !error.contains("panicked"),
        "noticed by a panic only: {error}"
    );
}

#[test]
fn trusting_each_confirm_is_caught() {
    is_caught(Mutation::TrustEachConfirm);
}

#[test]
fn a_cursor_without_sweep_is_caught() {
    is_caught(Mutation::CursorWithoutSweep);
}

#[test]
fn retrying_behind_the_key_is_caught() {
    is_caught(Mutation::RetryBehindItsKey);
}

#[test]
fn settling_before_the_confirm_is_caught() {
    is_caught(Mutation::SettleBeforeConfirm);
}

#[test]
fn two_owners_are_caught() {
    is_caught(Mutation::TwoOwners);
}

#[test]
fn ignoring_open_writers_is_caught() {
    is_caught(Mutation::IgnoreLocks);
}

#[test]
fn records_matched_by_number_alone_are_caught() {
    is_caught(Mutation::RecordsByNumber);
}

#[test]
fn sharing_with_another_configuration_is_caught() {
    is_caught(Mutation::MixConfigurations);
}

#[test]
fn sleepers_that_keep_their_place_are_caught() {
    is_caught(Mutation::SleepersKeepTheirPlace);
}

#[test]
fn believing_every_settle_is_caught() {
    is_caught(Mutation::BelieveSettles);
}

#[test]
fn reading_all_or_nothing_is_caught() {
    is_caught(Mutation::ReadAllOrNothing);
}

#[test]
fn reading_before_recording_is_caught() {
    is_caught(Mutation::ReadBeforeRecording);
}

#[test]
fn reading_parked_keys_is_caught() {
    is_caught(Mutation::ReadParkedKeys);
}

#[test]
fn unparking_when_the_failing_row_is_settled_is_caught() {
    is_caught(Mutation::UnparkWhenSettled);
}
