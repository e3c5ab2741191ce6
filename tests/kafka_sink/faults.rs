//! Faults at a given request, from librdkafka's mock cluster.

use std::time::Duration;

use outrigger::error::{ReasonCode, Verdict};
use outrigger::sink::kafka::KafkaSettings;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::types::{RDKafkaApiKey as Api, RDKafkaRespErr as Error};

use crate::{Is, Running, assert_verdicts, is, message, messages, settings};

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
        let verdicts = running.publish(&messages("events", 50)).await;
        assert_verdicts(&verdicts, |_| Is::Confirmed);
    }
    running.close().await;
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
