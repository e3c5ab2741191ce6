//! Files that libpq reads beside the connection string: services (`pg_service.conf`) and passwords (`.pgpass`).

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tokio_postgres::Config;

use super::dsn::{Written, bad};
use super::error::StoreError;
use crate::secret_file::read_text;

/// Where Debian's libpq looks for services of the whole machine; `PGSYSCONFDIR` names another folder.
const SYSTEM_FOLDER: &str = "/etc/postgresql-common";

fn home(variables: &BTreeMap<String, String>) -> Option<PathBuf> {
    let home = variables.get("HOME").filter(|home| !home.is_empty());
    home.map(PathBuf::from)
}

/// The parameters of a service: of the user's file (`file`, or `~/.pg_service.conf`), or else of the machine's.
///
/// # Errors
/// When no file has it, or the one that has it cannot be understood.
pub(super) fn find(
    name: &str,
    file: Option<&str>,
    variables: &BTreeMap<String, String>,
) -> Result<Written, StoreError> {
    let own = match file {
        Some(file) => Some(PathBuf::from(file)),
        None => home(variables).map(|home| home.join(".pg_service.conf")),
    };
    let system = variables
        .get("PGSYSCONFDIR")
        .map_or(SYSTEM_FOLDER, String::as_str);
    let system = Path::new(system).join("pg_service.conf");
    let mut looked = Vec::new();
    for path in own.into_iter().chain([system]) {
        if !path.exists() {
            looked.push(format!("{} (not there)", path.display()));
            continue;
        }
        let text = read_text(&path).map_err(|why| {
            StoreError::fatal(format!("the service file {}: {why}", path.display()))
        })?;
        if let Some(found) = section(&text, name, &path)? {
            return Ok(found);
        }
        looked.push(path.display().to_string());
    }
    Err(StoreError::fatal(format!(
        "the service of the database (`service` or PGSERVICE) is defined nowhere; looked in {}",
        looked.join(" and ")
    )))
}

/// `[name]`, then `key=value` on a line of its own.
fn section(text: &str, name: &str, path: &Path) -> Result<Option<Written>, StoreError> {
    let mut found: Option<Written> = None;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        let wrong = |what: &str| {
            let (path, number) = (path.display(), number + 1);
            Err(StoreError::fatal(format!(
                "the service file {path}, line {number}: {what}"
            )))
        };
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(header) = line.strip_prefix('[') {
            if found.is_some() {
                break;
            }
            if header.strip_suffix(']') == Some(name) {
                found = Some(Written::new());
            }
        } else if let Some(found) = &mut found {
            match line.split_once('=') {
                Some(("service" | "servicefile", _)) => {
                    return wrong("a service cannot refer to another");
                }
                Some((key, value)) => found.push((key.trim().to_owned(), value.trim().to_owned())),
                None if line.starts_with("ldap") => return wrong("LDAP is not supported"),
                None => return wrong("expected `key=value`"),
            }
        }
    }
    Ok(found)
}

/// What a password file said.
#[derive(Debug, Default)]
pub(super) struct Looked {
    pub(super) password: Option<String>,
    /// Why a file that is there was not used.
    pub(super) note: Option<String>,
}

/// Looks a password up in a password file, as libpq does: one line for each, `host:port:database:user:password`, `*` for
/// any, `\` escapes. A file that others may read is not used. `given`: the file somebody named; otherwise it is
/// `~/.pgpass`, which need not be there.
pub(super) fn password(
    given: Option<&str>,
    hosts: &[(String, u16)],
    config: &Config,
    variables: &BTreeMap<String, String>,
) -> Result<Looked, StoreError> {
    let path = match given {
        Some(path) => PathBuf::from(path),
        None => match home(variables) {
            Some(home) => home.join(".pgpass"),
            None => return Ok(Looked::default()),
        },
    };
    let shown = path.display();
    let file = match fs::metadata(&path) {
        Ok(file) => file,
        Err(error) if given.is_none() && error.kind() == ErrorKind::NotFound => {
            return Ok(Looked::default());
        }
        Err(error) if given.is_some() => {
            return Err(bad(format!(
                "names a passfile `{shown}` that cannot be read: {error}"
            )));
        }
        Err(error) => {
            return Ok(note(format!(
                "the password file {shown} cannot be read: {error}"
            )));
        }
    };
    if !file.is_file() {
        return Ok(note(format!(
            "the password file {shown} is not used: it is not a plain file"
        )));
    }
    if file.permissions().mode() & 0o077 != 0 {
        return Ok(note(format!(
            "the password file {shown} is not used: group or others may access it; chmod 600 {shown}"
        )));
    }
    let text = match read_text(&path) {
        Ok(text) => text,
        Err(why) if given.is_none() => {
            return Ok(note(format!("the password file {shown}: {why}")));
        }
        Err(why) => return Err(bad(format!("names a passfile `{shown}`: {why}"))),
    };
    let fits = |pattern: &str, value: &str| pattern == "*" || pattern == value;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let fields = split_fields(line);
        let [host, port, database, user, password] = fields.as_slice() else {
            continue;
        };
        let host_fits = hosts.iter().any(|(name, number)| {
            // libpq calls the default socket directory "localhost" here.
            let name = if name.starts_with('/') {
                "localhost"
            } else {
                name
            };
            fits(host, name) && fits(port, &number.to_string())
        });
        if host_fits
            && fits(database, config.get_dbname().unwrap_or_default())
            && fits(user, config.get_user().unwrap_or_default())
        {
            return Ok(Looked {
                password: Some(password.clone()),
                note: None,
            });
        }
    }
    Ok(Looked::default())
}

