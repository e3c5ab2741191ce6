//! The channels of one connection: how many it may have, and who uses them.
//!
//! RabbitMQ limits channels in several places: per connection (`channel_max`), per user (`max-channels`, all connections
//! of the user together), per node. Whoever opens one too many loses the *connection*, with what other lanes have in
//! flight. So all channels are opened when the connection is, while nothing is under way; where that shows a limit, the
//! next connection keeps to it, and the lanes share what there is: each has a channel to itself for as long as a run
//! takes.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use lapin::Channel;
use lapin::types::ShortString;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use super::link::{Link, STEP_TIMEOUT};

/// A limit that was met with is respected for this long; then the next connection tries again.
const LIMITED_FOR: Duration = Duration::from_secs(600);

/// What was learned about limits, by whichever connection. Outlives connections.
#[derive(Default)]
pub(super) struct ChannelLimit(Mutex<Option<Learned>>);

#[derive(Clone)]
struct Learned {
    channels: usize,
    words: String,
    at: Instant,
}

impl ChannelLimit {
    /// No more than `opened` channels could be opened, by these words.
    pub(super) fn learn(&self, opened: usize, words: &str) {
        *self.lock() = Some(Learned {
            channels: opened.max(1),
            words: words.to_owned(),
            at: Instant::now(),
        });
    }

    fn get(&self) -> Option<Learned> {
        self.lock()
            .clone()
            .filter(|learned| learned.at.elapsed() < LIMITED_FOR)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Learned>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See the module.
pub(super) struct Channels {
    /// As many as there may be publishing channels; closed until the connection has been set up.
    permits: Semaphore,
    idle: Mutex<Vec<Channel>>,
    /// The channel for questions; none if there is only one channel in all, or none is open.
    question: tokio::sync::Mutex<Option<Channel>>,
    plan: OnceLock<Plan>,
}

/// How many channels a connection gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    /// Channels to publish on.
    pub(super) publishing: usize,
    /// Whether there is one more for questions.
    pub(super) one_to_ask: bool,
    /// Why there are fewer than the settings ask for.
    pub(super) limited: Option<String>,
}

impl Plan {
    /// `wanted` channels to publish on, as far as the connection (`channel_max`) and what was learned allow.
    pub(super) fn make(wanted: usize, channel_max: u16, limit: &ChannelLimit) -> Self {
        let (mut room, mut why) = (wanted + 1, None);
        if usize::from(channel_max) < room {
            room = usize::from(channel_max).max(1);
            why = Some(format!(
                "the broker allows {channel_max} channels on a connection; raise its `channel_max`, or lower \
                 OUTRIGGER_RABBITMQ_CHANNELS"
            ));
        }
        if let Some(learned) = limit.get()
            && learned.channels < room
        {
            room = learned.channels;
            why = Some(learned.words);
        }
        let publishing = room.saturating_sub(1).max(1);
        Self {
            publishing,
            one_to_ask: room > 1,
            limited: why.map(|why| {
                format!("publishing on {publishing} of OUTRIGGER_RABBITMQ_CHANNELS={wanted} channels: {why}")
            }),
        }
    }
}

/// A channel that one lane has to itself, or room for one.
pub(super) struct Lent<'a> {
    pool: &'a Channels,
    _permit: SemaphorePermit<'a>,
}

impl Lent<'_> {
    /// The channel is fine, and somebody else's turn. Not given back, it is taken for lost.
    pub(super) fn give_back(self, channel: Channel) {
        self.pool.idle().push(channel);
    }
}

impl Channels {
    pub(super) fn new() -> Self {
        Self {
            permits: Semaphore::new(0),
            idle: Mutex::new(Vec::new()),
            question: tokio::sync::Mutex::new(None),
            plan: OnceLock::new(),
        }
    }

    pub(super) fn plan(&self) -> Option<&Plan> {
        self.plan.get()
    }

