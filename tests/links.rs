//! Links between the documents: every relative link leads to a file, every anchor to a heading.

// In a test, a panic is the report.
#![allow(clippy::expect_used)]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The lines outside fenced code, with their numbers.
fn prose(text: &str) -> Vec<(usize, &str)> {
    let mut fenced = false;
    let mut lines = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            lines.push((index + 1, line));
        }
    }
    lines
}

/// The anchors that GitHub gives the headings: lower case, punctuation gone, blanks to hyphens, and a
/// number for every repetition.
fn anchors(text: &str) -> Vec<String> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let mut anchors = Vec::new();
    for (_, line) in prose(text) {
        let title = line.trim_start_matches('#');
        if title.len() == line.len() || !title.starts_with(' ') {
            continue;
        }
        let anchor: String = title
            .trim()
            .chars()
            .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
            .map(|c| if c == ' ' { '-' } else { c })
            .flat_map(char::to_lowercase)
            .collect();
        let count = seen.entry(anchor.clone()).or_insert(0);
        anchors.push(match *count {
            0 => anchor,
            n => format!("{anchor}-{n}"),
        });
        *count += 1;
    }
    anchors
}

/// The targets of inline links, with their line numbers. What stands between backticks is no link.
fn links(text: &str) -> Vec<(usize, &str)> {
    let mut links = Vec::new();
    for (number, line) in prose(text) {
        for (at, _) in line.match_indices("](") {
            let in_code = line[..at].matches('`').count() % 2 == 1;
            let rest = &line[at + 2..];
            if let (false, Some(end)) = (in_code, rest.find(')')) {
                links.push((number, &rest[..end]));
            }
        }
    }
    links
}

/// What is wrong with the links of one document.
fn broken(root: &Path, path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).expect("a document in UTF-8");
    let shown = path.strip_prefix(root).unwrap_or(path).display();
    let mut found = Vec::new();
    for (number, target) in links(&text) {
        if target.contains("://") || target.starts_with("mailto:") {
            continue;
        }
        let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
        let folder = path.parent().expect("a folder");
        let file = match file {
            "" => path.to_path_buf(),
            file => folder.join(file),
        };
        if !file.exists() {
            found.push(format!("{shown}:{number}: no file for `{target}`"));
        } else if !anchor.is_empty() {
            let text = fs::read_to_string(&file).expect("a document in UTF-8");
            if !anchors(&text).iter().any(|known| known == anchor) {
                found.push(format!("{shown}:{number}: no heading for `{target}`"));
            }
        }
    }
    found
}

fn documents(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a readable folder") {
        let path = entry.expect("a readable folder").path();
        if path.is_dir() {
            documents(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            files.push(path);
        }
    }
}

#[test]
fn every_link_leads_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<PathBuf> = fs::read_dir(root)
        .expect("a readable folder")
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect();
    for folder in ["docs", "charts", "examples"] {
        documents(&root.join(folder), &mut files);
    }
    files.sort();
    assert!(files.contains(&root.join("README.md")), "{files:?}");
    let found: Vec<String> = files.iter().flat_map(|file| broken(root, file)).collect();
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

#[test]
fn the_check_catches_what_is_broken() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let document = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).expect("a writable folder");
        path
    };
    document(
        "b.md",
        "# `[log]`\n## What happens if…\n## Twice\n## Twice\n",
    );
    let sound = "[a](b.md) [b](b.md#log) [c](b.md#what-happens-if) [d](b.md#twice-1) [e](#me)\n\
                 [f](https://example.com/x.md) `[g](nowhere.md)`\n# Me\n```\n[h](nowhere.md)\n```\n";
    let path = document("a.md", sound);
    assert_eq!(broken(folder.path(), &path), Vec::<String>::new());
    let path = document("c.md", "\n[a](nowhere.md) [b](b.md#never) [c](#never)\n");
    assert_eq!(
        broken(folder.path(), &path),
        [
            "c.md:2: no file for `nowhere.md`",
            "c.md:2: no heading for `b.md#never`",
            "c.md:2: no heading for `#never`",
        ]
    );
}
