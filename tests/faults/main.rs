//! Servers that break under the relay. They are this binary's own, and the tests take turns.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../support/end_to_end/mod.rs"]
mod support;

mod blocked;
mod outages;

use std::sync::Arc;

use tokio::sync::{Mutex, MutexGuard, OnceCell};

use support::Servers;

/// The servers, for one test at a time.
async fn servers() -> (MutexGuard<'static, ()>, Arc<Servers>) {
    static TURN: Mutex<()> = Mutex::const_new(());
    static SERVERS: OnceCell<Arc<Servers>> = OnceCell::const_new();
    let turn = TURN.lock().await;
    (turn, SERVERS.get_or_init(Servers::start).await.clone())
}
