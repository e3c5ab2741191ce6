//! Brokers that differ: clusters with a node down, limits, permissions for single routing keys.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use outrigger::sink::Lane;

use super::*;

fn url_of(node: &RabbitMq, user: &str, rest: &str) -> String {
    format!("amqp://{user}:{user}@127.0.0.1:{}{rest}", node.port())
}

/// A user of this name and password who may do everything, except what the test takes away.
fn user(node: &RabbitMq, name: &str) {
    node.ctl_ok(&["add_user", name, name]);
    node.ctl_ok(&["set_permissions", name, ".*", ".*", ".*"]);
}

fn detail(verdict: &Verdict) -> &str {
    match verdict {
        Verdict::Rejected(reason) | Verdict::Impossible(reason) => &reason.detail,
        Verdict::Postponed { reason, .. } => &reason.detail,
        other => panic!("{other:?}"),
    }
}

/// What is in flight when a queue dies with its node.
const NACKED: Is = Is::Rejected(ReasonCode::Nack);

fn is_impaired(state: &SinkState) -> bool {
    matches!(state, SinkState::Impaired(_))
}

/// On all lanes at once. What is held back while a connection is replaced goes again, as in a relay.
async fn publish_all(lanes: &mut [Box<dyn Lane>], exchange: &str, round: &str) -> usize {
    let publishing = lanes
        .iter_mut()
        .enumerate()
        .map(|(number, lane)| async move {
            let id = |n| format!("{round}-{number}-{n}");
            let mut left: Vec<Message> = (0..20).map(|n| message(id(n), exchange, "k")).collect();
            while !left.is_empty() {
                let verdicts = lane.publish(&left).await;
                assert_verdicts(round, &verdicts, |index| match verdicts[index] {
                    Verdict::Unavailable => Is::Unavailable,
                    _ => Is::Confirmed,
                });
                let mut verdicts = verdicts.into_iter();
                left.retain(|_| verdicts.next() == Some(Verdict::Unavailable));
            }
            20
        });
    let sent = within("all lanes publish", join_all(publishing)).await;
    sent.into_iter().sum()
}