    /// Opens all channels that the plan names, then lets lanes have them. An error says how many could be opened.
    pub(super) async fn open(&self, link: &Link, plan: Plan) -> Result<(), (usize, String)> {
        let publishing = join_all((0..plan.publishing).map(|_| link.open_confirm_channel()));
        let asking = async {
            match plan.one_to_ask {
                true => link.open_channel().await.map(Some),
                false => Ok(None),
            }
        };
        let (opened, asked) = tokio::join!(publishing, asking);
        let (mut channels, mut problem) = (Vec::with_capacity(plan.publishing), None);
        for channel in opened {
            match channel {
                Ok(channel) => channels.push(channel),
                Err(error) => problem = Some(error),
            }
        }
        match asked {
            Ok(channel) => *self.question.lock().await = channel,
            Err(error) => problem = Some(error),
        }
        if let Some(problem) = problem {
            let asking = usize::from(self.question.lock().await.is_some());
            return Err((channels.len() + asking, problem));
        }
        *self.idle() = channels;
        self.permits.add_permits(plan.publishing);
        // Set once: a connection is set up once.
        let _ = self.plan.set(plan);
        Ok(())
    }

    /// Waits for a channel, opening one if one is missing.
    pub(super) async fn take(&self, link: &Link) -> Result<(Lent<'_>, Channel), String> {
        let lent = self.room().await?;
        let channel = loop {
            let idle = self.idle().pop();
            match idle {
                Some(channel) if channel.status().connected() => break channel,
                Some(_) => {}
                None => break link.open_confirm_channel().await?,
            }
        };
        Ok((lent, channel))
    }

    /// Waits until nobody publishes.
    pub(super) async fn drained(&self) {
        let all = self.plan().map_or(0, |plan| plan.publishing);
        let all = u32::try_from(all).unwrap_or(u32::MAX);
        let _ = self.permits.acquire_many(all).await;
    }

    async fn room(&self) -> Result<Lent<'_>, String> {
        let permit = self.permits.acquire().await;
        let permit = permit.map_err(|_| "no channels any more".to_owned())?;
        Ok(Lent {
            pool: self,
            _permit: permit,
        })
    }

    /// Asks on the channel for questions, one question at a time. Where there is only one channel in all, it is
    /// borrowed from those that publish. `ask` gives the channel back if the broker has left it open.
    pub(super) async fn ask<T>(
        &self,
        link: &Link,
        ask: impl AsyncFnOnce(Channel) -> Result<(T, Option<Channel>), String>,
    ) -> Result<T, String> {
        let mut kept = self.question.lock().await;
        let alone = self.plan().is_some_and(|plan| !plan.one_to_ask);
        let _room = match alone {
            true => Some(self.room().await?),
            false => None,
        };
        if alone {
            let idle = self.idle().pop();
            if let Some(channel) = idle {
                close_politely(&channel).await;
            }
        }
        let channel = match kept.take().filter(|channel| channel.status().connected()) {
            Some(channel) => channel,
            None => link.open_channel().await?,
        };
        let (answer, left) = ask(channel).await?;
        match left {
            Some(channel) if alone => close_politely(&channel).await,
            left => *kept = left,
        }
        Ok(answer)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Channel>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A channel that does not close in time is closed with the connection.
async fn close_politely(channel: &Channel) {
    let _ = timeout(STEP_TIMEOUT, channel.close(200, ShortString::from("OK"))).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_fits_every_limit() {
        let none = ChannelLimit::default();
        for (channel_max, publishing, one_to_ask, limited) in [
            (u16::MAX, 8, true, false),
            (9, 8, true, false),
            (8, 7, true, true),
            (2, 1, true, true),
            (1, 1, false, true),
        ] {
            let plan = Plan::make(8, channel_max, &none);
            let made = (plan.publishing, plan.one_to_ask, plan.limited.is_some());
            assert_eq!(made, (publishing, one_to_ask, limited), "{channel_max}");
        }
        let some = ChannelLimit::default();
        some.learn(3, "limit of (3)");
        let plan = Plan::make(8, 6, &some);
        assert_eq!((plan.publishing, plan.one_to_ask), (2, true));
        assert!(plan.limited.is_some_and(|why| why.contains("limit of (3)")));
        some.learn(0, "limit of (0)");
        assert_eq!(Plan::make(8, 6, &some).publishing, 1);
    }
}
