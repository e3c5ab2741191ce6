//! NATS: a stream, and a bare publisher that awaits JetStream's acknowledgements.
//!
//! JetStream's interface is requests with JSON, so this does without the library's `jetstream` feature, as the sink does.

use async_nats::{Client, ConnectOptions, HeaderMap, HeaderName, ServerAddr, Subscriber};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{SOURCE, STRUCTURED, TYPE, per_confirm, side_by_side};
use crate::Result;
use crate::arrivals::{Arrivals, Receipts, id_of};
use crate::outbox::{TEXT, message_size};

/// The default of OUTRIGGER_ROUTE_DESTINATION.
const STREAM: &str = "events";
/// The default of OUTRIGGER_NATS_LANES.
const LANES: usize = 8;
const MESSAGE_ID: &str = "Nats-Msg-Id";

pub(crate) struct Nats {
    url: String,
    client: Client,
}

async fn connect(url: &str) -> Result<Client> {
    let address: ServerAddr = url.parse()?;
    let options = match (address.username(), address.password()) {
        (Some(user), Some(password)) => {
            ConnectOptions::with_user_and_password(user.to_owned(), password.to_owned())
        }
        _ => ConnectOptions::new(),
    };
    // As the sink does, which has checked them.
    Ok(options
        .skip_subject_validation(true)
        .connect(address)
        .await?)
}

impl Nats {
    pub(crate) async fn open(url: &str) -> Result<Self> {
        Ok(Self {
            url: url.to_owned(),
            client: connect(url).await?,
        })
    }

    pub(crate) async fn reopen(&mut self) -> Result<()> {
        self.client = connect(&self.url).await?;
        Ok(())
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn version(&self) -> String {
        self.client.server_info().version
    }

    async fn ask(&self, question: &str, body: Value) -> Result<Value> {
        let body = match body {
            Value::Null => String::new(),
            body => body.to_string(),
        };
        let subject = format!("$JS.API.{question}");
        let answer = self.client.request(subject, body.into()).await?;
        Ok(serde_json::from_slice(&answer.payload)?)
    }

    /// The same where an error is one.
    async fn ask_for(&self, question: &str, body: Value) -> Result<Value> {
        let answer = self.ask(question, body).await?;
        match answer["error"]["description"].as_str() {
            Some(error) => Err(format!("{question}: {error}").into()),
            None => Ok(answer),
        }
    }

    /// Deletes the stream, if there is one.
    pub(crate) async fn delete_stream(&self) -> Result<()> {
        let question = format!("STREAM.DELETE.{STREAM}");
        self.ask(&question, Value::Null).await?;
        Ok(())
    }

    /// A new, empty stream for all events, with the server's defaults but in files.
    pub(crate) async fn new_stream(&self) -> Result<()> {
        self.delete_stream().await?;
        let config = json!({
            "name": STREAM, "subjects": [TYPE], "storage": "file", "num_replicas": 1,
            "retention": "limits", "discard": "old",
        });
        self.ask_for(&format!("STREAM.CREATE.{STREAM}"), config)
            .await?;
        Ok(())
    }

    pub(crate) async fn count(&self) -> Result<i64> {
        let question = format!("STREAM.INFO.{STREAM}");
        let info = self.ask_for(&question, Value::Null).await?;
        let messages = info["state"]["messages"].as_i64();
        messages.ok_or_else(|| "the server does not count the stream's messages".into())
    }

    pub(crate) async fn body_size(&self) -> Result<usize> {
        let question = format!("STREAM.MSG.GET.{STREAM}");
        let answer = self.ask_for(&question, json!({"seq": 1})).await?;
        let body = answer["message"]["data"].as_str().unwrap_or_default();
        Ok(STANDARD.decode(body)?.len())
    }

    pub(crate) async fn publish_many(&self, messages: i64, size: usize) -> Result<f64> {
        self.new_stream().await?;
        // One connection for all, as the sink has.
        let client = connect(&self.url).await?;
        let mut lanes = Vec::new();
        for _ in 0..LANES {
            lanes.push(Lane::open(&client).await?);
        }
        let per_confirm = per_confirm(LANES, size);
        let body = Bytes::from(vec![b'x'; size]);
        side_by_side(lanes, messages, |mut lane, mut left| {
            let body = body.clone();
            async move {
                while left > 0 {
                    let batch = left.min(per_confirm);
                    left -= batch;
                    lane.publish((0..batch).map(|_| Uuid::now_v7()), &body)
                        .await?;
                }
                Ok(())
            }
        })
        .await
    }

    pub(crate) async fn lane(&self) -> Result<Lane> {
        Lane::open(&connect(&self.url).await?).await
    }

    pub(crate) async fn receive(&self) -> Result<Receipts> {
        let client = connect(&self.url).await?;
        let inbox = client.new_inbox();
        let mut messages = client.subscribe(inbox.clone()).await?;
        let consumer = json!({
            "stream_name": STREAM,
            "config": {
                "deliver_subject": inbox, "deliver_policy": "all", "ack_policy": "none", "replay_policy": "instant",
            },
        });
        // Asked on that very connection, so the server has the subscription by then.
        let question = format!("$JS.API.CONSUMER.CREATE.{STREAM}");
        let answer = client
            .request(question, consumer.to_string().into())
            .await?;
        let answer: Value = serde_json::from_slice(&answer.payload)?;
        if let Some(error) = answer["error"]["description"].as_str() {
            return Err(format!("cannot create a consumer: {error}").into());
        }
        let arrivals = Arrivals::default();
        let noted = arrivals.clone();
        let task = tokio::spawn(async move {
            while let Some(message) = messages.next().await {
                let headers = message.headers.as_ref();
                let identity = headers.and_then(|headers| headers.get(MESSAGE_ID));
                if let Some(id) = identity.and_then(|identity| id_of(identity.as_str())) {
                    noted.note(id);
                }
            }
        });
        Ok(Receipts::new(arrivals, async move {
            task.abort();
            Ok(())
        }))
    }
}

/// An inbox, and one batch at a time.
pub(crate) struct Lane {
    client: Client,
    inbox: String,
    answers: Subscriber,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Acknowledgement {
    stream: String,
    seq: u64,
    duplicate: bool,
}

impl Lane {
    async fn open(client: &Client) -> Result<Self> {
        let inbox = client.new_inbox();
        let answers = client.subscribe(format!("{inbox}.*")).await?;
        // Subscribed for certain before anything is published.
        client.flush().await?;
        Ok(Self {
            client: client.clone(),
            inbox,
            answers,
        })
    }

