//! Secrets in files, which somebody may replace while the relay runs: Kubernetes and secret managers do.
//!
//! The parts that connect read them again for every new connection, as they do with certificates.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use secrecy::SecretString;

/// Largest secret or configuration file, in bytes; guards against a path to something endless.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A file with a secret, and the variable that names it. Shows nothing of its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretFile {
    variable: String,
    path: PathBuf,
}

impl SecretFile {
    /// Reads nothing yet.
    pub fn new(variable: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        Self {
            variable: variable.into(),
            path: path.into(),
        }
    }

    /// The secret as it is now. Reads the file: blocking.
    ///
    /// # Errors
    /// One line that names the variable and the file, never the content.
    pub fn read(&self) -> Result<SecretString, String> {
        read_secret(&self.path)
            .map(SecretString::from)
            .map_err(|rule| format!("{}={}: {rule}", self.variable, self.path.display()))
    }

    /// The same from async code.
    pub(crate) async fn read_again(&self) -> Result<SecretString, String> {
        let file = self.clone();
        tokio::task::spawn_blocking(move || file.read())
            .await
            .map_err(|error| format!("{}: cannot read the file: {error}", self.variable))?
    }
}

/// Reads a small text file; the error is a rule that names no content.
pub(crate) fn read_text(path: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(|error| format!("cannot read the file: {error}"))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err("the file is larger than 1 MiB".into());
    }
    String::from_utf8(bytes).map_err(|_| "the file is not UTF-8 text".into())
}

pub(crate) fn read_secret(path: &Path) -> Result<String, String> {
    let mut text = read_text(path)?;
    // Editors and `echo` end a file with one newline that is not part of the secret.
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    if text.is_empty() {
        return Err("the file is empty".into());
    }
    Ok(text)
}

/// Splits a comma-separated list of URLs. A comma ends a URL only where another URL begins, so
/// that a comma inside a password does not tear it in two.
pub(crate) fn split_urls(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let end = text
            .match_indices(',')
            .map(|(index, _)| index)
            .find(|index| {
                let next = text.get(index + 1..).unwrap_or_default().trim_start();
                let schemes = ["amqp://", "amqps://", "nats://", "tls://"];
                next.is_empty() || schemes.iter().any(|scheme| next.starts_with(scheme))
            });
        let (url, left) = match end {
            Some(index) => (&text[..index], text.get(index + 1..)),
            None => (text, None),
        };
        rest = left.filter(|left| !left.trim().is_empty());
        Some(url.trim())
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    #[test]
    fn the_file_is_read_as_it_is_now() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let file = SecretFile::new("OUTRIGGER_DATABASE_URL_FILE", &path);
        for (content, secret) in [("one\n", "one"), ("two \r\n", "two "), ("a\nb", "a\nb")] {
            std::fs::write(&path, content).unwrap();
            assert_eq!(file.read().unwrap().expose_secret(), secret);
        }
        for (content, says) in [(&b"\n"[..], "empty"), (b"hunter2\xff", "not UTF-8")] {
            std::fs::write(&path, content).unwrap();
            let error = file.read().unwrap_err();
            assert!(error.contains(says), "{error}");
            assert!(error.contains("OUTRIGGER_DATABASE_URL_FILE="), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(file.read().unwrap_err().contains("cannot read the file"));
    }
}
