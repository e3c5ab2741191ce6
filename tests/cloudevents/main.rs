//! Our messages against the CloudEvents conformance material and an independent decoder.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod conformance;
mod decode;
mod properties;

use outrigger::event::encode::{BatchLimits, Encoder, EncoderConfig, HeaderPrefix, Mode};
use outrigger::event::envelope::Fill;
use outrigger::event::route::Router;
use outrigger::event::{Explained, Record};

const DEFAULT_SOURCE: &str = "https://cloudevents.io";

fn encoder(mode: Mode) -> Encoder {
    Encoder::new(EncoderConfig {
        source: DEFAULT_SOURCE.to_owned(),
        fill: Fill::default(),
        mode,
        header_prefix: HeaderPrefix::Ce,
        router: Router::new("events", "{{ type }}").unwrap(),
        batch: BatchLimits::default(),
        explained: Explained::InHeaders,
    })
    .unwrap()
}

fn minimal(id: &str) -> Record {
    Record {
        seq: 1,
        id: id.to_owned(),
        event_type: "io.cloudevents.test".to_owned(),
        ..Record::default()
    }
}
