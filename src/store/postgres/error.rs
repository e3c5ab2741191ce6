//! What can go wrong with the database, sorted by what the relay does about it.

use std::error::Error as _;
use std::fmt;

use tokio_postgres::error::SqlState;

use crate::error::{with_causes, without_number};
use crate::tls::{self, Names};

/// What to do about a [`StoreError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StoreErrorKind {
    /// Connection lost or refused, timeout, server starting or shutting down, no free connection: try
    /// again soon; nothing is wrong with the events.
    Unavailable,
    /// A table, column or function is missing or has changed: an operator must act; try again slowly.
    Schema,
    /// The role may not do this, or may not log in: an operator must act; try again slowly.
    Permission,
    /// The server cannot or will not do this whoever asks (a publication that misses a replica identity, a full disk,
    /// damaged files): an operator must act; try again slowly.
    Refused,
    /// Trying again cannot help.
    Fatal,
}

impl StoreErrorKind {
    /// As shown in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unavailable => "unavailable",
            Self::Schema => "schema",
            Self::Permission => "permission",
            Self::Refused => "refused",
            Self::Fatal => "fatal",
        }
    }
}

/// A failed database operation. The text carries the whole chain of causes once, and no row contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreError {
    kind: StoreErrorKind,
    message: String,
    /// What to do about it, where that is known.
    remedy: Option<String>,
    sqlstate: Option<String>,
}

impl StoreError {
    /// An error of our own making.
    pub fn new(kind: StoreErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            remedy: None,
            sqlstate: None,
        }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn with_remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StoreErrorKind::Unavailable, message)
    }

    pub(super) fn schema(message: impl Into<String>) -> Self {
        Self::new(StoreErrorKind::Schema, message)
    }

    pub(super) fn fatal(message: impl Into<String>) -> Self {
        Self::new(StoreErrorKind::Fatal, message)
    }

    /// What to do about it.
    pub fn kind(&self) -> StoreErrorKind {
        self.kind
    }

    /// The server's SQLSTATE, if the server said anything.
    pub fn sqlstate(&self) -> Option<&str> {
        self.sqlstate.as_deref()
    }

    /// A server that was reached and takes no writes: a standby, or switched to read-only.
    pub(super) fn read_only() -> Self {
        Self {
            sqlstate: Some(SqlState::READ_ONLY_SQL_TRANSACTION.code().to_owned()),
            ..Self::unavailable(TAKES_NO_WRITES).with_remedy(POINT_TO_PRIMARY)
        }
    }

    /// Whether the server ended the statement before it was done: a `statement_timeout`, mostly.
    pub(super) fn was_cut_short(&self) -> bool {
        self.sqlstate.as_deref() == Some(SqlState::QUERY_CANCELED.code())
    }

    /// An error with this SQLSTATE.
    #[cfg(test)]
    pub(super) fn of_state(state: &str) -> Self {
        Self {
            sqlstate: Some(state.to_owned()),
            ..Self::unavailable("for a test")
        }
    }

    /// Whether a server was reached that takes no writes.
    pub fn is_read_only(&self) -> bool {
        self.sqlstate.as_deref() == Some(SqlState::READ_ONLY_SQL_TRANSACTION.code())
    }

    /// Whether the server is out of reach, short of something, must not be written to, or refuses the statement itself (a
    /// privilege, a table or a column is missing): nothing that a single row could be the cause of.
    pub(super) fn is_outage(&self) -> bool {
        let outages = ["08", "25006", "26", "28", "42", "53", "57P", "58"];
        self.sqlstate()
            .is_none_or(|state| outages.iter().any(|of| state.starts_with(of)))
    }

    /// Whether a single row may be to blame: a value that cannot be converted, rendered or held, or damaged data.
    pub(super) fn concerns_a_row(&self) -> bool {
        let Some(state) = self.sqlstate.as_deref() else {
            return false;
        };
        ["22", "2F", "38", "39", "54", "P0", "XX"]
            .iter()
            .any(|class| state.starts_with(class))
            || state == SqlState::OUT_OF_MEMORY.code()
    }

    /// Whether the same row will fail in the same way, as long as nobody changes it.
    pub(super) fn is_lasting(&self) -> bool {
        let state = self.sqlstate.as_deref().unwrap_or_default();
        state.starts_with("22") || state.starts_with("54")
    }

    /// Adds the next step to a permission error.
    pub(super) fn with_grants(mut self, hint: &str) -> Self {
        if self.sqlstate.as_deref() == Some(SqlState::INSUFFICIENT_PRIVILEGE.code()) {
            self.remedy = Some(format!("the relay's role needs: {hint}"));
        }
        self
    }

    /// Calls the setting by the name that the user gave it by.
    pub(super) fn naming(mut self, url: &str) -> Self {
        // Its own file's variable begins with it, and is named already.
        if !url.starts_with(URL) {
            self.message = self.message.replace(URL, url);
            self.remedy = self.remedy.map(|remedy| remedy.replace(URL, url));
        }
        self
    }

    /// What happened, without what to do about it.
    pub fn what(&self) -> &str {
        &self.message
    }

    /// What to do about it, where that is known.
    pub fn remedy(&self) -> Option<&str> {
        self.remedy.as_deref()
    }

    /// Says what was being done.
    pub(super) fn during(mut self, what: &str) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }
}

