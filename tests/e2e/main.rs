//! The relay as users run it: real processes between a real database and a real broker.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../support/end_to_end/mod.rs"]
mod support;

mod checker;
mod configurations;
mod connections;
#[path = "../cloudevents/decode.rs"]
#[allow(dead_code)]
mod decode;
mod drawn_again;
mod failing_keys;
mod formats;
mod lifecycle;
mod mapping;
mod order;
mod refusals;
mod replicas;
mod settling;
#[cfg(feature = "otel")]
mod traces;
mod unreadable;

use std::sync::Arc;

use tokio::sync::{OnceCell, RwLock, RwLockReadGuard, RwLockWriteGuard};

use support::Servers;

/// The servers that all tests of this binary share.
async fn servers() -> Arc<Servers> {
    static SERVERS: OnceCell<Arc<Servers>> = OnceCell::const_new();
    SERVERS.get_or_init(Servers::start).await.clone()
}

/// Tests that measure time or make load run alone.
static MACHINE: RwLock<()> = RwLock::const_new(());

async fn shared() -> RwLockReadGuard<'static, ()> {
    MACHINE.read().await
}

async fn alone() -> RwLockWriteGuard<'static, ()> {
    MACHINE.write().await
}
