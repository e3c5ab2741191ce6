//! Server, table, privileges, and the wake-up.

use std::time::Duration;

use tokio::time::timeout;

use super::report::Report;
use super::{history, settling};
use crate::assemble;
use crate::cli::connect::{any_server, remedy};
use crate::cli::output::duration;
use crate::settings::{Ordering, Settings, Wake};
use crate::store::postgres::mapping::Field;
use crate::store::postgres::migrate::MIGRATIONS;
use crate::store::postgres::probe::{ServerFacts, TableFacts};
use crate::store::postgres::{Capabilities, Database, ListenState, StoreError, StoreErrorKind};

/// The oldest server whose functions all statements find.
const VERSION_MIN: i32 = 130_000;

/// The relay takes no time from the clocks of two machines, but events carry the database's.
const CLOCK_SKEW_MAX: i64 = 5;

/// A transaction this old keeps dead rows of the outbox from being cleaned up.
const OLD_TRANSACTION: i64 = 600;

/// Longest wait for LISTEN, and for a notification to come through.
const WAKE_LIMIT: Duration = Duration::from_secs(10);

/// Checks everything about the database.
pub(super) async fn check(report: &mut Report, settings: &Settings) {
    report.area("database");
    let Some((database, facts)) = Box::pin(reach(report, settings)).await else {
        return;
    };
    server(report, settings, &database, &facts);
    report.area("outbox");
    let Some(table) = outbox(report, settings, &database, &facts).await else {
        return;
    };
    report.area("wake-up");
    wake_up(report, settings, &database, &facts, &table).await;
    report.area("history");
    history::check(report, settings, &database, &table).await;
}

async fn reach(report: &mut Report, settings: &Settings) -> Option<(Database, ServerFacts)> {
    let database = match assemble::database(settings) {
        Ok(database) => database,
        Err(failure) => {
            let text = failure.error.map(|error| error.to_string());
            report.failed(text.unwrap_or_default(), "");
            return None;
        }
    };
    let (database, result) = match database.server_facts().await {
        // Better told as a fact about the server than as an error of connecting.
        Err(error) if error.is_read_only() => match assemble::database(&any_server(settings)) {
            Ok(database) => {
                let result = database.server_facts().await;
                (database, result)
            }
            Err(_) => (database, Err(error)),
        },
        result => (database, result),
    };
    match result {
        Ok(facts) => Some((database, facts)),
        Err(error) => {
            let text = format!("{}: {}", database.target(), error.what());
            report.failed(text, &remedy(&error, &database));
            None
        }
    }
}

fn server(report: &mut Report, settings: &Settings, database: &Database, facts: &ServerFacts) {
    let target = database.target();
    // Of several hosts, the one that took the connection.
    let place = match (&facts.address, target.contains(',')) {
        (Some(address), true) => format!(" ({address} took the connection)"),
        _ => String::new(),
    };
    let reached = format!("{target}{place} as role {}", facts.role);
    let fallback = database.tls_fallback();
    match &facts.tls {
        Some(tls) => report.ok(format!("{reached}, {tls}")),
        None if let Some(reason) = fallback => report.warning(
            format!("{reached}, not encrypted although the server offers it: {reason}"),
            "set sslmode=require or stronger in OUTRIGGER_DATABASE_URL to insist on TLS, or sslmode=disable to accept this",
        ),
        None if is_local(&target) || facts.pooled => {
            report.ok(format!("{reached}, not encrypted"));
        }
        None => report.warning(
            format!("{reached}, not encrypted"),
            "set sslmode=verify-full in OUTRIGGER_DATABASE_URL",
        ),
    }
    if facts.version < VERSION_MIN {
        report.failed(
            format!("PostgreSQL {} is too old", facts.version_text),
            "upgrade to PostgreSQL 13 or later",
        );
    } else {
        report.ok(format!("PostgreSQL {}", facts.version_text));
    }
    if facts.in_recovery {
        report.failed(
            "the server is a standby, but the relay writes",
            "point OUTRIGGER_DATABASE_URL to the primary",
        );
    } else if facts.read_only {
        report.failed(
            "sessions are read-only, but the relay writes",
            "point OUTRIGGER_DATABASE_URL to the primary, or reset default_transaction_read_only for the role",
        );
    } else {
        report.ok("primary, takes writes");
    }
    let connections = i64::try_from(settings.database.pool_size).unwrap_or(i64::MAX) + 1;
    limits(report, facts, connections);
    if connections.saturating_mul(4) > i64::from(facts.max_connections) {
        report.warning(
            format!(
                "a replica may use {connections} of {} connections",
                facts.max_connections
            ),
            "lower OUTRIGGER_DATABASE_POOL_SIZE or raise max_connections",
        );
    } else {
        report.ok(format!(
            "a replica uses at most {connections} of {} connections",
            facts.max_connections
        ));
    }
    if facts.clock_ahead.abs() > CLOCK_SKEW_MAX {
        let direction = if facts.clock_ahead > 0 {
            "ahead of"
        } else {
            "behind"
        };
        report.warning(
            format!(
                "the server's clock is {} seconds {direction} this machine's",
                facts.clock_ahead.abs()
            ),
            "synchronise the clocks (NTP)",
        );
    }
    if let Some(seconds) = facts
        .oldest_transaction
        .filter(|age| *age > OLD_TRANSACTION)
    {
        let age = duration(Duration::from_secs(seconds.unsigned_abs()));
        report.warning(
            format!("a transaction has been open for {age}; dead rows cannot be cleaned up before it ends"),
            "find it: select * from pg_stat_activity order by xact_start, or in pg_prepared_xacts",
        );
    }
}

