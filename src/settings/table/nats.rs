//! The settings of the NATS sink.

use super::{BASE, Setting};
use crate::settings::value::Kind;

pub(super) const SETTINGS: &[Setting] = &[
    Setting {
        key: "nats.url",
        kind: Kind::NatsUrls,
        unset: "required by the `nats` sink",
        aliases: &["NATS_URL"],
        secret: true,
        description: "`nats://` or `tls://` URL, with `user:password@` or `token@` if needed; several servers of one \
                      cluster, comma separated, are tried in turn.",
        example: "tls://orders:secret@nats.internal:4222",
        ..BASE
    },
    Setting {
        key: "nats.credentials_file",
        kind: Kind::Path,
        unset: "no credentials file",
        description: "Credentials file (JWT and NKey seed) as `nsc` writes it. Read again at each connection.",
        example: "/etc/outrigger/nats.creds",
        ..BASE
    },
    Setting {
        key: "nats.nkey_seed",
        unset: "no NKey",
        secret: true,
        description: "Seed of the NKey to log in with.",
        ..BASE
    },
    Setting {
        key: "nats.lanes",
        kind: Kind::Integer { min: 1, max: 256 },
        default: Some("8"),
        description: "Batches that are published side by side, on one connection.",
        ..BASE
    },
    Setting {
        key: "nats.confirm_timeout",
        kind: Kind::Duration {
            min: "100ms",
            max: "1h",
        },
        default: Some("30s"),
        description: "Longest wait for the acknowledgements of a batch. After it, what is not acknowledged is published again.",
        ..BASE
    },
    Setting {
        key: "nats.ca_file",
        kind: Kind::Path,
        unset: "the system's certificate authorities",
        description: "PEM file with the certificate authorities to trust.",
        example: "/etc/outrigger/tls/ca.pem",
        ..BASE
    },
    Setting {
        key: "nats.cert_file",
        kind: Kind::Path,
        unset: "no client certificate",
        description: "PEM file with the client certificate chain. Goes with `nats.key_file`.",
        example: "/etc/outrigger/tls/client.pem",
        ..BASE
    },
    Setting {
        key: "nats.key_file",
        kind: Kind::Path,
        unset: "no client certificate",
        description: "PEM file with the private key of the client certificate.",
        example: "/etc/outrigger/tls/client.key",
        ..BASE
    },
    Setting {
        key: "nats.inbox_prefix",
        default: Some("_INBOX"),
        description: "First part of the subjects that acknowledgements come to. The user must be allowed to subscribe to them.",
        ..BASE
    },
];
