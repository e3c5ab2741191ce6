//! Traces: one span for each message that carries an event whose writer was being traced, exported by OTLP.
//!
//! Nobody waits for a collector. Spans go through a bounded queue to a thread of their own; what does not fit, or
//! cannot be delivered, is lost, and events go on. Without an endpoint there is neither thread nor queue, and a batch
//! costs one comparison more.

mod collector;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{
    Link, Span as _, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt as _, Tracer as _,
    TracerProvider as _,
};
use opentelemetry::{Context, InstrumentationScope, KeyValue};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use opentelemetry_sdk::trace::{BatchSpanProcessor, SdkTracer, SdkTracerProvider, Span};

use crate::error::{ReasonCode, Verdict};
use crate::event::trace::{Origin, TRACEPARENT, TRACESTATE};
use crate::event::{HeaderValue, Message, Record};
use crate::settings::Export;
use collector::Collector;

/// How long a stop waits for the last spans to be delivered.
pub const FLUSH_TIME: Duration = Duration::from_secs(3);

/// Makes spans and sends them off.
#[derive(Debug)]
pub struct Tracer {
    tracer: SdkTracer,
    provider: SdkTracerProvider,
    system: &'static str,
    /// Whether messages carry the context of their span.
    propagate: bool,
}

impl Tracer {
    /// Starts the thread that exports. `system` is the kind of sink, `replica` the name of this one.
    ///
    /// The libraries read `OTEL_*` variables that need no checking by themselves: headers, resource attributes,
    /// sampler, limits of queue and batch.
    ///
    /// # Errors
    /// When something is set that cannot be used; the text says what.
    pub fn start(export: &Export, system: &'static str, replica: &str) -> Result<Self, String> {
        let collector = Collector::new(export)?;
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(collector)
            .with_endpoint(export.endpoint.as_str())
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(export.timeout)
            .build()
            .map_err(|error| error.to_string())?;
        let mut resource = Resource::builder_empty()
            .with_attributes([
                KeyValue::new("service.name", "outrigger"),
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                KeyValue::new("service.instance.id", replica.to_owned()),
            ])
            .with_detector(Box::new(TelemetryResourceDetector))
            .with_detector(Box::new(EnvResourceDetector::new()));
        if let Some(name) = &export.service_name {
            resource = resource.with_service_name(name.clone());
        }
        let provider = SdkTracerProvider::builder()
            .with_resource(resource.build())
            .with_span_processor(BatchSpanProcessor::builder(exporter).build())
            .build();
        // The last one to be dropped would wait for the collector, on the relay's thread. `stop` does that better.
        std::mem::forget(provider.clone());
        let scope =
            InstrumentationScope::builder("outrigger").with_version(env!("CARGO_PKG_VERSION"));
        Ok(Self {
            tracer: provider.tracer_with_scope(scope.build()),
            provider,
            system,
            propagate: export.propagate,
        })
    }

    /// Begins the spans of messages that are about to be sent, and gives the messages their contexts to carry.
    pub fn sends<'r>(
        &self,
        records: impl Iterator<Item = &'r Record>,
        messages: &mut [Message],
    ) -> Sends {
        let contexts = records.filter_map(|record| Some((record.seq, context(record)?)));
        let contexts: HashMap<i64, SpanContext> = contexts.collect();
        if contexts.is_empty() {
            return Sends::default();
        }
        let now = SystemTime::now();
        let begin = |message| self.begin(message, &contexts, now);
        Sends(messages.iter_mut().map(begin).collect())
    }

    /// A single event's span continues the trace of its writer. That of several has links to all of them.
    fn begin(
        &self,
        message: &mut Message,
        contexts: &HashMap<i64, SpanContext>,
        now: SystemTime,
    ) -> Option<Sending> {
        let origins: Vec<&SpanContext> = message
            .seqs
            .iter()
            .filter_map(|seq| contexts.get(seq))
            .collect();
        let parent = match origins.as_slice() {
            [] => return None,
            [origin] => Context::new().with_remote_span_context((*origin).clone()),
            _ if origins.iter().any(|origin| origin.is_sampled()) => Context::new(),
            _ => return None,
        };
        // A context that the writer chose for the message itself is left alone.
        let chosen = |(name, _): &(String, HeaderValue)| {
            [TRACEPARENT, TRACESTATE]
                .iter()
                .any(|ours| name.eq_ignore_ascii_case(ours))
        };
        let inject = self.propagate && !message.headers.iter().any(chosen);
        let builder = SpanBuilder::from_name(format!("send {}", destination(message)))
            .with_kind(if inject {
                SpanKind::Producer
            } else {
                SpanKind::Client
            })
            .with_start_time(now)
            .with_links(
                origins
                    .into_iter()
                    .cloned()
                    .map(Link::with_context)
                    .collect(),
            );
        let mut span = self.tracer.build_with_context(builder, &parent);
        if span.is_recording() {
            span.set_attributes(attributes(self.system, message));
        }
        let carried = match inject {
            true => carry(message, span.span_context()),
            false => 0,
        };
        Some(Sending { span, carried })
    }

    /// Sends what is left, within [`FLUSH_TIME`]. No span is made after that.
    pub async fn stop(self: Arc<Self>) {
        let flush = move || self.provider.shutdown_with_timeout(FLUSH_TIME);
        // It is said already if the collector does not answer.
        if let Ok(Err(error)) = tokio::task::spawn_blocking(flush).await {
            tracing::debug!(%error, "the last spans were not exported");
        }
    }
}

/// A message on its way.
#[derive(Debug)]
struct Sending {
    span: Span,
    /// Headers that the message got to carry; they are its last ones.
    carried: usize,
}

