//! The admin listener: what it says is true, and what a client may do to it is limited.

#![allow(clippy::unwrap_used, clippy::expect_used, unreachable_pub)]

#[path = "../support/end_to_end/mod.rs"]
mod support;

mod browser;
mod client;
mod health;
mod limits;
mod page;
mod relay;
mod scrape;

use std::sync::Arc;

use tokio::sync::OnceCell;

use support::Servers;

/// The servers that all tests of this binary share.
async fn servers() -> Arc<Servers> {
    static SERVERS: OnceCell<Arc<Servers>> = OnceCell::const_new();
    SERVERS.get_or_init(Servers::start).await.clone()
}
