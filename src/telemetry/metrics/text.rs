//! The text formats of a scrape: Prometheus 0.0.4, and OpenMetrics 1.0 for who asks for it.

use std::fmt::Write as _;

use super::{Histogram, Kind, Metric};

/// How a scrape is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text format 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// What an `Accept` header asks for.
    pub fn accepted(header: Option<&str>) -> Self {
        match header {
            Some(text) if text.contains("application/openmetrics-text") => Self::OpenMetrics,
            _ => Self::Prometheus,
        }
    }

    /// The content type of the answer.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// A scrape under way. A metric's samples follow each other.
#[derive(Debug)]
pub struct Page {
    format: Format,
    text: String,
    last: &'static str,
}

/// A label with its value.
type Pair<'a> = (&'static str, &'a str);

impl Page {
    /// An empty scrape.
    pub fn new(format: Format) -> Self {
        Self {
            format,
            text: String::with_capacity(32 << 10),
            last: "",
        }
    }

    // Writing to a String cannot fail.

    fn head(&mut self, metric: &Metric) {
        if self.last == metric.name {
            return;
        }
        self.last = metric.name;
        let name = match self.format {
            Format::Prometheus => metric.name,
            Format::OpenMetrics => metric.family(),
        };
        let kind = metric.kind.as_str();
        let _ = writeln!(
            self.text,
            "# HELP {name} {}\n# TYPE {name} {kind}",
            metric.help
        );
    }

    fn sample(&mut self, name: &str, suffix: &str, labels: &[Pair<'_>], value: f64) {
        self.text.push_str(name);
        self.text.push_str(suffix);
        let mut open = '{';
        for (label, value) in labels {
            let _ = write!(self.text, "{open}{label}=\"{}\"", Escaped(value));
            open = ',';
        }
        if open == ',' {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }

    /// A value of a counter, a gauge or an info.
    pub fn value(&mut self, metric: &Metric, labels: &[Pair<'_>], value: f64) {
        debug_assert!(metric.kind != Kind::Histogram, "{}", metric.name);
        debug_assert_eq!(metric.labels.len(), labels.len(), "{}", metric.name);
        self.head(metric);
        self.sample(metric.name, "", labels, value);
    }

    /// A histogram.
    pub fn histogram(&mut self, metric: &Metric, labels: &[Pair<'_>], histogram: &Histogram) {
        debug_assert!(metric.kind == Kind::Histogram, "{}", metric.name);
        debug_assert_eq!(metric.labels.len(), labels.len(), "{}", metric.name);
        self.head(metric);
        let counts = histogram.counts();
        let mut below = 0;
        let bounds = histogram.bounds().map(|bound| match self.format {
            Format::Prometheus => bound.to_string(),
            // Whole numbers are written as floats there.
            Format::OpenMetrics => format!("{bound:?}"),
        });
        let bounds: Vec<String> = bounds.chain(["+Inf".to_owned()]).collect();
        for (bound, count) in bounds.iter().zip(&counts) {
            below += count;
            let mut labels = labels.to_vec();
            labels.push(("le", bound));
            self.sample(metric.name, "_bucket", &labels, below as f64);
        }
        self.sample(metric.name, "_sum", labels, histogram.sum());
        self.sample(metric.name, "_count", labels, below as f64);
    }

    /// The whole scrape.
    pub fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }
}

/// A label's value with backslashes, quotes and line breaks escaped.
struct Escaped<'a>(&'a str);

impl std::fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for c in self.0.chars() {
            match c {
                '\\' => f.write_str("\\\\")?,
                '"' => f.write_str("\\\"")?,
                '\n' => f.write_str("\\n")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::{INFO, PUBLISH_SECONDS, PUBLISHED};
    use super::super::{METRICS, Measured};
    use super::*;
    use std::time::Duration;

    #[test]
    fn both_formats_are_written_as_specified() {
        let measured = Measured::default();
        measured.publish.observe_duration(Duration::from_millis(2));
        let write = |format| {
            let mut page = Page::new(format);
            page.value(&PUBLISHED, &[], 7.0);
            let labels = [
                ("version", "1"),
                ("name", "a\"b\\c\nd"),
                ("table", "t"),
                ("sink", "s"),
            ];
            page.value(&INFO, &labels, 1.0);
            page.histogram(&PUBLISH_SECONDS, &[], &measured.publish);
            page.finish()
        };
        let text = write(Format::Prometheus);
        assert!(
            text.contains(
                "# TYPE outrigger_published_total counter\noutrigger_published_total 7\n"
            )
        );
        assert!(text.contains(
            "outrigger_info{version=\"1\",name=\"a\\\"b\\\\c\\nd\",table=\"t\",sink=\"s\"} 1\n"
        ));
        assert!(text.contains("_bucket{le=\"0.001\"} 0\n"));
        assert!(text.contains("_bucket{le=\"0.0025\"} 1\n"));
        assert!(text.contains("_bucket{le=\"1\"} 1\n"));
        assert!(text.ends_with("_bucket{le=\"+Inf\"} 1\noutrigger_publish_duration_seconds_sum 0.002\noutrigger_publish_duration_seconds_count 1\n"));
        let text = write(Format::OpenMetrics);
        assert!(text.contains("# TYPE outrigger_published counter\noutrigger_published_total 7\n"));
        assert!(text.contains("_bucket{le=\"1.0\"} 1\n"));
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn openmetrics_is_for_who_asks() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2";
        assert_eq!(Format::accepted(Some(prometheus)), Format::OpenMetrics);
        assert_eq!(Format::accepted(Some("*/*")), Format::Prometheus);
        assert_eq!(Format::accepted(None), Format::Prometheus);
    }

    #[test]
    fn names_follow_the_conventions() {
        let mut seen = std::collections::BTreeSet::new();
        for metric in METRICS {
            let name = metric.name;
            assert!(seen.insert(name), "{name} twice");
            assert!(
                name.starts_with("outrigger_") || name.starts_with("process_"),
                "{name}"
            );
            assert_eq!(
                name.ends_with("_total"),
                metric.kind == Kind::Counter,
                "{name}"
            );
            assert!(metric.help.ends_with('.'), "{name}");
            assert!(!metric.help.contains(['\n', '\\']), "{name}");
            for label in metric.labels {
                assert!(!name.contains(label.name), "{name}: label {}", label.name);
            }
        }
    }
}
