//! Waiting for something named, with a limit.

use std::future::Future;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;

/// Long enough for a busy machine; reached only when something hangs.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Between two looks, not instead of one.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Awaits `future`, or names what did not happen.
#[track_caller]
pub fn within<T>(
    what: &str,
    limit: Duration,
    future: impl Future<Output = T>,
) -> impl Future<Output = T> {
    let caller = std::panic::Location::caller();
    async move {
        match tokio::time::timeout(limit, future).await {
            Ok(value) => value,
            Err(_) => panic!("not within {limit:?}: {what} ({caller})"),
        }
    }
}

/// Looks until `look` finds something. The last thing it complained about is part of the panic.
#[track_caller]
pub fn until<T, F>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> F,
) -> impl Future<Output = T>
where
    F: Future<Output = Result<T, String>>,
{
    let caller = std::panic::Location::caller();
    async move {
        let began = Instant::now();
        loop {
            match look().await {
                Ok(found) => return found,
                Err(seen) if began.elapsed() > limit => {
                    panic!("not within {limit:?}: {what}; last seen: {seen} ({caller})")
                }
                Err(_) => tokio::time::sleep(LOOK_AGAIN).await,
            }
        }
    }
}

/// A generator whose seed is printed, and taken from `OUTRIGGER_TEST_SEED` to repeat a run.
pub fn seeded(test: &str) -> (u64, StdRng) {
    let seed = std::env::var("OUTRIGGER_TEST_SEED")
        .ok()
        .map_or_else(rand::random, |text| text.parse().expect("a number"));
    println!("{test}: OUTRIGGER_TEST_SEED={seed}");
    (seed, StdRng::seed_from_u64(seed))
}
