//! EventBridge: a bus that keeps its entries. A service of the tests plays AWS, since moto is slow and forgets everything
//! when it ends; that the sink and moto understand each other is shown in `tests/sinks`.

use serde_json::{Value, json};
use uuid::Uuid;

use super::arrival;
use crate::service::{Places, Reply, Service, Taken};
use crate::support::Arrival;
use crate::support::poison::Poison;

pub(super) const POISON: &[Poison] = &[
    ("destination", "'nowhere'", "unknown_destination"),
    ("destination", "'a b'", "invalid_route"),
    ("routing_key", "repeat('x', 129)", "invalid_route"),
    ("source", "'aws.s3'", "invalid_event"),
    ("headers", "'{\"resources\":1}'", "invalid_header"),
    ("headers", "'{\"X-Amzn-Trace-Id\":\"\"}'", "invalid_header"),
];

/// The service. A refusal is the status and code of the whole answer, or with status 200 the code of each entry.
pub(crate) struct EventBridge {
    pub(crate) service: Service,
}

impl EventBridge {
    pub(super) fn start() -> Self {
        Self {
            service: Service::answering(answer),
        }
    }

    pub(super) fn refuse_entries(&self, bus: &str) {
        let each = (200, "NotAuthorizedForSourceException");
        self.service.refuse(bus, Some(each));
    }

    pub(super) fn forbid(&self, bus: &str) {
        let all = (400, "AccessDeniedException");
        self.service.refuse(bus, Some(all));
    }

    pub(super) fn throttle(&self) {
        self.service.refuse_all(Some((400, "ThrottlingException")));
    }

    pub(super) fn arrivals(&self, bus: &str) -> Vec<Arrival> {
        let taken = self.service.close(bus);
        taken.into_iter().map(arrived).collect()
    }
}

fn arrived(entry: Taken) -> Arrival {
    let mut entry: Value = serde_json::from_slice(&entry.body).unwrap();
    let detail = entry["Detail"].take();
    let detail = detail.as_str().expect("a detail");
    let event: Value = serde_json::from_str(detail).unwrap();
    let id = event["id"].as_str().expect("an id").to_owned();
    arrival(id, detail.as_bytes(), entry.to_string().as_bytes())
}

/// What AWS answers. An entry is taken as one thing, without the request's headers, which are signed anew each time.
fn answer(places: &mut Places, _path: &str, request: Taken) -> Reply {
    let body: Value = serde_json::from_slice(&request.body).unwrap();
    match request.headers["x-amz-target"].as_str() {
        "AWSEvents.DescribeEventBus" => {
            let name = body["Name"].as_str().unwrap_or("default");
            match places.contains_key(name) {
                true => reply(200, json!({ "Name": name })),
                false => reply(400, json!({ "__type": "ResourceNotFoundException" })),
            }
        }
        "AWSEvents.PutEvents" => put(places, body["Entries"].as_array().expect("entries")),
        other => panic!("nobody plays {other}"),
    }
}

fn put(places: &mut Places, entries: &[Value]) -> Reply {
    let mut results = Vec::new();
    let mut failed = 0;
    for entry in entries {
        let bus = entry["EventBusName"].as_str().unwrap_or("default");
        // Entries for a bus that does not exist get an id and are dropped, as by AWS.
        let place = places.get_mut(bus);
        match place.as_ref().and_then(|place| place.refusal) {
            Some((200, code)) => {
                failed += 1;
                results.push(json!({ "ErrorCode": code, "ErrorMessage": "refused" }));
            }
            // Requests are for one bus each.
            Some((status, code)) => return reply(status, json!({ "__type": code })),
            None => {
                if let Some(place) = place {
                    place.taken.push(Taken {
                        headers: Default::default(),
                        body: entry.to_string().into_bytes(),
                    });
                }
                results.push(json!({ "EventId": Uuid::new_v4() }));
            }
        }
    }
    reply(
        200,
        json!({ "FailedEntryCount": failed, "Entries": results }),
    )
}

fn reply(status: u16, body: Value) -> Reply {
    Reply {
        status,
        headers: "content-type: application/x-amz-json-1.1\r\n",
        body: body.to_string(),
    }
}
