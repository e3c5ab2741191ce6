//! Who we are to the server. Files are read again for every connection, so that renewed credentials are
//! picked up by reconnecting.

use std::path::Path;

use async_nats::Auth;
use nkeys::KeyPair;
use secrecy::{ExposeSecret, SecretString};

use super::settings::{NatsSettings, Server};

/// The begin of the lines around the two parts of a credentials file.
const JWT: &str = "NATS USER JWT";
const SEED: &str = "USER NKEY SEED";

/// What is presented to a server; signatures are made over its nonce.
pub(super) struct Credentials {
    auth: Auth,
    key: Option<KeyPair>,
}

impl Credentials {
    /// Collects them for a server. Reads files: blocking. Never shows a secret in its error.
    pub(super) fn load(settings: &NatsSettings, server: &Server) -> Result<Self, String> {
        let exposed = |secret: &SecretString| secret.expose_secret().to_owned();
        let mut auth = Auth::new();
        auth.username = server.user.clone();
        auth.password = server.password.as_ref().map(exposed);
        auth.token = server.token.as_ref().map(exposed);
        let mut key = None;
        if let Some(path) = &settings.credentials_file {
            let text = std::fs::read_to_string(path).map_err(|error| {
                format!(
                    "OUTRIGGER_NATS_CREDENTIALS_FILE: cannot read `{}`: {error}",
                    path.display()
                )
            })?;
            let (jwt, pair) = parse(&text, path)?;
            auth.jwt = Some(jwt);
            key = Some(pair);
        } else if let Some(seed) = &settings.nkey_seed {
            let pair = KeyPair::from_seed(seed.expose_secret().trim()).map_err(|_| {
                "OUTRIGGER_NATS_NKEY_SEED is no seed of an NKey; it begins with `SU`".to_owned()
            })?;
            auth.nkey = Some(pair.public_key());
            key = Some(pair);
        }
        Ok(Self { auth, key })
    }

    /// The answer to a server's challenge.
    pub(super) fn answer(&self, nonce: &[u8]) -> Result<Auth, String> {
        let mut auth = self.auth.clone();
        if let Some(key) = &self.key {
            let signature = key.sign(nonce).map_err(|error| error.to_string())?;
            auth.signature = Some(signature);
        }
        Ok(auth)
    }
}

fn parse(text: &str, path: &Path) -> Result<(String, KeyPair), String> {
    let incomplete = |what: &str| {
        format!(
            "OUTRIGGER_NATS_CREDENTIALS_FILE: `{}` holds no {what}; it must be a credentials file as `nsc` writes it",
            path.display()
        )
    };
    let jwt = section(text, JWT).ok_or_else(|| incomplete("user JWT"))?;
    let seed = section(text, SEED).ok_or_else(|| incomplete("NKey seed"))?;
    let key = KeyPair::from_seed(seed).map_err(|_| incomplete("valid NKey seed"))?;
    Ok((jwt.to_owned(), key))
}

/// The line after `-----BEGIN name-----`.
fn section<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let begin = format!("BEGIN {name}");
    let mut lines = text.lines().map(str::trim);
    lines.find(|line| line.starts_with("---") && line.contains(&begin))?;
    lines.find(|line| !line.is_empty() && !line.starts_with("---"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_credentials_file_has_two_parts() {
        let pair = KeyPair::new_user();
        let seed = pair.seed().unwrap();
        let text = format!(
            "-----BEGIN NATS USER JWT-----\neyJ0.abc\n------END NATS USER JWT------\n\n\
             ************************* IMPORTANT *************************\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        let path = Path::new("/run/orders.creds");
        let (jwt, key) = parse(&text, path).unwrap();
        assert_eq!(jwt, "eyJ0.abc");
        assert_eq!(key.public_key(), pair.public_key());
        for broken in [
            "",
            &text.replace("USER NKEY", "X"),
            &text.replace(&seed, "S3CRET"),
        ] {
            let error = parse(broken, path).err().unwrap();
            assert!(error.contains("/run/orders.creds"), "{error}");
            assert!(!error.contains("S3CRET"), "{error}");
        }
    }
}
