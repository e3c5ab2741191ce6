//! Spans, as a collector gets them by OTLP.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode as SpanStatus;
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::support::{PATIENCE, Settings, Stage, within};
use crate::{servers, shared};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// A span as it arrived.
#[derive(Debug, Clone)]
struct Received {
    span: Span,
    attributes: BTreeMap<String, String>,
    resource: BTreeMap<String, String>,
    token: String,
}

impl Received {
    fn trace(&self) -> String {
        hex(&self.span.trace_id)
    }

    fn id(&self) -> String {
        hex(&self.span.span_id)
    }

    fn links(&self) -> Vec<String> {
        let links = self.span.links.iter();
        links
            .map(|link| format!("{}-{}", hex(&link.trace_id), hex(&link.span_id)))
            .collect()
    }

    #[track_caller]
    fn attribute(&self, name: &str) -> &str {
        let value = self.attributes.get(name);
        value.unwrap_or_else(|| panic!("no {name} in {:?}", self.attributes))
    }
}

/// Takes spans by OTLP over HTTP, and answers as it is told.
struct Collector {
    address: SocketAddr,
    received: watch::Receiver<Vec<Received>>,
    requests: watch::Receiver<usize>,
    answer: watch::Sender<StatusCode>,
    _serving: AbortOnDropHandle<()>,
}

impl Collector {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (all, received) = watch::channel(Vec::new());
        let (counted, requests) = watch::channel(0);
        let (answer, _) = watch::channel(StatusCode::OK);
        let shared = Arc::new((all, counted, answer.clone()));
        let serving = async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = shared.clone();
                let service = service_fn(move |request| take(shared.clone(), request));
                let served = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                tokio::spawn(served);
            }
        };
        Self {
            address,
            received,
            requests,
            answer,
            _serving: AbortOnDropHandle::new(tokio::spawn(serving)),
        }
    }

    /// The relay of a stage that exports to it, without delay.
    fn settings(&self, stage: &Stage) -> Settings {
        let endpoint = format!("http://{}/otlp", self.address);
        stage
            .settings()
            .set("RELAY_NAME", "relay-7")
            .variable("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
            .variable("OTEL_EXPORTER_OTLP_HEADERS", "x-token=se%20cret")
            .variable("OTEL_BSP_SCHEDULE_DELAY", 50)
    }

    /// Waits for so many spans in all.
    async fn await_spans(&self, count: usize) -> Vec<Received> {
        let mut received = self.received.clone();
        let enough = received.wait_for(|spans| spans.len() >= count);
        let spans = within(&format!("{count} spans"), PATIENCE, enough).await;
        spans.unwrap().clone()
    }

    async fn await_requests(&self, count: usize) {
        let mut requests = self.requests.clone();
        let enough = requests.wait_for(|seen| *seen >= count);
        within(&format!("{count} requests"), PATIENCE, enough)
            .await
            .unwrap();
    }
}

type Shared = (
    watch::Sender<Vec<Received>>,
    watch::Sender<usize>,
    watch::Sender<StatusCode>,
);

