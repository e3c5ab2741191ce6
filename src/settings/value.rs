//! Types of values: how each is written, and the rule a bad one breaks.

use std::net::SocketAddr;
use std::time::Duration;

use super::suggest;
use crate::secret_file::split_urls;
use crate::user_info;

/// The type of a setting, with its limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// A template over the row's columns.
    Template,
    /// The path of a file.
    Path,
    /// `true` or `false`.
    Bool,
    /// A whole number.
    Integer {
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// A time span such as `30s`; the limits are written the same way.
    Duration {
        /// Shortest.
        min: &'static str,
        /// Longest.
        max: &'static str,
    },
    /// The same, or `off`.
    DurationOrOff {
        /// Shortest.
        min: &'static str,
        /// Longest.
        max: &'static str,
    },
    /// A number of bytes such as `1MiB`; the limits are written the same way.
    Size {
        /// Smallest.
        min: &'static str,
        /// Largest.
        max: &'static str,
    },
    /// One of several words.
    Choice {
        /// The words.
        allowed: &'static [&'static str],
    },
    /// An RFC 3986 URI reference.
    UriReference,
    /// A Postgres URL or libpq keyword string.
    PostgresUrl,
    /// AMQP URLs, comma separated.
    AmqpUrls,
    /// An address and a port to listen on, or `off`.
    Listen,
    /// NATS URLs, comma separated.
    NatsUrls,
    /// The URL of a service.
    HttpUrl,
    /// Hosts with ports, comma separated.
    Brokers,
}

/// A value that keeps the rules of its [`Kind`].
#[derive(Clone)]
pub enum Value {
    /// Text of any kind.
    Text(String),
    /// A boolean.
    Bool(bool),
    /// A whole number, or bytes.
    Number(u64),
    /// A time span.
    Duration(Duration),
    /// Several texts.
    List(Vec<String>),
}

/// The rule a value breaks and, if there is one, the remedy. Never holds the value itself, which
/// may be secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Follows "NAME=value: ".
    pub rule: String,
    /// What to write instead.
    pub hint: Option<String>,
}

impl Violation {
    /// For a value that somebody put into quotes.
    pub(super) fn wrapped() -> Self {
        Self::with_hint(
            "is in quotes, which are part of the value here",
            "remove them: a shell takes quotes away, but Docker's --env-file and Kubernetes hand them on",
        )
    }

    fn new(rule: impl Into<String>) -> Self {
        Self {
            rule: rule.into(),
            hint: None,
        }
    }

    fn with_hint(rule: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            rule: rule.into(),
            hint: Some(hint.into()),
        }
    }
}

impl Kind {
    /// How such a value is written, for the reference.
    pub fn notation(&self) -> String {
        match self {
            Self::Text => "text".into(),
            Self::Template => "template".into(),
            Self::Path => "path".into(),
            Self::Bool => "`true` or `false`".into(),
            Self::Integer { min, max } => format!("whole number, {min} to {max}"),
            Self::Duration { min, max } => format!("duration, `{min}` to `{max}`"),
            Self::DurationOrOff { min, max } => {
                format!("duration, `{min}` to `{max}`, or `off`")
            }
            Self::Size { min, max } => format!("size, `{min}` to `{max}`"),
            Self::Choice { allowed, .. } => one_of(allowed),
            Self::UriReference => "URI reference".into(),
            Self::PostgresUrl => "URL or keyword string".into(),
            Self::Listen => "`address:port` or `off`".into(),
            Self::AmqpUrls | Self::NatsUrls => "URLs, comma separated".into(),
            Self::HttpUrl => "URL".into(),
            Self::Brokers => "`host:port`, comma separated".into(),
        }
    }

    /// Whether TOML may give this kind as something other than a string.
    pub(super) fn takes_toml_number(&self) -> bool {
        // A bare TOML number is let through for durations and sizes too, so that the user gets
        // the hint about the missing unit.
        matches!(
            self,
            Self::Integer { .. }
                | Self::Duration { .. }
                | Self::DurationOrOff { .. }
                | Self::Size { .. }
        )
    }

