//! Connection strings as libpq knows them: URLs and `key=value` lists, plus the `PG*` variables.
//!
//! tokio-postgres refuses several parameters that managed services put into their URLs
//! (`sslmode=verify-full`, `sslrootcert`, ...), and a URL parser for the web cannot read several hosts. So
//! this file reads the string into plain parameters; [`super::connect`] gives them their meaning.
//! No error ever quotes a value, since a mistyped password ends up anywhere.

use std::collections::BTreeMap;

use super::error::{StoreError, StoreErrorKind};

/// Parameters by libpq's names.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Params(BTreeMap<String, String>);

/// Every parameter we understand, with the variable that stands for it.
const KNOWN: &[(&str, Option<&str>)] = &[
    ("host", Some("PGHOST")),
    ("hostaddr", Some("PGHOSTADDR")),
    ("port", Some("PGPORT")),
    ("dbname", Some("PGDATABASE")),
    ("user", Some("PGUSER")),
    ("password", Some("PGPASSWORD")),
    ("passfile", Some("PGPASSFILE")),
    ("sslmode", Some("PGSSLMODE")),
    ("sslrootcert", Some("PGSSLROOTCERT")),
    ("sslcert", Some("PGSSLCERT")),
    ("sslkey", Some("PGSSLKEY")),
    ("sslnegotiation", Some("PGSSLNEGOTIATION")),
    ("channel_binding", Some("PGCHANNELBINDING")),
    ("target_session_attrs", Some("PGTARGETSESSIONATTRS")),
    ("load_balance_hosts", Some("PGLOADBALANCEHOSTS")),
    ("connect_timeout", Some("PGCONNECT_TIMEOUT")),
    ("application_name", Some("PGAPPNAME")),
    ("fallback_application_name", None),
    ("options", Some("PGOPTIONS")),
    ("keepalives", None),
    ("keepalives_idle", None),
    ("keepalives_interval", None),
    ("keepalives_count", None),
    ("tcp_user_timeout", None),
    // Accepted because they change nothing here: we never use GSSAPI, compression, or anything but UTF-8.
    ("gssencmode", Some("PGGSSENCMODE")),
    ("sslcompression", None),
    ("client_encoding", Some("PGCLIENTENCODING")),
    ("sslsni", Some("PGSSLSNI")),
];

/// What libpq knows and we cannot honour: refused rather than ignored.
const UNSUPPORTED: &[&str] = &[
    "service",
    "servicefile",
    "sslcrl",
    "sslcrldir",
    "sslpassword",
    "sslcertmode",
    "krbsrvname",
    "gsslib",
    "gssdelegation",
    "requirepeer",
    "replication",
    "require_auth",
    "ssl_min_protocol_version",
    "ssl_max_protocol_version",
    "min_protocol_version",
    "max_protocol_version",
    "scram_client_key",
    "scram_server_key",
];

impl Params {
    /// Reads a URL or a `key=value` list.
    pub(super) fn parse(text: &str) -> Result<Self, StoreError> {
        let text = text.trim();
        let params = match text.split_once("://") {
            Some(("postgres" | "postgresql", rest)) => parse_url(rest)?,
            Some((scheme, _)) if !scheme.contains('=') => {
                return Err(bad(
                    "starts with an unknown scheme: use postgres://user:password@host:port/database",
                ));
            }
            _ => parse_pairs(text)?,
        };
        for name in params.keys() {
            if UNSUPPORTED.contains(&name.as_str()) {
                return Err(bad(format!(
                    "sets `{name}`, which outrigger does not support: remove it"
                )));
            }
            if !KNOWN.iter().any(|(known, _)| known == name) {
                return Err(bad(format!(
                    "has an unknown parameter `{}`: remove it",
                    printable(name)
                )));
            }
        }
        Ok(Self(params))
    }

    /// Fills what is still unset from `PG*` variables. Empty variables count as unset.
    pub(super) fn fill_from(
        &mut self,
        variables: &BTreeMap<String, String>,
    ) -> Result<(), StoreError> {
        for name in ["PGSERVICE", "PGSSLCRL", "PGREQUIREAUTH", "PGREQUIREPEER"] {
            if variables.get(name).is_some_and(|value| !value.is_empty()) {
                return Err(StoreError::new(
                    StoreErrorKind::Fatal,
                    format!("{name} is not supported: unset it and use OUTRIGGER_DATABASE_URL"),
                ));
            }
        }
        for (name, variable) in KNOWN {
            let value = variable
                .and_then(|v| variables.get(v))
                .filter(|v| !v.is_empty());
            if let Some(value) = value {
                self.0
                    .entry((*name).to_owned())
                    .or_insert_with(|| value.clone());
            }
        }
        Ok(())
    }

