//! From settings to open connections, with libpq's meaning of every parameter.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use deadpool_postgres::{
    Connect, Hook, HookError, Manager, ManagerConfig, Pool, RecyclingMethod, Runtime, Timeouts,
};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_postgres::config::{ChannelBinding, Host, SslMode, SslNegotiation};
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Client, Config, Connection, Error, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::dsn::{Params, all, bad};
use super::error::{StoreError, URL};
use super::options::{CONNECT_TIMEOUT, base_config};
use super::tls::{self, Use};
use crate::secret_file::SecretFile;

/// Where the database is and how to log in. Built from settings; nothing here reads the environment.
#[derive(Debug, Clone)]
pub struct ConnectSettings {
    /// URL or `key=value` list, as libpq takes it.
    pub url: Option<SecretString>,
    /// What the user gave the URL by, for messages.
    pub url_name: String,
    /// Where the URL is read again for each connection; takes the place of `url`.
    pub url_file: Option<SecretFile>,
    /// `PG*` variables, by name; they fill what the URL leaves out.
    pub variables: BTreeMap<String, String>,
    /// Most connections of the pool, the listening one not counted.
    pub pool_size: usize,
    /// Longest wait for any one statement, and for a free connection.
    pub timeout: Duration,
}

impl Default for ConnectSettings {
    fn default() -> Self {
        Self {
            url: None,
            url_name: URL.to_owned(),
            url_file: None,
            variables: BTreeMap::new(),
            pool_size: 2,
            timeout: Duration::from_secs(30),
        }
    }
}

type TlsStream = <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream;
pub(super) type RawConnection = Connection<Socket, TlsStream>;

/// Opens connections. What the settings name in files is read again for each, so that renewed certificates and
/// passwords are picked up by reconnecting.
#[derive(Clone)]
pub(super) struct Connector {
    settings: Arc<ConnectSettings>,
    /// As last read without a mistake. Shared by all clones.
    way: Arc<Mutex<Way>>,
    /// Connections are known to lead to a session of their own. Shared by all clones.
    direct: Arc<AtomicBool>,
    /// Why the last connection is not encrypted although TLS was tried first. Shared by all clones.
    fallback: Arc<Mutex<Option<String>>>,
    /// Where sessions led so far. Shared by all clones.
    server: Arc<Server>,
}

/// The server that sessions lead to, as far as it was heard of.
#[derive(Debug, Default)]
struct Server {
    /// When it was started, as its last tick said.
    start: Mutex<Option<i64>>,
    /// Sessions that began before lead to a server that takes no writes any more, or is another one.
    retired: watch::Sender<Option<Instant>>,
}

/// How to connect, files included.
#[derive(Clone)]
struct Way {
    config: Config,
    tls: MakeRustlsConnect,
    usage: Use,
    /// Where the URL says that tables are.
    schema: Option<String>,
    /// Why a password file that is there was not used.
    note: Option<String>,
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector")
            .field("target", &self.target())
            .finish_non_exhaustive()
    }
}

impl Way {
    /// Reads the settings. Touches files (URL, certificates, password file), but not the network: blocking.
    fn read(settings: &ConnectSettings) -> Result<Self, StoreError> {
        let again = settings.url_file.as_ref().map(SecretFile::read);
        let again = again.transpose().map_err(StoreError::fatal)?;
        let url = again.as_ref().or(settings.url.as_ref());
        let mut params = Params::parse(url.map_or("", |url| url.expose_secret()))?;
        params.fill_from(&settings.variables)?;
        let (policy, config) = (
            tls::policy(&params),
            base_config(&params, &settings.variables),
        );
        let ((mut usage, verify), (mut config, note)) = match (policy, config) {
            (Ok(policy), Ok(config)) => (policy, config),
            (policy, config) => {
                let problems = [policy.err(), config.err()].into_iter().flatten();
                return Err(all(problems.collect())
                    .err()
                    .unwrap_or_else(|| bad("cannot be used")));
            }
        };
        if config
            .get_hosts()
            .iter()
            .all(|host| matches!(host, Host::Unix(_)))
        {
            // libpq ignores sslmode on a Unix socket.
            usage = Use::Never;
        }
        let direct = match params.get("sslnegotiation") {
            None | Some("postgres") => false,
            Some("direct") if usage == Use::Always => true,
            Some("direct") => {
                return Err(bad(
                    "has sslnegotiation=direct, which needs sslmode=require or stronger",
                ));
            }
            Some(_) => return Err(bad("has an unknown sslnegotiation: use postgres or direct")),
        };
        if direct {
            config.ssl_negotiation(SslNegotiation::Direct);
        }
        config.ssl_mode(match usage {
            Use::Never | Use::IfRefused => SslMode::Disable,
            Use::IfPossible => SslMode::Prefer,
            Use::Always => SslMode::Require,
        });
        if config.get_channel_binding() == ChannelBinding::Require && usage == Use::Never {
            return Err(bad(
                "has channel_binding=require, which needs TLS: set sslmode=require or stronger",
            ));
        }
        let tls = MakeRustlsConnect::new(tls::config(&params, verify, direct)?);
        Ok(Self {
            config,
            tls,
            usage,
            schema: params.schema,
            note,
        })
    }

