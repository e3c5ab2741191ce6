//! The table of metrics: the one place where a metric's name, labels and meaning are written down.

use super::{Kind, Label, Metric, Operation};
use crate::error::ReasonCode;
use crate::relay::core::pace::WakeReason;

fn reasons() -> Vec<&'static str> {
    ReasonCode::ALL.iter().map(|code| code.as_str()).collect()
}

fn failure_reasons() -> Vec<&'static str> {
    let mut reasons = reasons();
    reasons.push(UNAVAILABLE);
    reasons
}

fn wake_reasons() -> Vec<&'static str> {
    WakeReason::ALL
        .iter()
        .map(|reason| reason.as_str())
        .collect()
}

fn operations() -> Vec<&'static str> {
    Operation::ALL
        .iter()
        .map(|operation| operation.as_str())
        .collect()
}

/// The reason of an event whose fate an outage left open.
pub const UNAVAILABLE: &str = "unavailable";
/// States of a failed event.
pub const FAILED_STATES: [&str; 4] = ["retrying", "blocked", "dead", "unsettled"];
/// Steps that handle many events at once.
pub const BATCH_STEPS: [&str; 3] = ["read", "publish", "settle"];
/// Who can keep dead rows from being removed.
pub const SNAPSHOT_HOLDERS: [&str; 3] = ["session", "prepared_transaction", "replication_slot"];
/// What comes of replicas whose settings differ.
pub const DISAGREEMENTS: [&str; 2] = ["stands_aside", "shares"];

const REASON: Label = Label {
    name: "reason",
    values: reasons,
};
const FAILURE_REASON: Label = Label {
    name: "reason",
    values: failure_reasons,
};
const WAKE_REASON: Label = Label {
    name: "reason",
    values: wake_reasons,
};
const OPERATION: Label = Label {
    name: "operation",
    values: operations,
};
const BATCH_STEP: Label = Label {
    name: "step",
    values: || BATCH_STEPS.to_vec(),
};
/// States of events that are over without having been published.
pub const UNPUBLISHED_STATES: [&str; 2] = ["discarded", "expired"];
const UNPUBLISHED: Label = Label {
    name: "state",
    values: || UNPUBLISHED_STATES.to_vec(),
};
const STATE: Label = Label {
    name: "state",
    values: || FAILED_STATES.to_vec(),
};
const EFFECT: Label = Label {
    name: "effect",
    values: || DISAGREEMENTS.to_vec(),
};
const HOLDER: Label = Label {
    name: "holder",
    values: || SNAPSHOT_HOLDERS.to_vec(),
};
const TIMED_HOLDER: Label = Label {
    name: "holder",
    values: || SNAPSHOT_HOLDERS[..2].to_vec(),
};

const fn once(name: &'static str) -> Label {
    Label {
        name,
        values: Vec::new,
    }
}

macro_rules! metrics {
    ($($constant:ident = $kind:ident $name:literal [$($label:expr),*] $help:literal, $note:literal;)*) => {
        $(
            #[doc = $help]
            pub const $constant: Metric = Metric {
                name: $name,
                kind: Kind::$kind,
                labels: &[$($label),*],
                help: $help,
                note: $note,
            };
        )*
        /// Every metric, in the order of the reference.
        pub const METRICS: &[Metric] = &[$($constant),*];
    };
}

