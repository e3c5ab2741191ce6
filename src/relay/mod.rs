//! The relay: a pure core that decides ([`core`]) and a thin driver that does ([`driver`]).
//!
//! [`bound`] decides where reads may start so that order per key holds.

pub mod bound;
pub mod core;
pub mod driver;
pub mod live;