/// Limits of the role and of the database, which a rolling update meets first: it runs two replicas for a while.
fn limits(report: &mut Report, facts: &ServerFacts, connections: i64) {
    let needed = 2 * connections;
    for (owner, limit) in &facts.connection_limits {
        if i64::from(*limit) < needed {
            report.warning(
                format!(
                    "{owner} is limited to {limit} connections; a replica uses {connections} at most, two during an update \
                     {needed}. With fewer it polls instead of listening, or waits"
                ),
                &format!(
                    "alter {owner} connection limit {needed}; or lower OUTRIGGER_DATABASE_POOL_SIZE"
                ),
            );
        }
    }
}

/// Whether nobody else can listen on the way.
fn is_local(target: &str) -> bool {
    ["/", "127.", "localhost:", "::1:"]
        .iter()
        .any(|prefix| target.starts_with(prefix))
}

/// `None` if the table cannot be used at all.
async fn outbox(
    report: &mut Report,
    settings: &Settings,
    database: &Database,
    facts: &ServerFacts,
) -> Option<TableFacts> {
    let table = database.table_facts().await;
    let missing = table.as_ref().map(|t| t.missing_grants.as_slice());
    let hidden = missing.is_ok_and(|grants| grants.iter().any(|grant| grant.contains("outrigger")));
    schema(report, facts.schema_version, hidden);
    let table = match table {
        Ok(table) => table,
        Err(error) => {
            report.failed(error.what(), &remedy_for_table(&error, database));
            return None;
        }
    };
    let columns: Vec<String> = table
        .columns
        .iter()
        .map(|(_, name, type_name)| format!("{name} {type_name}"))
        .collect();
    report.ok(format!("table {}", table.capabilities.outbox));
    report.ok(format!("columns: {}", columns.join(", ")));
    if table.missing_grants.is_empty() {
        report.ok(format!("role {} has every privilege it needs", facts.role));
    } else {
        let statements: Vec<String> = table
            .missing_grants
            .iter()
            .map(|grant| format!("{grant};"))
            .collect();
        report.failed(
            format!("role {} lacks privileges", facts.role),
            &statements.join("\n"),
        );
    }
    if table.registered {
        report.ok("registered");
    } else if !hidden {
        report.failed("the table is not registered", "run `outrigger migrate`");
    }
    for publication in &table.unidentified {
        let outbox = &table.capabilities.outbox;
        report.failed(
            format!(
                "publication {publication} covers {outbox}, which has no replica identity: the server refuses to mark \
                 and to delete its rows"
            ),
            &format!(
                "alter table {outbox} replica identity full; or give it a primary key, or take it out of the publication"
            ),
        );
    }
    ordering(report, settings, &table);
    settling::report(report, &table);
    indexes(report, &table);
    left_out(report, &table);
    if table.capabilities.unlogged {
        let outbox = &table.capabilities.outbox;
        report.warning(
            format!(
                "table {outbox} is UNLOGGED: PostgreSQL empties it after a crash, published or not, and no standby has its \
                 rows"
            ),
            &format!("alter table {outbox} set logged"),
        );
    }
    Some(table)
}

