//! AMQP URLs: parsed strictly, because several clients read the same URL differently.
//!
//! * `amqp://host` means the default vhost `/`. By the AMQP URI rules `amqp://host/` means the vhost whose name is
//!   *empty*, which practically nobody has and many clients take for the default; so it is that here.
//! * The TLS parameters of other clients (`cacertfile`, `verify`, ...) are refused with the setting
//!   to use instead: silently ignoring `verify=verify_none` or a CA file would be worse.
//! * No message ever contains the URL, since it may hold a password.

use std::fmt;
use std::time::Duration;

use lapin::uri::{AMQPScheme, AMQPUri, SASLMechanism};
use secrecy::{ExposeSecret, SecretString};
use url::{Host, Url};

use crate::user_info;

/// Largest frame unless the URL says otherwise, in bytes. The client library sets aside 64 frames of
/// buffers per connection: 2 MiB with this, 8 MiB with RabbitMQ's 128 KiB. An event's headers must fit
/// into one frame; bodies are split.
const FRAME_MAX: u32 = 32 * 1024;
/// Seconds between heartbeats unless the URL says otherwise. A dead peer is noticed after two.
const HEARTBEAT_SECS: u16 = 10;

/// Time for TCP, TLS and the AMQP handshake together unless the URL says otherwise.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest AMQP short string, in bytes.
const SHORT_STRING_MAX: usize = 255;

/// Smallest `frame_max` AMQP allows.
const FRAME_MAX_MIN: u32 = 4096;

/// One broker to connect to.
#[derive(Clone)]
pub(super) struct Endpoint {
    uri: AMQPUri,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({self})")
    }
}

/// Host, port and vhost: what a log line may show.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let authority = &self.uri.authority;
        let vhost = &self.uri.vhost;
        if authority.host.contains(':') {
            write!(f, "[{}]:{} vhost `{vhost}`", authority.host, authority.port)
        } else {
            write!(f, "{}:{} vhost `{vhost}`", authority.host, authority.port)
        }
    }
}

impl Endpoint {
    pub(super) fn parse(secret: &SecretString) -> Result<Self, String> {
        let remedy = user_info::REMEDY;
        user_info::check(secret.expose_secret()).map_err(|rule| format!("{rule}: {remedy}"))?;
        let url = Url::parse(secret.expose_secret()).map_err(|error| {
            format!("not a URL ({error}); write `amqp://user:password@host:5672/vhost`; {remedy}")
        })?;
        if !matches!(url.scheme(), "amqp" | "amqps") {
            return Err("unknown scheme; use `amqp://` or `amqps://`".to_owned());
        }
        let host = host_of(&url)?;
        check_path(url.path())?;
        check_query(&url)?;

        let mut uri: AMQPUri = secret
            .expose_secret()
            .parse()
            // The parser's own message may quote the URL.
            .map_err(|_: String| {
                "user, password or vhost is not valid percent-encoded UTF-8; encode special \
                 characters"
                    .to_owned()
            })?;
        uri.authority.host = host;
        if url.path() == "/" {
            uri.vhost = "/".to_owned();
        }
        if uri.vhost.len() > SHORT_STRING_MAX {
            return Err(format!(
                "the vhost has {} bytes, more than the 255 AMQP allows",
                uri.vhost.len()
            ));
        }
        if uri.query.auth_mechanism == Some(SASLMechanism::External)
            && uri.scheme != AMQPScheme::AMQPS
        {
            return Err("auth_mechanism=external needs TLS; use `amqps://`".to_owned());
        }
        uri.query.heartbeat.get_or_insert(HEARTBEAT_SECS);
        uri.query.frame_max.get_or_insert(FRAME_MAX);
        Ok(Self { uri })
    }

    pub(super) fn uri(&self) -> &AMQPUri {
        &self.uri
    }

    pub(super) fn host(&self) -> &str {
        &self.uri.authority.host
    }

    pub(super) fn port(&self) -> u16 {
        self.uri.authority.port
    }

    pub(super) fn user(&self) -> &str {
        &self.uri.authority.userinfo.username
    }

