//! Events from a RabbitMQ queue. Declares the queue and everything it needs, so that no event goes nowhere.

use cloudevents::Event;
use futures_util::StreamExt;

use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicQosOptions, ExchangeDeclareOptions,
    QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{Acker, Channel, Connection, ConnectionProperties, Consumer, ExchangeKind};

use crate::{Args, Result, structured};

pub(crate) struct Queue {
    _connection: Connection,
    channel: Channel,
    name: String,
    deliveries: Consumer,
    current: Option<Acker>,
    unacknowledged: Option<Acker>,
}

impl Queue {
    pub(crate) async fn open(url: &str, args: &Args) -> Result<Self> {
        let connection = Connection::connect(url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        // Enough to stay busy between two acknowledgements, and a limit all the same.
        channel
            .basic_qos(10_000, BasicQosOptions::default())
            .await?;
        declare(&channel, args).await?;
        let deliveries = channel
            .basic_consume(
                args.queue.as_str().into(),
                "bank_consumer".into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            )
            .await?;
        Ok(Self {
            _connection: connection,
            channel,
            name: args.queue.clone(),
            deliveries,
            current: None,
            unacknowledged: None,
        })
    }

    pub(crate) async fn next(&mut self) -> Result<Event> {
        let delivery = self.deliveries.next().await;
        let delivery: Delivery = delivery.ok_or("the broker cancelled the consumer")??;
        let content_type = delivery.properties.content_type().as_ref();
        let event = structured(content_type.map(|text| text.as_str()), &delivery.data)?;
        self.current = Some(delivery.acker);
        Ok(event)
    }

    pub(crate) fn taken(&mut self) {
        self.unacknowledged = self.current.take().or(self.unacknowledged.take());
    }

    /// One acknowledgement covers everything before it.
    pub(crate) async fn acknowledge(&mut self) -> Result<()> {
        if let Some(acker) = self.unacknowledged.take() {
            acker.ack(BasicAckOptions { multiple: true }).await?;
        }
        Ok(())
    }

    /// Messages waiting in the queue that were not handed to this consumer yet.
    pub(crate) async fn waiting(&mut self) -> Result<u64> {
        let only_look = QueueDeclareOptions {
            passive: true,
            ..Default::default()
        };
        let name = self.name.as_str().into();
        let state = self
            .channel
            .queue_declare(name, only_look, FieldTable::default())
            .await?;
        Ok(state.message_count().into())
    }
}

/// Declares the queue and everything it needs, so that no event goes nowhere.
async fn declare(channel: &Channel, args: &Args) -> Result<()> {
    let durable = ExchangeDeclareOptions {
        durable: true,
        ..Default::default()
    };
    channel
        .exchange_declare(
            args.exchange.as_str().into(),
            ExchangeKind::Topic,
            durable,
            FieldTable::default(),
        )
        .await?;
    let durable = QueueDeclareOptions {
        durable: true,
        ..Default::default()
    };
    channel
        .queue_declare(args.queue.as_str().into(), durable, FieldTable::default())
        .await?;
    channel
        .queue_bind(
            args.queue.as_str().into(),
            args.exchange.as_str().into(),
            args.binding.as_str().into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        )
        .await?;
    Ok(())
}
