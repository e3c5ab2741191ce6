//! Connection strings as libpq knows them: URLs and `key=value` lists, plus the `PG*` variables; and as the libraries of
//! other languages write them, which [`super::dialects`] translates.
//!
//! tokio-postgres refuses several parameters that managed services put into their URLs
//! (`sslmode=verify-full`, `sslrootcert`, ...), and a URL parser for the web cannot read several hosts. So
//! this file reads the string into plain parameters; [`super::connect`] gives them their meaning.
//! No error ever quotes a value, since a mistyped password ends up anywhere; nor a name that means nothing to us, which
//! may be a piece of one.

use std::collections::BTreeMap;

use super::dialects::{self, Dialect, Translation};
use super::error::StoreError;
use crate::user_info;

/// Parameters by libpq's names.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Params {
    values: BTreeMap<String, String>,
    /// Where the outbox table is looked for if its name does not say: `search_path` by any of its names.
    pub(super) schema: Option<String>,
}

/// Every parameter we understand, with the variable that stands for it.
const KNOWN: &[(&str, Option<&str>)] = &[
    ("host", Some("PGHOST")),
    ("hostaddr", Some("PGHOSTADDR")),
    ("port", Some("PGPORT")),
    ("dbname", Some("PGDATABASE")),
    ("user", Some("PGUSER")),
    ("password", Some("PGPASSWORD")),
    ("passfile", Some("PGPASSFILE")),
    ("service", Some("PGSERVICE")),
    ("servicefile", Some("PGSERVICEFILE")),
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

/// Names and values as written.
pub(super) type Written = Vec<(String, String)>;

impl Params {
    /// Reads a URL or a `key=value` list. Every problem is in the error.
    pub(super) fn parse(text: &str) -> Result<Self, StoreError> {
        let text = text.trim();
        let (dialect, (before, written)) = match dialects::recognise(text) {
            Some((dialect, rest)) => (dialect, parse_url(rest, dialect)?),
            None if dialects::is_ado(text) => (Dialect::Ado, (0, dialects::parse_ado(text)?)),
            None if has_scheme(text) => {
                return Err(bad(
                    "starts with an unknown scheme: use postgres://user:password@host:port/database",
                ));
            }
            None => (Dialect::Libpq, (0, parse_pairs(text)?)),
        };
        Self::from_written(dialect, before, written)
    }

    /// Gives every parameter its libpq name. The first `before` are not parameters to the user.
    fn from_written(dialect: Dialect, before: usize, written: Written) -> Result<Self, StoreError> {
        let mut translation = Translation::new(dialect);
        let mut problems = Vec::new();
        let mut values = BTreeMap::new();
        for (place, (name, value)) in written.into_iter().enumerate() {
            let (name, value) = match translation.take(name, value) {
                Ok(Some(parameter)) => parameter,
                Ok(None) => continue,
                Err(problem) => {
                    problems.push(problem);
                    continue;
                }
            };
            if UNSUPPORTED.contains(&name.as_str()) {
                problems.push(bad(format!(
                    "sets `{name}`, which outrigger does not support: remove it"
                )));
            } else if is_known(&name) {
                values.insert(name, value);
            } else {
                problems.push(unknown((place + 1).saturating_sub(before), &name));
            }
        }
        all(problems)?;
        translation.finish(&mut values);
        Ok(Self {
            values,
            schema: translation.schema,
        })
    }

    /// Everything in one line.
    #[cfg(test)]
    pub(super) fn for_tests(&self) -> String {
        let mut words: Vec<String> = self
            .values
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        words.extend(self.schema.iter().map(|schema| format!("schema={schema}")));
        words.join(" ")
    }

    /// Fills what is still unset: from the service that is asked for, then from `PG*` variables. Empty variables count as
    /// unset. Reads the file of services.
    pub(super) fn fill_from(
        &mut self,
        variables: &BTreeMap<String, String>,
    ) -> Result<(), StoreError> {
        let variable = |name: &str| variables.get(name).filter(|value| !value.is_empty());
        for name in ["PGSSLCRL", "PGREQUIREAUTH", "PGREQUIREPEER"] {
            if variable(name).is_some() {
                return Err(StoreError::fatal(format!(
                    "{name} is not supported: unset it and use OUTRIGGER_DATABASE_URL"
                )));
            }
        }
        let given = |name: &str, by: &str| self.get(name).or(variable(by).map(String::as_str));
        if let Some(service) = given("service", "PGSERVICE") {
            let file = given("servicefile", "PGSERVICEFILE");
            let found = super::service::find(service, file, variables)?;
            let found = Self::from_written(Dialect::Libpq, 0, found)?;
            for (name, value) in found.values {
                self.values.entry(name).or_insert(value);
            }
            self.schema = self.schema.take().or(found.schema);
        }
        for (name, by) in KNOWN {
            if let Some(value) = by.and_then(variable) {
                let entry = self.values.entry((*name).to_owned());
                entry.or_insert_with(|| value.clone());
            }
        }
        Ok(())
    }

    /// A parameter that is set and not empty.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        debug_assert!(is_known(name), "{name}");
        self.values
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }
}

