//! Connection strings without their passwords.
//!
//! When in doubt, these functions hide more than they must.

use crate::secret_file::split_urls;
use crate::user_info;

/// What stands for a hidden part.
pub(super) const HIDDEN: &str = "***";

/// A connection string, or a list of them, as it may be shown: URLs without their passwords,
/// anything else not at all.
pub fn redact(text: &str) -> String {
    let shown: Vec<String> = split_urls(text).map(redact_url).collect();
    shown.join(",")
}

/// The text of a setting that holds no secret, unless a URL with a login or parameters was put into it.
pub(super) fn shown(text: &str) -> String {
    let bare = text.split_once("://").is_none_or(|(_, rest)| {
        let host = rest.split('/').next().unwrap_or_default();
        !rest.contains(['@', '?']) && is_host_and_port(host)
    });
    match bare {
        true => text.to_owned(),
        false => HIDDEN.to_owned(),
    }
}

fn redact_url(url: &str) -> String {
    const SCHEMES: [&str; 6] = ["postgres", "postgresql", "amqp", "amqps", "nats", "tls"];
    let Some((scheme, rest)) = url.split_once("://") else {
        return HIDDEN.into();
    };
    let web = matches!(scheme, "http" | "https");
    if !web && !SCHEMES.contains(&scheme) {
        return HIDDEN.into();
    }
    // Where a password may end elsewhere than a parser has it, nothing is certain; such URLs are refused.
    if user_info::check(url).is_err() {
        return format!("{scheme}://{HIDDEN}");
    }
    if web {
        // The path of a webhook is often a secret itself.
        let place = rest.rsplit_once('@').map_or(rest, |(_, place)| place);
        let host = place.split(['/', '?', '#']).next().unwrap_or_default();
        return match host == rest && is_host_and_port(host) {
            true => format!("{scheme}://{host}"),
            false if is_host_and_port(host) => format!("{scheme}://{host}/{HIDDEN}"),
            false => format!("{scheme}://{HIDDEN}"),
        };
    }
    let (user_info, place) = match rest.split_once('@') {
        Some((user_info, place)) => (Some(user_info), place),
        None => (None, rest),
    };
    let (authority_and_path, query) = match place.split_once('?') {
        Some((before, query)) => (before, Some(query)),
        None => (place, None),
    };
    let authority = authority_and_path
        .split(['/', '#'])
        .next()
        .unwrap_or_default();
    if user_info.is_none() && authority.contains(':') {
        // `user:password` whose `@host` was forgotten looks much like `host:port/database`.
        let rest = if place == authority { "" } else { "/***" };
        return match is_host_and_port(authority) {
            true => format!("{scheme}://{authority}{rest}"),
            false => format!("{scheme}://{HIDDEN}"),
        };
    }
    let user = match user_info {
        Some(user_info) => match user_info.split_once(':') {
            Some((user, _)) => format!("{user}:{HIDDEN}@"),
            // A user without a password is a token there.
            None if matches!(scheme, "nats" | "tls") => format!("{HIDDEN}@"),
            None => format!("{user_info}@"),
        },
        None => String::new(),
    };
    let query = query.map(redact_query).unwrap_or_default();
    format!("{scheme}://{user}{authority_and_path}{query}")
}

/// `host:port`; an IPv6 address stands in brackets.
fn is_host_and_port(authority: &str) -> bool {
    let port = match authority.rsplit_once(']') {
        Some((_, port)) => port.strip_prefix(':'),
        None => authority.split_once(':').map(|(_, port)| port),
    };
    port.is_none_or(|port| port.parse::<u16>().is_ok())
}

fn redact_query(query: &str) -> String {
    let harmless = [
        "host",
        "port",
        "dbname",
        "user",
        "sslmode",
        "sslrootcert",
        "sslcert",
        "sslkey",
        "sslnegotiation",
        "application_name",
        "connect_timeout",
        "channel_binding",
        "target_session_attrs",
        "heartbeat",
        "connection_timeout",
        "channel_max",
        "frame_max",
        "auth_mechanism",
    ];
    let parts: Vec<String> = query
        .split('&')
        .map(|part| match part.split_once('=') {
            Some((name, _)) if harmless.contains(&name) => part.to_owned(),
            Some((name @ ("password" | "sslpassword"), _)) => format!("{name}={HIDDEN}"),
            _ => HIDDEN.to_owned(),
        })
        .collect();
    format!("?{}", parts.join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_lose_their_password() {
        let cases = [
            ("postgres://u:p@h:5432/d", "postgres://u:***@h:5432/d"),
            (
                "postgresql://u:p@h1:1,h2:2/d?sslmode=require",
                "postgresql://u:***@h1:1,h2:2/d?sslmode=require",
            ),
            ("postgres://u@h/d", "postgres://u@h/d"),
            ("postgres:///d?host=/run", "postgres:///d?host=/run"),
            (
                "postgres://h/d?password=p&user=u",
                "postgres://h/d?password=***&user=u",
            ),
            ("postgres://u:p/q?r#s@t@h/d", "postgres://***"),
            ("amqp://guest:p@ss/w@h", "amqp://***"),
            ("amqp://u:p@h", "amqp://u:***@h"),
            ("amqp://[::1]:5672", "amqp://[::1]:5672"),
            ("amqp://h:5672/v", "amqp://h:5672/***"),
            ("amqp://u:99999999", "amqp://***"),
            ("postgres://u:1,2", "postgres://***"),
            ("amqp://u:?password=", "amqp://***"),
            ("amqp://h/v?x=y&z", "amqp://h/v?***&***"),
            ("amqp://user:password", "amqp://***"),
            ("amqp://a:p,q@h/v", "amqp://a:***@h/v"),
            (
                "amqp://a:p@h , amqps://b:q@i,",
                "amqp://a:***@h,amqps://b:***@i",
            ),
            (
                "nats://u:p@h:4222,tls://t0ken@h",
                "nats://u:***@h:4222,tls://***@h",
            ),
            ("https://h:8443", "https://h:8443"),
            ("https://u:p@h/hooks/s3cret?k=v", "https://h/***"),
            ("https://h/s3cret", "https://h/***"),
            ("http://u:p/q", "http://***"),
            ("https://h/hook?to=me@h", "https://***"),
            ("host=h password=p", "***"),
            ("p", "***"),
            ("p://a:b@c", "***"),
            ("amqp://h/v?password=p@q", "amqp://***"),
            ("amqp://h/v?password=p:q@r", "amqp://***"),
        ];
        for (text, expected) in cases {
            assert_eq!(redact(text), expected, "{text}");
        }
    }
}
