//! http: a path that the service takes events at.

use super::arrival;
use crate::service::{Service, Taken};
use crate::support::Arrival;
use crate::support::poison::Poison;

pub(super) const POISON: &[Poison] = &[
    ("destination", "'nowhere'", "unknown_destination"),
    ("destination", "'../admin'", "invalid_route"),
    ("destination", "'a//b'", "invalid_route"),
    (
        "headers",
        "'{\"Authorization\":\"Bearer x\"}'",
        "invalid_header",
    ),
    ("headers", "'{\"content-length\":0}'", "invalid_header"),
    ("headers", "'{\"a b\":1}'", "invalid_header"),
    ("headers", "'{\"a\":\"x\\r\\nhost: y\"}'", "invalid_header"),
];

/// The service.
pub(crate) struct Http {
    pub(crate) service: Service,
}

impl Http {
    pub(super) fn start() -> Self {
        Self {
            service: Service::start(),
        }
    }

    pub(super) fn arrivals(&self, place: &str) -> Vec<Arrival> {
        let taken = self.service.close(place);
        taken.into_iter().map(arrived).collect()
    }
}

fn arrived(request: Taken) -> Arrival {
    let mut headers = request.headers;
    // Each relay has its own proxy.
    headers.remove("host").expect("a host");
    let key = headers.get("idempotency-key").expect("an identity");
    let id = key.trim_matches('"').rsplit(' ').next();
    let id = id.expect("source and id").to_owned();
    arrival(id, &request.body, format!("{headers:?}").as_bytes())
}