    /// A parameter that is set and not empty.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        debug_assert!(KNOWN.iter().any(|(known, _)| *known == name), "{name}");
        self.0
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }
}

/// An error about the connection string. Never quotes it.
pub(super) fn bad(what: impl AsRef<str>) -> StoreError {
    StoreError::fatal(format!("the database URL {}", what.as_ref()))
}

/// A parameter name is quoted only if it looks like one: a stray piece of a password does not.
fn printable(name: &str) -> &str {
    let plain = name.len() <= 40 && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    if plain { name } else { "..." }
}

fn parse_url(rest: &str) -> Result<BTreeMap<String, String>, StoreError> {
    let mut params = BTreeMap::new();
    let (rest, query) = rest.split_once('?').map_or((rest, ""), |(a, b)| (a, b));
    let (authority, path) = rest.split_once('/').map_or((rest, ""), |(a, b)| (a, b));
    // A password may hold a bare `@`; hosts never do.
    let (login, hosts) = authority
        .rsplit_once('@')
        .map_or((None, authority), |(login, hosts)| (Some(login), hosts));
    if let Some(login) = login {
        let (user, password) = login
            .split_once(':')
            .map_or((login, None), |(u, p)| (u, Some(p)));
        set(&mut params, "user", user)?;
        if let Some(password) = password {
            set(&mut params, "password", password)?;
        }
    }
    if !hosts.is_empty() {
        let mut names = Vec::new();
        let mut ports = Vec::new();
        for host in hosts.split(',') {
            let (name, port) = split_port(host)?;
            names.push(decode(name, "host")?);
            ports.push(port.to_owned());
        }
        params.insert("host".into(), names.join(","));
        if ports.iter().any(|port| !port.is_empty()) {
            params.insert("port".into(), ports.join(","));
        }
    }
    if !path.is_empty() {
        set(&mut params, "dbname", path)?;
    }
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair
            .split_once('=')
            .ok_or_else(|| bad("has a parameter without a value after `?`"))?;
        let name = decode(name, "parameter name")?;
        // libpq's alias for JDBC-style URLs.
        if name == "ssl" && value == "true" {
            params.insert("sslmode".into(), "require".into());
            continue;
        }
        let value = decode(value, printable(&name))?;
        params.insert(name, value);
    }
    Ok(params)
}

/// `host`, `host:port`, `[::1]` or `[::1]:port`.
fn split_port(host: &str) -> Result<(&str, &str), StoreError> {
    if let Some(v6) = host.strip_prefix('[') {
        let (address, rest) = v6
            .split_once(']')
            .ok_or_else(|| bad("has an IPv6 address without its closing `]`"))?;
        return match rest.strip_prefix(':') {
            Some(port) => Ok((address, port)),
            None if rest.is_empty() => Ok((address, "")),
            None => Err(bad("has text after an IPv6 address")),
        };
    }
    Ok(host.split_once(':').unwrap_or((host, "")))
}

fn set(params: &mut BTreeMap<String, String>, name: &str, raw: &str) -> Result<(), StoreError> {
    params.insert(name.to_owned(), decode(raw, name)?);
    Ok(())
}

/// Percent-decoding. `+` stays a plus, as in libpq.
fn decode(raw: &str, what: &str) -> Result<String, StoreError> {
    let broken = || {
        bad(format!(
            "has a broken %-escape in its {what}: write `%` itself as `%25`"
        ))
    };
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|d| char::from(d).to_digit(16));
        let (high, low) = (digit().ok_or_else(broken)?, digit().ok_or_else(broken)?);
        bytes.push((high * 16 + low) as u8);
    }
    String::from_utf8(bytes).map_err(|_| bad(format!("is not UTF-8 in its {what}")))
}

