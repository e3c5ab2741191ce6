//! Servers that crash and come back. An outage costs time, and nothing else: no event, no attempt, no order.

use outrigger::store::postgres::OutboxSettings;

use crate::play::{Counts, Play, Run, WINDOW};
use crate::scenario::{Place, RABBITMQ, Scenario};
use crate::sink::Sink;
use crate::support::outbox::migrated;
use crate::support::{PATIENCE, until};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "broker-crash",
        row: "4",
        fault: "the broker is killed and started again, several times",
        replicas: 2,
        place: Place::Turn,
        short: true,
        sinks: Sink::ALL,
        run: |run| Box::pin(broker_crash(run)),
    },
    Scenario {
        name: "broker-outage",
        row: "4",
        fault: "the broker is away for much longer than all retries of an event would take",
        replicas: 2,
        place: Place::Turn,
        short: false,
        sinks: Sink::ALL,
        run: |run| Box::pin(broker_outage(run)),
    },
    Scenario {
        name: "connections-closed",
        row: "4",
        fault: "an operator closes all connections of the broker, three times",
        replicas: 2,
        place: Place::Turn,
        short: true,
        sinks: RABBITMQ,
        run: |run| Box::pin(connections_closed(run)),
    },
    Scenario {
        name: "first-to-start",
        row: "4, 13",
        fault: "relays start before the broker runs and before the database is migrated",
        replicas: 2,
        place: Place::Turn,
        short: true,
        sinks: Sink::ALL,
        run: |run| Box::pin(first_to_start(run)),
    },
    Scenario {
        name: "postgres-crash",
        row: "13",
        fault: "PostgreSQL is stopped like a crash and started again, several times",
        replicas: 2,
        place: Place::Turn,
        short: true,
        sinks: Sink::ALL,
        run: |run| Box::pin(postgres_crash(run)),
    },
    Scenario {
        name: "restart-behind-large-rows",
        row: "11, 25",
        fault: "PostgreSQL is restarted while the broker is away and large rows fill the memory, their payloads still in the table",
        replicas: 2,
        place: Place::Turn,
        short: true,
        sinks: Sink::ALL,
        run: |run| Box::pin(restart_behind_large_rows(run)),
    },
];

async fn restart_behind_large_rows(run: Run) -> Counts {
    let mut play = Play::under_load(run).await;
    play.broker().kill();
    // Their payloads are read when they are about to go. More of them than either replica holds.
    play.stage
        .run(&format!(
            "with event as (insert into outbox (type, key, data) \
               select 'backlog', 'large' || g, jsonb_build_object('p', repeat('x', 100000)) \
               from generate_series(1, {}) g returning id, key, seq, data) \
             insert into ledger select id, key, seq, seq, data::text from event",
            6 * WINDOW
        ))
        .await;
    play.silence().await;
    for replica in &play.replicas {
        let full = || async {
            let metrics = replica.relay().get("/metrics").unwrap_or_default();
            let held = metrics
                .lines()
                .find_map(|line| line.strip_prefix("outrigger_in_flight_events "));
            match held.and_then(|held| held.trim().parse::<f64>().ok()) {
                Some(held) if held > 0.75 * WINDOW as f64 => Ok(()),
                held => Err(format!("{held:?} events")),
            }
        };
        until("its memory is full", PATIENCE, full).await;
    }
    let postgres = play.stage.postgres.clone();
    let restart = tokio::task::spawn_blocking(move || postgres.restart());
    restart.await.expect("the restart");
    play.broker().revive().await;
    play.reconnect().await;
    play.recovered().await;
    play.finish(2 * WINDOW).await
}

async fn broker_crash(run: Run) -> Counts {
    let rounds = run.rounds(1, 3);
    let mut play = Play::under_load(run).await;
    for _ in 0..rounds {
        play.pause_ms(0..=300).await;
        play.broker().kill();
        play.writers().await_more(100).await;
        play.broker().revive().await;
        play.recovered().await;
    }
    play.finish(rounds * 2 * WINDOW).await
}

async fn broker_outage(run: Run) -> Counts {
    let length = run.last(3, 45);
    let mut play = Play::under_load(run).await;
    play.broker().kill();
    // Two attempts 50 ms apart would be over long before; its length is the fault.
    tokio::time::sleep(length).await;
    play.writers().await_more(100).await;
    play.broker().revive().await;
    play.recovered().await;
    play.published(200).await;
    play.finish(2 * WINDOW).await
}

async fn connections_closed(run: Run) -> Counts {
    let mut play = Play::under_load(run).await;
    for _ in 0..3 {
        let close = ["close_all_connections", "closed by the operator"];
        play.run.servers.rabbitmq().ctl_ok(&close);
        play.recovered().await;
        play.published(200).await;
    }
    play.finish(6 * WINDOW).await
}

async fn first_to_start(run: Run) -> Counts {
    let mut play = Play::open(run).await;
    let servers = play.run.servers.clone();
    let schema = "drop schema outrigger cascade; drop table outbox";
    play.stage.run(schema).await;
    servers.broker.kill();
    for name in ["a", "b"] {
        play.add(name, |settings| settings).await.start();
    }
    for replica in &play.replicas {
        replica.relay().await_log("waiting for it").await;
    }
    let url = servers.postgres.url(&play.stage.database);
    migrated(&url, &OutboxSettings::default()).await;
    play.audit().await;
    play.write().await;
    play.writers().await_more(200).await;
    servers.broker.revive().await;
    play.recovered().await;
    play.stage.await_owned(2).await;
    play.published(200).await;
    play.finish(0).await
}

async fn postgres_crash(run: Run) -> Counts {
    let rounds = run.rounds(2, 4);
    let mut play = Play::under_load(run).await;
    for _ in 0..rounds {
        play.pause_ms(0..=300).await;
        let postgres = play.stage.postgres.clone();
        let restart = tokio::task::spawn_blocking(move || postgres.restart());
        restart.await.expect("the restart");
        play.reconnect().await;
        play.recovered().await;
        play.stage.await_owned(2).await;
    }
    play.published(200).await;
    play.finish(rounds * 2 * WINDOW).await
}
