//! How long a sink waits before it tries again.

use std::time::Duration;

const INITIAL: Duration = Duration::from_millis(100);
const MAX: Duration = Duration::from_secs(5);

/// A connection that lasted this long has proved itself: the next backoff starts afresh.
pub(super) const STABLE_AFTER: Duration = Duration::from_secs(10);

/// The wait after this many failures in a row; `jitter` in `0.0..1.0`.
pub(super) fn backoff(failures: u32, jitter: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let ceiling = INITIAL.saturating_mul(1 << doublings).min(MAX);
    ceiling.mul_f64(0.5 + 0.5 * jitter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_grows_to_its_ceiling() {
        for (failures, full_ms) in [
            (1, 100),
            (2, 200),
            (6, 3_200),
            (7, 5_000),
            (u32::MAX, 5_000),
        ] {
            assert_eq!(backoff(failures, 1.0), Duration::from_millis(full_ms));
            assert_eq!(backoff(failures, 0.0), Duration::from_millis(full_ms / 2));
        }
    }
}
