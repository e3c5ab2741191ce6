//! Certificate authorities and what they sign, made in memory, and handed out as PEM files.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tempfile::TempDir;
use tokio_rustls::TlsAcceptor;

/// What a certificate is for, and whether it still is.
#[derive(Clone, Copy)]
enum For<'a> {
    Server(&'a str),
    Client(&'a str),
}

/// PEM texts by file name. `ca` is the authority that all trust; `other` is one that nobody trusts yet.
static PEM: LazyLock<BTreeMap<String, String>> = LazyLock::new(|| {
    let mut files = BTreeMap::new();
    for (authority, prefix) in [("ca", ""), ("other", "foreign-")] {
        let key = KeyPair::generate().unwrap();
        let mut ca = params(authority);
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = ca.self_signed(&key).unwrap().pem();
        files.insert(format!("{authority}.pem"), pem);
        files.insert(format!("{authority}.key"), key.serialize_pem());
        let issuer = Issuer::new(ca, key);
        for (name, wanted, valid) in [
            ("server", For::Server("localhost"), true),
            ("expired", For::Server("localhost"), false),
            ("client", For::Client("certuser"), true),
            ("expired-client", For::Client("certuser"), false),
            ("stranger", For::Client("stranger"), true),
        ] {
            let (certificate, key) = signed(&issuer, wanted, valid);
            files.insert(format!("{prefix}{name}.pem"), certificate);
            files.insert(format!("{prefix}{name}.key"), key);
        }
    }
    files
});

fn signed(issuer: &Issuer<'_, KeyPair>, wanted: For<'_>, valid: bool) -> (String, String) {
    let mut params = match wanted {
        For::Server(name) | For::Client(name) => params(name),
    };
    match wanted {
        For::Server(host) => {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            params.subject_alt_names = vec![SanType::DnsName(host.try_into().unwrap())];
        }
        For::Client(_) => params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth],
    }
    if !valid {
        params.not_after = date_time_ymd(2021, 1, 1);
    }
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, issuer).unwrap();
    (certificate.pem(), key.serialize_pem())
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(2020, 1, 1);
    params.use_authority_key_identifier_extension = true;
    params
}

/// The text of one of the files.
pub fn pem(name: &str) -> &'static str {
    PEM.get(name).unwrap_or_else(|| panic!("no {name} is made"))
}

/// Writes a file the way secret managers replace one: whole, by a rename.
pub fn write(dir: &Path, name: &str, text: &str) {
    let fresh = dir.join(format!("{name}.new"));
    fs::write(&fresh, text).unwrap();
    if name == "passwords" {
        // As libpq, the relay does not use one that others may read.
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600)).unwrap();
    }
    fs::rename(&fresh, dir.join(name)).unwrap();
}

/// A folder with all certificates and keys, as a client has them.
pub struct Files(TempDir);

impl Files {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("outrigger-tls-")
            .tempdir()
            .unwrap();
        for (name, text) in PEM.iter() {
            write(dir.path(), name, text);
        }
        Self(dir)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Replaces a file.
    pub fn write(&self, name: &str, text: &str) {
        write(self.0.path(), name, text);
    }
}

/// Writes the three files of a server: its certificate, its key, and the authority whose clients it trusts.
pub fn install(dir: &Path, certificate: &str, authority: &str) {
    for (name, from) in [
        ("server.pem", format!("{certificate}.pem")),
        ("server.key", format!("{certificate}.key")),
        ("ca.pem", format!("{authority}.pem")),
    ] {
        write(dir, name, pem(&from));
    }
    // PostgreSQL insists that nobody else can read it.
    fs::set_permissions(dir.join("server.key"), fs::Permissions::from_mode(0o600)).unwrap();
}

/// The server's end of TLS, with such a certificate. `asks`: clients must show one of `ca`.
pub fn acceptor(certificate: &str, asks: bool) -> TlsAcceptor {
    let chain = CertificateDer::pem_slice_iter(pem(&format!("{certificate}.pem")).as_bytes());
    let key = pem(&format!("{certificate}.key"));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = if asks {
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_slice(pem("ca.pem").as_bytes());
        roots.add(ca.unwrap()).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
        builder.with_client_cert_verifier(verifier.build().unwrap())
    } else {
        builder.with_no_client_auth()
    };
    let config = builder.with_single_cert(
        chain.map(Result::unwrap).collect(),
        PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
    );
    Arc::new(config.unwrap()).into()
}
