//! Connection strings as the libraries of other languages write them.
//!
//! A service has one `DATABASE_URL`, written for its own library, and the relay beside it gets the same. What speaks of
//! that library's pool, cache or driver is left out; what has a name in libpq gets it; what would make the connection
//! another, or less safe, is refused with what to do instead.

use super::dsn::{Written, bad};
use super::error::StoreError;

/// Who a connection string was written for, where that makes a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// libpq, and all that write URLs like it.
    Libpq,
    /// Java: user and password are parameters, and `+` is a blank.
    Jdbc,
    /// .NET, and PHP's PDO: `Name=value;Name=value`.
    Ado,
}

/// The dialect of a URL, and what follows its `://`.
pub(super) fn recognise(text: &str) -> Option<(Dialect, &str)> {
    const JAVA: [&str; 4] = ["jdbc:", "r2dbc:pool:", "r2dbc:", "vertx-reactive:"];
    for prefix in JAVA {
        if let Some(rest) = text.strip_prefix(prefix) {
            let rest = rest.strip_prefix("postgresql:")?;
            // `jdbc:postgresql:database` is on this host.
            let rest = rest.strip_prefix("//").unwrap_or(rest);
            return Some((Dialect::Jdbc, rest));
        }
    }
    let (scheme, rest) = text.split_once("://")?;
    // SQLAlchemy appends the driver, others their own extension.
    let scheme = scheme.split('+').next().unwrap_or_default();
    const SCHEMES: [&str; 6] = ["postgres", "postgresql", "postgis", "pgsql", "psql", "pgx"];
    SCHEMES.contains(&scheme).then_some((Dialect::Libpq, rest))
}

/// First names in such lists.
const ADO_NAMES: &str = "host, server, data source, datasource, port, username, user id, userid, user name, user, uid, \
    password, pwd, database, db, dbname, ssl mode, sslmode, pooling, search path, application name";

/// Whether this is a list of `Name=value;`.
pub(super) fn is_ado(text: &str) -> bool {
    let text = text.strip_prefix("pgsql:").unwrap_or(text);
    let Some((first, _)) = text.split_once(';') else {
        return false;
    };
    first.split_once('=').is_some_and(|(name, value)| {
        // libpq's pairs are separated by blanks, and a value may hold anything.
        lists(ADO_NAMES, &name.trim().to_lowercase()) && !value.contains('=')
    })
}

/// `Name=value;Name="value"`.
pub(super) fn parse_ado(text: &str) -> Result<Written, StoreError> {
    let mut rest = text.strip_prefix("pgsql:").unwrap_or(text).trim();
    let mut written = Written::new();
    while !rest.is_empty() {
        let place = written.len() + 1;
        let (name, after) = rest
            .split_once('=')
            .ok_or_else(|| bad(format!("has no `=` in its part number {place}")))?;
        let after = after.trim_start();
        let (value, left) = match after.chars().next().filter(|c| matches!(c, '"' | '\'')) {
            Some(quote) => {
                let unclosed = || bad(format!("has no closing quote in its part number {place}"));
                let (value, left) = after[1..].split_once(quote).ok_or_else(unclosed)?;
                (value, left.trim_start().strip_prefix(';').unwrap_or(left))
            }
            None => after.split_once(';').unwrap_or((after, "")),
        };
        written.push((name.trim().to_lowercase(), value.trim().to_owned()));
        rest = left.trim_start_matches([';', ' ', '\n', '\r', '\t']);
    }
    Ok(written)
}

