//! TLS client configuration from PEM files.
//!
//! Read again for every connection, so that renewed certificates are picked up by reconnecting.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

/// What a sink's settings say about TLS.
#[derive(Debug, Clone, Copy)]
pub(super) struct Files<'a> {
    /// What its variables begin with, such as `OUTRIGGER_RABBITMQ`.
    pub(super) prefix: &'a str,
    pub(super) ca_file: Option<&'a PathBuf>,
    pub(super) cert_file: Option<&'a PathBuf>,
    pub(super) key_file: Option<&'a PathBuf>,
}

/// What is wrong with a client certificate without its key, or a key without its certificate.
pub(super) fn half_a_pair(
    prefix: &str,
    cert_file: Option<&PathBuf>,
    key_file: Option<&PathBuf>,
) -> Option<String> {
    let (one, other) = match (cert_file, key_file) {
        (Some(_), None) => ("CERT_FILE", "KEY_FILE"),
        (None, Some(_)) => ("KEY_FILE", "CERT_FILE"),
        _ => return None,
    };
    Some(format!(
        "{prefix}_{one} is set without {prefix}_{other}; a client certificate needs both"
    ))
}

/// Builds the configuration. Reads files and the system's certificates: blocking.
pub(super) fn load(files: Files<'_>) -> Result<Arc<ClientConfig>, String> {
    let variable = |name: &str| format!("{}_{name}", files.prefix);
    let roots = match files.ca_file {
        Some(path) => authorities(&variable("CA_FILE"), path)?,
        None => system_authorities(files.prefix)?,
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("cannot set up TLS: {error}"))?
        .with_root_certificates(roots);
    let config = match (files.cert_file, files.key_file) {
        (Some(cert_file), Some(key_file)) => {
            let chain = certificates(&variable("CERT_FILE"), cert_file)?;
            let key = PrivateKeyDer::from_pem_file(key_file).map_err(|error| {
                unreadable(&variable("KEY_FILE"), key_file, "private key", &error)
            })?;
            builder.with_client_auth_cert(chain, key).map_err(|error| {
                format!(
                    "{} and {} do not make a usable client certificate ({error}); check that they \
                     belong together",
                    variable("CERT_FILE"),
                    variable("KEY_FILE")
                )
            })?
        }
        _ => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

/// What to do about a handshake that failed; begins with `; `, and is empty if nothing is known about it. Reads the
/// error's words: they come through libraries that keep nothing else.
pub(super) fn remedy(prefix: &str, error: &str) -> String {
    let known: &[(&str, &str)] = &[
        (
            "UnknownIssuer",
            "name the authority that signed the server's certificate in {}_CA_FILE",
        ),
        (
            "not valid for name",
            "connect by a name that is in the certificate: change the host in {}_URL, or the certificate",
        ),
        (
            "certificate expired",
            "renew the server's certificate: {}_URL asks for TLS, which is always verified",
        ),
        (
            "certificate not valid yet",
            "compare the clocks: {}_URL asks for TLS, which is always verified",
        ),
        (
            "CertificateRequired",
            "the server asks for a client certificate: set {}_CERT_FILE and {}_KEY_FILE",
        ),
        (
            "alert: UnknownCA",
            "the server does not trust the authority of {}_CERT_FILE: use a certificate that it knows",
        ),
        (
            "alert: CertificateExpired",
            "renew the client certificate in {}_CERT_FILE",
        ),
        (
            "alert: BadCertificate",
            "the server refuses the client certificate in {}_CERT_FILE: see its log",
        ),
    ];
    let fitting = known.iter().find(|(part, _)| error.contains(part));
    fitting.map_or_else(String::new, |(_, remedy)| {
        format!("; {}", remedy.replace("{}", prefix))
    })
}

fn authorities(variable: &str, path: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(variable, path)? {
        roots.add(certificate).map_err(|error| {
            format!(
                "{variable}: `{}` holds a certificate that cannot be an authority ({error})",
                path.display()
            )
        })?;
    }
    Ok(roots)
}

fn system_authorities(prefix: &str) -> Result<RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err(format!(
            "the system has no certificate authorities to verify the server with; install \
             `ca-certificates` or set {prefix}_CA_FILE"
        ));
    }
    Ok(roots)
}

fn certificates(variable: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unreadable(variable, path, "certificates", &error))?;
    if certificates.is_empty() {
        return Err(format!(
            "{variable}: `{}` holds no certificate; it must be a PEM file",
            path.display()
        ));
    }
    Ok(certificates)
}

fn unreadable(
    variable: &str,
    path: &Path,
    what: &str,
    error: &rustls::pki_types::pem::Error,
) -> String {
    format!(
        "{variable}: cannot read {what} from `{}`: {error}",
        path.display()
    )
}
