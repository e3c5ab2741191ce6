//! Outrigger: a transactional-outbox relay.
pub mod error;
pub mod event;
pub mod relay;
pub mod sink;
pub mod store;
