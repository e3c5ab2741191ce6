use super::super::samples;
use super::*;
use crate::store::{PartitionRow, ReplicaRow};

const TTL: Duration = Duration::from_secs(10);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn id(replica: u128) -> Uuid {
    Uuid::from_u128(replica)
}

/// A registered replica 1 of two that has just beaten at `at`; replica 2 owns the only partition.
fn beside_another(at: Time) -> Ownership {
    let mut ownership = Ownership::new(TTL, 256);
    ownership.registered(at, id(1), 1);
    ownership.ticked(at, at, true, &tick(TTL));
    ownership
}

/// What a tick of replica 1 shows when the other's lease lasts for this long.
fn tick(other_alive_for: Duration) -> Tick {
    let replica = |number, alive_for| ReplicaRow {
        replica: id(number),
        name: number.to_string(),
        alive_for,
        ..ReplicaRow::default()
    };
    let theirs = PartitionRow {
        partition: 0,
        owner: Some(id(2)),
    };
    samples::tick(
        vec![theirs],
        vec![replica(1, TTL), replica(2, other_alive_for)],
    )
}

/// Takes the partition of the other, which is dead; true if its rows are handled with care.
fn takes_over_with_care(ownership: &mut Ownership, at: Time) -> bool {
    ownership.ticked(at, at, true, &tick(Duration::ZERO));
    assert_eq!(ownership.next(at), Some(Step::Claim(vec![0])));
    let claimed = Claimed {
        partition: 0,
        unclean: true,
    };
    ownership.claimed(at, &[claimed]);
    assert_eq!(ownership.loaded(&[0]), [0]);
    ownership.careful(0)
}

#[test]
fn it_looks_the_moment_another_lease_is_over() {
    let mut ownership = beside_another(ms(1_000));
    assert_eq!(ownership.due(), Some(ms(1_000) + TICK_MAX));
    ownership.ticked(ms(1_800), ms(1_800), true, &tick(ms(300)));
    assert_eq!(ownership.due(), Some(ms(2_100) + LEASE_OVER));
    // Dead already: nothing more to wait for.
    ownership.ticked(ms(2_101), ms(2_101), true, &tick(Duration::ZERO));
    assert_eq!(ownership.next_tick, ms(2_101) + TICK_MAX);
}

#[test]
fn an_owner_that_died_leaves_rows_to_handle_with_care() {
    let mut ownership = beside_another(ms(1_000));
    assert!(takes_over_with_care(&mut ownership, ms(1_800)));
}

#[test]
fn a_lease_that_ran_out_while_the_database_was_away_is_waited_for() {
    let mut ownership = beside_another(ms(1_000));
    let back = ms(1_000) + TTL;
    ownership.ticked(back, back, true, &tick(Duration::ZERO));
    assert_eq!(ownership.next(back), None, "the other may live");
    let mut at = back;
    while at + TICK_MAX < back + TTL {
        at += TICK_MAX;
        ownership.ticked(at, at, true, &tick(Duration::ZERO));
        assert_eq!(ownership.next(at), None, "the other had no time to renew");
    }
    // Only for as long as a lease: then it is dead, and may have died by itself.
    assert!(takes_over_with_care(&mut ownership, at + TICK_MAX));
}

#[test]
fn leases_on_another_server_are_waited_for() {
    let mut ownership = beside_another(ms(1_000));
    // At once, but its copy of the other's lease is old.
    let stale = Tick {
        server_start: 1,
        ..tick(Duration::ZERO)
    };
    let at = ms(1_800);
    ownership.ticked(at, at, true, &stale);
    assert_eq!(ownership.next(at), None, "the other may live");
    let mut at = at;
    while at < ms(1_800) + TTL {
        at += TICK_MAX;
        ownership.ticked(at, at, true, &stale);
    }
    assert_eq!(ownership.next(at), Some(Step::Claim(vec![0])));
}

#[test]
fn a_claim_whose_answer_got_lost_accuses_nobody() {
    let mut ownership = beside_another(ms(1_000));
    let mine = Tick {
        partitions: vec![PartitionRow {
            partition: 0,
            owner: Some(id(1)),
        }],
        ..tick(TTL)
    };
    ownership.ticked(ms(1_800), ms(1_800), true, &mine);
    assert_eq!(ownership.loaded(&[0]), [0]);
    assert!(!ownership.careful(0));
}

#[test]
fn the_margin_lies_between_the_proof_and_the_stored_lease() {
    let ownership = beside_another(ms(1_000));
    let proven_until = ms(1_000) + TTL.mul_f64(PROVEN);
    assert!(ownership.proven(proven_until - ms(1)) && !ownership.proven(proven_until));
    let stored_until = ms(1_000) + TTL.mul_f64(STORED);
    assert!(proven_until + TTL / 5 <= stored_until && stored_until < ms(1_000) + TTL);
}