    /// Reads a value.
    pub fn parse(&self, text: &str) -> Result<Value, Violation> {
        if text.contains('\0') {
            return Err(Violation::new("must not contain a NUL character"));
        }
        match self {
            Self::Text | Self::Template | Self::Path => Ok(Value::Text(text.to_owned())),
            Self::Bool => parse_bool(text).map(Value::Bool),
            Self::Integer { min, max } => parse_integer(text, *min, *max).map(Value::Number),
            Self::DurationOrOff { .. } if text == "off" => Ok(Value::Text(text.to_owned())),
            Self::Duration { min, max } | Self::DurationOrOff { min, max } => {
                let value = parse_duration(text)?;
                let too_short = parse_duration(min).is_ok_and(|min| value < min);
                let too_long = parse_duration(max).is_ok_and(|max| value > max);
                within(too_short, too_long, min, max).map(|()| Value::Duration(value))
            }
            Self::Size { min, max } => {
                let value = parse_size(text)?;
                let too_small = parse_size(min).is_ok_and(|min| value < min);
                let too_large = parse_size(max).is_ok_and(|max| value > max);
                within(too_small, too_large, min, max).map(|()| Value::Number(value))
            }
            Self::Choice { allowed } => parse_choice(text, allowed),
            Self::UriReference => parse_uri_reference(text).map(Value::Text),
            Self::PostgresUrl => parse_postgres_url(text).map(Value::Text),
            Self::Listen => parse_listen(text).map(Value::Text),
            Self::AmqpUrls => parse_urls(text, check_amqp_url).map(Value::List),
            Self::NatsUrls => parse_urls(text, check_nats_url).map(Value::List),
            Self::HttpUrl => check_http_url(text).map(|()| Value::Text(text.to_owned())),
            Self::Brokers => parse_brokers(text).map(Value::List),
        }
    }
}

fn one_of(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => quoted.join(""),
    }
}

fn within(below: bool, above: bool, min: &str, max: &str) -> Result<(), Violation> {
    if below {
        Err(Violation::new(format!("must be at least `{min}`")))
    } else if above {
        Err(Violation::new(format!("must be at most `{max}`")))
    } else {
        Ok(())
    }
}

fn parse_bool(text: &str) -> Result<bool, Violation> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => {
            let lower = text.to_ascii_lowercase();
            let rule = "expected `true` or `false`";
            match lower.as_str() {
                "true" | "yes" | "on" | "1" | "t" | "y" => {
                    Err(Violation::with_hint(rule, "write `true`"))
                }
                "false" | "no" | "off" | "0" | "f" | "n" => {
                    Err(Violation::with_hint(rule, "write `false`"))
                }
                _ => Err(Violation::new(rule)),
            }
        }
    }
}

fn parse_integer(text: &str, min: u64, max: u64) -> Result<u64, Violation> {
    let digits_only = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse::<u64>() {
        Ok(value) if digits_only && (min..=max).contains(&value) => Ok(value),
        _ => Err(Violation::new(format!(
            "expected a whole number from {min} to {max}"
        ))),
    }
}

/// Splits `30s` into number and unit. A number without unit gets a unit of `""`.
fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit.trim_start()))
}

/// Reads `500ms`, `30s`, `5m`, `12h`, `7d`.
fn parse_duration(text: &str) -> Result<Duration, Violation> {
    let rule = "expected a duration such as `500ms`, `30s`, `5m`, `12h` or `7d`";
    let (number, unit) = number_and_unit(text).ok_or_else(|| Violation::new(rule))?;
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "" => {
            let hint = format!("add a unit: `{number}s` or `{number}ms`");
            return Err(Violation::with_hint(rule, hint));
        }
        _ => return Err(Violation::new(rule)),
    };
    number
        .checked_mul(unit_ms)
        .map(Duration::from_millis)
        .ok_or_else(|| Violation::new("is too long a duration"))
}

/// Reads `512B`, `64KiB`, `16MiB`, `1GiB`, `100kB`, `10MB`, `1GB`.
fn parse_size(text: &str) -> Result<u64, Violation> {
    let rule = "expected a size such as `64KiB`, `16MiB` or `10MB`";
    let (number, unit) = number_and_unit(text).ok_or_else(|| Violation::new(rule))?;
    let factor: u64 = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "kB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "" => {
            let hint = format!("add a unit: `{number}B` or `{number}MiB`");
            return Err(Violation::with_hint(rule, hint));
        }
        other => {
            let known = ["B", "KiB", "MiB", "GiB", "kB", "MB", "GB"];
            let meant = known.iter().find(|unit| unit.eq_ignore_ascii_case(other));
            return Err(match meant {
                Some(unit) => Violation::with_hint(rule, format!("write `{number}{unit}`")),
                None => Violation::new(rule),
            });
        }
    };
    number
        .checked_mul(factor)
        .ok_or_else(|| Violation::new("is too large a size"))
}

