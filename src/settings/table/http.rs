//! The settings of the http sink.

use super::{BASE, Setting};
use crate::settings::value::Kind;

pub(super) const SETTINGS: &[Setting] = &[
    Setting {
        key: "http.url",
        kind: Kind::HttpUrl,
        unset: "required by the `http` sink",
        secret: true,
        description: "Where events are posted: `https://` or `http://`, with `user:password@` if needed. A destination is \
                      a path below it.",
        example: "https://orders.internal/events",
        ..BASE
    },
    Setting {
        key: "http.authorization",
        unset: "no such header",
        secret: true,
        description: "Value of the `Authorization` header.",
        example: "Bearer 8f0c1d",
        ..BASE
    },
    Setting {
        key: "http.connections",
        kind: Kind::Integer { min: 1, max: 1024 },
        default: Some("16"),
        description: "Connections, each with one request at a time.",
        ..BASE
    },
    Setting {
        key: "http.timeout",
        kind: Kind::Duration {
            min: "100ms",
            max: "1h",
        },
        default: Some("30s"),
        description: "Longest wait for an answer. After it the event is posted again.",
        ..BASE
    },
    Setting {
        key: "http.ca_file",
        kind: Kind::Path,
        unset: "the system's certificate authorities",
        description: "PEM file with the certificate authorities to trust.",
        example: "/etc/outrigger/tls/ca.pem",
        ..BASE
    },
    Setting {
        key: "http.cert_file",
        kind: Kind::Path,
        unset: "no client certificate",
        description: "PEM file with the client certificate chain. Goes with `http.key_file`.",
        example: "/etc/outrigger/tls/client.pem",
        ..BASE
    },
    Setting {
        key: "http.key_file",
        kind: Kind::Path,
        unset: "no client certificate",
        description: "PEM file with the private key of the client certificate.",
        example: "/etc/outrigger/tls/client.key",
        ..BASE
    },
    Setting {
        key: "http.max_message_size",
        kind: Kind::Size {
            min: "1KiB",
            max: "512MiB",
        },
        default: Some("16MiB"),
        description: "Largest body the service accepts. A larger event is dead at once.",
        ..BASE
    },
];
