//! TLS and credentials against real servers: every way to ask for it, every kind of certificate, and both replaced
//! while the relay runs. Certificates come from authorities that the tests make themselves.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    unreachable_pub
)]

#[path = "../support/end_to_end/mod.rs"]
mod support;

#[path = "../support/nats.rs"]
mod nats_node;
#[path = "../support/service.rs"]
mod service;
#[path = "../support/sink.rs"]
mod sink;

mod authority;
mod collector;
mod manual;
mod postgres;
mod rabbitmq;
mod rotation;
mod servers;
mod sinks;

/// Insists that a text has all of these parts.
#[track_caller]
fn assert_says(what: &str, text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{what}: {text:?} lacks {part:?}");
    }
}
