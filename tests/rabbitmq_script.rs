//! The RabbitMQ sink against a scripted broker: orders and silences a real one shows too rarely.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/broker.rs"]
mod broker;
#[path = "support/sink.rs"]
mod support;

use std::time::{Duration, Instant};

use outrigger::error::{ReasonCode, Verdict};
use outrigger::event::Message;
use outrigger::sink::SinkState;
use outrigger::sink::rabbitmq::RabbitMqSettings;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use self::broker::{Broker, Client};
use self::support::{Is, Running, assert_verdicts, message, settings, within};

async fn connect(broker: &Broker, settings: RabbitMqSettings) -> (Running, Client) {
    let running = Running::ready(settings);
    within("the sink connects", async {
        tokio::join!(running, broker.accept())
    })
    .await
}

fn batch(name: &str, size: usize) -> Vec<Message> {
    (0..size)
        .map(|n| message(format!("{name}-{n}"), "events", "key"))
        .collect()
}

fn all(verdict: Verdict) -> impl Fn(&Verdict) -> bool {
    move |other| *other == verdict
}

/// Here one routing key stands for any number of them, so none is believed to have worked.
fn impatient(url: &str) -> RabbitMqSettings {
    RabbitMqSettings {
        unroutable_patience: Duration::ZERO,
        ..settings(url)
    }
}

/// Confirms everything that comes, `count` messages of one channel from `first_tag` on.
async fn confirm_all(client: &mut Client, count: usize, first_tag: u64) {
    let published = client.published(count).await;
    client
        .ack(published[0].channel, first_tag + count as u64 - 1, true)
        .await;
}

/// What the broker thinks of each message.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Acked,
    Nacked,
    Returned,
}

/// Says everything about messages `first_tag..` in a random order that AMQP allows: a return comes
/// before its own ack, returns come in publish order, and a `multiple` covers all tags up to its own.
async fn answer(
    client: &mut Client,
    channel: u16,
    first_tag: u64,
    fates: &[(Fate, String)],
    random: &mut StdRng,
) {
    let mut handled = 0;
    let mut open: Vec<usize> = Vec::new();
    while handled < fates.len() || !open.is_empty() {
        if handled < fates.len() && (open.is_empty() || random.random_bool(0.6)) {
            let (fate, id) = &fates[handled];
            if *fate == Fate::Returned {
                client.give_back(channel, "events", "key", id).await;
            }
            open.push(handled);
            handled += 1;
            continue;
        }
        let tag = |position: usize| first_tag + position as u64;
        let nacks = |position: &usize| fates[*position].0 == Fate::Nacked;
        open.sort_unstable();
        // As far as the oldest ones agree, one `multiple` can say it for all of them.
        let agreeing = open
            .iter()
            .take_while(|p| nacks(p) == nacks(&open[0]))
            .count();
        if agreeing > 1 && random.random_bool(0.5) {
            let last = open[random.random_range(0..agreeing)];
            if nacks(&open[0]) {
                client.nack(channel, tag(last), true).await;
            } else {
                client.ack(channel, tag(last), true).await;
            }
            open.retain(|position| *position > last);
        } else {
            let position = open.swap_remove(random.random_range(0..open.len()));
            if nacks(&position) {
                client.nack(channel, tag(position), false).await;
            } else {
                client.ack(channel, tag(position), false).await;
            }
        }
    }
}

#[tokio::test]
async fn every_order_of_returns_and_confirms_gives_the_right_verdicts() {
    let broker = Broker::listen().await;
    let (mut running, mut client) = connect(&broker, impatient(&broker.url())).await;
    let mut next_tag = 1;
    for seed in 0..500 {
        let mut random = StdRng::seed_from_u64(seed);
        let batch = batch(&seed.to_string(), random.random_range(1..80));
        let fates: Vec<_> = batch
            .iter()
            .map(|message| {
                let fate = match random.random_range(0..10) {
                    0 | 1 => Fate::Returned,
                    2 => Fate::Nacked,
                    _ => Fate::Acked,
                };
                (fate, message.id.clone())
            })
            .collect();
        let scripted = async {
            let published = client.published(batch.len()).await;
            let ids: Vec<_> = published.iter().map(|message| &message.id).collect();
            let sent: Vec<_> = batch.iter().map(|message| &message.id).collect();
            assert_eq!(ids, sent, "seed {seed}: order");
            answer(
                &mut client,
                published[0].channel,
                next_tag,
                &fates,
                &mut random,
            )
            .await;
        };
        let (verdicts, ()) = tokio::join!(running.publish(&batch), within("script", scripted));
        assert_verdicts(&format!("seed {seed}"), &verdicts, |index| {
            match fates[index].0 {
                Fate::Acked => Is::Confirmed,
                Fate::Nacked => Is::Rejected(ReasonCode::Nack),
                Fate::Returned => Is::Rejected(ReasonCode::Unroutable),
            }
        });
        next_tag += batch.len() as u64;
    }
}