    /// The user that the broker will know us by. `None` if it is not the URL's.
    pub(super) fn login(&self) -> Option<&str> {
        let by_name = matches!(
            self.uri.query.auth_mechanism,
            None | Some(SASLMechanism::Plain | SASLMechanism::AMQPlain)
        );
        by_name.then(|| self.user())
    }

    pub(super) fn vhost(&self) -> &str {
        &self.uri.vhost
    }

    pub(super) fn channel_max(&self) -> Option<u16> {
        self.uri.query.channel_max.filter(|max| *max != 0)
    }

    pub(super) fn is_tls(&self) -> bool {
        self.uri.scheme == AMQPScheme::AMQPS
    }

    pub(super) fn is_external(&self) -> bool {
        self.uri.query.auth_mechanism == Some(SASLMechanism::External)
    }

    pub(super) fn connect_timeout(&self) -> Duration {
        self.uri
            .query
            .connection_timeout
            .map_or(CONNECT_TIMEOUT, Duration::from_millis)
    }
}

/// lapin takes the host from `Url::domain`, which is none for `[::1]`, and would then quietly
/// connect to `localhost`.
fn host_of(url: &Url) -> Result<String, String> {
    match url.host() {
        Some(Host::Domain(host)) if !host.is_empty() => Ok(host.to_owned()),
        Some(Host::Ipv4(address)) => Ok(address.to_string()),
        Some(Host::Ipv6(address)) => Ok(address.to_string()),
        _ => Err("names no host; write `amqp://user:password@host:5672/vhost`".to_owned()),
    }
}

fn check_path(path: &str) -> Result<(), String> {
    match path {
        // `//` is how some clients write the default vhost; it means the same by the rules.
        "" | "/" | "//" => Ok(()),
        _ if path[1..].contains('/') => Err(
            "has a `/` inside the vhost; if the vhost's name contains it, write it as `%2f`"
                .to_owned(),
        ),
        _ => Ok(()),
    }
}

fn check_query(url: &Url) -> Result<(), String> {
    let mut seen = Vec::new();
    for (name, value) in url.query_pairs() {
        if seen.contains(&name) {
            return Err(format!("parameter `{name}` is given twice"));
        }
        match &*name {
            "heartbeat" | "channel_max" => number::<u16>(&name, &value).map(drop)?,
            "connection_timeout" => {
                if number::<u64>(&name, &value)? == 0 {
                    return Err(
                        "connection_timeout is in milliseconds and must not be 0".to_owned()
                    );
                }
            }
            "frame_max" => {
                let frame_max = number::<u32>(&name, &value)?;
                if frame_max != 0 && frame_max < FRAME_MAX_MIN {
                    return Err(format!("frame_max must be at least {FRAME_MAX_MIN}"));
                }
            }
            "auth_mechanism" => {
                if value.parse::<SASLMechanism>().is_err() {
                    return Err(
                        "auth_mechanism must be `plain`, `external`, `amqplain` or `anonymous`"
                            .to_owned(),
                    );
                }
            }
            "cacertfile" | "cacerts" => return Err(moved(&name, "OUTRIGGER_RABBITMQ_CA_FILE")),
            "certfile" => return Err(moved(&name, "OUTRIGGER_RABBITMQ_CERT_FILE")),
            "keyfile" => return Err(moved(&name, "OUTRIGGER_RABBITMQ_KEY_FILE")),
            "verify" | "fail_if_no_peer_cert" | "depth" | "server_name_indication" => {
                return Err(format!(
                    "parameter `{name}` of other clients is not supported: `amqps://` always \
                     verifies certificate and host name; name a private CA in \
                     OUTRIGGER_RABBITMQ_CA_FILE and remove the parameter"
                ));
            }
            _ => {
                // Not quoted: it may be a piece of a password.
                return Err(
                    "unknown parameter after `?`; known are heartbeat, connection_timeout, frame_max, channel_max \
                     and auth_mechanism"
                        .to_owned(),
                );
            }
        }
        seen.push(name);
    }
    Ok(())
}

fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<T, String> {
    value
        .parse()
        .map_err(|_| format!("parameter `{name}` is not a number in its range"))
}

