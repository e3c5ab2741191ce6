//! When to read next: adaptive polling, with notifications as a hint.
//!
//! Polling alone finds every row. A notification only shortens the wait, and writers send one only
//! while the relay is *quiet*: under load the relay extends `awake_until` in the database, writers skip
//! the NOTIFY (which would serialise their commits), and every replica polls at
//! 25 ms or faster until the time stored there has passed, plus a grace period for
//! transactions that looked at the flag just before. Then it relies on notifications again, with a
//! poll every [`FALLBACK`].

use std::time::Duration;

use super::Time;

/// Wait after a read that brought rows but did not fill up.
const BUSY_MIN: Duration = Duration::from_millis(2);
/// Longest wait between polls while writers do not notify.
const BUSY_MAX: Duration = Duration::from_millis(25);
/// Longest wait between polls while writers notify.
pub const FALLBACK: Duration = Duration::from_secs(4);
/// How long polling goes on after `awake_until`, for transactions that asked before and commit after.
const GRACE: Duration = Duration::from_secs(2);
/// How long one extension keeps writers from notifying.
pub const AWAKE_HORIZON: Duration = Duration::from_secs(30);
/// Reads with rows (weighted, see [`Pace::read_done`]) from which on the relay counts as busy.
const BUSY_SCORE: f64 = 10.0;
/// How fast the score decays, per second.
const BUSY_DECAY: f64 = 20.0;

/// Why the relay looks for rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WakeReason {
    /// A writer or another replica notified.
    Notify,
    /// The poll timer.
    Poll,
    /// The last read was full.
    More,
    /// Partitions were gained or records changed.
    Change,
}

impl WakeReason {
    /// Every reason, for counting.
    pub const ALL: [WakeReason; 4] = [Self::Notify, Self::Poll, Self::More, Self::Change];

    /// Its name, as a metric label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Notify => "notify",
            Self::Poll => "poll",
            Self::More => "more",
            Self::Change => "change",
        }
    }
}

/// See the module documentation.
#[derive(Debug, Clone)]
pub struct Pace {
    /// Longest wait between polls where notifications cannot be had.
    poll_interval: Duration,
    /// Whether notifications arrive.
    listening: bool,
    next: Time,
    /// Woken since the read now out began: what woke us may be too late for its snapshot.
    woken: bool,
    reason: WakeReason,
    interval: Duration,
    awake_until: Time,
    score: f64,
    scored_at: Time,
}

impl Pace {
    /// Polls at once.
    pub fn new(poll_interval: Duration) -> Self {
        Self {
            poll_interval,
            listening: false,
            next: Time::ZERO,
            woken: false,
            reason: WakeReason::Change,
            interval: BUSY_MIN,
            awake_until: Time::ZERO,
            score: 0.0,
            scored_at: Time::ZERO,
        }
    }

    /// Notifications arrive from now on, or no longer.
    pub fn set_listening(&mut self, now: Time, listening: bool) {
        if listening && !self.listening {
            self.wake(now, WakeReason::Change);
        }
        self.listening = listening;
        self.next = self.next.min(now + self.longest(now));
    }

    /// Look now.
    pub fn wake(&mut self, now: Time, reason: WakeReason) {
        if self.next > now {
            self.next = now;
            self.reason = reason;
        }
        self.woken = true;
        self.interval = BUSY_MIN;
    }

    /// A main read begins.
    pub fn read_started(&mut self) {
        self.woken = false;
    }

    /// Writers skip notifications for this much longer.
    pub fn awake_for(&mut self, now: Time, left: Duration) {
        if left.is_zero() {
            // Over for some time; `awake_until` remembers since when.
            return;
        }
        self.awake_until = now + left;
        self.next = self.next.min(now + self.longest(now));
    }

    /// When the next main read is due.
    pub fn due(&self) -> Time {
        self.next
    }

    /// Why it is due.
    pub fn reason(&self) -> WakeReason {
        self.reason
    }

    /// Whether writers should be told (again) to skip notifications.
    pub fn wants_awake(&self, now: Time) -> bool {
        self.score_at(now) >= BUSY_SCORE && self.awake_until < now + AWAKE_HORIZON / 2
    }

    fn score_at(&self, now: Time) -> f64 {
        let idle = now.saturating_sub(self.scored_at).as_secs_f64();
        (self.score - idle * BUSY_DECAY).max(0.0)
    }

    /// Longest wait between polls in the present state.
    fn longest(&self, now: Time) -> Duration {
        if !self.listening {
            self.poll_interval
        } else if now < self.awake_until + GRACE && self.awake_until > Time::ZERO {
            BUSY_MAX
        } else {
            FALLBACK
        }
    }