/// Parameters of libraries, their pools and their caches, in lower case: to the server they mean nothing.
const LEFT_OUT: &[&str] = &[
    // Prisma
    "connection_limit, pool_timeout, pgbouncer, socket_timeout, statement_cache_size, \
     max_connection_lifetime, max_idle_connection_lifetime, single_use_connections",
    // Supabase and Vercel
    "supa, workaround",
    // Rails
    "adapter, pool, reaping_frequency, prepared_statements, statement_limit, checkout_timeout, \
     idle_timeout, min_connections, max_connections, max_age, pool_jitter, keepalive, insert_returning, \
     min_messages, advisory_locks, database_tasks, migrations_paths, reconnect, timeout, variables, \
     prefix",
    // node-postgres and postgres.js
    "uselibpqcompat, statement_timeout, query_timeout, lock_timeout, idle_in_transaction_session_timeout, \
     max, min, idletimeoutmillis, connectiontimeoutmillis, allowexitonidle, max_lifetime, prepare, \
     fetch_types",
    // Django
    "conn_max_age, conn_health_checks, disable_server_side_cursors, atomic_requests, autocommit",
    // SQLAlchemy and asyncpg
    "async_fallback, prepared_statement_cache_size, max_cached_statement_lifetime, \
     max_cacheable_statement_size, command_timeout, executemany_mode, executemany_values_page_size, \
     executemany_batch_page_size, use_native_unicode, isolation_level, min_size, max_size, max_queries, \
     max_inactive_connection_lifetime",
    // pgx, lib/pq and golang-migrate
    "pool_max_conns, pool_min_conns, pool_min_idle_conns, pool_max_conn_lifetime, \
     pool_max_conn_lifetime_jitter, pool_max_conn_idle_time, pool_health_check_period, \
     default_query_exec_mode, statement_cache_capacity, statement_cache_mode, description_cache_capacity, \
     binary_parameters, x-migrations-table, x-statement-timeout, x-multi-statement",
    // sqlx, Ecto, Doctrine, and what sessions are told
    "statement-cache-capacity, pool_size, max_overflow, pool_recycle, pool_pre_ping, queue_target, \
     queue_interval, serverversion, timezone, datestyle",
    // pgjdbc and r2dbc-postgresql
    "preparethreshold, preparedstatementcachequeries, preparedstatementcachesizemib, \
     databasemetadatacachefields, databasemetadatacachefieldsmib, defaultrowfetchsize, adaptivefetch, \
     binarytransfer, binarytransferenable, binarytransferdisable, rewritebatchedinserts, stringtype, \
     loglevel, loggerlevel, loggerfile, logunclosedconnections, logservererrordetail, \
     assumeminserverversion, readonlymode, autosave, cleanupsavepoints, preferquerymode, \
     escapesyntaxcallmode, unknownlength, disablecolumnsanitiser, allowencodingchanges, \
     receivebuffersize, sendbuffersize, maxresultbuffer, cancelsignaltimeout, sockettimeout, \
     hostrecheckseconds, quotereturningidentifiers, maxsize, initialsize, sslfactoryarg",
    // Npgsql
    "pooling, minimum pool size, min pool size, maximum pool size, max pool size, minpoolsize, \
     maxpoolsize, connection idle lifetime, connection pruning interval, connection lifetime, command \
     timeout, commandtimeout, internal command timeout, cancellation timeout, include error detail, \
     include failed batched command, max auto prepare, auto prepare min usages, no reset on close, \
     enlist, read buffer size, write buffer size, load table composites, multiplexing, persist security \
     info, log parameters, server compatibility mode, array nullability mode, check certificate \
     revocation",
];

/// Parameters by other names, in lower case, and libpq's.
const RENAMED: &[(&str, &str)] = &[
    ("username, user id, userid, user name, uid", "user"),
    ("pwd, psw", "password"),
    ("database, db", "dbname"),
    ("server, data source, datasource", "host"),
    ("applicationname, application name", "application_name"),
    (
        "connecttimeout, logintimeout, connection timeout",
        "connect_timeout",
    ),
    ("ssl mode", "sslmode"),
    ("root certificate", "sslrootcert"),
    ("ssl certificate", "sslcert"),
    ("ssl key", "sslkey"),
    ("channelbinding, channel binding", "channel_binding"),
    (
        "targetservertype, target session attributes",
        "target_session_attrs",
    ),
    ("loadbalancehosts, load balance hosts", "load_balance_hosts"),
    ("tcpkeepalive, tcp keepalive", "keepalives"),
    ("gssencmode, gss encryption mode", "gssencmode"),
    ("sslnegotiation, ssl negotiation", "sslnegotiation"),
    (
        "encoding, client encoding, charset, characterencoding",
        "client_encoding",
    ),
    ("passfile", "passfile"),
];

/// Whether a list, separated by commas, holds this name.
fn lists(list: &str, name: &str) -> bool {
    list.split(", ").any(|listed| listed == name)
}

/// Where tables are looked for, by any name.
const SEARCH_PATHS: &str =
    "schema, search_path, searchpath, search path, currentschema, schema_search_path";