#[test]
fn a_step_that_failed_is_not_asked_again_at_once() {
    let mut ownership = Ownership::new(TTL, 256);
    ownership.registered(ms(1_000), id(1), 1);
    let mut free = tick(Duration::ZERO);
    free.partitions[0].owner = None;
    ownership.ticked(ms(1_000), ms(1_000), true, &free);
    assert_eq!(ownership.next(ms(1_000)), Some(Step::Claim(vec![0])));
    ownership.failed(ms(1_001));
    assert_eq!(ownership.next(ms(1_002)), None);
    assert_eq!(ownership.due(), Some(ms(1_001) + STORE_RETRY));
    assert!(ownership.next(ms(1_001) + STORE_RETRY).is_some());
    // A claim that keeps failing does not keep the lease from being renewed.
    ownership.failed(ms(1_700));
    let step = ownership.next(ms(1_700) + STORE_RETRY);
    assert!(matches!(step, Some(Step::Tick { .. })), "{step:?}");
}

/// The same two, where the other sends events elsewhere and came first (rank 1) or last.
fn conflict(other_alive_for: Duration, other_rank: i64) -> Tick {
    let mut tick = tick(other_alive_for);
    tick.replicas[0].rank = 5;
    tick.replicas[1].rank = other_rank;
    tick.replicas[1].conflicts = true;
    tick.partitions[0].owner = None;
    tick
}

#[test]
fn a_newcomer_that_sends_events_elsewhere_takes_nothing_while_the_first_lives() {
    let mut ownership = Ownership::new(TTL, 256);
    ownership.registered(ms(1_000), id(1), 1);
    ownership.ticked(ms(1_000), ms(1_000), true, &conflict(TTL, 1));
    assert_eq!(ownership.next(ms(1_000)), None);
    ownership.ticked(ms(1_800), ms(1_800), true, &conflict(Duration::ZERO, 1));
    assert_eq!(ownership.next(ms(1_800)), Some(Step::Claim(vec![0])));
}

#[test]
fn the_first_neither_hands_over_to_a_newcomer_nor_counts_it() {
    let mut ownership = Ownership::new(TTL, 256);
    ownership.registered(ms(1_000), id(1), 2);
    let mut both = conflict(TTL, 9);
    both.partitions.push(PartitionRow {
        partition: 1,
        owner: None,
    });
    ownership.ticked(ms(1_000), ms(1_000), true, &both);
    assert_eq!(ownership.next(ms(1_000)), Some(Step::Claim(vec![0, 1])));
}

#[test]
fn an_owner_that_finds_an_earlier_one_gives_up_what_it_has() {
    let mut ownership = Ownership::new(TTL, 256);
    ownership.registered(ms(1_000), id(1), 1);
    ownership.ticked(ms(1_000), ms(1_000), true, &conflict(TTL, 9));
    let claimed = Claimed {
        partition: 0,
        unclean: false,
    };
    ownership.claimed(ms(1_000), &[claimed]);
    assert_eq!(ownership.loaded(&[0]), [0]);
    let mut mine = conflict(TTL, 1);
    mine.partitions[0].owner = Some(id(1));
    ownership.ticked(ms(1_800), ms(1_800), true, &mine);
    assert_eq!(ownership.next(ms(1_800)), Some(Step::Release(vec![0])));
}

#[test]
fn after_an_outage_an_earlier_one_is_taken_for_alive() {
    let mut ownership = Ownership::new(TTL, 256);
    ownership.registered(ms(1_000), id(1), 1);
    ownership.ticked(ms(1_000), ms(1_000), true, &conflict(TTL, 1));
    let back = ms(1_000) + TTL;
    ownership.ticked(back, back, true, &conflict(Duration::ZERO, 1));
    assert_eq!(ownership.next(back), None);
}

#[test]
fn one_that_is_alone_gives_a_sign_of_life_now_and_then_and_when_there_is_news() {
    let mut ownership = Ownership::new(TTL, 256);
    ownership.registered(ms(1_000), id(1), 1);
    let mut alone = tick(TTL);
    alone.replicas.truncate(1);
    ownership.ticked(ms(1_000), ms(1_000), true, &alone);
    let beats = |ownership: &Ownership, at| ownership.next(at) == Some(Step::Tick { beat: true });
    let soon = ms(1_000) + SIGN_OF_LIFE - ms(1);
    assert!(!beats(&ownership, soon) && beats(&ownership, soon + ms(1)));
    ownership.tell();
    assert!(beats(&ownership, ms(5_000)));
    ownership.ticked(ms(5_000), ms(5_000), true, &alone);
    assert!(!beats(&ownership, ms(10_000)));
}
