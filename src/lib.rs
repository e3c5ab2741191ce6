//! Outrigger: a transactional-outbox relay.
pub mod app;
pub mod assemble;
pub mod cli;
pub mod error;
pub mod event;
pub mod relay;
pub mod settings;
pub mod sink;
pub mod store;
pub mod telemetry;
