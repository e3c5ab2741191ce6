//! Any environment with any file is understood or refused, the same way each time, and can be shown.

use std::cell::RefCell;

use arbitrary::Arbitrary;
use outrigger::cli::config::{json, table};
use outrigger::settings::{self, Inputs, Need, SETTINGS, redact};
use tempfile::NamedTempFile;

/// An environment, and the text of a TOML file.
#[derive(Debug, Clone, Arbitrary)]
pub struct Input {
    /// Values by the place of their setting in the table.
    variables: Vec<(u8, String)>,
    /// Any other variable.
    other: Option<(String, String)>,
    file: Option<String>,
}

thread_local! {
    static FILE: RefCell<Option<NamedTempFile>> = const { RefCell::new(None) };
}

/// See the module.
pub fn check(input: Input) {
    let mut inputs = Inputs::default();
    for (place, value) in input.variables {
        let setting = &SETTINGS[usize::from(place) % SETTINGS.len()];
        inputs.variables.insert(setting.variable(), value);
    }
    inputs.variables.extend(input.other);
    if let Some(text) = &input.file {
        FILE.with_borrow_mut(|file| {
            let file = file.get_or_insert_with(|| NamedTempFile::new().expect("a temporary file"));
            std::fs::write(file.path(), text).expect("a writable file");
            inputs.config_file = Some(file.path().to_owned());
        });
    }
    // Only values of settings are read from files that they name.
    inputs
        .variables
        .retain(|name, _| !name.ends_with("_FILE") && name != "OUTRIGGER_CONFIG");

    let loaded = settings::load(inputs.clone());
    let shown = table(&loaded, false);
    assert_eq!(
        shown,
        table(&settings::load(inputs.clone()), false),
        "not deterministic"
    );
    let (text, _) = json(&loaded, false).expect("settings can be shown");
    serde_json::from_str::<serde_json::Value>(&text).expect("JSON");
    let problems = |need| match loaded.settings(need) {
        Ok(settings) => {
            let _ = format!("{settings:?}");
            0
        }
        Err(report) => {
            assert!(!report.problems.is_empty());
            let text = report.to_string();
            assert!(
                !text.contains('\u{1b}'),
                "an escape sequence reaches the terminal: {text:?}"
            );
            report.problems.len()
        }
    };
    // Who needs more has no fewer problems.
    assert!(problems(Need::Nothing) <= problems(Need::Database));
    assert!(problems(Need::Database) <= problems(Need::Relay));
    for value in inputs.variables.values() {
        let once = redact(value);
        assert!(once.len() <= value.len() + 64, "{once:?}");
    }
}