/// The store's own errors about tables name the next step.
fn remedy_for_table(error: &StoreError, database: &Database) -> String {
    match error.kind() {
        StoreErrorKind::Schema => error.remedy().unwrap_or_default().to_owned(),
        _ => remedy(error, database),
    }
}

fn schema(report: &mut Report, version: Option<i32>, hidden: bool) {
    let known = MIGRATIONS.len() as i32;
    match version {
        Some(version) if version == known => {
            report.ok(format!("schema outrigger, version {version}"))
        }
        Some(version) if version < known => report.failed(
            format!("schema outrigger is at version {version}, this binary needs {known}"),
            "run `outrigger migrate`",
        ),
        Some(version) => report.failed(
            format!("schema outrigger is at version {version}, this binary knows only {known}"),
            "upgrade the binary",
        ),
        None if hidden => report.warning(
            "the version of schema outrigger cannot be read",
            "grant the privileges below",
        ),
        None => report.failed("there is no schema outrigger", "run `outrigger migrate`"),
    }
}

fn ordering(report: &mut Report, settings: &Settings, table: &TableFacts) {
    let Capabilities {
        outbox,
        has_order,
        has_key,
        ..
    } = &table.capabilities;
    let name = match settings.relay.ordering {
        Ordering::Strict => "strict",
        Ordering::Pipelined => "pipelined",
        Ordering::None => {
            report.ok("ordering none: events go in any order");
            return;
        }
    };
    if !has_order {
        report.failed(
            format!("OUTRIGGER_RELAY_ORDERING={name} needs an order column, and {outbox} has none"),
            &format!(
                "alter table {outbox} add column seq bigint generated always as identity;\n\
                 and set OUTRIGGER_OUTBOX_COLUMN_SEQ=seq; or set OUTRIGGER_RELAY_ORDERING=none"
            ),
        );
    } else if table.sequence_cached {
        report.failed(
            "the order column's sequence has a CACHE above 1: concurrent writers get numbers out of order",
            "alter sequence ... cache 1; or set OUTRIGGER_RELAY_ORDERING=none",
        );
    } else if !has_key {
        report.warning(
            format!("ordering {name} has no effect: {outbox} has no key column"),
            "name it in OUTRIGGER_OUTBOX_COLUMN_KEY, or set OUTRIGGER_RELAY_ORDERING=none",
        );
    } else {
        report.ok(format!("ordering {name} per key"));
    }
    if let (true, Some(seq)) = (table.unnumbered > 0, column(table, Field::Seq)) {
        report.failed(
            format!("{} pending rows have no number in `{seq}` and are never published", table.unnumbered),
            &format!("give them one, and new rows: alter table {outbox} alter column \"{seq}\" set default nextval('…')"),
        );
    }
    if let (Some((last, highest)), Some(seq)) = (table.sequence_behind, column(table, Field::Seq)) {
        report.failed(
            format!(
                "the sequence of `{seq}` is at {last}, and the highest row is {highest}: new rows are refused as duplicates, \
                 or come before older ones"
            ),
            &format!(
                "select setval(pg_get_serial_sequence('{outbox}', '{seq}'), (select max(\"{seq}\") from {outbox}));"
            ),
        );
    }
}

/// The name of a mapped column.
fn column(table: &TableFacts, field: Field) -> Option<&str> {
    let setting = field.setting();
    let found = table.columns.iter().find(|(name, ..)| *name == setting);
    found.map(|(_, name, _)| name.as_str())
}

fn indexes(report: &mut Report, table: &TableFacts) {
    if table.missing_indexes.is_empty() {
        report.ok("indexes");
        return;
    }
    let text = match (table.order_index, table.pending_index) {
        (false, false) => {
            "no index to find rows by their order, and none of the pending rows that the relay can use: settling and \
             reading look through the whole table"
        }
        (false, true) => "no index to find rows by their order: settling reads the whole table",
        _ => {
            "no index of the pending rows that the relay can use: reading slows down as published rows pile up"
        }
    };
    report.warning(text, &table.missing_indexes.join("\n"));
}

