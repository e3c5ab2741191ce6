//! The settings of the Kafka sink.

use super::{BASE, Setting};
use crate::settings::value::Kind;

pub(super) const SETTINGS: &[Setting] = &[
    Setting {
        key: "kafka.brokers",
        kind: Kind::Brokers,
        unset: "required by the `kafka` sink",
        description: "`host:port` of some brokers, comma separated; the others are learned from them.",
        example: "kafka-1.internal:9092,kafka-2.internal:9092",
        ..BASE
    },
    Setting {
        key: "kafka.tls",
        kind: Kind::Bool,
        default: Some("false"),
        description: "`true`: connections are encrypted, and the brokers' certificates checked.",
        ..BASE
    },
    Setting {
        key: "kafka.ca_file",
        kind: Kind::Path,
        unset: "the system's certificate authorities",
        description: "PEM file with the certificate authorities to trust.",
        example: "/etc/outrigger/tls/ca.pem",
        ..BASE
    },
    Setting {
        key: "kafka.cert_file",
        kind: Kind::Path,
        unset: "no client certificate",
        description: "PEM file with the client certificate chain. Goes with `kafka.key_file`.",
        example: "/etc/outrigger/tls/client.pem",
        ..BASE
    },
    Setting {
        key: "kafka.key_file",
        kind: Kind::Path,
        unset: "no client certificate",
        description: "PEM file with the private key of the client certificate.",
        example: "/etc/outrigger/tls/client.key",
        ..BASE
    },
    Setting {
        key: "kafka.sasl_mechanism",
        kind: Kind::Choice {
            allowed: &["none", "plain", "scram-sha-256", "scram-sha-512"],
        },
        default: Some("none"),
        description: "How to log in with `kafka.username` and `kafka.password`. `plain` sends the password as it is: only with \
                      `kafka.tls`.",
        ..BASE
    },
    Setting {
        key: "kafka.username",
        unset: "no login by SASL",
        description: "User name for SASL.",
        example: "orders",
        ..BASE
    },
    Setting {
        key: "kafka.password",
        unset: "no login by SASL",
        secret: true,
        description: "Password for SASL.",
        ..BASE
    },
    Setting {
        key: "kafka.lanes",
        kind: Kind::Integer { min: 1, max: 256 },
        default: Some("8"),
        description: "Batches that are published side by side, by one producer.",
        ..BASE
    },
    Setting {
        key: "kafka.confirm_timeout",
        kind: Kind::Duration {
            min: "100ms",
            max: "1h",
        },
        default: Some("30s"),
        description: "Longest wait for the confirms of a batch, through all repetitions. After it the producer is replaced and \
                      what is not confirmed is published again.",
        ..BASE
    },
    Setting {
        key: "kafka.max_message_size",
        kind: Kind::Size {
            min: "1kB",
            max: "1GB",
        },
        default: Some("1MB"),
        description: "Largest record, headers included, that brokers and topics accept (`message.max.bytes`, \
                      `max.message.bytes`). A larger event is dead at once.",
        ..BASE
    },
    Setting {
        key: "kafka.compression",
        kind: Kind::Choice {
            allowed: &["none", "gzip", "snappy", "lz4", "zstd"],
        },
        default: Some("none"),
        description: "How records are compressed.",
        ..BASE
    },
    Setting {
        key: "kafka.partitioner",
        kind: Kind::Choice {
            allowed: &["murmur2", "crc32"],
        },
        default: Some("murmur2"),
        description: "Which partition a key belongs to: `murmur2` as Kafka's Java client has it, `crc32` as clients made with \
                      librdkafka have it. Changing it moves keys to other partitions.",
        ..BASE
    },
];
