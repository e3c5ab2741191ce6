//! `outrigger migrate`: schema and table.

use super::Failure;
use super::args::Migrate;
use super::connect::explain;
use super::output::{print, print_line};
use crate::assemble;
use crate::settings::Settings;
use crate::store::postgres::migrate::MIGRATIONS;
use crate::store::postgres::{self, Database, StoreErrorKind};

/// Brings the tables up to date, or says what that would do.
pub(super) async fn run(args: &Migrate, settings: &Settings) -> Result<(), Failure> {
    let trigger = !args.no_trigger;
    if args.print {
        return print(&postgres::print(&assemble::mapping(settings)?, trigger));
    }
    let database = assemble::database(settings)?;
    if args.write.dry_run {
        return plan(&database, trigger).await;
    }
    let done = database
        .migrate(trigger)
        .await
        .map_err(|error| match error.kind() {
            StoreErrorKind::Permission if error.sqlstate() == Some("42501") => {
                let hint = "migrate as the owner of the table, or as a role that may CREATE in this database; \
                            or give the SQL of `outrigger migrate --print` to someone who is";
                Failure::from(format!("{}: {error}", database.target())).hint(hint)
            }
            // Says what to do itself.
            StoreErrorKind::Schema => {
                let failure = Failure::from(format!("{}: {}", database.target(), error.what()));
                match error.remedy() {
                    Some(remedy) => failure.hint(remedy),
                    None => failure,
                }
            }
            _ => explain(error, &database),
        })?;
    for version in &done.applied {
        print_line(&format!("applied migration {version} ({})", name(*version)))?;
    }
    if done.applied.is_empty() {
        print_line(&format!(
            "schema outrigger is up to date (version {})",
            MIGRATIONS.len()
        ))?;
    }
    if done.created_table {
        print_line(&format!("created table {}", done.outbox))?;
    }
    print_line(&format!(
        "registered {} {}",
        done.outbox,
        with_trigger(trigger)
    ))
}

fn name(version: i32) -> &'static str {
    let known = MIGRATIONS.iter().find(|m| m.version == version);
    known.map_or("unknown", |migration| migration.name)
}

fn with_trigger(trigger: bool) -> &'static str {
    if trigger {
        "with its wake-up trigger"
    } else {
        "without a wake-up trigger: set OUTRIGGER_RELAY_WAKE=poll"
    }
}

async fn plan(database: &Database, trigger: bool) -> Result<(), Failure> {
    let failed = |error| explain(error, database);
    let facts = database.server_facts().await.map_err(failed)?;
    let current = facts.schema_version.unwrap_or(0);
    let missing: Vec<_> = MIGRATIONS.iter().filter(|m| m.version > current).collect();
    for migration in &missing {
        print_line(&format!(
            "would apply migration {} ({})",
            migration.version, migration.name
        ))?;
    }
    if missing.is_empty() {
        print_line(&format!(
            "schema outrigger is up to date (version {current})"
        ))?;
    }
    let table = database.mapping().quoted_table();
    match database.table_facts().await {
        Ok(facts) if facts.registered && facts.trigger == trigger => {
            print_line(&format!("{} is registered", facts.capabilities.outbox))
        }
        Ok(facts) => print_line(&format!(
            "would register {} {}",
            facts.capabilities.outbox,
            with_trigger(trigger)
        )),
        Err(error) if is_missing(&error) && database.mapping().is_native() => {
            print_line(&format!("would create table {table}"))?;
            print_line(&format!("would register {table} {}", with_trigger(trigger)))
        }
        Err(error) => Err(explain(error, database)),
    }
}

/// Whether the table itself is missing, rather than one of its columns.
fn is_missing(error: &postgres::StoreError) -> bool {
    error.kind() == StoreErrorKind::Schema && error.to_string().contains("does not exist (or")
}
