//! Connecting, losing the connection, and a broker that makes publishers wait.

use super::*;

#[tokio::test]
async fn configured_exchanges_are_awaited_or_declared() {
    let node = node().await;
    let admin = Admin::connect(&node.url()).await;
    let awaited = name("awaited");
    let with_known = RabbitMqSettings {
        known_destinations: vec![String::new(), awaited.clone()],
        ..settings(&node.url())
    };
    let mut running = Running::start(with_known.clone());
    running
        .await_state(
            "the missing exchange is named",
            |state| matches!(state, SinkState::Down(reason) if reason.contains(&awaited)),
        )
        .await;
    let verdicts = running.publish(&batch(&awaited, "k", 1)).await;
    assert_eq!(
        verdicts,
        [Verdict::Unavailable],
        "a missing set-up burns no attempts"
    );
    admin.exchange(&awaited).await;
    running.await_state("ready", SinkState::is_ready).await;
    running.close().await;

    let declared = name("declared");
    let running = Running::ready(RabbitMqSettings {
        declare: true,
        exchange_type: "fanout".into(),
        known_destinations: vec![declared.clone(), awaited],
        ..settings(&node.url())
    })
    .await;
    admin.queue(&declared, &declared, "", &[]).await;
    running.close().await;
}

#[tokio::test]
async fn a_dead_first_url_is_skipped() {
    let node = node().await;
    // Bound and not listening: connections are refused.
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = dead.local_addr().unwrap().port();
    drop(dead);
    let mut several = settings(&format!("amqp://127.0.0.1:{port}"));
    several.urls.push(SecretString::from(node.url()));
    Running::ready(several).await.close().await;
}

#[tokio::test]
async fn refused_credentials_are_explained_without_showing_them() {
    let node = node().await;
    for (url, parts) in [
        (
            format!("amqp://guest:s3cret@127.0.0.1:{}", node.port()),
            ["`guest`", "password"],
        ),
        (
            format!("amqp://guest:guest@127.0.0.1:{}/n0where", node.port()),
            ["n0where", "vhost"],
        ),
    ] {
        let mut running = Running::start(settings(&url));
        let state = running
            .await_state(
                "down",
                |state| matches!(state, SinkState::Down(reason) if !reason.is_empty()),
            )
            .await;
        let shown = format!("{state:?}");
        assert!(parts.iter().all(|part| shown.contains(part)), "{shown}");
        assert!(!shown.contains("s3cret"), "{shown}");
        running.close().await;
    }
}

#[tokio::test]
async fn a_probe_answers_what_check_asks() {
    let node = node().await;
    let admin = Admin::connect(&node.url()).await;
    let exchange = name("probed");
    admin.route(&exchange, "bound").await;
    let probe = Probe::connect(
        &RabbitMqSettings {
            declare: true,
            exchange_type: "fanout".into(),
            ..settings(&node.url())
        },
        0,
    )
    .await
    .unwrap();
    let broker = probe.broker();
    assert_eq!(broker.product.as_deref(), Some("RabbitMQ"));
    assert!(
        broker.version.is_some() && broker.platform.is_some(),
        "{broker:?}"
    );
    assert!(
        broker.mechanisms.contains(&"PLAIN".to_owned()),
        "{broker:?}"
    );
    assert_eq!((broker.frame_max, broker.heartbeat_secs), (32_768, 10));
    let kind = Some("topic".to_owned());
    assert_eq!(
        probe.exchange(&exchange).await.unwrap(),
        Exchange::Exists { kind }
    );
    let absent = name("absent");
    for _ in 0..2 {
        let answer = probe.exchange(&absent).await.unwrap();
        assert!(
            matches!(answer, Exchange::Missing(_)),
            "{answer:?}: check creates nothing"
        );
    }
    let verdict = probe.publish(message(1, &exchange, "bound")).await;
    assert_eq!(support::is(&verdict), Is::Confirmed);
    let verdict = probe.publish(message(2, &exchange, "elsewhere")).await;
    assert_eq!(support::is(&verdict), Is::Rejected(ReasonCode::Unroutable));
    let verdict = probe.publish(message(3, &absent, "k")).await;
    assert_eq!(
        support::is(&verdict),
        Is::Rejected(ReasonCode::UnknownDestination)
    );
    probe.close().await;
    let error = Probe::connect(&settings("amqp://guest:wr0ng@127.0.0.1:1"), 0)
        .await
        .err()
        .unwrap();
    assert!(
        error.contains("127.0.0.1:1") && !error.contains("wr0ng"),
        "{error}"
    );
}

