//! Whether the server is who it should be.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::VerifierBuilderError;
use rustls::{
    CertificateError, DigitallySignedStruct, Error, PeerMisbehaved, RootCertStore, SignatureScheme,
};
use webpki::RawPublicKeyEntity;

use super::{chain, name};

/// How a server's certificate is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Check {
    /// Not at all: encryption against listeners only.
    Nothing,
    /// It must lead to a trusted certificate.
    Chain,
    /// It must lead to a trusted certificate and be for this host.
    ChainAndName,
}

/// Verifies as webpki does and, where the trusted certificates are named by the user, also accepts what OpenSSL and so
/// libpq accept: certificates of X.509 version 1, servers that use an authority's certificate, a trusted certificate that
/// is the server's own, and names that are in the common name alone. Public authorities issue none of these, so with the
/// system's authorities webpki alone decides.
///
/// The handshake's signature is always checked, so the peer does hold the certificate's key.
#[derive(Debug)]
pub(super) struct Verifier {
    /// None: any certificate will do.
    webpki: Option<Arc<WebPkiServerVerifier>>,
    /// Named by the user.
    trusted: Vec<CertificateDer<'static>>,
    check: Check,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    /// Accepts any certificate.
    pub(super) fn lenient(provider: &CryptoProvider) -> Self {
        Self {
            webpki: None,
            trusted: Vec::new(),
            check: Check::Nothing,
            algorithms: provider.signature_verification_algorithms,
        }
    }

    pub(super) fn new(
        provider: &Arc<CryptoProvider>,
        roots: RootCertStore,
        trusted: Vec<CertificateDer<'static>>,
        check: Check,
    ) -> Result<Self, VerifierBuilderError> {
        let webpki =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
                .build()?;
        Ok(Self {
            webpki: Some(webpki),
            trusted,
            check,
            algorithms: provider.signature_verification_algorithms,
        })
    }

    fn verify_name(
        &self,
        certificate: &CertificateDer<'_>,
        server: &ServerName<'_>,
        refusal: Error,
    ) -> Result<ServerCertVerified, Error> {
        let fits = self.check == Check::Chain
            || !self.trusted.is_empty() && name::is_common_name(certificate, server);
        if fits {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(refusal)
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(webpki) = &self.webpki else {
            return Ok(ServerCertVerified::assertion());
        };
        let found =
            webpki.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        let Err(Error::InvalidCertificate(refusal)) = found else {
            return found;
        };
        match refusal {
            // The name is compared after the chain was found good.
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                self.verify_name(end_entity, server_name, refusal.into())
            }
            // What webpki does not read, or does not take for a server's.
            CertificateError::Other(_) | CertificateError::BadEncoding
                if !self.trusted.is_empty() =>
            {
                chain::verify(
                    end_entity,
                    intermediates,
                    &self.trusted,
                    now,
                    self.algorithms.all,
                )?;
                if name::fits(end_entity, server_name) {
                    return Ok(ServerCertVerified::assertion());
                }
                let refusal = CertificateError::NotValidForName.into();
                self.verify_name(end_entity, server_name, refusal)
            }
            refusal => Err(refusal.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = public_key(cert)?;
        let key = RawPublicKeyEntity::try_from(&key).map_err(|_| bad_key())?;
        let possible = self
            .algorithms
            .mapping
            .iter()
            .find(|(scheme, _)| *scheme == dss.scheme)
            .map(|(_, algorithms)| *algorithms)
            .ok_or(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme)?;
        // Several curves share a scheme, and only one of them is the key's.
        if possible.iter().any(|algorithm| {
            key.verify_signature(*algorithm, message, dss.signature())
                .is_ok()
        }) {
            Ok(HandshakeSignatureValid::assertion())
        } else {
            Err(CertificateError::BadSignature.into())
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = public_key(cert)?;
        verify_tls13_signature_with_raw_key(message, &key, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn public_key(certificate: &CertificateDer<'_>) -> Result<SubjectPublicKeyInfoDer<'static>, Error> {
    let parsed = chain::parse(certificate)?;
    Ok(SubjectPublicKeyInfoDer::from(
        parsed.tbs_certificate.subject_pki.raw.to_vec(),
    ))
}

fn bad_key() -> Error {
    CertificateError::BadEncoding.into()
}
