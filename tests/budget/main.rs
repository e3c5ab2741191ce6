//! What an event may cost, counted instead of timed: statements, round trips, frames, allocations.
//!
//! A timing on a busy machine says little and fails for no reason; a count is the same everywhere. Each
//! bound is a constant with its reason. One that is exceeded is a decision to take, not noise: find what
//! made the relay say more than before, and raise the bound only if that is worth it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../support/counting_proxy.rs"]
#[allow(dead_code, unreachable_pub)]
mod counting_proxy;
#[path = "../support/end_to_end/mod.rs"]
mod support;

mod core;
mod encode;
mod proxy;
mod wire;

/// Fails if more was counted than may be.
#[track_caller]
fn at_most(what: &str, counted: u64, most: u64) {
    // Shown with `--nocapture`: how close it is.
    println!("{what}: {counted} of at most {most}");
    assert!(
        counted <= most,
        "{what}: {counted}, at most {most} are budgeted"
    );
}

/// Fails if less was counted than must be.
#[track_caller]
fn at_least(what: &str, counted: u64, least: u64) {
    println!("{what}: {counted} of at least {least}");
    assert!(
        counted >= least,
        "{what}: {counted}, at least {least} are budgeted"
    );
}

#[test]
fn a_budget_that_is_exceeded_fails() {
    let fails = |check: fn()| std::panic::catch_unwind(check).is_err();
    assert!(fails(|| at_most("a", 3, 2)));
    assert!(fails(|| at_least("a", 1, 2)));
    at_most("a", 2, 2);
    at_least("a", 2, 2);
}
