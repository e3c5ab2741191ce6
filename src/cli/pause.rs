//! `outrigger pause` and `outrigger resume`.

use super::Failure;
use super::args::{Pause, Write};
use super::connect::store;
use super::output::{ago, plain, print_line};
use crate::settings::Settings;
use crate::store::postgres::PostgresStore;

/// Stops publishing on all replicas.
pub(super) async fn pause(args: &Pause, settings: &Settings) -> Result<(), Failure> {
    let store = store(settings).await?;
    let outbox = store.outbox().to_owned();
    if args.write.dry_run {
        return match paused(&store).await? {
            Some(since) => print_line(&format!("{outbox} is paused already, {since}")),
            None => print_line(&format!("would pause {outbox}")),
        };
    }
    if store.pause(args.reason.as_deref()).await? {
        print_line(&format!(
            "paused {outbox}; events stay in the table until `outrigger resume`"
        ))
    } else {
        let since = paused(&store).await?.unwrap_or_default();
        print_line(&format!("{outbox} was paused already, {since}"))
    }
}

/// Publishes again.
pub(super) async fn resume(args: &Write, settings: &Settings) -> Result<(), Failure> {
    let store = store(settings).await?;
    let outbox = store.outbox().to_owned();
    if args.dry_run {
        return match paused(&store).await? {
            Some(since) => print_line(&format!("would resume {outbox}, paused {since}")),
            None => print_line(&format!("{outbox} is not paused")),
        };
    }
    if store.resume().await? {
        print_line(&format!("resumed {outbox}"))
    } else {
        print_line(&format!("{outbox} was not paused"))
    }
}

/// Since when and why, for people.
async fn paused(store: &PostgresStore) -> Result<Option<String>, Failure> {
    let paused = store.status().await?.paused;
    Ok(paused.map(|(since, reason)| {
        let reason = reason.map(|reason| format!(" ({})", plain(&reason)));
        format!("{}{}", ago(since), reason.unwrap_or_default())
    }))
}
