//! Faults at a given request, from librdkafka's mock cluster.

use std::time::Duration;

use outrigger::error::{ReasonCode, Verdict};
use outrigger::sink::SinkState;
use outrigger::sink::kafka::KafkaSettings;
use rdkafka::config::ClientConfig;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey as Api, RDKafkaRespErr as Error};

use crate::kafka::{Record, read};
use crate::{Is, Running, assert_verdicts, is, message, messages, settings, within};

type Cluster = MockCluster<'static, DefaultProducerContext>;

fn cluster() -> (Cluster, KafkaSettings) {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("events", 4, 1).unwrap();
    let settings = KafkaSettings {
        known_destinations: vec!["events".into()],
        ..settings(&cluster.bootstrap_servers())
    };
    (cluster, settings)
}

/// One request at a time: a later one that succeeds would put the earlier one in doubt, see below.
#[tokio::test]
async fn what_a_broker_can_get_over_is_waited_for() {
    let (cluster, settings) = cluster();
    let mut running = Running::ready(settings).await;
    for error in [
        Error::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
        Error::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        Error::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        Error::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT,
        Error::RD_KAFKA_RESP_ERR__TRANSPORT,
    ] {
        cluster.request_errors(Api::Produce, &[error; 3]);
        let one = [message(format!("{error:?}"), "events", None)];
        assert_verdicts(&running.publish(&one).await, |_| Is::Confirmed);
    }
    running.close().await;
}

/// The first request is refused, the second one stored, though it leaves a gap: brokers allow that of a producer
/// they do not know yet. librdkafka then reports the first as delivered.
#[tokio::test]
async fn a_confirm_that_is_inferred_is_no_confirm() {
    let (cluster, settings) = cluster();
    cluster.create_topic("narrow", 1, 1).unwrap();
    let mut rounds = 0;
    let mut doubted = false;
    // The second request has to leave while the first is on its way, or both are one and nothing is to be seen.
    while !doubted {
        rounds += 1;
        assert!(rounds < 50, "never were two requests on their way");
        let mut running = Running::ready(settings.clone()).await;
        // Looked for from the beginning: the next producer is soon there.
        let mut state = running.state.clone();
        let complaint = tokio::spawn(async move {
            let is = |state: &SinkState| matches!(state, SinkState::Down(reason) if reason.contains("it may be missing there"));
            state.wait_for(is).await.map(drop)
        });
        cluster
            .broker_round_trip_time(1, Duration::from_millis(200))
            .unwrap();
        let refused = [Error::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION];
        cluster.request_errors(Api::Produce, &refused);
        let both = [
            message(format!("{rounds}, first"), "narrow", None),
            message(format!("{rounds}, second"), "narrow", None),
        ];
        let (one, another) = running.lanes.split_at_mut(1);
        let first = one[0].publish(&both[..1]);
        let second = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            another[0].publish(&both[1..]).await
        };
        let verdicts = within("both are published", async { tokio::join!(first, second) });
        let (first, second) = verdicts.await;
        cluster.broker_round_trip_time(1, Duration::ZERO).unwrap();

        let there = read_mock(&cluster, "narrow").await;
        for (verdict, message) in first.iter().chain(&second).zip(&both) {
            if is(verdict) == Is::Confirmed {
                assert!(there.contains(&message.id), "{} is lost", message.id);
            }
        }
        doubted = is(&first[0]) == Is::Unavailable;
        match doubted {
            true => within("the reason is told", complaint)
                .await
                .unwrap()
                .unwrap(),
            false => complaint.abort(),
        }
        running.publish_all(&both).await;
        let there = read_mock(&cluster, "narrow").await;
        assert!(both.iter().all(|message| there.contains(&message.id)));
        running.close().await;
    }
}

/// The bodies of all records in a topic of the mock cluster.
async fn read_mock(cluster: &Cluster, topic: &'static str) -> Vec<String> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", cluster.bootstrap_servers());
    let records = tokio::task::spawn_blocking(move || read(config, topic, &mut Vec::new()));
    let body = |record: Record| String::from_utf8(record.value.unwrap()).unwrap();
    records.await.unwrap().into_iter().map(body).collect()
}

#[tokio::test]
async fn a_refusal_is_told_with_its_reason() {
    let (cluster, settings) = cluster();
    let mut running = Running::ready(settings).await;
    for (error, code) in [
        (
            Error::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
            ReasonCode::Forbidden,
        ),
        (Error::RD_KAFKA_RESP_ERR_POLICY_VIOLATION, ReasonCode::Nack),
    ] {
        cluster.request_errors(Api::Produce, &[error]);
        let one = [message("one", "events", None)];
        assert_verdicts(&running.publish(&one).await, |_| Is::Rejected(code));
        // librdkafka holds the topic for unusable until it has looked at it again.
        loop {
            match is(&running.publish(&one).await[0]) {
                Is::Confirmed => break,
                again => assert_eq!(again, Is::Rejected(code)),
            }
        }
    }
    running.close().await;
}

#[tokio::test]
async fn no_confirm_in_time_replaces_the_producer() {
    let (cluster, settings) = cluster();
    let settings = KafkaSettings {
        confirm_timeout: Duration::from_millis(500),
        ..settings
    };
    let mut running = Running::ready(settings).await;
    running.publish_all(&messages("events", 10)).await;
    // Its answers come, but much too late.
    cluster
        .broker_round_trip_time(1, Duration::from_secs(600))
        .unwrap();
    let verdicts = running.publish(&messages("events", 10)).await;
    assert_verdicts(&verdicts, |_| Is::Unavailable);
    running.await_state("down", |state| !state.is_ready()).await;
    cluster.broker_round_trip_time(1, Duration::ZERO).unwrap();
    running.publish_all(&messages("events", 10)).await;
    running.close().await;
}

#[tokio::test]
async fn a_producer_that_failed_for_good_is_replaced() {
    let (cluster, settings) = cluster();
    let refused = [Error::RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED];
    cluster.request_errors(Api::InitProducerId, &refused);
    let mut running = Running::start(settings);
    running.await_down("uthorization").await;
    running.publish_all(&messages("events", 10)).await;
    running.close().await;
}

/// The broker takes a batch for a repetition and stores nothing; librdkafka reports it as delivered.
#[tokio::test]
async fn a_confirm_without_a_record_is_no_confirm() {
    let (cluster, settings) = cluster();
    let mut running = Running::ready(settings).await;
    running.publish_all(&messages("events", 10)).await;
    let repeated = [Error::RD_KAFKA_RESP_ERR_DUPLICATE_SEQUENCE_NUMBER];
    cluster.request_errors(Api::Produce, &repeated);
    let one = [message("one", "events", None)];
    assert_verdicts(&running.publish(&one).await, |_| Is::Unavailable);
    running.await_down("it may be missing there").await;
    running.publish_all(&one).await;
    running.close().await;
}

#[tokio::test]
async fn an_outage_is_a_state() {
    let (cluster, settings) = cluster();
    let mut running = Running::ready(settings).await;
    running.publish_all(&messages("events", 10)).await;
    cluster.broker_down(1).unwrap();
    running.await_state("down", |state| !state.is_ready()).await;
    assert_eq!(
        running.publish(&messages("events", 2)).await,
        [Verdict::Unavailable, Verdict::Unavailable]
    );
    cluster.broker_up(1).unwrap();
    running.publish_all(&messages("events", 10)).await;
    running.close().await;
}
