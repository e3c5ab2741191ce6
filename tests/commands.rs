//! The commands of the binary against real servers: what they print, what they change, how they end.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    unreachable_pub
)]

#[path = "commands/check.rs"]
mod check;
#[path = "commands/check_settling.rs"]
mod check_settling;
#[path = "commands/check_sinks.rs"]
mod check_sinks;
#[path = "commands/dead.rs"]
mod dead;
#[path = "commands/events.rs"]
mod events;
#[path = "commands/migrate.rs"]
mod migrate;
#[path = "support/nats.rs"]
mod nats_node;
#[path = "commands/outages.rs"]
mod outages;
#[path = "support/postgres.rs"]
#[allow(dead_code)]
mod postgres;
#[path = "commands/predicted.rs"]
mod predicted;
#[path = "support/rabbitmq.rs"]
mod rabbitmq;
#[path = "commands/readers.rs"]
mod readers;
#[path = "commands/status.rs"]
mod status;
#[path = "commands/tool.rs"]
mod tool;