/// The spans of messages that are being sent, in the order of the messages.
#[derive(Debug, Default)]
pub struct Sends(Vec<Option<Sending>>);

impl Sends {
    /// Messages that are too large for the sink, perhaps only by what they got to carry: their places, and
    /// themselves without it. A trace must not cost an event.
    pub fn without_hops(
        &self,
        messages: &[Message],
        verdicts: &[Verdict],
    ) -> (Vec<usize>, Vec<Message>) {
        let too_large = |verdict: &Verdict| match verdict {
            Verdict::Impossible(reason) => {
                matches!(
                    reason.code,
                    ReasonCode::TooLarge | ReasonCode::InvalidHeader
                )
            }
            _ => false,
        };
        let sent = self.0.iter().zip(messages).zip(verdicts).enumerate();
        sent.filter_map(|(place, ((send, message), verdict))| {
            let carried = send.as_ref()?.carried;
            if carried == 0 || !too_large(verdict) {
                return None;
            }
            let mut bare = message.clone();
            bare.headers.truncate(bare.headers.len() - carried);
            Some((place, bare))
        })
        .unzip()
    }

    /// The fates of the messages are known.
    pub fn end(self, verdicts: &[Verdict]) {
        for (send, verdict) in self.0.into_iter().zip(verdicts) {
            let Some(Sending { mut span, .. }) = send else {
                continue;
            };
            let (kind, detail) = match verdict {
                // Ends as it is dropped.
                Verdict::Confirmed => continue,
                Verdict::Rejected(reason) | Verdict::Impossible(reason) => {
                    (reason.code.as_str(), reason.detail.clone())
                }
                Verdict::Postponed { reason, .. } => ("postponed", reason.detail.clone()),
                Verdict::Unavailable => (
                    "unavailable",
                    "not confirmed, will be published again".to_owned(),
                ),
            };
            span.set_attribute(KeyValue::new("error.type", kind));
            span.set_status(Status::error(detail));
            span.end();
        }
    }
}

/// The name of a destination for people, of which there are few: the routing key may hold an id.
fn destination(message: &Message) -> &str {
    match message.destination.as_str() {
        "" => &message.routing_key,
        destination => destination,
    }
}

/// By the semantic conventions for messaging.
fn attributes(system: &'static str, message: &Message) -> Vec<KeyValue> {
    let (destination, key) = (&message.destination, &message.routing_key);
    let name = match (destination.as_str(), key.as_str()) {
        ("", "") if system == "rabbitmq" => "amq.default".to_owned(),
        (destination, "") => destination.to_owned(),
        ("", key) => key.to_owned(),
        (destination, key) => format!("{destination}:{key}"),
    };
    let mut attributes = Vec::with_capacity(12);
    let mut text = |name: &'static str, value: String| attributes.push(KeyValue::new(name, value));
    text("messaging.destination.name", name);
    text("messaging.message.id", message.id.clone());
    text("cloudevents.event_id", message.id.clone());
    text("cloudevents.event_source", message.source.clone());
    text("cloudevents.event_type", message.event_type.clone());
    if let Some(id) = &message.correlation_id {
        text("messaging.message.conversation_id", id.clone());
    }
    if system == "rabbitmq" && !key.is_empty() {
        text("messaging.rabbitmq.destination.routing_key", key.clone());
    }
    attributes.extend([
        KeyValue::new("messaging.system", system),
        KeyValue::new("messaging.operation.name", "send"),
        KeyValue::new("messaging.operation.type", "send"),
        KeyValue::new("cloudevents.event_spec_version", "1.0"),
    ]);
    if let Ok(count @ 2..) = i64::try_from(message.seqs.len()) {
        attributes.push(KeyValue::new("messaging.batch.message_count", count));
    }
    attributes
}

/// Puts the context of this hop beside the event, in so many headers. The event's own, among its attributes, stays as
/// it is.
fn carry(message: &mut Message, context: &SpanContext) -> usize {
    if !context.is_valid() {
        return 0;
    }
    let before = message.headers.len();
    let traceparent = format!(
        "00-{}-{}-{:02x}",
        context.trace_id(),
        context.span_id(),
        context.trace_flags().to_u8()
    );
    let state = context.trace_state().header();
    let mut header = |name: &str, value| {
        let header = (name.to_owned(), HeaderValue::Text(value));
        message.headers.push(header);
    };
    header(TRACEPARENT, traceparent);
    if !state.is_empty() {
        header(TRACESTATE, state);
    }
    message.headers.len() - before
}

/// The context of a row's writer, if it is a valid one.
fn context(record: &Record) -> Option<SpanContext> {
    let origin = Origin::of(record)?;
    if !has_the_form(&origin.traceparent) {
        return None;
    }
    let context =
        TraceContextPropagator::new().extract_with_context(&Context::new(), &Texts(origin));
    let context = context.span().span_context().clone();
    context.is_valid().then_some(context)
}

/// Whether each part has its length, and what may follow is set apart: the library also takes shorter ones.
fn has_the_form(traceparent: &str) -> bool {
    let bytes = traceparent.as_bytes();
    let dashes = [2, 35, 52].iter().all(|at| bytes.get(*at) == Some(&b'-'));
    dashes && bytes.len() >= 55 && bytes.get(55).is_none_or(|next| *next == b'-')
}

struct Texts<'a>(Origin<'a>);

impl Extractor for Texts<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            TRACEPARENT => Some(&self.0.traceparent),
            TRACESTATE => self.0.tracestate.as_deref(),
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec![TRACEPARENT, TRACESTATE]
    }
}
