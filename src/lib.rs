//! Outrigger: a transactional-outbox relay.
//!
//! A service inserts an event into an outbox table in the same PostgreSQL transaction as its data;
//! Outrigger publishes the row as a CloudEvent to RabbitMQ, NATS JetStream, Kafka, EventBridge or an http service,
//! and marks it published.
//!
//! # The delivery contract, in brief
//!
//! * **No loss, no phantom.** A committed row ends confirmed by the broker and routed to a queue, or is
//!   visibly pending, retrying or dead; an uncommitted one is never published.
//! * **At least once.** Duplicates appear only after a failure, at most one window of events in flight per
//!   failure, and are byte-identical.
//! * **Order per key**, that of commits, with any number of replicas, through retries and failover.
//! * **Isolation.** A failing event delays only its key; an outage uses up no attempts.
//! * **Bounded.** Memory, connections, waits, retries and shutdown have limits.
//!
//! `docs/delivery.md` has it in full, `docs/architecture.md` says how it is kept.
//!
//! # The way in
//!
//! [`app::run`] builds the parts and calls [`relay::driver::run`], the main loop. It feeds
//! [`relay::core::Core`] with what happened and carries out what that says.
//!
//! | module | what it knows |
//! |---|---|
//! | [`cli`] | arguments; one file per command |
//! | [`app`], [`assemble`] | everything: settings to parts, start and stop |
//! | [`settings`] | environment and file in, checked values out |
//! | [`event`] | a row becomes a CloudEvent, bytes and a destination; pure |
//! | [`relay`] | `core` decides, pure; `bound` says where reads may start, pure; `driver` carries out |
//! | [`store`] | plain data between core and database; `postgres` holds every statement |
//! | [`sink`] | the contract of a sink, and one module for each |
//! | [`admin`] | health, metrics and the status page, over HTTP |
//! | [`error`] | kinds of failure, and the one function that decides what follows |
//! | [`telemetry`] | logs, metrics, traces |
//! | [`secret_file`] | secrets that may be replaced while the relay runs |
//!
//! # The dependency rule
//!
//! Dependencies point one way: `app` knows all; the core knows only events, errors and the store's plain
//! data, and neither I/O nor a clock; a store and a sink never see each other; each outside library has
//! one home. `tests/tidy.rs` fails otherwise.
//!
//! The library exists for the binary and its tests; its interface is not stable.

pub mod admin;
pub mod app;
pub mod assemble;
pub mod cli;
pub mod error;
pub mod event;
pub mod relay;
pub mod secret_file;
pub mod settings;
pub mod sink;
pub mod store;
pub mod telemetry;
mod tls;
mod user_info;