#[tokio::test]
async fn a_return_of_something_else_decides_nothing_and_costs_the_channel() {
    let broker = Broker::listen().await;
    let (mut running, mut client) = connect(&broker, settings(&broker.url())).await;
    let batch = batch("m", 5);
    let script = async {
        let first = client.published(5).await[0].channel;
        client
            .give_back(first, "events", "key", "never-published")
            .await;
        client.ack(first, 5, true).await;
        let second = client.published(5).await[0].channel;
        assert_ne!(first, second, "a fresh channel");
        client.ack(second, 5, true).await;
    };
    let publish = async {
        let verdicts = running.publish(&batch).await;
        assert!(
            verdicts.iter().all(all(Verdict::Unavailable)),
            "{verdicts:?}"
        );
        running.publish(&batch).await
    };
    let (verdicts, ()) = tokio::join!(publish, within("script", script));
    assert!(verdicts.iter().all(all(Verdict::Confirmed)), "{verdicts:?}");
}

#[tokio::test]
async fn a_missing_confirm_costs_the_channel_but_not_the_connection() {
    let broker = Broker::listen().await;
    let patience = Duration::from_millis(300);
    let impatient = RabbitMqSettings {
        confirm_timeout: patience,
        ..settings(&broker.url())
    };
    let (mut running, mut client) = connect(&broker, impatient).await;
    running.state.mark_unchanged();
    let batch = batch("m", 3);
    let script = async {
        let first = client.published(3).await[0].channel;
        client.ack(first, 1, false).await;
        client.ack(first, 3, false).await;
        let second = client.published(3).await[0].channel;
        assert_ne!(first, second, "a fresh channel");
        client.ack(second, 3, true).await;
    };
    let publish = async {
        let began = Instant::now();
        let verdicts = running.publish(&batch).await;
        assert!(
            verdicts.iter().all(all(Verdict::Unavailable)),
            "{verdicts:?}"
        );
        assert!(began.elapsed() >= patience);
        running.publish(&batch).await
    };
    let (verdicts, ()) = tokio::join!(publish, within("script", script));
    assert!(verdicts.iter().all(all(Verdict::Confirmed)), "{verdicts:?}");
    assert!(
        !running.state.has_changed().unwrap(),
        "the connection was lost"
    );
}

/// What is still queued when a batch is given up must never be sent: it will be published again.
#[tokio::test]
async fn a_batch_the_broker_does_not_read_is_never_sent_late() {
    let broker = Broker::listen().await;
    let impatient = RabbitMqSettings {
        confirm_timeout: Duration::from_millis(300),
        ..settings(&broker.url())
    };
    let (mut running, mut client) = connect(&broker, impatient).await;
    let small = batch("small", 1);
    let (verdicts, ()) = tokio::join!(running.publish(&small), confirm_all(&mut client, 1, 1));
    assert!(verdicts.iter().all(all(Verdict::Confirmed)));
    // More than all buffers between us together.
    let mut large = batch("large", 40);
    for message in &mut large {
        message.body = vec![b'x'; 1024 * 1024].into();
    }
    let began = Instant::now();
    let verdicts = running.publish(&large).await;
    // Not after waiting for the broker to take a polite close as well.
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
    assert!(
        verdicts.iter().all(all(Verdict::Unavailable)),
        "{verdicts:?}"
    );
    running
        .await_state("lost", |state| matches!(state, SinkState::Down(_)))
        .await;
    let arrived = within("the connection ends", client.serve_until_end()).await;
    assert!(arrived < large.len(), "{arrived} arrived");
    let again = batch("again", 2);
    let (_, mut client) = tokio::join!(
        running.await_state("ready again", SinkState::is_ready),
        broker.accept()
    );
    let (verdicts, ()) = tokio::join!(running.publish(&again), confirm_all(&mut client, 2, 1));
    assert!(verdicts.iter().all(all(Verdict::Confirmed)));
}

