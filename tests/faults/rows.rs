//! Rows 8, 9, 23 and 25: rows that cannot be published, and rows of every size.

use std::time::Instant;

use crate::play::{Counts, Play, Run, WINDOW};
use crate::scenario::{Place, RABBITMQ, Scenario};
use crate::sink::Sink;
use crate::support::Settings;
use crate::support::proxy::Act;
use crate::support::proxy::frames::{Label, Statement};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "unroutable-rows",
        row: "8",
        fault: "single unroutable rows at random places among many good ones, under the same keys",
        replicas: 2,
        place: Place::Shared,
        short: true,
        sinks: Sink::ALL,
        run: |run| Box::pin(unroutable_rows(run)),
    },
    Scenario {
        name: "poison-rows",
        row: "9, 23",
        fault: "rows of every kind that can never be published, each followed by a good one of its key",
        replicas: 2,
        place: Place::Shared,
        short: true,
        sinks: Sink::ALL,
        run: |run| Box::pin(poison_rows(run)),
    },
    Scenario {
        name: "many-failing-keys",
        row: "8",
        fault: "20,000 keys whose events find no queue, and then good events of others",
        replicas: 1,
        place: Place::Shared,
        short: true,
        sinks: RABBITMQ,
        run: |run| Box::pin(many_failing_keys(run, "retrying")),
    },
    Scenario {
        name: "many-blocked-keys",
        row: "8",
        fault: "the same, where an event that is given up blocks its key",
        replicas: 1,
        place: Place::Shared,
        short: true,
        sinks: RABBITMQ,
        run: |run| Box::pin(many_failing_keys(run, "blocked")),
    },
    Scenario {
        name: "payload-sizes",
        row: "25",
        fault: "payloads of up to 2 MB (long form: 8 MB; EventBridge: 0.9 MB), and one key that gets half of all events",
        replicas: 2,
        place: Place::Shared,
        short: true,
        sinks: Sink::ALL,
        run: |run| Box::pin(payload_sizes(run)),
    },
    Scenario {
        name: "unread-rows",
        row: "9, 25",
        fault: "rows of 30 to 200 MB, rows that the database cannot hand out and rows of some MB among the others, and kill -9 \
                while they are read, with 128 MiB of memory",
        replicas: 2,
        place: Place::Shared,
        short: true,
        sinks: Sink::ALL,
        run: |run| Box::pin(unread_rows(run)),
    },
];

/// The charts' default memory limit.
const MEMORY: u64 = 128 << 20;

/// Insists that so many rows are dead, each after as many attempts as it deserves.
async fn assert_dead(play: &mut Play, rows: usize) {
    play.stage
        .await_count(
            "every bad row is dead",
            "select count(*) from outrigger.failures where state = 'dead'",
            rows as i64,
        )
        .await;
    let attempts = "select count(*) from outrigger.failures \
        where state = 'dead' and attempts <> case when reason in ('unroutable', 'unknown_destination') then 2 else 1 end";
    let wrong = play.stage.count(attempts).await;
    assert_eq!(wrong, 0, "rows with the wrong number of attempts");
}

async fn unroutable_rows(run: Run) -> Counts {
    let rounds = run.rounds(40, 300);
    let mut play = Play::open(run).await;
    let column = play.run.sink().route_column();
    play.narrow().await;
    play.refusals = true;
    play.begin(|settings| settings).await;
    for _ in 0..rounds {
        let key = play.random(0..=60);
        // Like any writer of the key: who did not wait for its lock would overtake a transaction that is still open.
        let bad = format!(
            "begin; \
             insert into aggregates (key) values ('k{key}') on conflict (key) do update set version = aggregates.version; \
             insert into outbox (type, key, {column}) values ('changed', 'k{key}', 'nowhere'); \
             commit"
        );
        play.stage.run(&bad).await;
        play.pause_ms(0..=60).await;
    }
    assert_dead(&mut play, rounds).await;
    play.published(100).await;
    play.finish(0).await
}

async fn many_failing_keys(run: Run, state: &'static str) -> Counts {
    const KEYS: i64 = 20_000;
    let mut play = Play::open(run).await;
    play.narrow().await;
    play.refusals = true;
    let attempts = if state == "blocked" { 1 } else { 100_000 };
    let tune = |settings: Settings| {
        settings
            .set("RELAY_BATCH_SIZE", 1_000)
            .set("RELAY_MAX_IN_FLIGHT", 4_000)
            .set("RETRY_MAX_ATTEMPTS", attempts)
            .set("RETRY_ON_EXHAUSTED", "block")
            .set("RETRY_BACKOFF_INITIAL", "5s")
            .set("RETRY_BACKOFF_MAX", "5s")
    };
    play.add("a", tune).await.start();
    play.stage.await_owned(1).await;
    play.stage
        .run(&format!(
            "with event as (insert into outbox (type, key, data) select 'bad', 'bad' || g % {KEYS}, '1' \
               from generate_series(1, 2 * {KEYS}) g returning id, key, seq, data) \
             insert into ledger select id, key, seq, seq, data::text from event"
        ))
        .await;
    let failing = format!("select count(*) from outrigger.failures where state = '{state}'");
    play.stage
        .await_count("the first event of each key fails", &failing, KEYS)
        .await;
    let began = Instant::now();
    play.backlog(50).await;
    let good = "select count(*) from outbox where type = 'backlog' and published_at is not null";
    play.stage
        .await_count("good events of other keys are published", good, 50)
        .await;
    println!("    behind {KEYS} {state} keys: {:?}", began.elapsed());
    assert_eq!(play.stage.count(&failing).await, KEYS, "keys that fail");
    play.exchange().bind().await;
    if state == "blocked" {
        let retry = ["dead", "retry", "--all"];
        play.replicas[0].settings.run(&retry).await;
    }
    play.recovered().await;
    play.finish(0).await
}

