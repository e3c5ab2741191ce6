//! Events from a NATS stream, by a durable consumer. Creates both, so that no event goes nowhere.
//!
//! The client library can do this with its `jetstream` feature; the relay does without it, and so does
//! this example: JetStream's interface is requests with JSON.

use async_nats::{Client, ConnectOptions, Message, ServerAddr, Subscriber};
use cloudevents::Event;
use futures_util::StreamExt;
use serde_json::{Value, json};

use crate::{Args, Result, structured};

pub(crate) struct Consumer {
    client: Client,
    stream: String,
    name: String,
    messages: Subscriber,
    current: Option<Message>,
    unacknowledged: Option<Message>,
}

impl Consumer {
    pub(crate) async fn open(url: &str, args: &Args) -> Result<Self> {
        let address: ServerAddr = url.parse()?;
        let options = match (address.username(), address.password()) {
            (Some(user), Some(password)) => {
                ConnectOptions::with_user_and_password(user.to_owned(), password.to_owned())
            }
            _ => ConnectOptions::new(),
        };
        let client = options.connect(address).await?;
        let (stream, name) = (args.exchange.clone(), args.queue.clone());
        let config = json!({
            "name": stream, "subjects": [args.binding.replace('#', ">")], "storage": "file", "num_replicas": 1,
            "retention": "limits", "discard": "old",
        });
        ask(&client, &format!("STREAM.CREATE.{stream}"), &config).await?;
        let inbox = client.new_inbox();
        let messages = client.subscribe(inbox.clone()).await?;
        // One acknowledgement covers everything before it.
        let config = json!({
            "stream_name": stream,
            "config": {
                "durable_name": name, "deliver_subject": inbox, "deliver_policy": "all", "ack_policy": "all",
                "max_ack_pending": 10_000, "replay_policy": "instant",
            },
        });
        let create = format!("CONSUMER.DURABLE.CREATE.{stream}.{name}");
        ask(&client, &create, &config).await?;
        Ok(Self {
            client,
            stream,
            name,
            messages,
            current: None,
            unacknowledged: None,
        })
    }

    pub(crate) async fn next(&mut self) -> Result<Event> {
        let message = self.messages.next().await;
        let message = message.ok_or("the connection to NATS ended")?;
        let headers = message.headers.as_ref();
        let content_type = headers.and_then(|headers| headers.get("Content-Type"));
        let event = structured(content_type.map(|value| value.as_str()), &message.payload)?;
        self.current = Some(message);
        Ok(event)
    }

    pub(crate) fn taken(&mut self) {
        self.unacknowledged = self.current.take().or(self.unacknowledged.take());
    }

    pub(crate) async fn acknowledge(&mut self) -> Result<()> {
        if let Some(Message {
            reply: Some(reply), ..
        }) = self.unacknowledged.take()
        {
            self.client.publish(reply, "+ACK".into()).await?;
        }
        Ok(())
    }

    /// Messages of the stream that were not handed to this consumer yet.
    pub(crate) async fn waiting(&mut self) -> Result<u64> {
        let question = format!("CONSUMER.INFO.{}.{}", self.stream, self.name);
        let info = ask(&self.client, &question, &Value::Null).await?;
        Ok(info["num_pending"].as_u64().unwrap_or(0))
    }
}

async fn ask(client: &Client, question: &str, body: &Value) -> Result<Value> {
    let body = match body {
        Value::Null => String::new(),
        body => body.to_string(),
    };
    let answer = client
        .request(format!("$JS.API.{question}"), body.into())
        .await?;
    let answer: Value = serde_json::from_slice(&answer.payload)?;
    match answer["error"]["description"].as_str() {
        Some(error) => Err(format!("{question}: {error}").into()),
        None => Ok(answer),
    }
}