#[tokio::test]
async fn an_abandoned_batch_leaves_nothing_behind() {
    let broker = Broker::listen().await;
    let (mut running, mut client) = connect(&broker, settings(&broker.url())).await;
    let batch = batch("m", 3);
    tokio::select! {
        _ = running.publish(&batch) => panic!("nothing was confirmed"),
        _ = client.published(3) => {}
    }
    let began = Instant::now();
    within("the connection ends", client.serve_until_end()).await;
    // At once, not when heartbeats fail to come.
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    running.await_state("lost", |state| !state.is_ready()).await;
    let (_, mut client) = tokio::join!(
        running.await_state("ready again", SinkState::is_ready),
        broker.accept()
    );
    let (verdicts, ()) = tokio::join!(running.publish(&batch), confirm_all(&mut client, 3, 1));
    assert!(verdicts.iter().all(all(Verdict::Confirmed)));
}

/// The broker closes the connection whenever it sees one certain message.
#[tokio::test]
async fn a_message_that_breaks_connections_is_isolated_and_refused() {
    let broker = Broker::listen().await;
    let mut running = Running::start(settings(&broker.url()));
    let mut waiting = batch("m", 6);
    waiting[3].id = "poison".into();
    let mut refused = None;
    let script = async {
        loop {
            let mut client = broker.accept().await;
            let mut tags = std::collections::HashMap::new();
            loop {
                let Some(published) = client.published(1).await.pop() else {
                    break;
                };
                let tag = tags.entry(published.channel).or_insert(0);
                *tag += 1;
                if published.id == "poison" {
                    client.close_connection(541, "INTERNAL_ERROR").await;
                } else {
                    client.ack(published.channel, *tag, false).await;
                }
            }
        }
    };
    let publish = async {
        let mut rounds = 0;
        while !waiting.is_empty() {
            rounds += 1;
            assert!(rounds < 20, "{waiting:?}");
            running.await_state("ready", SinkState::is_ready).await;
            let verdicts = running.publish(&waiting).await;
            let mut left = Vec::new();
            for (message, verdict) in waiting.drain(..).zip(verdicts) {
                match verdict {
                    Verdict::Confirmed => assert_ne!(message.id, "poison"),
                    Verdict::Unavailable => left.push(message),
                    verdict => refused = Some((message.id, verdict)),
                }
            }
            waiting = left;
        }
    };
    within("every message has its verdict", async {
        tokio::select! {
            () = Box::pin(publish) => {}
            () = Box::pin(script) => {}
        }
    })
    .await;
    let (id, verdict) = refused.unwrap();
    assert_eq!(
        (id.as_str(), support::is(&verdict)),
        ("poison", Is::Rejected(ReasonCode::Other))
    );
}

#[tokio::test]
async fn a_shutdown_of_the_broker_blames_nobody() {
    let broker = Broker::listen().await;
    let mut running = Running::start(settings(&broker.url()));
    let single = batch("m", 1);
    for _ in 0..5 {
        let (_, mut client) = within("ready", async {
            tokio::join!(running.state.wait_for(SinkState::is_ready), broker.accept())
        })
        .await;
        let script = async {
            client.published(1).await;
            client
                .close_connection(320, "CONNECTION_FORCED - broker forced connection closure")
                .await;
            client.serve_until_end().await;
        };
        let (verdicts, ()) = tokio::join!(running.publish(&single), script);
        assert_eq!(verdicts, [Verdict::Unavailable]);
        running.await_state("lost", |state| !state.is_ready()).await;
    }
}