async fn poison_rows(run: Run) -> Counts {
    let mut play = Play::open(run).await;
    let text = "alter table outbox alter column data type text";
    play.stage.run(text).await;
    let (sink, poison) = (play.run.sink(), play.broker().poison());
    play.narrow().await;
    play.broker().limit_size(&play.place).await;
    play.refusals = true;
    play.begin(|settings| sink.max_message_size(settings, "64KiB"))
        .await;
    for (number, (column, value, _)) in poison.iter().enumerate() {
        play.stage
            .run(&format!(
                "insert into outbox (type, key, {column}) values ('changed', 'p{number}', {value}); \
                 with event as (insert into outbox (type, key, data) values ('backlog', 'p{number}', '{{}}') \
                   returning id, key, seq, data) \
                 insert into ledger select id, key, seq, seq, data from event"
            ))
            .await;
        play.pause_ms(0..=50).await;
    }
    assert_dead(&mut play, poison.len()).await;
    for (number, (column, value, reason)) in poison.iter().enumerate() {
        let found = format!("select reason from outrigger.failures where key = 'p{number}'");
        let found = play.stage.texts(&found).await;
        assert_eq!(found, [*reason], "{column} {value:.40}");
    }
    play.published(100).await;
    play.finish(0).await
}

async fn payload_sizes(run: Run) -> Counts {
    let largest = run.rounds(2_000_000, 8_000_000);
    let largest = largest.min(run.sink().payload_max());
    let mut play = Play::under_load(run).await;
    for _ in 0..6 {
        let rows = play.random(20..=60);
        // Small ones mostly: a high power of a number below one is small.
        play.stage
            .run(&format!(
                "with event as (insert into outbox (type, key, data) \
                   select 'sized', case when g % 2 = 0 then 'hot' else 's' || g end, \
                     to_jsonb(repeat('x', (random() ^ 15 * {largest})::int)) \
                   from generate_series(1, {rows}) g returning id, key, seq, data) \
                 insert into ledger select id, key, seq, seq, data::text from event"
            ))
            .await;
        play.pause_ms(0..=200).await;
    }
    play.recovered().await;
    play.finish(0).await
}

async fn unread_rows(run: Run) -> Counts {
    let rounds = run.rounds(3, 12);
    let largest = 3_000_000.min(run.sink().payload_max());
    let mut play = Play::open(run).await;
    // A label that is gone is a value that cannot be rendered.
    let labels: Vec<String> = (0..rounds).map(|round| format!("'gone{round}'")).collect();
    play.stage
        .run(&format!(
            "create type fragile as enum ({}); \
             alter table outbox alter column subject type fragile using null",
            labels.join(", ")
        ))
        .await;
    play.refusals = true;
    play.begin(|settings| settings.limited(MEMORY)).await;
    for round in 0..rounds {
        let killed = round % 2;
        let nth = play.random(1..=150);
        let trap = play.replicas[killed].at(Label::Row(Statement::Read), nth, Act::Hold);
        play.stage
            .run(&format!(
                "begin; set local allow_system_table_mods = on; \
                 insert into outbox (type, key, data_binary) \
                   values ('huge', 'b1', decode(repeat('ab', 60000000), 'hex')); \
                 insert into outbox (type, key, headers) \
                   values ('huge', 'b2', jsonb_build_object('h', repeat('x', 30000000))); \
                 insert into outbox (type, key, data) values ('huge', 'b3', to_jsonb(repeat('x', 200000000))); \
                 insert into outbox (type, key, subject) select 'gone', 'b' || g, 'gone{round}' from generate_series(1, 5) g; \
                 with event as (insert into outbox (type, key, data) \
                     select 'large', 'b' || g, to_jsonb(repeat('x', {largest})) from generate_series(1, 10) g \
                     returning id, key, seq, data) \
                   insert into ledger select id, key, seq, seq, data::text from event; \
                 delete from pg_enum where enumlabel = 'gone{round}'; \
                 commit"
            ))
            .await;
        trap.sprung().await;
        play.replicas[killed].kill();
        play.published(50).await;
        play.replicas[killed].start();
        play.stage.await_owned(2).await;
    }
    assert_dead(&mut play, 8 * rounds).await;
    for (kind, reason, rows) in [("huge", "too_large", 3), ("gone", "unreadable", 5)] {
        let dead = format!(
            "select count(*) from outrigger.failures where event_type = '{kind}' and reason = '{reason}'"
        );
        assert_eq!(play.stage.count(&dead).await, (rows * rounds) as i64);
    }
    play.published(100).await;
    for replica in &play.replicas {
        let peak = replica.relay().peak_kib();
        assert!(peak < MEMORY >> 10, "{} took {peak} KiB", replica.name);
    }
    play.finish(rounds * WINDOW).await
}