/// What would change the connection, and what to do instead.
const REFUSED: &[(&str, &str)] = &[
    (
        "socketfactory",
        "run Cloud SQL's proxy beside the relay and connect to it",
    ),
    (
        "cloudsqlinstance",
        "run Cloud SQL's proxy beside the relay and connect to it",
    ),
    (
        "sslidentity",
        "give the certificate and its key as PEM files in `sslcert` and `sslkey`",
    ),
    (
        "ssl password",
        "give the key without a password in `sslkey`",
    ),
    (
        "sslhostnameverifier",
        "use `sslmode=verify-full` and `sslrootcert`",
    ),
    (
        "integrated security",
        "Kerberos is not supported: use a password or a client certificate",
    ),
    (
        "kerberosservername",
        "Kerberos is not supported: use a password or a client certificate",
    ),
    (
        "authenticationpluginclassname",
        "use a password, in a file if it changes (OUTRIGGER_DATABASE_URL_FILE)",
    ),
];

/// What several parameters say together.
#[derive(Default)]
pub(super) struct Translation {
    dialect: Option<Dialect>,
    /// Where tables are looked for.
    pub(super) schema: Option<String>,
    /// `ssl=...`, as an `sslmode`.
    ssl: Option<&'static str>,
    /// The certificate is not to be looked at.
    unverified: bool,
}

impl Translation {
    pub(super) fn new(dialect: Dialect) -> Self {
        Self {
            dialect: Some(dialect),
            ..Self::default()
        }
    }

    /// A parameter by libpq's name; `None`: it means nothing to the server, or something together with others.
    pub(super) fn take(
        &mut self,
        name: String,
        value: String,
    ) -> Result<Option<(String, String)>, StoreError> {
        let lower = name.to_lowercase();
        let word = value.to_lowercase();
        if let Some((name, remedy)) = REFUSED.iter().find(|(name, _)| *name == lower) {
            return Err(bad(format!(
                "sets `{name}`, which outrigger does not support: {remedy}"
            )));
        }
        if lists(SEARCH_PATHS, &lower) {
            let schema = value.split(',').map(|part| part.trim().trim_matches('"'));
            let schema: Vec<&str> = schema
                .filter(|part| !part.is_empty() && *part != "$user")
                .collect();
            match schema.as_slice() {
                [] => {}
                [only] => self.schema = Some((*only).to_owned()),
                _ => {
                    return Err(bad(
                        "names several schemas to search: remove them, and name the table with its schema in \
                         OUTRIGGER_OUTBOX_TABLE",
                    ));
                }
            }
            return Ok(None);
        }
        let ado = self.dialect == Some(Dialect::Ado);
        match (lower.as_str(), word.as_str()) {
            ("ssl" | "ssl_require", "true" | "1" | "yes" | "on" | "") => {
                let java = self.dialect == Some(Dialect::Jdbc);
                self.ssl = Some(if java { "verify-full" } else { "require" });
            }
            ("ssl" | "ssl_require", "false" | "0" | "no" | "off") => self.ssl = Some("disable"),
            ("ssl", "no-verify") => (self.ssl, self.unverified) = (Some("require"), true),
            ("ssl", _) => return Ok(Some(("sslmode".to_owned(), word))),
            ("sslmode" | "ssl mode", "no-verify") => {
                self.unverified = true;
                return Ok(Some(("sslmode".to_owned(), "require".to_owned())));
            }
            ("sslmode" | "ssl mode", _) => {
                // .NET writes the words without the hyphen.
                let mode = match word.as_str() {
                    "verifyfull" | "verify_full" => "verify-full".to_owned(),
                    "verifyca" | "verify_ca" => "verify-ca".to_owned(),
                    _ => word,
                };
                return Ok(Some(("sslmode".to_owned(), mode)));
            }
            ("sslfactory", factory) => self.unverified |= factory.contains("nonvalidating"),
            ("trust server certificate" | "trustservercertificate", _) => {
                self.unverified |= word == "true"
            }
            ("sslaccept", "strict") => self.ssl = Some("verify-full"),
            ("sslaccept", _) => {}
            ("targetservertype" | "target session attributes", "primary" | "master") => {
                return Ok(Some((
                    "target_session_attrs".to_owned(),
                    "read-write".to_owned(),
                )));
            }
            ("loadbalancehosts" | "load balance hosts", _) => {
                let value = if word == "true" { "random" } else { "disable" };
                return Ok(Some(("load_balance_hosts".to_owned(), value.to_owned())));
            }
            ("tcpkeepalive" | "tcp keepalive", _) => {
                let value = if word == "false" { "0" } else { "1" };
                return Ok(Some(("keepalives".to_owned(), value.to_owned())));
            }
            ("readonly", "false") => {}
            ("readonly", _) => {
                return Err(bad(
                    "asks for read-only sessions, but the relay writes: remove `readOnly`",
                ));
            }
            ("timeout", _) if ado => return Ok(Some(("connect_timeout".to_owned(), value))),
            ("keepalive", _) if ado => return Ok(Some(("keepalives_idle".to_owned(), value))),
            (name, _) if LEFT_OUT.iter().any(|list| lists(list, name)) => {}
            _ => {
                let known = RENAMED.iter().find(|(others, _)| lists(others, &lower));
                return Ok(Some(match known {
                    Some((_, known)) => ((*known).to_owned(), value),
                    None if ado => (lower, value),
                    None => (name, value),
                }));
            }
        }
        Ok(None)
    }

