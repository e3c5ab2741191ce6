//! Where an event comes from, for those who trace: the context that its writer put into the row.

use std::borrow::Cow;

use super::Record;
use super::flat_json::{self, Scalar};

/// The header and the extension of W3C Trace Context.
pub const TRACEPARENT: &str = "traceparent";
/// What goes with it, for vendors.
pub const TRACESTATE: &str = "tracestate";

/// The trace context of a row, as written: not checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin<'a> {
    /// `traceparent`
    pub traceparent: Cow<'a, str>,
    /// `tracestate`
    pub tracestate: Option<Cow<'a, str>>,
}

impl<'a> Origin<'a> {
    /// Of the row's `extensions`, which say where the event was born, or else of its `headers`.
    pub fn of(record: &'a Record) -> Option<Self> {
        let columns = [&record.extensions, &record.headers];
        columns
            .into_iter()
            .flatten()
            .find_map(|json| Self::parse(json))
    }

    fn parse(json: &'a str) -> Option<Self> {
        // Most rows have other extensions or headers, if any: those are not worth a parse.
        if !json.contains(TRACEPARENT) {
            return None;
        }
        let mut members = flat_json::parse(json).ok()?;
        let mut take = |wanted: &str| {
            let at = members.iter().position(|(name, _)| name == wanted)?;
            match members.swap_remove(at).1 {
                Scalar::Text(text) => Some(text),
                _ => None,
            }
        };
        Some(Self {
            traceparent: take(TRACEPARENT)?,
            tracestate: take(TRACESTATE),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extensions_come_before_headers_and_what_is_no_text_counts_for_nothing() {
        let origin = |extensions: Option<&str>, headers: Option<&str>| {
            let record = Record {
                extensions: extensions.map(str::to_owned),
                headers: headers.map(str::to_owned),
                ..Record::default()
            };
            Origin::of(&record).map(|origin| {
                let state = origin.tracestate.map(Cow::into_owned);
                (origin.traceparent.into_owned(), state)
            })
        };
        let born = r#"{"a":1,"traceparent":"00-1","tracestate":"x=y"}"#;
        let passed = r#"{"traceparent":"00-2"}"#;
        let first = Some(("00-1".to_owned(), Some("x=y".to_owned())));
        let second = Some(("00-2".to_owned(), None));
        assert_eq!(origin(Some(born), Some(passed)), first);
        assert_eq!(origin(Some("{}"), Some(passed)), second);
        assert_eq!(origin(Some(r#"{"traceparent":3}"#), Some(passed)), second);
        for nothing in [
            r#"{"tracestate":"x=y"}"#,
            r#"["traceparent"]"#,
            "traceparent",
        ] {
            assert_eq!(origin(Some(nothing), None), None, "{nothing}");
        }
        assert_eq!(origin(None, None), None);
    }
}
