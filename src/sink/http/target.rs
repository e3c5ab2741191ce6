//! The URL of the settings, taken apart once.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::HeaderValue;
use secrecy::{ExposeSecret as _, SecretString};
use url::Url;

use crate::sink::urls::percent_decoded;
use crate::user_info;

/// Where requests go. Shown without path and credentials, which may be secret.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) tls: bool,
    pub(super) host: String,
    pub(super) port: u16,
    /// The `Host` header.
    pub(super) authority: HeaderValue,
    pub(super) authorization: Option<HeaderValue>,
    path: String,
    query: Option<String>,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}:{}", self.host, self.port)
    }
}

impl Target {
    /// Never echoes the URL in its error.
    pub(super) fn parse(
        url: &SecretString,
        authorization: Option<&SecretString>,
    ) -> Result<Self, String> {
        let wrong = |rule: &str| format!("OUTRIGGER_HTTP_URL: {rule}");
        user_info::check(url.expose_secret())
            .map_err(|rule| wrong(&format!("{rule}: {}", user_info::REMEDY)))?;
        let url = Url::parse(url.expose_secret())
            .map_err(|error| wrong(&format!("not a URL ({error})")))?;
        let tls = match url.scheme() {
            "http" => false,
            "https" => true,
            _ => return Err(wrong("use `https://` or `http://`")),
        };
        if url.fragment().is_some() {
            return Err(wrong("a fragment (`#…`) means nothing to a server"));
        }
        let host = url.host_str().ok_or_else(|| wrong("no host"))?;
        let authority = match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        };
        let mut credentials = authorization.map(|value| value.expose_secret().trim().to_owned());
        if !url.username().is_empty() || url.password().is_some() {
            if credentials.is_some() {
                return Err(
                    "OUTRIGGER_HTTP_AUTHORIZATION and a user in OUTRIGGER_HTTP_URL are different \
                     ways to log in; keep one"
                        .to_owned(),
                );
            }
            let pair = format!("{}:{}", url.username(), url.password().unwrap_or_default());
            let pair = percent_decoded(&pair);
            credentials = Some(format!("Basic {}", STANDARD.encode(pair)));
        }
        let authorization = credentials
            .map(|text| {
                let mut value = HeaderValue::from_str(&text).map_err(|_| {
                    "OUTRIGGER_HTTP_AUTHORIZATION cannot be a header: it contains control characters"
                        .to_owned()
                })?;
                value.set_sensitive(true);
                Ok::<_, String>(value)
            })
            .transpose()?;
        Ok(Self {
            tls,
            port: url.port_or_known_default().unwrap_or(80),
            authority: HeaderValue::from_str(&authority).map_err(|_| wrong("no usable host"))?,
            host: host.trim_matches(['[', ']']).to_owned(),
            authorization,
            path: url.path().to_owned(),
            query: url.query().map(str::to_owned),
        })
    }

    /// For comparing, and for people: the path as a digest, since it may hold a secret; no query, which may too.
    pub(super) fn place(&self) -> String {
        let path = self.path.trim_end_matches('/');
        if path.is_empty() {
            return self.to_string();
        }
        let digest = path.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        format!("{self} path #{:08x}", digest >> 32)
    }

    /// The path and query of a request to a destination below the URL; `None` where a part of it would leave
    /// the URL's own path.
    pub(super) fn path_to(&self, destination: &str) -> Option<String> {
        let mut path = self.path.clone();
        let destination = destination.trim_matches('/');
        if !destination.is_empty() {
            path.truncate(path.trim_end_matches('/').len());
            for part in destination.split('/') {
                // Servers and proxies resolve them, some also when they are encoded.
                if part.is_empty() || part == "." || part == ".." {
                    return None;
                }
                path.push('/');
                encode(&mut path, part);
            }
        }
        if let Some(query) = &self.query {
            path.push('?');
            path.push_str(query);
        }
        Some(path)
    }
}

/// Everything but what RFC 3986 calls unreserved, and what may stand in a path as it is.
fn encode(path: &mut String, part: &str) {
    for byte in part.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&byte) {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("%{byte:02X}"));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn target(url: &str) -> Target {
        Target::parse(&SecretString::from(url), None).unwrap()
    }

    #[test]
    fn destinations_stay_below_the_url() {
        let plain = target("https://h");
        assert_eq!(plain.path_to("").as_deref(), Some("/"));
        assert_eq!(plain.path_to("a/b").as_deref(), Some("/a/b"));
        let deep = target("http://h:8080/hooks/?key=s");
        assert_eq!(deep.path_to("").as_deref(), Some("/hooks/?key=s"));
        assert_eq!(
            deep.path_to("/a b/ü?#").as_deref(),
            Some("/hooks/a%20b/%C3%BC%3F%23?key=s")
        );
        for escape in ["..", "a/../b", "./a", "a//b"] {
            assert_eq!(deep.path_to(escape), None, "{escape}");
        }
        assert_eq!(
            deep.path_to("%2e%2e").as_deref(),
            Some("/hooks/%252e%252e?key=s")
        );
        assert_eq!(deep.authority, "h:8080");
    }

    #[test]
    fn credentials_are_not_shown() {
        let user = target("https://me:p%40ss@h/secret?token=t");
        assert_eq!(user.authorization.as_ref().unwrap(), "Basic bWU6cEBzcw==");
        assert_eq!(user.to_string(), "https://h:443");
        assert_eq!(format!("{:?}", user.authorization.unwrap()), "Sensitive");
        let token = SecretString::from("Bearer t0ken\n");
        let bearer = Target::parse(&"http://h".into(), Some(&token)).unwrap();
        assert_eq!(bearer.authorization.unwrap(), "Bearer t0ken");
        let both = Target::parse(&"http://u:p@h".into(), Some(&token))
            .err()
            .unwrap();
        assert!(both.contains("different ways"), "{both}");
    }

    #[test]
    fn the_place_is_the_same_however_it_is_written_and_shows_no_secret() {
        let place = target("https://me:p%40ss@h/hooks/secret?token=t").place();
        assert_eq!(place, target("https://h:443/hooks/secret/").place());
        assert!(place.starts_with("https://h:443 path #"), "{place}");
        for hidden in ["secret", "ss", "token"] {
            assert!(!place.contains(hidden), "{place}");
        }
        assert_ne!(place, target("https://h/hooks/other").place());
        assert_eq!(target("http://h/").place(), "http://h:80");
    }

    #[test]
    fn ipv6_hosts_lose_their_brackets() {
        let target = target("http://[::1]:81");
        assert_eq!((target.host.as_str(), target.port), ("::1", 81));
        assert_eq!(target.authority, "[::1]:81");
    }
}
