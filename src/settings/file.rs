//! The TOML file: its keys are checked against the table, its values become texts.

use std::path::Path;

use config::{File, FileFormat, Map, Source, Value, ValueKind};

use super::load::{Layer, Sources};
use super::report::{Origin, Problem};
use super::suggest;
use super::table::{SECTIONS, SETTINGS, Setting, setting};
use super::value::Kind;
use crate::secret_file::read_text;

/// Reads the file; `named_by` is the flag or variable that names it.
pub(super) fn read(path: &Path, named_by: &Origin, sources: &mut Sources) -> Layer {
    let text = match read_text(path) {
        Ok(text) => text,
        Err(rule) => {
            sources.problems.push(Problem {
                name: named_by.to_string(),
                value: Some(path.to_string_lossy().into_owned()),
                origin: named_by.clone(),
                rule,
                hint: None,
            });
            return Layer::default();
        }
    };
    let mut reader = Reader {
        path,
        layer: Layer::default(),
        sources,
    };
    match File::from_str(&text, FileFormat::Toml).collect() {
        Ok(top) => reader.top(top),
        Err(error) => reader.problem(
            &path.to_string_lossy(),
            None,
            &without_source_lines(&error.to_string()),
            None,
        ),
    }
    reader.layer
}

/// A TOML error quotes the line it is about, which may hold a password. What remains is the
/// position and the rule.
fn without_source_lines(error: &str) -> String {
    let lines: Vec<&str> = error
        .lines()
        .filter(|line| {
            let number = line
                .trim_start()
                .trim_start_matches(|c: char| c.is_ascii_digit());
            !number.trim_start().starts_with('|')
        })
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    lines.join(": ")
}

struct Reader<'a> {
    path: &'a Path,
    layer: Layer,
    sources: &'a mut Sources,
}

impl Reader<'_> {
    fn problem(&mut self, name: &str, value: Option<String>, rule: &str, hint: Option<String>) {
        let path_is_name = self.path.to_string_lossy() == name;
        self.sources.problems.push(Problem {
            name: name.to_owned(),
            value,
            origin: if path_is_name {
                Origin::Default
            } else {
                Origin::File(self.path.to_owned())
            },
            rule: rule.to_owned(),
            hint,
        });
    }

    fn top(&mut self, top: Map<String, Value>) {
        for (name, value) in sorted(top) {
            let is_section = SECTIONS.iter().any(|(section, _)| *section == name);
            match value.kind {
                ValueKind::Table(section) if is_section => {
                    for (inner, value) in sorted(section) {
                        self.entry(&format!("{name}.{inner}"), value);
                    }
                }
                _ if is_section => {
                    let hint = format!("write `[{name}]` and its settings below");
                    self.problem(&name, None, "is a section", Some(hint));
                }
                _ => self.entry(&name, value),
            }
        }
    }

    fn entry(&mut self, key: &str, value: Value) {
        let Some(setting) = setting(key) else {
            let sections = SECTIONS.iter().map(|(section, _)| *section);
            let keys = SETTINGS.iter().map(|setting| setting.key);
            // A name without a section is often a setting whose section was forgotten.
            let homeless = SETTINGS.iter().find(|setting| setting.name() == key);
            let hint = homeless
                .map(|setting| setting.key)
                .or_else(|| suggest::nearest(key, keys.chain(sections)))
                .map(|known| format!("did you mean `{known}`?"));
            self.problem(key, None, "unknown setting", hint);
            return;
        };
        match to_text(setting, value) {
            // Empty means unset, as in the environment.
            Ok(text) if text.is_empty() => {}
            Ok(text) => {
                let origin = self.path.to_string_lossy();
                self.layer.set(key, &text, &origin);
            }
            Err((shown, rule)) => {
                self.sources.broken.push(setting.key);
                let shown = shown.filter(|_| !setting.secret);
                self.problem(key, shown, rule, None);
            }
        }
    }
}

fn sorted(map: Map<String, Value>) -> Vec<(String, Value)> {
    let mut entries: Vec<_> = map.into_iter().collect();
    entries.sort_by(|(a, _), (b, _)| a.cmp(b));
    entries
}

/// The value as the environment would spell it. Numbers and booleans are never taken for text:
/// a password `007` must not become `7`.
fn to_text(setting: &Setting, value: Value) -> Result<String, (Option<String>, &'static str)> {
    const QUOTE: &str = "must be a string in quotes";
    match value.kind {
        ValueKind::String(text) => Ok(text),
        ValueKind::Boolean(value) if setting.kind == Kind::Bool => Ok(value.to_string()),
        ValueKind::I64(value) if setting.kind.takes_toml_number() => Ok(value.to_string()),
        ValueKind::Array(values)
            if matches!(
                setting.kind,
                Kind::AmqpUrls | Kind::NatsUrls | Kind::Brokers
            ) =>
        {
            let texts: Vec<String> = values
                .into_iter()
                .filter_map(|value| match value.kind {
                    ValueKind::String(text) => {
                        Some(Ok(text)).filter(|text| *text != Ok(String::new()))
                    }
                    _ => Some(Err((None, "must be a list of strings"))),
                })
                .collect::<Result<_, _>>()?;
            Ok(texts.join(","))
        }
        ValueKind::Boolean(value) => Err((Some(value.to_string()), QUOTE)),
        ValueKind::I64(value) => Err((Some(value.to_string()), QUOTE)),
        ValueKind::Float(value) => Err((Some(value.to_string()), QUOTE)),
        ValueKind::Array(_) => Err((None, "must not be a list")),
        ValueKind::Table(_) => Err((None, "must not be a table")),
        _ => Err((None, QUOTE)),
    }
}

#[cfg(test)]
mod tests {
    use super::without_source_lines;

    #[test]
    fn syntax_errors_do_not_quote_the_file() {
        let error = "TOML parse error at line 2, column 7\n  |\n2 | url = \"s3cret\n  |       ^\ninvalid basic string\n";
        assert_eq!(
            without_source_lines(error),
            "TOML parse error at line 2, column 7: invalid basic string"
        );
    }
}
