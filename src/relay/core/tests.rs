//! A relay that cannot act waits for a moment yet to come.

use std::time::Duration;

use super::samples::{owner, row};
use super::*;
use crate::error::Verdict;
use crate::store::ReadKind;

fn ms(ms: u64) -> Time {
    Duration::from_millis(ms)
}

/// A relay with rows to read and to publish.
fn at_work() -> Core {
    let mut core = owner(CoreConfig::default(), &[]);
    let Some(Command::Read(_)) = core.next(ms(1)) else {
        panic!("no read");
    };
    let batch = ReadBatch {
        rows: vec![row(1, 7), row(2, 8)],
        ..ReadBatch::default()
    };
    core.handle(ms(1), Input::Read(Ok(batch)));
    core
}

/// Carries out nothing, and says when it is to come back.
fn idle(core: &mut Core, now: Time) -> Time {
    while core.next(now).is_some() {}
    let due = core.deadline(now);
    assert!(due > now, "at {now:?} it waits for {due:?}");
    due
}

#[test]
fn without_proof_of_ownership_it_waits_for_the_next_tick() {
    let mut core = at_work();
    core.sink_ready = false;
    let lease = CoreConfig::default().lease_ttl;
    // The tick fails, again and again, long beyond the end of the lease.
    let mut now = ms(10);
    let mut turns = 0;
    while now < lease * 6 {
        while let Some(command) = core.next(now) {
            match command {
                Command::Own(_) => core.handle(now, Input::Ticked(Err(StoreFailed))),
                Command::Read(_) => core.handle(now, Input::Read(Err(StoreFailed))),
                other => panic!("{other:?}"),
            }
        }
        let due = core.deadline(now);
        assert!(due > now, "at {now:?} it waits for {due:?}");
        now = due;
        turns += 1;
    }
    assert!(!core.ownership.proven(now));
    assert!(turns < 200, "{turns} turns in a minute");
}

#[test]
fn a_lane_that_rests_while_the_broker_is_away_is_nothing_to_wait_for() {
    let mut core = at_work();
    let Some(Command::Publish { lane, batch }) = core.next(ms(2)) else {
        panic!("nothing to publish");
    };
    core.handle(ms(3), Input::SinkReady(false));
    let unavailable = batch.into_iter().map(|item| (item, Verdict::Unavailable));
    let results = unavailable.collect();
    core.handle(ms(3), Input::Published { lane, results });
    idle(&mut core, ms(3));
    idle(&mut core, ms(3) + LANE_RETRY);
}

#[test]
fn paused_it_waits_for_the_next_tick() {
    let mut core = at_work();
    core.paused = true;
    idle(&mut core, ms(2));
    idle(&mut core, ms(500));
}

/// After a failover: nothing comes from there, and only a main read would notice.
#[test]
fn memory_full_of_rows_from_another_server_is_emptied() {
    let config = CoreConfig {
        max_in_flight: 2,
        batch_size: 2,
        ..CoreConfig::default()
    };
    let mut core = owner(config, &[]);
    let Some(Command::Read(_)) = core.next(ms(1)) else {
        panic!("no read");
    };
    let left = |seq| Record {
        content: crate::event::Content::Left { bytes: 1 },
        ..row(seq, seq)
    };
    let batch = ReadBatch {
        rows: vec![left(1), left(2)],
        ..ReadBatch::default()
    };
    core.handle(ms(1), Input::Read(Ok(batch)));
    assert_eq!(core.room(), 0);
    assert!(matches!(core.next(ms(2)), Some(Command::Fetch(_))));
    core.handle(ms(3), Input::Fetched(Err(StoreFailed)));
    let Some(Command::Read(look)) = core.next(ms(4)) else {
        panic!("nobody asks who answers");
    };
    assert!(matches!(
        look.kind,
        ReadKind::Main {
            after: Some(i64::MAX)
        }
    ));
    let elsewhere = ReadBatch {
        holders: Some(crate::store::Holders {
            source: 1,
            ..Default::default()
        }),
        ..ReadBatch::default()
    };
    core.handle(ms(4), Input::Read(Ok(elsewhere)));
    assert!(matches!(core.next(ms(4)), Some(Command::Reload(_))));
    core.handle(ms(5), Input::Reloaded(Ok(crate::store::Loaded::default())));
    let Some(Command::Read(request)) = core.next(ms(6)) else {
        panic!("no read");
    };
    assert_eq!(request.known, [0_i64; 0]);
}
