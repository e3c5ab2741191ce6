//! The Postgres store against a real server.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub)]

#[path = "support/postgres.rs"]
#[allow(dead_code)]
mod postgres;
#[path = "store/fixture.rs"]
mod fixture;





#[path = "store/ownership.rs"]
mod ownership;
#[path = "store/reading.rs"]
mod reading;


#[path = "store/waking.rs"]
mod waking;
