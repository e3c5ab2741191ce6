//! The trigger, the promise to poll, and the listener.

use std::time::Duration;

use outrigger::store::postgres::{ListenState, Listener};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::fixture::{Fixture, server};
use crate::postgres::Postgres;

const SOON: Duration = Duration::from_secs(20);

pub struct Listening {
    pub listener: Listener,
    wakes: watch::Receiver<u64>,
}

/// A listener that is connected, with its first, made-up wake-up already consumed.
pub async fn listening(f: &Fixture) -> Listening {
    let listener = f.store.listen();
    let mut listening = Listening {
        wakes: listener.wakes(),
        listener,
    };
    woken(&mut listening).await;
    listening
}

pub async fn woken(listening: &mut Listening) {
    timeout(SOON, listening.wakes.changed())
        .await
        .expect("a wake-up")
        .unwrap();
}

impl Listening {
    fn silent(&self) -> bool {
        !self.wakes.has_changed().unwrap()
    }
}

/// A later notification on the same connection proves that no earlier one was on its way.
async fn fence(f: &Fixture, listening: &mut Listening) -> bool {
    let before = *listening.wakes.borrow_and_update();
    f.sql("select pg_notify(outrigger.channel('public.outbox'), 'fence')")
        .await;
    woken(listening).await;
    *listening.wakes.borrow_and_update() == before + 1
}

#[tokio::test]
async fn writers_notify_only_while_nobody_polls() {
    let f = Fixture::new().await;
    let mut listening = listening(&f).await;
    f.insert(3, 1).await;
    woken(&mut listening).await;
    // Lapsed before: other quiet replicas hear of the promise.
    f.store.extend_awake(Duration::from_secs(60)).await.unwrap();
    woken(&mut listening).await;
    let replica = f.store.register("a", SOON, 4).await.unwrap().replica;
    let awake = f.store.tick(replica, false).await.unwrap().awake_for;
    assert!(
        awake > Duration::from_secs(55) && awake <= Duration::from_secs(60),
        "{awake:?}"
    );
    f.insert(3, 1).await;
    assert!(fence(&f, &mut listening).await, "nobody needs to be told");
    // More than half is left: nothing is written.
    let version = "select last_value from outrigger.\"awake:public.outbox\"";
    let before = f.count(version).await;
    f.store.extend_awake(Duration::from_secs(60)).await.unwrap();
    assert_eq!(f.count(version).await, before);
    f.store
        .extend_awake(Duration::from_secs(600))
        .await
        .unwrap();
    assert_ne!(f.count(version).await, before);
    assert!(fence(&f, &mut listening).await, "extending is silent");
    // The promise is over: writers notify again. (A moment ago, since the milliseconds are rounded.)
    f.sql("select setval('outrigger.\"awake:public.outbox\"', (extract(epoch from now()) * 1000)::int8 - 10)")
        .await;
    f.insert(1, 1).await;
    woken(&mut listening).await;
    assert!(listening.silent());
}

#[tokio::test]
async fn the_listener_comes_back_and_signals_once() {
    let server = Postgres::start().await;
    let f = Fixture::on(&server).await;
    let mut listening = listening(&f).await;
    let mut state = listening.listener.state();
    assert_eq!(*state.borrow_and_update(), ListenState::Listening);
    server.restart();
    timeout(
        SOON,
        state.wait_for(|s| matches!(s, ListenState::Down(why) if !why.is_empty())),
    )
    .await
    .unwrap()
    .unwrap();
    timeout(SOON, state.wait_for(|s| *s == ListenState::Listening))
        .await
        .unwrap()
        .unwrap();
    woken(&mut listening).await;
    // The pool recovers as well.
    let mut result = f.store.read(&crate::fixture::from_start()).await;
    if result.is_err() {
        result = f.store.read(&crate::fixture::from_start()).await;
    }
    result.unwrap();
}

#[tokio::test]
async fn a_flood_of_notifications_collapses() {
    let f = Fixture::new().await;
    let mut listening = listening(&f).await;
    let client = server().await.client(&f.name).await;
    for _ in 0..500 {
        client
            .batch_execute("insert into outbox (type) values ('t')")
            .await
            .unwrap();
    }
    woken(&mut listening).await;
    f.sql("select pg_notify(outrigger.channel('public.outbox'), '')")
        .await;
    assert_eq!(*listening.listener.state().borrow(), ListenState::Listening);
}
