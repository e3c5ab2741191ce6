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
use crate::event::Message;

/// The confirms contradict what was published: nothing about the run can be trusted.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Contradiction(pub(super) String);

/// Which messages of a run that was cut short are known to be confirmed.
///
/// A return precedes its confirm, and each confirm takes the oldest waiting return with it. So if no confirm brought one,
/// no message that has its confirm was returned. If one did, another may be lost, and nothing is known.
pub(super) fn known_before_the_end(confirmations: &[Option<Confirmation>]) -> Vec<bool> {
    let brings = |confirmation: &Confirmation| {
        matches!(
            confirmation,
            Confirmation::Ack(Some(_)) | Confirmation::Nack(Some(_)) | Confirmation::NotRequested
        )
    };
    let trusted = !confirmations.iter().flatten().any(brings);
    confirmations
        .iter()
        .map(|confirmation| trusted && matches!(confirmation, Some(Confirmation::Ack(None))))
        .collect()
}

/// Verdicts of a run, in publish order. The ids of its messages must be distinct.
pub(super) fn decide(
    batch: &[Message],
    run: &[usize],
    confirmations: Vec<Confirmation>,
) -> Result<Vec<Verdict>, Contradiction> {
    let ids: Vec<&str> = run.iter().map(|index| batch[*index].id.as_str()).collect();
    if ids.len() != confirmations.len() {
        return Err(Contradiction(format!(
            "{} confirms for {} messages",
            confirmations.len(),
            ids.len()
        )));
    }
    let mut verdicts = Vec::with_capacity(ids.len());
    let mut returns = Vec::new();
    for (index, confirmation) in run.iter().zip(confirmations) {
        let (verdict, returned) = match confirmation {
            Confirmation::Ack(returned) => (Verdict::Confirmed, returned),
            Confirmation::Nack(returned) => (Verdict::Rejected(nacked(&batch[*index])), returned),
            Confirmation::NotRequested => {
                return Err(Contradiction("the channel has no confirms".to_owned()));
            }
        };
        verdicts.push(verdict);
        returns.extend(returned);
    }
    for returned in returns {
        assign(&ids, &mut verdicts, &returned)?;
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

fn nacked(message: &Message) -> Reason {
    Reason::new(
        ReasonCode::Nack,
        format!(
            "the broker refused the message (basic.nack; exchange `{}`, routing key `{}`); a queue that is bound for \
             this routing key is full (`x-overflow: reject-publish`) or failing",
            message.destination, message.routing_key
        ),
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

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use std::collections::VecDeque;

    use lapin::BasicProperties;
    use lapin::message::Delivery;
    use lapin::types::ShortString;
    use rand::rngs::StdRng;
    use rand::seq::SliceRandom;
    use rand::{Rng, SeedableRng};

    use super::*;

    fn returned(id: &str) -> BasicReturnMessage {
        let mut delivery =
            Delivery::mock(0, "events".into(), "a.b".into(), false, b"payload".to_vec());
        delivery.properties =
            BasicProperties::default().with_message_id(ShortString::try_new(id).unwrap());
        BasicReturnMessage {
            delivery,
            reply_code: 312,
            reply_text: "NO_ROUTE".into(),
        }
    }

    fn decided(
        ids: &[&str],
        confirmations: Vec<Confirmation>,
    ) -> Result<Vec<Verdict>, Contradiction> {
        let batch: Vec<Message> = ids
            .iter()
            .map(|id| Message {
                id: (*id).to_owned(),
                ..crate::sink::stdout::tests::message(b"{}")
            })
            .collect();
        let run: Vec<usize> = (0..batch.len()).collect();
        decide(&batch, &run, confirmations)
    }

    #[test]
    fn a_run_cut_short_is_trusted_only_if_nothing_was_returned() {
        let ack = |returned| Some(Confirmation::Ack(returned));
        let cut = [ack(None), None, Some(Confirmation::Nack(None)), ack(None)];
        assert_eq!(known_before_the_end(&cut), [true, false, false, true]);
        let cut = [ack(None), ack(Some(returned("b"))), None];
        assert_eq!(known_before_the_end(&cut), [false, false, false]);
    }

    fn code(verdict: &Verdict) -> Option<ReasonCode> {
        match verdict {
            Verdict::Confirmed => None,
            Verdict::Rejected(reason) => Some(reason.code),
            other => panic!("unexpected {other:?}"),
        }
    }

    #[test]
    fn a_return_on_a_neighbours_confirm_finds_its_message() {
        let confirmations = vec![
            Confirmation::Ack(Some(returned("c"))),
            Confirmation::Nack(None),
            Confirmation::Ack(None),
        ];
        let verdicts = decided(&["a", "b", "c"], confirmations).unwrap();
        let codes: Vec<_> = verdicts.iter().map(code).collect();
        assert_eq!(
            codes,
            [None, Some(ReasonCode::Nack), Some(ReasonCode::Unroutable)]
        );
        let Verdict::Rejected(reason) = &verdicts[2] else {
            unreachable!()
        };
        assert!(
            reason
                .detail
                .contains("312 NO_ROUTE (exchange `events`, routing key `a.b`)")
        );
        assert!(!reason.detail.contains("payload"));
    }

    #[test]
    fn whatever_does_not_add_up_decides_nothing() {
        let ids = ["a", "b"];
        let mut anonymous = returned("a");
        anonymous.delivery.properties = BasicProperties::default();
        for (confirmations, part) in [
            (vec![Confirmation::Ack(None)], "1 confirms for 2"),
            (
                vec![Confirmation::Ack(None), Confirmation::NotRequested],
                "no confirms",
            ),
            (
                vec![
                    Confirmation::Ack(None),
                    Confirmation::Ack(Some(returned("z"))),
                ],
                "not published",
            ),
            (
                vec![Confirmation::Ack(None), Confirmation::Ack(Some(anonymous))],
                "without message_id",
            ),
            (
                vec![
                    Confirmation::Ack(Some(returned("a"))),
                    Confirmation::Ack(Some(returned("a"))),
                ],
                "twice",
            ),
        ] {
            let Contradiction(text) = decided(&ids, confirmations).unwrap_err();
            assert!(text.contains(part), "{text:?} lacks {part:?}");
        }
    }

    /// lapin's bookkeeping: returns wait in a queue, and each confirm takes the oldest with it.
    /// For any order of confirms the broker may choose, exactly the right messages are blamed.
    #[test]
    fn any_order_of_confirms_and_returns_is_matched() {
        for seed in 0..2_000u64 {
            let mut random = StdRng::seed_from_u64(seed);
            let ids: Vec<String> = (0..random.random_range(1..60))
                .map(|n| n.to_string())
                .collect();
            let unroutable: Vec<bool> = ids.iter().map(|_| random.random_bool(0.2)).collect();
            let nacked: Vec<bool> = unroutable
                .iter()
                .map(|unroutable| !unroutable && random.random_bool(0.1))
                .collect();
            // A return comes when the message is handled, its confirm at any time after.
            let mut confirmations: Vec<Option<Confirmation>> = ids.iter().map(|_| None).collect();
            let mut waiting = VecDeque::new();
            let mut handled = Vec::new();
            let mut confirm = |tag: usize, waiting: &mut VecDeque<BasicReturnMessage>| {
                let returned = waiting.pop_front();
                confirmations[tag] = Some(if nacked[tag] {
                    Confirmation::Nack(returned)
                } else {
                    Confirmation::Ack(returned)
                });
            };
            for tag in 0..ids.len() {
                if unroutable[tag] {
                    waiting.push_back(returned(&ids[tag]));
                }
                handled.push(tag);
                if random.random_bool(0.3) {
                    handled.shuffle(&mut random);
                    for tag in handled.split_off(handled.len() / 2) {
                        confirm(tag, &mut waiting);
                    }
                }
            }
            handled.shuffle(&mut random);
            for tag in handled {
                confirm(tag, &mut waiting);
            }
            assert!(
                waiting.is_empty(),
                "seed {seed}: a return without a confirm"
            );

            let names: Vec<&str> = ids.iter().map(String::as_str).collect();
            let confirmations = confirmations.into_iter().map(Option::unwrap).collect();
            let verdicts = decided(&names, confirmations).unwrap();
            for (tag, verdict) in verdicts.iter().enumerate() {
                let expected = match (unroutable[tag], nacked[tag]) {
                    (true, _) => Some(ReasonCode::Unroutable),
                    (_, true) => Some(ReasonCode::Nack),
                    _ => None,
                };
                assert_eq!(code(verdict), expected, "seed {seed}, message {tag}");
            }
        }
    }
}
