//! What decides where and as what an event goes, as a replica stores it beside its lease, and how two of them differ.
//!
//! Replicas of one outbox share its events, so they must agree. Where they send events *to* ([`SPLITTING`]) splits
//! the outbox: some events would be missing at each place, or be other events than those before. Everything else
//! changes the form of some events, or the rules for them.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Value, json};

/// Which sink.
pub const SINK: &str = "sink";
/// Where the sink leads, without credentials.
pub const TARGET: &str = "target";
/// The CloudEvents `source` of rows that have none.
pub const SOURCE: &str = "source";

/// Replicas that differ in one of these never publish at the same time.
pub const SPLITTING: [&str; 3] = [SINK, TARGET, SOURCE];

/// A replica's configuration: readable values by name. No secret.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Configuration(BTreeMap<String, String>);

/// One value that two replicas have differently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Its name.
    pub name: String,
    /// What the other replica has.
    pub theirs: String,
    /// What this one has.
    pub ours: String,
}

impl Difference {
    /// Whether the outbox would be split.
    pub fn splits(&self) -> bool {
        SPLITTING.contains(&self.name.as_str())
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = |text: &str| match text {
            "" => "none".to_owned(),
            text => format!("`{text}`"),
        };
        write!(
            f,
            "{} {} there, {} here",
            self.name.replace('_', " "),
            value(&self.theirs),
            value(&self.ours)
        )
    }
}

impl Configuration {
    /// From names and values.
    pub fn new<'a>(values: impl IntoIterator<Item = (&'a str, String)>) -> Self {
        let values = values.into_iter();
        Self(values.map(|(name, value)| (name.into(), value)).collect())
    }

    /// One value; empty if there is none.
    pub fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// The part that splits the outbox where it differs, as one text. `None` without a sink: what registers like that
    /// publishes nothing, and conflicts with no replica.
    pub fn identity(&self) -> Option<String> {
        let parts = SPLITTING.map(|name| Value::from(self.get(name)));
        (!self.get(SINK).is_empty()).then(|| Value::from(parts.to_vec()).to_string())
    }

    /// As it is stored.
    pub fn to_json(&self) -> Value {
        json!(self.0)
    }

    /// As it was stored. What is not text is left out: another version may have written it.
    pub fn from_json(value: &Value) -> Self {
        let entries = value.as_object().into_iter().flatten();
        Self(
            entries
                .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
                .collect(),
        )
    }

    /// Where another replica differs, what splits the outbox first.
    pub fn differences(&self, theirs: &Self) -> Vec<Difference> {
        let names = self.0.keys().chain(theirs.0.keys());
        let mut names: Vec<&str> = names.map(String::as_str).collect();
        names.sort_unstable_by_key(|name| {
            let place = SPLITTING.iter().position(|splitting| splitting == name);
            (place.unwrap_or(SPLITTING.len()), *name)
        });
        names.dedup();
        names
            .into_iter()
            .filter(|name| self.get(name) != theirs.get(name))
            .map(|name| Difference {
                name: name.to_owned(),
                theirs: theirs.get(name).to_owned(),
                ours: self.get(name).to_owned(),
            })
            .collect()
    }
}

/// Differences in one sentence.
pub fn described(differences: &[Difference]) -> String {
    let texts: Vec<String> = differences.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration(values: &[(&str, &str)]) -> Configuration {
        let rabbitmq = [(SINK, "rabbitmq"), (TARGET, "a:5672/"), (SOURCE, "/orders")];
        let values = rabbitmq.iter().chain(values);
        Configuration::new(values.map(|(name, value)| (*name, (*value).to_owned())))
    }

    #[track_caller]
    fn check(theirs: &[(&str, &str)], ours: &[(&str, &str)], expected: &str, splits: bool) {
        let (theirs, ours) = (configuration(theirs), configuration(ours));
        let differences = ours.differences(&theirs);
        assert_eq!(described(&differences), expected);
        assert_eq!(differences.iter().any(Difference::splits), splits);
        // What the database compares says the same as what people are told.
        assert_eq!(theirs.identity() != ours.identity(), splits);
    }

    #[test]
    fn sink_target_and_source_split_the_outbox_and_nothing_else_does() {
        check(&[], &[], "", false);
        check(
            &[],
            &[(SINK, "stdout"), (TARGET, "")],
            "sink `rabbitmq` there, `stdout` here; target `a:5672/` there, none here",
            true,
        );
        check(
            &[(SOURCE, "/a"), ("mode", "structured")],
            &[(SOURCE, "/b"), ("mode", "binary")],
            "source `/a` there, `/b` here; mode `structured` there, `binary` here",
            true,
        );
        check(
            &[("ordering", "strict"), ("after_publish", "mark")],
            &[("ordering", "none"), ("after_publish", "mark")],
            "ordering `strict` there, `none` here",
            false,
        );
        // A value that only one version knows.
        check(
            &[],
            &[("dead_letter_key", "x")],
            "dead letter key none there, `x` here",
            false,
        );
    }

    #[test]
    fn values_cannot_run_into_each_other() {
        let of = |sink: &str, target: &str| {
            Configuration::new([(SINK, sink.to_owned()), (TARGET, target.to_owned())]).identity()
        };
        assert_ne!(of("a", "b\",\"c"), of("a\",\"b", "c"));
        assert_eq!(Configuration::default().identity(), None);
    }

    #[test]
    fn it_is_stored_and_read_again() {
        let ours = configuration(&[("mode", "batch")]);
        assert_eq!(Configuration::from_json(&ours.to_json()), ours);
        let odd = json!({ "sink": "nats", "newer": ["x"] });
        assert_eq!(Configuration::from_json(&odd).get(SINK), "nats");
    }
}
