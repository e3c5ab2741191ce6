//! TLS client configuration for `amqps://`.
//!
//! Read again for every connection, so that renewed certificates are picked up by reconnecting.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use super::settings::RabbitMqSettings;

/// Builds the configuration. Reads files and the system's certificates: blocking.
pub(super) fn load(settings: &RabbitMqSettings) -> Result<Arc<ClientConfig>, String> {
    let roots = match &settings.ca_file {
        Some(path) => authorities("OUTRIGGER_RABBITMQ_CA_FILE", path)?,
        None => system_authorities()?,
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("cannot set up TLS: {error}"))?
        .with_root_certificates(roots);
    let config = match (&settings.cert_file, &settings.key_file) {
        (Some(cert_file), Some(key_file)) => {
            let chain = certificates("OUTRIGGER_RABBITMQ_CERT_FILE", cert_file)?;
            let key = PrivateKeyDer::from_pem_file(key_file).map_err(|error| {
                unreadable(
                    "OUTRIGGER_RABBITMQ_KEY_FILE",
                    key_file,
                    "private key",
                    &error,
                )
            })?;
            builder.with_client_auth_cert(chain, key).map_err(|error| {
                format!(
                    "OUTRIGGER_RABBITMQ_CERT_FILE and OUTRIGGER_RABBITMQ_KEY_FILE do not make a \
                     usable client certificate ({error}); check that they belong together"
                )
            })?
        }
        _ => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
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

fn system_authorities() -> Result<RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err(
            "the system has no certificate authorities to verify the broker with; install \
             `ca-certificates` or set OUTRIGGER_RABBITMQ_CA_FILE"
                .to_owned(),
        );
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
