//! From PEM files to a client's configuration.

use std::path::Path;
#[cfg(any(feature = "rabbitmq", feature = "nats", feature = "http"))]
use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::Names;
use super::verifier::{Check, Verifier};

/// Whose word is taken for who a server is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Trust<'a> {
    /// The authorities that the system trusts.
    System,
    /// The certificates in this PEM file, and no others.
    File(&'a Path),
}

impl<'a> Trust<'a> {
    /// The file, or without one the system.
    pub(crate) fn new(file: Option<&'a Path>) -> Self {
        file.map_or(Self::System, Self::File)
    }
}

/// What a client's settings say about TLS.
#[derive(Debug, Clone)]
pub(crate) struct Files<'a> {
    /// What the settings are called.
    pub(crate) names: Names,
    /// How the server's certificate is checked.
    pub(crate) check: Check,
    /// Whom to trust.
    pub(crate) trust: Trust<'a>,
    /// The client's certificate and its key.
    pub(crate) client: Option<(&'a Path, &'a Path)>,
}

#[cfg(any(feature = "rabbitmq", feature = "nats", feature = "http"))]
impl<'a> Files<'a> {
    /// Of settings that share a prefix, such as `OUTRIGGER_RABBITMQ`. The server is always verified in full.
    pub(crate) fn of(
        prefix: &str,
        ca_file: Option<&'a PathBuf>,
        cert_file: Option<&'a PathBuf>,
        key_file: Option<&'a PathBuf>,
    ) -> Self {
        Self {
            names: Names::of(prefix),
            check: Check::ChainAndName,
            trust: Trust::new(ca_file.map(PathBuf::as_path)),
            client: cert_file
                .zip(key_file)
                .map(|(cert, key)| (cert.as_path(), key.as_path())),
        }
    }
}

/// What is wrong with a client certificate without its key, or a key without its certificate.
#[cfg(any(feature = "rabbitmq", feature = "nats", feature = "http"))]
pub(crate) fn half_a_pair(
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
pub(crate) fn load(files: &Files<'_>) -> Result<ClientConfig, String> {
    let names = &files.names;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = match files.check {
        Check::Nothing => Verifier::lenient(&provider),
        check => {
            let (trusted, roots) = match files.trust {
                Trust::File(path) => {
                    let trusted = certificates(&names.ca, path)?;
                    let roots = authorities(&names.ca, path, &trusted)?;
                    (trusted, roots)
                }
                Trust::System => (Vec::new(), system_authorities(names)?),
            };
            Verifier::new(&provider, roots, trusted, check)
                .map_err(|error| format!("{}: {error}", names.ca))?
        }
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("cannot set up TLS: {error}"))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let Some((cert_file, key_file)) = files.client else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = certificates(&names.cert, cert_file)?;
    let key = PrivateKeyDer::from_pem_file(key_file)
        .map_err(|error| unreadable(&names.key, key_file, "private key", &error))?;
    builder.with_client_auth_cert(chain, key).map_err(|error| {
        format!(
            "{} and {} do not make a usable client certificate ({error}); check that they belong \
             together",
            names.cert, names.key
        )
    })
}

fn authorities(
    name: &str,
    path: &Path,
    trusted: &[CertificateDer<'static>],
) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in trusted {
        roots.add(certificate.clone()).map_err(|_| {
            format!(
                "{name}: `{}` holds a certificate that cannot be read as one; make it again",
                path.display()
            )
        })?;
    }
    Ok(roots)
}

fn system_authorities(names: &Names) -> Result<RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err(format!(
            "the system has no certificate authorities to verify the server with; install \
             `ca-certificates` or set {}",
            names.ca
        ));
    }
    Ok(roots)
}

fn certificates(name: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unreadable(name, path, "certificates", &error))?;
    if certificates.is_empty() {
        return Err(format!(
            "{name}: `{}` holds no certificate; it must be a PEM file",
            path.display()
        ));
    }
    Ok(certificates)
}

fn unreadable(
    name: &str,
    path: &Path,
    what: &str,
    error: &rustls::pki_types::pem::Error,
) -> String {
    use rustls::pki_types::pem::Error;
    let why = match error {
        Error::Io(error) => error.to_string(),
        Error::NoItemsFound => format!("it holds no {what} in PEM format"),
        _ => "it is not valid PEM".to_owned(),
    };
    format!(
        "{name}: cannot read {what} from `{}`: {why}",
        path.display()
    )
}
