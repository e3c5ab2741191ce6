//! What every sink must keep, checked against real servers: `checks` is written once, each sink brings a
//! [`world::World`]. `docs/adding-a-sink.md` tells how to add one.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod checks;
#[cfg(feature = "eventbridge")]
mod eventbridge_alone;
#[cfg(feature = "eventbridge")]
mod eventbridge_world;
mod events;
mod harness;
mod http_alone;
mod http_world;
#[cfg(feature = "kafka")]
#[path = "../support/kafka.rs"]
mod kafka_node;
#[cfg(feature = "kafka")]
mod kafka_world;
#[cfg(feature = "eventbridge")]
#[path = "../support/moto.rs"]
mod moto;
mod nats_alone;
mod nats_credentials;
#[path = "../support/nats.rs"]
mod nats_node;
mod nats_world;
mod rabbitmq_alone;
#[path = "../support/rabbitmq.rs"]
mod rabbitmq_node;
mod rabbitmq_world;
#[path = "../support/verdicts.rs"]
mod verdicts;
mod world;

/// One test per check, in the world that `$get` gives.
macro_rules! tests {
    ($get:path: $($check:path as $name:ident,)*) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let world = $get().await;
            $check(&*world).await;
        })*
    };
}
pub(crate) use tests;

/// All checks in one sink's world. The first group shares a server; the others mistreat one of their own.
macro_rules! conformance {
    ($sink:ident, $world:ty) => {
        mod $sink {
            use crate::{checks, world::World as _};

            async fn shared() -> &'static $world {
                static WORLD: tokio::sync::OnceCell<$world> = tokio::sync::OnceCell::const_new();
                WORLD.get_or_init(<$world>::start).await
            }

            async fn alone() -> Box<$world> {
                Box::new(<$world>::start().await)
            }

            crate::tests! { shared:
                checks::confirmed_means_arrived_in_order as confirmed_means_arrived_in_order,
                checks::an_unknown_destination_fails_alone as an_unknown_destination_fails_alone,
                checks::nobody_listening_is_a_failure as nobody_listening_is_a_failure,
                checks::the_impossible_is_refused_alone as the_impossible_is_refused_alone,
                checks::keys_keep_their_order as keys_keep_their_order,
                checks::a_repeated_message_is_confirmed as a_repeated_message_is_confirmed,
                checks::an_abandoned_batch_does_no_harm as an_abandoned_batch_does_no_harm,
                checks::a_missing_set_up_is_an_outage as a_missing_set_up_is_an_outage,
                checks::events_decode_in_every_mode as events_decode_in_every_mode,
            }
            crate::tests! { alone:
                checks::confirmed_survives_a_crash as confirmed_survives_a_crash,
                checks::an_outage_is_not_a_rejection as an_outage_is_not_a_rejection,
                checks::an_absent_server_is_awaited as an_absent_server_is_awaited,
                checks::a_blocked_server_holds_events_back as a_blocked_server_holds_events_back,
                checks::closing_leaves_no_connection as closing_leaves_no_connection,
            }
        }
    };
}

conformance!(rabbitmq, crate::rabbitmq_world::RabbitMqWorld);
conformance!(nats, crate::nats_world::NatsWorld);
conformance!(http, crate::http_world::HttpWorld);

#[cfg(feature = "kafka")]
conformance!(kafka, crate::kafka_world::KafkaWorld);

#[cfg(feature = "eventbridge")]
conformance!(eventbridge, crate::eventbridge_world::EventBridgeWorld);
