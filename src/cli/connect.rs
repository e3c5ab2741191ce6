//! Opening the store for one command.

use tokio::signal::unix::{SignalKind, signal};

use super::Failure;
use crate::assemble;
use crate::settings::Settings;
use crate::store::postgres::{Database, PostgresStore, StoreError, StoreErrorKind};

/// The store, for a command that changes something.
pub(super) async fn store(settings: &Settings) -> Result<PostgresStore, Failure> {
    let database = assemble::database(settings)?;
    database
        .open()
        .await
        .map_err(|error| explain(error, &database))
}

/// The store and its database, for a command that only looks; a server that takes no writes will do.
pub(super) async fn reading(settings: &Settings) -> Result<(PostgresStore, Database), Failure> {
    let database = assemble::database(settings)?;
    match database.open().await {
        Ok(store) => Ok((store, database)),
        Err(error) if refuses_writes(&error) => {
            let database = assemble::database(&any_server(settings))?;
            let opened = database.open().await;
            Ok((opened.map_err(|error| explain(error, &database))?, database))
        }
        Err(error) => Err(explain(error, &database)),
    }
}

/// Whether a server was reached, but is a standby or read-only.
pub(super) fn refuses_writes(error: &StoreError) -> bool {
    // Said by the client library, which has no code for it.
    error.to_string().contains("does not allow writes")
}

/// The same settings without the demand for a server that takes writes, unless the URL makes it.
pub(super) fn any_server(settings: &Settings) -> Settings {
    let mut settings = settings.clone();
    settings
        .database
        .pg
        .insert("target_session_attrs".to_owned(), "any".to_owned());
    settings
}

/// Says where it happened and what to do.
pub(super) fn explain(error: StoreError, database: &Database) -> Failure {
    let hint = remedy(&error);
    Failure::from(format!("{}: {error}", database.target())).hint(hint)
}

/// What to do about an error while connecting.
pub(super) fn remedy(error: &StoreError) -> String {
    let text = match (error.kind(), error.sqlstate()) {
        (_, Some("3D000")) => "create the database, or correct its name in OUTRIGGER_DATABASE_URL",
        (_, Some("28P01" | "28000")) => {
            "check user and password in OUTRIGGER_DATABASE_URL, and pg_hba.conf on the server"
        }
        (StoreErrorKind::Permission, _) => "`outrigger check` prints the missing GRANT statements",
        (StoreErrorKind::Unavailable, _) if refuses_writes(error) => {
            "this server is a standby or read-only: point OUTRIGGER_DATABASE_URL to the primary"
        }
        (StoreErrorKind::Unavailable, _) => {
            "check that the server runs and can be reached from here: host, port, TLS, firewall"
        }
        (StoreErrorKind::Schema, _) => "`outrigger check` shows what fits and what does not",
        (StoreErrorKind::Fatal, _) => "check OUTRIGGER_DATABASE_URL",
    };
    text.to_owned()
}

/// Resolves when the user or the system asks to stop.
pub(super) async fn interrupted() -> Result<(), Failure> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}