    /// A main read ended with this many new rows; `cut`: more are there.
    pub fn read_done(&mut self, now: Time, rows: usize, cut: bool) {
        if rows > 0 {
            self.score = (self.score_at(now) + 1.0).min(3.0 * BUSY_SCORE);
            self.scored_at = now;
        }
        let woken = std::mem::take(&mut self.woken);
        if cut || woken {
            self.next = now;
            self.reason = if cut {
                WakeReason::More
            } else {
                WakeReason::Notify
            };
            self.interval = BUSY_MIN;
            return;
        }
        let longest = self.longest(now);
        self.interval = if rows > 0 {
            BUSY_MIN
        } else {
            self.interval * 2
        };
        // A quiet relay is told of each commit: after looking there is nothing to poll for.
        let wait = if longest == FALLBACK {
            FALLBACK
        } else {
            self.interval.min(longest)
        };
        self.interval = self.interval.min(longest);
        self.next = now + wait;
        self.reason = WakeReason::Poll;
    }

    /// A read failed: try again soon, but not at once.
    pub fn read_failed(&mut self, now: Time, wait: Duration) {
        self.next = now + wait;
        self.reason = WakeReason::Poll;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn without_notifications_it_backs_off_to_the_poll_interval() {
        let mut pace = Pace::new(ms(250));
        let mut now = ms(1);
        let mut waits = Vec::new();
        for _ in 0..9 {
            pace.read_done(now, 0, false);
            waits.push((pace.due() - now).as_millis());
            now = pace.due();
        }
        assert_eq!(waits, [4, 8, 16, 32, 64, 128, 250, 250, 250]);
        pace.read_done(now, 3, false);
        assert_eq!(pace.due() - now, BUSY_MIN);
    }

    #[test]
    fn quiet_and_listening_it_waits_for_a_notification_or_the_fallback() {
        let mut pace = Pace::new(ms(250));
        pace.set_listening(ms(1), true);
        pace.read_started();
        pace.read_done(ms(2), 1, false);
        assert_eq!(pace.due(), ms(2) + FALLBACK);
        pace.wake(ms(50), WakeReason::Notify);
        assert_eq!((pace.due(), pace.reason()), (ms(50), WakeReason::Notify));
    }

    #[test]
    fn while_writers_do_not_notify_it_polls_fast_and_for_a_grace_period_after() {
        let mut pace = Pace::new(ms(250));
        pace.set_listening(ms(1), true);
        pace.read_started();
        pace.awake_for(ms(10), ms(1_000));
        let mut now = ms(10);
        while now < ms(1_010) + GRACE {
            pace.read_done(now, 0, false);
            assert!(pace.due() - now <= BUSY_MAX, "at {now:?}");
            now = pace.due();
        }
        pace.read_done(now, 0, false);
        assert_eq!(pace.due() - now, FALLBACK);
    }

    #[test]
    fn being_told_again_that_writers_notify_does_not_keep_it_awake() {
        let mut pace = Pace::new(ms(250));
        pace.set_listening(ms(1), true);
        pace.read_started();
        pace.awake_for(ms(10), ms(100));
        for tick in 0..10 {
            pace.awake_for(ms(800 * tick + 200), Duration::ZERO);
        }
        pace.read_done(ms(9_000), 0, false);
        assert_eq!(pace.due() - ms(9_000), FALLBACK);
    }

    #[test]
    fn an_extension_learned_late_shortens_a_wait_already_begun() {
        let mut pace = Pace::new(ms(250));
        pace.set_listening(ms(1), true);
        pace.read_started();
        pace.read_done(ms(2), 0, false);
        pace.awake_for(ms(500), ms(30_000));
        assert_eq!(pace.due(), ms(500) + BUSY_MAX);
    }

    #[test]
    fn only_a_busy_relay_asks_writers_to_stop_notifying() {
        let mut pace = Pace::new(ms(250));
        for i in 0..20 {
            pace.read_done(ms(i * 1_000), 1, false);
            assert!(
                !pace.wants_awake(ms(i * 1_000)),
                "one event per second is not busy"
            );
        }
        for i in 0..20 {
            pace.read_done(ms(30_000 + i * 5), 1, false);
        }
        assert!(pace.wants_awake(ms(30_100)));
        pace.awake_for(ms(30_100), AWAKE_HORIZON);
        assert!(!pace.wants_awake(ms(30_100)));
    }

    #[test]
    fn a_notification_during_a_read_is_not_forgotten() {
        let mut pace = Pace::new(ms(250));
        pace.set_listening(ms(1), true);
        pace.read_started();
        pace.wake(ms(3), WakeReason::Notify);
        pace.read_done(ms(5), 0, false);
        assert_eq!((pace.due(), pace.reason()), (ms(5), WakeReason::Notify));
        pace.read_started();
        pace.read_done(ms(7), 1, false);
        assert_eq!(pace.due(), ms(7) + FALLBACK);
    }

    #[test]
    fn a_full_read_is_followed_at_once() {
        let mut pace = Pace::new(ms(250));
        pace.read_done(ms(5), 1_000, true);
        assert_eq!((pace.due(), pace.reason()), (ms(5), WakeReason::More));
    }
}