fn parse_choice(text: &str, allowed: &[&str]) -> Result<Value, Violation> {
    if allowed.contains(&text) {
        return Ok(Value::Text(text.to_owned()));
    }
    let rule = format!("expected {}", one_of(allowed));
    Err(match suggest::nearest(text, allowed.iter().copied()) {
        Some(word) => Violation::with_hint(rule, format!("did you mean `{word}`?")),
        None => Violation::new(rule),
    })
}

/// Checks the characters and the scheme, which is what tells a URI reference from other text.
fn parse_uri_reference(text: &str) -> Result<String, Violation> {
    let rule =
        "expected a URI reference such as `/services/orders` or `https://example.com/orders`";
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let fine = match byte {
            b'%' => {
                let hex = |byte: Option<u8>| byte.is_some_and(|b| b.is_ascii_hexdigit());
                hex(rest.next()) && hex(rest.next())
            }
            _ => byte.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()*+,;=".contains(&byte),
        };
        if !fine {
            let hint = "percent-encode spaces and other special characters";
            return Err(Violation::with_hint(rule, hint));
        }
    }
    // A colon before the first `/`, `?` or `#` ends a scheme.
    let first = text.split(['/', '?', '#']).next().unwrap_or_default();
    if let Some((scheme, _)) = first.split_once(':') {
        let starts_well = scheme.starts_with(|c: char| c.is_ascii_alphabetic());
        let goes_well = scheme
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
        if !(starts_well && goes_well) {
            return Err(Violation::new(format!("{rule}; its scheme is not valid")));
        }
    }
    if text.matches('#').count() > 1 {
        return Err(Violation::new(format!("{rule}; it has two fragments")));
    }
    Ok(text.to_owned())
}

/// Only tells what cannot be a connection string; the store knows the rest.
fn parse_postgres_url(text: &str) -> Result<String, Violation> {
    let scheme = text.split_once(':').map_or("", |(scheme, _)| scheme);
    let scheme = scheme.split('+').next().unwrap_or_default();
    // Written for libpq, or for another library; the store tells which.
    let url = match scheme {
        "postgres" | "postgresql" | "postgis" | "psql" | "pgsql" | "pgx" => true,
        "jdbc" | "r2dbc" | "vertx-reactive" => text.contains("postgresql:"),
        _ => false,
    };
    let keywords = text
        .split_once('=')
        .is_some_and(|(name, _)| !name.contains("://"));
    if url || keywords {
        Ok(text.to_owned())
    } else {
        Err(Violation::with_hint(
            "expected a `postgres://` URL or a libpq keyword string",
            "for example `postgres://user@host:5432/database`",
        ))
    }
}

fn parse_urls(
    text: &str,
    check: fn(&str) -> Result<(), Violation>,
) -> Result<Vec<String>, Violation> {
    let urls: Vec<String> = split_urls(text).map(str::to_owned).collect();
    for (index, url) in urls.iter().enumerate() {
        let which = if urls.len() > 1 {
            format!("URL number {}: ", index + 1)
        } else {
            String::new()
        };
        if let Err(violation) = check(url) {
            return Err(Violation {
                rule: which + &violation.rule,
                hint: violation.hint,
            });
        }
    }
    Ok(urls)
}

/// The word that turns a listener off.
const OFF: &str = "off";

/// Addresses only: a name may stand for several, and which one is served should not depend on a name server.
fn parse_listen(text: &str) -> Result<String, Violation> {
    if text == OFF || text.parse::<SocketAddr>().is_ok() {
        return Ok(text.to_owned());
    }
    let rule = "expected an IP address and a port such as `127.0.0.1:9647`, or `off`";
    let port = text.strip_prefix(':').unwrap_or(text);
    if port.parse::<u16>().is_ok() {
        let hint = format!("write `0.0.0.0:{port}` for all interfaces");
        return Err(Violation::with_hint(rule, hint));
    }
    if let Some(port) = text.strip_prefix("localhost:") {
        return Err(Violation::with_hint(
            rule,
            format!("write `127.0.0.1:{port}`"),
        ));
    }
    Err(match text {
        "false" | "no" | "none" | "disabled" => Violation::with_hint(rule, "write `off`"),
        _ => Violation::new(rule),
    })
}

