//! What the other replicas of the outbox have differently, and who is waited for: said in the log, and told to watchers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use crate::relay::live::{Disagreement, Peers};
use crate::store::Tick;
use crate::store::configuration::{Configuration, Difference, SINK, described};

/// What lasts is said again after this time.
const AGAIN: Duration = Duration::from_secs(60);
/// Kinds of differences that are told apart in the log.
const KINDS: usize = 3;
/// How long after a registration partitions of another replica are a thing to mention: one that lives hands over
/// before.
const HAND_OVER: Duration = Duration::from_millis(1_500);

/// See the module documentation.
#[derive(Debug)]
pub(super) struct PeerReport {
    configuration: Configuration,
    now: Arc<Peers>,
    said_at: Option<Instant>,
    registered_at: Option<(Uuid, Instant)>,
}

impl PeerReport {
    pub(super) fn new(configuration: Configuration) -> Self {
        Self {
            configuration,
            now: Arc::default(),
            said_at: None,
            registered_at: None,
        }
    }

    /// What this replica stores of its settings.
    pub(super) fn configuration(&self) -> &Configuration {
        &self.configuration
    }

    /// As last seen.
    pub(super) fn peers(&self) -> Arc<Peers> {
        Arc::clone(&self.now)
    }

    /// Takes in what a tick shows; `held`: partitions of this replica.
    pub(super) fn ticked(&mut self, me: Uuid, tick: &Tick, held: usize) {
        let peers = Peers {
            stands_aside: tick.stands_aside(me, false),
            disagreements: self.disagreements(me, tick),
        };
        let changed = *self.now != peers;
        if changed {
            self.changed(&peers);
            self.now = Arc::new(peers);
        }
        let due = self.said_at.is_none_or(|at| at.elapsed() >= AGAIN);
        if !self.now.disagreements.is_empty() && (changed || due) {
            self.said_at = Some(Instant::now());
            self.say();
        }
        self.say_who_is_waited_for(me, tick, held);
    }

    fn disagreements(&self, me: Uuid, tick: &Tick) -> Vec<Disagreement> {
        let others = tick.replicas.iter().filter(|row| row.replica != me);
        others
            .filter(|row| row.is_alive())
            .filter_map(|row| {
                // What has no sink publishes nothing.
                let theirs = row.differs.as_ref()?;
                (!theirs.get(SINK).is_empty()).then(|| Disagreement {
                    name: row.name.clone(),
                    differences: self.configuration.differences(theirs),
                })
            })
            .collect()
    }

    fn changed(&self, peers: &Peers) {
        if self.now.stands_aside && !peers.stands_aside {
            tracing::info!("the replicas that send events elsewhere are gone; this one begins");
        } else if !self.now.disagreements.is_empty() && peers.disagreements.is_empty() {
            tracing::info!("all replicas of this outbox have the same settings again");
        }
    }

    fn say(&self) {
        let mut kinds: BTreeMap<String, (bool, Vec<&str>)> = BTreeMap::new();
        for disagreement in &self.now.disagreements {
            let splits = disagreement.differences.iter().any(Difference::splits);
            let kind = kinds.entry(described(&disagreement.differences));
            let (_, names) = kind.or_insert_with(|| (splits, Vec::new()));
            names.push(&disagreement.name);
        }
        for (differences, (splits, names)) in kinds.into_iter().take(KINDS) {
            let replicas = names.join(", ");
            match (splits, self.now.stands_aside) {
                (true, true) => tracing::warn!(
                    replicas,
                    "this replica takes no partition while another one publishes this outbox to another place: \
                     {differences}. It begins when that one stops. If both are to run, give each a table of its own"
                ),
                (true, false) => tracing::warn!(
                    replicas,
                    "another replica of this outbox has other settings and takes no partition while this one runs: \
                     {differences}"
                ),
                (false, _) => tracing::warn!(
                    replicas,
                    "another replica shares the events of this outbox and has other settings: {differences}"
                ),
            }
        }
    }

    /// Once for each registration: the last owner may live, or may have died long ago, which looks the same.
    fn say_who_is_waited_for(&mut self, me: Uuid, tick: &Tick, held: usize) {
        let now = Instant::now();
        let at = match self.registered_at {
            Some((replica, at)) if replica == me => at,
            _ => self.registered_at.insert((me, now)).1,
        };
        if now < at + HAND_OVER || now > at + 2 * HAND_OVER {
            return;
        }
        // Said, or not to be said.
        self.registered_at = Some((me, at - 2 * HAND_OVER));
        let alive = tick.replicas.iter().filter(|row| row.is_alive());
        if held > 0 || self.now.stands_aside || alive.count() > tick.partitions.len() {
            return;
        }
        let owns = |replica| tick.partitions.iter().any(|row| row.owner == Some(replica));
        let owners = tick.replicas.iter().filter(|row| owns(row.replica));
        let Some(longest) = owners.clone().map(|row| row.alive_for).max() else {
            return;
        };
        let names: Vec<&str> = owners.map(|row| row.name.as_str()).collect();
        tracing::info!(
            replicas = names.join(", "),
            "waiting up to {} s: the replicas that own the partitions may still run",
            longest.as_secs() + 1
        );
    }
}
