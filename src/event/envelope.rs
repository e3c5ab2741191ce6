//! A row as a valid CloudEvents 1.0.2 event, borrowed from the row.
//!
//! What can be built here is valid; everything else is refused with a reason that names the
//! attribute, its column and the rule. Null columns are absent attributes. Empty strings are
//! refused rather than dropped: a writer that stores them has a defect which nobody would see.

use std::borrow::Cow;

use jiff::Timestamp;
use serde::de::IgnoredAny;

use super::flat_json::{self, Scalar};
use super::rules;
use super::{Data, Record};
use crate::error::{Reason, ReasonCode};

/// The value of an extension attribute, in the types that JSON can tell apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExtensionValue<'a> {
    /// A string (also timestamps, URIs and binary, in their string forms).
    Text(Cow<'a, str>),
    /// A boolean.
    Bool(bool),
    /// A whole number; CloudEvents integers have 32 bits.
    Int(i32),
}

impl ExtensionValue<'_> {
    /// The canonical string form.
    pub fn to_text(&self) -> String {
        match self {
            Self::Text(text) => text.to_string(),
            Self::Bool(value) => value.to_string(),
            Self::Int(value) => value.to_string(),
        }
    }
}

/// The payload, classified by column type and content type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload<'a> {
    /// No payload.
    None,
    /// JSON text, untouched.
    Json(&'a str),
    /// Text that is not JSON.
    Text(Cow<'a, str>),
    /// Bytes.
    Binary(&'a [u8]),
}

/// What rows are given that they do not have, beside the source.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fill {
    /// `datacontenttype` of rows with a payload and without a content type of their own.
    pub content_type: Option<String>,
    /// Whether `seq` becomes the extension `sequence`, with leading zeros so that texts compare as the numbers do.
    pub sequence: bool,
    /// Whether the time after which a row is dropped becomes the extension `expirytime`.
    pub expiry_time: bool,
}

/// What is filled in where nothing is configured.
static NOTHING: Fill = Fill {
    content_type: None,
    sequence: false,
    expiry_time: false,
};

/// A valid CloudEvent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// `id`.
    pub id: &'a str,
    /// `source`: the row's own or the configured default.
    pub source: &'a str,
    /// `type`.
    pub event_type: &'a str,
    /// `subject`.
    pub subject: Option<&'a str>,
    /// `time` in RFC 3339, UTC, with at most microseconds.
    pub time: Option<String>,
    /// `datacontenttype`, as the row spells it.
    pub content_type: Option<&'a str>,
    /// `dataschema`.
    pub schema: Option<&'a str>,
    /// Extension attributes, `partitionkey` included, sorted by name, each name once.
    pub extensions: Vec<(Cow<'a, str>, ExtensionValue<'a>)>,
    /// The payload.
    pub data: Payload<'a>,
}

impl<'a> Envelope<'a> {
    /// Validates a row. `default_source` stands in for a null `source`.
    pub fn new(record: &'a Record, default_source: &'a str) -> Result<Self, Reason> {
        Self::filled(record, default_source, &NOTHING)
    }

    /// Validates a row. `default_source` stands in for a null `source`, and `fill` for what else it has not.
    ///
    /// How the payload is read, by the column's type:
    ///
    /// * `json`, `jsonb`: JSON, if the content type declares JSON or is absent (absent means JSON in
    ///   CloudEvents). With any other content type the column holds what the JSON event format's
    ///   `data` member would hold: a JSON string whose *content* is the text. Anything but
    ///   a string is refused, since it would be labelled as something that it is not.
    /// * `text`: must parse as JSON if the content type declares JSON or is absent; otherwise
    ///   it is plain text.
    /// * `bytea`: JSON, if the content type declares it and the bytes are JSON in UTF-8: it goes into a
    ///   structured event as it is, where consumers look for it. Otherwise bytes, also under a content type that
    ///   declares JSON: they may be compressed.
    pub fn filled(
        record: &'a Record,
        default_source: &'a str,
        fill: &'a Fill,
    ) -> Result<Self, Reason> {
        check("id", "id", &record.id, rules::check_non_empty_string)?;
        check(
            "type",
            "type",
            &record.event_type,
            rules::check_non_empty_string,
        )?;
        let source = record.source.as_deref().unwrap_or(default_source);
        check("source", "source", source, rules::check_uri_reference)?;
        let subject = record.subject.as_deref();
        check_optional("subject", "subject", subject, rules::check_non_empty_string)?;
        let schema = record.schema.as_deref();
        check_optional("dataschema", "schema", schema, rules::check_uri)?;

        let by_default = fill.content_type.as_deref();
        let content_type = record
            .content_type
            .as_deref()
            .or(by_default.filter(|_| !record.data.is_none()));
        let declared = content_type
            .map(|value| {
                rules::media_type_is_json(value)
                    .map_err(|rule| broken("datacontenttype", "content_type", rule))
            })
            .transpose()?;

        Ok(Self {
            id: &record.id,
            source,
            event_type: &record.event_type,
            subject,
            time: record
                .created_at
                .map(|at| time("time", "created_at", at))
                .transpose()?,
            content_type,
            schema,
            extensions: with_fill(extensions(record)?, record, fill)?,
            data: payload(&record.data, declared)?,
        })
    }