/// The setting that says how to reach the database, where the user did not choose another name for it.
pub(super) const URL: &str = "OUTRIGGER_DATABASE_URL";
const TAKES_NO_WRITES: &str = "the server takes no writes: it is a standby, or read-only";
const POINT_TO_PRIMARY: &str =
    "point OUTRIGGER_DATABASE_URL to the primary, or name every server in it";
const UNREACHABLE: &str = "check that the server runs and can be reached from here: host and port in OUTRIGGER_DATABASE_URL, firewall";
const LOGIN: &str =
    "check user and password in OUTRIGGER_DATABASE_URL, and pg_hba.conf on the server";

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.remedy {
            // One line, as in a log.
            Some(remedy) => write!(f, "; {}", remedy.replace('\n', "; ")),
            None => Ok(()),
        }
    }
}

impl std::error::Error for StoreError {}

impl From<tokio_postgres::Error> for StoreError {
    fn from(error: tokio_postgres::Error) -> Self {
        if let Some(db) = error.as_db_error() {
            let code = db.code().code();
            // DETAIL, CONTEXT and, for data exceptions, the message itself quote row values.
            let mut message = if let Some(words) = words(code) {
                format!("{words} (SQLSTATE {code})")
            } else if code.starts_with("22") {
                format!("the server refused a value (SQLSTATE {code})")
            } else {
                format!("{} (SQLSTATE {code})", db.message())
            };
            if let Some(hint) = db.hint().filter(|_| !code.starts_with("22")) {
                message = format!("{message}; {hint}");
            }
            let remedy = match code {
                _ if code.starts_with("28") => remedy(&message).or(Some(LOGIN)),
                // Our own schema, or a part of it, was dropped.
                "42P01" | "42883" | "3F000" if db.message().contains("outrigger") => {
                    Some("run `outrigger migrate`")
                }
                _ => remedy_for(code),
            };
            return Self {
                kind: kind_of(db.code()),
                message,
                remedy: remedy.map(str::to_owned),
                sqlstate: Some(code.to_owned()),
            };
        }
        if let Some(own) = error.source().and_then(|cause| cause.downcast_ref()) {
            return Self::clone(own);
        }
        // Said by the client library, which has no code for it.
        let refuses =
            |cause: &dyn std::error::Error| cause.to_string() == "database does not allow writes";
        if error.source().is_some_and(refuses) {
            return Self::read_only();
        }
        let mut message = without_number(&with_causes(&error));
        if let Some(cause) = message.strip_prefix("error connecting to server: ") {
            message = format!("cannot connect: {cause}");
        }
        // A value that cannot be read as the type the statement promised: the table changed under us.
        let kind = if message.starts_with("error deserializing column") {
            StoreErrorKind::Schema
        } else if message.starts_with("error serializing parameter")
            || message.starts_with("invalid configuration")
        {
            StoreErrorKind::Fatal
        } else {
            StoreErrorKind::Unavailable
        };
        if let Some(mut explained) = tls::explain(&Names::database(), &message) {
            if explained.contains("is for another name") {
                explained.push_str(", or accept any name by `sslmode=verify-ca`");
            }
            let (what, remedy) = explained
                .split_once("; ")
                .map_or((&*explained, None), |(what, remedy)| (what, Some(remedy)));
            let told = Self::new(kind, format!("cannot make a TLS connection: {what}"));
            return match remedy {
                Some(remedy) => told.with_remedy(remedy),
                None => told,
            };
        }
        let unreachable = message
            .starts_with("cannot connect: ")
            .then_some(UNREACHABLE);
        let remedy = remedy(&message).or(unreachable);
        Self {
            remedy: remedy.map(str::to_owned),
            ..Self::new(kind, message)
        }
    }
}

/// What to do about an error of the server, by its SQLSTATE.
fn remedy_for(code: &str) -> Option<&'static str> {
    Some(match code {
        "25006" => POINT_TO_PRIMARY,
        // Also a database that takes no connections.
        "55000" => {
            "if a publication covers the table: alter table ... replica identity full (or give the table a primary \
             key), or take the table out of the publication"
        }
        "55P02" => "remove that parameter from `options` in OUTRIGGER_DATABASE_URL or PGOPTIONS",
        "53100" => "make room on the disk of the database server",
        "53300" => {
            "too many clients are connected: raise max_connections (or the role's or database's own limit), or lower \
             OUTRIGGER_DATABASE_POOL_SIZE"
        }
        "3D000" => "create the database, or correct its name in OUTRIGGER_DATABASE_URL",
        "57014" => {
            "if the role or the database has a statement_timeout or lock_timeout, raise it for the relay's role: \
             alter role ... set statement_timeout = 0"
        }
        "P0001" => "a trigger, an event trigger or a rule of the database raised this",
        "57P05" | "25P03" => {
            "the server ends sessions that are idle; the relay connects again by itself"
        }
        _ => return None,
    })
}

