//! "Did you mean": the nearest known name.

/// The known name most like `text`, if any is like it at all.
pub(super) fn nearest<'a>(text: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let lower = text.to_ascii_lowercase();
    known
        .map(|name| {
            let likeness =
                strsim::normalized_damerau_levenshtein(&lower, &name.to_ascii_lowercase());
            (likeness, name)
        })
        // Below two thirds, suggestions are noise: `OUTRIGGER_X` is not like every short name.
        .filter(|(likeness, _)| *likeness >= 0.66)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn finds_typos_and_only_typos() {
        let known = ["structured", "binary", "batch"];
        let cases = [
            ("structurd", Some("structured")),
            ("Binary", Some("binary")),
            ("bacth", Some("batch")),
            ("xml", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(nearest(text, known.into_iter()), expected, "{text}");
        }
    }
}
