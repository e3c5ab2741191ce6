use super::*;
use crate::error::ReasonCode;
use crate::event::message::HeaderValue;

fn encoder(mode: Mode, prefix: HeaderPrefix, batch: BatchLimits) -> Encoder {
    Encoder::new(EncoderConfig {
        source: "/shop".into(),
        fill: Fill::default(),
        mode,
        header_prefix: prefix,
        router: Router::new("events", "{{ type }}").unwrap(),
        batch,
        explained: Explained::InHeaders,
    })
    .unwrap()
}

fn plain(mode: Mode) -> Encoder {
    encoder(mode, HeaderPrefix::Ce, BatchLimits::default())
}

fn row(seq: i64, key: Option<&str>, event_type: &str) -> Record {
    Record {
        seq,
        // Any injective stand-in for the database's hash.
        hash: key.map_or(seq + 1000, |key| i64::from(key.as_bytes()[0])),
        keyed: key.is_some(),
        id: format!("id{seq}"),
        event_type: event_type.into(),
        key: key.map(Into::into),
        data: Data::Json("{}".into()),
        ..Record::default()
    }
}

fn full() -> Record {
    Record {
        subject: Some("s\"1".into()),
        schema: Some("https://example.com/s".into()),
        content_type: Some("application/json".into()),
        created_at: Some("2024-05-06T07:08:09.25Z".parse().unwrap()),
        extensions: Some(r#"{"z":true,"correlationid":"c-1","n":7}"#.into()),
        headers: Some(r#"{"x-tenant":"blue","retries":3,"audit":false}"#.into()),
        data: Data::Json(r#"{"b": 1.0, "a": 2}"#.into()),
        ..row(1, Some("k"), "order.created")
    }
}

fn transport_headers() -> Headers {
    vec![
        ("audit".into(), HeaderValue::Bool(false)),
        ("retries".into(), HeaderValue::Int(3)),
        ("x-tenant".into(), HeaderValue::Text("blue".into())),
    ]
}

#[test]
fn a_structured_message_in_full() {
    let encoded = plain(Mode::Structured).encode([&full()]);
    let body = concat!(
        r#"{"specversion":"1.0","id":"id1","source":"/shop","type":"order.created","#,
        r#""subject":"s\"1","time":"2024-05-06T07:08:09.25Z","datacontenttype":"application/json","#,
        r#""dataschema":"https://example.com/s","correlationid":"c-1","n":7,"partitionkey":"k","#,
        r#""z":true,"data":{"b": 1.0, "a": 2}}"#
    );
    let expected = Message {
        seqs: vec![1],
        destination: "events".into(),
        routing_key: "order.created".into(),
        body: body.into(),
        content_type: Some("application/cloudevents+json; charset=utf-8".into()),
        headers: transport_headers(),
        id: "id1".into(),
        event_type: "order.created".into(),
        time: Some("2024-05-06T07:08:09.25Z".parse().unwrap()),
        expires_in: None,
        correlation_id: Some("c-1".into()),
        source: "/shop".into(),
        key: Some("k".into()),
    };
    assert_eq!(encoded.messages, [expected]);
}

#[test]
fn a_binary_message_in_full() {
    for prefix in HeaderPrefix::ALL {
        let encoder = encoder(Mode::Binary, prefix, BatchLimits::default());
        let message = encoder.encode([&full()]).messages.remove(0);
        let attributes = [
            ("specversion", "1.0"),
            ("id", "id1"),
            ("source", "/shop"),
            ("type", "order.created"),
            ("subject", "s\"1"),
            ("time", "2024-05-06T07:08:09.25Z"),
            ("dataschema", "https://example.com/s"),
            ("correlationid", "c-1"),
            ("n", "7"),
            ("partitionkey", "k"),
            ("z", "true"),
        ];
        let mut expected: Headers = attributes
            .map(|(name, value)| {
                let name = format!("{}{name}", prefix.as_str());
                (name, HeaderValue::Text(value.into()))
            })
            .into();
        expected.extend(transport_headers());
        assert_eq!(message.headers, expected);
        assert_eq!(message.body, r#"{"b": 1.0, "a": 2}"#);
        assert_eq!(message.content_type.as_deref(), Some("application/json"));
    }
}

#[test]
fn binary_bodies_and_content_types() {
    for (data, content_type, body, expected_type) in [
        (
            Data::Json("[1]".into()),
            None,
            "[1]",
            Some("application/json"),
        ),
        (
            Data::Text("[1]".into()),
            None,
            "[1]",
            Some("application/json"),
        ),
        (
            Data::Json(r#""a\nb""#.into()),
            Some("text/plain"),
            "a\nb",
            Some("text/plain"),
        ),
        (
            Data::Json(r#""ab""#.into()),
            Some("text/plain"),
            "ab",
            Some("text/plain"),
        ),
        (
            Data::Json(r#""""#.into()),
            Some("text/plain"),
            "",
            Some("text/plain"),
        ),
        (Data::Binary("raw".into()), None, "raw", None),
        (Data::None, None, "", None),
        (Data::None, Some("text/plain"), "", Some("text/plain")),
    ] {
        let record = Record {
            data,
            content_type: content_type.map(Into::into),
            ..row(1, None, "t")
        };
        let message = plain(Mode::Binary).encode([&record]).messages.remove(0);
        assert_eq!(message.body, body);
        assert_eq!(message.content_type.as_deref(), expected_type);
    }
}

#[test]
fn payloads_are_shared_with_the_row_in_binary_mode() {
    let record = Record {
        data: Data::Json("{\"large\":1}".into()),
        ..row(1, None, "t")
    };
    let message = plain(Mode::Binary).encode([&record]).messages.remove(0);
    let Data::Json(data) = &record.data else {
        unreachable!()
    };
    assert_eq!(message.body.as_ptr(), data.as_ptr());
}

#[test]
fn a_bad_row_is_rejected_alone() {
    let rows = [
        row(1, None, "t"),
        Record {
            headers: Some(r#"{"a":[]}"#.into()),
            ..row(2, None, "t")
        },
        Record {
            subject: Some(String::new()),
            ..row(3, None, "t")
        },
        Record {
            destination: Some("a\nb".into()),
            ..row(4, None, "t")
        },
        row(5, None, "t"),
    ];
    for mode in [Mode::Structured, Mode::Binary, Mode::Batch] {
        let encoded = plain(mode).encode(&rows);
        let sent: Vec<i64> = encoded.messages.into_iter().flat_map(|m| m.seqs).collect();
        assert_eq!(sent, [1, 5], "{mode:?}");
        let rejected: Vec<_> = encoded
            .rejected
            .iter()
            .map(|(seq, r)| (*seq, r.code))
            .collect();
        let expected = [
            (2, ReasonCode::InvalidHeader),
            (3, ReasonCode::InvalidEvent),
            (4, ReasonCode::InvalidRoute),
        ];
        assert_eq!(rejected, expected, "{mode:?}");
    }
}

#[test]
fn repeated_ids_wait_and_so_does_what_follows_them() {
    let same_id = |seq, key| Record {
        id: "same".into(),
        ..row(seq, key, "t")
    };
    let rejected = Record {
        subject: Some(String::new()),
        ..same_id(1, None)
    };
    let rows = [
        rejected,
        same_id(2, Some("a")),
        row(3, Some("b"), "t"),
        same_id(4, Some("b")),
        row(5, Some("b"), "t"),
        row(6, Some("a"), "t"),
        same_id(7, None),
        row(8, None, "t"),
    ];
    for mode in [Mode::Structured, Mode::Binary, Mode::Batch] {
        let encoded = plain(mode).encode(&rows);
        let sent: Vec<i64> = encoded.messages.into_iter().flat_map(|m| m.seqs).collect();
        // The first row is refused, so its id is free for the second.
        assert_eq!(sent, [2, 3, 6, 8], "{mode:?}");
        assert_eq!(encoded.deferred, [4, 5, 7], "{mode:?}");
        assert_eq!(encoded.rejected.len(), 1);
    }
}

fn batched(limits: BatchLimits, rows: &[Record]) -> Vec<Vec<i64>> {
    let encoded = encoder(Mode::Batch, HeaderPrefix::Ce, limits).encode(rows);
    assert_eq!(encoded.rejected, []);
    for message in &encoded.messages {
        let events: Vec<serde_json::Value> = serde_json::from_slice(&message.body).unwrap();
        let ids: Vec<_> = events
            .iter()
            .map(|event| event["id"].as_str().unwrap())
            .collect();
        let expected: Vec<_> = message.seqs.iter().map(|seq| format!("id{seq}")).collect();
        assert_eq!(ids, expected);
        assert_eq!(message.id, ids[0]);
        assert!(message.seqs.len() <= limits.events.max(1));
        assert!(message.seqs.len() == 1 || message.body.len() <= limits.bytes);
    }
    encoded.messages.into_iter().map(|m| m.seqs).collect()
}

#[test]
fn batches_group_by_route_and_headers() {
    let headers = |seq, text: &str| Record {
        headers: Some(text.into()),
        ..row(seq, None, "a")
    };
    let rows = [
        row(1, None, "a"),
        row(2, None, "b"),
        row(3, None, "a"),
        headers(4, r#"{"x":1,"y":2}"#),
        headers(5, r#"{"y":2,"x":1}"#),
        headers(6, r#"{"x":1,"y":3}"#),
        Record {
            destination: Some("elsewhere".into()),
            ..row(7, None, "a")
        },
    ];
    let expected = [vec![1, 3], vec![2], vec![4, 5], vec![6], vec![7]];
    assert_eq!(batched(BatchLimits::default(), &rows), expected);
}

#[test]
fn a_key_that_changes_routes_keeps_its_order() {
    let rows = [
        row(1, None, "a"),
        row(2, Some("k"), "b"),
        row(3, Some("k"), "a"),
        row(4, None, "a"),
        row(5, Some("k"), "a"),
        row(6, Some("j"), "b"),
    ];
    // Row 3 may not join row 1, whose message leaves before row 2.
    let expected = [vec![1], vec![2, 6], vec![3, 4, 5]];
    assert_eq!(batched(BatchLimits::default(), &rows), expected);
}

#[test]
fn batches_are_bounded() {
    let rows: Vec<_> = (1..=5).map(|seq| row(seq, None, "a")).collect();
    let limits = |events, bytes| BatchLimits { events, bytes };
    assert_eq!(
        batched(limits(2, 10_000), &rows),
        [vec![1, 2], vec![3, 4], vec![5]]
    );
    assert_eq!(batched(limits(0, 10_000), &rows).len(), 5);
    assert_eq!(batched(limits(10, 0), &rows).len(), 5);

    let two = encoder(Mode::Batch, HeaderPrefix::Ce, limits(2, 10_000)).encode(&rows[..2]);
    let exact = two.messages[0].body.len();
    assert_eq!(
        batched(limits(10, exact), &rows),
        [vec![1, 2], vec![3, 4], vec![5]]
    );
    assert_eq!(batched(limits(10, exact - 1), &rows).len(), 5);
}

#[test]
fn an_unusable_source_is_refused_at_once() {
    for source in ["", "a b", "http://["] {
        let error = Encoder::new(EncoderConfig {
            source: source.into(),
            fill: Fill::default(),
            mode: Mode::default(),
            header_prefix: HeaderPrefix::default(),
            router: Router::new("d", "k").unwrap(),
            batch: BatchLimits::default(),
            explained: Explained::InHeaders,
        })
        .expect_err(source);
        assert!(
            error.to_string().starts_with("OUTRIGGER_EVENT_SOURCE is "),
            "{error}"
        );
    }
}

#[test]
fn an_unusable_content_type_is_refused_at_once() {
    for content_type in ["", "json", "application/json,text/plain"] {
        let error = Encoder::new(EncoderConfig {
            source: "/shop".into(),
            fill: Fill {
                content_type: Some(content_type.into()),
                ..Fill::default()
            },
            mode: Mode::default(),
            header_prefix: HeaderPrefix::default(),
            router: Router::new("d", "k").unwrap(),
            batch: BatchLimits::default(),
            explained: Explained::InHeaders,
        })
        .expect_err(content_type);
        assert!(
            error
                .to_string()
                .starts_with("OUTRIGGER_EVENT_CONTENT_TYPE is "),
            "{error}"
        );
    }
}
