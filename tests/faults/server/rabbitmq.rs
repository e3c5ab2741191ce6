//! RabbitMQ: a topic exchange with a queue of the same name that gets everything.

use lapin::ExchangeKind;

use super::Servers;
use crate::support::stage::Admin;
use crate::support::{Arrival, Consumer, Delivery};

/// One scenario's exchange.
pub(crate) struct Exchange {
    pub(crate) name: String,
    pub(crate) admin: Admin,
    /// Started in the end, unless the scenario needs it earlier.
    pub(crate) consumer: Option<Consumer>,
    url: String,
    /// What was read from another queue before.
    before: Vec<Delivery>,
}

impl Exchange {
    pub(crate) async fn open(servers: &Servers, name: &str) -> Self {
        let url = servers.rabbitmq().url();
        let admin = Admin::connect(&url).await;
        admin.exchange(name, ExchangeKind::Topic).await;
        admin.queue(name, &[]).await;
        admin.bind(name, name, "#", &[]).await;
        Self {
            name: name.to_owned(),
            admin,
            consumer: None,
            url,
            before: Vec::new(),
        }
    }

    /// Does without a route to its queue.
    pub(crate) async fn unbind(&self) {
        self.admin.unbind(&self.name, &self.name, "#").await;
    }

    /// Ends that.
    pub(crate) async fn bind(&self) {
        self.admin.bind(&self.name, &self.name, "#", &[]).await;
    }

    /// Only the writers' own events find the queue.
    pub(crate) async fn narrow(&self) {
        self.unbind().await;
        for routing_key in ["changed", "backlog"] {
            let (admin, name) = (&self.admin, &self.name);
            admin.bind(name, name, routing_key, &[]).await;
        }
    }

    /// Reads all that is in the queue, and from now on another one.
    pub(crate) async fn read_out(&mut self) {
        self.before = self.consumer_of(&self.name).await.finish().await;
    }

    pub(crate) async fn consumer_of(&self, queue: &str) -> Consumer {
        Consumer::start(&self.url, queue).await
    }

    /// A new connection to a broker that came back.
    pub(crate) async fn reconnect(&mut self) {
        self.admin = Admin::connect(&self.url).await;
    }

    pub(crate) async fn arrivals(&mut self) -> Vec<Arrival> {
        let consumer = match self.consumer.take() {
            Some(consumer) => consumer,
            None => self.consumer_of(&self.name).await,
        };
        let after = consumer.finish().await;
        let all = self.before.iter().chain(&after);
        all.map(Delivery::arrival).collect()
    }
}
