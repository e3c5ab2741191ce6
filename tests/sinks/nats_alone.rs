//! What only the NATS sink does: logging in, permissions, the server's own recognition of repetitions, full streams.

use nkeys::KeyPair;
use outrigger::error::{ReasonCode, Verdict};
use outrigger::event::{HeaderValue, Message, REASON_HEADER};
use outrigger::sink::SinkState;
use outrigger::sink::nats::check::{Probe, Stream};
use outrigger::sink::nats::{self, NatsSettings};
use secrecy::SecretString;
use serde_json::{Value, json};

use crate::harness::{Is, Running, assert_verdicts, ids, message, messages};
use crate::nats_node::{NatsNode, RawClient};
use crate::world::Place;

const JETSTREAM: &str = r#"jetstream { store_dir: "@DIR@/store" }"#;

fn settings(node: &NatsNode, login: &str) -> NatsSettings {
    NatsSettings {
        urls: vec![SecretString::from(format!(
            "nats://{login}127.0.0.1:{}",
            node.port()
        ))],
        known_destinations: vec!["E".into()],
        lanes: 1,
        ..NatsSettings::default()
    }
}

fn start(settings: NatsSettings) -> Running {
    Running::start(nats::start(settings).unwrap())
}

fn place(subject: &str) -> Place {
    Place {
        destination: "E".into(),
        routing_key: subject.into(),
    }
}

async fn stream(client: &mut RawClient, more: Value) {
    let mut config = json!({"name": "E", "subjects": ["e.>"], "storage": "file"});
    for (name, value) in more.as_object().into_iter().flatten() {
        config[name] = value.clone();
    }
    client.api("STREAM.CREATE.E", config, 0).await;
}

async fn stored(client: &mut RawClient) -> u64 {
    let info = client.api("STREAM.INFO.E", Value::Null, 0).await;
    info["state"]["messages"].as_u64().unwrap()
}

#[tokio::test]
async fn every_way_to_log_in_works_and_a_wrong_one_is_explained() {
    let key = KeyPair::new_user();
    for (authorization, login, admin) in [
        ("token: t0ken", "t0ken@", json!({"auth_token": "t0ken"})),
        (
            "user: me, password: \"p@ss\"",
            "me:p%40ss@",
            json!({"user": "me", "pass": "p@ss"}),
        ),
        (
            "users = [{nkey: KEY}, {user: admin, password: admin}]",
            "",
            json!({"user": "admin", "pass": "admin"}),
        ),
    ] {
        let config = authorization.replace("KEY", &key.public_key());
        let node =
            NatsNode::start_with(&format!("{JETSTREAM}\nauthorization {{ {config} }}")).await;
        stream(
            &mut RawClient::connect(node.port(), admin).await,
            Value::Null,
        )
        .await;
        let mut right = settings(&node, login);
        if login.is_empty() {
            right.nkey_seed = Some(SecretString::from(key.seed().unwrap()));
        }
        let mut running = start(right);
        running.await_state("logged in", SinkState::is_ready).await;
        let verdicts = running.publish(&[message("a", &place("e.a"))]).await;
        assert_verdicts(authorization, &verdicts, |_| Is::Confirmed);
        running.close().await;

        let mut running = start(settings(&node, "wr0ng:wr0ng@"));
        let state = running
            .await_state(
                "refused",
                |state| matches!(state, SinkState::Down(reason) if !reason.is_empty()),
            )
            .await;
        let shown = format!("{state:?}");
        assert!(
            shown.contains("credentials") && !shown.contains("wr0ng"),
            "{shown}"
        );
        running.close().await;
    }
}

#[tokio::test]
async fn a_forbidden_subject_is_refused_alone() {
    let users = r#"authorization { users = [
        {user: admin, password: admin},
        {user: me, password: me, permissions: {publish: ["e.open", "$JS.API.>"], subscribe: "_INBOX.>"}},
    ] }"#;
    let node = NatsNode::start_with(&format!("{JETSTREAM}\n{users}")).await;
    let admin = json!({"user": "admin", "pass": "admin"});
    stream(
        &mut RawClient::connect(node.port(), admin).await,
        Value::Null,
    )
    .await;
    let mut running = start(settings(&node, "me:me@"));
    running.await_state("ready", SinkState::is_ready).await;
    for round in 0..2 {
        let batch: Vec<Message> = (0..30)
            .map(|n| {
                let subject = if n % 7 == 3 { "e.closed" } else { "e.open" };
                message(format!("{round}.{n}"), &place(subject))
            })
            .collect();
        let verdicts = running.publish(&batch).await;
        assert_verdicts("forbidden", &verdicts, |index| match index % 7 {
            3 => Is::Rejected(ReasonCode::Forbidden),
            _ => Is::Confirmed,
        });
    }
    running.close().await;
}