    /// Opens one connection, falling back between TLS and plain as `allow` and `prefer` demand. Says why it fell back
    /// to plain, if it did.
    async fn open(&self) -> Result<(Client, RawConnection, Option<String>), Error> {
        let error = match self.config.connect(self.tls.clone()).await {
            Ok((client, connection)) => return Ok((client, connection, None)),
            Err(error) => error,
        };
        let refused = error.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION);
        let second = match self.usage {
            Use::IfPossible if refused || is_tls(&error) => SslMode::Disable,
            Use::IfRefused if refused => SslMode::Require,
            _ => return Err(error),
        };
        let mut config = self.config.clone();
        config.ssl_mode(second);
        match config.connect(self.tls.clone()).await {
            Ok((client, connection)) => {
                let plain = second == SslMode::Disable;
                let why = plain.then(|| StoreError::from(error).to_string());
                Ok((client, connection, why))
            }
            // The first error says more than that of the fallback.
            Err(_) => Err(error),
        }
    }
}

/// Refuses every connection before a byte is sent, for a reason of ours: the client library has no other way to be
/// told one.
struct Refusal(StoreError);

impl MakeTlsConnect<Socket> for Refusal {
    type Stream = TlsStream;
    type TlsConnect = <MakeRustlsConnect as MakeTlsConnect<Socket>>::TlsConnect;
    type Error = StoreError;

    fn make_tls_connect(&mut self, _: &str) -> Result<Self::TlsConnect, StoreError> {
        Err(self.0.clone())
    }
}

impl Connector {
    /// Reads the settings. Touches files (URL, certificates, password file), but not the network.
    pub(super) fn new(settings: &ConnectSettings) -> Result<Self, StoreError> {
        let way = Way::read(settings).map_err(|error| error.naming(&settings.url_name))?;
        Ok(Self {
            settings: Arc::new(settings.clone()),
            way: Arc::new(Mutex::new(way)),
            direct: Arc::default(),
            fallback: Arc::default(),
            server: Arc::default(),
        })
    }

