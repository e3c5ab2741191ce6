//! Rows become events that the CloudEvents SDK, which shares no code with us, reads back from the wire.

use cloudevents::event::SpecVersion;
use cloudevents::message::{
    BinaryDeserializer, BinarySerializer, MessageAttributeValue, Result as SdkResult,
};
use cloudevents::{AttributesReader as _, Data as SdkData, Event};
use outrigger::event::encode::{
    BATCH, BatchLimits, Encoder, EncoderConfig, HeaderPrefix, Mode, STRUCTURED,
};
use outrigger::event::envelope::Fill;
use outrigger::event::route::Router;
use outrigger::event::{Data, Explained, Record};

use crate::harness::{Is, Running, assert_verdicts, open};
use crate::world::{Arrived, Place, World};

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// What a header and an attribute may hold at their oddest.
const TEXT: &str = "a \"b\" 100% ü € 😀 %41,;=";

fn encoder(mode: Mode) -> Encoder {
    Encoder::new(EncoderConfig {
        source: "/shop".into(),
        fill: Fill::default(),
        mode,
        header_prefix: HeaderPrefix::Ce,
        router: Router::new("unused", "unused").unwrap(),
        batch: BatchLimits::default(),
        explained: Explained::InHeaders,
    })
    .unwrap()
}

fn record(seq: i64, place: &Place) -> Record {
    Record {
        seq,
        id: format!("id-{seq}"),
        event_type: "order.placed".into(),
        subject: Some(TEXT.into()),
        key: Some("o-7".into()),
        keyed: true,
        hash: 7,
        content_type: Some("application/json".into()),
        schema: Some("https://shop.test/order.json".into()),
        data: Data::Json(r#"{"n": 12345678901234567890123, "x":0.10}"#.into()),
        extensions: Some(format!(
            r#"{{"traceparent":"{TRACE}","hops":3,"test":true}}"#
        )),
        headers: Some(format!(
            r#"{{"traceparent":"{TRACE}","x-tenant":"blue","x-try":2}}"#
        )),
        created_at: Some("2026-01-02T03:04:05.678901Z".parse().unwrap()),
        destination: Some(place.destination.clone()),
        routing_key: Some(place.routing_key.clone()),
        ..Record::default()
    }
}

pub(crate) async fn events_decode_in_every_mode(world: &impl World) {
    for &mode in world.modes() {
        let place = open(world, "events").await;
        let rows: Vec<Record> = (1..=3).map(|seq| record(seq, &place)).collect();
        let encoded = encoder(mode).encode(&rows);
        assert_eq!(encoded.rejected, []);
        let mut running = Running::ready(world, &[&place]).await;
        let verdicts = running.publish(&encoded.messages).await;
        assert_verdicts("events", &verdicts, |_| Is::Confirmed);
        let arrived = world.take(&place).await;
        let events: Vec<Event> = arrived
            .iter()
            .flat_map(|arrived| decode(mode, arrived))
            .collect();
        assert_eq!(events.len(), 3, "{mode:?}");
        for (event, row) in events.iter().zip(&rows) {
            check(event, row);
        }
        if world.keeps_messages() {
            check_message(mode, &arrived);
        }
        running.close().await;
    }
}

fn check_message(mode: Mode, arrived: &[Arrived]) {
    for arrived in arrived {
        let header = |name: &str| arrived.headers.get(name).map(String::as_str);
        assert_eq!(header("traceparent"), Some(TRACE), "{mode:?}");
        assert_eq!(header("x-tenant"), Some("blue"), "{mode:?}");
        assert_eq!(header("x-try"), Some("2"), "{mode:?}");
    }
    // The SDK parses numbers; the bytes must be the row's.
    let body = String::from_utf8(arrived[0].body.clone()).unwrap();
    assert!(
        body.contains(r#"{"n": 12345678901234567890123, "x":0.10}"#),
        "{mode:?}: {body}"
    );
}

fn check(event: &Event, row: &Record) {
    assert_eq!(event.specversion(), SpecVersion::V10);
    assert_eq!(event.id(), row.id);
    assert_eq!(event.source(), "/shop");
    assert_eq!(event.ty(), row.event_type);
    assert_eq!(event.subject(), Some(TEXT));
    assert_eq!(event.datacontenttype(), Some("application/json"));
    assert_eq!(
        event.dataschema().map(|schema| schema.as_str()),
        row.schema.as_deref()
    );
    let time = event.time().unwrap();
    assert_eq!(time.timestamp_micros(), 1_767_323_045_678_901);
    let extension = |name: &str| event.extension(name).map(ToString::to_string);
    assert_eq!(extension("partitionkey").as_deref(), Some("o-7"));
    assert_eq!(extension("traceparent").as_deref(), Some(TRACE));
    assert_eq!(extension("hops").as_deref(), Some("3"));
    assert_eq!(extension("test").as_deref(), Some("true"));
    let data = match event.data().unwrap() {
        SdkData::Json(json) => json.clone(),
        SdkData::Binary(bytes) => serde_json::from_slice(bytes).unwrap(),
        SdkData::String(text) => serde_json::from_str(text).unwrap(),
    };
    assert_eq!(data["x"].to_string().trim_end_matches('0'), "0.1");
}

fn decode(mode: Mode, arrived: &Arrived) -> Vec<Event> {
    match mode {
        Mode::Structured => {
            assert_eq!(arrived.content_type.as_deref(), Some(STRUCTURED));
            vec![serde_json::from_slice(&arrived.body).unwrap()]
        }
        Mode::Batch => {
            assert_eq!(arrived.content_type.as_deref(), Some(BATCH));
            serde_json::from_slice(&arrived.body).unwrap()
        }
        Mode::Binary => vec![Binary(arrived).into_event().unwrap()],
    }
}

struct Binary<'a>(&'a Arrived);

impl BinaryDeserializer for Binary<'_> {
    fn deserialize_binary<R: Sized, V: BinarySerializer<R>>(self, visitor: V) -> SdkResult<R> {
        let mut visitor = visitor.set_spec_version(SpecVersion::V10)?;
        let text = |text: &str| MessageAttributeValue::String(text.to_owned());
        if let Some(content_type) = &self.0.content_type {
            visitor = visitor.set_attribute("datacontenttype", text(content_type))?;
        }
        for (name, value) in &self.0.headers {
            let Some(name) = name.strip_prefix("ce-") else {
                continue;
            };
            visitor = match name {
                "specversion" => visitor,
                "id" | "source" | "type" | "subject" | "time" | "dataschema" => {
                    visitor.set_attribute(name, text(value))?
                }
                extension => visitor.set_extension(extension, text(value))?,
            };
        }
        assert_eq!(
            self.0.headers.get("ce-specversion").map(String::as_str),
            Some("1.0")
        );
        visitor.end_with_data(self.0.body.clone())
    }
}
