//! EventBridge: a service that gives every entry an event id, and a bare publisher with AWS's SDK.

use std::borrow::Cow;

use aws_sdk_eventbridge::Client;
use aws_sdk_eventbridge::config::retry::RetryConfig;
use aws_sdk_eventbridge::config::{
    BehaviorVersion, Credentials, Region, StalledStreamProtectionConfig,
};
use aws_sdk_eventbridge::types::PutEventsRequestEntry;
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use bytes::Bytes;
use http_body_util::Full;
use hyper::Response;
use hyper::http::request::Parts;
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;

use super::service::{Seen, Service};
use super::{SOURCE, TYPE, side_by_side};
use crate::Result;
use crate::outbox::{TEXT, message_size};

/// The default of OUTRIGGER_EVENTBRIDGE_CONNECTIONS.
const CONNECTIONS: usize = 16;
/// What EventBridge takes in one request.
const ENTRIES: usize = 10;
const REGION: &str = "eu-west-1";
/// Nobody looks at them; they are signed with.
const KEY: &str = "bench";

pub(crate) struct EventBridge {
    pub(super) service: Service,
}

impl EventBridge {
    pub(super) async fn open() -> Result<Self> {
        let service = Service::open(answer).await?;
        Ok(Self { service })
    }

    fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.service.port)
    }

    pub(super) fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("OUTRIGGER_SINK", "eventbridge".into()),
            ("OUTRIGGER_EVENTBRIDGE_ENDPOINT", self.endpoint()),
            ("OUTRIGGER_EVENTBRIDGE_REGION", REGION.into()),
            ("AWS_ACCESS_KEY_ID", KEY.into()),
            ("AWS_SECRET_ACCESS_KEY", KEY.into()),
        ]
    }

    pub(super) async fn publish_many(&self, messages: i64, size: usize) -> Result<f64> {
        self.service.forget();
        let client = self.client();
        let clients = vec![client; CONNECTIONS];
        side_by_side(clients, messages, |client, count| async move {
            let mut left = count;
            while left > 0 {
                let entries = left.min(ENTRIES);
                client.put(entries, size).await?;
                left -= entries;
            }
            Ok(())
        })
        .await
    }

    /// As the sink's, which makes repetitions itself.
    pub(super) fn client(&self) -> Publisher {
        let http = aws_smithy_http_client::Builder::new()
            .tls_provider(Provider::Rustls(CryptoMode::Ring))
            .build_https();
        let config = aws_sdk_eventbridge::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .http_client(http)
            .endpoint_url(self.endpoint())
            .region(Region::new(REGION))
            .credentials_provider(Credentials::new(KEY, KEY, None, None, "bench"))
            .retry_config(RetryConfig::disabled())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .build();
        Publisher(Client::from_conf(config))
    }
}

/// Clones share its connections.
#[derive(Clone)]
pub(crate) struct Publisher(Client);

impl Publisher {
    async fn put(&self, entries: usize, size: usize) -> Result<()> {
        let entries = (0..entries).map(|_| entry(Uuid::now_v7(), size)).collect();
        self.send(entries).await
    }

    async fn send(&self, entries: Vec<PutEventsRequestEntry>) -> Result<()> {
        let putting = self.0.put_events().set_entries(Some(entries));
        let answer = Box::pin(putting.send()).await?;
        match answer
            .entries()
            .iter()
            .all(|entry| entry.event_id().is_some())
        {
            true => Ok(()),
            false => Err("an entry was not taken".into()),
        }
    }

    pub(crate) async fn publish_one(&self, id: Uuid) -> Result<()> {
        self.send(vec![entry(id, message_size(TEXT))]).await
    }
}

/// An entry whose detail has so many bytes.
fn entry(id: Uuid, size: usize) -> PutEventsRequestEntry {
    let event = |text: &str| {
        format!(
            r#"{{"specversion":"1.0","id":"{id}","source":"{SOURCE}","type":"{TYPE}","partitionkey":"k","data":{{"text":"{text}"}}}}"#
        )
    };
    let rest = size.saturating_sub(event("").len());
    PutEventsRequestEntry::builder()
        .event_bus_name("events")
        .source(SOURCE)
        .detail_type(TYPE)
        .detail(event(&"x".repeat(rest)))
        .time(std::time::SystemTime::now().into())
        .build()
}

#[derive(Deserialize)]
struct Put<'a> {
    #[serde(rename = "Entries", borrow)]
    entries: Vec<Entry<'a>>,
}

#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(rename = "Detail", borrow)]
    detail: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Event {
    id: Uuid,
}

/// Takes every entry; any bus exists.
fn answer(head: &Parts, body: &[u8], seen: &Seen) -> Response<Full<Bytes>> {
    let target = head.headers.get("x-amz-target");
    let puts = target.is_some_and(|target| target == "AWSEvents.PutEvents");
    let text = match puts.then(|| serde_json::from_slice::<Put>(body)) {
        Some(Ok(put)) => {
            let mut results = Vec::with_capacity(put.entries.len());
            for entry in &put.entries {
                seen.note(entry.detail.len(), || {
                    let event = serde_json::from_str::<Event>(&entry.detail).ok();
                    event.map(|event| event.id)
                });
                results.push(json!({ "EventId": Uuid::new_v4() }));
            }
            json!({ "FailedEntryCount": 0, "Entries": results }).to_string()
        }
        // Shows as results that do not fit the entries.
        Some(Err(_)) | None => "{}".to_owned(),
    };
    Response::new(text.into())
}