    /// Why the last connection is not encrypted although TLS was tried first, as `sslmode=prefer` allows.
    pub(super) fn fallback(&self) -> Option<String> {
        self.fallback
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Falling back is said whenever its reason changes, so once for all connections.
    fn note_fallback(&self, why: Option<String>) {
        let mut known = self.fallback.lock().unwrap_or_else(PoisonError::into_inner);
        if *known != why
            && let Some(reason) = &why
        {
            tracing::warn!(
                reason,
                "the database connection is not encrypted: TLS failed, and sslmode=prefer allows to do without it; \
                 set sslmode=require or stronger in OUTRIGGER_DATABASE_URL to insist, or sslmode=disable to accept it"
            );
        }
        *known = why;
    }

    /// As last read.
    fn way(&self) -> Way {
        self.way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Whether each connection is known to have a session of its own, with no transaction pooler in between.
    pub(super) fn is_direct(&self) -> bool {
        self.direct.load(Ordering::Relaxed)
    }

    /// Says whether it is known.
    pub(super) fn set_direct(&self, direct: bool) {
        self.direct.store(direct, Ordering::Relaxed);
    }

    /// An error as the user of these settings should read it.
    pub(super) fn explain(&self, error: impl Into<StoreError>) -> StoreError {
        let error = error.into().naming(&self.settings.url_name);
        let no_password = error.what().contains("password");
        match self.way().note.filter(|_| no_password) {
            Some(note) => error.with_remedy(note),
            None => error,
        }
    }

    /// The schema that the URL names for tables.
    pub(super) fn schema(&self) -> Option<String> {
        self.way().schema
    }

    pub(super) fn url_name(&self) -> &str {
        &self.settings.url_name
    }

    /// Drops every session that is open now, each when it is used next. After a switchover a server may keep its
    /// sessions and only refuse to write; a new session is offered to each address again, with names looked up anew.
    pub(super) fn retire_sessions(&self) {
        self.server.retired.send_replace(Some(Instant::now()));
    }

    /// Changes when sessions are retired.
    pub(super) fn retired(&self) -> watch::Receiver<Option<Instant>> {
        self.server.retired.subscribe()
    }

    /// Takes in when the server of a session was started. Where that changes, the sessions before it lead elsewhere.
    pub(super) fn met(&self, start: i64) {
        let mut known = self
            .server
            .start
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if known.replace(start).is_some_and(|known| known != start) {
            self.retire_sessions();
        }
    }

    /// Host, port and database, for people. Never the password.
    pub(super) fn target(&self) -> String {
        let config = self.way().config;
        let ports = config.get_ports();
        let hosts: Vec<String> = config
            .get_hosts()
            .iter()
            .enumerate()
            .map(|(i, host)| {
                let port = ports.get(i).or(ports.first()).copied().unwrap_or(5432);
                match host {
                    Host::Tcp(name) => format!("{name}:{port}"),
                    Host::Unix(path) => format!("{}:{port}", path.display()),
                }
            })
            .collect();
        format!(
            "{}/{}",
            hosts.join(","),
            config.get_dbname().unwrap_or_default()
        )
    }

    /// Opens one connection, by the files as they are now. The caller sets the deadline.
    pub(super) async fn open(&self) -> Result<(Client, RawConnection), Error> {
        let settings = Arc::clone(&self.settings);
        let read = tokio::task::spawn_blocking(move || Way::read(&settings)).await;
        let way = match read.unwrap_or_else(|error| Err(StoreError::fatal(error.to_string()))) {
            Ok(way) => way,
            // A file that was good when the relay started may be good again in a moment.
            Err(error) => {
                let refusal = Refusal(StoreError::unavailable(error.to_string()));
                return self.way().config.connect(refusal).await;
            }
        };
        *self.way.lock().unwrap_or_else(PoisonError::into_inner) = way.clone();
        let (client, connection, fallback) = way.open().await?;
        self.note_fallback(fallback);
        Ok((client, connection))
    }

    /// Asks the server to stop what it is doing for `client`, in the background and without insisting: a server that waits for
    /// a lock does not notice that its client is gone.
    pub(super) fn cancel(&self, client: &Client) {
        let (token, tls) = (client.cancel_token(), self.way().tls);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let _ = tokio::time::timeout(CONNECT_TIMEOUT, token.cancel_query(tls)).await;
            });
        }
    }

    /// Longest sensible wait for `open`: every host may use up its connect timeout, on both attempts.
    pub(super) fn deadline(&self) -> Duration {
        let config = self.way().config;
        let hosts = config.get_hosts().len().max(1) as u32;
        let one = config
            .get_connect_timeout()
            .copied()
            .unwrap_or(CONNECT_TIMEOUT);
        one.saturating_mul(2 * hosts).max(CONNECT_TIMEOUT)
    }

    /// The pool. No connection is opened yet.
    pub(super) fn pool(&self, size: usize, wait: Duration) -> Result<Pool, StoreError> {
        let manager = Manager::from_connect(
            self.way().config,
            self.clone(),
            ManagerConfig {
                // A broken connection is noticed by its task; asking the server again would cost a round trip.
                recycling_method: RecyclingMethod::Fast,
            },
        );
        let retired = self.retired();
        let current = Hook::sync_fn(move |_, session| match *retired.borrow() {
            Some(at) if session.created <= at => Err(HookError::message("retired")),
            _ => Ok(()),
        });
        Pool::builder(manager)
            .max_size(size.max(1))
            .pre_recycle(current)
            .runtime(Runtime::Tokio1)
            .timeouts(Timeouts {
                wait: Some(wait),
                create: Some(self.deadline()),
                recycle: Some(CONNECT_TIMEOUT),
            })
            .build()
            .map_err(|error| StoreError::fatal(error.to_string()))
    }
}

