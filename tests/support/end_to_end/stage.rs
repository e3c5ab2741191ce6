//! One test's own database, exchange and queue on shared servers.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use lapin::options::{
    ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ConnectionProperties, ExchangeKind};
use outrigger::store::postgres::OutboxSettings;

use super::checker::Report;
use super::consumer::{Consumer, Delivery};
use super::outbox::Outbox;
use super::postgres::Postgres;
use super::rabbitmq::RabbitMq;
use super::relay::Settings;

/// A database server and a broker.
pub struct Servers {
    pub postgres: Arc<Postgres>,
    pub rabbitmq: RabbitMq,
}

impl Servers {
    pub async fn start() -> Arc<Self> {
        let (postgres, rabbitmq) = tokio::join!(Postgres::start(), RabbitMq::start());
        Arc::new(Self {
            postgres: postgres.into(),
            rabbitmq,
        })
    }
}

/// A channel that sets up and looks at the broker.
pub struct Admin {
    channel: Channel,
    _connection: Connection,
}

impl Admin {
    pub async fn connect(url: &str) -> Self {
        let connection = Connection::connect(url, ConnectionProperties::default())
            .await
            .unwrap();
        let channel = connection.create_channel().await.unwrap();
        Self {
            channel,
            _connection: connection,
        }
    }

    pub async fn exchange(&self, name: &str, kind: ExchangeKind) {
        let options = ExchangeDeclareOptions {
            durable: true,
            ..ExchangeDeclareOptions::default()
        };
        let table = FieldTable::default();
        self.channel
            .exchange_declare(name.into(), kind, options, table)
            .await
            .unwrap();
    }

    pub async fn delete_exchange(&self, name: &str) {
        self.channel
            .exchange_delete(name.into(), ExchangeDeleteOptions::default())
            .await
            .unwrap();
    }

    pub async fn queue(&self, name: &str, arguments: &[(&str, AMQPValue)]) {
        let options = QueueDeclareOptions {
            durable: true,
            ..QueueDeclareOptions::default()
        };
        self.channel
            .queue_declare(name.into(), options, table(arguments))
            .await
            .unwrap();
    }

    pub async fn bind(
        &self,
        queue: &str,
        exchange: &str,
        key: &str,
        arguments: &[(&str, AMQPValue)],
    ) {
        self.channel
            .queue_bind(
                queue.into(),
                exchange.into(),
                key.into(),
                QueueBindOptions::default(),
                table(arguments),
            )
            .await
            .unwrap();
    }

    pub async fn unbind(&self, queue: &str, exchange: &str, key: &str) {
        let table = FieldTable::default();
        self.channel
            .queue_unbind(queue.into(), exchange.into(), key.into(), table)
            .await
            .unwrap();
    }
}

fn table(arguments: &[(&str, AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        table.insert((*name).into(), value.clone());
    }
    table
}

/// What a test plays on. Exchange and queue share the name.
pub struct Stage {
    pub servers: Arc<Servers>,
    pub outbox: Outbox,
    pub name: String,
    pub admin: Admin,
}

impl Deref for Stage {
    type Target = Outbox;

    fn deref(&self) -> &Outbox {
        &self.outbox
    }
}

impl DerefMut for Stage {
    fn deref_mut(&mut self) -> &mut Outbox {
        &mut self.outbox
    }
}

impl Stage {
    /// A native outbox; a topic exchange; a queue that gets everything.
    pub async fn new(servers: Arc<Servers>) -> Self {
        let stage = Self::bare(servers, "", &OutboxSettings::default()).await;
        stage.route("#").await;
        stage
    }

    /// Runs `ddl`, then migrates. The exchange has no queue yet.
    pub async fn bare(servers: Arc<Servers>, ddl: &str, outbox: &OutboxSettings) -> Self {
        let name = unique_name();
        let outbox = Outbox::new(servers.postgres.clone(), ddl, outbox).await;
        let admin = Admin::connect(&servers.rabbitmq.url()).await;
        admin.exchange(&name, ExchangeKind::Topic).await;
        Self {
            servers,
            outbox,
            name,
            admin,
        }
    }

    /// A queue for `key`, named like the exchange.
    pub async fn route(&self, key: &str) {
        self.admin.queue(&self.name, &[]).await;
        self.admin.bind(&self.name, &self.name, key, &[]).await;
    }

    /// The least that a relay needs to serve this stage.
    pub fn settings(&self) -> Settings {
        self.source()
            .set("RABBITMQ_URL", self.servers.rabbitmq.url())
            .set("ROUTE_DESTINATION", &self.name)
    }

    pub async fn consumer(&self) -> Consumer {
        self.consumer_of(&self.name).await
    }

    pub async fn consumer_of(&self, queue: &str) -> Consumer {
        Consumer::start(&self.servers.rabbitmq.url(), queue).await
    }

    /// Compares ledger, deliveries and table.
    pub async fn check(&self, deliveries: &[Delivery]) -> (usize, Report) {
        let arrivals: Vec<_> = deliveries.iter().map(Delivery::arrival).collect();
        self.compare(&arrivals).await
    }
}

/// A name for exchanges and the like that nobody else in this process uses.
pub fn unique_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("stage-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}
