use std::collections::{BTreeSet, VecDeque};

use super::super::{Hold, Item, Ordering, Suspect, Window};
use super::TRIAL_MAX;
use crate::error::Verdict;
use crate::relay::core::reading::Way;
use crate::relay::core::samples::{item, owner, row};
use crate::relay::core::{Command, Core, CoreConfig, Input, Time};
use crate::store::{Failure, FailureState, partition_of};

fn suspect(seq: i64, hash: i64, crashes: u32) -> Item {
    let mut suspect = item(row(seq, hash));
    suspect.record.crashes = crashes;
    suspect.suspect = Suspect::Queued;
    suspect
}

/// A relay with two lanes that owns partition 0, left by a crash, and partition 1, which was free.
fn after_a_crash() -> Core {
    let config = CoreConfig {
        lanes: 2,
        ..CoreConfig::default()
    };
    owner(config, &[0])
}

/// What the relay does now. Its records are written at once.
fn commands(core: &mut Core) -> Vec<Command> {
    let mut commands = Vec::new();
    while let Some(command) = core.next(Time::ZERO) {
        if let Command::Record(failures) = &command {
            let stored = failures.iter().map(|failure| failure.seq).collect();
            core.handle(Time::ZERO, Input::Recorded(Ok(stored)));
        }
        commands.push(command);
    }
    commands
}

fn confirm(core: &mut Core, lane: usize, batch: Vec<Item>) {
    let confirmed = batch.into_iter().map(|item| (item, Verdict::Confirmed));
    let results = confirmed.collect();
    core.handle(Time::ZERO, Input::Published { lane, results });
}

/// Placement hashes of one partition of two.
fn hashes(partition: i32) -> impl Iterator<Item = i64> {
    (0..).filter(move |hash| partition_of(*hash, 2) == partition)
}

/// What may have crashed the last owner must not wait until the others have nothing to do.
#[test]
fn a_suspect_gets_its_turn_though_others_never_rest() {
    let mut core = after_a_crash();
    let mut accused = Some(row(1, hashes(0).next().unwrap()));
    accused.as_mut().unwrap().crashes = 1;
    let mut out: VecDeque<(usize, Vec<Item>)> = VecDeque::new();
    for (seq, hash) in (2..100).zip(hashes(1)) {
        core.admit(item(row(seq, hash)), Way::Ordinary);
        let mut went = false;
        for command in commands(&mut core) {
            let Command::Publish { lane, batch } = command else {
                continue;
            };
            if batch[0].record.seq == 1 {
                assert!(out.is_empty() && batch.len() == 1, "it goes alone");
                return;
            }
            out.push_back((lane, batch));
            went = true;
        }
        if let Some(accused) = accused.take() {
            core.admit(item(accused), Way::Ordinary);
        }
        // While there is anything to send, one of the two lanes is busy at any time.
        if (out.len() > 1 || !went)
            && let Some((lane, batch)) = out.pop_front()
        {
            confirm(&mut core, lane, batch);
        }
    }
    panic!("it never went");
}

/// A crash makes suspects of all that are recorded, and each of them goes alone then.
#[test]
fn few_suspects_are_recorded_at_a_time_and_all_go() {
    let mut core = after_a_crash();
    let rows = 4 * TRIAL_MAX as i64;
    for (seq, hash) in (1..=rows).zip(hashes(0)) {
        core.admit(item(row(seq, hash)), Way::Ordinary);
    }
    let (mut recorded, mut confirmed) = (BTreeSet::new(), BTreeSet::new());
    loop {
        let commands = commands(&mut core);
        if commands.is_empty() {
            break;
        }
        recorded.extend(core.suspected.keys().copied());
        for command in commands {
            if let Command::Publish { lane, batch } = command {
                confirmed.extend(batch.iter().map(|item| item.record.seq));
                assert!(confirmed.is_subset(&recorded), "recorded before it goes");
                confirm(&mut core, lane, batch);
            }
        }
        assert!(recorded.difference(&confirmed).count() <= TRIAL_MAX);
    }
    assert_eq!(confirmed.len() as i64, rows);
}

/// Of a key whose rows come in late, those recorded first must not take the places of those that go first.
#[test]
fn recorded_suspects_make_room_for_what_goes_before_them() {
    let mut window = Window::new(Ordering::Strict, 9);
    let keys = TRIAL_MAX as i64;
    for key in 0..keys {
        window.admit(suspect(1_000 + key, key, 0));
    }
    assert_eq!(window.next_suspects(false).len(), TRIAL_MAX);
    for key in 0..keys {
        window.cleared(1_000 + key, 1);
        window.admit(suspect(key, key, 0));
    }
    let earlier: Vec<i64> = (0..keys).collect();
    assert_eq!(window.next_suspects(false), earlier);
}

/// Both wait for each other if the key's failing row keeps the earlier one from its turn.
#[test]
fn a_suspect_goes_alone_before_the_failing_row_of_its_key() {
    let mut window = Window::new(Ordering::Strict, 9);
    window.admit(item(row(3, 7)));
    let (batch, _) = window.take_batch(1, Time::ZERO);
    let retry_at = Time::ZERO;
    window.failed(&batch[0], Some(Hold::Failing { seq: 3, retry_at }));
    window.settled(3, 0);
    window.forget(u64::MAX);
    // A catch-up read brings the row before it, which came late, and stops there once more.
    window.reload_failing(&[(7, 3)], |_| true);
    assert!(window.admit_held(suspect(2, 7, 1)));
    window.stop_at(7, Hold::Failing { seq: 3, retry_at });
    assert!(window.admit_retry(item(row(3, 7))));
    assert_eq!(window.next_suspects(true), [2]);
}

/// Dropped and read again while its record is on its way: if it went at once, the record would come to stay.
#[test]
fn a_suspect_waits_for_the_record_that_is_on_its_way() {
    let suspect = Failure {
        seq: 3,
        hash: 7,
        keyed: true,
        event_id: String::new(),
        event_type: String::new(),
        key: None,
        state: FailureState::Suspect,
        attempts: 0,
        crashes: 1,
        reason: None,
        retry_after: None,
    };
    let mut core = Core::new(CoreConfig::default(), 1);
    core.recording.push(suspect.clone());
    core.admit(item(row(3, 7)), Way::Ordinary);
    assert!(core.window.take_batch(1, Time::ZERO).0.is_empty());
    core.recorded(Time::ZERO, Ok(vec![3]));
    let (batch, _) = core.window.take_batch(1, Time::ZERO);
    assert!(batch[0].retried, "settling it removes the record");

    // One that has not left is of the row as it was read before.
    let mut core = Core::new(CoreConfig::default(), 1);
    core.to_record.insert(3, suspect);
    core.admit(item(row(3, 7)), Way::Ordinary);
    assert!(core.to_record.is_empty());
    assert_eq!(core.window.take_batch(1, Time::ZERO).0.len(), 1);
}