fn moved(name: &str, setting: &str) -> String {
    format!("parameter `{name}` of other clients is not read; set {setting} instead")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[track_caller]
    fn parse(url: &str) -> Result<Endpoint, String> {
        let result = Endpoint::parse(&SecretString::from(url));
        if let Err(error) = &result {
            assert!(!error.contains("s3cret"), "{error}");
        }
        result
    }

    #[track_caller]
    fn refused(url: &str, part: &str) {
        let error = parse(url).unwrap_err();
        assert!(error.contains(part), "{error:?} lacks {part:?}");
    }

    #[test]
    fn the_vhost_is_what_the_rules_say() {
        for (url, vhost) in [
            ("amqp://host", "/"),
            ("amqp://host/%2f", "/"),
            ("amqp://host/%2F", "/"),
            ("amqp://host/", "/"),
            ("amqp://host//", "/"),
            ("amqp://host/?heartbeat=5", "/"),
            ("amqp://host/shop", "shop"),
            ("amqp://host/a%2fb", "a/b"),
            ("amqp://host/sh%C3%B6p", "shöp"),
        ] {
            assert_eq!(parse(url).unwrap().vhost(), vhost, "{url}");
        }
        refused("amqp://u:s3cret@host/a/b", "`%2f`");
        refused(&format!("amqp://host/{}", "v".repeat(256)), "256 bytes");
    }

    #[test]
    fn hosts_of_every_kind_are_kept() {
        for (url, host, port) in [
            ("amqp://broker.example", "broker.example", 5672),
            ("amqps://broker", "broker", 5671),
            ("amqp://10.0.0.7:1234", "10.0.0.7", 1234),
            ("amqp://[::1]:5673", "::1", 5673),
        ] {
            let endpoint = parse(url).unwrap();
            assert_eq!((endpoint.host(), endpoint.port()), (host, port), "{url}");
        }
        assert_eq!(
            parse("amqp://[::1]").unwrap().to_string(),
            "[::1]:5672 vhost `/`"
        );
        refused("amqp:///vhost", "names no host");
        refused("amqp://", "names no host");
        refused("amqp:host", "names no host");
    }

    #[test]
    fn nothing_shown_holds_the_credentials() {
        let endpoint = parse("amqp://us3r:s3cret@host/shop").unwrap();
        assert_eq!(endpoint.user(), "us3r");
        assert_eq!(format!("{endpoint}"), "host:5672 vhost `shop`");
        assert!(!format!("{endpoint:?}").contains("s3cret"));
        refused("amqp://u:s3cret@host:99999", "not a URL");
        refused("u:s3cret@host", "");
        refused("http://u:s3cret@host", "unknown scheme");
        refused("amqp://u:s3cret@x@host", "more than one `@`");
        refused("amqp://u:s3cret/x@host", "after a `/`");
        refused("amqp://u:s3cret%FF@host", "percent-encoded");
    }

    #[test]
    fn defaults_can_be_overridden_in_the_query() {
        let endpoint = parse("amqp://host").unwrap();
        assert_eq!(endpoint.uri().query.heartbeat, Some(10));
        assert_eq!(endpoint.connect_timeout(), Duration::from_secs(10));
        let endpoint = parse("amqp://host?heartbeat=3&connection_timeout=250").unwrap();
        assert_eq!(endpoint.uri().query.heartbeat, Some(3));
        assert_eq!(endpoint.connect_timeout(), Duration::from_millis(250));
    }

    #[test]
    fn parameters_of_other_clients_name_the_setting_to_use() {
        refused("amqps://host?cacertfile=/ca", "OUTRIGGER_RABBITMQ_CA_FILE");
        refused("amqps://host?certfile=/c", "OUTRIGGER_RABBITMQ_CERT_FILE");
        refused("amqps://host?keyfile=/k", "OUTRIGGER_RABBITMQ_KEY_FILE");
        refused("amqps://host?verify=verify_none", "always verifies");
        refused("amqp://host?hartbeat=5", "unknown parameter");
        refused("amqp://host?heartbeat=5&heartbeat=6", "twice");
        refused("amqp://host?heartbeat=soon", "not a number");
        refused("amqp://host?frame_max=100", "at least 4096");
        refused("amqp://host?auth_mechanism=magic", "auth_mechanism");
        refused("amqp://host?auth_mechanism=external", "amqps");
    }
}
