use super::*;

const SOURCE: &str = "/default";

fn record() -> Record {
    Record {
        id: "1".into(),
        event_type: "t".into(),
        ..Record::default()
    }
}

/// Refused with a text that contains `part`.
#[track_caller]
fn refused(record: Record, part: &str) {
    let reason = Envelope::new(&record, SOURCE).expect_err(part);
    assert_eq!(reason.code, ReasonCode::InvalidEvent);
    assert!(reason.detail.contains(part), "{reason} lacks {part}");
    assert!(
        !reason.detail.contains("secret"),
        "{reason} quotes a payload"
    );
}

#[test]
fn the_default_source_fills_in_for_null_only() {
    assert_eq!(Envelope::new(&record(), SOURCE).unwrap().source, SOURCE);
    let own = Record {
        source: Some("/own".into()),
        ..record()
    };
    assert_eq!(Envelope::new(&own, SOURCE).unwrap().source, "/own");
    refused(
        Record {
            source: Some(String::new()),
            ..record()
        },
        "`source` is empty",
    );
}

#[test]
fn broken_attributes_name_their_column() {
    let some = |text: &str| Some(text.to_owned());
    refused(
        Record {
            id: String::new(),
            ..record()
        },
        "`id` is empty",
    );
    refused(
        Record {
            id: "a\nb".into(),
            ..record()
        },
        "`id` contains a control",
    );
    refused(
        Record {
            event_type: "\u{fffe}".into(),
            ..record()
        },
        "`type` contains",
    );
    refused(
        Record {
            subject: some(""),
            ..record()
        },
        "`subject` is empty; write NULL",
    );
    refused(
        Record {
            subject: some("\u{85}"),
            ..record()
        },
        "`subject` contains",
    );
    refused(
        Record {
            source: some("a b"),
            ..record()
        },
        "`source` is not a URI-reference",
    );
    refused(
        Record {
            schema: some(""),
            ..record()
        },
        "`dataschema` (column `schema`) is empty",
    );
    refused(
        Record {
            schema: some("/rel"),
            ..record()
        },
        "(column `schema`) is not an absolute",
    );
    refused(
        Record {
            content_type: some(""),
            ..record()
        },
        "(column `content_type`) is empty",
    );
    refused(
        Record {
            content_type: some("x"),
            ..record()
        },
        "is not a media type",
    );
    refused(
        Record {
            key: some(""),
            ..record()
        },
        "`partitionkey` (column `key`) is empty",
    );
    refused(
        Record {
            key: some("a\u{1}"),
            ..record()
        },
        "(column `key`) contains a control",
    );
}

#[test]
fn times_are_utc_with_microseconds_at_most() {
    for (at, expected) in [
        ("2018-04-05T18:31:00+01:00", "2018-04-05T17:31:00Z"),
        (
            "2024-02-29T23:59:59.123456789Z",
            "2024-02-29T23:59:59.123456Z",
        ),
        ("2024-01-01T00:00:00.500Z", "2024-01-01T00:00:00.5Z"),
        ("0000-01-01T00:00:00Z", "0000-01-01T00:00:00Z"),
    ] {
        let record = Record {
            created_at: Some(at.parse().unwrap()),
            ..record()
        };
        let envelope = Envelope::new(&record, SOURCE).unwrap();
        assert_eq!(envelope.time.as_deref(), Some(expected));
    }
    let ancient = Timestamp::new(-62_167_219_201, 0).unwrap();
    refused(
        Record {
            created_at: Some(ancient),
            ..record()
        },
        "`time` (column `created_at`)",
    );
}