fn check_amqp_url(text: &str) -> Result<(), Violation> {
    if !text.starts_with("amqp://") && !text.starts_with("amqps://") {
        return Err(Violation::with_hint(
            "expected an `amqp://` or `amqps://` URL",
            "for example `amqp://user@host:5672/vhost`",
        ));
    }
    let url = with_host(text)?;
    // Parameters of the Erlang client. The Rust client ignores them, so that a connection would be
    // less safe than the URL says.
    let tls = ["cacertfile", "certfile", "keyfile", "verify"];
    if let Some((name, _)) = url
        .query_pairs()
        .find(|(name, _)| tls.contains(&name.as_ref()))
    {
        return Err(Violation::with_hint(
            format!("has the parameter `{name}`, which is not honoured"),
            "use `rabbitmq.ca_file`, `rabbitmq.cert_file` and `rabbitmq.key_file`",
        ));
    }
    Ok(())
}

fn check_nats_url(text: &str) -> Result<(), Violation> {
    if !text.starts_with("nats://") && !text.starts_with("tls://") {
        return Err(Violation::with_hint(
            "expected a `nats://` or `tls://` URL",
            "for example `nats://user@host:4222`",
        ));
    }
    let url = with_host(text)?;
    if !matches!(url.path(), "" | "/") || url.query().is_some() {
        return Err(Violation::with_hint(
            "goes on after host and port",
            "other options of NATS are settings of their own",
        ));
    }
    Ok(())
}

fn check_http_url(text: &str) -> Result<(), Violation> {
    if !text.starts_with("http://") && !text.starts_with("https://") {
        return Err(Violation::with_hint(
            "expected an `https://` or `http://` URL",
            "for example `https://orders.internal/events`",
        ));
    }
    with_host(text).map(|_| ())
}

/// A URL that names one host.
fn with_host(text: &str) -> Result<url::Url, Violation> {
    user_info::check(text).map_err(|rule| Violation::with_hint(rule, user_info::REMEDY))?;
    let url = url::Url::parse(text).map_err(|error| {
        Violation::with_hint(format!("is not a valid URL: {error}"), user_info::REMEDY)
    })?;
    let host = url.host_str().unwrap_or_default();
    if host.is_empty() {
        return Err(Violation::new("names no host"));
    }
    if host.contains(',') {
        return Err(Violation::with_hint(
            "names several hosts in one URL",
            format!(
                "write one `{}://` URL per host, comma separated",
                url.scheme()
            ),
        ));
    }
    Ok(url)
}

fn parse_brokers(text: &str) -> Result<Vec<String>, Violation> {
    let example = "for example `kafka-1:9092,kafka-2:9092`";
    let brokers = text.split(',').map(str::trim);
    let brokers: Vec<String> = brokers
        .filter(|broker| !broker.is_empty())
        .map(str::to_owned)
        .collect();
    for broker in &brokers {
        let rule = if broker.contains('@') {
            // Never quoted: it may hold a password.
            "names a user; expected `host:port`, and the user in `kafka.username` and `kafka.password`".to_owned()
        } else if broker.contains("://") {
            "names a URL; expected `host:port`, without a scheme".to_owned()
        } else if !is_host_and_port(broker) {
            format!("`{broker}` is not `host:port`")
        } else {
            continue;
        };
        return Err(Violation::with_hint(rule, example));
    }
    if brokers.is_empty() {
        return Err(Violation::with_hint("names no broker", example));
    }
    Ok(brokers)
}

/// An IPv6 address is in brackets.
fn is_host_and_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else {
        return false;
    };
    let name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let bare = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(name),
    };
    bare && port.bytes().all(|byte| byte.is_ascii_digit())
        && port.parse::<u16>().is_ok_and(|port| port > 0)
}

#[cfg(test)]
mod tests;
