use std::sync::Arc;

use super::*;

fn record() -> Record {
    Record {
        seq: 42,
        id: "id-1".into(),
        event_type: "order.created".into(),
        key: Some("k1".into()),
        data: Data::Json(
            r#"{"region":"eu","n":12345678901234567890123,"price":0.10,"i":7,"nil":null,
                "customer":{"tags":["a","b"],"vip":true}}"#
                .into(),
        ),
        extensions: Some(r#"{"tenant":"blue"}"#.into()),
        headers: Some(r#"{"x-shard":3}"#.into()),
        created_at: Some("2024-05-06T07:08:09Z".parse().unwrap()),
        extra: vec![
            (Arc::from("service"), Some("shop".into())),
            (Arc::from("entity"), Some("order".into())),
            (Arc::from("action"), None),
        ],
        ..Record::default()
    }
}

fn key(template: &str) -> Result<String, Reason> {
    let router = Router::new("events", template)
        .unwrap()
        .with_source("/shop");
    let (destination, key) = router.route(&record())?;
    assert_eq!(destination, "events");
    Ok(key)
}

#[test]
fn templates_over_the_row() {
    for (template, expected) in [
        ("constant", "constant"),
        ("", ""),
        ("{{ type }}", "order.created"),
        (
            "{{ service }}.{{ entity }}.{{ id }}.created",
            "shop.order.id-1.created",
        ),
        ("{{ action | default('none') }}", "none"),
        ("{{ seq }}-{{ key }}-{{ source }}", "42-k1-/shop"),
        ("{{ destination }}.x", "events.x"),
        ("{{ time }}", "2024-05-06T07:08:09Z"),
        ("{{ data.region }}.{{ data.i + 1 }}", "eu.8"),
        (
            "{{ data.n }}/{{ data.price }}",
            "12345678901234567890123/0.10",
        ),
        (
            "{{ data.customer.tags[1] }}{{ data.customer.tags | length }}",
            "b2",
        ),
        (
            "{% if data.customer.vip %}vip{% else %}all{% endif %}",
            "vip",
        ),
        (
            "{% for t in data.customer.tags %}{{ t }};{% endfor %}",
            "a;b;",
        ),
        ("{{ data.nil | default('nil') }}", "nil"),
        ("{{ extensions.tenant }}.{{ headers['x-shard'] }}", "blue.3"),
        ("{{ type | upper | replace('.', '-') }}", "ORDER-CREATED"),
        ("{% for i in range(3) %}{{ i }}{% endfor %}", "012"),
        (
            "{{ subject if subject is defined else type }}",
            "order.created",
        ),
    ] {
        assert_eq!(key(template).as_deref(), Ok(expected), "{template}");
    }
}

#[test]
fn missing_values_are_named() {
    for (template, named) in [
        (
            "{{ subject }}",
            "OUTRIGGER_ROUTE_KEY needs `subject`, which this row does not have",
        ),
        ("{{ service }}.{{ action }}", "needs `action`, which"),
        ("{{ data.nil }}", "needs `data.nil`, which"),
        (
            "{{ data.customer.name.first }}",
            "`data.customer.name.first`",
        ),
        ("{{ unselected }}", "needs `unselected`"),
        ("{{ type.split }}", "needs `type.split`"),
        (
            "{{ extensions.nope }}{{ headers.nope }}",
            "`extensions.nope`, `headers.nope`",
        ),
    ] {
        let reason = key(template).expect_err(template);
        assert_eq!(reason.code, ReasonCode::InvalidRoute);
        assert!(reason.detail.contains(named), "{reason}");
    }
}

#[test]
fn payloads_that_are_not_json_have_no_members() {
    let router = Router::new("d", "{{ data.region }}").unwrap();
    for data in [
        Data::None,
        Data::Binary("{}".into()),
        Data::Text("secret".into()),
    ] {
        let reason = router.route(&Record { data, ..record() }).unwrap_err();
        assert!(reason.detail.contains("`data.region`"), "{reason}");
        assert!(!reason.detail.contains("secret"), "{reason}");
    }
    let text = Record {
        data: Data::Text(r#" {"region":"us"}"#.into()),
        ..record()
    };
    assert_eq!(router.route(&text).unwrap().1, "us");
}

#[test]
fn rendering_is_bounded() {
    let endless = "{% for i in range(1000) %}{% for j in range(1000) %}{% if seq %}{% endif %}{% endfor %}{% endfor %}";
    let reason = key(endless).unwrap_err();
    assert!(reason.detail.contains("more than 10000 steps"), "{reason}");

    let long = Record {
        id: "x".repeat(4097),
        ..record()
    };
    let router = Router::new("d", "{{ id }}").unwrap();
    let reason = router.route(&long).unwrap_err();
    assert!(reason.detail.contains("more than 4096 bytes"), "{reason}");
    let fits = Record {
        id: "x".repeat(4096),
        ..record()
    };
    assert_eq!(router.route(&fits).unwrap().1.len(), 4096);
}

#[test]
fn errors_never_quote_values() {
    let secret = Record {
        event_type: "secret".into(),
        data: Data::Json(r#"{"x":"secret"}"#.into()),
        ..record()
    };
    for template in [
        "{{ type | int }}",
        "{{ data.x + 1 }}",
        "{{ data.x.y.z }}",
        "{{ -type }}",
    ] {
        let router = Router::new("d", template).unwrap();
        let reason = router.route(&secret).expect_err(template);
        assert_eq!(reason.code, ReasonCode::InvalidRoute);
        assert!(!reason.detail.contains("secret"), "{template}: {reason}");
        assert!(reason.detail.contains("OUTRIGGER_ROUTE_KEY"), "{reason}");
    }
}

#[test]
fn control_characters_are_refused() {
    let router = Router::new("d", "{{ type }}").unwrap();
    let newline = Record {
        event_type: "a\nb".into(),
        ..record()
    };
    assert!(
        router
            .route(&newline)
            .unwrap_err()
            .detail
            .contains("control characters")
    );
    for bad in [
        Record {
            destination: Some("\0".into()),
            ..record()
        },
        Record {
            routing_key: Some("\t".into()),
            ..record()
        },
    ] {
        assert!(
            router
                .route(&bad)
                .unwrap_err()
                .detail
                .contains("control characters")
        );
    }
}

#[test]
fn the_row_overrides_the_templates() {
    let router = Router::new("{{ subject }}", "{{ destination }}.{{ type }}").unwrap();
    let both = |destination: Option<&str>, routing_key: Option<&str>| Record {
        subject: Some("templated".into()),
        destination: destination.map(Into::into),
        routing_key: routing_key.map(Into::into),
        ..record()
    };
    for (record, expected) in [
        (both(None, None), ("templated", "templated.order.created")),
        (both(Some("own"), None), ("own", "own.order.created")),
        (both(None, Some("own")), ("templated", "own")),
        (both(Some(""), Some("queue")), ("", "queue")),
    ] {
        let (destination, key) = router.route(&record).unwrap();
        assert_eq!((destination.as_str(), key.as_str()), expected);
    }
    let by_key = Router::new("x.{{ routing_key }}", "k").unwrap();
    assert!(by_key.route(&both(None, None)).is_err());
    assert_eq!(by_key.route(&both(None, Some("own"))).unwrap().0, "x.own");
}

#[test]
fn further_columns_are_reported() {
    let router = Router::new(
        "{{ service }}",
        "{{ service }}.{{ entity }}.{{ id }}{% for c in range(2) %}{{ c }}{% endfor %}{{ data.x }}{{ reason }}",
    )
    .unwrap();
    assert_eq!(router.extra_columns(), ["entity", "reason", "service"]);
    let dead = DeadLetterRouter::new("{{ team }}", "{{ reason }}.{{ routing_key }}").unwrap();
    assert_eq!(dead.extra_columns(), ["team"]);
    assert!(
        Router::new("a", "{{ type }}")
            .unwrap()
            .extra_columns()
            .is_empty()
    );
}

#[test]
fn wrong_templates_are_refused_at_start() {
    for template in [
        "{{ type",
        "{{ }}",
        "{% if %}",
        "{{ type | nope }}",
        "{{ type | indent(data.i) }}",
        "{{ type is nope }}",
        "{{ nope() }}",
        "{{ type.upper() }}",
        "{{ type | replace('a') }}",
        "{{ routing_key }}",
        "{% include 'x' %}",
        "{{ 1 / 0 }}",
        "a\nb",
        "{% for i in range(100000) %}x{% endfor %}",
    ] {
        let error = Router::new("fine", template)
            .expect_err(template)
            .to_string();
        assert!(
            error.starts_with("OUTRIGGER_ROUTE_KEY: "),
            "{template}: {error}"
        );
        assert!(
            error.contains("a template looks like `orders.{{ type }}`"),
            "{error}"
        );
        assert_eq!(error.lines().count(), 1, "{error}");
    }
    let error = Router::new("{{ destination }}", "{{")
        .unwrap_err()
        .to_string();
    let lines: Vec<_> = error.lines().collect();
    assert!(
        lines[0].starts_with("OUTRIGGER_ROUTE_DESTINATION: `destination` cannot"),
        "{error}"
    );
    assert!(
        lines[1].starts_with("OUTRIGGER_ROUTE_KEY: syntax error"),
        "{error}"
    );
    let error = DeadLetterRouter::new("{{", "x").unwrap_err().to_string();
    assert!(
        error.starts_with("OUTRIGGER_RETRY_DEAD_LETTER_DESTINATION: "),
        "{error}"
    );
}

#[test]
fn json_in_bytes_is_data() {
    let router = Router::new("events", "{{ data.region }}.{{ content_type }}").unwrap();
    let mut record = Record {
        data: crate::event::Data::Binary(r#"{"region":"eu"}"#.into()),
        ..Record::default()
    };
    assert!(
        router.route(&record).is_err(),
        "nothing says that it is JSON"
    );
    let by_default = Router::new("events", "{{ data.region }}.{{ content_type }}")
        .unwrap()
        .with_content_type(Some("application/json"));
    let expected = ("events".to_owned(), "eu.application/json".to_owned());
    assert_eq!(by_default.route(&record), Ok(expected));
    record.content_type = Some("application/vnd.order+json".into());
    let expected = (
        "events".to_owned(),
        "eu.application/vnd.order+json".to_owned(),
    );
    assert_eq!(router.route(&record), Ok(expected));
    record.content_type = Some("text/plain".into());
    assert!(by_default.route(&record).is_err());
}

#[test]
fn a_token_is_one_part_of_a_subject() {
    let subject = |value: &str| {
        let record = Record {
            subject: Some(value.into()),
            ..record()
        };
        let router = Router::new("events", "user.{{ subject | token }}.created").unwrap();
        router.route(&record).map(|(_, key)| key)
    };
    for (value, expected) in [
        ("42", "42"),
        ("zoe@example.com", "zoe@example%2Ecom"),
        ("a b*c>d#e/f%g$h", "a%20b%2Ac%3Ed%23e%2Ff%25g%24h"),
        ("é\n", "%C3%A9%0A"),
        ("-_=@+", "-_=@+"),
        ("", "%"),
    ] {
        let expected = format!("user.{expected}.created");
        assert_eq!(
            subject(value).as_deref(),
            Ok(expected.as_str()),
            "{value:?}"
        );
    }
    assert_eq!(key("{{ seq | token }}").as_deref(), Ok("42"));
    assert_eq!(
        key("{{ data.customer.vip | token }}"),
        key("{{ data.customer.vip }}")
    );
    // What a row does not have is no empty token.
    for missing in ["{{ subject | token }}", "{{ data.nil | token }}"] {
        let reason = Router::new("events", missing)
            .unwrap()
            .route(&Record {
                subject: None,
                ..record()
            })
            .unwrap_err();
        assert!(
            reason.detail.contains("does not have"),
            "{missing}: {reason}"
        );
    }
    assert_eq!(
        key("{{ data.nil | default('none') | token }}").as_deref(),
        Ok("none")
    );
}
