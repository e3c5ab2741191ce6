//! What `outrigger --version` says.

use std::sync::LazyLock;

/// The version in `Cargo.toml`, and the commit if whoever built it told the compiler: `scripts/release` does. No time
/// and no machine: two builds of one commit are equal.
pub(super) fn version() -> &'static str {
    static VERSION: LazyLock<String> = LazyLock::new(|| {
        let version = env!("CARGO_PKG_VERSION");
        match option_env!("OUTRIGGER_COMMIT") {
            Some(commit) if !commit.is_empty() => format!("{version} ({commit})"),
            _ => version.to_owned(),
        }
    });
    &VERSION
}
