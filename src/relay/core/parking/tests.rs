use std::time::Duration;

use super::super::samples::{owner, row};
use super::super::{CoreConfig, Input};
use super::*;
use crate::error::{Reason, ReasonCode, Verdict};
use crate::store::{ReadBatch, ReadKind};

const MAX_HELD: usize = 100;
const MAX_IN_FLIGHT: usize = 40;

fn small() -> Core {
    let config = CoreConfig {
        max_held: MAX_HELD,
        max_in_flight: MAX_IN_FLIGHT,
        batch_size: 10,
        ..CoreConfig::default()
    };
    owner(config, &[])
}

/// Carries everything out for `turns` commands: each row that is read is of a new key, and is refused.
fn everything_fails(core: &mut Core, turns: usize, parks: bool) -> (i64, usize) {
    let (mut seq, mut most, mut now) = (0, 0, Duration::ZERO);
    for _ in 0..turns {
        now += Duration::from_millis(1);
        let Some(command) = core.next(now) else {
            now += Duration::from_millis(30);
            continue;
        };
        let input = match command {
            Command::Read(request) => {
                let mut batch = ReadBatch::default();
                // From beyond all rows it brings none.
                if matches!(request.kind, ReadKind::Main { after } if after != Some(i64::MAX)) {
                    batch.rows = (1..=10).map(|n| row(seq + n, seq + n)).collect();
                    batch.cut = true;
                    seq += 10;
                }
                Input::Read(Ok(batch))
            }
            Command::Publish { lane, batch } => {
                let refused = |item| {
                    let reason = Reason::new(ReasonCode::Nack, "no");
                    (item, Verdict::Rejected(reason))
                };
                let results = batch.into_iter().map(refused).collect();
                Input::Published { lane, results }
            }
            Command::Record(failures) => {
                Input::Recorded(Ok(failures.iter().map(|failure| failure.seq).collect()))
            }
            Command::Park(park) if parks => Input::Parked(Ok(park.park)),
            Command::Park(_) => Input::Parked(Err(StoreFailed)),
            Command::ExtendAwake(_) => Input::AwakeExtended(Ok(())),
            _ => continue,
        };
        core.handle(now, input);
        most = most.max(core.gauges(now).held_keys);
    }
    (seq, most)
}

#[test]
fn reads_go_on_however_many_keys_fail_and_memory_is_bounded() {
    let mut core = small();
    let (read, most) = everything_fails(&mut core, 4_000, true);
    assert!(read > 20 * MAX_HELD as i64, "{read} rows read");
    assert!(most <= MAX_HELD + MAX_IN_FLIGHT + 10, "{most} keys held");
}

#[test]
fn reads_wait_while_no_key_can_be_parked() {
    let mut core = small();
    let (read, most) = everything_fails(&mut core, 4_000, false);
    assert_eq!(most, read as usize);
    assert!(most <= core.held_limit() + 10, "{most} keys held");
}
