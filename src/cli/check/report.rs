//! Findings, printed as they come or all at once as JSON.

use serde_json::{Value, json};

use crate::cli::Failure;
use crate::cli::output::{Style, plain, print, print_json, print_line};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Ok,
    Warning,
    Failed,
}

impl Level {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
        }
    }
}

struct Line {
    area: &'static str,
    level: Level,
    text: String,
    remedy: Vec<String>,
}

/// All findings so far.
pub(super) struct Report {
    /// `None`: JSON, at the end.
    style: Option<Style>,
    area: &'static str,
    lines: Vec<Line>,
    /// What was left out, and how to have it tried.
    not_tried: Vec<(&'static str, &'static str)>,
    /// Standard output failed; told at the end.
    broken: Option<Failure>,
}

impl Report {
    pub(super) fn new(style: Option<Style>) -> Self {
        Self {
            style,
            area: "",
            lines: Vec::new(),
            not_tried: Vec::new(),
            broken: None,
        }
    }

    /// Begins a new part.
    pub(super) fn area(&mut self, area: &'static str) {
        self.area = area;
        if let Some(style) = self.style {
            self.show(&format!("{}\n", style.title(area)));
        }
    }

    pub(super) fn ok(&mut self, text: impl Into<String>) {
        self.add(Level::Ok, text.into(), Vec::new());
    }

    /// It works, but not well, or not for long.
    pub(super) fn warning(&mut self, text: impl Into<String>, remedy: &str) {
        self.add(Level::Warning, text.into(), lines(remedy));
    }

    /// The relay cannot work like this.
    pub(super) fn failed(&mut self, text: impl Into<String>, remedy: &str) {
        self.add(Level::Failed, text.into(), lines(remedy));
    }

    /// What was left out, and how to have it tried: silence about it would pass for a finding.
    pub(super) fn not_tried(&mut self, what: &'static str, how: &'static str) {
        self.not_tried.push((what, how));
    }

    /// Whether anything failed in these parts.
    pub(super) fn has_failed(&self, areas: &[&str]) -> bool {
        self.lines
            .iter()
            .any(|line| line.level == Level::Failed && areas.contains(&line.area))
    }

    fn add(&mut self, level: Level, text: String, remedy: Vec<String>) {
        if let Some(style) = self.style {
            let padded = format!("{:<8}", level.as_str());
            let painted = match level {
                Level::Ok => style.good(&padded),
                Level::Warning => style.warning(&padded),
                Level::Failed => style.bad(&padded),
            };
            let mut shown = format!("  {painted} {}\n", plain(&text));
            for line in &remedy {
                shown += &format!("           {}\n", plain(line));
            }
            self.show(&shown);
        }
        self.lines.push(Line {
            area: self.area,
            level,
            text,
            remedy,
        });
    }

    fn show(&mut self, text: &str) {
        if self.broken.is_none() {
            self.broken = print(text).err();
        }
    }

    /// Prints the summary, or everything as JSON. True if nothing failed.
    pub(super) fn finish(self) -> Result<bool, Failure> {
        if let Some(failure) = self.broken {
            return Err(failure);
        }
        let count = |level| self.lines.iter().filter(|line| line.level == level).count();
        let (ok, warnings, failed) = (
            count(Level::Ok),
            count(Level::Warning),
            count(Level::Failed),
        );
        let Some(style) = self.style else {
            let lines: Vec<Value> = self
                .lines
                .iter()
                .map(|line| {
                    json!({
                        "area": line.area,
                        "result": line.level.as_str(),
                        "text": line.text,
                        "remedy": line.remedy,
                    })
                })
                .collect();
            let all = json!({
                "ok": failed == 0,
                "not_tried": self.not_tried.iter().map(|(what, how)| format!("{what}: {how}")).collect::<Vec<_>>(),
                "summary": { "ok": ok, "warning": warnings, "failed": failed },
                "checks": lines,
            });
            print_json(&all, true)?;
            return Ok(failed == 0);
        };
        let verdict = match (warnings, failed) {
            (0, 0) => style.good("nothing wrong found"),
            (_, 0) => style.good("ready to run"),
            _ => style.bad("not ready"),
        };
        print_line(&format!(
            "\n{verdict}: {ok} ok, {warnings} warning{}, {failed} failed",
            if warnings == 1 { "" } else { "s" }
        ))?;
        // What failed comes first: until that is put right, there is nothing to try.
        for (what, how) in self.not_tried.iter().filter(|_| failed == 0) {
            print_line(&format!("not tried: {what} ({how})"))?;
        }
        Ok(failed == 0)
    }
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}
