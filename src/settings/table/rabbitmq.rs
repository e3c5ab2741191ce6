//! The settings of the RabbitMQ sink.

use super::{BASE, Setting};
use crate::settings::value::Kind;

pub(super) const SETTINGS: &[Setting] = &[
    Setting {
        key: "rabbitmq.url",
        kind: Kind::AmqpUrls,
        unset: "required by the `rabbitmq` sink",
        aliases: &["AMQP_URL"],
        secret: true,
        description: "`amqp://` or `amqps://` URL; several nodes of one cluster, comma separated, are tried in turn. \
                      The virtual host `/` is written `%2f` or left out.",
        example: "amqps://orders:secret@rabbit.internal/orders",
        ..BASE
    },
    Setting {
        key: "rabbitmq.declare",
        kind: Kind::Bool,
        default: Some("false"),
        description: "`true`: declare a missing exchange (durable). `false`: only check that it exists.",
        ..BASE
    },
    Setting {
        key: "rabbitmq.exchange_type",
        kind: Kind::Choice {
            allowed: &["topic", "direct", "fanout", "headers", "x-delayed-message"],
        },
        default: Some("topic"),
        description: "Type of exchanges that `rabbitmq.declare` declares. `x-delayed-message` takes the plugin of that name.",
        ..BASE
    },
    Setting {
        key: "rabbitmq.queues",
        kind: Kind::Text,
        unset: "no queue is asked for",
        description: "Queues that must be there, comma separated. While one is missing, or on a cluster node that is down, \
                      nothing is published.",
        example: "billing,shipping",
        ..BASE
    },
    Setting {
        key: "rabbitmq.unroutable_patience",
        kind: Kind::Duration {
            min: "0s",
            max: "3650d",
        },
        default: Some("24h"),
        description: "How long an event waits, without losing an attempt, when no queue takes its route any more, although \
                      one did: the queue may be on a node that is down. `0s`: such an event is refused like any other \
                      that no queue takes.",
        ..BASE
    },
    Setting {
        key: "rabbitmq.expiration",
        kind: Kind::Bool,
        default: Some("false"),
        description: "`true`: a message expires in its queue when its row does (`expires_at`): its property `expiration` is what \
                      was left when the row was read, so repetitions differ in it.",
        ..BASE
    },
    Setting {
        key: "rabbitmq.channels",
        kind: Kind::Integer { min: 1, max: 256 },
        default: Some("8"),
        description: "Channels that publish side by side, on one connection.",
        ..BASE
    },
    Setting {
        key: "rabbitmq.confirm_timeout",
        kind: Kind::Duration {
            min: "100ms",
            max: "1h",
        },
        default: Some("30s"),
        description: "Longest wait for the confirms of a batch. After it the connection is replaced and the events are \
                      published again.",
        ..BASE
    },
    Setting {
        key: "rabbitmq.ca_file",
        kind: Kind::Path,
        unset: "the system's certificate authorities",
        description: "PEM file with the certificate authorities to trust.",
        example: "/etc/outrigger/tls/ca.pem",
        ..BASE
    },
    Setting {
        key: "rabbitmq.cert_file",
        kind: Kind::Path,
        unset: "no client certificate",
        description: "PEM file with the client certificate chain. Goes with `rabbitmq.key_file`.",
        example: "/etc/outrigger/tls/client.pem",
        ..BASE
    },
    Setting {
        key: "rabbitmq.key_file",
        kind: Kind::Path,
        unset: "no client certificate",
        description: "PEM file with the private key of the client certificate.",
        example: "/etc/outrigger/tls/client.key",
        ..BASE
    },
    Setting {
        key: "rabbitmq.max_message_size",
        kind: Kind::Size {
            min: "1KiB",
            max: "512MiB",
        },
        default: Some("16MiB"),
        description: "Largest body the broker accepts (its `max_message_size`). A larger event is dead at once instead \
                      of taking the channel down.",
        ..BASE
    },
];
