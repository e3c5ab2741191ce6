//! What a refusal or a return means for the one message that it is about.

use lapin::protocol::AMQPError;

use super::lane::RabbitMqLane;
use super::link::Link;
use super::plugins::{returned, wish};
use super::queues::missing;
use super::words::{Meant, absent, forbidden, unfit};
use crate::error::{Reason, ReasonCode, Verdict};
use crate::event::Message;

impl RabbitMqLane {
    /// The verdict on the one message whose publishing closed its channel.
    pub(super) fn blame(
        &self,
        link: &Link,
        message: &Message,
        refusal: &AMQPError,
        meant: Option<Meant>,
    ) -> Verdict {
        let (code, text) = (refusal.get_id(), refusal.get_message().as_str());
        if let Some(reason) = unfit(refusal, message.body.len()) {
            if reason.code == ReasonCode::TooLarge {
                link.note_refused_size(message.body.len());
            }
            return Verdict::Impossible(reason);
        }
        let reason = match code {
            404 => {
                link.exchanges.doubt_all();
                return Verdict::Rejected(absent(link, &message.destination));
            }
            403 => forbidden(link, &message.destination, text),
            _ => Reason::new(
                ReasonCode::Other,
                format!("the broker refused the message: {text} ({code})"),
            ),
        };
        if code == 403 {
            let whole_exchange = meant == Some(Meant::Exchange);
            self.shared.routes.refuse(message, whole_exchange, &reason);
        }
        Verdict::Rejected(reason)
    }

    /// Messages that came back: perhaps a queue of the settings is away, or a plugin keeps them.
    pub(super) async fn explain_returns(
        &self,
        link: &Link,
        batch: &[Message],
        indices: &[usize],
        verdicts: &mut [Verdict],
    ) {
        let settings = &self.shared.settings;
        let mut queues_are_there = settings.queues.is_empty();
        for (index, verdict) in indices.iter().zip(verdicts) {
            let reason = match verdict {
                Verdict::Rejected(reason) if reason.code == ReasonCode::Unroutable => {
                    reason.clone()
                }
                _ => continue,
            };
            let message = &batch[*index];
            if let Some(wish) = wish(message) {
                match returned(link, settings, message, wish, &reason).await {
                    Ok(explained) => *verdict = explained,
                    Err(problem) => {
                        link.give_up(&problem);
                        *verdict = Verdict::Unavailable;
                    }
                }
            }
            if matches!(verdict, Verdict::Rejected(_)) && !queues_are_there {
                match missing(link, &settings.queues).await {
                    Ok(None) => queues_are_there = true,
                    Ok(Some(_)) | Err(_) => {
                        self.shared.doubt_queues.notify_one();
                        *verdict = Verdict::Unavailable;
                    }
                }
            }
        }
    }
}