fn note(text: String) -> Looked {
    Looked {
        password: None,
        note: Some(text),
    }
}

fn split_fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            ':' if fields.len() < 5 => fields.push(String::new()),
            '\\' => fields
                .last_mut()
                .into_iter()
                .for_each(|field| field.extend(chars.next())),
            _ => fields
                .last_mut()
                .into_iter()
                .for_each(|field| field.push(c)),
        }
    }
    fields
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::super::dsn::Params;
    use super::super::options::base_config;
    use super::*;

    fn variables(pairs: &[(&str, &Path)]) -> BTreeMap<String, String> {
        let pairs = pairs.iter();
        pairs
            .map(|(name, path)| ((*name).to_owned(), path.display().to_string()))
            .collect()
    }

    #[test]
    fn a_service_fills_what_the_url_leaves_out_before_the_variables_do() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join(".pg_service.conf");
        fs::write(&own, "# mine\n[other]\nhost=no\n[shop]\nhost=db.internal\n# x\nuser = app\nport=6000\n[last]\nuser=no\n")
            .unwrap();
        fs::write(
            dir.path().join("pg_service.conf"),
            "[theirs]\nhost=system\n",
        )
        .unwrap();
        let mut known = variables(&[("HOME", dir.path()), ("PGSYSCONFDIR", dir.path())]);
        known.insert("PGUSER".into(), "other".into());
        known.insert("PGDATABASE".into(), "d".into());
        let fill = |text: &str, more: &[(&str, &str)]| {
            let mut known = known.clone();
            known.extend(
                more.iter()
                    .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
            );
            let mut params = Params::parse(text).unwrap();
            params.fill_from(&known).map(|()| params)
        };
        let params = fill("service=shop port=7000", &[]).unwrap();
        for (name, value) in [
            ("host", "db.internal"),
            ("user", "app"),
            ("port", "7000"),
            ("dbname", "d"),
        ] {
            assert_eq!(params.get(name), Some(value), "{name}");
        }
        assert_eq!(
            fill("", &[("PGSERVICE", "shop")]).unwrap().get("host"),
            Some("db.internal")
        );
        assert_eq!(
            fill("", &[("PGSERVICE", "theirs")]).unwrap().get("host"),
            Some("system")
        );
        let moved = own.display().to_string();
        let by_file = fill("", &[("PGSERVICE", "last"), ("PGSERVICEFILE", &moved)]).unwrap();
        assert_eq!(by_file.get("user"), Some("no"));
        let error = fill("service=gone", &[])
            .map(|_| ())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("is defined nowhere") && error.contains(".pg_service.conf"),
            "{error}"
        );
        fs::write(&own, "[shop]\nservice=x\n").unwrap();
        let error = fill("service=shop", &[])
            .map(|_| ())
            .unwrap_err()
            .to_string();
        assert!(error.contains("line 2"), "{error}");
    }

    #[test]
    fn the_home_directory_has_a_password_file_unless_others_may_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(".pgpass");
        let known = variables(&[("HOME", dir.path())]);
        let look = || {
            let params = Params::parse("postgres://u@h/d").unwrap();
            let (config, note) = base_config(&params, &known).unwrap();
            (config.get_password().map(<[u8]>::to_vec), note)
        };
        assert_eq!(look(), (None, None));
        fs::write(&file, "h:5432:d:u:hunter2\n").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(look(), (Some(b"hunter2".to_vec()), None));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        let (password, note) = look();
        assert_eq!(password, None);
        assert!(note.unwrap().contains("chmod 600"));
    }
}