metrics! {
    PUBLISHED = Counter "outrigger_published_total" []
        "Events confirmed by the broker and routed to a queue.",
        "";
    PUBLISH_FAILURES = Counter "outrigger_publish_failures_total" [FAILURE_REASON]
        "Attempts to publish an event that failed, by reason.",
        "`unavailable`: an outage left the event's fate open; it is published again and no attempt is counted. The others are \
         those of [failed events](delivery.md#retries).";
    RETRIES = Counter "outrigger_retries_total" []
        "Refusals that will be tried again.",
        "";
    DEAD = Counter "outrigger_dead_total" [REASON]
        "Events given up, by reason; their keys went on.",
        "";
    BLOCKED = Counter "outrigger_blocked_total" [REASON]
        "Events given up, by reason; their keys wait for an operator.",
        "Only with `OUTRIGGER_RETRY_ON_EXHAUSTED=block`.";
    EXPIRED = Counter "outrigger_expired_total" []
        "Events that expired before they could be published.",
        "";
    END_TO_END = Histogram "outrigger_end_to_end_latency_seconds" []
        "Time from the event's creation to the broker's confirmation.",
        "From the row's creation time (by default the start of the writing transaction), by the database's clock. Retries and \
         outages count, the wait of a delayed event does not. Not measured on a table without a creation time.";
    BACKLOG = Gauge "outrigger_backlog_events" []
        "Events that are due and not settled, those of other replicas included.",
        "Counted from where the relay's own reading stands, every 5 s while there is a backlog and every 15 s otherwise, up to \
         10,000; in between it follows what this replica publishes. Replicas see different parts of it: use `max`.";
    BACKLOG_ESTIMATED = Gauge "outrigger_backlog_estimated" []
        "1 if the backlog is an estimate because there is too much to count.",
        "Beyond 10,000 the distance in sequence numbers is added: too high by what other replicas or a rollback left out.";
    OLDEST_PENDING = Gauge "outrigger_oldest_pending_age_seconds" []
        "Age of the oldest event that is due and not settled; 0 if there is none.",
        "From the creation time, retrying and blocked events included, dead ones not. Use `max` over replicas.";
    FAILED_EVENTS = Gauge "outrigger_failed_events" [STATE]
        "Events with a failure record, by state, for the whole outbox.",
        "Looked at every 5 to 15 s; counted up to 100,000. `unsettled`: published, but the row could not be marked or deleted so \
         far. Use `max` over replicas.";
    UNPUBLISHED_EVENTS = Gauge "outrigger_unpublished_events" [UNPUBLISHED]
        "Events on record that are over without having been published, for the whole outbox.",
        "Looked at once a minute; counted up to 100,000. Use `max` over replicas. `outrigger dead list --state` shows them.";
    IN_FLIGHT = Gauge "outrigger_in_flight_events" []
        "Events in this replica's memory and not yet settled.",
        "At most `OUTRIGGER_RELAY_MAX_IN_FLIGHT`.";
    IN_FLIGHT_BYTES = Gauge "outrigger_in_flight_bytes" []
        "Bytes of events that wait or are in flight in this replica.",
        "";
    HELD_KEYS = Gauge "outrigger_held_keys" []
        "Keys held back by this replica because they fail, are blocked or have too many events waiting.",
        "";
    PARKED_KEYS = Gauge "outrigger_parked_keys" []
        "Keys of the whole outbox that fail or are blocked and are kept in the database, because they are too many for memory.",
        "More than 0 once some 10,000 keys of a replica fail. Other keys do not wait for them. Counted up to 100,000. Use `max` over replicas.";
    PUBLISH_SECONDS = Histogram "outrigger_publish_duration_seconds" []
        "Time to publish a batch and get all its confirmations.",
        "";
    DATABASE_SECONDS = Histogram "outrigger_database_duration_seconds" [OPERATION]
        "Time that the database took for an operation that succeeded.",
        "The wait for a connection included.";
    DATABASE_ERRORS = Counter "outrigger_database_errors_total" [OPERATION]
        "Operations that the database refused or did not answer.",
        "";
    BATCH_EVENTS = Histogram "outrigger_batch_events" [BATCH_STEP]
        "Events handled by one read, one batch of a channel, or one settle.",
        "";
    WAKEUPS = Counter "outrigger_wakeups_total" [WAKE_REASON]
        "Reads begun, by what they were begun for.",
        "`notify`: a writer or another replica; `poll`: the timer; `more`: the read before was full; `change`: partitions or \
         failures changed.";
    DISCARDED_READS = Counter "outrigger_discarded_reads_total" []
        "Reads thrown away because a long transaction ended under them.",
        "Part of [keeping order](architecture.md#the-bound); a few are normal.";
    PARTITIONS_OWNED = Gauge "outrigger_partitions_owned" []
        "Partitions that this replica owns.",
        "";
    PARTITIONS = Gauge "outrigger_partitions" []
        "Partitions of the outbox.",
        "";
    PARTITIONS_UNOWNED = Gauge "outrigger_partitions_unowned" []
        "Partitions whose events nobody publishes: without an owner, or their owner's lease is over.",
        "";
    REPLICAS = Gauge "outrigger_replicas" []
        "Replicas of this outbox that are alive, this one included.",
        "";
    REPLICAS_DISAGREE = Gauge "outrigger_replicas_disagree" [EFFECT]
        "Living replicas of this outbox whose settings differ from this one's, by effect.",
        "`stands_aside`: they send events to another place, or as another source, and one of the two takes no partition. `shares`: something else differs, and they share the events.";
    OWNERSHIP_PROVEN = Gauge "outrigger_ownership_proven" []
        "1 if this replica's lease lasts, so that it may publish.",
        "";
    PAUSED = Gauge "outrigger_paused" []
        "1 while an operator has paused the relay.",
        "";
    DATABASE_UP = Gauge "outrigger_database_up" []
        "1 if the last statements of each kind went well.",
        "";
    BROKER_CONNECTED = Gauge "outrigger_broker_connected" []
        "1 if the sink is connected.",
        "";
    BROKER_BLOCKED = Gauge "outrigger_broker_blocked" []
        "1 if the broker asks publishers to wait.",
        "";
    LISTENER_CONNECTED = Gauge "outrigger_listener_connected" []
        "1 if notifications of writers arrive; absent if they are not wanted.",
        "Without them polling finds every event, later.";
    TABLE_BYTES = Gauge "outrigger_table_bytes" []
        "Size of the outbox table with its indexes.",
        "This and the following are looked at once a minute.";
    TABLE_LIVE_ROWS = Gauge "outrigger_table_live_rows" []
        "Rows of the outbox table, published ones included, as the database estimates.",
        "";
    TABLE_DEAD_ROWS = Gauge "outrigger_table_dead_rows" []
        "Dead rows of the outbox table that vacuum has not removed, as the database estimates.",
        "";
    SNAPSHOT_SECONDS = Gauge "outrigger_oldest_snapshot_age_seconds" [TIMED_HOLDER]
        "Age of the oldest transaction that keeps dead rows from being removed; 0 if there is none.",
        "Other roles' sessions are visible only to members of `pg_read_all_stats`. The time of a replication slot is not known.";
    SNAPSHOT_TRANSACTIONS = Gauge "outrigger_oldest_snapshot_age_transactions" [HOLDER]
        "The same in transactions begun since.",
        "";
    FIGURES_AGE = Gauge "outrigger_figures_age_seconds" []
        "Time since the backlog was last counted in the database.",
        "It grows while the database does not answer.";
    INFO = Info "outrigger_info" [once("version"), once("name"), once("table"), once("sink")]
        "What this replica is.",
        "";
    PROCESS_CPU = Counter "process_cpu_seconds_total" []
        "User and system CPU time of the process.",
        "The process figures are there on Linux only.";
    PROCESS_RESIDENT = Gauge "process_resident_memory_bytes" []
        "Resident memory of the process.",
        "";
    PROCESS_VIRTUAL = Gauge "process_virtual_memory_bytes" []
        "Virtual memory of the process.",
        "";
    PROCESS_FDS = Gauge "process_open_fds" []
        "Open file descriptors.",
        "";
    PROCESS_MAX_FDS = Gauge "process_max_fds" []
        "File descriptors that may be open.",
        "";
    PROCESS_START = Gauge "process_start_time_seconds" []
        "When the process started, in seconds since 1970.",
        "";
}
