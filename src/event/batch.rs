//! Batch mode: events of one route, with the same transport headers, share a message.

use std::collections::HashMap;

use super::Record;
use super::encode::{BATCH, BatchLimits, message_without_body};
use super::envelope::Envelope;
use super::headers::Headers;
use super::json_format::write_event;
use super::message::Message;

/// What the events of one message have in common.
type Group = ((String, String), Headers);

/// Collects events into messages.
///
/// Messages are published in the order in which they were begun. An event joins the open message of
/// its group only if no earlier event of its key sits in a later message; otherwise a new
/// message is begun, so the events of a key leave in their order even when they change routes.
pub(super) struct Batcher {
    limits: BatchLimits,
    messages: Vec<(Message, Vec<u8>)>,
    /// The message that takes further events of a group.
    open: HashMap<Group, usize>,
    /// The last message that holds an event of a key (by hash).
    last_of_key: HashMap<i64, usize>,
    /// One event's bytes, kept between calls for its allocation.
    scratch: Vec<u8>,
}

impl Batcher {
    pub(super) fn new(limits: BatchLimits) -> Self {
        Self {
            limits,
            messages: Vec::new(),
            open: HashMap::new(),
            last_of_key: HashMap::new(),
            scratch: Vec::new(),
        }
    }

    pub(super) fn push(
        &mut self,
        record: &Record,
        event: &Envelope<'_>,
        route: (String, String),
        headers: Headers,
    ) {
        self.scratch.clear();
        write_event(&mut self.scratch, event);

        let group = (route, headers);
        let earliest = match record.keyed {
            true => self.last_of_key.get(&record.hash).copied().unwrap_or(0),
            false => 0,
        };
        let joined = self
            .open
            .get(&group)
            .copied()
            .filter(|&at| at >= earliest && self.has_room(at));
        let at = match joined {
            Some(at) => {
                let (message, body) = &mut self.messages[at];
                message.seqs.push(record.seq);
                let both = message.expires_in.zip(record.expires_in);
                message.expires_in = both.map(|(one, other)| one.max(other));
                body.push(b',');
                body.extend_from_slice(&self.scratch);
                at
            }
            None => {
                let at = self.messages.len();
                let message = message_without_body(record, event, group.1.clone(), group.0.clone());
                let mut body = Vec::with_capacity(self.scratch.len() + 2);
                body.push(b'[');
                body.extend_from_slice(&self.scratch);
                self.messages.push((message, body));
                self.open.insert(group, at);
                at
            }
        };
        if record.keyed {
            self.last_of_key.insert(record.hash, at);
        }
    }

    /// Whether the event in `scratch`, a comma and the closing bracket fit into a message.
    fn has_room(&self, at: usize) -> bool {
        let (message, body) = &self.messages[at];
        message.seqs.len() < self.limits.events
            && body.len() + 1 + self.scratch.len() < self.limits.bytes
    }

    /// Closes all messages.
    pub(super) fn finish(self) -> Vec<Message> {
        self.messages
            .into_iter()
            .map(|(mut message, mut body)| {
                body.push(b']');
                message.body = body.into();
                message.content_type = Some(BATCH.to_owned());
                message
            })
            .collect()
    }
}
