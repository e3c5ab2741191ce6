//! Whether a certificate is for a host, as libpq sees it: by its alternative names or, if it has none, by its common name.

use std::net::IpAddr;

use rustls::pki_types::{CertificateDer, ServerName};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

use super::chain::parse;

/// Whether one of the alternative names fits.
pub(super) fn fits(certificate: &CertificateDer<'_>, server: &ServerName<'_>) -> bool {
    parse(certificate).is_ok_and(|parsed| {
        alternatives(&parsed)
            .iter()
            .any(|name| match (name, server) {
                (GeneralName::DNSName(pattern), ServerName::DnsName(host)) => {
                    matches(pattern, host.as_ref())
                }
                (GeneralName::IPAddress(octets), ServerName::IpAddress(address)) => {
                    match IpAddr::from(*address) {
                        IpAddr::V4(address) => *octets == address.octets(),
                        IpAddr::V6(address) => *octets == address.octets(),
                    }
                }
                _ => false,
            })
    })
}

/// Whether the certificate has no alternative name of a host, and its common name is this one.
pub(super) fn is_common_name(certificate: &CertificateDer<'_>, server: &ServerName<'_>) -> bool {
    let Ok(parsed) = parse(certificate) else {
        return false;
    };
    let has_others = alternatives(&parsed)
        .iter()
        .any(|name| matches!(name, GeneralName::DNSName(_) | GeneralName::IPAddress(_)));
    if has_others {
        return false;
    }
    let mut common = parsed.subject().iter_common_name();
    let Some(Ok(common)) = common.next().map(|name| name.as_str()) else {
        return false;
    };
    match server {
        ServerName::DnsName(host) => matches(common, host.as_ref()),
        ServerName::IpAddress(address) => {
            let address = IpAddr::from(*address);
            common.parse::<IpAddr>().is_ok_and(|own| own == address)
        }
        _ => false,
    }
}

fn alternatives<'a>(parsed: &'a X509Certificate<'_>) -> Vec<GeneralName<'a>> {
    match parsed.subject_alternative_name() {
        Ok(Some(names)) => names.value.general_names.clone(),
        _ => Vec::new(),
    }
}

/// A `*` stands for the whole first label, and for nothing else.
fn matches(pattern: &str, host: &str) -> bool {
    let host = host.trim_end_matches('.');
    if pattern.eq_ignore_ascii_case(host) {
        return !pattern.is_empty();
    }
    let (Some(parent), Some((label, rest))) = (pattern.strip_prefix("*."), host.split_once('.'))
    else {
        return false;
    };
    !label.is_empty() && parent.contains('.') && parent.eq_ignore_ascii_case(rest)
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn a_wildcard_stands_for_one_label() {
        for (pattern, host, fits) in [
            ("db.example.com", "DB.example.com", true),
            ("db.example.com", "db.example.com.", true),
            ("*.example.com", "db.example.com", true),
            ("*.example.com", "a.db.example.com", false),
            ("*.example.com", "example.com", false),
            ("*.com", "example.com", false),
            ("*", "localhost", false),
            ("d*.example.com", "db.example.com", false),
            ("", "", false),
        ] {
            assert_eq!(matches(pattern, host), fits, "{pattern} {host}");
        }
    }
}