    /// An extension by name.
    pub fn extension(&self, name: &str) -> Option<&ExtensionValue<'a>> {
        self.extensions
            .iter()
            .find_map(|(known, value)| (known == name).then_some(value))
    }
}

/// Whether a configured event source can be used: a non-empty URI-reference. The error is a
/// sentence without its subject, for example "is empty".
pub fn check_source(source: &str) -> Result<(), &'static str> {
    rules::check_uri_reference(source)
}

/// Whether a configured content type can be used. The error is a sentence without its subject.
pub(super) fn check_content_type(content_type: &str) -> Result<(), &'static str> {
    rules::media_type_is_json(content_type).map(|_| ())
}

fn invalid(detail: impl Into<String>) -> Reason {
    Reason::new(ReasonCode::InvalidEvent, detail)
}

fn broken(attribute: &str, column: &str, rule: &str) -> Reason {
    if attribute == column {
        invalid(format!("`{attribute}` {rule}"))
    } else {
        invalid(format!("`{attribute}` (column `{column}`) {rule}"))
    }
}

type Rule = fn(&str) -> Result<(), &'static str>;

fn check(attribute: &str, column: &str, value: &str, rule: Rule) -> Result<(), Reason> {
    rule(value).map_err(|message| broken(attribute, column, message))
}

fn check_optional(
    attribute: &str,
    column: &str,
    value: Option<&str>,
    rule: Rule,
) -> Result<(), Reason> {
    match value {
        None => Ok(()),
        Some("") => Err(broken(
            attribute,
            column,
            "is empty; write NULL to leave it out",
        )),
        Some(value) => check(attribute, column, value, rule),
    }
}

fn time(attribute: &str, column: &str, at: Timestamp) -> Result<String, Reason> {
    /// 0000-01-01T00:00:00Z: RFC 3339 has four-digit years without a sign.
    const FIRST_SECOND: i64 = -62_167_219_200;
    let whole = Timestamp::from_microsecond(at.as_microsecond());
    match whole {
        Ok(at) if at.as_second() >= FIRST_SECOND => Ok(at.to_string()),
        _ => Err(broken(
            attribute,
            column,
            "is outside the years 0000 to 9999 of RFC 3339",
        )),
    }
}

/// Adds the extensions that are wanted of every event. A row's own of the same name are kept.
fn with_fill<'a>(
    mut extensions: Extensions<'a>,
    record: &Record,
    fill: &Fill,
) -> Result<Extensions<'a>, Reason> {
    let mut add = |name: &'static str, value: String| {
        if let Err(at) = extensions.binary_search_by(|(known, _)| known.as_ref().cmp(name)) {
            extensions.insert(at, (name.into(), ExtensionValue::Text(value.into())));
        }
    };
    // Numbers below zero have no form that compares as a text.
    if fill.sequence && record.seq >= 0 {
        add("sequence", format!("{:019}", record.seq));
    }
    if fill.expiry_time
        && let Some(at) = record.expires_at
    {
        add("expirytime", time("expirytime", "expires_at", at)?);
    }
    Ok(extensions)
}

impl<'a> Envelope<'a> {
    /// Gives the event an extension attribute, or another value to the one it has. Name and value must be valid.
    pub(super) fn set_extension(&mut self, name: &'a str, value: ExtensionValue<'a>) {
        let found = self
            .extensions
            .binary_search_by(|(known, _)| known.as_ref().cmp(name));
        match found {
            Ok(at) => self.extensions[at].1 = value,
            Err(at) => self.extensions.insert(at, (name.into(), value)),
        }
    }
}

type Extensions<'a> = Vec<(Cow<'a, str>, ExtensionValue<'a>)>;

