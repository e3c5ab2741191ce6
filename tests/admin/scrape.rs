//! A parser of the text format, written from its specification and knowing nothing of what writes it.

use std::collections::{BTreeMap, BTreeSet};

/// A scrape, taken apart. Fails on whatever the format forbids.
#[derive(Debug, Default)]
pub struct Scrape {
    pub kinds: BTreeMap<String, String>,
    samples: BTreeMap<(String, BTreeMap<String, String>), f64>,
}

impl Scrape {
    #[track_caller]
    pub fn parse(text: &str) -> Self {
        assert!(text.ends_with('\n'), "the last line is cut");
        let mut scrape = Self::default();
        let (mut helped, mut closed) = (BTreeSet::new(), BTreeSet::new());
        let mut family = String::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').expect(line);
                assert!(!help.is_empty() && helped.insert(name.to_owned()), "{line}");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect(line);
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert!(closed.insert(name.to_owned()), "not in one piece: {line}");
                family = name.to_owned();
                scrape.kinds.insert(family.clone(), kind.to_owned());
            } else {
                let (name, labels, value) = sample(line);
                let rest = name.strip_prefix(&family);
                let suffixes: &[&str] = match scrape.kinds[&family].as_str() {
                    "histogram" => &["_bucket", "_sum", "_count"],
                    _ => &[""],
                };
                assert!(
                    rest.is_some_and(|rest| suffixes.contains(&rest)),
                    "{line} in {family}"
                );
                let old = scrape.samples.insert((name, labels), value);
                assert!(old.is_none(), "twice: {line}");
            }
        }
        scrape.check_histograms();
        scrape
    }

    fn check_histograms(&self) {
        let mut buckets: BTreeMap<_, Vec<(f64, f64)>> = BTreeMap::new();
        for ((name, labels), value) in &self.samples {
            if let Some(family) = name.strip_suffix("_bucket") {
                let mut labels = labels.clone();
                let bound = match labels.remove("le").expect("le").as_str() {
                    "+Inf" => f64::INFINITY,
                    bound => bound.parse().unwrap(),
                };
                buckets
                    .entry((family, labels))
                    .or_default()
                    .push((bound, *value));
            }
        }
        for ((family, labels), mut buckets) in buckets {
            buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
            assert!(
                buckets.is_sorted_by(|a, b| a.1 <= b.1),
                "{family}: not cumulative"
            );
            let (last, all) = buckets[buckets.len() - 1];
            assert_eq!(last, f64::INFINITY, "{family}");
            let count = self.samples[&(format!("{family}_count"), labels.clone())];
            assert_eq!(count, all, "{family}");
            assert!(
                self.samples
                    .contains_key(&(format!("{family}_sum"), labels)),
                "{family}"
            );
        }
    }

    /// The value of a sample, if it is there.
    pub fn find(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels = labels
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()));
        self.samples
            .get(&(name.to_owned(), labels.collect()))
            .copied()
    }

    #[track_caller]
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.find(name, labels)
            .unwrap_or_else(|| panic!("no {name} {labels:?}"))
    }

    /// The sum of a metric over its labels.
    pub fn sum(&self, name: &str) -> f64 {
        let samples = self.samples.iter().filter(|((found, _), _)| found == name);
        samples.map(|(_, value)| value).sum()
    }
}

fn sample(line: &str) -> (String, BTreeMap<String, String>, f64) {
    let end = line.find(['{', ' ']).expect(line);
    let name = line[..end].to_owned();
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '_';
    assert!(name.chars().all(fine), "{line}");
    let mut labels = BTreeMap::new();
    let mut rest = &line[end..];
    if let Some(inner) = rest.strip_prefix('{') {
        let mut inner = inner;
        loop {
            let (label, quoted) = inner.split_once("=\"").expect(line);
            let (value, after) = unquoted(quoted);
            assert!(labels.insert(label.to_owned(), value).is_none(), "{line}");
            inner = match after.strip_prefix(',') {
                Some(next) => next,
                None => {
                    rest = after.strip_prefix('}').expect(line);
                    break;
                }
            };
        }
    }
    let value = rest.strip_prefix(' ').expect(line);
    (name, labels, value.parse().expect(line))
}

/// A label's value up to its closing quote, and what follows.
fn unquoted(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &text[at + 1..]),
            '\\' => match chars.next().map(|(_, c)| c) {
                Some('n') => value.push('\n'),
                Some(c @ ('\\' | '"')) => value.push(c),
                other => panic!("unknown escape {other:?}"),
            },
            c => value.push(c),
        }
    }
    panic!("an open quote: {text}");
}

#[test]
fn the_parser_refuses_what_the_format_forbids() {
    let good = "# HELP a b c\n# TYPE a gauge\na{x=\"1\\n\"} 2\n";
    assert_eq!(Scrape::parse(good).value("a", &[("x", "1\n")]), 2.0);
    for bad in [
        "# HELP a b\n# TYPE a gauge\na 1",
        "# TYPE a gauge\nb 1\n",
        "# TYPE a gauge\na 1\na 1\n",
        "# TYPE a histogram\na_bucket{le=\"1\"} 2\na_bucket{le=\"+Inf\"} 1\na_sum 1\na_count 1\n",
        "# TYPE a gauge\na{x=1} 1\n",
    ] {
        assert!(
            std::panic::catch_unwind(|| Scrape::parse(bad)).is_err(),
            "{bad}"
        );
    }
}
