//! From a request to its answer.

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use tokio::time::Instant;
use uuid::Uuid;

use super::Site;
use super::health;
use super::scrape::scrape;
use super::status::status;
use crate::telemetry::metrics::Format;

pub(super) type Answer = Response<Full<Bytes>>;

/// The status page; `{nonce}` is put in for each answer.
const PAGE: &str = include_str!("page.html");

/// What there is, for who asks for something else.
const PATHS: &str = "/, /livez, /readyz, /metrics and /status";

pub(super) fn answer(site: &Site, request: &Request<Incoming>) -> Answer {
    let mut answer = route(site, request);
    let headers = answer.headers_mut();
    // Every answer is a look at the present.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    answer
}

fn route(site: &Site, request: &Request<Incoming>) -> Answer {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut answer = text(
            StatusCode::METHOD_NOT_ALLOWED,
            "this listener is read-only: GET or HEAD\n",
        );
        let allowed = HeaderValue::from_static("GET, HEAD");
        answer.headers_mut().insert(header::ALLOW, allowed);
        return answer;
    }
    if !request.body().is_end_stream() {
        return text(
            StatusCode::PAYLOAD_TOO_LARGE,
            "this listener takes no request bodies\n",
        );
    }
    match request.uri().path() {
        "/" => page(),
        "/status" => respond(StatusCode::OK, "application/json", status(site).to_string()),
        "/livez" => probe(health::live(&site.live.borrow(), Instant::now())),
        "/readyz" => {
            let report = health::ready(&site.live.borrow());
            // Who has failed says why without being asked.
            if report.passed() && !has_flag(request, "verbose") {
                return text(StatusCode::OK, "ok\n");
            }
            probe(report)
        }
        "/metrics" => {
            let accept = request.headers().get(header::ACCEPT);
            let format = Format::accepted(accept.and_then(|value| value.to_str().ok()));
            respond(StatusCode::OK, format.content_type(), scrape(site, format))
        }
        _ => text(
            StatusCode::NOT_FOUND,
            format!("not found; there is {PATHS}\n"),
        ),
    }
}

/// The status page: one file, nothing from outside. Script and style are ours by a number drawn for this answer,
/// whatever else may find its way into the page.
fn page() -> Answer {
    let nonce = Uuid::new_v4().simple().to_string();
    let body = PAGE.replace("{nonce}", &nonce);
    let mut answer = respond(StatusCode::OK, "text/html; charset=utf-8", body);
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; \
         connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let headers = answer.headers_mut();
    if let Ok(policy) = HeaderValue::try_from(policy) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    headers.insert(
        header::REFERRER_POLICY,
        HeaderValue::from_static("no-referrer"),
    );
    answer
}

fn has_flag(request: &Request<Incoming>, name: &str) -> bool {
    let query = request.uri().query().unwrap_or_default();
    query
        .split('&')
        .any(|pair| pair.split('=').next() == Some(name))
}

fn probe(report: health::Report) -> Answer {
    let status = if report.passed() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    text(status, report.to_string())
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    respond(status, "text/plain; charset=utf-8", body)
}

pub(super) fn respond(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let content_type = HeaderValue::from_static(content_type);
    answer
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    answer
}