fn extensions(record: &Record) -> Result<Extensions<'_>, Reason> {
    const PARTITION_KEY: &str = "partitionkey";
    let mut extensions = match &record.extensions {
        Some(json) => parse_extensions(json)?,
        None => Vec::new(),
    };
    let found = extensions.binary_search_by(|(name, _)| name.as_ref().cmp(PARTITION_KEY));
    let Some(key) = record.key.as_deref() else {
        return match found {
            Ok(at) if !matches!(&extensions[at].1, ExtensionValue::Text(text) if !text.is_empty()) => {
                Err(invalid(
                    "extension `partitionkey` is not a non-empty string",
                ))
            }
            _ => Ok(extensions),
        };
    };
    check_optional(
        PARTITION_KEY,
        "key",
        Some(key),
        rules::check_non_empty_string,
    )?;
    match found {
        Ok(at) if extensions[at].1 == ExtensionValue::Text(key.into()) => {}
        Ok(_) => {
            return Err(invalid(
                "extension `partitionkey` differs from the column `key`, from which it is set; \
                 leave it out of `extensions`",
            ));
        }
        Err(at) => extensions.insert(at, (PARTITION_KEY.into(), ExtensionValue::Text(key.into()))),
    }
    Ok(extensions)
}

fn parse_extensions(json: &str) -> Result<Extensions<'_>, Reason> {
    let members =
        flat_json::parse(json).map_err(|how| invalid(format!("column `extensions` {how}")))?;
    let mut extensions = Vec::with_capacity(members.len() + 1);
    for (name, value) in members {
        let refuse = |rule: &str| invalid(format!("extension {} {rule}", flat_json::name(&name)));
        rules::check_extension_name(&name).map_err(refuse)?;
        let value = match value {
            Scalar::Null => continue,
            Scalar::Bool(value) => ExtensionValue::Bool(value),
            Scalar::Text(text) => {
                rules::check_string(&text).map_err(refuse)?;
                ExtensionValue::Text(text)
            }
            Scalar::Number(number) => ExtensionValue::Int(number.parse().map_err(|_| {
                refuse(
                    "is a number other than a 32-bit integer, which CloudEvents does not have; \
                     write it as a string",
                )
            })?),
            Scalar::Nested => {
                return Err(refuse(
                    "is an array or object; CloudEvents extensions are strings, booleans \
                     or integers",
                ));
            }
        };
        extensions.push((name, value));
    }
    Ok(extensions)
}

/// `declared` says whether the content type declares JSON, if there is one. Without one, a payload is JSON, except bytes.
fn payload(data: &Data, declared: Option<bool>) -> Result<Payload<'_>, Reason> {
    let json = declared.unwrap_or(true);
    Ok(match data {
        Data::None => Payload::None,
        Data::Binary(bytes) if declared == Some(true) => match json_in(bytes) {
            Some(text) => Payload::Json(text),
            None => Payload::Binary(bytes),
        },
        Data::Binary(bytes) => Payload::Binary(bytes),
        Data::Json(bytes) if json => Payload::Json(utf8(bytes)?),
        Data::Json(bytes) => match flat_json::parse_text(utf8(bytes)?) {
            Some(text) => Payload::Text(text),
            None => {
                return Err(invalid(
                    "`data` is a JSON value but `datacontenttype` (column `content_type`) does \
                     not declare JSON; declare `application/json`, or store the text as a JSON \
                     string or in a text or bytea column",
                ));
            }
        },
        Data::Text(bytes) if json => {
            let text = utf8(bytes)?;
            serde_json::from_str::<IgnoredAny>(text).map_err(|error| {
                // Only the place: the parser's own words may quote the payload.
                invalid(format!(
                    "`data` is not valid JSON (line {}, column {}), which its content type \
                     declares (an absent `content_type` means JSON); set another \
                     `content_type`, for example `text/plain`",
                    error.line(),
                    error.column()
                ))
            })?;
            Payload::Json(text)
        }
        Data::Text(bytes) => Payload::Text(Cow::Borrowed(utf8(bytes)?)),
    })
}

/// The bytes as JSON text, if they are.
fn json_in(bytes: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(bytes).ok()?;
    serde_json::from_str::<IgnoredAny>(text)
        .is_ok()
        .then_some(text)
}

fn utf8(bytes: &[u8]) -> Result<&str, Reason> {
    std::str::from_utf8(bytes).map_err(|_| invalid("`data` is text but not valid UTF-8"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests;
