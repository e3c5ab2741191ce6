//! What remains of tracing in a build without the feature `otel`: nothing, under the same names.

use std::sync::Arc;

use crate::error::Verdict;
use crate::event::{Message, Record};
use crate::settings::Export;

/// There is none.
#[derive(Debug)]
pub enum Tracer {}

impl Tracer {
    /// # Errors
    /// Always.
    pub fn start(_: &Export, _: &'static str, _: &str) -> Result<Self, String> {
        Err("this binary was built without the feature `otel`".to_owned())
    }

    /// Cannot be called.
    pub fn sends<'r>(&self, _: impl Iterator<Item = &'r Record>, _: &mut [Message]) -> Sends {
        match *self {}
    }

    /// Cannot be called.
    pub async fn stop(self: Arc<Self>) {
        match *self {}
    }
}

/// There are none.
#[derive(Debug, Default)]
pub struct Sends;

impl Sends {
    /// None.
    pub fn without_hops(&self, _: &[Message], _: &[Verdict]) -> (Vec<usize>, Vec<Message>) {
        Default::default()
    }

    /// Does nothing.
    pub fn end(self, _: &[Verdict]) {}
}
