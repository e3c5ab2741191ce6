use std::time::Duration;

use super::*;
use crate::relay::core::samples::{item, row};
use crate::relay::core::window::{Hold, Ordering};

/// Two keys with two rows in memory each, and more in the table.
fn lagging_keys() -> Window {
    let mut window = Window::new(Ordering::Strict, 2);
    for (seq, hash) in [(1, 7), (2, 8), (3, 7), (4, 8), (5, 7), (6, 8)] {
        window.admit(item(row(seq, hash)));
    }
    window.bound_keys([7, 8]);
    assert_eq!(window.lagging_keys(), [7, 8]);
    window
}

fn catch_up(window: &mut Window, rows: Vec<Record>, cut: bool) -> CaughtUp {
    let mut reading = Reading::new(true, 5_000);
    reading.out = Some(Out {
        kind: ReadKind::CatchUp {
            after: 3,
            up_to: 100,
            keys: vec![7, 8],
        },
        known_to: vec![(7, 3), (8, 4)],
        started: Time::ZERO,
        ticket: reading.begin(),
    });
    let batch = ReadBatch {
        rows,
        cut,
        holders: None,
    };
    let mut pace = Pace::new(Duration::from_secs(1));
    let arrivals = reading.finish(Time::ZERO, batch, window, &mut pace);
    arrivals.caught_up.unwrap()
}

/// A writer of key 8 that drew 10 may still be open: another key's row at 20 must not carry key 8 past it.
#[test]
fn a_cut_catch_up_read_tells_about_a_key_up_to_its_own_last_row() {
    let mut window = lagging_keys();
    let caught_up = catch_up(&mut window, vec![row(5, 7), row(6, 8), row(20, 7)], true);
    assert_eq!(caught_up.known_to, BTreeMap::from([(7, 20), (8, 6)]));
    window.caught_up(&caught_up);
    assert!(window.continues(7, 20) && window.continues(8, 6));
}

#[test]
fn a_complete_catch_up_read_ends_the_lag() {
    let mut window = lagging_keys();
    let caught_up = catch_up(&mut window, vec![row(5, 7), row(6, 8)], false);
    window.caught_up(&caught_up);
    assert_eq!(window.held(), 0);
}

#[test]
fn of_two_failing_rows_the_earlier_one_holds_the_key() {
    let failing = |seq| Hold::Failing {
        seq,
        retry_at: Time::ZERO,
    };
    for (first, second) in [(3, 5), (5, 3)] {
        let mut window = Window::new(Ordering::Pipelined, 9);
        for seq in [1, 3, 5] {
            window.admit(item(row(seq, 7)));
        }
        let (batch, _) = window.take_batch(9, Time::ZERO);
        let of = |seq| batch.iter().find(|item| item.record.seq == seq).unwrap();
        window.finished(of(1));
        window.failed(of(first), Some(failing(first)));
        window.failed(of(second), Some(failing(second)));
        assert_eq!(window.hold_of(7), Some(failing(3)));
        // The later one is left to the catch-up read behind the earlier one.
        assert!(!window.admit_retry(item(row(5, 7))) && window.has_failed(7));
        window.settled(3, 0);
        window.forget(1);
        assert!(window.admit_retry(item(row(3, 7))));
        let (batch, _) = window.take_batch(9, Time::ZERO);
        window.finished(&batch[0]);
        assert!(window.wanting(1)[0].1 < 5);
    }
}

/// A row that is remembered only for the sake of older reads says nothing about its key.
#[test]
fn a_failing_row_is_loaded_though_older_reads_may_still_show_it() {
    let mut window = Window::new(Ordering::Strict, 9);
    window.admit(item(row(3, 7)));
    let (batch, _) = window.take_batch(1, Time::ZERO);
    window.failed(
        &batch[0],
        Some(Hold::Failing {
            seq: 3,
            retry_at: Time::ZERO,
        }),
    );
    window.settled(3, 0);
    window.drop_waiting(|_| true);
    assert!(window.knows(3) && window.hold_of(7).is_none());
    window.reload_failing(&[(7, 3)], |_| true);
    assert_eq!(window.hold_of(7), Some(Hold::Lagging));
    assert!(!window.admit(item(row(5, 7))));
}

/// A key may lag for hours; what was delayed does not wait for it.
#[test]
fn a_delayed_row_of_a_lagging_key_comes_when_it_is_due() {
    let mut window = lagging_keys();
    assert!(window.stopped_keys().is_empty());
    assert!(window.admit_due(item(row(2_000, 7))) && !window.admit(item(row(2_001, 7))));
    let (batch, _) = window.take_batch(1, Time::ZERO);
    let hold = Hold::Blocked {
        seq: batch[0].record.seq,
    };
    window.failed(&batch[0], Some(hold));
    assert_eq!(window.stopped_keys(), [batch[0].record.hash]);
    assert!(!window.admit_due(item(row(2_002, batch[0].record.hash))));
}

/// A catch-up read went on to a row that failed later. What stands before that one, and comes back unpublished, goes again.
#[test]
fn what_stands_before_a_failing_row_is_not_lost_with_a_connection() {
    let mut window = Window::new(Ordering::Strict, 2);
    for seq in [1, 2, 3, 4] {
        window.admit(item(row(seq, 7)));
    }
    window.bound_keys([7]);
    let failing = Hold::Failing {
        seq: 9,
        retry_at: Time::ZERO,
    };
    window.stop_at(7, failing);
    for _ in 0..2 {
        let (mut batch, _) = window.take_batch(9, Time::ZERO);
        assert_eq!(
            batch.iter().map(|item| item.record.seq).collect::<Vec<_>>(),
            [1]
        );
        window.returned(batch.remove(0));
        assert_eq!(window.ready(), 1);
    }
}