#[tokio::test]
async fn the_server_recognises_repetitions_by_source_and_id() {
    let node = NatsNode::start_with(JETSTREAM).await;
    let mut client = RawClient::connect(node.port(), Value::Null).await;
    stream(&mut client, Value::Null).await;
    let mut running = start(settings(&node, ""));
    running.await_state("ready", SinkState::is_ready).await;
    let event = message("a", &place("e.a"));
    let other_source = Message {
        source: "/other".into(),
        ..event.clone()
    };
    let dead = Message {
        headers: vec![(REASON_HEADER.into(), HeaderValue::Text("nack".into()))],
        ..event.clone()
    };
    for (message, stored_after) in [(&dead, 1), (&event, 2), (&event, 2), (&other_source, 3)] {
        let verdicts = running.publish(std::slice::from_ref(message)).await;
        assert_verdicts("repeated", &verdicts, |_| Is::Confirmed);
        assert_eq!(stored(&mut client).await, stored_after);
    }
    running.close().await;
}

#[tokio::test]
async fn refusals_of_the_stream_are_told_apart() {
    let node = NatsNode::start_with(JETSTREAM).await;
    let mut client = RawClient::connect(node.port(), Value::Null).await;
    let limits = json!({"max_msgs": 5, "discard": "new", "max_msg_size": 1000});
    stream(&mut client, limits).await;
    let other = json!({"name": "O", "subjects": ["o"], "storage": "file"});
    client.api("STREAM.CREATE.O", other, 0).await;
    let mut running = start(settings(&node, ""));
    running.await_state("ready", SinkState::is_ready).await;

    let large = Message {
        body: vec![b'x'; 2000].into(),
        ..message("large", &place("e.a"))
    };
    let verdicts = running
        .publish(&[large, message("elsewhere", &place("o"))])
        .await;
    assert_verdicts("refused", &verdicts, |index| match index {
        0 => Is::Impossible(ReasonCode::TooLarge),
        _ => Is::Rejected(ReasonCode::Unroutable),
    });
    let verdicts = running
        .publish(&messages(&ids("m", 8), &place("e.a")))
        .await;
    assert_verdicts("full", &verdicts, |index| match index {
        0..5 => Is::Confirmed,
        _ => Is::Rejected(ReasonCode::Nack),
    });
    assert!(
        running.state.borrow().is_ready(),
        "a full stream is not a full server"
    );
    running.close().await;

    let probe = Probe::connect(&settings(&node, ""), 0).await.unwrap();
    assert!(matches!(
        probe.stream("E").await.unwrap(),
        Stream::Exists { replicas: 1, storage, .. } if storage == "file"
    ));
    assert!(matches!(
        probe.stream("nowhere").await.unwrap(),
        Stream::Missing(_)
    ));
    probe.close().await;
}

/// Optimistic concurrency: stored only if the subject is where the row says. What the stream has already is still known
/// when it comes again.
#[tokio::test]
async fn a_row_may_expect_a_state_of_its_stream() {
    let node = NatsNode::start_with(JETSTREAM).await;
    let mut client = RawClient::connect(node.port(), Value::Null).await;
    stream(&mut client, Value::Null).await;
    let mut running = start(settings(&node, ""));
    running.await_state("ready", SinkState::is_ready).await;
    let expecting = |id: &str, last: i64| Message {
        headers: vec![(
            "Nats-Expected-Last-Subject-Sequence".to_owned(),
            HeaderValue::Int(last),
        )],
        ..message(id, &place("e.order.1"))
    };
    let confirmed = running.publish(&[expecting("first", 0)]).await;
    assert_verdicts("the first", &confirmed, |_| Is::Confirmed);
    let again = running.publish(&[expecting("first", 0)]).await;
    assert_verdicts("again", &again, |_| Is::Confirmed);
    let verdicts = running
        .publish(&[expecting("late", 0), expecting("next", 1)])
        .await;
    let Verdict::Rejected(reason) = &verdicts[0] else {
        panic!("{verdicts:?}");
    };
    assert!(reason.detail.contains("wrong last sequence: 1"), "{reason}");
    assert_eq!(
        verdicts[1],
        Verdict::Confirmed,
        "it concerns that row alone"
    );
    assert_eq!(stored(&mut client).await, 2);

    // This server would take no notice of a time to live.
    let mortal = Message {
        headers: vec![("Nats-TTL".to_owned(), HeaderValue::Text("1m".into()))],
        ..message("mortal", &place("e.order.2"))
    };
    let verdicts = running.publish(&[mortal]).await;
    let version = node.monitor("/varz").await.unwrap()["version"].clone();
    if version.as_str().unwrap().starts_with("2.9.") {
        let Verdict::Impossible(reason) = &verdicts[0] else {
            panic!("{verdicts:?}");
        };
        assert!(reason.detail.contains("2.11"), "{reason}");
    }
    running.close().await;
}

