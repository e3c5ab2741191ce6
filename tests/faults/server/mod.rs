//! The servers of a run: PostgreSQL, and the one behind the sink, with what scenarios do to it whatever it is.
//!
//! Each scenario has a *place* of its own there, that gets its events and keeps all of them: an exchange with a queue, a
//! stream, a path, a topic, a bus.

mod eventbridge;
mod http;
#[cfg(feature = "kafka")]
mod kafka;
mod nats;
mod rabbitmq;

use std::sync::Arc;

use crate::sink::Sink;
use crate::support::poison::{self, Poison};
use crate::support::postgres::Postgres;
use crate::support::proxy::frames::Protocol;
use crate::support::rabbitmq::RabbitMq;
use crate::support::{Arrival, Settings};

use self::eventbridge::EventBridge;
use self::http::Http;
#[cfg(feature = "kafka")]
use self::kafka::KafkaTopics;
use self::nats::Nats;

pub(crate) use self::rabbitmq::Exchange;

/// See the module.
pub(crate) struct Servers {
    pub(crate) postgres: Arc<Postgres>,
    pub(crate) broker: Server,
}

impl Servers {
    pub(crate) async fn start(sink: Sink) -> Arc<Self> {
        let (postgres, broker) = tokio::join!(Postgres::start(), Server::start(sink));
        let postgres = postgres.into();
        Arc::new(Self { postgres, broker })
    }

    /// For scenarios of RabbitMQ alone.
    pub(crate) fn rabbitmq(&self) -> &RabbitMq {
        match &self.broker {
            Server::RabbitMq(node) => node,
            _ => panic!("this scenario is for RabbitMQ"),
        }
    }

    /// For scenarios of http alone.
    pub(crate) fn http(&self) -> &Http {
        match &self.broker {
            Server::Http(http) => http,
            _ => panic!("this scenario is for http"),
        }
    }

    /// For scenarios of NATS alone.
    pub(crate) fn nats(&self) -> &Nats {
        match &self.broker {
            Server::Nats(nats) => nats,
            _ => panic!("this scenario is for NATS"),
        }
    }
}

/// The server behind a sink.
pub(crate) enum Server {
    RabbitMq(RabbitMq),
    Nats(Nats),
    Http(Http),
    #[cfg(feature = "kafka")]
    Kafka(KafkaTopics),
    EventBridge(EventBridge),
}

impl Server {
    async fn start(sink: Sink) -> Self {
        match sink {
            Sink::RabbitMq => Self::RabbitMq(RabbitMq::start().await),
            Sink::Nats => Self::Nats(Nats::start().await),
            Sink::Http => Self::Http(Http::start()),
            #[cfg(feature = "kafka")]
            Sink::Kafka => Self::Kafka(KafkaTopics::start().await),
            #[cfg(not(feature = "kafka"))]
            Sink::Kafka => unreachable!("refused with the arguments"),
            Sink::EventBridge => Self::EventBridge(EventBridge::start()),
        }
    }

    pub(crate) fn sink(&self) -> Sink {
        match self {
            Self::RabbitMq(_) => Sink::RabbitMq,
            Self::Nats(_) => Sink::Nats,
            Self::Http(_) => Sink::Http,
            #[cfg(feature = "kafka")]
            Self::Kafka(_) => Sink::Kafka,
            Self::EventBridge(_) => Sink::EventBridge,
        }
    }

    /// What it is, for the report.
    pub(crate) async fn version(&self) -> String {
        match self {
            Self::RabbitMq(node) => format!("RabbitMQ {}", node.ctl_ok(&["version"]).trim()),
            Self::Nats(nats) => nats.version().await,
            Self::Http(_) => "an http service of the tests".to_owned(),
            #[cfg(feature = "kafka")]
            Self::Kafka(kafka) => kafka.version(),
            Self::EventBridge(_) => {
                "a service of the tests that speaks as EventBridge does".to_owned()
            }
        }
    }

    /// What is spoken with it.
    pub(crate) fn protocol(&self) -> Protocol {
        match self {
            Self::RabbitMq(_) => Protocol::Amqp,
            Self::Nats(_) => Protocol::Nats,
            Self::Http(_) => Protocol::Http,
            #[cfg(feature = "kafka")]
            Self::Kafka(_) => Protocol::Kafka,
            Self::EventBridge(_) => Protocol::Http,
        }
    }

