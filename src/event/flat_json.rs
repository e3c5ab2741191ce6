//! JSON objects whose members are scalars: the `extensions` and `headers` columns.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;

/// One member's value. Numbers stay text, so that nothing is rounded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Scalar<'a> {
    Null,
    Bool(bool),
    Number(&'a str),
    Text(Cow<'a, str>),
    /// An array or an object, which neither column may hold.
    Nested,
}

/// A string that borrows from the input when it holds no escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// Reads a JSON string, borrowing where it can.
pub(super) fn parse_text(json: &str) -> Option<Cow<'_, str>> {
    serde_json::from_str::<Text<'_>>(json).ok().map(|t| t.0)
}

/// Reads a JSON object into its members, sorted by name. JSON's `null`, which is what many mappers of objects make of
/// "nothing", has none, and neither has the empty text of a text column.
///
/// The error says how the text is wrong without quoting it.
pub(super) fn parse(json: &str) -> Result<Vec<(Cow<'_, str>, Scalar<'_>)>, String> {
    if matches!(json.trim_ascii(), "" | "null") {
        return Ok(Vec::new());
    }
    let mut raw = serde_json::from_str::<Members<'_>>(json)
        .map_err(|_| "is not a JSON object with valid Unicode names".to_owned())?
        .0;
    raw.sort_by(|a, b| a.0.cmp(&b.0));
    if let Some(pair) = raw.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(format!("has the member {} twice", name(&pair[0].0)));
    }
    raw.into_iter()
        .map(|(member, value)| match scalar(value.get()) {
            Some(scalar) => Ok((member, scalar)),
            None => Err(format!(
                "has a string that is not valid Unicode in the member {}",
                name(&member)
            )),
        })
        .collect()
}

fn scalar(json: &str) -> Option<Scalar<'_>> {
    // A raw value carries no surrounding white space, so its first byte tells its type.
    Some(match json.as_bytes().first()? {
        b'"' => Scalar::Text(parse_text(json)?),
        b'{' | b'[' => Scalar::Nested,
        b'n' => Scalar::Null,
        b't' => Scalar::Bool(true),
        b'f' => Scalar::Bool(false),
        _ => Scalar::Number(json),
    })
}

/// A member's name for an error message: quoted, escaped and bounded.
pub(super) fn name(member: &str) -> String {
    const SHOWN: usize = 64;
    let mut shown: String = member
        .chars()
        .take(SHOWN)
        .flat_map(char::escape_debug)
        .collect();
    if member.chars().nth(SHOWN).is_some() {
        shown.push_str("...");
    }
    format!("`{shown}`")
}

/// The members as written: order and repetitions kept.
struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;

        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some((Text(name), value)) = map.next_entry()? {
                    members.push((name, value));
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(Collect)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn members_come_sorted_with_exact_numbers() {
        let members =
            parse(r#" {"b": 0.10, "a":"x\n", "c":true, "d":null, "e":[1], "f":{}} "#).unwrap();
        let expected = [
            ("a", Scalar::Text("x\n".into())),
            ("b", Scalar::Number("0.10")),
            ("c", Scalar::Bool(true)),
            ("d", Scalar::Null),
            ("e", Scalar::Nested),
            ("f", Scalar::Nested),
        ];
        let members: Vec<_> = members
            .iter()
            .map(|(n, v)| (n.as_ref(), v.clone()))
            .collect();
        assert_eq!(members, expected);
    }

    #[test]
    fn what_is_no_object_is_refused_without_being_quoted() {
        for nothing in ["", " ", "null", " null ", "{}"] {
            assert_eq!(parse(nothing), Ok(vec![]), "{nothing:?}");
        }
        for bad in [
            "[]",
            "\"secret\"",
            "1",
            "\"null\"",
            "nul",
            "false",
            "{\"a\"}",
            "{\"a\":secret}",
            "{} {}",
        ] {
            let error = parse(bad).expect_err(bad);
            assert!(!error.contains("secret"), "{error}");
        }
        assert!(
            parse(r#"{"a":1,"\u0061":2}"#)
                .unwrap_err()
                .contains("`a` twice")
        );
        assert!(parse(r#"{"a":"\ud800"}"#).unwrap_err().contains("`a`"));
    }

    #[test]
    fn names_in_errors_are_bounded() {
        assert_eq!(name("a\nb"), "`a\\nb`");
        assert_eq!(name(&"x".repeat(500)).len(), 2 + 64 + 3);
    }
}
