//! A broker that is blocked, refuses, or lost its exchange.

use std::time::Duration;

use lapin::ExchangeKind;
use lapin::types::AMQPValue;

use crate::play::{Counts, Play, Run, WINDOW};
use crate::scenario::{Place, RABBITMQ, Scenario};
use crate::server::Server;
use crate::sink::Sink;
use crate::support::{PATIENCE, Relay, Settings};

/// What a relay may hold at most, however large the backlog.
const RESIDENT_MAX_KIB: u64 = 64 * 1024;

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "memory-alarm",
        row: "5",
        fault: "the broker blocks publishers for longer than a confirm timeout (long form: 25 of them) while a backlog piles up; \
                relays stay alive and below 64 MiB",
        replicas: 2,
        place: Place::Turn,
        short: true,
        sinks: &[Sink::RabbitMq, Sink::Nats, Sink::Http, Sink::EventBridge],
        run: |run| Box::pin(memory_alarm(run)),
    },
    Scenario {
        name: "exchange-recreated",
        row: "6",
        fault: "the exchange is deleted, and made again with another type",
        replicas: 2,
        place: Place::Shared,
        short: true,
        sinks: RABBITMQ,
        run: |run| Box::pin(exchange_recreated(run)),
    },
    Scenario {
        name: "queue-full",
        row: "7",
        fault: "the only queue is full and rejects (`reject-publish`) until somebody consumes",
        replicas: 2,
        place: Place::Shared,
        short: true,
        sinks: RABBITMQ,
        run: |run| Box::pin(queue_full(run)),
    },
    Scenario {
        name: "one-of-two-queues-full",
        row: "7",
        fault: "one of two queues is full; the other gets a copy at every attempt",
        replicas: 2,
        place: Place::Shared,
        short: true,
        sinks: RABBITMQ,
        run: |run| Box::pin(one_of_two_queues_full(run)),
    },
    Scenario {
        name: "broker-permission-revoked",
        row: "12",
        fault: "the broker's user may no longer write, later it may again",
        replicas: 2,
        place: Place::Turn,
        short: true,
        sinks: &[Sink::RabbitMq, Sink::Http, Sink::EventBridge],
        run: |run| Box::pin(permission_revoked(run)),
    },
];

fn patient(settings: Settings) -> Settings {
    settings.set("RETRY_MAX_ATTEMPTS", 100_000)
}

async fn memory_alarm(run: Run) -> Counts {
    const ROUNDS: usize = 4;
    let (length, rows) = (run.last(14, 150), run.rounds(4_000, 25_000));
    // The block outlasts it; a broker that has just woken up on a busy machine gets its time.
    let sink = run.sink();
    let short_timeout = |settings| sink.confirm_timeout(settings, Duration::from_secs(6));
    let mut play = Play::under_load_with(run, short_timeout).await;
    play.broker().block().await;
    for _ in 0..ROUNDS {
        play.backlog(rows).await;
        // How long it is blocked is what is tested.
        tokio::time::sleep(length / ROUNDS as u32).await;
        heartbeats(&play).await;
        assert_small(&play);
    }
    match play.broker() {
        Server::RabbitMq(node) => {
            let blocked = node.ctl_ok(&["list_connections", "state"]);
            assert!(blocked.contains("blocked"), "{blocked}");
        }
        _ => {
            for replica in &play.replicas {
                let waiting = "asks publishers to wait";
                replica.relay().await_log(waiting).await;
            }
        }
    }
    play.broker().unblock().await;
    play.recovered().await;
    assert_small(&play);
    play.finish(0).await
}

/// Waits until each relay has renewed its lease: it is alive, not stuck.
async fn heartbeats(play: &Play) {
    let now = "select clock_timestamp()::text";
    let began = play.stage.texts(now).await.remove(0);
    let renewed = format!(
        "select count(*) from outrigger.replicas where lease_until - lease_ttl > '{began}'"
    );
    let what = "a heartbeat of each relay";
    play.stage.await_count(what, &renewed, 2).await;
}

fn assert_small(play: &Play) {
    let relays = play.replicas.iter().map(|replica| replica.relay());
    let resident = relays.map(Relay::resident_kib).max().expect("relays");
    assert!(resident < RESIDENT_MAX_KIB, "{resident} KiB resident");
}

async fn exchange_recreated(run: Run) -> Counts {
    let mut play = Play::under_load_with(run, patient).await;
    play.refusals = true;
    let name = play.place.clone();
    play.exchange().admin.delete_exchange(&name).await;
    let refused = "select count(*) from outrigger.failures \
        where state = 'retrying' and reason = 'unknown_destination'";
    let what = "events fail because the exchange is gone";
    play.stage
        .await_that(what, refused, PATIENCE, |count| count >= 5)
        .await;
    play.writers().await_more(200).await;
    let admin = &play.exchange().admin;
    admin.exchange(&name, ExchangeKind::Fanout).await;
    admin.bind(&name, &name, "", &[]).await;
    play.recovered().await;
    play.published(200).await;
    // The broker closes a channel with events under way on it.
    play.finish(2 * WINDOW).await
}

fn limited(length: i32) -> [(&'static str, AMQPValue); 2] {
    [
        ("x-max-length", AMQPValue::LongInt(length)),
        ("x-overflow", AMQPValue::LongString("reject-publish".into())),
    ]
}

async fn queue_full(run: Run) -> Counts {
    let mut play = Play::under_load_with(run, patient).await;
    play.refusals = true;
    // Another queue takes over from here; what the first one got is read, too.
    let name = play.place.clone();
    let full = format!("{name}-full");
    play.exchange().admin.queue(&full, &limited(10)).await;
    play.silence().await;
    play.stage.await_settled().await;
    play.exchange_mut().read_out().await;
    play.exchange().unbind().await;
    play.exchange().admin.bind(&full, &name, "#", &[]).await;
    play.write().await;
    let refused = "select count(distinct seq) from audit where reason = 'nack'";
    let what = "the full queue refuses events";
    play.stage
        .await_that(what, refused, PATIENCE, |count| count >= 20)
        .await;
    let consumer = play.exchange().consumer_of(&full).await;
    play.exchange_mut().consumer = Some(consumer);
    play.recovered().await;
    play.published(200).await;
    play.finish(0).await
}

async fn one_of_two_queues_full(run: Run) -> Counts {
    let mut play = Play::under_load_with(run, patient).await;
    play.refusals = true;
    let name = play.place.clone();
    let full = format!("{name}-full");
    play.exchange().admin.queue(&full, &limited(10)).await;
    play.exchange().admin.bind(&full, &name, "#", &[]).await;
    let refused = "select count(*) from audit where reason = 'nack'";
    let what = "the full queue refuses events";
    play.stage
        .await_that(what, refused, PATIENCE, |count| count >= 50)
        .await;
    play.exchange().admin.unbind(&full, &name, "#").await;
    play.recovered().await;
    play.silence().await;
    // One copy in the other queue for every refusal.
    let refusals = play.stage.count(refused).await as usize;
    play.finish(refusals).await
}

async fn permission_revoked(run: Run) -> Counts {
    let mut play = Play::under_load_with(run, patient).await;
    play.refusals = true;
    play.broker().forbid(&play.place);
    let refused = "select count(*) from outrigger.failures where reason = 'forbidden'";
    let what = "events fail because writing is forbidden";
    play.stage
        .await_that(what, refused, PATIENCE, |count| count >= 5)
        .await;
    play.broker().allow(&play.place);
    play.recovered().await;
    play.published(200).await;
    // The broker closes a channel with events under way on it.
    play.finish(2 * WINDOW).await
}
