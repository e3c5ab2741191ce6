//! TLS for every client of the program: certificates from PEM files, which servers are trusted, and what to do about a
//! handshake that failed.
//!
//! Files are read again for every connection, so that renewed certificates are picked up by reconnecting.

mod chain;
mod files;
mod name;
mod verifier;
mod words;

#[cfg(any(feature = "rabbitmq", feature = "nats", feature = "http"))]
pub(crate) use files::half_a_pair;
pub(crate) use files::{Files, Trust, load};
pub(crate) use verifier::Check;
pub(crate) use words::explain;

use std::borrow::Cow;

/// What a client's settings are called, for errors.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    /// Names the trusted authorities.
    pub(crate) ca: Cow<'static, str>,
    /// Names the client certificate.
    pub(crate) cert: Cow<'static, str>,
    /// Names the client certificate's key.
    pub(crate) key: Cow<'static, str>,
    /// Names the server.
    pub(crate) url: Cow<'static, str>,
}

impl Names {
    /// Of settings that share a prefix, such as `OUTRIGGER_RABBITMQ`.
    #[cfg(any(feature = "rabbitmq", feature = "nats", feature = "http"))]
    pub(crate) fn of(prefix: &str) -> Self {
        let name = |end: &str| Cow::Owned(format!("{prefix}_{end}"));
        Self {
            ca: name("CA_FILE"),
            cert: name("CERT_FILE"),
            key: name("KEY_FILE"),
            url: name("URL"),
        }
    }

    /// Of the database, whose files are parameters of its URL.
    pub(crate) const fn database() -> Self {
        Self {
            ca: Cow::Borrowed("sslrootcert in OUTRIGGER_DATABASE_URL"),
            cert: Cow::Borrowed("sslcert in OUTRIGGER_DATABASE_URL"),
            key: Cow::Borrowed("sslkey in OUTRIGGER_DATABASE_URL"),
            url: Cow::Borrowed("OUTRIGGER_DATABASE_URL"),
        }
    }

    /// Of the collector of traces.
    #[cfg(feature = "otel")]
    pub(crate) const fn collector() -> Self {
        Self {
            ca: Cow::Borrowed("OTEL_EXPORTER_OTLP_CERTIFICATE"),
            cert: Cow::Borrowed("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE"),
            key: Cow::Borrowed("OTEL_EXPORTER_OTLP_CLIENT_KEY"),
            url: Cow::Borrowed("OTEL_EXPORTER_OTLP_ENDPOINT"),
        }
    }
}
