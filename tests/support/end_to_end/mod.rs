//! What end-to-end tests share: servers, a stage with a database, an exchange and a queue of its own, relays as
//! real processes, writers that keep a ledger, a consumer that records everything, and a checker that
//! compares the three.

#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used
)]

pub mod checker;
pub mod consumer;
pub mod outbox;
pub mod poison;
pub mod relay;
pub mod stage;
pub mod wait;
pub mod writers;

#[path = "../pgbouncer.rs"]
pub mod pgbouncer;
#[path = "../postgres.rs"]
pub mod postgres;
#[path = "../proxy/mod.rs"]
pub mod proxy;
#[path = "../rabbitmq.rs"]
pub mod rabbitmq;

pub use checker::{Arrival, Entry, FinalRow, Report, check};
pub use consumer::{Consumer, Delivery};
pub use outbox::Outbox;
pub use relay::{Relay, Settings};
pub use stage::{Servers, Stage};
pub use wait::{PATIENCE, seeded, until, within};
pub use writers::{Load, Writers};
