//! Events from an SQS queue that a rule of an event bus leads to, at a stand-in for AWS such as moto or LocalStack: requests
//! are not signed. Against AWS itself, read the queue with its SDK; the rest stays the same. Creates bus, queue and rule, so
//! that no event goes nowhere.

use std::time::Duration;

use bytes::Bytes;
use cloudevents::Event;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use url::Url;

use crate::{Args, Result};

/// What one request for messages brings at most.
const MESSAGES_MAX: usize = 10;

pub(crate) struct Consumer {
    aws: Aws,
    queue: String,
    received: mpsc::Receiver<Result<Received>>,
    current: Option<String>,
    unacknowledged: Vec<String>,
}

struct Received {
    event: Event,
    receipt: String,
}

impl Consumer {
    pub(crate) async fn open(endpoint: &str, args: &Args) -> Result<Self> {
        let aws = Aws::new(endpoint)?;
        let (bus, name) = (&args.exchange, &args.queue);
        let create = json!({"QueueName": name});
        let queue = aws.ask("AmazonSQS.CreateQueue", &create).await?;
        let queue = text(&queue, "QueueUrl")?;
        let question =
            json!({"QueueUrl": queue, "AttributeNames": ["QueueArn", "VisibilityTimeout"]});
        let attributes = aws.ask("AmazonSQS.GetQueueAttributes", &question).await?;
        let arn = text(&attributes["Attributes"], "QueueArn")?;
        let create = json!({"Name": bus});
        aws.ask("AWSEvents.CreateEventBus", &create).await?;
        let pattern = json!({"detail-type": [{"prefix": args.binding.trim_end_matches('#')}]});
        let rule = json!({"Name": name, "EventBusName": bus, "EventPattern": pattern.to_string()});
        aws.ask("AWSEvents.PutRule", &rule).await?;
        let targets = json!([{"Id": "queue", "Arn": arn}]);
        let targets = json!({"Rule": name, "EventBusName": bus, "Targets": targets});
        aws.ask("AWSEvents.PutTargets", &targets).await?;

        let (receive, received) = mpsc::channel(MESSAGES_MAX);
        tokio::spawn(poll(aws.clone(), queue.clone(), receive));
        Ok(Self {
            aws,
            queue,
            received,
            current: None,
            unacknowledged: Vec::new(),
        })
    }

    pub(crate) async fn next(&mut self) -> Result<Event> {
        let received = self.received.recv().await;
        let Received { event, receipt } = received.ok_or("the queue is not read any more")??;
        self.current = Some(receipt);
        Ok(event)
    }

    pub(crate) fn taken(&mut self) {
        self.unacknowledged.extend(self.current.take());
    }

    pub(crate) async fn acknowledge(&mut self) -> Result<()> {
        for receipts in std::mem::take(&mut self.unacknowledged).chunks(MESSAGES_MAX) {
            let entries = receipts.iter().enumerate();
            let entries: Vec<Value> = entries
                .map(|(id, receipt)| json!({"Id": id.to_string(), "ReceiptHandle": receipt}))
                .collect();
            let delete = json!({"QueueUrl": self.queue, "Entries": entries});
            self.aws
                .ask("AmazonSQS.DeleteMessageBatch", &delete)
                .await?;
        }
        Ok(())
    }

    /// Messages of the queue, those included that were received and not acknowledged.
    pub(crate) async fn waiting(&mut self) -> Result<u64> {
        let numbers = [
            "ApproximateNumberOfMessages",
            "ApproximateNumberOfMessagesNotVisible",
        ];
        let question = json!({"QueueUrl": self.queue, "AttributeNames": numbers});
        let answer = self.aws.ask("AmazonSQS.GetQueueAttributes", &question);
        let answer = answer.await?;
        let mut waiting = 0;
        for name in numbers {
            waiting += text(&answer["Attributes"], name)?.parse::<u64>()?;
        }
        Ok(waiting)
    }
}

/// Reads the queue until nobody wants more.
async fn poll(aws: Aws, queue: String, receive: mpsc::Sender<Result<Received>>) {
    let question =
        json!({"QueueUrl": queue, "MaxNumberOfMessages": MESSAGES_MAX, "WaitTimeSeconds": 1});
    loop {
        let messages = match aws.ask("AmazonSQS.ReceiveMessage", &question).await {
            Ok(mut answer) => answer["Messages"].take(),
            Err(error) => {
                // Nobody is there any more to be told.
                let _ = receive.send(Err(error)).await;
                return;
            }
        };
        let messages = messages.as_array().map(Vec::as_slice).unwrap_or_default();
        if messages.is_empty() {
            // A stand-in may answer at once although it was asked to wait.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for message in messages {
            if receive.send(received(message)).await.is_err() {
                return;
            }
        }
    }
}

/// The event, out of the envelope that EventBridge puts it into.
fn received(message: &Value) -> Result<Received> {
    let mut envelope: Value = serde_json::from_str(&text(message, "Body")?)?;
    Ok(Received {
        event: serde_json::from_value(envelope["detail"].take())?,
        receipt: text(message, "ReceiptHandle")?,
    })
}

fn text(value: &Value, name: &str) -> Result<String> {
    let text = value[name].as_str();
    Ok(text
        .ok_or_else(|| format!("no {name} in the answer"))?
        .to_owned())
}

/// AWS's JSON protocol, without signatures.
#[derive(Clone)]
struct Aws {
    address: String,
}

impl Aws {
    fn new(endpoint: &str) -> Result<Self> {
        let url = Url::parse(endpoint)?;
        let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
            return Err(format!("no host in `{endpoint}`").into());
        };
        Ok(Self {
            address: format!("{host}:{port}"),
        })
    }

    async fn ask(&self, target: &str, body: &Value) -> Result<Value> {
        let service = match target.starts_with("AmazonSQS") {
            true => "sqs",
            false => "events",
        };
        let credential = format!("demo/20260101/us-east-1/{service}/aws4_request");
        let stream = TcpStream::connect(&self.address).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let request = Request::post("/")
            .header("host", format!("{service}.us-east-1.amazonaws.com"))
            // A stand-in reads the service from it.
            .header(
                "authorization",
                format!(
                    "AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders=host, Signature=0"
                ),
            )
            .header("content-type", "application/x-amz-json-1.0")
            .header("x-amz-target", target)
            .body(Full::new(Bytes::from(body.to_string())))?;
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let answer = answer.into_body().collect().await?.to_bytes();
        connection.abort();
        if !status.is_success() {
            let said = String::from_utf8_lossy(&answer);
            return Err(format!("{target}: {status}: {said}").into());
        }
        Ok(serde_json::from_slice(&answer).unwrap_or_default())
    }
}
