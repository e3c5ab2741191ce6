//! `outrigger partitions`: shows or changes their number.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::Failure;
use super::args::Partitions;
use super::connect::{interrupted, store};
use super::output::{plain, print_line};
use crate::settings::Settings;
use crate::store::postgres::{PostgresStore, Repartition};

/// How long the replicas stand down without hearing from us again.
const STAND_DOWN: Duration = Duration::from_secs(15);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(300);
/// Replicas that have not given their partitions back by then are in trouble.
const PATIENCE: Duration = Duration::from_secs(120);

pub(super) async fn run(args: &Partitions, settings: &Settings) -> Result<(), Failure> {
    let store = store(settings).await?;
    let outbox = store.outbox().to_owned();
    let stored = store.status().await?.partitions;
    let Some(number) = args.number else {
        return match stored {
            Some(stored) => print_line(&format!("{outbox} has {stored} partitions")),
            None => print_line(&format!(
                "{outbox} gets its partitions when the first relay starts"
            )),
        };
    };
    if stored == Some(number) {
        return print_line(&format!("{outbox} has {number} partitions already"));
    }
    let now = stored.map_or("none".to_owned(), |stored| stored.to_string());
    if args.write.dry_run {
        return print_line(&format!(
            "would change the partitions of {outbox} from {now} to {number}"
        ));
    }
    let lease = settings.relay.lease_ttl;
    let me = store
        .register("outrigger partitions", lease, number)
        .await?
        .replica;
    let result = tokio::select! {
        result = change(&store, me, number) => result,
        _ = interrupted() => Err("interrupted; nothing was changed".into()),
    };
    if result.is_err() {
        store.stand_down(Duration::ZERO).await?;
    }
    store.unregister(me).await?;
    result?;
    print_line(&format!(
        "changed the partitions of {outbox} from {now} to {number}"
    ))
}

/// Waits until nobody owns a partition, then replaces them.
async fn change(store: &PostgresStore, me: Uuid, number: i32) -> Result<(), Failure> {
    let started = Instant::now();
    let mut said = Vec::new();
    loop {
        store.stand_down(STAND_DOWN).await?;
        // Makes us visible to a relay that believes to be alone, which then heartbeats.
        store.tick(me, true).await?;
        let Repartition::Busy(names) = store.repartition(me, number).await? else {
            return Ok(());
        };
        if names != said {
            let list: Vec<String> = names.iter().map(|name| plain(name).to_string()).collect();
            eprintln!("waiting for {} to give partitions back", list.join(", "));
            said = names;
        }
        if started.elapsed() > PATIENCE {
            return Err(Failure::from(
                "the replicas did not give their partitions back; nothing was changed",
            )
            .hint("look at their logs, or stop them, and try again"));
        }
        sleep(PAUSE).await;
    }
}