#[tokio::test]
async fn a_handshake_that_never_ends_is_given_up_for_certain() {
    let broker = Broker::listen().await;
    let url = format!("{}?connection_timeout=200", broker.url());
    let mut running = Running::start(settings(&url));
    let mut silent = within("a connection", broker.accept_raw()).await;
    let state = running
        .await_state(
            "down",
            |state| matches!(state, SinkState::Down(reason) if !reason.is_empty()),
        )
        .await;
    assert!(format!("{state:?}").contains("within 200ms"), "{state:?}");
    let mut header = Vec::new();
    let end = tokio::io::AsyncReadExt::read_to_end(&mut silent, &mut header);
    within("the socket is closed", end).await.unwrap();
    running.close().await;
}

#[tokio::test]
async fn closing_is_quick_even_when_the_broker_is_silent() {
    let broker = Broker::listen().await;
    let (running, client) = connect(&broker, settings(&broker.url())).await;
    let began = Instant::now();
    running.close().await;
    assert!(
        began.elapsed() < Duration::from_secs(7),
        "{:?}",
        began.elapsed()
    );
    drop(client);
}

/// `x-delayed-message` returns what it keeps; `x-message-deduplication` returns what it drops.
#[tokio::test]
async fn a_plugin_that_returns_what_it_keeps_is_recognised() {
    use outrigger::event::HeaderValue;
    for (kind, header, expected) in [
        (
            Some("x-delayed-message"),
            ("x-delay", HeaderValue::Int(1000)),
            Is::Confirmed,
        ),
        (
            Some("x-delayed-message"),
            ("x-other", HeaderValue::Int(1000)),
            Is::Rejected(ReasonCode::Unroutable),
        ),
        (
            Some("topic"),
            ("x-delay", HeaderValue::Int(1000)),
            Is::Rejected(ReasonCode::Unroutable),
        ),
        (
            Some("x-message-deduplication"),
            ("x-deduplication-header", HeaderValue::Text("7".into())),
            Is::Impossible(ReasonCode::Unroutable),
        ),
    ] {
        let broker = Broker::listen().await;
        let (mut running, mut client) = connect(&broker, impatient(&broker.url())).await;
        client.kind = kind;
        let mut batch = batch("m", 3);
        batch[1].headers = vec![(header.0.to_owned(), header.1)];
        let script = async {
            let channel = client.published(3).await[0].channel;
            client.give_back(channel, "events", "key", "m-1").await;
            client.ack(channel, 3, true).await;
            client.serve_until_end().await
        };
        let verdicts = tokio::select! {
            verdicts = running.publish(&batch) => verdicts,
            sent = script => panic!("the connection ended after {sent} more"),
        };
        assert_verdicts(&format!("{kind:?}"), &verdicts, |index| match index {
            1 => expected,
            _ => Is::Confirmed,
        });
    }
}

/// What is confirmed before the broker closes a channel is not sent again, and its words name the one to blame.
#[tokio::test]
async fn a_refusal_that_names_its_message_repeats_nothing_that_is_confirmed() {
    let broker = Broker::listen().await;
    let (mut running, mut client) = connect(&broker, settings(&broker.url())).await;
    let mut batch = batch("m", 6);
    batch[3].routing_key = "closed".into();
    let script = async {
        let first = client.published(6).await[0].channel;
        client.ack(first, 2, true).await;
        client
            .close_channel(
                first,
                403,
                "ACCESS_REFUSED - access to topic 'closed' in exchange 'events' in vhost '/' refused for user 'guest'",
            )
            .await;
        let again = client.published(3).await;
        let ids: Vec<_> = again.iter().map(|message| message.id.as_str()).collect();
        assert_eq!(ids, ["m-2", "m-4", "m-5"]);
        client.ack(again[0].channel, 3, true).await;
        // Within a second the refusal is believed.
        let alone = client.published(5).await;
        assert!(alone.iter().all(|message| message.routing_key == "key"));
        client.ack(alone[0].channel, 8, true).await;
    };
    let publish = async {
        let mut both = Vec::new();
        for _ in 0..2 {
            both.push(running.publish(&batch).await);
        }
        both
    };
    let (both, ()) = tokio::join!(publish, within("script", script));
    for verdicts in both {
        assert_verdicts("named", &verdicts, |index| match index {
            3 => Is::Rejected(ReasonCode::Forbidden),
            _ => Is::Confirmed,
        });
    }
}
