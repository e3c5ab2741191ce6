//! One publishing lane: one request at a time, ten entries or less.

use std::sync::Arc;

use tokio::time::Instant;

use super::link::{Link, Trouble};
use super::outcome::{Outcome, absent, read};
use super::prepare::{Prepared, prepare};
use super::supervisor::Shared;
use crate::error::{Reason, ReasonCode, Verdict};
use crate::event::Message;
use crate::sink::{BoxFuture, Lane};

/// What EventBridge takes in one request.
const ENTRIES_MAX: usize = 10;

/// See the module.
pub(super) struct EventBridgeLane {
    shared: Arc<Shared>,
}

impl EventBridgeLane {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

impl Lane for EventBridgeLane {
    fn publish<'a>(&'a mut self, batch: &'a [Message]) -> BoxFuture<'a, Vec<Verdict>> {
        Box::pin(async move {
            let mut verdicts = vec![Verdict::Unavailable; batch.len()];
            let status = &self.shared.status;
            let link = self.shared.link.borrow().clone();
            let Some(link) = link.filter(|_| status.is_ready()) else {
                status.catch_up().await;
                return verdicts;
            };
            let publishing = Publishing {
                shared: &self.shared,
                link: &link,
                deadline: Instant::now() + self.shared.settings.timeout,
            };
            // What is left is unavailable.
            if let Err(Stop::Lost) = publishing.publish(batch, &mut verdicts).await {
                status.catch_up().await;
            }
            verdicts
        })
    }
}

/// Why the rest of a batch has to wait: what follows must not overtake what was not taken.
enum Stop {
    /// Everybody waits, or this batch has had its time.
    Pause,
    /// The link has failed.
    Lost,
}

/// One batch under way.
struct Publishing<'a> {
    shared: &'a Shared,
    link: &'a Link,
    /// When no more requests are begun. Each has its time, so the batch as a whole has no more than twice that.
    deadline: Instant,
}

impl Publishing<'_> {
    async fn publish(&self, batch: &[Message], verdicts: &mut [Verdict]) -> Result<(), Stop> {
        let limit = self.shared.settings.max_request_size;
        // By bus, in the order of the batch: a request that is not allowed is so for its bus.
        let mut buses: Vec<(&str, Vec<Prepared>)> = Vec::new();
        for (index, message) in batch.iter().enumerate() {
            match prepare(index, message, limit) {
                Ok(prepared) => {
                    let bus = message.destination.as_str();
                    match buses.iter_mut().find(|(name, _)| *name == bus) {
                        Some((_, entries)) => entries.push(prepared),
                        None => buses.push((bus, vec![prepared])),
                    }
                }
                Err(reason) => verdicts[index] = Verdict::Impossible(reason),
            }
        }
        for (bus, entries) in buses {
            self.in_time()?;
            if let Err(trouble) = self.link.know(bus).await {
                self.refuse(trouble, bus, &entries, verdicts)?;
                continue;
            }
            for request in requests(entries, limit) {
                self.put(bus, &request, verdicts).await?;
            }
        }
        Ok(())
    }

    async fn put(
        &self,
        bus: &str,
        request: &[Prepared],
        verdicts: &mut [Verdict],
    ) -> Result<(), Stop> {
        match self.put_once(bus, request, verdicts).await? {
            Ok(()) => Ok(()),
            // One of them is to blame for the whole: each goes alone.
            Err(Trouble::Refused(_)) if request.len() > 1 => {
                for one in request.chunks(1) {
                    if let Err(trouble) = self.put_once(bus, one, verdicts).await? {
                        self.refuse(trouble, bus, one, verdicts)?;
                    }
                }
                Ok(())
            }
            Err(trouble) => self.refuse(trouble, bus, request, verdicts),
        }
    }

    /// One request; each of its entries has a verdict then. The inner `Err`: as a whole it was not carried out.
    async fn put_once(
        &self,
        bus: &str,
        request: &[Prepared],
        verdicts: &mut [Verdict],
    ) -> Result<Result<(), Trouble>, Stop> {
        self.in_time()?;
        let entries = request.iter().map(|prepared| prepared.entry.clone());
        let results = match self.link.put(entries.collect()).await {
            Ok(results) => results,
            Err(trouble) => return Ok(Err(trouble)),
        };
        if results.len() != request.len() {
            let text = "results and entries do not add up".to_owned();
            self.shared.busy(text);
            return Err(Stop::Pause);
        }
        let mut busy = None;
        for (prepared, result) in request.iter().zip(&results) {
            match read(result, bus) {
                Outcome::Verdict(verdict) => verdicts[prepared.index] = verdict,
                Outcome::Busy(text) => busy = Some(text),
            }
        }
        match busy {
            Some(text) => {
                self.shared.busy(text);
                Err(Stop::Pause)
            }
            None => {
                self.shared.took();
                Ok(Ok(()))
            }
        }
    }

    /// Gives entries that have none the verdict that goes with a trouble.
    fn refuse(
        &self,
        trouble: Trouble,
        bus: &str,
        entries: &[Prepared],
        verdicts: &mut [Verdict],
    ) -> Result<(), Stop> {
        let reason = match trouble {
            Trouble::Outage(text) => {
                self.link.fail(text);
                return Err(Stop::Lost);
            }
            Trouble::Busy(text) => {
                self.shared.busy(text);
                return Err(Stop::Pause);
            }
            Trouble::Absent => {
                self.link.forget(bus);
                absent(bus)
            }
            Trouble::Forbidden(text) => Reason::new(
                ReasonCode::Forbidden,
                format!(
                    "bus `{bus}` refuses the event ({text}); grant events:PutEvents, or correct the route"
                ),
            ),
            Trouble::Refused(text) => {
                let text =
                    format!("bus `{bus}` refuses the event ({text}); correct the row or its route");
                Reason::new(ReasonCode::Other, text)
            }
        };
        for prepared in entries {
            verdicts[prepared.index] = Verdict::Rejected(reason.clone());
        }
        Ok(())
    }

    fn in_time(&self) -> Result<(), Stop> {
        match Instant::now() < self.deadline {
            true => Ok(()),
            false => Err(Stop::Pause),
        }
    }
}

/// As few requests as the limits allow, in the given order.
fn requests(entries: Vec<Prepared>, limit: usize) -> Vec<Vec<Prepared>> {
    let mut requests: Vec<Vec<Prepared>> = Vec::new();
    let mut size = 0;
    for entry in entries {
        match requests.last_mut() {
            Some(last) if last.len() < ENTRIES_MAX && size + entry.size < limit => {
                size += entry.size;
                last.push(entry);
            }
            _ => {
                size = entry.size;
                requests.push(vec![entry]);
            }
        }
    }
    requests
}

#[cfg(test)]
mod tests {
    use aws_sdk_eventbridge::types::PutEventsRequestEntry;

    use super::*;

    #[test]
    fn a_request_has_ten_entries_and_stays_below_the_limit() {
        let sizes = |sizes: &[usize]| {
            let entries = sizes.iter().enumerate().map(|(index, size)| Prepared {
                index,
                entry: PutEventsRequestEntry::builder().build(),
                size: *size,
            });
            let requests = requests(entries.collect(), 100);
            requests.iter().map(Vec::len).collect::<Vec<_>>()
        };
        assert_eq!(sizes(&[1; 25]), [10, 10, 5]);
        assert_eq!(sizes(&[50, 49, 1, 99, 60, 39]), [2, 1, 1, 2]);
        assert_eq!(sizes(&[]), [0; 0]);
    }
}
