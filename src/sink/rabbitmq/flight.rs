//! A run of messages between its first frame and its last confirm.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use lapin::options::BasicPublishOptions;
use lapin::types::ShortString;
use lapin::{Channel, Confirmation, Error, ErrorKind, PublisherConfirm};
use tokio::time::timeout;

use super::link::{Link, STEP_TIMEOUT, explain};
use super::prepare::Prepared;
use crate::event::Message;

/// Unroutable messages come back instead of vanishing.
const OPTIONS: BasicPublishOptions = BasicPublishOptions {
    mandatory: true,
    immediate: false,
};

pub(super) type Publishing<'a> =
    Pin<Box<dyn Future<Output = lapin::Result<PublisherConfirm>> + Send + 'a>>;

/// Hands every message to lapin, in order. The first poll of each publish takes its delivery tag
/// and queues its frames; nothing is awaited in between.
pub(super) fn issue<'a>(
    channel: &'a Channel,
    batch: &'a [Message],
    run: Vec<Prepared>,
) -> Vec<Result<lapin::Result<PublisherConfirm>, Publishing<'a>>> {
    let mut nobody = Context::from_waker(Waker::noop());
    run.into_iter()
        .map(|prepared| {
            let body = &batch[prepared.index].body;
            let mut publishing: Publishing<'a> = Box::pin(channel.basic_publish(
                prepared.exchange,
                prepared.routing_key,
                OPTIONS,
                body,
                prepared.properties,
            ));
            match publishing.as_mut().poll(&mut nobody) {
                Poll::Ready(result) => Ok(result),
                Poll::Pending => Err(publishing),
            }
        })
        .collect()
}

/// What came back.
pub(super) enum Landed {
    /// A confirm for each message.
    All(Vec<Confirmation>),
    /// Confirms for some, before this happened.
    Partly(Vec<Option<Confirmation>>, Error),
}

/// A run between its first frame and its last confirm. Dropped in between, it ends the connection:
/// frames may still be queued, and closing only the channel would let them follow its close.
pub(super) struct Flight<'a> {
    link: &'a Link,
    pub(super) written: bool,
    finished: bool,
}

impl<'a> Flight<'a> {
    pub(super) fn new(link: &'a Link) -> Self {
        Self {
            link,
            written: false,
            finished: false,
        }
    }

    /// Waits until all is written and confirmed. Awaiting one after the other costs no time, as
    /// all must be in, and few wake-ups, as most are there when the first is.
    pub(super) async fn land(
        &mut self,
        publishing: Vec<Result<lapin::Result<PublisherConfirm>, Publishing<'_>>>,
    ) -> Landed {
        let mut failure = None;
        let mut confirms = Vec::with_capacity(publishing.len());
        for publish in publishing {
            let written = match publish {
                Ok(result) => result,
                Err(publishing) => publishing.await,
            };
            match written {
                Ok(confirm) => confirms.push(Some(confirm)),
                Err(error) => {
                    note(&mut failure, error);
                    confirms.push(None);
                }
            }
        }
        self.written = true;
        let mut confirmations = Vec::with_capacity(confirms.len());
        for confirm in confirms {
            let Some(confirm) = confirm else {
                confirmations.push(None);
                continue;
            };
            match confirm.await {
                Ok(confirmation) => confirmations.push(Some(confirmation)),
                Err(error) => {
                    note(&mut failure, error);
                    confirmations.push(None);
                }
            }
        }
        match failure {
            None => Landed::All(confirmations.into_iter().flatten().collect()),
            Some(error) => Landed::Partly(confirmations, error),
        }
    }

    pub(super) fn finish(mut self) {
        self.finished = true;
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.link.end("a batch was abandoned");
        }
    }
}

/// Keeps the most telling error: what the broker said, rather than what followed from it.
fn note(failure: &mut Option<Error>, error: Error) {
    let tells = |error: &Error| matches!(error.kind(), ErrorKind::ProtocolError(_));
    if failure
        .as_ref()
        .is_none_or(|known| !tells(known) && tells(&error))
    {
        *failure = Some(error);
    }
}

pub(super) async fn close(link: &Link, channel: &Channel) {
    let closing = channel.close(200, ShortString::from("OK"));
    match timeout(STEP_TIMEOUT, closing).await {
        Ok(Ok(())) => {}
        // The channel is closed already, or goes down with its connection.
        Ok(Err(error)) => tracing::debug!(error = explain(&error), "cannot close a channel"),
        Err(_) => link.end(&format!("a channel did not close within {STEP_TIMEOUT:?}")),
    }
}
