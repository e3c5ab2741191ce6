use super::*;
use crate::relay::core::reading::CaughtUp;
use crate::relay::core::samples::{item, row};
use crate::relay::core::window::Ordering;

const KEY: i64 = 7;

fn fails(window: &mut Window, seq: i64, hash: i64) {
    assert!(window.admit(item(row(seq, hash))));
    let (batch, _) = window.take_batch(1, std::time::Duration::ZERO);
    let retry_at = std::time::Duration::from_secs(seq as u64);
    window.failed(&batch[0], Some(Hold::Failing { seq, retry_at }));
}

fn recorded(window: &mut Window, seq: i64) {
    window.settled(seq, 1);
}

fn caught_up(window: &mut Window) {
    let known_to = [(KEY, 9)].into();
    window.caught_up(&CaughtUp {
        known_to,
        complete: true,
    });
}

#[test]
fn a_key_is_parked_when_no_older_read_can_bring_rows_of_it() {
    let mut window = Window::new(Ordering::Strict, 4);
    fails(&mut window, 1, KEY);
    assert_eq!(window.to_park(0), [] as [i64; 0], "not recorded yet");
    recorded(&mut window, 1);
    window.forget(1);
    assert_eq!(window.to_park(0), [] as [i64; 0], "an older read is out");
    window.forget(2);
    assert_eq!(window.to_park(0), [KEY]);
    assert_eq!(window.to_park(1), [] as [i64; 0], "memory may hold it");
    window.now_parked(KEY);
    assert_eq!((window.held(), window.hold_of(KEY)), (0, None));
}

#[test]
fn the_keys_that_wait_longest_are_parked_first() {
    let mut window = Window::new(Ordering::Strict, 4);
    for seq in 1..=8 {
        fails(&mut window, seq, seq);
        recorded(&mut window, seq);
    }
    window.forget(2);
    assert_eq!(window.to_park(4), [4, 5, 6, 7, 8]);
}

#[test]
fn a_key_that_came_back_meanwhile_is_not_forgotten() {
    let mut window = Window::new(Ordering::Strict, 4);
    fails(&mut window, 1, KEY);
    recorded(&mut window, 1);
    window.forget(2);
    assert_eq!(window.to_park(0), [KEY]);
    assert!(window.admit_retry(item(row(1, KEY))));
    window.now_parked(KEY);
    assert!(window.hold_of(KEY).is_some());
    assert_eq!(window.parked(), 1, "the database leaves it out");
}

#[test]
fn a_key_is_normal_when_it_is_neither_behind_nor_parked() {
    let mut window = Window::new(Ordering::Strict, 4);
    window.take_in(KEY);
    assert_eq!(window.wanting(9).len(), 1);
    caught_up(&mut window);
    assert!(window.hold_of(KEY).is_some(), "still parked");
    assert!(
        !window.has_wanting(),
        "there is nothing to read before it is unparked"
    );
    assert_eq!(window.to_unpark(), [KEY]);
    window.now_unparked(KEY);
    assert_eq!(window.wanting(9).len(), 1, "what came meanwhile");
    caught_up(&mut window);
    assert_eq!((window.hold_of(KEY), window.held()), (None, 0));
}

#[test]
fn a_key_whose_unparking_is_under_way_is_not_parked_again() {
    let mut window = Window::new(Ordering::Strict, 4);
    window.take_in(KEY);
    assert!(window.admit_held(item(row(1, KEY))));
    caught_up(&mut window);
    let (batch, _) = window.take_batch(1, std::time::Duration::ZERO);
    window.failed(&batch[0], Some(Hold::Blocked { seq: 1 }));
    recorded(&mut window, 1);
    window.forget(2);
    assert_eq!(window.to_park(0), [] as [i64; 0]);
    window.now_unparked(KEY);
    assert_eq!(window.to_park(0), [KEY]);
}
