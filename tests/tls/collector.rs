//! Spans by https, and the context that an http request carries.

use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::authority::{Files, acceptor};
use crate::service::Service;
use crate::support::postgres::Postgres;
use crate::support::{Outbox, PATIENCE, within};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// A collector that asks for certificates: its port, and the ids of the spans that come.
async fn collector() -> (u16, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (spans, received) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            // Who does not trust us, or whom we do not trust, is gone.
            let Ok(stream) = acceptor("server", true).accept(stream).await else {
                continue;
            };
            let spans = spans.clone();
            let service = service_fn(move |request| take(spans.clone(), request));
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::spawn(connection);
        }
    });
    (port, received)
}

async fn take(
    spans: mpsc::UnboundedSender<String>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let export = ExportTraceServiceRequest::decode(body).unwrap();
    let scopes = export
        .resource_spans
        .into_iter()
        .flat_map(|r| r.scope_spans);
    for span in scopes.flat_map(|scope| scope.spans) {
        let id = span.span_id.iter().map(|byte| format!("{byte:02x}"));
        // The test may be over.
        let _ = spans.send(id.collect());
    }
    Ok(Response::default())
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_go_to_a_collector_that_is_verified_and_http_carries_the_hop() {
    let files = Files::new();
    let (port, mut spans) = collector().await;
    let service = Service::start();
    let outbox = Outbox::new(Postgres::start().await.into(), "", &Default::default()).await;
    let settings = outbox
        .source()
        .set("SINK", "http")
        .set("HTTP_URL", format!("http://127.0.0.1:{}", service.port()))
        .set("ROUTE_DESTINATION", "events")
        .variable("OTEL_BSP_SCHEDULE_DELAY", 50);
    let to = |host: &str, authority: &str, client: bool| {
        let path = |name: &str| files.path(name).display().to_string();
        let settings = settings
            .clone()
            .variable(
                "OTEL_EXPORTER_OTLP_ENDPOINT",
                format!("https://{host}:{port}"),
            )
            .variable("OTEL_EXPORTER_OTLP_CERTIFICATE", path(authority));
        match client {
            true => settings
                .variable("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", path("client.pem"))
                .variable("OTEL_EXPORTER_OTLP_CLIENT_KEY", path("client.key")),
            false => settings,
        }
    };
    let insert = format!(
        r#"insert into outbox (type, extensions) values ('t', '{{"traceparent":"00-{TRACE}-{PARENT}-01"}}')"#
    );
    for (reason, settings) in [
        (
            "not signed by a trusted authority",
            to("localhost", "other.pem", true),
        ),
        ("is for another name", to("127.0.0.1", "ca.pem", true)),
        // Refused when its handshake is over, so it hears of that as it happens; what counts is that no span comes through.
        ("", to("localhost", "ca.pem", false)),
    ] {
        service.open("events");
        let relay = settings.start();
        outbox.run(&insert).await;
        relay
            .await_log("spans cannot be exported and are lost")
            .await;
        let log = relay.log();
        assert!(log.contains(reason), "{reason}: {log}");
        outbox.await_settled().await;
        relay.stop().await;
        assert_eq!(service.close("events").len(), 1, "the event is not lost");
    }
    assert!(spans.try_recv().is_err(), "nobody was to be trusted");

    service.open("events");
    let relay = to("localhost", "ca.pem", true).start();
    outbox.run(&insert).await;
    let span = within("a span", PATIENCE, spans.recv()).await.unwrap();
    outbox.await_settled().await;
    relay.stop().await;
    let [request] = &service.close("events")[..] else {
        panic!("not one request")
    };
    assert_eq!(
        request.headers["traceparent"],
        format!("00-{TRACE}-{span}-01")
    );
    let event: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
    assert_eq!(event["traceparent"], format!("00-{TRACE}-{PARENT}-01"));
}
