use std::time::Duration;

use super::super::ownership::Step;
use super::super::samples::{owner, row};
use super::super::{Command, Core, CoreConfig, Input, LAST_LOOK, StoreFailed, Time};
use crate::error::Verdict;
use crate::event::Record;
use crate::relay::core::window::Item;
use crate::store::{ReadBatch, ReadKind};

const NOW: Time = Duration::from_millis(100);

fn relay() -> Core {
    owner(CoreConfig::default(), &[])
}

fn next(core: &mut Core) -> Command {
    core.next(NOW).expect("a command")
}

fn is_main_read(command: &Command) -> bool {
    matches!(command, Command::Read(request) if matches!(request.kind, ReadKind::Main { .. }))
}

fn read(core: &mut Core, rows: Vec<Record>) {
    let batch = ReadBatch {
        rows,
        ..ReadBatch::default()
    };
    core.handle(NOW, Input::Read(Ok(batch)));
}

fn publish(core: &mut Core) -> (usize, Vec<Item>) {
    match next(core) {
        Command::Publish { lane, batch } => (lane, batch),
        other => panic!("{other:?}"),
    }
}

fn confirm(core: &mut Core, (lane, batch): (usize, Vec<Item>)) {
    let confirmed = batch.into_iter().map(|item| (item, Verdict::Confirmed));
    let results = confirmed.collect();
    core.handle(NOW, Input::Published { lane, results });
}

/// Settles what is to be settled, and leaves.
fn assert_leaves(core: &mut Core, settled: usize) {
    if settled > 0 {
        let Command::Settle(settle) = next(core) else {
            panic!("nothing to settle");
        };
        assert_eq!(settle.rows.len(), settled);
        core.handle(NOW, Input::Settled(Ok(Vec::new())));
    }
    assert!(matches!(next(core), Command::Own(Step::Unregister)));
    core.handle(NOW, Input::Unregistered(Ok(())));
    assert!(core.next(NOW).is_none());
    assert!(core.has_stopped());
}

#[test]
fn what_was_committed_last_is_published_before_the_relay_leaves() {
    let mut core = relay();
    core.handle(NOW, Input::Stop);
    assert!(!core.has_stopped());
    let last = next(&mut core);
    assert!(is_main_read(&last), "{last:?}");
    assert!(core.next(NOW).is_none(), "one read");
    // Two of a key: the second goes when the first is confirmed.
    read(&mut core, vec![row(1, 7), row(2, 7)]);
    let first = publish(&mut core);
    assert_eq!(first.1.len(), 1);
    assert!(core.next(NOW).is_none(), "it waits for the second");
    confirm(&mut core, first);
    let Command::Settle(_) = next(&mut core) else {
        panic!("the first is settled at once");
    };
    core.handle(NOW, Input::Settled(Ok(Vec::new())));
    let second = publish(&mut core);
    confirm(&mut core, second);
    assert_leaves(&mut core, 1);
}

#[test]
fn a_read_from_before_the_stop_is_not_the_last() {
    let mut core = relay();
    assert!(is_main_read(&next(&mut core)));
    core.handle(NOW, Input::Stop);
    assert!(core.next(NOW).is_none(), "one read at a time");
    read(&mut core, vec![]);
    assert!(is_main_read(&next(&mut core)));
    // One that fails is not either.
    core.handle(NOW, Input::Read(Err(StoreFailed)));
    assert!(core.next(NOW).is_none(), "not at once");
    let later = core.deadline(NOW);
    assert!(later < NOW + LAST_LOOK);
    let again = core.next(later).expect("a read");
    assert!(is_main_read(&again), "{again:?}");
    read(&mut core, vec![]);
    assert_leaves(&mut core, 0);
}

#[test]
fn time_ends_the_look_whatever_is_left() {
    let last_look = Duration::from_millis(200);
    let config = CoreConfig {
        last_look,
        ..CoreConfig::default()
    };
    let mut core = owner(config, &[]);
    core.handle(NOW, Input::Stop);
    next(&mut core);
    read(&mut core, vec![row(1, 7), row(2, 7)]);
    let first = publish(&mut core);
    assert_eq!(core.deadline(NOW), NOW + last_look);
    let release = core.next(NOW + last_look).expect("a command");
    assert!(
        matches!(&release, Command::Own(Step::Release(partitions)) if partitions.len() == 1),
        "the partition that nothing is in flight of: {release:?}"
    );
    core.handle(NOW, Input::Released(Ok(())));
    confirm(&mut core, first);
    // The second is the next owner's.
    assert_leaves(&mut core, 1);
}

#[test]
fn with_a_backlog_or_nowhere_to_publish_it_leaves_at_once() {
    let mut full = owner(
        CoreConfig {
            max_in_flight: 4,
            ..CoreConfig::default()
        },
        &[],
    );
    next(&mut full);
    read(&mut full, (1..=4).map(|seq| row(seq, seq)).collect());
    let batch = publish(&mut full);
    full.handle(NOW, Input::Stop);
    assert!(full.next(NOW).is_none());
    let settled = batch.1.len();
    confirm(&mut full, batch);
    assert_leaves(&mut full, settled);

    let mut away = relay();
    away.handle(NOW, Input::SinkReady(false));
    away.handle(NOW, Input::Stop);
    assert_leaves(&mut away, 0);

    // It is lost during the look.
    let mut lost = relay();
    lost.handle(NOW, Input::Stop);
    next(&mut lost);
    lost.handle(NOW, Input::SinkReady(false));
    read(&mut lost, vec![row(1, 7)]);
    assert_leaves(&mut lost, 0);
}