#[tokio::test]
async fn a_restarted_broker_is_found_again_and_nothing_confirmed_is_lost() {
    let node = RabbitMq::start().await;
    let admin = Admin::connect(&node.url()).await;
    admin.route("events", "#").await;
    let mut running = Running::ready(RabbitMqSettings {
        channels: 4,
        known_destinations: vec!["events".into()],
        ..settings(&node.url())
    })
    .await;
    let (confirmed_once, mut confirmed) = tokio::sync::mpsc::unbounded_channel();
    let mut tasks = Vec::new();
    for (number, mut lane) in running.lanes.drain(..).enumerate() {
        let confirmed_once = confirmed_once.clone();
        let mut state = running.state.clone();
        tasks.push(tokio::spawn(async move {
            let (mut outage, mut after, mut sent) = (false, 0, Vec::new());
            for round in 0.. {
                within("ready again", state.wait_for(SinkState::is_ready))
                    .await
                    .unwrap();
                let batch: Vec<_> = (0..100)
                    .map(|n| message(format!("{number}-{round}-{n}"), "events", "k"))
                    .collect();
                let verdicts = within("publish", lane.publish(&batch)).await;
                for (message, verdict) in batch.iter().zip(&verdicts) {
                    match verdict {
                        Verdict::Confirmed => sent.push(message.id.clone()),
                        Verdict::Unavailable => outage = true,
                        other => panic!("an outage is no rejection: {other:?}"),
                    }
                }
                let _ = confirmed_once.send(());
                if outage && verdicts[0] == Verdict::Confirmed {
                    after += 1;
                    if after == 3 {
                        break;
                    }
                }
            }
            sent
        }));
    }
    for _ in 0..20 {
        within("load", confirmed.recv()).await.unwrap();
    }
    node.kill();
    running
        .await_state("the loss is noticed", |state| !state.is_ready())
        .await;
    node.revive().await;
    let mut sent = Vec::new();
    for task in tasks {
        sent.extend(within("a lane goes on", task).await.unwrap());
    }
    let admin = Admin::connect(&node.url()).await;
    let arrived: std::collections::HashSet<_> = admin.drain("events").await.into_iter().collect();
    let lost: Vec<_> = sent.iter().filter(|id| !arrived.contains(*id)).collect();
    assert!(
        lost.is_empty(),
        "{} of {} lost: {lost:?}",
        lost.len(),
        sent.len()
    );
    running.close().await;
}

#[tokio::test]
async fn a_blocked_broker_is_reported_and_holds_events_back_without_repeating_them() {
    let node = RabbitMq::start().await;
    let admin = Admin::connect(&node.url()).await;
    admin.route("events", "#").await;
    let mut running = Running::ready(RabbitMqSettings {
        confirm_timeout: Duration::from_millis(300),
        ..settings(&node.url())
    })
    .await;
    let batch = batch("events", "k", 10);
    assert_verdicts("before", &running.publish(&batch).await, |_| Is::Confirmed);

    node.ctl_ok(&["set_vm_memory_high_watermark", "0"]);
    // The broker says so only after somebody publishes. That batch waits, for several confirm timeouts.
    let mut state = running.state.clone();
    let mut publishing = tokio::spawn(async move {
        let verdicts = running.publish(&batch).await;
        (running, verdicts)
    });
    let blocked = within(
        "blocked",
        state.wait_for(|state| matches!(state, SinkState::Blocked(_))),
    );
    let SinkState::Blocked(reason) = blocked.await.unwrap().clone() else {
        unreachable!("awaited just now");
    };
    assert!(reason.contains("memory"), "{reason}");
    let early = tokio::time::timeout(Duration::from_secs(2), &mut publishing).await;
    assert!(
        early.is_err(),
        "given up while blocked: {:?}",
        early.map(|r| r.unwrap().1)
    );

    node.ctl_ok(&["set_vm_memory_high_watermark", "0.6"]);
    let (running, verdicts) = within("the batch is confirmed", publishing).await.unwrap();
    assert_verdicts("after", &verdicts, |_| Is::Confirmed);
    let arrived = admin.drain("events").await;
    assert_eq!(arrived, [ids(0..10), ids(0..10)].concat(), "copies");
    running.close().await;
}
