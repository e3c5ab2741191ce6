//! What is known of routes (exchange and routing key): which ones worked, which do not any more, which are refused.
//!
//! **Worked, and now unroutable.** A classic queue on a cluster node that is down is gone from its bindings: RabbitMQ
//! returns the message with `NO_ROUTE`, exactly as if nobody had ever bound a queue. What tells the two apart is
//! that a message of this route was confirmed before. Then it is an outage: events wait and lose no attempt, one of them
//! is sent each second to find out whether it is over, and after the patience of the settings they are refused like
//! any other.
//!
//! **Refused.** A refused permission closes the channel, and whatever is in flight on it has to be sent again. So a route
//! that was refused is believed to be so for a second, and after that its messages go alone, behind the rest of their
//! batch, until one is taken.

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hash};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Reason, ReasonCode, Verdict};
use crate::event::Message;

/// Routes remembered to have worked: at least so many, at most twice that. Eight bytes each.
const WORKED: usize = 65_536;

/// Routes out of order, and refused ones, remembered at most.
const TROUBLED: usize = 4_096;

/// How long a refusal is believed without asking again.
const REFUSED_FOR: Duration = Duration::from_secs(1);

/// How long messages of a route that was refused go alone.
const ALONE_FOR: Duration = Duration::from_secs(600);

/// How often one message finds out whether a route works again.
const TRY_EVERY: Duration = Duration::from_secs(1);

/// Shortest and longest wait of the others, which grows with the outage.
const WAIT_MIN: Duration = Duration::from_secs(1);
const WAIT_MAX: Duration = Duration::from_secs(15);

/// They come back one after the other, this far apart at least, since each costs the database a write.
const SPACING: Duration = Duration::from_millis(10);

/// Longest wait when there are very many.
const SPACED_MAX: Duration = Duration::from_secs(300);

/// What may be done with a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// Send it.
    Open,
    /// Send it alone: the last of this route was refused, for this reason.
    Alone(Reason),
    /// Do not send it: one of this route has just been refused.
    Refused(Reason),
}

/// Shared by all lanes; outlives connections.
pub(super) struct Routes {
    state: Mutex<State>,
    /// How long a route that worked may be out of order before its events are refused.
    patience: Duration,
    random: RandomState,
    /// Spares the lock while all is well: practically always.
    troubled: AtomicBool,
}

#[derive(Default)]
struct State {
    worked: HashSet<u64>,
    worked_before: HashSet<u64>,
    out: HashMap<u64, Out>,
    refused: HashMap<u64, Refused>,
}

/// A route that worked and does not.
struct Out {
    shown: String,
    since: Instant,
    next_try: Instant,
    /// When the last one that was told to wait comes back.
    last_back: Instant,
    reason: Reason,
}

struct Refused {
    at: Instant,
    reason: Reason,
}

impl State {
    fn has_worked(&self, route: u64) -> bool {
        self.worked.contains(&route) || self.worked_before.contains(&route)
    }

    fn works(&mut self, route: u64) {
        if self.worked.contains(&route) {
            return;
        }
        if self.worked.len() >= WORKED {
            self.worked_before = std::mem::take(&mut self.worked);
        }
        self.worked.insert(route);
    }

    /// Where an outage of this route is kept: when there are very many, they share an entry for each exchange.
    fn place(&self, route: u64, exchange: u64) -> u64 {
        if self.out.contains_key(&route) || self.out.len() < TROUBLED {
            route
        } else {
            exchange
        }
    }
}

impl Out {
    /// When the next one that is told to wait shall come back.
    fn wait(&mut self, now: Instant) -> Duration {
        let wait = (now.duration_since(self.since) / 4).clamp(WAIT_MIN, WAIT_MAX);
        let back = (now + wait)
            .max(self.last_back + SPACING)
            .min(now + SPACED_MAX);
        self.last_back = back;
        back.duration_since(now)
    }
}

impl Routes {
    pub(super) fn new(patience: Duration) -> Self {
        Self {
            state: Mutex::default(),
            patience,
            random: RandomState::new(),
            troubled: AtomicBool::new(false),
        }
    }

    /// A record says that this route worked: a relay before us has waited for it.
    pub(super) fn remember(&self, message: &Message) {
        let route = self.route(message);
        self.lock().works(route);
    }

    /// The verdict on a message whose route is out of order, unless it is to find out whether that is over.
    pub(super) fn waits(&self, message: &Message) -> Option<Verdict> {
        if !self.troubled.load(Ordering::Acquire) {
            return None;
        }
        let route = self.route(message);
        let mut state = self.lock();
        let out = state.out.get_mut(&route)?;
        let now = Instant::now();
        if now >= out.next_try || now.duration_since(out.since) >= self.patience {
            out.next_try = now + TRY_EVERY;
            return None;
        }
        let (reason, after) = (out.reason.clone(), out.wait(now));
        Some(Verdict::Postponed { reason, after })
    }

