//! What an SDK does not do as the specification has it, or leaves to its user. Each exception must be met: one that an SDK
//! has mended is to be removed.

use crate::wire::Wire;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sdk {
    Python,
    JavaScript,
    Java,
    Go,
}

impl Sdk {
    /// Its folder.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::JavaScript => "node",
            Self::Java => "java",
            Self::Go => "go",
        }
    }
}

/// An exception. An empty text stands for any.
pub(crate) struct Known {
    sdk: Sdk,
    sink: &'static str,
    mode: &'static str,
    /// The event's type, or the start of it.
    kind: &'static str,
    /// The attribute, `payload` or `error`.
    what: &'static str,
    pub(crate) why: &'static str,
}

const fn known(
    sdk: Sdk,
    sink: &'static str,
    mode: &'static str,
    kind: &'static str,
    what: &'static str,
    why: &'static str,
) -> Known {
    Known {
        sdk,
        sink,
        mode,
        kind,
        what,
        why,
    }
}

const KNOWN: &[Known] = &[
    known(
        Sdk::Python,
        "",
        "",
        "",
        "invented time",
        "an event without a time gets the present one",
    ),
    known(
        Sdk::JavaScript,
        "",
        "",
        "",
        "invented time",
        "an event without a time gets the present one",
    ),
    known(
        Sdk::JavaScript,
        "",
        "",
        "com.shop",
        "below milliseconds",
        "times have milliseconds",
    ),
    known(
        Sdk::JavaScript,
        "http",
        "binary",
        "com.shop",
        "subject",
        "headers are not percent-decoded",
    ),
    known(
        Sdk::JavaScript,
        "http",
        "binary",
        "com.shop",
        "text",
        "headers are not percent-decoded",
    ),
    known(
        Sdk::JavaScript,
        "nats",
        "binary",
        "com.shop",
        "subject",
        "headers are not percent-decoded",
    ),
    known(
        Sdk::JavaScript,
        "nats",
        "binary",
        "com.shop",
        "text",
        "headers are not percent-decoded",
    ),
    known(
        Sdk::JavaScript,
        "nats",
        "binary",
        "",
        "datacontenttype",
        "headers are not percent-decoded",
    ),
    known(
        Sdk::Java,
        "http",
        "binary",
        "com.shop",
        "subject",
        "headers are not percent-decoded",
    ),
    known(
        Sdk::Java,
        "http",
        "binary",
        "com.shop",
        "text",
        "headers are not percent-decoded",
    ),
    known(
        Sdk::Java,
        "nats",
        "binary",
        "com.shop",
        "subject",
        "headers are not percent-decoded",
    ),
    known(
        Sdk::Java,
        "nats",
        "binary",
        "com.shop",
        "text",
        "headers are not percent-decoded",
    ),
    known(
        Sdk::Java,
        "nats",
        "binary",
        "",
        "datacontenttype",
        "headers are not percent-decoded",
    ),
    known(
        Sdk::Go,
        "http",
        "binary",
        "com.shop",
        "subject",
        "headers are not percent-decoded",
    ),
    known(
        Sdk::Go,
        "http",
        "binary",
        "com.shop",
        "text",
        "headers are not percent-decoded",
    ),
    known(
        Sdk::Go,
        "nats",
        "binary",
        "com.shop",
        "subject",
        "headers are not percent-decoded",
    ),
    known(
        Sdk::Go,
        "nats",
        "binary",
        "com.shop",
        "text",
        "headers are not percent-decoded",
    ),
    known(
        Sdk::Go,
        "nats",
        "binary",
        "",
        "datacontenttype",
        "headers are not percent-decoded",
    ),
    known(
        Sdk::JavaScript,
        "nats",
        "binary",
        "json.charset",
        "payload",
        "the content type is not percent-decoded, so not known",
    ),
    known(
        Sdk::JavaScript,
        "",
        "binary",
        "json.suffix",
        "payload",
        "JSON of another type than application/json stays text",
    ),
    known(
        Sdk::JavaScript,
        "",
        "binary",
        "json.number",
        "payload",
        "a scalar in JSON becomes a text",
    ),
    known(
        Sdk::JavaScript,
        "",
        "binary",
        "json.boolean",
        "payload",
        "a scalar in JSON becomes a text",
    ),
    known(
        Sdk::JavaScript,
        "",
        "binary",
        "json.null",
        "payload",
        "a scalar in JSON becomes a text",
    ),
    known(
        Sdk::JavaScript,
        "kafka",
        "structured",
        "",
        "error",
        "an event without a time is an error",
    ),
    known(
        Sdk::JavaScript,
        "kafka",
        "",
        "com.shop",
        "partitionkey",
        "it is taken for the key of the record, and removed",
    ),
    known(
        Sdk::JavaScript,
        "kafka",
        "binary",
        "bare",
        "error",
        "a record without a value is an error",
    ),
    known(
        Sdk::Java,
        "",
        "structured",
        "json.typeless",
        "datacontenttype",
        "what is not named is filled in",
    ),
    known(
        Sdk::Java,
        "",
        "batch",
        "json.typeless",
        "datacontenttype",
        "what is not named is filled in",
    ),
    known(
        Sdk::Java,
        "",
        "structured",
        "json.suffix",
        "error",
        "a media type with a digit, such as `vnd.order.v1+json`, is not taken for JSON",
    ),
    known(
        Sdk::Java,
        "",
        "batch",
        "json.suffix",
        "error",
        "a media type with a digit, such as `vnd.order.v1+json`, is not taken for JSON",
    ),
    known(
        Sdk::Java,
        "",
        "batch",
        "bare",
        "error",
        "a media type with a digit, such as `vnd.order.v1+json`, is not taken for JSON (the first of a whole batch)",
    ),
    known(
        Sdk::Go,
        "",
        "structured",
        "json.suffix",
        "error",
        "only application/json and text/json are taken for JSON",
    ),
    known(
        Sdk::Go,
        "",
        "batch",
        "json.suffix",
        "error",
        "only application/json and text/json are taken for JSON",
    ),
    known(
        Sdk::Go,
        "",
        "batch",
        "bare",
        "error",
        "only application/json and text/json are taken for JSON (the first of a whole batch)",
    ),
];

/// The first exception that covers this.
pub(crate) fn find(sdk: Sdk, wire: &Wire, kind: &str, what: &str) -> Option<usize> {
    let is = |expected: &str, found: &str| expected.is_empty() || expected == found;
    KNOWN.iter().position(|known| {
        known.sdk == sdk
            && is(known.sink, wire.sink)
            && is(known.mode, wire.mode)
            && kind.starts_with(known.kind)
            && is(known.what, what)
    })
}

pub(crate) fn all(sdk: Sdk) -> impl Iterator<Item = (usize, &'static Known)> {
    KNOWN
        .iter()
        .enumerate()
        .filter(move |(_, known)| known.sdk == sdk)
}
