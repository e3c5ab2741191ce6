//! TLS as libpq means it: `sslmode` and the files, on rustls.

use std::path::Path;

use rustls::ClientConfig;

use super::dsn::{Params, bad};
use super::error::StoreError;
use crate::tls::{self, Check, Files, Names, Trust};

/// Whether TLS is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    Never,
    /// Plain first, TLS if the server refuses that (`allow`).
    IfRefused,
    /// TLS first, plain if that fails (`prefer`).
    IfPossible,
    Always,
}

/// What `sslmode` and `sslrootcert` ask for together.
pub(super) fn policy(params: &Params) -> Result<(Use, Check), StoreError> {
    let root = params.get("sslrootcert");
    let system = root == Some("system");
    let default = if system { "verify-full" } else { "prefer" };
    let mode = params.get("sslmode").unwrap_or(default);
    if system && mode != "verify-full" {
        return Err(bad(format!(
            "combines sslrootcert=system with sslmode={mode}: public roots vouch for anybody, so use sslmode=verify-full"
        )));
    }
    Ok(match mode {
        "disable" => (Use::Never, Check::Nothing),
        "allow" => (Use::IfRefused, Check::Nothing),
        "prefer" => (Use::IfPossible, Check::Nothing),
        // As in libpq: a root certificate turns `require` into `verify-ca`.
        "require" if root.is_some() => (Use::Always, Check::Chain),
        "require" => (Use::Always, Check::Nothing),
        "verify-ca" => (Use::Always, Check::Chain),
        "verify-full" => (Use::Always, Check::ChainAndName),
        _ => {
            return Err(bad(
                "has an unknown sslmode: use disable, allow, prefer, require, verify-ca or verify-full",
            ));
        }
    })
}

/// The TLS configuration. Without `sslrootcert`, verification trusts the system's roots (libpq would look
/// for a file in the home directory, which a container does not have).
pub(super) fn config(
    params: &Params,
    check: Check,
    direct: bool,
) -> Result<ClientConfig, StoreError> {
    let client = match (params.get("sslcert"), params.get("sslkey")) {
        (None, None) => None,
        (Some(cert), Some(key)) => Some((Path::new(cert), Path::new(key))),
        _ => return Err(bad("needs sslcert and sslkey together")),
    };
    let root = params.get("sslrootcert").filter(|path| *path != "system");
    let files = Files {
        names: Names::database(),
        check,
        trust: Trust::new(root.map(Path::new)),
        client,
    };
    let mut config = tls::load(&files).map_err(StoreError::fatal)?;
    if direct {
        config.alpn_protocols = vec![b"postgresql".to_vec()];
    }
    Ok(config)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn sslmode_means_what_libpq_means() {
        for (text, expected) in [
            ("", (Use::IfPossible, Check::Nothing)),
            ("sslmode=disable", (Use::Never, Check::Nothing)),
            ("sslmode=allow", (Use::IfRefused, Check::Nothing)),
            ("sslmode=require", (Use::Always, Check::Nothing)),
            (
                "sslmode=require sslrootcert=/ca",
                (Use::Always, Check::Chain),
            ),
            ("sslmode=verify-ca", (Use::Always, Check::Chain)),
            ("sslmode=verify-full", (Use::Always, Check::ChainAndName)),
            ("sslrootcert=system", (Use::Always, Check::ChainAndName)),
        ] {
            let params = Params::parse(text).unwrap();
            assert_eq!(policy(&params).unwrap(), expected, "{text}");
        }
        for text in ["sslmode=sometimes", "sslmode=require sslrootcert=system"] {
            assert!(policy(&Params::parse(text).unwrap()).is_err(), "{text}");
        }
    }

    #[test]
    fn file_errors_name_the_setting_and_the_file() {
        for (text, says) in [
            ("sslrootcert=/none/ca.pem", "`/none/ca.pem`"),
            ("sslrootcert=/dev/null", "holds no certificate"),
        ] {
            let params = Params::parse(text).unwrap();
            let error = config(&params, Check::Chain, false)
                .unwrap_err()
                .to_string();
            assert!(error.contains(says), "{error}");
        }
        let params = Params::parse("sslcert=/none/c.pem").unwrap();
        let error = config(&params, Check::Nothing, false)
            .unwrap_err()
            .to_string();
        assert!(error.contains("sslkey"), "{error}");
    }
}