/// A column that is not mapped is left out in silence, so the likely ones are named.
fn left_out(report: &mut Report, table: &TableFacts) {
    for (setting, column) in &table.looks_like {
        let what = match setting.as_str() {
            "OUTRIGGER_OUTBOX_COLUMN_DATA" => "events go without a payload",
            "OUTRIGGER_OUTBOX_COLUMN_KEY" => "events have no key, and so no order",
            _ => "events go without a time, and their age is not known",
        };
        report.warning(
            format!("column `{column}` is not mapped: {what}"),
            &format!("set {setting}={column}, or {setting}=none if that is meant"),
        );
    }
}

async fn wake_up(
    report: &mut Report,
    settings: &Settings,
    database: &Database,
    facts: &ServerFacts,
    table: &TableFacts,
) {
    let two_phase = facts.max_prepared_transactions > 0 && table.trigger;
    if two_phase {
        report.warning(
            "prepared transactions are enabled, and PREPARE TRANSACTION fails after an insert that notifies",
            "if services use two-phase commit: `outrigger migrate --no-trigger` and OUTRIGGER_RELAY_WAKE=poll",
        );
    }
    if settings.relay.wake == Wake::Poll {
        report.ok(format!(
            "the relay polls, at least every {}",
            duration(settings.relay.poll_interval)
        ));
        return;
    }
    if table.trigger {
        report.ok("wake-up trigger");
    } else if table.missing_grants.is_empty() {
        report.warning(
            "no wake-up trigger that belongs to this table and version: new events wait for the next poll",
            "run `outrigger migrate`, or set OUTRIGGER_RELAY_WAKE=poll",
        );
    }
    if table.trigger && !table.writers_in_the_dark.is_empty() {
        report.warning(
            format!(
                "{} may write events and not read {}: each insert notifies, which makes writers wait for each other",
                table.writers_in_the_dark.join(", "),
                table.awake
            ),
            &format!("grant select on sequence {} to public;", table.awake),
        );
    }
    if facts.pooled && settings.database.listen_url.is_none() {
        report.warning(
            "a transaction pooler sits in between, so LISTEN cannot work; polling finds new events",
            "set OUTRIGGER_DATABASE_LISTEN_URL to a direct connection, or OUTRIGGER_RELAY_WAKE=poll",
        );
        return;
    }
    if report.has_failed(&["database", "outbox"]) {
        // The store opens only when all is well, and what is wrong was said.
        return;
    }
    match notification(settings, database).await {
        Ok(()) => report.ok("LISTEN works, and a notification arrived"),
        Err(problem) => report.warning(
            format!("notifications do not arrive: {problem}; polling finds new events"),
            "if a pooler sits in between, set OUTRIGGER_DATABASE_LISTEN_URL to a direct connection, or \
             OUTRIGGER_RELAY_WAKE=poll",
        ),
    }
}

/// Listens the way the relay does, and sends itself a notification.
async fn notification(settings: &Settings, database: &Database) -> Result<(), String> {
    let text = |error: StoreError| error.to_string();
    let store = database.open().await.map_err(text)?;
    let direct = assemble::listen_database(settings)
        .map_err(|failure| failure.error.map(|e| e.to_string()).unwrap_or_default())?;
    let listener = match &direct {
        Some(direct) => store.listen_by(direct),
        None => store.listen(),
    };
    let mut state = listener.state();
    let listening = state.wait_for(|state| {
        matches!(state, ListenState::Listening | ListenState::Refused(_))
            || matches!(state, ListenState::Down(why) if !why.is_empty())
    });
    let reached = match timeout(WAKE_LIMIT, listening).await {
        Ok(Ok(state)) => state.clone(),
        _ => ListenState::Down("LISTEN timed out".to_owned()),
    };
    if let ListenState::Down(why) | ListenState::Refused(why) = reached {
        return Err(why);
    }
    store.wake().await.map_err(text)?;
    // The listener counts one by itself when it begins.
    let mut wakes = listener.wakes();
    match timeout(WAKE_LIMIT, wakes.wait_for(|count| *count >= 2)).await {
        Ok(Ok(_)) => Ok(()),
        _ => Err(format!("none came within {}", duration(WAKE_LIMIT))),
    }
}
