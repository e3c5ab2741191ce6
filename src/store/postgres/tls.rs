//! TLS as libpq means it: `sslmode` and the files, on rustls.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};

use super::dsn::{Params, bad};
use super::error::StoreError;

/// How the server's certificate is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verify {
    /// Not at all: encryption against listeners only.
    Nothing,
    /// It must lead to a trusted root.
    Chain,
    /// It must lead to a trusted root and be for this host.
    ChainAndName,
}

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
pub(super) fn policy(params: &Params) -> Result<(Use, Verify), StoreError> {
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
        "disable" => (Use::Never, Verify::Nothing),
        "allow" => (Use::IfRefused, Verify::Nothing),
        "prefer" => (Use::IfPossible, Verify::Nothing),
        // As in libpq: a root certificate turns `require` into `verify-ca`.
        "require" if root.is_some() => (Use::Always, Verify::Chain),
        "require" => (Use::Always, Verify::Nothing),
        "verify-ca" => (Use::Always, Verify::Chain),
        "verify-full" => (Use::Always, Verify::ChainAndName),
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
    verify: Verify,
    direct: bool,
) -> Result<ClientConfig, StoreError> {
    let provider = Arc::new(ring::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> = match verify {
        Verify::Nothing => Arc::new(Lenient::new(&provider, None)),
        Verify::Chain | Verify::ChainAndName => {
            let strict = WebPkiServerVerifier::builder_with_provider(
                Arc::new(roots(params)?),
                provider.clone(),
            )
            .build()
            .map_err(|error| bad(format!("has an unusable sslrootcert: {error}")))?;
            if verify == Verify::ChainAndName {
                strict
            } else {
                Arc::new(Lenient::new(&provider, Some(strict)))
            }
        }
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| StoreError::fatal(format!("cannot set up TLS: {error}")))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match (params.get("sslcert"), params.get("sslkey")) {
        (None, None) => builder.with_no_client_auth(),
        (Some(cert), Some(key)) => {
            let chain = certificates(cert, "sslcert")?;
            let key = PrivateKeyDer::from_pem_file(key)
                .map_err(|error| bad(format!("has an unreadable sslkey `{key}`: {error}")))?;
            builder.with_client_auth_cert(chain, key).map_err(|error| {
                bad(format!(
                    "has an sslcert and sslkey that do not fit: {error}"
                ))
            })?
        }
        _ => return Err(bad("needs sslcert and sslkey together")),
    };
    if direct {
        config.alpn_protocols = vec![b"postgresql".to_vec()];
    }
    Ok(config)
}

fn roots(params: &Params) -> Result<RootCertStore, StoreError> {
    let mut store = RootCertStore::empty();
    match params.get("sslrootcert") {
        Some(path) if path != "system" => {
            for certificate in certificates(path, "sslrootcert")? {
                store.add(certificate).map_err(|error| {
                    bad(format!(
                        "has an unusable certificate in sslrootcert `{path}`: {error}"
                    ))
                })?;
            }
        }
        _ => {
            let found = rustls_native_certs::load_native_certs();
            store.add_parsable_certificates(found.certs);
            if store.is_empty() {
                let why = found
                    .errors
                    .first()
                    .map(|error| format!(" ({error})"))
                    .unwrap_or_default();
                return Err(bad(format!(
                    "asks for verification, but no system certificates were found{why}: set sslrootcert or SSL_CERT_FILE"
                )));
            }
        }
    }
    Ok(store)
}

fn certificates(path: &str, name: &str) -> Result<Vec<CertificateDer<'static>>, StoreError> {
    let unreadable = |error| bad(format!("has an unreadable {name} `{path}`: {error}"));
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .map_err(unreadable)?
        .collect::<Result<_, _>>()
        .map_err(unreadable)?;
    if found.is_empty() {
        return Err(bad(format!(
            "has an {name} `{path}` without any PEM certificate"
        )));
    }
    Ok(found)
}

/// Accepts any certificate, or any that leads to a trusted root whatever its name. The handshake's signature is
/// always checked, so the peer does hold the certificate's key.
#[derive(Debug)]
struct Lenient {
    chain: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl Lenient {
    fn new(provider: &Arc<CryptoProvider>, chain: Option<Arc<WebPkiServerVerifier>>) -> Self {
        Self {
            chain,
            provider: provider.clone(),
        }
    }
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(chain) = &self.chain else {
            return Ok(ServerCertVerified::assertion());
        };
        match chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // The name is compared after the chain was found good.
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn sslmode_means_what_libpq_means() {
        for (text, expected) in [
            ("", (Use::IfPossible, Verify::Nothing)),
            ("sslmode=disable", (Use::Never, Verify::Nothing)),
            ("sslmode=allow", (Use::IfRefused, Verify::Nothing)),
            ("sslmode=require", (Use::Always, Verify::Nothing)),
            (
                "sslmode=require sslrootcert=/ca",
                (Use::Always, Verify::Chain),
            ),
            ("sslmode=verify-ca", (Use::Always, Verify::Chain)),
            ("sslmode=verify-full", (Use::Always, Verify::ChainAndName)),
            ("sslrootcert=system", (Use::Always, Verify::ChainAndName)),
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
            ("sslrootcert=/none/ca.pem", "sslrootcert `/none/ca.pem`"),
            ("sslrootcert=/dev/null", "without any PEM certificate"),
        ] {
            let params = Params::parse(text).unwrap();
            let error = config(&params, Verify::Chain, false)
                .unwrap_err()
                .to_string();
            assert!(error.contains(says), "{error}");
        }
        let params = Params::parse("sslcert=/none/c.pem").unwrap();
        let error = config(&params, Verify::Nothing, false)
            .unwrap_err()
            .to_string();
        assert!(error.contains("sslkey"), "{error}");
    }
}
