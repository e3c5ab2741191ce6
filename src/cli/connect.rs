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
        Err(error) if error.is_read_only() => {
            let database = assemble::database(&any_server(settings))?;
            let opened = database.open().await;
            Ok((opened.map_err(|error| explain(error, &database))?, database))
        }
        Err(error) => Err(explain(error, &database)),
    }
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
    let hint = remedy(&error, database);
    Failure::from(format!("{}: {}", database.target(), error.what())).hint(hint)
}

/// What to do about an error while connecting: what the error itself knows, or else what its kind suggests.
pub(super) fn remedy(error: &StoreError, database: &Database) -> String {
    if let Some(remedy) = error.remedy() {
        return remedy.to_owned();
    }
    let url = database.url_name();
    match error.kind() {
        StoreErrorKind::Permission => {
            "`outrigger check` prints the missing GRANT statements".into()
        }
        StoreErrorKind::Unavailable => {
            format!(
                "check that the server runs and can be reached from here: host and port in {url}, firewall"
            )
        }
        StoreErrorKind::Schema => "`outrigger check` shows what fits and what does not".into(),
        StoreErrorKind::Refused => "the server's log says more".into(),
        StoreErrorKind::Fatal => format!("check {url}"),
    }
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