    /// Learns from the verdicts of a run, and changes those that are an outage's fault.
    pub(super) fn learn(&self, batch: &[Message], indices: &[usize], verdicts: &mut [Verdict]) {
        let mut state = self.lock();
        let mut last: Option<&Message> = None;
        for (index, verdict) in indices.iter().zip(verdicts) {
            let message = &batch[*index];
            match verdict {
                Verdict::Confirmed => {
                    let same = |last: &Message| {
                        last.routing_key == message.routing_key
                            && last.destination == message.destination
                            && last.key == message.key
                    };
                    if last.is_some_and(same) {
                        continue;
                    }
                    last = Some(message);
                    self.worked(&mut state, message);
                }
                Verdict::Rejected(reason) if reason.code == ReasonCode::Unroutable => {
                    if let Some(postponed) = self.unroutable(&mut state, message, reason) {
                        *verdict = postponed;
                    }
                }
                _ => {}
            }
        }
    }

    fn worked(&self, state: &mut State, message: &Message) {
        let route = self.route(message);
        state.works(route);
        if !self.troubled.load(Ordering::Acquire) {
            return;
        }
        if let Some(out) = state.out.remove(&route) {
            let after = out.since.elapsed();
            tracing::info!(
                route = out.shown,
                ?after,
                "a queue takes the events of this route again"
            );
        }
        state.refused.remove(&self.exact(message));
        state.refused.remove(&self.exchange(message));
        self.note_trouble(state);
    }

    fn unroutable(&self, state: &mut State, message: &Message, reason: &Reason) -> Option<Verdict> {
        let route = self.route(message);
        if self.patience.is_zero() || !state.has_worked(route) {
            return None;
        }
        let place = state.place(route, self.exchange(message));
        let now = Instant::now();
        let out = state.out.entry(place).or_insert_with(|| Out {
            shown: shown(message),
            since: now,
            next_try: now + TRY_EVERY,
            last_back: now,
            reason: Reason::new(
                reason.code,
                format!(
                    "{}. A queue took this route before: if it is on a cluster node that is down, events wait for it. \
                     No attempt is counted for {:?} (OUTRIGGER_RABBITMQ_UNROUTABLE_PATIENCE)",
                    reason.detail, self.patience
                ),
            ),
        });
        if now.duration_since(out.since) >= self.patience {
            state.worked.remove(&route);
            state.worked_before.remove(&route);
            state.out.remove(&place);
            self.note_trouble(state);
            return None;
        }
        let (reason, after) = (out.reason.clone(), out.wait(now));
        self.note_trouble(state);
        Some(Verdict::Postponed { reason, after })
    }

    /// What the last refusals say about sending this message.
    pub(super) fn standing(&self, message: &Message) -> Standing {
        if !self.troubled.load(Ordering::Acquire) {
            return Standing::Open;
        }
        let ids = [self.exchange(message), self.exact(message)];
        let mut state = self.lock();
        let mut standing = Standing::Open;
        for id in ids {
            let Some(Refused { at, reason }) = state.refused.get(&id) else {
                continue;
            };
            let age = at.elapsed();
            if age < REFUSED_FOR {
                return Standing::Refused(reason.clone());
            } else if age < ALONE_FOR {
                standing = Standing::Alone(reason.clone());
            } else {
                state.refused.remove(&id);
                self.note_trouble(&state);
            }
        }
        standing
    }

    /// A message was refused, for its exchange as a whole or for its routing key.
    pub(super) fn refuse(&self, message: &Message, whole_exchange: bool, reason: &Reason) {
        let id = match whole_exchange {
            true => self.exchange(message),
            false => self.exact(message),
        };
        let mut state = self.lock();
        if state.refused.len() >= TROUBLED {
            state.refused.clear();
        }
        let (at, reason) = (Instant::now(), reason.clone());
        state.refused.insert(id, Refused { at, reason });
        self.note_trouble(&state);
    }

    /// What is out of order, for people.
    pub(super) fn trouble(&self) -> Option<String> {
        if !self.troubled.load(Ordering::Acquire) {
            return None;
        }
        let state = self.lock();
        let first = state.out.values().min_by_key(|out| out.since)?;
        let others = match state.out.len() {
            1 => "",
            _ => ", and others",
        };
        Some(format!(
            "no queue takes the events of {}{others} any more, so they wait; is a cluster node down, or a binding gone?",
            first.shown
        ))
    }

    fn note_trouble(&self, state: &State) {
        let any = !state.out.is_empty() || !state.refused.is_empty();
        self.troubled.store(any, Ordering::Release);
    }

    /// The route, the row's own key in it aside: `order.17.placed` and `order.18.placed` have the same bindings.
    fn route(&self, message: &Message) -> u64 {
        let key = message.key.as_deref().unwrap_or_default();
        let routing_key = &message.routing_key;
        if key.is_empty() || !routing_key.contains(key) {
            return self.hash(&(0u8, &message.destination, routing_key.as_str()));
        }
        let shape = routing_key.replace(key, "\0");
        self.hash(&(0u8, &message.destination, shape.as_str()))
    }

