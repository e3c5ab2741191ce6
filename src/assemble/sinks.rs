//! The settings of each sink that this program was built with.

use crate::settings::Settings;
use crate::sink;

/// The RabbitMQ sink.
#[cfg(feature = "rabbitmq")]
pub fn rabbitmq(settings: &Settings) -> sink::rabbitmq::RabbitMqSettings {
    let rabbitmq = settings.rabbitmq.clone();
    sink::rabbitmq::RabbitMqSettings {
        urls: rabbitmq.urls,
        url_name: rabbitmq.url_name,
        url_file: rabbitmq.url_file,
        declare: rabbitmq.declare,
        expiration: rabbitmq.expiration,
        exchange_type: rabbitmq.exchange_type.as_str().to_owned(),
        queues: rabbitmq.queues,
        unroutable_patience: rabbitmq.unroutable_patience,
        channels: rabbitmq.channels,
        confirm_timeout: rabbitmq.confirm_timeout,
        ca_file: rabbitmq.ca_file,
        cert_file: rabbitmq.cert_file,
        key_file: rabbitmq.key_file,
        max_message_size: rabbitmq.max_message_size,
        connection_name: format!("outrigger {}", settings.relay.name),
        app_id: None,
        known_destinations: known_destinations(settings),
    }
}

/// The NATS sink.
#[cfg(feature = "nats")]
pub fn nats(settings: &Settings) -> sink::nats::NatsSettings {
    let nats = settings.nats.clone();
    sink::nats::NatsSettings {
        urls: nats.urls,
        url_name: nats.url_name,
        url_file: nats.url_file,
        credentials_file: nats.credentials_file,
        nkey_seed: nats.nkey_seed,
        nkey_seed_file: nats.nkey_seed_file,
        lanes: nats.lanes,
        confirm_timeout: nats.confirm_timeout,
        ca_file: nats.ca_file,
        cert_file: nats.cert_file,
        key_file: nats.key_file,
        inbox_prefix: nats.inbox_prefix,
        connection_name: format!("outrigger {}", settings.relay.name),
        known_destinations: known_destinations(settings),
    }
}

/// The http sink.
#[cfg(feature = "http")]
pub fn http(settings: &Settings) -> sink::http::HttpSettings {
    let http = settings.http.clone();
    sink::http::HttpSettings {
        url: http.url.unwrap_or_default(),
        url_file: http.url_file,
        authorization: http.authorization,
        authorization_file: http.authorization_file,
        connections: http.connections,
        timeout: http.timeout,
        ca_file: http.ca_file,
        cert_file: http.cert_file,
        key_file: http.key_file,
        max_message_size: http.max_message_size,
    }
}

/// The Kafka sink.
#[cfg(feature = "kafka")]
pub fn kafka(settings: &Settings) -> sink::kafka::KafkaSettings {
    use crate::settings;
    use crate::sink::kafka::{self, KafkaSettings};
    let kafka = settings.kafka.clone();
    KafkaSettings {
        brokers: kafka.brokers,
        tls: kafka.tls,
        ca_file: kafka.ca_file,
        cert_file: kafka.cert_file,
        key_file: kafka.key_file,
        sasl: match kafka.sasl {
            settings::Sasl::None => None,
            settings::Sasl::Plain => Some(kafka::SaslMechanism::Plain),
            settings::Sasl::ScramSha256 => Some(kafka::SaslMechanism::ScramSha256),
            settings::Sasl::ScramSha512 => Some(kafka::SaslMechanism::ScramSha512),
        },
        username: kafka.username,
        password: kafka.password,
        password_file: kafka.password_file,
        lanes: kafka.lanes,
        confirm_timeout: kafka.confirm_timeout,
        max_message_size: kafka.max_message_size,
        compression: match kafka.compression {
            settings::Compression::None => kafka::Compression::None,
            settings::Compression::Gzip => kafka::Compression::Gzip,
            settings::Compression::Snappy => kafka::Compression::Snappy,
            settings::Compression::Lz4 => kafka::Compression::Lz4,
            settings::Compression::Zstd => kafka::Compression::Zstd,
        },
        partitioner: match kafka.partitioner {
            settings::Partitioner::Murmur2 => kafka::Partitioner::Murmur2,
            settings::Partitioner::Crc32 => kafka::Partitioner::Crc32,
        },
        known_destinations: known_destinations(settings),
    }
}

/// The EventBridge sink.
#[cfg(feature = "eventbridge")]
pub fn eventbridge(settings: &Settings) -> sink::eventbridge::EventBridgeSettings {
    let eventbridge = settings.eventbridge.clone();
    sink::eventbridge::EventBridgeSettings {
        region: eventbridge.region,
        endpoint: eventbridge.endpoint,
        credentials_file: eventbridge.credentials_file,
        connections: eventbridge.connections,
        timeout: eventbridge.timeout,
        max_request_size: eventbridge.max_request_size,
        known_destinations: known_destinations(settings),
    }
}

/// The destination of all events, if it is one and the same. Not that of dead letters: were it missing, it must not
/// stop the others.
#[cfg(any(
    feature = "rabbitmq",
    feature = "nats",
    feature = "kafka",
    feature = "eventbridge"
))]
fn known_destinations(settings: &Settings) -> Vec<String> {
    let router = super::router(settings).ok();
    let known = router.and_then(|router| router.constant_destination());
    known.into_iter().collect()
}
