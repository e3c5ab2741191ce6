//! The settings of the EventBridge sink.

use super::{BASE, Setting};
use crate::settings::value::Kind;

pub(super) const SETTINGS: &[Setting] = &[
    Setting {
        key: "eventbridge.region",
        unset: "`AWS_REGION`, or what the profile says",
        description: "The region of the buses.",
        example: "eu-west-1",
        ..BASE
    },
    Setting {
        key: "eventbridge.endpoint",
        kind: Kind::HttpUrl,
        unset: "the region's",
        description: "URL to use instead of AWS's: that of a VPC endpoint, or of a local stand-in.",
        example: "https://vpce-1.events.eu-west-1.vpce.amazonaws.com",
        ..BASE
    },
    Setting {
        key: "eventbridge.credentials_file",
        kind: Kind::Path,
        unset: "AWS's chain of providers",
        description: "Credentials file as AWS's tools write it, to use instead of AWS's chain of providers: variables, \
                      profile, web identity, container, instance.",
        example: "/run/secrets/aws",
        ..BASE
    },
    Setting {
        key: "eventbridge.connections",
        kind: Kind::Integer { min: 1, max: 256 },
        default: Some("16"),
        description: "Requests side by side, each with up to ten events.",
        ..BASE
    },
    Setting {
        key: "eventbridge.timeout",
        kind: Kind::Duration {
            min: "100ms",
            max: "1h",
        },
        default: Some("30s"),
        description: "Longest wait for an answer. After it the events are published again.",
        ..BASE
    },
    Setting {
        key: "eventbridge.max_request_size",
        kind: Kind::Size {
            min: "1KiB",
            max: "1MiB",
        },
        default: Some("256KiB"),
        description: "What the entries of a request together must stay below, as AWS counts them. A larger event is dead at \
                      once.",
        ..BASE
    },
];
