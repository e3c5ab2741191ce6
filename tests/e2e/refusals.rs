//! What the broker refuses, and what it could never take.

use std::collections::BTreeSet;

use lapin::ExchangeKind;
use lapin::types::AMQPValue;
use rand::Rng as _;

use crate::support::poison;
use crate::support::{Load, PATIENCE, Stage, Writers, seeded};
use crate::{alone, servers, shared};

#[tokio::test(flavor = "multi_thread")]
async fn an_unroutable_event_among_a_thousand_is_the_only_one_unpublished() {
    const EVENTS: i64 = 1000;
    const ROUNDS: usize = 100;
    let _turn = alone().await;
    let (_, mut random) = seeded("unroutable");
    let stage = Stage::bare(servers().await, "", &Default::default()).await;
    stage.route("good").await;
    let consumer = stage.consumer().await;
    let relay = stage.settings().set("RETRY_MAX_ATTEMPTS", 1).start();
    let mut delivered = 0;
    for round in 0..ROUNDS {
        let bad = random.random_range(1..=EVENTS);
        stage
            .run(&format!(
                "insert into outbox (type, key, routing_key) select 'good', 'k' || g % 50, \
                   case when g = {bad} then 'nowhere' end from generate_series(1, {EVENTS}) g"
            ))
            .await;
        let open = "select count(*) from outbox where published_at is null \
            and seq not in (select seq from outrigger.failures where state = 'dead' and reason = 'unroutable')";
        stage.await_count("all is published or dead", open, 0).await;
        let unpublished = stage
            .texts("select id::text from outbox where published_at is null and routing_key is not null")
            .await;
        assert_eq!(unpublished.len(), round + 1, "round {round}, bad {bad}");
        delivered += EVENTS as usize - 1;
        consumer.await_different(delivered).await;
    }
    relay.stop().await;
    let found: Vec<_> = consumer.finish().await.into_iter().map(|d| d.id).collect();
    let marked = stage
        .texts("select id::text from outbox where published_at is not null and routing_key is null")
        .await;
    assert_eq!(found.len(), delivered);
    assert_eq!(
        found.into_iter().collect::<BTreeSet<_>>(),
        marked.into_iter().collect::<BTreeSet<_>>()
    );
    assert_eq!(
        stage.count("select count(*) from outrigger.failures").await,
        ROUNDS as i64
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_a_full_queue_rejects_arrive_once_it_has_room() {
    let _turn = shared().await;
    let stage = Stage::bare(servers().await, "", &Default::default()).await;
    let full = [
        ("x-max-length", AMQPValue::LongInt(10)),
        ("x-overflow", AMQPValue::LongString("reject-publish".into())),
    ];
    stage.admin.queue(&stage.name, &full).await;
    stage.admin.bind(&stage.name, &stage.name, "#", &[]).await;
    let load = Load {
        writers: 4,
        keys: 8,
        events: Some(300),
        pause: Default::default(),
        seed: seeded("full queue").0,
    };
    let relay = stage
        .settings()
        .set("RETRY_MAX_ATTEMPTS", 100_000)
        .set("RETRY_BACKOFF_INITIAL", "20ms")
        .set("RETRY_BACKOFF_MAX", "100ms")
        .start();
    Writers::start(&stage, load).await.finish().await;
    // Every key fails before anybody makes room.
    stage
        .await_count(
            "each key has an event that was rejected",
            "select count(distinct key) from outrigger.failures where state = 'retrying' and reason = 'nack'",
            stage.count("select count(distinct key) from ledger").await,
        )
        .await;
    let consumer = stage.consumer().await;
    stage.await_settled().await;
    relay.stop().await;
    let (events, report) = stage.check(&consumer.finish().await).await;
    report.assert_exact(events);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_wait_for_an_exchange_that_was_deleted() {
    let _turn = shared().await;
    let stage = Stage::new(servers().await).await;
    let consumer = stage.consumer().await;
    let relay = stage
        .settings()
        .set("RETRY_MAX_ATTEMPTS", 100_000)
        .set("RETRY_BACKOFF_INITIAL", "50ms")
        .set("RETRY_BACKOFF_MAX", "200ms")
        .start();
    let load = Load {
        writers: 4,
        keys: 20,
        events: None,
        pause: std::time::Duration::from_millis(5),
        seed: seeded("deleted exchange").0,
    };
    let writers = Writers::start(&stage, load).await;
    consumer.await_different(200).await;
    stage.admin.delete_exchange(&stage.name).await;
    stage
        .await_that(
            "events fail because the exchange is gone",
            "select count(*) from outrigger.failures where state = 'retrying' and reason = 'unknown_destination'",
            PATIENCE,
            |count| count >= 5,
        )
        .await;
    writers.await_more(100).await;
    stage.admin.exchange(&stage.name, ExchangeKind::Topic).await;
    stage.admin.bind(&stage.name, &stage.name, "#", &[]).await;
    writers.await_more(200).await;
    writers.stop().await;
    stage.await_settled().await;
    relay.stop().await;
    let (events, report) = stage.check(&consumer.finish().await).await;
    // The deletion may close channels with events under way: at most one of each of the 20 keys.
    report.assert_delivered(events, 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_cannot_be_published_end_with_their_reason_and_harm_nobody() {
    let _turn = shared().await;
    let stage = Stage::bare(servers().await, "", &Default::default()).await;
    stage
        .run("alter table outbox alter column data type text")
        .await;
    stage.route("good.#").await;
    let consumer = stage.consumer().await;
    let poison = [poison::RABBITMQ, poison::ANY].concat();
    // Before and behind each, also under the same key.
    for (number, (column, value, _)) in poison.iter().enumerate() {
        stage
            .run(&format!(
                "insert into outbox (type, key) select 'good.n', 'k' || g from generate_series(1, 10) g; \
                 insert into outbox (type, key, {column}) values ('good.p', 'p{number}', {value}); \
                 insert into outbox (type, key) values ('good.n', 'p{number}')"
            ))
            .await;
    }
    let relay = stage
        .settings()
        .set("RABBITMQ_MAX_MESSAGE_SIZE", "64KiB")
        .set("RETRY_MAX_ATTEMPTS", 2)
        .set("RETRY_BACKOFF_INITIAL", "20ms")
        .start();
    stage
        .await_count(
            "every poisonous row is dead",
            "select count(*) from outrigger.failures where state = 'dead'",
            poison.len() as i64,
        )
        .await;
    let good = poison.len() * 11;
    consumer.await_different(good).await;
    stage
        .await_count(
            "every other row is published",
            "select count(*) from outbox where published_at is not null",
            good as i64,
        )
        .await;
    for (number, (column, value, reason)) in poison.iter().enumerate() {
        let found = stage
            .texts(&format!(
                "select reason || ': ' || error from outrigger.failures where key = 'p{number}'"
            ))
            .await;
        assert!(
            found.len() == 1
                && found[0].starts_with(&format!("{reason}: "))
                && found[0].len() > reason.len() + 10,
            "{column} {value:.40}: {found:?}"
        );
        assert!(
            found[0].len() < 600,
            "payload in an error: {:.700}",
            found[0]
        );
    }
    // What can never work is tried once, what may work later as often as allowed.
    let attempts = "select count(*) from outrigger.failures \
        where attempts <> case when reason in ('unroutable', 'unknown_destination') then 2 else 1 end";
    assert_eq!(stage.count(attempts).await, 0);
    relay.stop().await;
    assert_eq!(consumer.finish().await.len(), good, "copies");
}
