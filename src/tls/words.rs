//! What a failed handshake means, for people.
//!
//! Known by the words of the TLS library: errors come through client libraries that keep nothing else.

use super::Names;

/// A sentence and the next step for the text of a failed handshake; `None` if the text is not about TLS.
/// `{ca}`, `{cert}`, `{key}` and `{url}` stand for what the settings are called.
const KNOWN: &[(&[&str], &str)] = &[
    (
        &["UnknownIssuer"],
        "the server's certificate is not signed by a trusted authority; name the one that signed it in {ca}",
    ),
    (
        &["not valid for name", "NotValidForName"],
        "the server's certificate is for another name than the one connected to; use a host that the certificate \
         names in {url}, or have a certificate made for this one",
    ),
    (
        &["certificate expired", ": Expired"],
        "the server's certificate has expired; renew the server's certificate, or check this machine's clock ({url} \
         asks for a certificate that is valid)",
    ),
    (
        &["not valid yet", "NotValidYet"],
        "the server's certificate is not valid yet; compare the clocks of server and relay ({url} asks for a certificate \
         that is valid)",
    ),
    (
        &["CaUsedAsEndEntity"],
        "the server's certificate is one of a certificate authority, which is only accepted from a server that is \
         named as trusted; name this certificate, or the one that signed it, in {ca}",
    ),
    (
        &["UnsupportedCertVersion"],
        "the server's certificate is of X.509 version 1, which is only accepted if it leads to a certificate that is \
         named as trusted; name the authority that signed it in {ca}",
    ),
    (
        &["UnsupportedSignatureAlgorithm"],
        "the server's certificate is signed in a way that is not supported, such as with SHA-1; have it signed with \
         SHA-256 or better",
    ),
    (
        &["BadSignature"],
        "the server's certificate or its handshake has a signature that does not fit; the certificate in {ca} may be \
         an older one of the same name, or the signature uses SHA-1 or a key that is too short",
    ),
    (
        &["InvalidPurpose", "extended key usage"],
        "the server's certificate was not made for servers; have one made whose extended key usage includes serverAuth",
    ),
    (
        &["UnhandledCriticalExtension"],
        "the server's certificate, or one that it leads to, has a critical extension that is not understood; have one \
         made without it",
    ),
    (
        &["BadEncoding", "ExtraDataAfterEndOfStream", "BadDer"],
        "the server's certificate cannot be read: it does not follow X.509; have it made again",
    ),
    (
        &["invalid peer certificate"],
        "the server's certificate is not accepted; `openssl s_client -showcerts` shows what it presents",
    ),
    (
        &["CertificateRequired"],
        "the server asks for a client certificate; set {cert} and {key}",
    ),
    (
        &["alert: UnknownCA"],
        "the server does not trust the authority of the client certificate in {cert}; use one that it knows",
    ),
    (
        &["alert: CertificateExpired"],
        "the client certificate in {cert} has expired; renew it",
    ),
    (
        &[
            "alert: BadCertificate",
            "alert: CertificateUnknown",
            "alert: UnsupportedCertificate",
            "alert: CertificateRevoked",
            "alert: AccessDenied",
            "alert: DecryptError",
        ],
        "the server refuses the client certificate in {cert}; its log says why",
    ),
    (
        &[
            "alert: HandshakeFailure",
            "alert: ProtocolVersion",
            "alert: InsufficientSecurity",
            "peer is incompatible",
        ],
        "server and relay have no TLS version or cipher in common; let the server offer TLS 1.2 or 1.3",
    ),
    (
        &["alert: UnrecognisedName", "alert: UnrecognizedName"],
        "the server does not know the host name it was called by; correct the host in {url}",
    ),
    (
        &["InvalidContentType", "received corrupt message"],
        "what answers there does not speak TLS; use the port for TLS in {url}, or a scheme without TLS",
    ),
    (
        &["tls handshake eof", "received fatal alert"],
        "the server ended the TLS handshake; its log says why",
    ),
];

/// What to say about the text of a failed handshake, in place of it; `None` if it is not known to be about TLS.
pub(crate) fn explain(names: &Names, error: &str) -> Option<String> {
    let (_, words) = KNOWN
        .iter()
        .find(|(parts, _)| parts.iter().any(|part| error.contains(part)))?;
    Some(
        words
            .replace("{ca}", &names.ca)
            .replace("{cert}", &names.cert)
            .replace("{key}", &names.key)
            .replace("{url}", &names.url),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_of_the_library_becomes_a_sentence_with_a_next_step() {
        use rustls::{AlertDescription, CertificateError as Of, Error, InvalidMessage};
        let other =
            |error: webpki::Error| Of::Other(rustls::OtherError(std::sync::Arc::new(error)));
        for error in [
            Error::InvalidCertificate(Of::UnknownIssuer),
            Error::InvalidCertificate(Of::NotValidForName),
            Error::InvalidCertificate(Of::Expired),
            Error::InvalidCertificate(Of::NotValidYet),
            Error::InvalidCertificate(Of::BadSignature),
            Error::InvalidCertificate(Of::BadEncoding),
            Error::InvalidCertificate(Of::InvalidPurpose),
            Error::InvalidCertificate(Of::UnhandledCriticalExtension),
            Error::InvalidCertificate(other(webpki::Error::CaUsedAsEndEntity)),
            Error::InvalidCertificate(other(webpki::Error::UnsupportedCertVersion)),
            Error::InvalidCertificate(other(webpki::Error::MalformedExtensions)),
            Error::AlertReceived(AlertDescription::CertificateRequired),
            Error::AlertReceived(AlertDescription::UnknownCA),
            Error::AlertReceived(AlertDescription::BadCertificate),
            Error::AlertReceived(AlertDescription::CertificateExpired),
            Error::AlertReceived(AlertDescription::HandshakeFailure),
            Error::AlertReceived(AlertDescription::ProtocolVersion),
            Error::AlertReceived(AlertDescription::InternalError),
            Error::InvalidMessage(InvalidMessage::InvalidContentType),
        ] {
            let text = error.to_string();
            let said = explain(&Names::database(), &text).unwrap_or_else(|| panic!("{text}"));
            assert!(said.contains("; "), "{text}: {said}");
            for raw in ["OtherError", "alert", "invalid peer", "Unknown", "{"] {
                assert!(!said.contains(raw), "{text}: {said}");
            }
        }
        assert_eq!(explain(&Names::database(), "connection refused"), None);
    }
}
