//! The relay.
pub mod bound;
pub mod core;
