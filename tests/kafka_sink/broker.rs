//! Against Apache Kafka itself.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use outrigger::error::{ReasonCode, Verdict};
use outrigger::event::HeaderValue;
use outrigger::sink::kafka::check::{Probe, TopicStatus};
use outrigger::sink::kafka::{Compression, KafkaSettings, Partitioner};
use tokio::sync::OnceCell;

use crate::kafka::{Kafka, Record};
use crate::{Is, Running, assert_verdicts, is, message, messages, settings};

async fn node() -> &'static Kafka {
    static NODE: OnceCell<Kafka> = OnceCell::const_new();
    NODE.get_or_init(Kafka::start).await
}

/// A name no other test uses.
fn name(test: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{test}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

fn values(records: &[Record]) -> Vec<String> {
    records
        .iter()
        .map(|record| String::from_utf8(record.value.clone().unwrap()).unwrap())
        .collect()
}

/// The hash of Kafka's Java client, written down from its definition.
fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut h = 0x9747_b28c ^ u32::try_from(data.len()).unwrap();
    let mut chunks = data.chunks_exact(4);
    for chunk in &mut chunks {
        let mut k = u32::from_le_bytes(chunk.try_into().unwrap()).wrapping_mul(M);
        k ^= k >> 24;
        h = h.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = chunks.remainder();
    for (place, byte) in rest.iter().enumerate() {
        h ^= u32::from(*byte) << (8 * place);
    }
    if !rest.is_empty() {
        h = h.wrapping_mul(M);
    }
    h ^= h >> 13;
    h = h.wrapping_mul(M);
    h ^ (h >> 15)
}

#[tokio::test]
async fn a_key_goes_where_the_java_client_would_put_it() {
    let node = node().await;
    let topic = name("keys");
    node.topic(&topic, 7, &[]).await;
    let mut running = Running::ready(settings(&node.address())).await;
    let batch: Vec<_> = (0..200)
        .map(|n| message(n, &topic, Some(&format!("key-{}", n % 50))))
        .collect();
    assert_verdicts(&running.publish(&batch).await, |_| Is::Confirmed);
    let records = node.read_all(&topic).await;
    assert_eq!(records.len(), 200);
    for record in &records {
        let hash = murmur2(record.key.as_deref().unwrap()) & 0x7fff_ffff;
        assert_eq!(record.partition, i32::try_from(hash % 7).unwrap());
    }
    running.close().await;

    let other = KafkaSettings {
        partitioner: Partitioner::Crc32,
        ..settings(&node.address())
    };
    let mut running = Running::ready(other).await;
    assert_verdicts(&running.publish(&batch).await, |_| Is::Confirmed);
    let all = node.read_all(&topic).await;
    let places: HashSet<_> = all.iter().map(|r| (&r.key, r.partition)).collect();
    assert!(places.len() > 50, "both put all keys in the same places");
    running.close().await;
}

#[tokio::test]
async fn a_record_that_is_too_large_takes_no_other_with_it() {
    let node = node().await;
    let topic = name("large");
    node.topic(&topic, 1, &[("max.message.bytes", "3000")])
        .await;
    let mut running = Running::ready(settings(&node.address())).await;
    let mut batch = messages(&topic, 100);
    for large in [17, 18, 99] {
        batch[large].body = Bytes::from(vec![b'x'; 5_000]);
    }
    let verdicts = running.publish(&batch).await;
    assert_verdicts(&verdicts, |index| match index {
        17 | 18 | 99 => Is::Impossible(ReasonCode::TooLarge),
        _ => Is::Confirmed,
    });
    let Verdict::Impossible(reason) = &verdicts[17] else {
        unreachable!()
    };
    assert!(reason.detail.contains("max.message.bytes"), "{reason}");
    let expected: Vec<_> = (0..100)
        .filter(|n| ![17, 18, 99].contains(n))
        .map(|n| n.to_string())
        .collect();
    assert_eq!(values(&node.read_all(&topic).await), expected);
    running.close().await;
}

/// Other lanes publish meanwhile, and librdkafka puts records of all lanes together.
#[tokio::test]
async fn nor_one_of_another_lane() {
    let node = node().await;
    let topic = name("mixed");
    node.topic(&topic, 1, &[("max.message.bytes", "3000")])
        .await;
    let mut running = Running::ready(settings(&node.address())).await;
    let (small, mut mixed) = (messages(&topic, 40), messages(&topic, 40));
    for message in mixed.iter_mut().step_by(4) {
        message.body = Bytes::from(vec![b'x'; 5_000]);
    }
    let [first, second] = &mut running.lanes[..] else {
        panic!("two lanes")
    };
    for _ in 0..5 {
        let (good, bad) = tokio::join!(first.publish(&small), second.publish(&mixed));
        assert_verdicts(&good, |_| Is::Confirmed);
        assert_verdicts(&bad, |index| match index % 4 {
            0 => Is::Impossible(ReasonCode::TooLarge),
            _ => Is::Confirmed,
        });
    }
    running.close().await;
}

#[tokio::test]
async fn a_compacted_topic_takes_tombstones_but_nothing_without_a_key() {
    let node = node().await;
    let topic = name("compacted");
    node.topic(&topic, 1, &[("cleanup.policy", "compact")])
        .await;
    let mut running = Running::ready(settings(&node.address())).await;
    let mut batch: Vec<_> = (0..20).map(|n| message(n, &topic, Some("k"))).collect();
    batch[7].key = None;
    let gone = &mut batch[12];
    gone.body = Bytes::new();
    gone.content_type = None;
    gone.headers = vec![("ce-specversion".into(), HeaderValue::Text("1.0".into()))];
    let verdicts = running.publish(&batch).await;
    assert_verdicts(&verdicts, |index| match index {
        7 => Is::Rejected(ReasonCode::Nack),
        _ => Is::Confirmed,
    });
    let records = node.read_all(&topic).await;
    assert_eq!(records.len(), 19);
    let tombstones: Vec<_> = records.iter().filter(|r| r.value.is_none()).collect();
    let header = ("ce_specversion".to_owned(), "1.0".to_owned());
    assert_eq!(tombstones.len(), 1);
    assert_eq!(tombstones[0].headers, [header]);
    running.close().await;
}

#[tokio::test]
async fn a_topic_that_is_deleted_is_missed_and_found_again() {
    let node = node().await;
    let topic = name("deleted");
    node.topic(&topic, 1, &[]).await;
    let mut running = Running::ready(settings(&node.address())).await;
    running.publish_all(&messages(&topic, 10)).await;
    node.delete_topic(&topic).await;
    let one = messages(&topic, 1);
    loop {
        match is(&running.publish(&one).await[0]) {
            // The cluster forgets a little later than it says so.
            Is::Confirmed | Is::Unavailable => {}
            other => break assert_eq!(other, Is::Rejected(ReasonCode::UnknownDestination)),
        }
    }
    assert!(
        running.state.borrow().is_ready(),
        "one missing topic is no outage"
    );
    node.topic(&topic, 1, &[]).await;
    while is(&running.publish(&one).await[0]) != Is::Confirmed {}
    running.close().await;
}

/// A node that does not answer, with its connections open.
#[tokio::test]
async fn a_pause_shorter_than_the_limit_repeats_nothing() {
    let node = Kafka::start().await;
    node.topic("events", 1, &[]).await;
    let mut running = Running::ready(settings(&node.address())).await;
    running.publish_all(&messages("events", 10)).await;
    let mut state = running.state.clone();
    node.freeze();
    let batch = messages("events", 200);
    let lane = &mut running.lanes[0];
    let (verdicts, ()) = tokio::join!(lane.publish(&batch), async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        node.thaw();
    });
    assert_verdicts(&verdicts, |_| Is::Confirmed);
    assert!(state.borrow_and_update().is_ready());
    assert_eq!(values(&node.read_all("events").await).len(), 210);
    running.close().await;
}

