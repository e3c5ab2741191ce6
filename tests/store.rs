//! The Postgres store against a real server.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    unreachable_pub
)]

#[path = "store/admin.rs"]
mod admin;
#[path = "store/configurations.rs"]
mod configurations;
#[path = "store/drawn_again.rs"]
mod drawn_again;
#[path = "store/existing.rs"]
mod existing;
#[path = "store/figures.rs"]
mod figures;
#[path = "store/fixture.rs"]
mod fixture;
#[path = "store/harmless.rs"]
mod harmless;
#[path = "store/hurried.rs"]
mod hurried;
#[path = "store/mapping.rs"]
mod mapping;
#[path = "store/network.rs"]
mod network;
#[path = "store/ownership.rs"]
mod ownership;
#[path = "store/parking.rs"]
mod parking;
#[path = "support/pgbouncer.rs"]
mod pgbouncer;
#[path = "store/plans.rs"]
mod plans;
#[path = "support/postgres.rs"]
#[allow(dead_code)]
mod postgres;
#[path = "store/reading.rs"]
mod reading;
#[path = "store/retention.rs"]
mod retention;
#[path = "store/schema.rs"]
mod schema;
#[path = "store/security.rs"]
mod security;
#[path = "store/settling.rs"]
mod settling;
#[path = "store/total_order.rs"]
mod total_order;
#[path = "store/unpublished.rs"]
mod unpublished;
#[path = "store/unreadable.rs"]
mod unreadable;
#[path = "store/waking.rs"]
mod waking;