#[tokio::test]
async fn a_stream_that_acknowledges_nothing_is_waited_for() {
    let node = NatsNode::start_with(JETSTREAM).await;
    let client = &mut RawClient::connect(node.port(), Value::Null).await;
    stream(client, json!({"no_ack": true})).await;
    // One that the settings name: nothing is published before it is as it should be.
    let mut running = start(settings(&node, ""));
    let state = running
        .await_state("held", |state| format!("{state:?}").contains("no_ack"))
        .await;
    assert!(matches!(state, SinkState::Down(_)), "{state:?}");
    // One that comes from the row: those that go there wait, and only those.
    client
        .api(
            "STREAM.CREATE.F",
            json!({"name": "F", "subjects": ["f.>"], "storage": "file"}),
            0,
        )
        .await;
    let mut routed = start(NatsSettings {
        known_destinations: Vec::new(),
        ..settings(&node, "")
    });
    routed.await_state("ready", SinkState::is_ready).await;
    let elsewhere = Place {
        destination: "F".into(),
        routing_key: "f.a".into(),
    };
    for round in 0..2 {
        let batch = [
            message(format!("e{round}"), &place("e.a")),
            message(format!("f{round}"), &elsewhere),
        ];
        let verdicts = routed.publish(&batch).await;
        assert_verdicts("routed", &verdicts, |index| match index {
            0 => Is::Postponed(ReasonCode::Other),
            _ => Is::Confirmed,
        });
    }
    assert_eq!(stored(client).await, 0, "nothing is sent to it");
    let probe = Probe::connect(&settings(&node, ""), 0).await.unwrap();
    assert!(matches!(
        probe.stream("E").await.unwrap(),
        Stream::Exists { unfit: Some(text), .. } if text.contains("no_ack")
    ));
    probe.close().await;
    let config = json!({"name": "E", "subjects": ["e.>"], "storage": "file", "no_ack": false});
    client.api("STREAM.UPDATE.E", config, 0).await;
    running.await_state("ready", SinkState::is_ready).await;
    let verdicts = running.publish(&[message("a", &place("e.a"))]).await;
    assert_verdicts("acknowledged", &verdicts, |_| Is::Confirmed);
    running.close().await;
    routed.close().await;
}

/// Whichever stream takes the subject: nothing can be asked before, so silence is looked into.
#[tokio::test]
async fn silence_of_an_unnamed_stream_is_explained() {
    let node = NatsNode::start_with(JETSTREAM).await;
    let client = &mut RawClient::connect(node.port(), Value::Null).await;
    stream(client, json!({"no_ack": true})).await;
    let mut running = start(NatsSettings {
        known_destinations: Vec::new(),
        confirm_timeout: std::time::Duration::from_millis(300),
        ..settings(&node, "")
    });
    running.await_state("ready", SinkState::is_ready).await;
    let anywhere = Place {
        destination: String::new(),
        routing_key: "e.a".into(),
    };
    let verdicts = running.publish(&[message("a", &anywhere)]).await;
    assert_verdicts("silent", &verdicts, |_| Is::Unavailable);
    let state = running.state.borrow().clone();
    assert!(
        matches!(&state, SinkState::Blocked(reason) if reason.contains("no_ack")),
        "{state:?}"
    );
    running.close().await;
}