impl Connect for Connector {
    fn connect(
        &self,
        _: &Config,
    ) -> futures_util::future::BoxFuture<'_, Result<(Client, JoinHandle<()>), Error>> {
        Box::pin(async move {
            let (client, connection) = self.open().await?;
            let task = tokio::spawn(async move {
                if let Err(error) = connection.await {
                    let error = StoreError::from(error);
                    tracing::debug!(%error, "a database connection ended");
                }
            });
            Ok((client, task))
        })
    }
}

fn is_tls(error: &Error) -> bool {
    // The kind is private; its Display is the only way to tell.
    error.to_string().contains("TLS")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use std::io::Write as _;

    use tokio_postgres::config::TargetSessionAttrs;

    use super::*;

    fn connector(url: &str) -> Result<Connector, StoreError> {
        Connector::new(&ConnectSettings {
            url: Some(url.into()),
            ..ConnectSettings::default()
        })
    }

    #[test]
    fn defaults_are_those_of_a_relay() {
        let config = connector("postgres://u:p@h/d").unwrap().way().config;
        assert_eq!(config.get_connect_timeout(), Some(&Duration::from_secs(5)));
        assert_eq!(config.get_keepalives_idle(), Duration::from_secs(30));
        assert_eq!(
            config.get_tcp_user_timeout(),
            Some(&Duration::from_secs(20))
        );
        assert_eq!(
            config.get_target_session_attrs(),
            TargetSessionAttrs::ReadWrite
        );
        assert_eq!(config.get_application_name(), Some("outrigger"));
        assert_eq!(config.get_ssl_mode(), SslMode::Prefer);
    }

    #[test]
    fn parameters_reach_the_connection() {
        let connector = connector(
            "postgres://u@a:1,b:2/d?connect_timeout=7&application_name=x&target_session_attrs=any\
             &channel_binding=disable&options=-c%20geqo%3Doff&sslmode=require&sslnegotiation=direct",
        )
        .unwrap();
        assert_eq!(connector.target(), "a:1,b:2/d");
        let config = connector.way().config;
        assert_eq!(config.get_ports(), [1, 2]);
        assert_eq!(config.get_connect_timeout(), Some(&Duration::from_secs(7)));
        assert_eq!(config.get_target_session_attrs(), TargetSessionAttrs::Any);
        assert_eq!(config.get_channel_binding(), ChannelBinding::Disable);
        assert_eq!(config.get_options(), Some("-c geqo=off"));
        assert_eq!(config.get_ssl_negotiation(), SslNegotiation::Direct);
    }

    #[test]
    fn contradictions_are_refused() {
        for (url, says) in [
            ("postgres:///d", "names no host"),
            ("postgres://h:0/d", "port"),
            ("postgres://h/d?sslnegotiation=direct", "sslmode=require"),
            (
                "postgres://h/d?channel_binding=require&sslmode=disable",
                "needs TLS",
            ),
            (
                "postgres://h/d?target_session_attrs=standby",
                "the relay writes",
            ),
            ("postgres://h/d?connect_timeout=soon", "connect_timeout"),
            ("host=a,b port=1,2,3", "ports"),
        ] {
            let error = connector(url).unwrap_err().to_string();
            assert!(error.contains(says), "{url}: {error}");
        }
    }

    #[test]
    fn the_password_file_is_searched_like_libpq_does() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        // As it is made: nobody else may read it.
        writeln!(
            file,
            "# comment\nother:*:*:*:no\nh:5432:d:u:p\\:a\\\\ss:word\n*:*:*:*:last"
        )
        .unwrap();
        let path = file.path().display();
        let config = connector(&format!("host=h user=u dbname=d passfile={path}"))
            .unwrap()
            .way()
            .config;
        assert_eq!(config.get_password(), Some(&b"p:a\\ss:word"[..]));
        let config = connector(&format!("host=h user=v dbname=d passfile={path}"))
            .unwrap()
            .way()
            .config;
        assert_eq!(config.get_password(), Some(&b"last"[..]));
        let debug = format!("{:?}", connector("postgres://u:hunter2@h/d").unwrap());
        assert!(!debug.contains("hunter2"), "{debug}");
    }
}