    fn exact(&self, message: &Message) -> u64 {
        self.hash(&(1u8, &message.destination, &message.routing_key))
    }

    fn exchange(&self, message: &Message) -> u64 {
        self.hash(&(2u8, &message.destination))
    }

    fn hash(&self, what: &impl Hash) -> u64 {
        self.random.hash_one(what)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn shown(message: &Message) -> String {
    format!(
        "exchange `{}` with routing key `{}`",
        message.destination, message.routing_key
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(routing_key: &str, key: Option<&str>) -> Message {
        Message {
            routing_key: routing_key.to_owned(),
            key: key.map(str::to_owned),
            ..crate::sink::stdout::tests::message(b"{}")
        }
    }

    fn returned() -> Verdict {
        Verdict::Rejected(Reason::new(ReasonCode::Unroutable, "returned"))
    }

    fn learned(routes: &Routes, message: &Message, verdict: Verdict) -> Verdict {
        let mut verdicts = [verdict];
        routes.learn(std::slice::from_ref(message), &[0], &mut verdicts);
        let [verdict] = verdicts;
        verdict
    }

    fn is_postponed(verdict: &Verdict) -> bool {
        matches!(verdict, Verdict::Postponed { .. })
    }

    #[test]
    fn only_a_route_that_worked_is_waited_for() {
        let routes = Routes::new(Duration::from_secs(60));
        let (good, never) = (message("a", None), message("b", None));
        assert_eq!(
            learned(&routes, &good, Verdict::Confirmed),
            Verdict::Confirmed
        );
        assert_eq!(learned(&routes, &never, returned()), returned());
        assert!(routes.trouble().is_none() && routes.waits(&good).is_none());
        assert!(is_postponed(&learned(&routes, &good, returned())));
        assert!(routes.trouble().is_some_and(|text| text.contains("`a`")));
        // Only one in a second finds out.
        assert!(
            routes
                .waits(&good)
                .is_some_and(|verdict| is_postponed(&verdict))
        );
        assert!(routes.waits(&never).is_none());
        learned(&routes, &good, Verdict::Confirmed);
        assert!(routes.trouble().is_none() && routes.waits(&good).is_none());
    }

    #[test]
    fn patience_ends_and_may_be_none() {
        let routes = Routes::new(Duration::ZERO);
        let good = message("a", None);
        learned(&routes, &good, Verdict::Confirmed);
        assert_eq!(learned(&routes, &good, returned()), returned());
        let routes = Routes::new(Duration::from_nanos(1));
        learned(&routes, &good, Verdict::Confirmed);
        // The first one starts the clock, which is over at once.
        let _ = learned(&routes, &good, returned());
        assert_eq!(learned(&routes, &good, returned()), returned());
        assert!(routes.trouble().is_none());
    }

    #[test]
    fn the_rows_own_key_makes_no_new_route_and_a_record_is_a_memory() {
        let routes = Routes::new(Duration::from_secs(60));
        learned(
            &routes,
            &message("order.17.placed", Some("17")),
            Verdict::Confirmed,
        );
        let other = message("order.18.placed", Some("18"));
        assert!(is_postponed(&learned(&routes, &other, returned())));
        let before = message("c", None);
        routes.remember(&before);
        assert!(is_postponed(&learned(&routes, &before, returned())));
    }

    #[test]
    fn a_refusal_is_believed_for_a_moment_and_its_neighbours_are_not() {
        let routes = Routes::new(Duration::ZERO);
        let (bad, good) = (message("bad", None), message("good", None));
        let reason = Reason::new(ReasonCode::Forbidden, "no");
        routes.refuse(&bad, false, &reason);
        assert_eq!(routes.standing(&bad), Standing::Refused(reason.clone()));
        assert_eq!(routes.standing(&good), Standing::Open);
        routes.refuse(&bad, true, &reason);
        assert_eq!(routes.standing(&good), Standing::Refused(reason));
        learned(&routes, &bad, Verdict::Confirmed);
        assert_eq!(routes.standing(&good), Standing::Open);
        assert!(!routes.troubled.load(Ordering::Acquire));
    }

    #[test]
    fn memory_is_bounded() {
        let routes = Routes::new(Duration::from_secs(60));
        for n in 0..2 * TROUBLED {
            let message = message(&n.to_string(), None);
            learned(&routes, &message, Verdict::Confirmed);
            assert!(is_postponed(&learned(&routes, &message, returned())), "{n}");
            routes.refuse(&message, false, &Reason::new(ReasonCode::Forbidden, "no"));
        }
        {
            let state = routes.lock();
            assert!(state.out.len() <= TROUBLED + 1 && state.refused.len() <= TROUBLED);
        }
        for n in 0..3 * WORKED as u64 {
            routes.lock().works(n);
        }
        let state = routes.lock();
        assert!(state.worked.len() + state.worked_before.len() <= 2 * WORKED);
    }
}