#[tokio::test]
async fn a_classic_queue_on_a_node_that_is_down_is_an_outage() {
    let here = RabbitMq::start().await;
    let there = here.joined().await;
    // The queue lives where it was declared.
    let admin = Admin::connect(&there.url()).await;
    admin.route("events", "bound").await;
    let one = |n: u32, key: &str| [message(n, "events", key)];
    let mut running = Running::ready(settings(&here.url())).await;
    assert_verdicts("up", &running.publish(&one(1, "bound")).await, |_| {
        Is::Confirmed
    });

    there.kill();
    let began = Instant::now();
    let mut postponed = 0;
    // The cluster may take a moment to notice.
    while postponed < 3 {
        assert!(began.elapsed() < Duration::from_secs(60), "never postponed");
        match &running.publish(&one(2, "bound")).await[..] {
            [verdict @ Verdict::Postponed { after, .. }] => {
                assert!(
                    detail(verdict).contains("No attempt is counted"),
                    "{verdict:?}"
                );
                assert!(*after >= Duration::from_millis(900), "{after:?}");
                postponed += 1;
            }
            [Verdict::Unavailable | Verdict::Confirmed] => {}
            [other] if support::is(other) == NACKED => {}
            other => panic!("{other:?}"),
        }
    }
    // What nobody ever bound is refused as always, and does not wait for the other.
    assert_verdicts(
        "unbound",
        &running.publish(&one(3, "unbound")).await,
        |_| Is::Rejected(ReasonCode::Unroutable),
    );
    let state = running.await_state("impaired", is_impaired).await;
    assert!(format!("{state:?}").contains("`bound`"), "{state:?}");

    // A relay that starts during the outage knows by its records which routes worked.
    let mut second = Running::ready(settings(&here.url())).await;
    let waiting = one(4, "bound");
    second.lanes[0].has_waited(&waiting[0]);
    assert_verdicts("restarted", &second.publish(&waiting).await, |_| {
        Is::Postponed(ReasonCode::Unroutable)
    });
    second.close().await;

    // One that was told which queues must be there knows without.
    let mut third = Running::start(RabbitMqSettings {
        queues: vec!["events".into()],
        ..settings(&here.url())
    });
    let state = third
        .await_state("held", |state| format!("{state:?}").contains("home node"))
        .await;
    assert!(
        format!("{state:?}").contains("OUTRIGGER_RABBITMQ_QUEUES"),
        "{state:?}"
    );
    assert_verdicts("held", &third.publish(&one(5, "bound")).await, |_| {
        Is::Unavailable
    });

    there.revive().await;
    third
        .await_state("the queue is back", SinkState::is_ready)
        .await;
    assert_verdicts("back", &third.publish(&one(5, "bound")).await, |_| {
        Is::Confirmed
    });
    let again = async {
        while running.publish(&one(2, "bound")).await != [Verdict::Confirmed] {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    within("the route works again", again).await;
    running
        .await_state("all is well", |state| *state == SinkState::Ready)
        .await;

    // It is noticed under way, too: before the message, or by it.
    there.kill();
    let noticed = async {
        while third.state.borrow().is_ready() {
            let verdicts = third.lanes[0].publish(&one(6, "bound")).await;
            // What is in flight when the queue dies is nacked.
            let fine = [
                Is::Confirmed,
                Is::Unavailable,
                Is::Postponed(ReasonCode::Unroutable),
                NACKED,
            ];
            assert!(fine.contains(&support::is(&verdicts[0])), "{verdicts:?}");
        }
    };
    within("the sink holds back", noticed).await;
    third.close().await;
    running.close().await;
}

#[tokio::test]
async fn fewer_channels_than_wanted_are_shared_and_said() {
    let node = RabbitMq::start().await;
    let admin = Admin::connect(&node.url()).await;
    admin.route("events", "k").await;
    let eight = |url: &str| RabbitMqSettings {
        channels: 8,
        known_destinations: vec!["events".into()],
        ..settings(url)
    };
    let mut sent = 0;
    for channel_max in [1, 2, 3, 6, 8, 9] {
        node.ctl_ok(&[
            "eval",
            &format!("application:set_env(rabbit, channel_max, {channel_max})."),
        ]);
        let mut running = Running::ready(eight(&node.url())).await;
        let state = running.state.borrow().clone();
        match channel_max {
            9 => assert_eq!(state, SinkState::Ready),
            _ => {
                let shown = format!("{state:?}");
                assert!(
                    is_impaired(&state) && shown.contains("channel_max"),
                    "{shown}"
                );
                assert!(shown.contains("OUTRIGGER_RABBITMQ_CHANNELS"), "{shown}");
            }
        }
        for round in 0..5 {
            let round = format!("max {channel_max} round {round}");
            sent += publish_all(&mut running.lanes, "events", &round).await;
            // Refusals cost channels, and questions take one.
            let absent = [message("x", &name("absent"), "k")];
            let mut verdicts = running.publish(&absent).await;
            while verdicts == [Verdict::Unavailable] {
                verdicts = running.publish(&absent).await;
            }
            assert_verdicts(&round, &verdicts, |_| {
                Is::Rejected(ReasonCode::UnknownDestination)
            });
        }
        running.close().await;
    }
    let probe = Probe::connect(&eight(&node.url()), 0).await.unwrap();
    assert_eq!(probe.broker().limited, None);
    probe.close().await;
    node.ctl_ok(&["eval", "application:set_env(rabbit, channel_max, 2047)."]);

    // A limit of the user, which all its connections share: two replicas with nine channels each.
    user(&node, "few");
    node.ctl_ok(&["set_user_limits", "few", r#"{"max-channels": 12}"#]);
    let url = url_of(&node, "few", "/%2f");
    let mut first = Running::ready(eight(&url)).await;
    let mut second = Running::ready(eight(&url)).await;
    assert_eq!(*first.state.borrow(), SinkState::Ready);
    let shown = format!("{:?}", *second.state.borrow());
    for part in [
        "OUTRIGGER_RABBITMQ_CHANNELS=8",
        "user limit of (12)",
        "set_user_limits few",
    ] {
        assert!(shown.contains(part), "{shown} lacks {part}");
    }
    for round in 0..3 {
        sent += publish_all(&mut first.lanes, "events", &format!("first {round}")).await;
        sent += publish_all(&mut second.lanes, "events", &format!("second {round}")).await;
    }
    first.close().await;
    second.close().await;
    assert_eq!(
        admin.drain("events").await.len(),
        sent,
        "nothing was sent twice"
    );
}

#[tokio::test]
async fn a_broker_without_a_frame_limit_costs_no_memory() {
    let node = RabbitMq::start().await;
    node.ctl_ok(&["eval", "application:set_env(rabbit, frame_max, 0)."]);
    let admin = Admin::connect(&format!("{}?frame_max=131072", node.url())).await;
    admin.route("events", "k").await;
    for frame_max in [0, u32::MAX] {
        let settings = settings(&format!("{}?frame_max={frame_max}", node.url()));
        let probe = Probe::connect(&settings, 0).await.unwrap();
        assert!(
            probe.broker().frame_max <= 1024 * 1024,
            "{:?}",
            probe.broker()
        );
        let verdict = probe.publish(message(frame_max, "events", "k")).await;
        assert_eq!(support::is(&verdict), Is::Confirmed);
        probe.close().await;
    }
}

#[tokio::test]
async fn refusals_are_told_in_the_brokers_own_words() {
    let node = node().await;
    let admin = Admin::connect(&node.url()).await;
    user(node, "worded");
    let (open, internal) = (name("worded"), name("internal"));
    admin.route(&open, "#").await;
    let options = ExchangeDeclareOptions {
        durable: true,
        internal: true,
        ..ExchangeDeclareOptions::default()
    };
    let declared = admin.channel.exchange_declare(
        internal.as_str().into(),
        ExchangeKind::Topic,
        options,
        FieldTable::default(),
    );
    declared.await.unwrap();
    node.ctl_ok(&["set_topic_permissions", "worded", &open, r"^ok\.", "^$"]);
    let mut running = Running::ready(settings(&url_of(node, "worded", "/%2f"))).await;
    for (message, parts) in [
        (
            message(1, &internal, "k"),
            ["cannot publish to internal exchange", "without `internal`"],
        ),
        (
            message(2, &open, "no.1"),
            [
                "access to topic 'no.1'",
                "set_topic_permissions -p / worded",
            ],
        ),
        (
            message(3, "amq.default", "k"),
            [
                "`amq.default` does not exist",
                "leave the destination empty",
            ],
        ),
    ] {
        let verdicts = running.publish(&[message]).await;
        for part in parts {
            assert!(
                detail(&verdicts[0]).contains(part),
                "{verdicts:?} lacks {part}"
            );
        }
    }
    node.ctl_ok(&["set_permissions", "worded", ".*", "^nothing$", ".*"]);
    let wait = Duration::from_millis(300);
    let refused = async {
        // Permissions are cached for a moment.
        loop {
            let verdicts = running.publish(&[message(4, &open, "ok.4")]).await;
            if verdicts != [Verdict::Confirmed] {
                return verdicts;
            }
            tokio::time::sleep(wait).await;
        }
    };
    let verdicts = within("the permission is gone", refused).await;
    assert!(
        detail(&verdicts[0]).contains("set_permissions -p / worded"),
        "{verdicts:?}"
    );
    running.close().await;

    node.ctl_ok(&["set_user_limits", "worded", r#"{"max-connections": 0}"#]);
    let problem = Probe::connect(&settings(&url_of(node, "worded", "/%2f")), 0).await;
    let problem = problem.err().unwrap();
    assert!(
        problem.contains("user connection limit (0) is reached")
            && problem.contains("set_user_limits worded"),
        "{problem}"
    );
    assert!(!problem.contains("check the vhost"), "{problem}");
    node.ctl_ok(&["add_vhost", "full"]);
    node.ctl_ok(&["set_permissions", "-p", "full", "guest", ".*", ".*", ".*"]);
    node.ctl_ok(&[
        "set_vhost_limits",
        "-p",
        "full",
        r#"{"max-connections": 0}"#,
    ]);
    let problem = Probe::connect(&settings(&url_of(node, "guest", "/full")), 0).await;
    let problem = problem.err().unwrap();
    assert!(problem.contains("set_vhost_limits"), "{problem}");
}

/// A full queue is looked for by its name and its routing key.
#[tokio::test]
async fn a_nack_says_where() {
    let node = node().await;
    let admin = Admin::connect(&node.url()).await;
    let exchange = name("full");
    admin.exchange(&exchange).await;
    let full = [
        ("x-max-length", AMQPValue::LongInt(0)),
        ("x-overflow", AMQPValue::LongString("reject-publish".into())),
    ];
    admin.queue(&exchange, &exchange, "a.b", &full).await;
    let mut running = Running::ready(settings(&node.url())).await;
    let verdicts = running.publish(&[message(1, &exchange, "a.b")]).await;
    assert_verdicts("full", &verdicts, |_| Is::Rejected(ReasonCode::Nack));
    for part in [format!("`{exchange}`"), "`a.b`".to_owned()] {
        assert!(
            detail(&verdicts[0]).contains(&part),
            "{verdicts:?} lacks {part}"
        );
    }
    running.close().await;
}

#[tokio::test]
async fn a_refused_routing_key_repeats_its_neighbours_once_at_most() {
    let node = node().await;
    let admin = Admin::connect(&node.url()).await;
    user(node, "keyed");
    let exchange = name("keyed");
    admin.route(&exchange, "#").await;
    node.ctl_ok(&["set_topic_permissions", "keyed", &exchange, r"^ok\.", "^$"]);
    let mut running = Running::ready(settings(&url_of(node, "keyed", "/%2f"))).await;
    let mut good = 0;
    let mut after_the_first = 0;
    for round in 0..4 {
        let batch: Vec<Message> = (0..100)
            .map(|n| {
                let key = if n % 50 == 25 {
                    "no.1".to_owned()
                } else {
                    format!("ok.{round}.{n}")
                };
                message(format!("{round}-{n}"), &exchange, &key)
            })
            .collect();
        let verdicts = running.publish(&batch).await;
        assert_verdicts(&format!("round {round}"), &verdicts, |n| match n % 50 {
            25 => Is::Rejected(ReasonCode::Forbidden),
            _ => Is::Confirmed,
        });
        let arrived = admin.drain(&exchange).await;
        if round == 0 {
            assert!(
                arrived.len() <= 98 + 25,
                "only what came before the first refusal: {arrived:?}"
            );
        } else {
            good += 98;
            after_the_first += arrived.len();
        }
        // A refusal is believed for a second; now it is asked again.
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }
    assert_eq!(after_the_first, good, "nothing was sent twice");
    node.ctl_ok(&["set_topic_permissions", "keyed", &exchange, ".*", ".*"]);
    let granted = async {
        loop {
            let verdicts = running.publish(&[message("late", &exchange, "no.1")]).await;
            if verdicts == [Verdict::Confirmed] {
                return;
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    within("what is granted goes", granted).await;
    running.close().await;
}
