//! What this replica says of itself beside its lease, for `outrigger status`: seldom, so that it stays cheap.

use std::time::Duration;

use tokio::time::Instant;

use crate::relay::core::Totals;
use crate::relay::live::Live;
use crate::store::Told;

/// Something new is not told more often.
const TELL_PAUSE: Duration = Duration::from_secs(1);
/// A beginning or an end of publishing is not told more often: otherwise a slow stream of events would be both, all the
/// time.
const RATE_PAUSE: Duration = Duration::from_secs(10);

/// What was told last, and what there is to tell.
#[derive(Debug, Default)]
pub(super) struct Tell {
    told: Told,
    told_at: Option<Instant>,
    told_published: u64,
    published: u64,
    published_at: Option<Instant>,
    waits_for: Option<String>,
}

impl Tell {
    /// Takes in how the relay stands; whether that is worth telling at once.
    pub(super) fn changed(&mut self, live: &Live, now: Instant) -> bool {
        self.waits_for = live.waits_for();
        self.count(live.totals.published, now);
        let Some(at) = self.told_at else {
            return false;
        };
        let since = now.saturating_duration_since(at);
        let publishes = self.published > self.told_published;
        self.waits_for != self.told.waits_for && since >= TELL_PAUSE
            || publishes != (self.told.rate > 0.0) && since >= RATE_PAUSE
    }

    /// What a heartbeat says now.
    pub(super) fn now(&mut self, totals: &Totals, now: Instant) -> Told {
        self.count(totals.published, now);
        let since = self.told_at.map(|at| now.saturating_duration_since(at));
        let events = self.published.saturating_sub(self.told_published);
        let ago = |at| now.saturating_duration_since(at);
        self.told = Told {
            waits_for: self.waits_for.clone(),
            rate: match since {
                Some(since) if !since.is_zero() => events as f64 / since.as_secs_f64(),
                _ => 0.0,
            },
            published_ago: self.published_at.map(ago),
        };
        self.told_at = Some(now);
        self.told_published = self.published;
        self.told.clone()
    }

    fn count(&mut self, published: u64, now: Instant) {
        if published > self.published {
            self.published = published;
            self.published_at = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::SinkState;

    fn live(published: u64, broker: SinkState) -> Live {
        let mut live = Live::starting();
        live.schema = None;
        live.broker = broker;
        live.totals.published = published;
        live
    }

    #[test]
    fn what_is_waited_for_is_told_soon_and_the_rate_seldom() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let down = || SinkState::Down("refused".into());
        let mut tell = Tell::default();
        // The first heartbeat comes by itself.
        assert!(!tell.changed(&live(0, down()), at(0)));
        let first = tell.now(&live(0, down()).totals, at(0));
        assert_eq!(first.waits_for.as_deref(), Some("the broker: refused"));
        let ready = |published| live(published, SinkState::Ready);
        assert!(!tell.changed(&ready(0), at(0)), "too soon");
        assert!(tell.changed(&ready(0), at(1)));
        assert_eq!(tell.now(&ready(0).totals, at(1)).waits_for, None);
        assert!(!tell.changed(&ready(90), at(10)), "too soon");
        assert!(tell.changed(&ready(100), at(11)));
        let busy = tell.now(&ready(100).totals, at(11));
        assert_eq!(
            (busy.rate, busy.published_ago),
            (10.0, Some(Duration::ZERO))
        );
        // A steady stream is nothing new.
        assert!(!tell.changed(&ready(101), at(21)));
    }
}