fn is_known(name: &str) -> bool {
    KNOWN.iter().any(|(known, _)| *known == name)
}

/// Whether this is a URL of some kind. A password in a list of pairs may hold `://` as well.
fn has_scheme(text: &str) -> bool {
    text.split_once("://")
        .is_some_and(|(scheme, _)| !scheme.contains(['=', ' ']))
}

/// An error about the connection string. Never quotes it.
pub(super) fn bad(what: impl AsRef<str>) -> StoreError {
    StoreError::fatal(format!("the database URL {}", what.as_ref()))
}

/// All of these errors in one, if there are any.
pub(super) fn all(errors: Vec<StoreError>) -> Result<(), StoreError> {
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    match errors.into_iter().next() {
        None => Ok(()),
        Some(only) if texts.len() == 1 => Err(only),
        Some(_) => {
            const SUBJECT: &str = "the database URL ";
            let rest = texts
                .iter()
                .map(|text| text.strip_prefix(SUBJECT).unwrap_or(text))
                .enumerate()
                .map(|(place, text)| format!("({}) {text}", place + 1));
            let list = rest.collect::<Vec<_>>().join("; ");
            Err(bad(format!("has {} problems: {list}", texts.len())))
        }
    }
}

/// A parameter that nobody knows. Its name may be a piece of a password, so it goes by its place.
fn unknown(place: usize, name: &str) -> StoreError {
    let lower = name.to_lowercase();
    let likeness = |known: &str| strsim::normalized_damerau_levenshtein(&lower, known);
    let known = KNOWN.iter().map(|(known, _)| *known);
    let nearest = known.max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    match nearest.filter(|known| likeness(known) >= 0.66) {
        Some(known) => bad(format!(
            "has an unknown parameter (number {place}): did you mean `{known}`?"
        )),
        None => bad(format!(
            "has an unknown parameter (number {place}): remove it, or percent-encode the special characters of a value"
        )),
    }
}

/// What follows `postgres://`.
fn parse_url(rest: &str, dialect: Dialect) -> Result<(usize, Written), StoreError> {
    let (login, place) = split_login(rest, dialect)?;
    let (place, query) = place.split_once('?').unwrap_or((place, ""));
    let (hosts, path) = place.split_once('/').unwrap_or((place, ""));
    let mut written = Written::new();
    let mut set = |name: &str, raw: &str| {
        let value = decode(raw, name, dialect)?;
        written.push((name.to_owned(), value));
        Ok::<(), StoreError>(())
    };
    if let Some(login) = login {
        let (user, password) = login
            .split_once(':')
            .map_or((login, None), |(user, password)| (user, Some(password)));
        set("user", user)?;
        if let Some(password) = password {
            set("password", password)?;
        }
    }
    let java_at_home = dialect == Dialect::Jdbc && !place.contains('/');
    if java_at_home {
        // `jdbc:postgresql:database`
        set("dbname", hosts)?;
        set("host", "localhost")?;
    }
    if !path.is_empty() {
        set("dbname", path)?;
    }
    if !hosts.is_empty() && !java_at_home {
        let mut places = Vec::new();
        for host in hosts.split(',') {
            let (name, port) = split_port(host)?;
            places.push((decode(name, "host", dialect)?, port.to_owned()));
        }
        written.extend(hosts_and_ports(places));
    }
    let before = written.len();
    let mut places = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair
            .split_once('=')
            .ok_or_else(|| bad("has a parameter without a value after `?`"))?;
        let name = decode(name, "parameter name", dialect)?;
        let value = decode(value, "parameters", dialect)?;
        // As SQLAlchemy lists several hosts.
        match name.as_str() {
            "host" if query.matches("host=").count() > 1 && !value.starts_with('/') => {
                let (name, port) = split_port(&value)?;
                places.push((name.to_owned(), port.to_owned()));
            }
            _ => written.push((name, value)),
        }
    }
    written.extend(hosts_and_ports(places));
    Ok((before, written))
}

fn hosts_and_ports(places: Vec<(String, String)>) -> Written {
    let (hosts, ports): (Vec<_>, Vec<_>) = places.into_iter().unzip();
    let mut written = Written::new();
    if !hosts.is_empty() {
        written.push(("host".to_owned(), hosts.join(",")));
    }
    if ports.iter().any(|port| !port.is_empty()) {
        written.push(("port".to_owned(), ports.join(",")));
    }
    written
}