/// What a data exception means, without the value.
fn words(code: &str) -> Option<&'static str> {
    match code {
        "22021" => Some("it holds bytes that are not valid UTF-8"),
        "22P05" => Some("it holds a character that UTF-8 cannot express"),
        _ => None,
    }
}

/// What to do about a login or a TLS handshake that failed. Known by their words alone, which the servers and the TLS
/// library choose.
fn remedy(message: &str) -> Option<&'static str> {
    const REMEDIES: &[(&str, &str)] = &[
        (
            "server does not support TLS",
            "switch on `ssl` in the server, or choose another `sslmode` in OUTRIGGER_DATABASE_URL",
        ),
        (
            "requires a valid client certificate",
            "name a client certificate by `sslcert` and `sslkey` in OUTRIGGER_DATABASE_URL",
        ),
        (
            "certificate authentication failed",
            "`sslcert` in OUTRIGGER_DATABASE_URL must be made out to the user, or be mapped to it in pg_ident.conf",
        ),
        (
            "no encryption",
            "set `sslmode=require` or stronger in OUTRIGGER_DATABASE_URL, or allow it in pg_hba.conf",
        ),
        (
            "SSL encryption",
            "set `sslmode=disable` in OUTRIGGER_DATABASE_URL, or allow it in pg_hba.conf",
        ),
        ("authentication failed", LOGIN),
    ];
    let fitting = REMEDIES.iter().find(|(part, _)| message.contains(part));
    fitting.map(|(_, remedy)| *remedy)
}

impl From<deadpool_postgres::PoolError> for StoreError {
    fn from(error: deadpool_postgres::PoolError) -> Self {
        use deadpool_postgres::{PoolError, TimeoutType};
        match error {
            PoolError::Backend(error) => error.into(),
            PoolError::Timeout(TimeoutType::Wait) => {
                Self::unavailable("timed out waiting for a free connection of the pool")
            }
            PoolError::Timeout(_) => Self::unavailable("timed out connecting to the database"),
            PoolError::Closed => Self::unavailable("the connection pool is closed"),
            other => Self::fatal(other.to_string()),
        }
    }
}

fn kind_of(state: &SqlState) -> StoreErrorKind {
    use StoreErrorKind::{Fatal, Permission, Refused, Schema, Unavailable};
    let code = state.code();
    match code {
        // Missing or changed tables, columns, functions; wrong types; no such database or schema.
        "42P01" | "42703" | "42883" | "42704" | "42804" | "42809" | "42P10" | "42846" | "428C9"
        | "3F000" | "3D000" | "0A000" => Schema,
        "42501" => Permission,
        // Read-only: we are on a standby, or were failed over to one.
        "25006" => Unavailable,
        // Somebody has to change the table or a setting, make room, or restore files.
        "55000" | "55P02" | "53100" | "58030" | "58P01" | "58P02" | "XX001" | "XX002" => Refused,
        _ if code.starts_with("28") => Permission,
        // Connection lost, serialisation failure, no resources, cancelled, restarting, I/O or internal error.
        _ if ["08", "25", "40", "53", "55", "57", "58", "XX"]
            .iter()
            .any(|class| code.starts_with(class)) =>
        {
            Unavailable
        }
        _ => Fatal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_lead_to_the_right_decision() {
        use StoreErrorKind::{Fatal, Permission, Refused, Schema, Unavailable};
        for (code, kind) in [
            ("57P01", Unavailable),
            ("53300", Unavailable),
            ("40001", Unavailable),
            ("25006", Unavailable),
            ("42P01", Schema),
            ("42703", Schema),
            ("42501", Permission),
            ("28P01", Permission),
            ("55000", Refused),
            ("55P03", Unavailable),
            ("53100", Refused),
            ("XX000", Unavailable),
            ("XX001", Refused),
            ("42601", Fatal),
            ("23514", Fatal),
        ] {
            assert_eq!(kind_of(&SqlState::from_code(code)), kind, "{code}");
        }
    }

    #[test]
    fn the_setting_goes_by_the_name_it_was_given_by() {
        let error = StoreError::read_only().naming("DATABASE_URL").to_string();
        assert!(error.contains("; point DATABASE_URL to"), "{error}");
        assert!(!error.contains(URL), "{error}");
        let error = StoreError::read_only().naming(URL).to_string();
        assert!(error.contains(URL), "{error}");
    }

    #[test]
    fn grants_are_added_to_permission_errors_only() {
        let mut error = StoreError::new(StoreErrorKind::Permission, "permission denied");
        assert_eq!(
            error.clone().with_grants("X").to_string(),
            "permission denied"
        );
        error.sqlstate = Some("42501".into());
        assert_eq!(
            error.with_grants("GRANT SELECT ON t").to_string(),
            "permission denied; the relay's role needs: GRANT SELECT ON t"
        );
    }
}
