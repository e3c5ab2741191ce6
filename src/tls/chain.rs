//! From a server's certificate to a trusted one, for certificates that webpki refuses to read: those of X.509
//! version 1, which have no extensions, and those that may also sign others.
//!
//! Stricter than webpki where it can be: an intermediate with name constraints or with a critical extension that is not
//! understood here leads nowhere.

use rustls::pki_types::{
    CertificateDer, SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::{CertificateError, Error};
use webpki::RawPublicKeyEntity;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;
use x509_parser::oid_registry::OID_X509_EXT_NAME_CONSTRAINTS;
use x509_parser::prelude::FromDer as _;

/// Most certificates between the server's and a trusted one.
const DEPTH_MAX: usize = 6;

/// Reads a certificate of any version.
pub(super) fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Error> {
    match X509Certificate::from_der(certificate.as_ref()) {
        Ok(([], parsed)) => Ok(parsed),
        _ => Err(CertificateError::BadEncoding.into()),
    }
}

/// Whether the certificate is a trusted one itself, or was signed by one, be it by way of intermediates.
pub(super) fn verify(
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    trusted: &[CertificateDer<'_>],
    now: UnixTime,
    algorithms: &[&'static dyn SignatureVerificationAlgorithm],
) -> Result<(), Error> {
    let leaf = parse(end_entity)?;
    in_time(&leaf, now)?;
    understood(&leaf)?;
    if let Ok(Some(usage)) = leaf.extended_key_usage()
        && !(usage.value.any || usage.value.server_auth)
    {
        return Err(CertificateError::InvalidPurpose.into());
    }
    if trusted
        .iter()
        .any(|one| one.as_ref() == end_entity.as_ref())
    {
        return Ok(());
    }
    let anchors = trusted
        .iter()
        .map(parse)
        .collect::<Result<Vec<_>, Error>>()?;
    let between = intermediates
        .iter()
        .filter_map(|one| parse(one).ok())
        .collect::<Vec<_>>();
    // Which of the certificates still to be vouched for leads on is only known by trying: at most a handful of them.
    let mut current = leaf;
    for depth in 0..=DEPTH_MAX {
        if let Some(anchor) = issuer_among(&current, &anchors) {
            return signed_by(&current, anchor, algorithms);
        }
        let Some(issuer) = issuer_among(&current, &between) else {
            return Err(CertificateError::UnknownIssuer.into());
        };
        signed_by(&current, issuer, algorithms)?;
        in_time(issuer, now)?;
        understood(issuer)?;
        may_sign(issuer, depth)?;
        current = issuer.clone();
    }
    Err(CertificateError::UnknownIssuer.into())
}

fn issuer_among<'a, 'b>(
    certificate: &X509Certificate<'_>,
    among: &'a [X509Certificate<'b>],
) -> Option<&'a X509Certificate<'b>> {
    let issuer = certificate.tbs_certificate.issuer.as_raw();
    among
        .iter()
        .find(|one| one.tbs_certificate.subject.as_raw() == issuer)
}

fn signed_by(
    certificate: &X509Certificate<'_>,
    issuer: &X509Certificate<'_>,
    algorithms: &[&'static dyn SignatureVerificationAlgorithm],
) -> Result<(), Error> {
    let key = SubjectPublicKeyInfoDer::from(issuer.tbs_certificate.subject_pki.raw);
    let key = RawPublicKeyEntity::try_from(&key)
        .map_err(|_| Error::from(CertificateError::BadEncoding))?;
    let message = certificate.tbs_certificate.as_ref();
    let signature = certificate.signature_value.data.as_ref();
    // Whichever of them verifies: each is strong, and the key decides which it can be.
    let signed = algorithms
        .iter()
        .any(|algorithm| key.verify_signature(*algorithm, message, signature).is_ok());
    if signed {
        Ok(())
    } else {
        Err(CertificateError::BadSignature.into())
    }
}

fn in_time(certificate: &X509Certificate<'_>, now: UnixTime) -> Result<(), Error> {
    let validity = certificate.validity();
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if now < validity.not_before.timestamp() {
        return Err(CertificateError::NotValidYet.into());
    }
    if now > validity.not_after.timestamp() {
        return Err(CertificateError::Expired.into());
    }
    Ok(())
}

/// A critical extension must be understood, or the certificate refused.
fn understood(certificate: &X509Certificate<'_>) -> Result<(), Error> {
    let unknown = certificate.extensions().iter().any(|extension| {
        extension.oid == OID_X509_EXT_NAME_CONSTRAINTS
            || extension.critical
                && !matches!(
                    extension.parsed_extension(),
                    ParsedExtension::BasicConstraints(_)
                        | ParsedExtension::KeyUsage(_)
                        | ParsedExtension::ExtendedKeyUsage(_)
                        | ParsedExtension::SubjectAlternativeName(_)
                )
    });
    if unknown {
        return Err(CertificateError::UnhandledCriticalExtension.into());
    }
    Ok(())
}

/// An intermediate must be allowed to sign, with `below` others between it and the server's certificate.
fn may_sign(issuer: &X509Certificate<'_>, below: usize) -> Result<(), Error> {
    let refused = || Error::from(CertificateError::UnknownIssuer);
    let constraints = issuer.basic_constraints().map_err(|_| refused())?;
    let constraints = constraints.ok_or_else(refused)?.value;
    let long = constraints
        .path_len_constraint
        .is_some_and(|most| below > most as usize);
    let usage = issuer.key_usage().map_err(|_| refused())?;
    let signs = usage.is_none_or(|usage| usage.value.key_cert_sign());
    if constraints.ca && signs && !long {
        Ok(())
    } else {
        Err(refused())
    }
}
