//! Queues that must be there before anything is published, if the settings name any.
//!
//! Which queues an exchange leads to cannot be asked over AMQP, but whether a queue whose name is known is there can: a
//! durable classic queue whose node is down answers with "home node … of durable queue … is down or inaccessible".

use lapin::options::QueueDeclareOptions;
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, ErrorKind};
use tokio::time::timeout;

use super::link::{Link, STEP_TIMEOUT, explain};

/// Why not all of these queues are there; `None` if they are. An error means that the broker could not be asked.
pub(super) async fn missing(link: &Link, names: &[String]) -> Result<Option<String>, String> {
    for name in names {
        let Ok(queue) = ShortString::try_new(name.as_str()) else {
            continue;
        };
        let asked = link
            .channels
            .ask(link, async |channel| ask(link, queue, channel).await);
        if let Some(text) = asked.await? {
            return Ok(Some(format!(
                "queue `{name}` (OUTRIGGER_RABBITMQ_QUEUES) is not there, so nothing is published: {text}"
            )));
        }
    }
    Ok(None)
}

async fn ask(
    link: &Link,
    queue: ShortString,
    channel: Channel,
) -> Result<(Option<String>, Option<Channel>), String> {
    let options = QueueDeclareOptions {
        passive: true,
        ..QueueDeclareOptions::default()
    };
    let asked = channel.queue_declare(queue, options, FieldTable::default());
    match timeout(STEP_TIMEOUT, asked).await {
        Ok(Ok(_)) => Ok((None, Some(channel))),
        Ok(Err(error)) => match error.kind() {
            ErrorKind::ProtocolError(refusal) if link.is_alive() => {
                // An exclusive queue of another connection is there.
                let locked = refusal.get_id() == 405;
                let text = refusal.get_message().as_str().to_owned();
                Ok(((!locked).then_some(text), None))
            }
            _ => Err(explain(&error)),
        },
        // One without a leader answers late, if at all.
        Err(_) => {
            let _ = timeout(STEP_TIMEOUT, channel.close(200, ShortString::from("OK"))).await;
            Ok((Some(format!("no answer within {STEP_TIMEOUT:?}")), None))
        }
    }
}
