#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;

fn violation(result: Result<impl Sized, Violation>) -> String {
    match result {
        Ok(_) => "accepted".into(),
        Err(violation) => match violation.hint {
            Some(hint) => format!("{} | {hint}", violation.rule),
            None => violation.rule,
        },
    }
}

#[test]
fn durations() {
    for (text, ms) in [
        ("0s", 0),
        ("500ms", 500),
        ("30s", 30_000),
        ("5m", 300_000),
        ("12h", 43_200_000),
        ("7d", 604_800_000),
        ("7 d", 604_800_000),
    ] {
        assert_eq!(
            parse_duration(text).unwrap(),
            Duration::from_millis(ms),
            "{text}"
        );
    }
    for text in ["s", "-1s", "1.5s", "1S", "1min", "1h30m", "１s", "", " 1s"] {
        assert!(parse_duration(text).is_err(), "{text:?}");
    }
    assert!(violation(parse_duration("30")).ends_with("| add a unit: `30s` or `30ms`"));
    assert_eq!(
        violation(parse_duration("18446744073709551615d")),
        "is too long a duration"
    );
}

#[test]
fn sizes() {
    for (text, bytes) in [
        ("512B", 512),
        ("64KiB", 65_536),
        ("16MiB", 16_777_216),
        ("1GiB", 1_073_741_824),
        ("100kB", 100_000),
        ("10MB", 10_000_000),
        ("1GB", 1_000_000_000),
    ] {
        assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
    }
    for text in ["MiB", "-1B", "1.5MiB", "1TiB", ""] {
        assert!(parse_size(text).is_err(), "{text:?}");
    }
    assert!(violation(parse_size("16")).ends_with("| add a unit: `16B` or `16MiB`"));
    assert!(violation(parse_size("16mib")).ends_with("| write `16MiB`"));
    assert_eq!(
        violation(parse_size("18446744073709551615GiB")),
        "is too large a size"
    );
}

#[test]
fn booleans_are_two_words_only() {
    assert!(parse_bool("true").unwrap());
    assert!(!parse_bool("false").unwrap());
    for (text, hint) in [("TRUE", "true"), ("1", "true"), ("no", "false")] {
        let text = violation(parse_bool(text));
        assert_eq!(text, format!("expected `true` or `false` | write `{hint}`"));
    }
    assert_eq!(violation(parse_bool("maybe")), "expected `true` or `false`");
}

#[test]
fn integers_keep_to_digits_and_range() {
    assert_eq!(parse_integer("007", 1, 10).unwrap(), 7);
    for text in ["", "+7", "-1", "0", "11", "1e1", "1_0", "7.0", " 7"] {
        assert_eq!(
            violation(parse_integer(text, 1, 10)),
            "expected a whole number from 1 to 10",
            "{text:?}"
        );
    }
}

#[test]
fn uri_references() {
    for text in [
        "/orders",
        "orders",
        "urn:uuid:6e8bc430-9c3a-11d9-9669-0800200c9a66",
        "https://example.com/a?b#c",
        "mailto:a@b.example",
        "./a:b",
        "a%20b",
        "//[::1]/x",
    ] {
        assert!(parse_uri_reference(text).is_ok(), "{text}");
    }
    for text in [
        "a b", "a%2", "a%zz", "1a:b", ":b", "ü", "a\nb", "<a>", "a#b#c",
    ] {
        assert!(parse_uri_reference(text).is_err(), "{text:?}");
    }
}

#[test]
fn postgres_connection_strings() {
    for text in [
        "postgres://h/d",
        "postgresql:///d?host=/run",
        "host=h dbname=d",
        "host=h password=a://b",
        "jdbc:postgresql://h/d?user=u",
        "postgresql+psycopg://h/d",
        "Host=h;Database=d",
    ] {
        assert!(parse_postgres_url(text).is_ok(), "{text}");
    }
    for text in [
        "mysql://h/d",
        "h",
        "jdbc:mysql://h/d?user=u",
        "mysql://h/d?a=b",
    ] {
        assert!(parse_postgres_url(text).is_err(), "{text}");
    }
}

#[test]
fn amqp_urls() {
    let two = parse_urls("amqp://a:p,q@one/v, amqps://two:5671", check_amqp_url).unwrap();
    assert_eq!(two, ["amqp://a:p,q@one/v", "amqps://two:5671"]);
    for (text, expected) in [
        ("http://h", "expected an `amqp://` or `amqps://` URL"),
        ("amqp://", "names no host"),
        ("amqp://h,i", "names several hosts"),
        ("amqp://u:p@s@h", "has more than one `@`"),
        ("amqp://u:p/s@h", "has an `@` after a `/`"),
        ("amqp://h:port", "is not a valid URL"),
        ("amqp://h?verify=verify_none", "has the parameter `verify`"),
        ("amqp://h,amqp://h:port", "URL number 2: is not a valid URL"),
    ] {
        let got = violation(parse_urls(text, check_amqp_url));
        assert!(got.starts_with(expected), "{text}: {got}");
    }
}

#[test]
fn listen_addresses() {
    for text in ["127.0.0.1:9647", "0.0.0.0:0", "[::]:9647", "off"] {
        assert!(parse_listen(text).is_ok(), "{text}");
    }
    let rule = "expected an IP address and a port such as `127.0.0.1:9647`, or `off`";
    for (text, hint) in [
        ("9647", " | write `0.0.0.0:9647` for all interfaces"),
        (":9647", " | write `0.0.0.0:9647` for all interfaces"),
        ("localhost:9647", " | write `127.0.0.1:9647`"),
        ("false", " | write `off`"),
        ("127.0.0.1", ""),
        ("127.0.0.1:99999", ""),
        ("example.com:9647", ""),
    ] {
        assert_eq!(
            violation(parse_listen(text)),
            format!("{rule}{hint}"),
            "{text}"
        );
    }
}
