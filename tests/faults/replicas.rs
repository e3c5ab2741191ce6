//! Replicas that disagree: about who owns what, what time it is, or how they are configured.

use std::time::Instant;

use tokio_postgres::error::SqlState;

use crate::play::{Counts, Play, Run, WINDOW};
use crate::scenario::{Place, Scenario};
use crate::sink::Sink;

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "clock-jumps",
        row: "21",
        fault: "the database's clock jumps an hour ahead and back (all times it wrote are moved the other way)",
        replicas: 2,
        place: Place::Shared,
        short: true,
        sinks: Sink::ALL,
        run: |run| Box::pin(clock_jumps(run)),
    },
    Scenario {
        name: "owners-forced",
        row: "24",
        fault: "partitions change owners behind their owners' backs, so two relays publish the same rows",
        replicas: 2,
        place: Place::Shared,
        short: true,
        sinks: Sink::ALL,
        run: |run| Box::pin(owners_forced(run)),
    },
    Scenario {
        name: "mixed-settings",
        row: "26",
        fault: "replicas with different batch sizes, partitions and ordering come and go; one meets a newer schema",
        replicas: 3,
        place: Place::Shared,
        short: true,
        sinks: Sink::ALL,
        run: |run| Box::pin(mixed_settings(run)),
    },
];

async fn clock_jumps(run: Run) -> Counts {
    let rounds = run.rounds(2, 6);
    let mut play = Play::under_load(run).await;
    // An hour ahead ends every lease at once, so two replicas may own a partition until their next ticks.
    play.order = false;
    for _ in 0..rounds {
        for direction in ["-", "+"] {
            let jump = format!("{direction} interval '1 hour'");
            play.stage
                .run(&format!(
                    "begin; \
                     update outrigger.partitions set owned_since = owned_since {jump}; \
                     update outrigger.replicas set lease_until = lease_until {jump}, \
                       visible_since = visible_since {jump}, registered_at = registered_at {jump}; \
                     select setval(s.name, greatest(1, coalesce(pg_sequence_last_value(s.name), 1) \
                         + (extract(epoch from interval '0' {jump}) * 1000)::int8)) \
                       from (select outrigger.awake_sequence('public.outbox')::regclass as name) s; commit"
                ))
                .await;
            play.recovered().await;
            play.pause_ms(0..=1_500).await;
        }
    }
    play.stage.await_owned(2).await;
    play.published(200).await;
    // Each jump may cost either relay its partitions.
    play.finish(rounds * 2 * 2 * WINDOW).await
}

async fn owners_forced(run: Run) -> Counts {
    let length = run.last(3, 30);
    let mut play = Play::under_load(run).await;
    play.order = false;
    let began = Instant::now();
    let mut changes = 0;
    while began.elapsed() < length {
        let swap = "update outrigger.partitions p set owner = r.replica from outrigger.replicas r \
            where r.outbox = p.outbox and r.replica <> p.owner and random() < 0.5";
        // A relay may hold what this waits for and the other way round; then the server ends one of the two.
        match play.stage.sql.batch_execute(swap).await {
            Ok(()) => changes += 1,
            Err(error) if error.code() == Some(&SqlState::T_R_DEADLOCK_DETECTED) => {}
            Err(error) => panic!("{error:?}"),
        }
        play.pause_ms(50..=600).await;
    }
    play.recovered().await;
    play.stage.await_owned(2).await;
    play.published(200).await;
    play.finish(changes * 2 * WINDOW).await
}

async fn mixed_settings(run: Run) -> Counts {
    let sink = run.sink();
    let mut play = Play::under_load(run).await;
    play.add("c", |settings| {
        sink.lanes(settings, 2)
            .set("RELAY_PARTITIONS", 5)
            .set("RELAY_BATCH_SIZE", 7)
            .set("RELAY_MAX_IN_FLIGHT", 20)
            .set("RELAY_ORDERING", "pipelined")
            .set("RELAY_LEASE_TTL", "5s")
    })
    .await
    .start();
    play.stage.await_owned(3).await;
    play.published(300).await;
    // A later version has migrated meanwhile: whoever runs goes on, whoever starts waits.
    let newer =
        "insert into outrigger.migrations (version, name, checksum) values (9999, 'later', 'x')";
    play.stage.run(newer).await;
    play.replicas[0].stop().await;
    play.replicas[0].start();
    let waits = "newer than this binary";
    play.replicas[0].relay().await_log(waits).await;
    play.recovered().await;
    play.stage.await_owned(2).await;
    let older = "delete from outrigger.migrations where version = 9999";
    play.stage.run(older).await;
    play.stage.await_owned(3).await;
    play.published(300).await;
    play.finish(0).await
}