async fn take(
    shared: Arc<Shared>,
    request: Request<hyper::body::Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (all, counted, answer) = &*shared;
    assert_eq!(request.uri(), "/otlp/v1/traces");
    assert_eq!(request.headers()["content-type"], "application/x-protobuf");
    let token = request.headers()["x-token"].to_str().unwrap().to_owned();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let status = *answer.borrow();
    counted.send_modify(|count| *count += 1);
    let export = ExportTraceServiceRequest::decode(body).unwrap();
    let mut spans = Vec::new();
    for group in export.resource_spans {
        let resource = texts(&group.resource.unwrap().attributes);
        for span in group.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            spans.push(Received {
                attributes: texts(&span.attributes),
                resource: resource.clone(),
                token: token.clone(),
                span,
            });
        }
    }
    if status.is_success() {
        all.send_modify(|all| all.extend(spans));
    }
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = status;
    Ok(answer)
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &Option<AnyValue>| match value.as_ref().and_then(|v| v.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        other => panic!("{other:?}"),
    };
    let pairs = attributes.iter();
    pairs
        .map(|pair| (pair.key.clone(), text(&pair.value)))
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Inserts an event whose writer is traced; answers its id.
async fn traced(stage: &Stage, event_type: &str, flags: &str) -> String {
    let extensions = format!(
        r#"'{{"traceparent":"00-{TRACE}-{PARENT}-{flags}","tracestate":"shop=7","correlationid":"c-1"}}'"#
    );
    stage
        .insert(
            "type, key, extensions",
            &format!("'{event_type}', 'k', {extensions}"),
        )
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_send_continues_the_trace_of_the_writer_and_the_message_carries_the_hop() {
    let _turn = shared().await;
    let stage = Stage::bare(servers().await, "", &Default::default()).await;
    stage.route("good").await;
    let consumer = stage.consumer().await;
    let collector = Collector::start().await;
    let relay = collector
        .settings(&stage)
        .variable(
            "OTEL_RESOURCE_ATTRIBUTES",
            "deployment.environment.name=test",
        )
        .set("RETRY_MAX_ATTEMPTS", 1)
        .start();
    let id = traced(&stage, "good", "01").await;
    let span = collector.await_spans(1).await.remove(0);

    assert_eq!(span.span.name, format!("send {}", stage.name));
    assert_eq!(span.span.kind(), SpanKind::Producer);
    assert_eq!(span.trace(), TRACE);
    assert_eq!(hex(&span.span.parent_span_id), PARENT);
    assert_eq!(span.links(), [format!("{TRACE}-{PARENT}")]);
    assert_eq!(span.span.status.as_ref().map_or(0, |s| s.code), 0);
    assert!(span.span.start_time_unix_nano > 0);
    assert!(span.span.end_time_unix_nano >= span.span.start_time_unix_nano);
    let name = format!("{}:good", stage.name);
    for (attribute, value) in [
        ("messaging.system", "rabbitmq"),
        ("messaging.operation.name", "send"),
        ("messaging.operation.type", "send"),
        ("messaging.destination.name", name.as_str()),
        ("messaging.rabbitmq.destination.routing_key", "good"),
        ("messaging.message.id", id.as_str()),
        ("messaging.message.conversation_id", "c-1"),
        ("cloudevents.event_id", id.as_str()),
        ("cloudevents.event_type", "good"),
        ("cloudevents.event_source", "/test"),
    ] {
        assert_eq!(span.attribute(attribute), value, "{attribute}");
    }
    for (attribute, value) in [
        ("service.name", "outrigger"),
        ("service.instance.id", "relay-7"),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("deployment.environment.name", "test"),
        ("telemetry.sdk.language", "rust"),
    ] {
        assert_eq!(
            span.resource.get(attribute).map(String::as_str),
            Some(value),
            "{attribute}"
        );
    }
    assert_eq!(span.token, "se cret");

    // The hop beside the event, the origin in it.
    let delivery = consumer.await_id(&id, PATIENCE).await;
    let hop = format!("00-{TRACE}-{}-01", span.id());
    assert_eq!(delivery.header("traceparent"), Some(hop));
    assert_eq!(delivery.header("tracestate").as_deref(), Some("shop=7"));
    let event: serde_json::Value = serde_json::from_slice(&delivery.body).unwrap();
    assert_eq!(event["traceparent"], format!("00-{TRACE}-{PARENT}-01"));
    assert_eq!(event["tracestate"], "shop=7");

    // A context of the writer's own among the headers is not replaced.
    let own = format!("00-{TRACE}-{PARENT}-01");
    let headers = format!(r#"'{{"traceparent":"{own}"}}'"#);
    let kept = stage
        .insert("type, headers", &format!("'good', {headers}"))
        .await;
    let span = collector.await_spans(2).await.remove(1);
    assert_eq!(span.span.kind(), SpanKind::Client);
    assert_eq!(span.attribute("messaging.message.id"), kept);
    assert_eq!(span.links(), [format!("{TRACE}-{PARENT}")]);
    let delivery = consumer.await_id(&kept, PATIENCE).await;
    assert_eq!(delivery.header("traceparent"), Some(own));

    // What the broker refuses is an error with its reason.
    traced(&stage, "nowhere", "01").await;
    let span = collector.await_spans(3).await.remove(2);
    assert_eq!(span.attribute("error.type"), "unroutable");
    let status = span.span.status.clone().unwrap();
    assert_eq!(status.code(), SpanStatus::Error);
    assert!(!status.message.is_empty());

    // Whom nobody samples costs no span but hands the decision on; whom nobody traces costs nothing.
    let unsampled = traced(&stage, "good", "00").await;
    let untraced = stage.insert("type", "'good'").await;
    let broken = stage
        .insert(
            "type, extensions",
            r#"'good', '{"traceparent":"00-1-2-3"}'"#,
        )
        .await;
    let delivery = consumer.await_id(&unsampled, PATIENCE).await;
    let handed_on = delivery.header("traceparent").unwrap();
    assert!(
        handed_on.starts_with(&format!("00-{TRACE}-")),
        "{handed_on}"
    );
    assert!(handed_on.ends_with("-00"), "{handed_on}");
    for id in [untraced, broken] {
        let delivery = consumer.await_id(&id, PATIENCE).await;
        assert_eq!(delivery.header("traceparent"), None);
    }
    relay.stop().await;
    assert_eq!(collector.received.borrow().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_events_in_one_message_are_one_span_with_links() {
    let _turn = shared().await;
    let stage = Stage::new(servers().await).await;
    let consumer = stage.consumer().await;
    let collector = Collector::start().await;
    stage
        .run(&format!(
            "insert into outbox (type, extensions) select 't', jsonb_build_object('traceparent', \
               '00-{TRACE}-' || lpad(to_hex(g), 16, '0') || '-01') from generate_series(1, 3) g; \
             insert into outbox (type) values ('t')"
        ))
        .await;
    let relay = collector
        .settings(&stage)
        .set("EVENT_MODE", "batch")
        .variable("OTEL_SERVICE_NAME", "shop-relay")
        .start();
    let span = collector.await_spans(1).await.remove(0);
    assert_eq!(span.attribute("messaging.batch.message_count"), "4");
    assert_eq!(span.resource["service.name"], "shop-relay");
    let links: Vec<String> = (1..=3).map(|g| format!("{TRACE}-{g:016x}")).collect();
    assert_eq!(span.links(), links);
    assert!(span.span.parent_span_id.is_empty());
    assert_ne!(span.trace(), TRACE, "a trace of its own");
    let delivery = consumer.await_count(1).await.remove(0);
    let hop = format!("00-{}-{}-01", span.trace(), span.id());
    assert_eq!(delivery.header("traceparent"), Some(hop));
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_with_no_room_for_the_hop_goes_without_it() {
    let _turn = shared().await;
    let collector = Collector::start().await;
    let (mut published, mut with_hop) = (Vec::new(), 0);
    for traced in [false, true] {
        let stage = Stage::new(servers().await).await;
        let consumer = stage.consumer().await;
        let settings = match traced {
            true => collector.settings(&stage),
            false => stage.settings(),
        };
        let relay = settings.set("RETRY_MAX_ATTEMPTS", 1).start();
        // Headers from well below the size of a frame to above it.
        stage
            .run(&format!(
                "insert into outbox (type, extensions, headers) select 't', '{{\"traceparent\":\"00-{TRACE}-{PARENT}-01\"}}', \
                   jsonb_build_object('x-fill', repeat('x', 32768 - g * 16)) from generate_series(0, 60) g"
            ))
            .await;
        let left = "select count(*) from outbox o where published_at is null \
                    and not exists (select from outrigger.failures f where f.seq = o.seq and f.state = 'dead')";
        stage
            .await_count("each is published or dead", left, 0)
            .await;
        relay.stop().await;
        let deliveries = consumer.finish().await;
        published.push(deliveries.len());
        with_hop = deliveries
            .iter()
            .filter(|d| d.header("traceparent").is_some())
            .count();
    }
    assert_eq!(published[0], published[1], "a trace cost an event");
    assert!((1..61).contains(&published[0]), "{published:?}");
    assert!(
        (1..published[1]).contains(&with_hop),
        "{with_hop} of {published:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_exported_and_nothing_added_when_that_is_turned_off() {
    let _turn = shared().await;
    let stage = Stage::new(servers().await).await;
    let consumer = stage.consumer().await;
    let collector = Collector::start().await;
    for (name, value, said) in [
        ("OTEL_SDK_DISABLED", "true", ""),
        ("OTEL_TRACES_EXPORTER", "none", ""),
        (
            "OTEL_EXPORTER_OTLP_PROTOCOL",
            "grpc",
            "no spans are exported: OTEL_EXPORTER_OTLP_PROTOCOL=\\\"grpc\\\"",
        ),
    ] {
        let relay = collector.settings(&stage).variable(name, value).start();
        let id = traced(&stage, "t", "01").await;
        let delivery = consumer.await_id(&id, PATIENCE).await;
        assert_eq!(delivery.header("traceparent"), None, "{name}");
        assert!(relay.log().contains(said), "{}", relay.log());
        // A stop delivers whatever there is.
        relay.stop().await;
        assert_eq!(*collector.requests.borrow(), 0, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_fails_costs_spans_and_two_lines_but_no_event() {
    let _turn = shared().await;
    let stage = Stage::new(servers().await).await;
    let consumer = stage.consumer().await;
    let collector = Collector::start().await;
    collector.answer.send_replace(StatusCode::BAD_REQUEST);
    let relay = collector.settings(&stage).start();
    let failed = "spans cannot be exported and are lost; events are not";
    for round in 1..=3 {
        let id = traced(&stage, "t", "01").await;
        consumer.await_id(&id, PATIENCE).await;
        collector.await_requests(round).await;
    }
    relay.await_log(failed).await;
    collector.answer.send_replace(StatusCode::OK);
    // One that comes late may still have been refused.
    while collector.received.borrow().is_empty() {
        let before = *collector.requests.borrow();
        traced(&stage, "t", "01").await;
        collector.await_requests(before + 1).await;
    }
    relay.await_log("spans are exported again").await;
    assert_eq!(relay.log().matches(failed).count(), 1, "{}", relay.log());
    assert!(
        relay.log().contains("it answers 400 Bad Request"),
        "{}",
        relay.log()
    );
    assert!(!relay.log().contains("cret"), "{}", relay.log());

    // What is still in the queue at a stop arrives.
    drop(relay);
    let before = collector.received.borrow().len();
    let relay = collector
        .settings(&stage)
        .variable("OTEL_BSP_SCHEDULE_DELAY", 3_600_000)
        .start();
    let id = traced(&stage, "t", "01").await;
    stage.await_settled().await;
    relay.stop().await;
    let spans = collector.received.borrow().clone();
    let last: Vec<_> = spans[before..]
        .iter()
        .map(|s| s.attribute("messaging.message.id"))
        .collect();
    assert!(last.contains(&id.as_str()), "{last:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_silent_holds_up_neither_events_nor_a_stop_for_long() {
    let _turn = shared().await;
    let stage = Stage::new(servers().await).await;
    let consumer = stage.consumer().await;
    // Takes connections and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let mut relay = stage
        .settings()
        .variable("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        .variable("OTEL_EXPORTER_OTLP_TIMEOUT", 3_600_000)
        .variable("OTEL_BSP_SCHEDULE_DELAY", 10)
        .variable("OTEL_BSP_MAX_QUEUE_SIZE", 4)
        .variable("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 1)
        .start();
    let first = traced(&stage, "t", "01").await;
    consumer.await_id(&first, PATIENCE).await;
    // The thread that exports waits for an answer, and far more spans come than there is room for.
    let (_held, _) = within("the relay exports", PATIENCE, silent.accept())
        .await
        .unwrap();
    stage
        .run(&format!(
            "insert into outbox (type, key, extensions) select 't', 'k' || g, \
               '{{\"traceparent\":\"00-{TRACE}-{PARENT}-01\"}}' from generate_series(1, 2000) g"
        ))
        .await;
    consumer.await_different(2001).await;
    stage.await_settled().await;
    relay.signal("TERM");
    // Without a limit it would be an hour.
    let status = relay.exit(PATIENCE).await;
    assert_eq!(status.code(), Some(0), "{}", relay.log());
}