#[test]
fn the_key_becomes_the_partition_key() {
    let with = |key: Option<&str>, extensions: Option<&str>| Record {
        key: key.map(Into::into),
        extensions: extensions.map(Into::into),
        ..record()
    };
    for (record, expected) in [
        (with(Some("k"), None), Some("k")),
        (
            with(Some("k"), Some(r#"{"partitionkey":"k","z":"1","a":"2"}"#)),
            Some("k"),
        ),
        (
            with(Some("k"), Some(r#"{"partitionkey":null,"z":"1","a":"2"}"#)),
            Some("k"),
        ),
        (with(None, Some(r#"{"partitionkey":"own"}"#)), Some("own")),
        (with(None, Some("{}")), None),
    ] {
        let envelope = Envelope::new(&record, SOURCE).unwrap();
        let expected = expected.map(|key| ExtensionValue::Text(key.into()));
        assert_eq!(envelope.extension("partitionkey"), expected.as_ref());
        assert!(
            envelope
                .extensions
                .is_sorted_by_key(|(name, _)| name.clone()),
            "{:?}",
            envelope.extensions
        );
    }
    refused(
        with(Some("k"), Some(r#"{"partitionkey":"secret"}"#)),
        "`partitionkey` differs",
    );
    refused(
        with(Some("1"), Some(r#"{"partitionkey":1}"#)),
        "`partitionkey` differs",
    );
    refused(
        with(None, Some(r#"{"partitionkey":""}"#)),
        "`partitionkey` is not a non-empty",
    );
    refused(
        with(None, Some(r#"{"partitionkey":true}"#)),
        "`partitionkey` is not a non-empty",
    );
}

#[test]
fn extensions_are_scalars_with_proper_names() {
    let with = |extensions: &str| Record {
        extensions: Some(extensions.into()),
        ..record()
    };
    let good = with(r#"{"b":true,"i":-2147483648,"s":"","n":null,"a20charactersarefineo":"x"}"#);
    let envelope = Envelope::new(&good, SOURCE).unwrap();
    let names: Vec<_> = envelope
        .extensions
        .iter()
        .map(|(name, _)| name.as_ref())
        .collect();
    assert_eq!(names, ["a20charactersarefineo", "b", "i", "s"]);
    assert_eq!(
        envelope.extension("i"),
        Some(&ExtensionValue::Int(i32::MIN))
    );
    assert_eq!(envelope.extension("n"), None);

    refused(
        with("[\"secret\"]"),
        "column `extensions` is not a JSON object",
    );
    refused(
        with(r#"{"a":"secret","a":"secret"}"#),
        "has the member `a` twice",
    );
    refused(
        with(r#"{"id":"secret"}"#),
        "extension `id` has the name of a CloudEvents attribute",
    );
    refused(
        with(r#"{"data_base64":"secret"}"#),
        "extension `data_base64` has a name with",
    );
    refused(with(r#"{"A":null}"#), "extension `A` has a name with");
    refused(with(r#"{"a":"\n"}"#), "extension `a` contains a control");
    refused(with(r#"{"a":0.5}"#), "extension `a` is a number other than");
    refused(
        with(r#"{"a":["secret"]}"#),
        "extension `a` is an array or object",
    );
}

#[test]
fn payloads_follow_column_and_content_type() {
    let text = |text: &'static str| Data::Text(text.into());
    let json = |text: &'static str| Data::Json(text.into());
    for (data, content_type, expected) in [
        (Data::None, Some("text/plain"), Payload::None),
        (
            json("{ \"a\": 1.0 }"),
            None,
            Payload::Json("{ \"a\": 1.0 }"),
        ),
        (json("1"), Some("Text/JSON;x=y"), Payload::Json("1")),
        (
            json(r#""<a\u003e\n""#),
            Some("application/xml"),
            Payload::Text("<a>\n".into()),
        ),
        (text("[1]"), None, Payload::Json("[1]")),
        (text("[1]"), Some("a/b+json"), Payload::Json("[1]")),
        (text("[1"), Some("text/plain"), Payload::Text("[1".into())),
        (text(""), Some("text/plain"), Payload::Text("".into())),
        (
            Data::Binary(" {\"a\": 1.0} ".into()),
            Some("application/vnd.order+json"),
            Payload::Json(" {\"a\": 1.0} "),
        ),
        (Data::Binary("{}".into()), None, Payload::Binary(b"{}")),
        (
            Data::Binary("{}".into()),
            Some("text/plain"),
            Payload::Binary(b"{}"),
        ),
        // Compressed, perhaps: what a column of bytes holds is not for us to refuse.
        (
            Data::Binary(b"\x1f\x8b\x08".as_slice().into()),
            Some("application/json"),
            Payload::Binary(b"\x1f\x8b\x08"),
        ),
        (
            Data::Binary("{".into()),
            Some("application/json"),
            Payload::Binary(b"{"),
        ),
        (
            Data::Binary(b"\xff".as_slice().into()),
            None,
            Payload::Binary(b"\xff"),
        ),
    ] {
        let record = Record {
            data,
            content_type: content_type.map(Into::into),
            ..record()
        };
        assert_eq!(Envelope::new(&record, SOURCE).unwrap().data, expected);
    }
}

#[test]
fn payloads_that_contradict_their_label_are_refused() {
    let with = |data: Data, content_type: Option<&str>| Record {
        data,
        content_type: content_type.map(Into::into),
        ..record()
    };
    for invalid in [
        "",
        "secret",
        "{\"a\":secret}",
        "[1,]",
        "1 2",
        "NaN",
        "\u{feff}1",
    ] {
        refused(
            with(Data::Text(invalid.into()), None),
            "`data` is not valid JSON",
        );
        refused(
            with(Data::Text(invalid.into()), Some("text/json")),
            "`data` is not valid JSON",
        );
    }
    for value in ["{\"a\":\"secret\"}", "[]", "1", "null", "\"\\ud800\""] {
        let data = Data::Json(value.into());
        refused(with(data, Some("application/xml")), "does not declare JSON");
    }
    let latin1 = Data::Text(b"secret\xe9".as_slice().into());
    refused(with(latin1.clone(), Some("text/plain")), "not valid UTF-8");
    refused(with(latin1, None), "not valid UTF-8");
}

#[test]
fn nothing_in_json_is_nothing() {
    for nothing in ["null", "{}", "", " null "] {
        let record = Record {
            extensions: Some(nothing.into()),
            ..record()
        };
        let envelope = Envelope::new(&record, SOURCE).unwrap();
        assert_eq!(envelope.extensions, [], "{nothing:?}");
    }
    // In `data` it is a value like any other.
    let record = Record {
        data: Data::Json("null".into()),
        ..record()
    };
    let envelope = Envelope::new(&record, SOURCE).unwrap();
    assert_eq!(envelope.data, Payload::Json("null"));
}

#[test]
fn what_a_row_lacks_is_filled_in() {
    let fill = Fill {
        content_type: Some("application/json".into()),
        sequence: true,
        expiry_time: true,
    };
    let at = "2026-03-04T05:06:07.890123Z";
    let full = Record {
        seq: 42,
        data: Data::Binary("{}".into()),
        expires_at: Some(at.parse().unwrap()),
        ..record()
    };
    let envelope = Envelope::filled(&full, SOURCE, &fill).unwrap();
    assert_eq!(envelope.content_type, Some("application/json"));
    assert_eq!(envelope.data, Payload::Json("{}"));
    let text =
        |envelope: &Envelope<'_>, name: &str| envelope.extension(name).map(ExtensionValue::to_text);
    assert_eq!(
        text(&envelope, "sequence").as_deref(),
        Some("0000000000000000042")
    );
    assert_eq!(text(&envelope, "expirytime").as_deref(), Some(at));

    // What the row has is kept, and what there is nothing to make of is left out.
    let own = Record {
        seq: -1,
        content_type: Some("text/plain".into()),
        extensions: Some(r#"{"expirytime":"2030-01-01T00:00:00Z"}"#.into()),
        ..full.clone()
    };
    let envelope = Envelope::filled(&own, SOURCE, &fill).unwrap();
    assert_eq!(envelope.content_type, Some("text/plain"));
    assert_eq!(envelope.data, Payload::Binary(b"{}"));
    assert_eq!(text(&envelope, "sequence"), None);
    assert_eq!(
        text(&envelope, "expirytime").as_deref(),
        Some("2030-01-01T00:00:00Z")
    );
    let empty = Record {
        data: Data::None,
        expires_at: None,
        ..full.clone()
    };
    let envelope = Envelope::filled(&empty, SOURCE, &fill).unwrap();
    assert_eq!(envelope.content_type, None, "it has no payload");
    assert_eq!(text(&envelope, "expirytime"), None);
    let largest = Record {
        seq: i64::MAX,
        ..full
    };
    let envelope = Envelope::filled(&largest, SOURCE, &fill).unwrap();
    assert_eq!(
        text(&envelope, "sequence").as_deref(),
        Some("9223372036854775807")
    );
}