/// `key = value` pairs; values may stand in single quotes, with backslash escapes.
fn parse_pairs(text: &str) -> Result<BTreeMap<String, String>, StoreError> {
    let mut params = BTreeMap::new();
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.peek().is_none() {
            return Ok(params);
        }
        let mut name = String::new();
        while let Some(c) = chars.next_if(|c| *c != '=' && !c.is_whitespace()) {
            name.push(c);
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        if chars.next() != Some('=') {
            return Err(bad(
                "is neither a postgres:// URL nor a list of key=value pairs (a value with spaces needs 'quotes')",
            ));
        }
        while chars.next_if(|c| c.is_whitespace()).is_some() {}
        let mut value = String::new();
        let quoted = chars.next_if_eq(&'\'').is_some();
        loop {
            match chars.peek() {
                None if quoted => {
                    return Err(bad(format!(
                        "has no closing quote after `{}`",
                        printable(&name)
                    )));
                }
                None => break,
                Some('\'') if quoted => {
                    chars.next();
                    break;
                }
                Some(c) if !quoted && c.is_whitespace() => break,
                Some('\\') => {
                    chars.next();
                    value.extend(chars.next());
                }
                Some(_) => value.extend(chars.next()),
            }
        }
        params.insert(name, value);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> Vec<(String, String)> {
        Params::parse(text).unwrap().0.into_iter().collect()
    }

    fn check(text: &str, expected: &[(&str, &str)]) {
        let expected: Vec<_> = expected
            .iter()
            .map(|(k, v)| ((*k).into(), (*v).into()))
            .collect();
        assert_eq!(pairs(text), expected, "{text}");
    }

    #[test]
    fn urls_as_services_hand_them_out() {
        check(
            "postgres://app:p%40ss@db.example.com:6432/shop?sslmode=verify-full&sslrootcert=/etc/ca.pem",
            &[
                ("dbname", "shop"),
                ("host", "db.example.com"),
                ("password", "p@ss"),
                ("port", "6432"),
                ("sslmode", "verify-full"),
                ("sslrootcert", "/etc/ca.pem"),
                ("user", "app"),
            ],
        );
        check(
            "postgresql://u@a:1,b,[::1]:3/d?target_session_attrs=any",
            &[
                ("dbname", "d"),
                ("host", "a,b,::1"),
                ("port", "1,,3"),
                ("target_session_attrs", "any"),
                ("user", "u"),
            ],
        );
        check(
            "postgres://%2Fvar%2Frun/d",
            &[("dbname", "d"), ("host", "/var/run")],
        );
        check(
            "postgres:///d?host=/tmp&ssl=true",
            &[("dbname", "d"), ("host", "/tmp"), ("sslmode", "require")],
        );
        check("postgres://", &[]);
    }

    #[test]
    fn key_value_lists_with_quotes() {
        check(
            r"host=localhost  user = 'o' password='a b\'c\\' dbname=x\ y",
            &[
                ("dbname", "x y"),
                ("host", "localhost"),
                ("password", r"a b'c\"),
                ("user", "o"),
            ],
        );
    }

    #[test]
    fn errors_name_the_setting_and_keep_the_secret() {
        for (text, says) in [
            ("postgres://u:hunter2%zz@h/d", "password"),
            ("postgres://u:hunter2@h/d?schema=public", "`schema`"),
            ("postgres://u:hunter2@h/d?sslcrl=/x", "`sslcrl`"),
            ("postgres://u:hunter2@[::1/d", "IPv6"),
            ("mysql://u:hunter2@h/d", "scheme"),
            ("host=h password='hunter2", "`password`"),
            ("hunter2", "key=value"),
            ("host=h Hunter2hunter2=x", "`...`"),
        ] {
            let error = Params::parse(text).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
            assert!(!error.to_lowercase().contains("hunter2"), "{text}: {error}");
        }
    }

    #[test]
    fn variables_fill_the_gaps_only() {
        let mut params = Params::parse("postgres://u@h/d").unwrap();
        let variables = [
            ("PGUSER", "other"),
            ("PGPASSWORD", "s"),
            ("PGPORT", ""),
            ("PGSSLMODE", "require"),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned()));
        params.fill_from(&variables.into()).unwrap();
        assert_eq!(params.get("user"), Some("u"));
        assert_eq!(params.get("password"), Some("s"));
        assert_eq!(params.get("port"), None);
        assert_eq!(params.get("sslmode"), Some("require"));
        let service = [("PGSERVICE".to_owned(), "x".to_owned())].into();
        assert!(
            params
                .fill_from(&service)
                .unwrap_err()
                .to_string()
                .contains("PGSERVICE")
        );
    }

    proptest::proptest! {
        #[test]
        fn any_value_survives_quoting_and_escaping(value in "\\PC*") {
            let quoted = value.replace('\\', "\\\\").replace('\'', "\\'");
            let params = Params::parse(&format!("host=h password='{quoted}' user=u")).unwrap();
            proptest::prop_assert_eq!(params.0.get("password"), Some(&value));
            let escaped: String = value.bytes().map(|b| format!("%{b:02x}")).collect();
            let params = Params::parse(&format!("postgres://u:{escaped}@h/d")).unwrap();
            proptest::prop_assert_eq!(params.0.get("password"), Some(&value));
        }

        #[test]
        fn no_input_panics(text in "\\PC*") {
            let _ = Params::parse(&text);
            let _ = Params::parse(&format!("postgres://{text}"));
        }
    }
}
