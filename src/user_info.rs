//! User and password in URLs that people give, before anything is read from them.
//!
//! Passwords are made by generators, and pasted into URLs as they are. A bare `@`, `/`, `?` or `#` moves the end of the
//! authority: half of the password becomes a host, a virtual host or a parameter, which logs and status pages show.

/// What to do about it.
pub(crate) const REMEDY: &str = "in user and password, write `@` as `%40`, `/` as `%2F`, `?` as `%3F` and `#` as `%23`; \
                                 elsewhere, write `@` as `%40`";

/// Refuses a URL whose user or password may go on where a parser takes them to end.
///
/// # Errors
/// What is wrong, without a piece of the URL; [`REMEDY`] helps.
pub(crate) fn check(url: &str) -> Result<(), &'static str> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, after) = rest.split_at(end);
    if after.contains('@') {
        Err("has an `@` after a `/`, `?` or `#`")
    } else if authority.matches('@').count() > 1 {
        Err("has more than one `@`")
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_a_piece_of_a_password_is_refused() {
        for (url, expected) in [
            ("amqp://u:p@h:1/v", Ok(())),
            ("amqp://u:p%40s%2Fs@h/v?heartbeat=5", Ok(())),
            ("amqp://h", Ok(())),
            ("amqp://u:p@s@h/v", Err("has more than one `@`")),
            (
                "amqp://u:p/s@h/v",
                Err("has an `@` after a `/`, `?` or `#`"),
            ),
            ("nats://u:p?s@h", Err("has an `@` after a `/`, `?` or `#`")),
            ("https://u:p#s@h", Err("has an `@` after a `/`, `?` or `#`")),
            (
                "https://h/hook?to=me@h",
                Err("has an `@` after a `/`, `?` or `#`"),
            ),
        ] {
            assert_eq!(check(url), expected, "{url}");
        }
    }
}