    /// Publishes one message for each id and awaits all acknowledgements.
    async fn publish(&mut self, ids: impl Iterator<Item = Uuid>, body: &Bytes) -> Result<()> {
        let mut sent = 0;
        for id in ids {
            let mut headers = HeaderMap::new();
            headers.insert(HeaderName::from_static("Nats-Expected-Stream"), STREAM);
            let identity = format!("{SOURCE} {id}");
            headers.insert(HeaderName::from_static(MESSAGE_ID), identity);
            headers.insert(HeaderName::from_static("Content-Type"), STRUCTURED);
            let reply = format!("{}.{sent}", self.inbox);
            let sending =
                self.client
                    .publish_with_reply_and_headers(TYPE, reply, headers, body.clone());
            sending.await?;
            sent += 1;
        }
        for _ in 0..sent {
            let answer = self.answers.next().await;
            let answer = answer.ok_or("the connection to NATS ended")?;
            let read = serde_json::from_slice::<Acknowledgement>(&answer.payload);
            let stored = read
                .as_ref()
                .is_ok_and(|read| read.stream == STREAM && read.seq > 0 && !read.duplicate);
            if !stored {
                let text = String::from_utf8_lossy(&answer.payload);
                return Err(format!("a message was not stored: {text}").into());
            }
        }
        Ok(())
    }

    pub(crate) async fn publish_one(&mut self, id: Uuid) -> Result<()> {
        let body = Bytes::from(vec![b'x'; message_size(TEXT)]);
        self.publish(std::iter::once(id), &body).await
    }
}
