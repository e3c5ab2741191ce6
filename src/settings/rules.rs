//! Rules between settings, and what a command cannot do without.

use super::build::{Values, name_in};
use super::report::{Origin, Problem};
use super::value::Value;
use super::{Database, EventMode, Kafka, Need, Ordering, Sasl, Settings, SinkKind};

/// Adds every broken rule to `problems`.
pub(super) fn check_together(
    settings: &Settings,
    values: &Values,
    need: Need,
    problems: &mut Vec<Problem>,
) {
    let mut rules = Rules { values, problems };
    rules.between(settings);
    if need != Need::Nothing {
        rules.database(&settings.database);
    }
    if need == Need::Relay {
        rules.required("event.source", "for example `/services/orders`");
        if !values.broken.contains("sink") {
            rules.sink(settings);
        }
    }
}

struct Rules<'a> {
    values: &'a Values,
    problems: &'a mut Vec<Problem>,
}

impl Rules<'_> {
    /// What the chosen sink cannot do without, and what it cannot do.
    fn sink(&mut self, settings: &Settings) {
        let name = settings.sink.name();
        self.rule(
            "sink",
            "sink",
            settings.sink.is_built(),
            format!(
                "cannot be `{name}`: this program was built without it; build with `cargo build --release --features {name}`"
            ),
        );
        match settings.sink {
            SinkKind::RabbitMq => self.required(
                "rabbitmq.url",
                "for example `amqp://user:password@host:5672`",
            ),
            SinkKind::Nats => {
                self.required("nats.url", "for example `nats://user:password@host:4222`");
                self.only_ce_headers("NATS");
            }
            SinkKind::Http => {
                self.required("http.url", "for example `https://orders.internal/events`");
                self.only_ce_headers("HTTP");
                for key in ["route.key", "retry.dead_letter_key"] {
                    let set = self.values.is_given(key);
                    let text = "has no effect with this {}: http knows no routing keys; put it into the destination";
                    self.rule(key, "sink", !set, text.into());
                }
            }
            SinkKind::Kafka => self.kafka(settings),
            SinkKind::EventBridge => self.eventbridge(settings),
            SinkKind::Stdout => {}
        }
    }

    /// The other spellings belong to AMQP.
    fn only_ce_headers(&mut self, protocol: &str) {
        let other = match self.values.values.get("event.header_prefix") {
            Some(Value::Text(prefix)) => prefix != "ce-",
            _ => false,
        };
        self.rule(
            "event.header_prefix",
            "sink",
            !other,
            format!(
                "must be `ce-` with this {{}}: that is how CloudEvents spells headers in {protocol}"
            ),
        );
    }

    fn between(&mut self, settings: &Settings) {
        let Settings {
            event,
            relay,
            retry,
            rabbitmq,
            nats,
            http,
            kafka,
            ..
        } = settings;
        self.rule(
            "relay.batch_size",
            "relay.max_in_flight",
            relay.batch_size <= relay.max_in_flight,
            format!(
                "must not be more than {{}}, which is {}",
                relay.max_in_flight
            ),
        );
        self.rule(
            "retry.backoff_initial",
            "retry.backoff_max",
            retry.backoff_initial <= retry.backoff_max,
            "must not be longer than {}".into(),
        );
        self.rule(
            "retry.dead_letter_key",
            "retry.dead_letter_destination",
            retry.dead_letter_key.is_none() || retry.dead_letter_destination.is_some(),
            "has no effect without {}".into(),
        );
        self.rule(
            "event.sequence",
            "relay.ordering",
            !event.sequence || relay.ordering != Ordering::None,
            "needs an order, and {} is `none`".into(),
        );
        let cert = &rabbitmq.cert_file;
        self.pair(
            ["rabbitmq.cert_file", "rabbitmq.key_file"],
            [cert.is_some(), rabbitmq.key_file.is_some()],
        );
        self.pair(
            ["nats.cert_file", "nats.key_file"],
            [nats.cert_file.is_some(), nats.key_file.is_some()],
        );
        self.pair(
            ["http.cert_file", "http.key_file"],
            [http.cert_file.is_some(), http.key_file.is_some()],
        );
        self.pair(
            ["kafka.cert_file", "kafka.key_file"],
            [kafka.cert_file.is_some(), kafka.key_file.is_some()],
        );
        let urls = self.values.list("rabbitmq.url");
        let plain_only = !urls.is_empty() && urls.iter().all(|url| url.starts_with("amqp://"));
        for (name, file) in [
            ("rabbitmq.ca_file", &rabbitmq.ca_file),
            ("rabbitmq.cert_file", cert),
        ] {
            self.rule(
                name,
                "rabbitmq.url",
                file.is_none() || !plain_only,
                "has no effect, because {} is not encrypted; use `amqps://`".into(),
            );
        }
    }

    /// Two settings that go together.
    fn pair(&mut self, [one, other]: [&'static str; 2], [has_one, has_other]: [bool; 2]) {
        let text = || "is of no use without {}".to_owned();
        self.rule(one, other, !has_one || has_other, text());
        self.rule(other, one, !has_other || has_one, text());
    }

    fn kafka(&mut self, settings: &Settings) {
        self.required("kafka.brokers", "for example `kafka-1:9092,kafka-2:9092`");
        self.kafka_security(&settings.kafka);
        let prefixed = self.values.is_given("event.header_prefix");
        self.rule(
            "event.header_prefix",
            "sink",
            !prefixed,
            "has no effect with this {}: CloudEvents spells headers `ce_` in Kafka".into(),
        );
        self.rule(
            "event.mode",
            "sink",
            settings.event.mode != EventMode::Batch,
            "cannot be `batch` with this {}: a Kafka record has one key, and the producer sends records in batches by itself"
                .into(),
        );
        for key in ["route.key", "retry.dead_letter_key"] {
            let set = self.values.is_given(key);
            let text = "has no effect with this {}: a Kafka record has no routing key; its key is the row's `key`";
            self.rule(key, "sink", !set, text.into());
        }
    }

    fn eventbridge(&mut self, settings: &Settings) {
        let prefixed = self.values.is_given("event.header_prefix");
        self.rule(
            "event.header_prefix",
            "sink",
            !prefixed,
            "has no effect with this {}: an entry of EventBridge has no headers".into(),
        );
        self.rule(
            "event.mode",
            "sink",
            settings.event.mode == EventMode::Structured,
            "must be `structured` with this {}: an entry of EventBridge is one JSON object, without headers"
                .into(),
        );
    }

    fn kafka_security(&mut self, kafka: &Kafka) {
        let (tls, sasl) = (kafka.tls, kafka.sasl != Sasl::None);
        let (cert, ca) = (kafka.cert_file.is_some(), kafka.ca_file.is_some());
        let (name, password) = (kafka.username.is_some(), kafka.password.is_some());
        let (mechanism, user) = ("kafka.sasl_mechanism", "kafka.username");
        let plain = "has no effect unless {} is `true`";
        let idle = "has no effect without {}";
        for (key, other, holds, text) in [
            ("kafka.ca_file", "kafka.tls", tls || !ca, plain),
            ("kafka.cert_file", "kafka.tls", tls || !cert, plain),
            (mechanism, user, !sasl || name, "needs {}"),
            (mechanism, "kafka.password", !sasl || password, "needs {}"),
            (user, mechanism, sasl || !name, idle),
            ("kafka.password", mechanism, sasl || !password, idle),
        ] {
            self.rule(key, other, holds, text.to_owned());
        }
    }

    /// Reports `key` unless the rule holds, or one of both is broken already. `{}` in the text
    /// stands for the other setting, named in the same style.
    fn rule(&mut self, key: &'static str, other: &'static str, holds: bool, text: String) {
        let broken = &self.values.broken;
        if holds || broken.contains(key) || broken.contains(other) {
            return;
        }
        // Report the one the user set.
        let origin_of = |key| self.values.origins.get(key).unwrap_or(&Origin::Default);
        let origin = origin_of(key).clone();
        let other_name = match origin_of(other) {
            Origin::Default => match &origin {
                Origin::File(_) => other.to_owned(),
                _ => name_in(other, &Origin::Default),
            },
            origin => name_in(other, origin),
        };
        self.problems.push(Problem {
            name: name_in(key, &origin),
            value: None,
            origin,
            rule: text.replace("{}", &format!("`{other_name}`")),
            hint: None,
        });
    }

    fn required(&mut self, key: &'static str, hint: &str) {
        let missing = !self.values.values.contains_key(key);
        if missing && !self.values.broken.contains(key) {
            self.problems.push(Problem {
                name: name_in(key, &Origin::Default),
                value: None,
                origin: Origin::Default,
                rule: "required, but not set".into(),
                hint: Some(hint.into()),
            });
        }
    }

    fn database(&mut self, database: &Database) {
        if !database.pg.contains_key("host") && !database.pg.contains_key("service") {
            self.required(
                "database.url",
                "for example `postgres://user:password@host:5432/database`; `DATABASE_URL` and `PGHOST` are honoured too",
            );
        }
    }
}