#[tokio::test]
async fn a_pause_longer_than_the_limit_loses_nothing_and_keeps_the_order() {
    let node = Kafka::start().await;
    node.topic("events", 1, &[]).await;
    let settings = KafkaSettings {
        confirm_timeout: Duration::from_millis(700),
        ..settings(&node.address())
    };
    let mut running = Running::ready(settings).await;
    running.publish_all(&messages("events", 1)).await;
    node.freeze();
    let batch = messages("events", 200);
    let verdicts = running.publish(&batch).await;
    assert_verdicts(&verdicts, |_| Is::Unavailable);
    running.await_down("OUTRIGGER_KAFKA_CONFIRM_TIMEOUT").await;
    node.thaw();
    running.publish_all(&batch).await;
    running.close().await;
    let mut seen = HashSet::new();
    let first: Vec<_> = values(&node.read_all("events").await)
        .into_iter()
        .skip(1)
        .filter(|value| seen.insert(value.clone()))
        .collect();
    let expected: Vec<_> = (0..200).map(|n| n.to_string()).collect();
    assert_eq!(first, expected);
}

#[tokio::test]
async fn every_compression_arrives() {
    let node = node().await;
    use Compression::{Gzip, Lz4, None as Plain, Snappy, Zstd};
    for compression in [Plain, Gzip, Snappy, Lz4, Zstd] {
        let topic = name("compressed");
        node.topic(&topic, 1, &[]).await;
        let settings = KafkaSettings {
            compression,
            ..settings(&node.address())
        };
        let mut running = Running::ready(settings).await;
        assert_verdicts(&running.publish(&messages(&topic, 100)).await, |_| {
            Is::Confirmed
        });
        assert_eq!(node.read_all(&topic).await.len(), 100, "{compression:?}");
        running.close().await;
    }
}

#[tokio::test]
async fn a_probe_tells_what_is_there() {
    let node = node().await;
    let topic = name("probed");
    node.topic(&topic, 3, &[]).await;
    let probe = Probe::connect(&settings(&node.address())).await.unwrap();
    assert_eq!(probe.cluster().brokers, [node.address()]);
    assert!(probe.cluster().id.is_some());
    assert_eq!(
        probe.topic(&topic).await.unwrap(),
        TopicStatus::Exists {
            partitions: 3,
            replicas: 1
        }
    );
    let missing = probe.topic("no-such-topic").await.unwrap();
    assert!(
        matches!(&missing, TopicStatus::Missing(reason) if reason.code == ReasonCode::UnknownDestination),
        "{missing:?}"
    );
    probe.idempotence().await.unwrap();
    let one = message("one", &topic, None);
    assert_eq!(probe.publish(one).await, Verdict::Confirmed);
    probe.close().await;
}
