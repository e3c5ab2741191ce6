//! `outrigger config`: every setting, its value, and where it comes from.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use serde_json::json;

use super::args::{Config, Output};
use super::{Failure, USAGE};
use crate::assemble;
use crate::settings::{self, Inputs, Loaded, Need, Origin, SETTINGS, Shown};
use crate::store::postgres::mapping::{Field, Preset};

/// Prints what was asked for. Problems are printed after the settings, because the settings are
/// what one looks at to understand them.
pub fn run(args: &Config, inputs: Inputs) -> Result<(), Failure> {
    if args.reference {
        return print(&settings::markdown());
    }
    if args.example {
        return print(&settings::example());
    }
    let loaded = settings::load(inputs);
    match args.read.output {
        Output::Table => {
            print(&table(&loaded, args.given))?;
            for warning in loaded.warnings() {
                eprintln!("warning: {warning}");
            }
            loaded
                .settings(Need::Nothing)
                .map(|_| ())
                .map_err(Failure::usage)
        }
        Output::Json => {
            let (text, sound) = json(&loaded, args.given)?;
            print(&text)?;
            if sound {
                Ok(())
            } else {
                Err(Failure::silent(USAGE))
            }
        }
    }
}

fn print(text: &str) -> Result<(), Failure> {
    io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

/// What stands for a setting without a value.
fn unset(line: &Shown, preset: Preset) -> String {
    if let Some(field) = Field::ALL
        .into_iter()
        .find(|field| field.setting() == line.variable)
    {
        return match field.preset(preset) {
            Some(column) => format!("(`{column}`, by the preset)"),
            None => "(none, by the preset)".to_owned(),
        };
    }
    let setting = SETTINGS.iter().find(|setting| setting.key == line.key);
    format!("({})", setting.map_or("unset", |setting| setting.unset))
}

/// The settings in three columns. `given`: only those that were set.
pub fn table(loaded: &Loaded, given: bool) -> String {
    let preset = assemble::preset(loaded.provisional().outbox.preset);
    let rows: Vec<[String; 3]> = loaded
        .shown()
        .iter()
        .filter(|line| !given || line.is_given())
        .map(|line| {
            // Escaped, so that a line break in a value does not break the table.
            let value = line.value.as_ref().map_or_else(
                || unset(line, preset),
                |value| value.escape_debug().to_string().replace("\\\"", "\""),
            );
            let origin = match &line.value {
                Some(_) => line.origin.to_string(),
                None => "unset".to_owned(),
            };
            [line.key.clone(), value, origin]
        })
        .collect();
    let header = ["SETTING", "VALUE", "SOURCE"].map(str::to_owned);
    let width = |column: usize| {
        let cells = rows.iter().chain([&header]).map(|row| &row[column]);
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let (first, second) = (width(0), width(1));
    let mut text = String::new();
    for [key, value, origin] in [&header].into_iter().chain(&rows) {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{key:first$}  {value:second$}  {origin}");
    }
    text
}

/// The settings and problems as one JSON object (`given`: only settings that were set), and whether there are no problems.
pub fn json(loaded: &Loaded, given: bool) -> Result<(String, bool), serde_json::Error> {
    let lines: Vec<_> = loaded
        .shown()
        .into_iter()
        .filter(|line| !given || line.is_given())
        .map(|line| {
            let set = line.value.is_some();
            json!({
                "key": line.key,
                "variable": line.variable,
                "value": line.value,
                "source": set.then_some(match line.origin {
                    Origin::Default => "default",
                    Origin::File(_) => "file",
                    Origin::Variable(_) => "environment",
                    Origin::Flag(_) => "flag",
                }),
                "from": set.then(|| line.origin.to_string()),
            })
        })
        .collect();
    let problems = match loaded.settings(Need::Nothing) {
        Ok(_) => Vec::new(),
        Err(report) => report.problems,
    };
    let listed: Vec<_> = problems
        .iter()
        .map(|problem| {
            json!({
                "name": problem.name,
                "value": problem.value,
                "source": problem.origin.to_string(),
                "rule": problem.rule,
                "hint": problem.hint,
            })
        })
        .collect();
    let all = json!({ "settings": lines, "problems": listed, "warnings": loaded.warnings() });
    let text = serde_json::to_string_pretty(&all)? + "\n";
    Ok((text, problems.is_empty()))
}
