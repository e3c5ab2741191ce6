//! Outrigger: a transactional-outbox relay.
pub mod error;
pub mod event;
pub mod settings;
pub mod sink;
pub mod store;
