//! The sinks that faults are played with, and what their settings are called.

use std::time::Duration;

use crate::support::Settings;

/// What the relays publish with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sink {
    RabbitMq,
    Nats,
    Http,
    Kafka,
    EventBridge,
}

impl Sink {
    pub(crate) const ALL: &[Self] = &[
        Self::RabbitMq,
        Self::Nats,
        Self::Http,
        Self::Kafka,
        Self::EventBridge,
    ];

    /// As in `OUTRIGGER_SINK`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::RabbitMq => "rabbitmq",
            Self::Nats => "nats",
            Self::Http => "http",
            Self::Kafka => "kafka",
            Self::EventBridge => "eventbridge",
        }
    }

    /// As people call it.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::RabbitMq => "RabbitMQ",
            Self::Nats => "NATS JetStream",
            Self::Http => "http",
            Self::Kafka => "Kafka",
            Self::EventBridge => "EventBridge",
        }
    }

    /// Whether this program was built with it.
    pub(crate) fn is_built(self) -> bool {
        match self {
            Self::RabbitMq => cfg!(feature = "rabbitmq"),
            Self::Nats => cfg!(feature = "nats"),
            Self::Http => cfg!(feature = "http"),
            Self::Kafka => cfg!(feature = "kafka"),
            Self::EventBridge => cfg!(feature = "eventbridge"),
        }
    }

    pub(crate) fn of(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|sink| sink.name() == name)
    }

    /// How long a confirm may take.
    pub(crate) fn confirm_timeout(self, settings: Settings, limit: Duration) -> Settings {
        let name = match self {
            Self::RabbitMq => "RABBITMQ_CONFIRM_TIMEOUT",
            Self::Nats => "NATS_CONFIRM_TIMEOUT",
            Self::Http => "HTTP_TIMEOUT",
            Self::Kafka => "KAFKA_CONFIRM_TIMEOUT",
            Self::EventBridge => "EVENTBRIDGE_TIMEOUT",
        };
        settings.set(name, format!("{}s", limit.as_secs()))
    }

    /// How many batches may be under way.
    pub(crate) fn lanes(self, settings: Settings, lanes: usize) -> Settings {
        let name = match self {
            Self::RabbitMq => "RABBITMQ_CHANNELS",
            Self::Nats => "NATS_LANES",
            Self::Http => "HTTP_CONNECTIONS",
            Self::Kafka => "KAFKA_LANES",
            Self::EventBridge => "EVENTBRIDGE_CONNECTIONS",
        };
        settings.set(name, lanes)
    }

    /// How large a body may be, if the relay is to know; NATS servers know it themselves.
    pub(crate) fn max_message_size(self, settings: Settings, size: &str) -> Settings {
        match self {
            Self::RabbitMq => settings.set("RABBITMQ_MAX_MESSAGE_SIZE", size),
            Self::Nats => settings,
            Self::Http => settings.set("HTTP_MAX_MESSAGE_SIZE", size),
            Self::Kafka => settings.set("KAFKA_MAX_MESSAGE_SIZE", size),
            Self::EventBridge => settings.set("EVENTBRIDGE_MAX_REQUEST_SIZE", size),
        }
    }

    /// Payloads that are not to be refused have no more bytes.
    pub(crate) fn payload_max(self) -> usize {
        match self {
            // 1 MiB is the most that OUTRIGGER_EVENTBRIDGE_MAX_REQUEST_SIZE may be.
            Self::EventBridge => 900_000,
            _ => usize::MAX,
        }
    }

    /// What a relay says when it hears nothing more. http has no connection that could be lost as a whole.
    pub(crate) fn complaint(self) -> &'static str {
        match self {
            Self::RabbitMq => "not connected to RabbitMQ",
            Self::Nats => "not connected to NATS",
            Self::Http => "the service asks publishers to wait",
            Self::Kafka => "not connected to Kafka",
            Self::EventBridge => "not connected to EventBridge",
        }
    }

    /// Whether a connection is given up as soon as a confirm does not come in time. Otherwise what is in flight may be
    /// published again at each timeout until the connection is found to be dead.
    pub(crate) fn reconnects_at_timeout(self) -> bool {
        matches!(self, Self::RabbitMq | Self::Kafka | Self::EventBridge)
    }

    /// The column of a row that may name a place where nobody is.
    pub(crate) fn route_column(self) -> &'static str {
        match self {
            Self::RabbitMq | Self::Nats => "routing_key",
            Self::Http | Self::Kafka | Self::EventBridge => "destination",
        }
    }
}
