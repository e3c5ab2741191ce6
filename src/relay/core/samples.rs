//! Rows and a relay for tests of the core.

use std::time::Duration;

use uuid::Uuid;

use super::window::{Item, Suspect};
use super::{Core, CoreConfig, Time};
use crate::event::Record;
use crate::store::{Claimed, PartitionRow, ReplicaRow, Tick};

/// A row of the key with this placement hash.
pub(super) fn row(seq: i64, hash: i64) -> Record {
    Record {
        seq,
        hash,
        keyed: true,
        ..Record::default()
    }
}

/// A row that nothing is known against.
pub(super) fn item(record: Record) -> Item {
    Item {
        record,
        dead_letter: None,
        expires_at: None,
        out_of_order: false,
        retried: false,
        suspect: Suspect::No,
    }
}

/// What a look at the database shows when nothing is out of the ordinary.
pub(super) fn tick(partitions: Vec<PartitionRow>, replicas: Vec<ReplicaRow>) -> Tick {
    Tick {
        server_start: 0,
        partitions,
        replicas,
        registered: true,
        may_take_over: true,
        paused: false,
        standing_down: false,
        failures_version: 0,
        awake_for: Duration::ZERO,
        unsettled: false,
        parked: 0,
        next_due_in: None,
    }
}

/// A relay that owns both partitions of two and may publish; `unclean` were left by a crash.
pub(super) fn owner(config: CoreConfig, unclean: &[i32]) -> Core {
    let me = Uuid::from_u128(1);
    let ttl = config.lease_ttl;
    let mut core = Core::new(config, 1);
    core.ownership.registered(Time::ZERO, me, 2);
    let claimed = [0, 1].map(|partition| Claimed {
        partition,
        unclean: unclean.contains(&partition),
    });
    core.ownership.claimed(Time::ZERO, &claimed);
    core.ownership.loaded(&[0, 1]);
    let mine = [0, 1].map(|partition| PartitionRow {
        partition,
        owner: Some(me),
    });
    let alive = ReplicaRow {
        replica: me,
        name: String::new(),
        alive_for: ttl,
        ..ReplicaRow::default()
    };
    let tick = tick(mine.to_vec(), vec![alive]);
    core.ownership.ticked(Time::ZERO, Time::ZERO, true, &tick);
    core.sink_ready = true;
    core
}
