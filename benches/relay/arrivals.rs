//! When each event arrived, as its consumer noted it.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::Result;

/// Moments by the events' ids. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Arrivals(Arc<Mutex<HashMap<Uuid, Instant>>>);

impl Arrivals {
    /// Now. A duplicate does not make the first one later.
    pub(crate) fn note(&self, id: Uuid) {
        let now = Instant::now();
        self.lock().entry(id).or_insert(now);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A consumer at work.
pub(crate) struct Receipts {
    arrivals: Arrivals,
    end: Pin<Box<dyn Future<Output = Result<()>> + Send>>,
}

impl Receipts {
    /// `end` stops the consumer that notes these arrivals.
    pub(crate) fn new(
        arrivals: Arrivals,
        end: impl Future<Output = Result<()>> + Send + 'static,
    ) -> Self {
        Self {
            arrivals,
            end: Box::pin(end),
        }
    }

    /// Waits until this many messages have arrived, stops receiving, and hands the arrivals over.
    pub(crate) async fn take(
        self,
        messages: usize,
        limit: Duration,
    ) -> Result<HashMap<Uuid, Instant>> {
        let began = Instant::now();
        loop {
            let count = self.arrivals.lock().len();
            if count >= messages {
                break;
            }
            if began.elapsed() > limit {
                return Err(format!("{count} of {messages} messages arrived in {limit:?}").into());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.end.await?;
        Ok(std::mem::take(&mut *self.arrivals.lock()))
    }
}

/// The id at the end of what identifies an event to sinks that recognise repetitions: its source and its id.
pub(crate) fn id_of(identity: &str) -> Option<Uuid> {
    identity.trim_matches('"').rsplit(' ').next()?.parse().ok()
}
