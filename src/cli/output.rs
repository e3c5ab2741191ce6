//! Printing: tables, colours, and numbers for people.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::Failure;
use crate::settings::Settings;
use crate::store::postgres::{AfterPublish, Capabilities};

/// Longest error text in a table, in characters.
const CELL_MAX: usize = 72;

/// Writes to standard output at once. A reader that is gone is no failure; see [`Failure`].
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// Prints one line of a text that holds no foreign control characters.
pub(super) fn print_line(text: &str) -> Result<(), Failure> {
    print(&format!("{text}\n"))
}

/// Prints JSON: for `pretty`, indented.
pub(super) fn print_json(value: &impl Serialize, pretty: bool) -> Result<(), Failure> {
    let text = if pretty {
        serde_json::to_string_pretty(value)?
    } else {
        serde_json::to_string(value)?
    };
    print_line(&text)
}

/// What becomes of published rows.
pub(crate) fn retention(settings: &Settings, table: &Capabilities) -> String {
    if table.after_publish == AfterPublish::Delete || !table.has_published {
        return "rows are deleted as they are published".to_owned();
    }
    let time = settings.outbox.retention.in_table(table.created_by_migrate);
    match time.filter(|_| table.has_age) {
        Some(time) => format!("published rows are deleted after {}", duration(time)),
        None => "published rows are kept for ever".to_owned(),
    }
}

/// Whether standard output shows colours.
#[derive(Debug, Clone, Copy)]
pub(super) struct Style {
    color: bool,
}

impl Style {
    /// `allowed`: nobody set `NO_COLOR`.
    pub(super) fn stdout(allowed: bool) -> Self {
        Self {
            color: allowed && io::stdout().is_terminal(),
        }
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.color {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    pub(super) fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    pub(super) fn warning(self, text: &str) -> String {
        self.paint("33", text)
    }

    pub(super) fn bad(self, text: &str) -> String {
        self.paint("31;1", text)
    }

    pub(super) fn title(self, text: &str) -> String {
        self.paint("1", text)
    }
}

/// Aligned columns. Cells may hold anything: control characters are escaped, so that a row of the
/// database can neither break the table nor command the terminal.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
    right: Vec<usize>,
}

impl Table {
    pub(super) fn new(header: &[&str]) -> Self {
        Self {
            rows: vec![header.iter().map(|cell| (*cell).to_owned()).collect()],
            right: Vec::new(),
        }
    }

    /// Columns of numbers, by position.
    pub(super) fn right(mut self, columns: &[usize]) -> Self {
        self.right = columns.to_vec();
        self
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows
            .push(cells.into_iter().map(|c| plain(&c)).collect());
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let cell = |row: &[String], column: usize| row.get(column).map_or(0, |c| c.chars().count());
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                self.rows
                    .iter()
                    .map(|row| cell(row, column))
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        for row in &self.rows {
            let mut line = String::new();
            for (column, (text, width)) in row.iter().zip(&widths).enumerate() {
                if self.right.contains(&column) {
                    let _ = write!(line, "{text:>width$}  ");
                } else {
                    let _ = write!(line, "{text:width$}  ");
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// The text with control characters escaped.
pub(super) fn plain(text: &str) -> String {
    if !text.chars().any(char::is_control) {
        return text.to_owned();
    }
    text.chars()
        .flat_map(|c| {
            let escaped = c.is_control().then(|| c.escape_default());
            let kept = escaped.is_none().then_some(c);
            escaped.into_iter().flatten().chain(kept)
        })
        .collect()
}

/// The beginning of a long text.
pub(super) fn shortened(text: &str) -> String {
    match text.char_indices().nth(CELL_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// `-` for nothing.
pub(super) fn or_dash(text: Option<&str>) -> String {
    text.unwrap_or("-").to_owned()
}

/// `1,234,567`.
pub(super) fn number(n: impl Into<i128>) -> String {
    let n = n.into();
    let digits = n.unsigned_abs().to_string();
    let mut out = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    if n < 0 { format!("-{out}") } else { out }
}

/// `3 events`, `1 event`.
pub(super) fn events(n: impl Into<i128>) -> String {
    let n = n.into();
    let noun = if n == 1 { "event" } else { "events" };
    format!("{} {noun}", number(n))
}

/// The two largest units: `3d 4h`, `2m 5s`, `12s`, `150ms`.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds == 0 {
        return match duration.subsec_millis() {
            0 => "0s".to_owned(),
            millis => format!("{millis}ms"),
        };
    }
    let units = [
        (seconds / 86_400, "d"),
        (seconds / 3600 % 24, "h"),
        (seconds / 60 % 60, "m"),
        (seconds % 60, "s"),
    ];
    units
        .into_iter()
        .skip_while(|(count, _)| *count == 0)
        .take(2)
        .filter(|(count, _)| *count > 0)
        .map(|(count, unit)| format!("{count}{unit}"))
        .collect::<Vec<_>>()
        .join(" ")
}

/// How long ago: `3h 2m ago`; the future counts as now.
pub(super) fn ago(at: Timestamp) -> String {
    match since(at) {
        since if since.as_secs() == 0 => "just now".to_owned(),
        since => format!("{} ago", duration(since)),
    }
}

/// Time since, zero for the future.
pub(super) fn since(at: Timestamp) -> Duration {
    Duration::try_from(Timestamp::now().duration_since(at)).unwrap_or(Duration::ZERO)
}

/// `512 B`, `1.5 KiB`, `3.0 MiB`.
pub(super) fn bytes(n: usize) -> String {
    match n {
        0..1024 => format!("{n} B"),
        1024..1_048_576 => format!("{:.1} KiB", n as f64 / 1024.0),
        _ => format!("{:.1} MiB", n as f64 / 1_048_576.0),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_by_characters() {
        let mut table = Table::new(&["SEQ", "KEY", "ERROR"]).right(&[0]);
        table.row(["7".into(), "größe".into(), "a".into()]);
        table.row(["1,234".into(), "k".into(), String::new()]);
        assert_eq!(
            table.to_string(),
            "  SEQ  KEY    ERROR\n    7  größe  a\n1,234  k\n"
        );
    }

    #[test]
    fn cells_cannot_command_the_terminal() {
        let mut table = Table::new(&["KEY"]);
        table.row(["a\x1b[2J\nb".into()]);
        assert_eq!(table.to_string(), "KEY\na\\u{1b}[2J\\nb\n");
    }

    #[test]
    fn numbers_are_grouped() {
        for (n, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (-1_234_567, "-1,234,567"),
        ] {
            assert_eq!(number(n), text);
        }
        assert_eq!(
            (events(1), events(0)),
            ("1 event".into(), "0 events".into())
        );
    }

    #[test]
    fn durations_show_their_two_largest_units() {
        for (millis, text) in [
            (0, "0s"),
            (150, "150ms"),
            (1_999, "1s"),
            (125_000, "2m 5s"),
            (120_000, "2m"),
            (86_400_000 + 5 * 60_000, "1d"),
            (90_000_000, "1d 1h"),
        ] {
            assert_eq!(duration(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(shortened(&"é".repeat(72)), "é".repeat(72));
        assert_eq!(shortened(&"é".repeat(73)), format!("{}…", "é".repeat(72)));
    }
}
