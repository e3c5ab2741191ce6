//! What can go wrong with the database, sorted by what the relay does about it.

use std::error::Error as _;
use std::fmt;

use tokio_postgres::error::SqlState;

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
            Self::Fatal => "fatal",
        }
    }
}

/// A failed database operation. The text carries the whole chain of causes once, and no row contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreError {
    kind: StoreErrorKind,
    message: String,
    sqlstate: Option<String>,
}

impl StoreError {
    /// An error of our own making.
    pub fn new(kind: StoreErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            sqlstate: None,
        }
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

    /// Whether the server is out of reach, short of something, or must not be written to: nothing that a single row could be
    /// the cause of.
    pub(super) fn is_outage(&self) -> bool {
        let outages = ["08", "25006", "26", "28", "53", "57P", "58"];
        self.sqlstate()
            .is_none_or(|state| outages.iter().any(|of| state.starts_with(of)))
    }

    /// Adds the next step to a permission error.
    pub(super) fn with_grants(mut self, hint: &str) -> Self {
        if self.sqlstate.as_deref() == Some(SqlState::INSUFFICIENT_PRIVILEGE.code()) {
            self.message = format!("{}; the relay's role needs: {hint}", self.message);
        }
        self
    }

    /// Says what was being done.
    pub(super) fn during(mut self, what: &str) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for StoreError {}

impl From<tokio_postgres::Error> for StoreError {
    fn from(error: tokio_postgres::Error) -> Self {
        if let Some(db) = error.as_db_error() {
            let code = db.code().code();
            // DETAIL, CONTEXT and, for data exceptions, the message itself quote row values.
            let mut message = if code.starts_with("22") {
                format!("the server refused a value (SQLSTATE {code})")
            } else {
                format!("{} (SQLSTATE {code})", db.message())
            };
            if let Some(hint) = db.hint().filter(|_| !code.starts_with("22")) {
                message = format!("{message}; {hint}");
            }
            if let Some(remedy) = code.starts_with("28").then(|| remedy(&message)).flatten() {
                message = format!("{message}; {remedy}");
            }
            return Self {
                kind: kind_of(db.code()),
                message,
                sqlstate: Some(code.to_owned()),
            };
        }
        if let Some(own) = error.source().and_then(|cause| cause.downcast_ref()) {
            return Self::clone(own);
        }
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            let text = inner.to_string();
            if !message.contains(&text) {
                message = format!("{message}: {text}");
            }
            cause = inner.source();
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
        if let Some(explained) = tls::explain(&Names::database(), &message) {
            message = format!("cannot make a TLS connection: {explained}");
            if message.contains("is for another name") {
                message.push_str(", or accept any name by `sslmode=verify-ca`");
            }
        } else if let Some(remedy) = remedy(&message) {
            message = format!("{message}; {remedy}");
        }
        Self::new(kind, message)
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
        (
            "authentication failed",
            "check user and password in OUTRIGGER_DATABASE_URL",
        ),
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
    use StoreErrorKind::{Fatal, Permission, Schema, Unavailable};
    let code = state.code();
    match code {
        // Missing or changed tables, columns, functions; wrong types; no such database or schema.
        "42P01" | "42703" | "42883" | "42704" | "42804" | "42809" | "42P10" | "42846" | "428C9"
        | "3F000" | "3D000" | "0A000" => Schema,
        "42501" => Permission,
        // Read-only: we are on a standby, or were failed over to one.
        "25006" => Unavailable,
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
        use StoreErrorKind::{Fatal, Permission, Schema, Unavailable};
        for (code, kind) in [
            ("57P01", Unavailable),
            ("53300", Unavailable),
            ("40001", Unavailable),
            ("25006", Unavailable),
            ("42P01", Schema),
            ("42703", Schema),
            ("42501", Permission),
            ("28P01", Permission),
            ("42601", Fatal),
            ("23514", Fatal),
        ] {
            assert_eq!(kind_of(&SqlState::from_code(code)), kind, "{code}");
        }
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