/// User and password, and the rest. As libpq has it, the first `@` before the first `/` ends them, so a bare `?` or `#`
/// belongs to the password. An `@` anywhere else could mean that they go on, and what is taken for a host is shown to
/// people: so that is refused.
fn split_login(rest: &str, dialect: Dialect) -> Result<(Option<&str>, &str), StoreError> {
    let authority = rest.split('/').next().unwrap_or_default();
    let Some((login, _)) = authority.split_once('@') else {
        // Only what a JDBC driver reads has its user among the parameters by custom, and no `@` before them.
        let stray = match dialect {
            Dialect::Jdbc => rest.split('?').next().unwrap_or_default().contains('@'),
            _ => rest.contains('@'),
        };
        return match stray {
            true => Err(bad(format!(
                "has an `@` after a `/` or `?`: {}",
                user_info::REMEDY
            ))),
            false => Ok((None, rest)),
        };
    };
    let place = &rest[login.len() + 1..];
    if place.contains('@') {
        return Err(bad(format!("has more than one `@`: {}", user_info::REMEDY)));
    }
    if let Some((before, after)) = login.split_once('?') {
        // `host?name=v@lue`, or `user:pa?ss@host`?
        let port = before.split_once(':').map_or("", |(_, port)| port);
        if after.contains('=') && port.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(bad(format!(
                "has an `@` after a `?`: {}",
                user_info::REMEDY
            )));
        }
    }
    Ok((Some(login), place))
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

/// Percent-decoding. `+` stays a plus, as in libpq, except where Java reads it.
fn decode(raw: &str, what: &str, dialect: Dialect) -> Result<String, StoreError> {
    let broken = || {
        bad(format!(
            "has a broken %-escape in its {what}: write `%` itself as `%25`"
        ))
    };
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            let blank = byte == b'+' && dialect == Dialect::Jdbc;
            bytes.push(if blank { b' ' } else { byte });
            continue;
        }
        let mut digit = || rest.next().and_then(|d| char::from(d).to_digit(16));
        let (high, low) = (digit().ok_or_else(broken)?, digit().ok_or_else(broken)?);
        bytes.push((high * 16 + low) as u8);
    }
    String::from_utf8(bytes).map_err(|_| bad(format!("is not UTF-8 in its {what}")))
}

/// `key = value` pairs; values may stand in single quotes, with backslash escapes.
pub(super) fn parse_pairs(text: &str) -> Result<Written, StoreError> {
    let mut params = Written::new();
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
                    let place = params.len() + 1;
                    return Err(bad(format!(
                        "has no closing quote in its value number {place}"
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
        params.push((name, value));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> Vec<(String, String)> {
        Params::parse(text).unwrap().values.into_iter().collect()
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
    fn every_problem_is_in_one_error() {
        let text = "postgres://u:p@h/d?sslmod=require&sslcrl=/x&unheard_of=1";
        let error = Params::parse(text).map(|_| ()).unwrap_err().to_string();
        for says in [
            "3 problems",
            "(1)",
            "`sslmode`?",
            "(2) sets `sslcrl`",
            "(3)",
            "remove it",
        ] {
            assert!(error.contains(says), "{says}: {error}");
        }
    }

    #[test]
    fn a_bare_question_mark_belongs_to_the_password_as_in_libpq() {
        check(
            "postgres://u:p?s#s@h/d?sslmode=disable",
            &[
                ("dbname", "d"),
                ("host", "h"),
                ("password", "p?s#s"),
                ("sslmode", "disable"),
                ("user", "u"),
            ],
        );
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
            (
                "postgres://u:hunter2@h/d?sslmod=x",
                "did you mean `sslmode`?",
            ),
            ("postgres://u:hunter2@h/d?hunter2=x", "(number 1)"),
            ("postgres://u:hunter2@h/d?sslcrl=/x", "`sslcrl`"),
            ("postgres://u:hunter2@[::1/d", "IPv6"),
            ("mysql://u:hunter2@h/d", "scheme"),
            ("host=h password='hunter2", "value number 2"),
            ("hunter2", "key=value"),
            ("host=h Hunter2hunter2=x", "(number 2)"),
            ("postgres://u:hunter2@x@h/d", "more than one `@`"),
            ("postgres://u:hunter2/x@h/d", "after a `/`"),
            ("postgres://u:hun/ter2?x@h/d", "after a `/`"),
            ("postgres://h:1?password=hunter2@x", "after a `?`"),
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
        let service = [("PGSSLCRL".to_owned(), "x".to_owned())].into();
        let error = params.fill_from(&service).unwrap_err().to_string();
        assert!(error.contains("PGSSLCRL"), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn any_value_survives_quoting_and_escaping(value in "\\PC*") {
            let quoted = value.replace('\\', "\\\\").replace('\'', "\\'");
            let params = Params::parse(&format!("host=h password='{quoted}' user=u")).unwrap();
            proptest::prop_assert_eq!(params.values.get("password"), Some(&value));
            let escaped: String = value.bytes().map(|b| format!("%{b:02x}")).collect();
            let params = Params::parse(&format!("postgres://u:{escaped}@h/d")).unwrap();
            proptest::prop_assert_eq!(params.values.get("password"), Some(&value));
        }

        #[test]
        fn no_input_panics(text in "\\PC*") {
            let _ = Params::parse(&text);
            let _ = Params::parse(&format!("postgres://{text}"));
        }
    }
}
