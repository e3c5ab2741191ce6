//! Connection parameters as tokio-postgres takes them.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{ChannelBinding, LoadBalanceHosts, TargetSessionAttrs};

use super::dsn::{Params, all, bad};
use super::error::StoreError;
use super::service;

/// Per host; also the bound of small waits.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Everything but TLS, and why a password file that is there was not used. Every problem is in the error.
pub(super) fn base_config(
    params: &Params,
    variables: &BTreeMap<String, String>,
) -> Result<(Config, Option<String>), StoreError> {
    let mut problems = Vec::new();
    let mut note = None;
    let mut config = Config::new();
    config
        .connect_timeout(CONNECT_TIMEOUT)
        .keepalives_idle(Duration::from_secs(30))
        .keepalives_interval(Duration::from_secs(10))
        .keepalives_retries(3)
        .tcp_user_timeout(Duration::from_secs(20))
        .target_session_attrs(TargetSessionAttrs::ReadWrite)
        .application_name(
            params
                .get("application_name")
                .or(params.get("fallback_application_name"))
                .unwrap_or("outrigger"),
        );
    let hosts = add_hosts(&mut config, params);
    let hosts = hosts.unwrap_or_else(|problem| {
        problems.push(problem);
        Vec::new()
    });
    let user = params.get("user");
    if let Some(user) = user {
        config.user(user);
    }
    if let Some(name) = params.get("dbname").or(user) {
        config.dbname(name);
    }
    if let Some(password) = params.get("password") {
        config.password(password);
    } else {
        match service::password(params.get("passfile"), &hosts, &config, variables) {
            Ok(looked) => {
                note = looked.note;
                if let Some(password) = looked.password {
                    config.password(password);
                }
            }
            Err(problem) => problems.push(problem),
        }
    }
    if let Some(options) = params.get("options") {
        config.options(options);
    }
    problems.extend(set_choices(&mut config, params).err());
    problems.extend(set_times(&mut config, params).err());
    all(problems)?;
    Ok((config, note))
}

/// A name, an address, or the folder of a socket. Anything else is likely a piece of a password, and hosts are shown.
fn is_host(host: &str) -> bool {
    let named = |c: char| c.is_alphanumeric() || matches!(c, '-' | '.' | '_' | ':' | '%');
    host.starts_with(['/', '@']) || host.chars().all(named)
}

fn add_hosts(config: &mut Config, params: &Params) -> Result<Vec<(String, u16)>, StoreError> {
    let hosts: Vec<&str> = match params.get("host").or(params.get("hostaddr")) {
        Some(hosts) => hosts.split(',').collect(),
        None => return Err(bad("names no host: set OUTRIGGER_DATABASE_URL or PGHOST")),
    };
    let ports: Vec<u16> = match params.get("port") {
        None => vec![5432],
        Some(list) => list
            .split(',')
            .map(|port| match port.trim() {
                "" => Some(5432_u16),
                port => port.parse().ok().filter(|port| *port > 0),
            })
            .map(|port| port.ok_or_else(|| bad("has a port that is not a number from 1 to 65535")))
            .collect::<Result<_, _>>()?,
    };
    if ports.len() != 1 && ports.len() != hosts.len() {
        return Err(bad(
            "has as many ports as neither one nor the number of hosts",
        ));
    }
    let mut targets = Vec::new();
    for (i, host) in hosts.iter().enumerate() {
        if host.is_empty() {
            return Err(bad("has an empty host in its list"));
        }
        if !is_host(host) {
            return Err(bad(format!(
                "has a host that cannot be one: {}",
                crate::user_info::REMEDY
            )));
        }
        let port = if ports.len() == 1 { ports[0] } else { ports[i] };
        config.host(*host).port(port);
        targets.push(((*host).to_owned(), port));
    }
    if params.get("host").is_some()
        && let Some(addresses) = params.get("hostaddr")
    {
        let addresses: Vec<&str> = addresses.split(',').collect();
        if addresses.len() != hosts.len() {
            return Err(bad("has a different number of host and hostaddr entries"));
        }
        for address in addresses {
            config.hostaddr(
                address
                    .parse()
                    .map_err(|_| bad("has a hostaddr that is not an IP address"))?,
            );
        }
    }
    Ok(targets)
}

fn set_choices(config: &mut Config, params: &Params) -> Result<(), StoreError> {
    match params.get("channel_binding") {
        None | Some("prefer") => {}
        Some("require") => _ = config.channel_binding(ChannelBinding::Require),
        Some("disable") => _ = config.channel_binding(ChannelBinding::Disable),
        Some(_) => {
            return Err(bad(
                "has an unknown channel_binding: use disable, prefer or require",
            ));
        }
    }
    match params.get("target_session_attrs") {
        None | Some("read-write" | "primary") => {}
        Some("any") => _ = config.target_session_attrs(TargetSessionAttrs::Any),
        Some(_) => {
            return Err(bad(
                "asks for a read-only server in target_session_attrs, but the relay writes: use read-write or any",
            ));
        }
    }
    match params.get("load_balance_hosts") {
        None | Some("disable") => {}
        Some("random") => _ = config.load_balance_hosts(LoadBalanceHosts::Random),
        Some(_) => {
            return Err(bad(
                "has an unknown load_balance_hosts: use disable or random",
            ));
        }
    }
    match params.get("gssencmode") {
        None | Some("disable" | "prefer") => {}
        Some(_) => {
            return Err(bad(
                "has a gssencmode other than disable or prefer: GSSAPI is not supported",
            ));
        }
    }
    match params
        .get("client_encoding")
        .map(str::to_lowercase)
        .as_deref()
    {
        None | Some("utf8" | "utf-8" | "unicode" | "auto") => Ok(()),
        Some(_) => Err(bad("has a client_encoding other than UTF8: remove it")),
    }
}

fn set_times(config: &mut Config, params: &Params) -> Result<(), StoreError> {
    let number = |name: &str| -> Result<Option<i64>, StoreError> {
        params
            .get(name)
            .map(|value| {
                value
                    .trim()
                    .parse()
                    .map_err(|_| bad(format!("has a {name} that is not a number")))
            })
            .transpose()
    };
    let positive = |name: &str| {
        Ok::<_, StoreError>(
            number(name)?
                .and_then(|n| u64::try_from(n).ok())
                .filter(|n| *n > 0),
        )
    };
    if let Some(seconds) = positive("connect_timeout")? {
        // libpq: at least two seconds; zero and negative mean forever, which nothing here ever waits.
        config.connect_timeout(Duration::from_secs(seconds.max(2)));
    }
    if number("keepalives")? == Some(0) {
        config.keepalives(false);
    }
    if let Some(seconds) = positive("keepalives_idle")? {
        config.keepalives_idle(Duration::from_secs(seconds));
    }
    if let Some(seconds) = positive("keepalives_interval")? {
        config.keepalives_interval(Duration::from_secs(seconds));
    }
    if let Some(count) = positive("keepalives_count")? {
        config.keepalives_retries(count.min(127) as u32);
    }
    if let Some(millis) = positive("tcp_user_timeout")? {
        config.tcp_user_timeout(Duration::from_millis(millis));
    }
    Ok(())
}