    pub(crate) fn port(&self) -> u16 {
        match self {
            Self::RabbitMq(node) => node.port(),
            Self::Nats(nats) => nats.node.port(),
            Self::Http(http) => http.service.port(),
            #[cfg(feature = "kafka")]
            Self::Kafka(kafka) => kafka.node.port(),
            Self::EventBridge(bridge) => bridge.service.port(),
        }
    }

    /// The settings of a relay that publishes to a place, and finds the server at `port`.
    pub(crate) fn route(&self, settings: Settings, place: &str, port: u16) -> Settings {
        let settings = settings
            .set("SINK", self.sink().name())
            .set("ROUTE_DESTINATION", place);
        match self {
            Self::RabbitMq(node) => {
                let server = format!(":{}/", node.port());
                let url = node.url().replace(&server, &format!(":{port}/"));
                settings.set("RABBITMQ_URL", url)
            }
            Self::Nats(_) => settings
                .set("NATS_URL", format!("nats://127.0.0.1:{port}"))
                .set("ROUTE_KEY", format!("{place}.{{{{ type }}}}")),
            Self::Http(_) => settings.set("HTTP_URL", format!("http://127.0.0.1:{port}")),
            #[cfg(feature = "kafka")]
            Self::Kafka(_) => settings
                .set("KAFKA_BROKERS", format!("127.0.0.1:{port}"))
                .set("KAFKA_MAX_MESSAGE_SIZE", "16MB"),
            Self::EventBridge(_) => settings
                .set("EVENTBRIDGE_ENDPOINT", format!("http://127.0.0.1:{port}"))
                .set("EVENTBRIDGE_REGION", "eu-west-1")
                .set("EVENTBRIDGE_MAX_REQUEST_SIZE", "1MiB")
                .variable("AWS_ACCESS_KEY_ID", "tests")
                .variable("AWS_SECRET_ACCESS_KEY", "tests"),
        }
    }

    /// Makes a place. That of RabbitMQ is an [`Exchange`].
    pub(crate) async fn open(&self, place: &str) {
        match self {
            Self::RabbitMq(_) => {}
            Self::Nats(nats) => nats.open(place).await,
            Self::Http(http) => http.service.open(place),
            #[cfg(feature = "kafka")]
            Self::Kafka(kafka) => kafka.open(place).await,
            Self::EventBridge(bridge) => bridge.service.open(place),
        }
    }

    /// All that arrived at a place, each key's in order. Nothing may come after it.
    pub(crate) async fn arrivals(&self, place: &str) -> Vec<Arrival> {
        match self {
            Self::RabbitMq(_) => unreachable!("its queue is read by the exchange"),
            Self::Nats(nats) => nats.arrivals(place).await,
            Self::Http(http) => http.arrivals(place),
            #[cfg(feature = "kafka")]
            Self::Kafka(kafka) => kafka.arrivals(place).await,
            Self::EventBridge(bridge) => bridge.arrivals(place),
        }
    }

    /// Makes a place refuse each event that comes, for a reason that counts an attempt.
    pub(crate) async fn refuse(&self, place: &str) {
        match self {
            Self::Nats(nats) => nats.refuse(place).await,
            Self::Http(http) => http.service.refuse(place, Some((404, ""))),
            Self::EventBridge(bridge) => bridge.refuse_entries(place),
            _ => unreachable!("an exchange does, a topic cannot"),
        }
    }

    /// Ends that.
    pub(crate) async fn accept(&self, place: &str) {
        match self {
            Self::Nats(nats) => nats.accept(place).await,
            Self::Http(http) => http.service.refuse(place, None),
            Self::EventBridge(bridge) => bridge.service.refuse(place, None),
            _ => unreachable!("an exchange does, a topic cannot"),
        }
    }

    /// Takes away the permission to publish to a place.
    pub(crate) fn forbid(&self, place: &str) {
        match self {
            Self::RabbitMq(node) => allow_writing(node, "nothing"),
            Self::Http(http) => http.service.refuse(place, Some((403, ""))),
            Self::EventBridge(bridge) => bridge.forbid(place),
            _ => unreachable!("not played with it"),
        }
    }

    /// Gives it back.
    pub(crate) fn allow(&self, place: &str) {
        match self {
            Self::RabbitMq(node) => allow_writing(node, ".*"),
            Self::Http(http) => http.service.refuse(place, None),
            Self::EventBridge(bridge) => bridge.service.refuse(place, None),
            _ => unreachable!("not played with it"),
        }
    }