    /// Puts what several parameters say together into the values.
    pub(super) fn finish(&self, values: &mut std::collections::BTreeMap<String, String>) {
        match self.ssl {
            // Prisma's `sslaccept=strict` adds to its `sslmode`.
            Some("verify-full") if values.get("sslmode").is_none_or(|mode| mode != "disable") => {
                values.insert("sslmode".to_owned(), "verify-full".to_owned());
            }
            Some(mode) => {
                values
                    .entry("sslmode".to_owned())
                    .or_insert_with(|| mode.to_owned());
            }
            None => {}
        }
        if self.unverified {
            // With a root certificate, `require` would look at the server's.
            values.remove("sslrootcert");
            let mode = values
                .entry("sslmode".to_owned())
                .or_insert_with(|| "require".to_owned());
            if mode.starts_with("verify") {
                "require".clone_into(mode);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::super::dsn::Params;

    #[track_caller]
    fn reads(text: &str, expected: &str) {
        let params = Params::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(params.for_tests(), expected, "{text}");
    }

    #[test]
    fn urls_of_other_libraries_mean_what_they_mean_there() {
        for (text, expected) in [
            // Prisma
            (
                "postgresql://u:p@h:5432/d?schema=shop&connection_limit=5&pool_timeout=2&pgbouncer=true",
                "dbname=d host=h password=p port=5432 user=u schema=shop",
            ),
            (
                "postgresql://u:p@h/d?sslmode=require&sslaccept=strict",
                "dbname=d host=h password=p sslmode=verify-full user=u",
            ),
            (
                "postgresql://u:p@h/d?sslmode=require&sslaccept=accept_invalid_certs",
                "dbname=d host=h password=p sslmode=require user=u",
            ),
            // SQLAlchemy
            (
                "postgresql+psycopg2://u:p@h/d",
                "dbname=d host=h password=p user=u",
            ),
            (
                "postgresql+psycopg://u:p@/d?host=a:1&host=b:2",
                "dbname=d host=a,b password=p port=1,2 user=u",
            ),
            (
                "postgresql+asyncpg://u:p@h/d?ssl=verify-full&prepared_statement_cache_size=0",
                "dbname=d host=h password=p sslmode=verify-full user=u",
            ),
            (
                "postgresql+pg8000://u:p@/d?host=/tmp",
                "dbname=d host=/tmp password=p user=u",
            ),
            // Heroku, Neon, Supabase
            (
                "postgres://u:p@ec2-1.compute.amazonaws.com:5432/d?sslmode=require",
                "dbname=d host=ec2-1.compute.amazonaws.com password=p port=5432 sslmode=require user=u",
            ),
            (
                "postgresql://u:p@ep-x.eu.neon.tech/d?sslmode=require&channel_binding=require&options=endpoint%3Dep-x",
                "channel_binding=require dbname=d host=ep-x.eu.neon.tech options=endpoint=ep-x password=p sslmode=require user=u",
            ),
            (
                "postgres://postgres.ref:p@aws-0.pooler.supabase.com:6543/postgres?pgbouncer=true&supa=base-pooler.x",
                "dbname=postgres host=aws-0.pooler.supabase.com password=p port=6543 user=postgres.ref",
            ),
            // Azure
            (
                "postgres://me%40srv:p@srv.postgres.database.azure.com/d?sslmode=require",
                "dbname=d host=srv.postgres.database.azure.com password=p sslmode=require user=me@srv",
            ),
            // Rails, Django, node-postgres, pgx, lib/pq, Doctrine, Ecto
            (
                "postgres://u:p@h/d?pool=5&reaping_frequency=10&prepared_statements=false&encoding=unicode&schema_search_path=shop",
                "client_encoding=unicode dbname=d host=h password=p user=u schema=shop",
            ),
            (
                "postgis://u:p@h/d?conn_max_age=600&ssl_require=true",
                "dbname=d host=h password=p sslmode=require user=u",
            ),
            (
                "postgres://u:p@h/d?sslmode=no-verify&sslrootcert=/ca&uselibpqcompat=true",
                "dbname=d host=h password=p sslmode=require user=u",
            ),
            (
                "postgres://u:p@h/d?ssl=0&statement_timeout=5000&connectionTimeoutMillis=1",
                "dbname=d host=h password=p sslmode=disable user=u",
            ),
            (
                "postgres://u:p@h/d?pool_max_conns=10&search_path=shop&default_query_exec_mode=exec",
                "dbname=d host=h password=p user=u schema=shop",
            ),
            (
                "postgres://u:p@h/d?binary_parameters=yes&x-migrations-table=m",
                "dbname=d host=h password=p user=u",
            ),
            (
                "postgresql://u:p@h:1/d?serverVersion=15&charset=utf8",
                "client_encoding=utf8 dbname=d host=h password=p port=1 user=u",
            ),
            ("pgsql://u:p@h/d", "dbname=d host=h password=p user=u"),
            (
                "postgres://u:p@h/d?search_path=%22$user%22,public",
                "dbname=d host=h password=p user=u schema=public",
            ),
            // Java
            (
                "jdbc:postgresql://h:1/d?user=me@srv&password=p%40s+s&ssl=true&currentSchema=shop&ApplicationName=x",
                "application_name=x dbname=d host=h password=p@s s port=1 sslmode=verify-full user=me@srv schema=shop",
            ),
            (
                "jdbc:postgresql://a:1,b:2/d?targetServerType=primary&loadBalanceHosts=true&ssl=true&sslfactory=org.postgresql.ssl.NonValidatingFactory",
                "dbname=d host=a,b load_balance_hosts=random port=1,2 sslmode=require target_session_attrs=read-write",
            ),
            ("jdbc:postgresql:d", "dbname=d host=localhost"),
            (
                "jdbc:postgresql://h/d?loginTimeout=5&tcpKeepAlive=false&reWriteBatchedInserts=true&prepareThreshold=0",
                "connect_timeout=5 dbname=d host=h keepalives=0",
            ),
            (
                "r2dbc:postgresql://u:p@h/d",
                "dbname=d host=h password=p user=u",
            ),
            // .NET and PHP
            (
                "Host=h;Port=1;Username=u;Password=\"p;=s\";Database=d;SSL Mode=VerifyFull;Pooling=true;Maximum Pool Size=5;Timeout=7",
                "connect_timeout=7 dbname=d host=h password=p;=s port=1 sslmode=verify-full user=u",
            ),
            (
                "Server=h;User Id=u;Password=p=q;Database=d;SslMode=Require;Trust Server Certificate=true;Search Path=shop;",
                "dbname=d host=h password=p=q sslmode=require user=u schema=shop",
            ),
            (
                "pgsql:host=h;port=1;dbname=d;user=u;password=p",
                "dbname=d host=h password=p port=1 user=u",
            ),
            // libpq's own
            (
                "host=h password=a;b dbname=d",
                "dbname=d host=h password=a;b",
            ),
            (
                "host=h password='x://y' dbname=d",
                "dbname=d host=h password=x://y",
            ),
        ] {
            reads(text, expected);
        }
    }

    #[test]
    fn what_would_be_another_connection_is_refused_with_the_way_out() {
        for (text, says) in [
            (
                "jdbc:postgresql:///d?socketFactory=com.google.cloud.sql.postgres.SocketFactory",
                "Cloud SQL's proxy",
            ),
            (
                "postgresql://u:p@h/d?sslidentity=client.p12",
                "`sslcert` and `sslkey`",
            ),
            (
                "postgres://u:p@h/d?search_path=a,b",
                "OUTRIGGER_OUTBOX_TABLE",
            ),
            ("jdbc:postgresql://h/d?readOnly=true", "the relay writes"),
            ("Host=h;Integrated Security=true", "Kerberos"),
            ("mysql+pymysql://u:p@h/d", "unknown scheme"),
            ("jdbc:mysql://h/d", "unknown scheme"),
        ] {
            let error = Params::parse(text).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
