//! From confirms to verdicts, decided for a whole run of messages at once.
//!
//! lapin attaches a returned message to *whichever* confirm of the channel completes next, so an
//! unroutable message regularly comes back as a plain ack and an innocent neighbour carries the
//! return. What holds nevertheless: a return precedes its own confirm on the wire, and every
//! confirm takes one waiting return with it. So once *every* confirm of the channel is in, every
//! return is in too, attached to some confirm or other. Returns are therefore collected from all
//! confirms and matched to their messages by `message_id`. Anything that does not add up makes
//! the fate of the whole run unknown.

use lapin::Confirmation;
use lapin::message::BasicReturnMessage;

use crate::error::{Reason, ReasonCode, Verdict};

/// The confirms contradict what was published: nothing about the run can be trusted.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Contradiction(pub(super) String);

/// Verdicts of a run, in publish order. `ids` are the message ids, which must be distinct.
pub(super) fn decide(
    ids: &[&str],
    confirmations: Vec<Confirmation>,
) -> Result<Vec<Verdict>, Contradiction> {
    if ids.len() != confirmations.len() {
        return Err(Contradiction(format!(
            "{} confirms for {} messages",
            confirmations.len(),
            ids.len()
        )));
    }
    let mut verdicts = Vec::with_capacity(ids.len());
    let mut returns = Vec::new();
    for confirmation in confirmations {
        let (verdict, returned) = match confirmation {
            Confirmation::Ack(returned) => (Verdict::Confirmed, returned),
            Confirmation::Nack(returned) => (Verdict::Rejected(nacked()), returned),
            Confirmation::NotRequested => {
                return Err(Contradiction("the channel has no confirms".to_owned()));
            }
        };
        verdicts.push(verdict);
        returns.extend(returned);
    }
    for returned in returns {
        assign(ids, &mut verdicts, &returned)?;
    }
    Ok(verdicts)
}

fn assign(
    ids: &[&str],
    verdicts: &mut [Verdict],
    returned: &BasicReturnMessage,
) -> Result<(), Contradiction> {
    let Some(id) = returned.delivery.properties.message_id() else {
        return Err(Contradiction("a return without message_id".to_owned()));
    };
    // Returns are rare, so a scan beats building a map for every batch.
    let Some(position) = ids.iter().position(|known| *known == id.as_str()) else {
        return Err(Contradiction(
            "a return of a message that was not published".to_owned(),
        ));
    };
    if is_unroutable(&verdicts[position]) {
        return Err(Contradiction("a message was returned twice".to_owned()));
    }
    verdicts[position] = Verdict::Rejected(unroutable(returned));
    Ok(())
}

fn is_unroutable(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Rejected(reason) if reason.code == ReasonCode::Unroutable)
}

fn nacked() -> Reason {
    Reason::new(
        ReasonCode::Nack,
        "the broker refused the message (basic.nack); a queue it is routed to is full \
         (`x-overflow: reject-publish`) or failing",
    )
}

fn unroutable(returned: &BasicReturnMessage) -> Reason {
    let delivery = &returned.delivery;
    Reason::new(
        ReasonCode::Unroutable,
        format!(
            "the broker returned the message: {} {} (exchange `{}`, routing key `{}`); bind a \
             queue for this routing key",
            returned.reply_code, returned.reply_text, delivery.exchange, delivery.routing_key
        ),
    )
}