    /// Makes bodies of more than 64 KiB too large, where a setting of the relay does not.
    pub(crate) async fn limit_size(&self, place: &str) {
        if let Self::Nats(nats) = self {
            nats.limit_size(place).await;
        }
    }

    /// Rows that this one's sink can never publish. Nobody may be at `nowhere`.
    pub(crate) fn poison(&self) -> Vec<Poison> {
        let own = match self {
            Self::RabbitMq(_) => poison::RABBITMQ,
            Self::Nats(_) => nats::POISON,
            Self::Http(_) => http::POISON,
            #[cfg(feature = "kafka")]
            Self::Kafka(_) => kafka::POISON,
            Self::EventBridge(_) => eventbridge::POISON,
        };
        [own, poison::ANY].concat()
    }

    /// Holds all publishers back, and says so.
    pub(crate) async fn block(&self) {
        match self {
            Self::RabbitMq(node) => {
                node.ctl_ok(&["set_vm_memory_high_watermark", "0"]);
            }
            Self::Nats(nats) => nats.fill().await,
            Self::Http(http) => http.service.refuse_all(Some((503, "retry-after: 1\r\n"))),
            #[cfg(feature = "kafka")]
            Self::Kafka(_) => unreachable!("Kafka has no way to say so"),
            Self::EventBridge(bridge) => bridge.throttle(),
        }
    }

    /// Ends that.
    pub(crate) async fn unblock(&self) {
        match self {
            Self::RabbitMq(node) => {
                node.ctl_ok(&["set_vm_memory_high_watermark", "0.6"]);
            }
            Self::Nats(nats) => nats.empty().await,
            Self::Http(http) => http.service.refuse_all(None),
            #[cfg(feature = "kafka")]
            Self::Kafka(_) => unreachable!("Kafka has no way to say so"),
            Self::EventBridge(bridge) => bridge.service.refuse_all(None),
        }
    }

    /// Ends it like a crash. What it has confirmed stays.
    pub(crate) fn kill(&self) {
        match self {
            Self::RabbitMq(node) => node.kill(),
            Self::Nats(nats) => nats.node.kill(),
            Self::Http(http) => http.service.kill(),
            #[cfg(feature = "kafka")]
            Self::Kafka(kafka) => kafka.node.kill(),
            Self::EventBridge(bridge) => bridge.service.kill(),
        }
    }

    /// Starts it again and waits until it serves.
    pub(crate) async fn revive(&self) {
        match self {
            Self::RabbitMq(node) => node.revive().await,
            Self::Nats(nats) => nats.node.revive().await,
            Self::Http(http) => http.service.revive(),
            #[cfg(feature = "kafka")]
            Self::Kafka(kafka) => kafka.node.revive().await,
            Self::EventBridge(bridge) => bridge.service.revive(),
        }
    }

    /// Makes it stand still, with its connections open.
    pub(crate) fn freeze(&self) {
        match self {
            Self::RabbitMq(_) => unreachable!("not played with RabbitMQ"),
            Self::Nats(nats) => nats.node.freeze(),
            Self::Http(http) => http.service.freeze(),
            #[cfg(feature = "kafka")]
            Self::Kafka(kafka) => kafka.node.freeze(),
            Self::EventBridge(bridge) => bridge.service.freeze(),
        }
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) {
        match self {
            Self::RabbitMq(_) => unreachable!("not played with RabbitMQ"),
            Self::Nats(nats) => nats.node.thaw(),
            Self::Http(http) => http.service.thaw(),
            #[cfg(feature = "kafka")]
            Self::Kafka(kafka) => kafka.node.thaw(),
            Self::EventBridge(bridge) => bridge.service.thaw(),
        }
    }
}

/// To exchanges whose names are of this pattern.
fn allow_writing(node: &RabbitMq, pattern: &str) {
    let permissions = ["set_permissions", "-p", "/", "guest", ".*", pattern, ".*"];
    node.ctl_ok(&permissions);
}

/// The payload of a structured event, and whatever else must not differ between two copies of it.
fn arrival(id: String, body: &[u8], beside: &[u8]) -> Arrival {
    Arrival {
        id,
        data: crate::support::consumer::data_of(body).to_owned(),
        bytes: [body, beside].concat(),
    }
}
