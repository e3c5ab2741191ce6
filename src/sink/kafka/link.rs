//! One producer: a librdkafka instance with its threads, connections and queue, and the means to end
//! it for certain.
//!
//! librdkafka reconnects by itself, repeats what failed without making duplicates (the producer is
//! idempotent), and keeps the order of each partition meanwhile. What it cannot do is to give up some
//! records and keep that order for the rest. So a producer that did not confirm in time, or has
//! failed for good, is ended as a whole and replaced.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::client::{Client, ClientContext};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::KafkaError;
use rdkafka::message::{DeliveryResult, Message as _};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, PurgeConfig, ThreadedProducer};
use rdkafka::types::{RDKafkaErrorCode as Code, RDKafkaRespErr};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::offsets::{Doubt, Offsets};
use super::outcome::{self, Report, Reports, Ticket};
use super::prepare::Prepared;
use super::settings::KafkaSettings;
use super::words;
use crate::error::Verdict;
use crate::event::Message;

/// Longest wait for an answer about topics. Short, since such a question cannot be called back.
pub(super) const ASK_TIMEOUT: Duration = Duration::from_secs(3);

/// What can still be confirmed gets this long before the rest is thrown away.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// How librdkafka marks the log line of an error that ends a producer.
const FATAL: &str = "FATAL";

/// What librdkafka says about itself, beside delivery reports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Trouble {
    /// Times that no broker could be reached.
    pub(super) outages: u64,
    /// The last error of a connection.
    pub(super) last: String,
    /// Why this producer is of no more use.
    pub(super) failed: Option<String>,
    /// Whether the cluster has given it a producer id. Known only with statistics switched on.
    pub(super) has_id: bool,
}

/// Receives librdkafka's callbacks, on its threads.
pub(super) struct Listener {
    trouble: watch::Sender<Trouble>,
    offsets: Mutex<Offsets>,
}

impl Listener {
    /// What a confirm is worth; one that proves nothing ends the producer.
    fn confirmed(&self, topic: &str, partition: i32, offset: i64) -> Verdict {
        let mut offsets = self.offsets.lock().unwrap_or_else(PoisonError::into_inner);
        let doubt = match offsets.confirmed(topic, partition, offset) {
            Ok(()) => return Verdict::Confirmed,
            Err(doubt) => doubt,
        };
        if let Doubt::First(last) = doubt {
            let text = format!(
                "a record for partition {partition} of topic `{topic}` was confirmed at offset {offset}, and one before it at \
                 {last}: it may be missing there, so it goes again by a new producer"
            );
            self.trouble.send_modify(|trouble| {
                trouble.failed.get_or_insert(text);
            });
        }
        Verdict::Unavailable
    }
}

impl ClientContext for Listener {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        // What matters to operators is in the sink's state.
        tracing::debug!(target: "librdkafka", ?level, facility, text);
        // The error that comes beside it carries the cause's code, which need not be fatal elsewhere.
        if facility == FATAL {
            self.trouble.send_modify(|trouble| {
                trouble.failed.get_or_insert_with(|| text.to_owned());
            });
        }
    }

    fn stats_raw(&self, statistics: &[u8]) {
        let Ok(statistics) = serde_json::from_slice::<serde_json::Value>(statistics) else {
            return;
        };
        let assigned = statistics["eos"]["idemp_state"] == "Assigned";
        self.trouble.send_if_modified(|trouble| {
            std::mem::replace(&mut trouble.has_id, assigned) != assigned
        });
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, reason);
        self.trouble
            .send_modify(|trouble| match error.rdkafka_error_code() {
                Some(Code::AllBrokersDown) => trouble.outages += 1,
                _ => trouble.last = reason.to_owned(),
            });
    }
}

impl ProducerContext for Listener {
    type DeliveryOpaque = Box<Ticket>;

    fn delivery(&self, result: &DeliveryResult<'_>, ticket: Box<Ticket>) {
        let report = match result {
            Ok(record) => {
                Report::Own(self.confirmed(record.topic(), record.partition(), record.offset()))
            }
            Err((error, record)) => match error.rdkafka_error_code() {
                Some(code) => outcome::report(code, record.topic()),
                None => Report::Own(Verdict::Unavailable),
            },
        };
        ticket.reports.set(ticket.index, report);
    }
}

type Inner = ThreadedProducer<Listener>;

/// Whether a topic can take records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Topic {
    /// It is there.
    Known,
    /// It is not, or not for us.
    Refused(Verdict),
}

/// One producer.
pub(super) struct Link {
    /// `None` once it has ended.
    producer: Mutex<Option<Arc<Inner>>>,
    /// What it logs in with.
    password: Option<SecretString>,
    trouble: watch::Sender<Trouble>,
    topics: Mutex<HashSet<String>>,
    ended: CancellationToken,
}

impl Link {
    /// Creates the producer, which begins to connect. Fails for settings that librdkafka does not take,
    /// such as a certificate file that cannot be read. `adapt` may change the configuration.
    pub(super) async fn open(
        settings: &KafkaSettings,
        adapt: impl FnOnce(&mut ClientConfig),
    ) -> Result<Self, String> {
        settings.check_files()?;
        let password = settings.current_password().await?;
        let mut config = settings.client_config(password.as_ref());
        adapt(&mut config);
        let trouble = watch::Sender::new(Trouble::default());
        let listener = Listener {
            trouble: trouble.clone(),
            offsets: Mutex::default(),
        };
        let producer: Inner = config
            .create_with_context(listener)
            .map_err(|error| {
                format!("cannot create a Kafka producer: {error}; check the settings OUTRIGGER_KAFKA_…, and the files they name")
            })?;
        Ok(Self {
            producer: Mutex::new(Some(Arc::new(producer))),
            password,
            trouble,
            topics: Mutex::default(),
            ended: CancellationToken::new(),
        })
    }

    /// Whether somebody has replaced the password since. A file that cannot be read now says nothing.
    pub(super) async fn is_outdated(&self, settings: &KafkaSettings) -> bool {
        let text = |password: &Option<SecretString>| {
            password
                .as_ref()
                .map(|text| text.expose_secret().to_owned())
        };
        let current = settings.current_password().await;
        current.is_ok_and(|current| text(&current) != text(&self.password))
    }

    fn producer(&self) -> Option<Arc<Inner>> {
        let producer = self.producer.lock();
        producer.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What librdkafka says about itself, as it happens.
    pub(super) fn trouble(&self) -> watch::Receiver<Trouble> {
        self.trouble.subscribe()
    }

    /// Resolves when nothing more will be reported.
    pub(super) async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Says that this producer must be replaced.
    pub(super) fn fail(&self, reason: &str) {
        self.trouble.send_modify(|trouble| {
            trouble.failed.get_or_insert_with(|| reason.to_owned());
        });
    }

    /// Puts a record into librdkafka's queue. `Err`: there is no room, or the record cannot go at all.
    pub(super) fn send(
        &self,
        prepared: &mut Prepared,
        message: &Message,
        ticket: Ticket,
    ) -> Result<(), Code> {
        let Some(producer) = self.producer() else {
            return Err(Code::PurgeQueue);
        };
        let mut record = BaseRecord::with_opaque_to(&message.destination, Box::new(ticket));
        record.headers = prepared.headers.take();
        record.key = message.key.as_ref().map(String::as_bytes);
        record.payload = (!prepared.tombstone).then_some(&message.body[..]);
        producer.send(record).map_err(|(error, record)| {
            prepared.headers = record.headers;
            error.rdkafka_error_code().unwrap_or(Code::Fail)
        })
    }

    /// Whether a topic is there: asked before its first use, because librdkafka would hold records for an
    /// unknown topic, and those behind them, and refuse them only later. `Err`: no answer.
    pub(super) async fn topic(self: &Arc<Self>, name: &str) -> Result<Topic, String> {
        let known = |link: &Self| {
            let topics = link.topics.lock();
            topics
                .unwrap_or_else(PoisonError::into_inner)
                .contains(name)
        };
        if known(self) {
            return Ok(Topic::Known);
        }
        self.look_up(name).await
    }

    /// The same, asked anew.
    pub(super) async fn look_up(self: &Arc<Self>, name: &str) -> Result<Topic, String> {
        let facts = self.ask(Some(name)).await?;
        let Some(code) = facts.first().map(|facts| facts.error) else {
            return Ok(Topic::Refused(outcome::unknown_topic(name)));
        };
        match code.map(|code| (code, outcome::verdict(code, name))) {
            None => {
                let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
                topics.insert(name.to_owned());
                Ok(Topic::Known)
            }
            Some((code, Verdict::Unavailable)) => Err(format!(
                "topic `{name}` cannot take records at the moment ({code}); see the brokers' logs"
            )),
            Some((_, verdict)) => Ok(Topic::Refused(verdict)),
        }
    }

    /// Whether a broker answers: asked about a topic that is in use, because a cluster may have thousands.
    pub(super) async fn answers(self: &Arc<Self>) -> Result<(), String> {
        let topic = {
            let topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
            topics.iter().next().cloned()
        };
        self.ask(topic.as_deref()).await.map(|_| ())
    }

    /// Makes the topic be asked for again.
    pub(super) fn forget(&self, name: &str) {
        let topics = self.topics.lock();
        topics.unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// Asks a broker about one topic, or about all. Also shows whether one can be reached.
    pub(super) async fn ask(
        self: &Arc<Self>,
        topic: Option<&str>,
    ) -> Result<Vec<TopicFacts>, String> {
        let topic = topic.map(str::to_owned);
        self.with_client(move |client| {
            let metadata = client.fetch_metadata(topic.as_deref(), ASK_TIMEOUT)?;
            let facts = metadata.topics().iter().map(|topic| TopicFacts {
                name: topic.name().to_owned(),
                partitions: topic.partitions().len(),
                replicas: topic.partitions().iter().map(|p| p.replicas().len()).min(),
                error: topic.error().map(|error: RDKafkaRespErr| error.into()),
            });
            Ok(facts.collect())
        })
        .await
    }

    /// Calls a function that may block. An error is explained by what was last heard of a connection.
    pub(super) async fn with_client<T: Send + 'static>(
        self: &Arc<Self>,
        call: impl FnOnce(&Client<Listener>) -> Result<T, KafkaError> + Send + 'static,
    ) -> Result<T, String> {
        let Some(producer) = self.producer() else {
            return Err("the producer has ended".to_owned());
        };
        let called = tokio::task::spawn_blocking(move || call(producer.client()));
        let error = match called.await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => error,
            Err(error) => return Err(error.to_string()),
        };
        let trouble = self.trouble.borrow();
        Err(match (&trouble.failed, trouble.last.as_str()) {
            (Some(failed), _) => failed.clone(),
            (None, "") => match error.rdkafka_error_code() {
                Some(Code::BrokerTransportFailure | Code::OperationTimedOut) => {
                    "no broker answers; check OUTRIGGER_KAFKA_BROKERS, and firewalls in between"
                        .to_owned()
                }
                Some(code) => {
                    format!(
                        "the cluster does not answer a question about its topics ({code}); see the brokers' logs"
                    )
                }
                None => words::explain(&error.to_string()),
            },
            (None, last) => words::explain(last),
        })
    }

    /// Ends the producer: a short while for what can still be confirmed, then nothing is sent any
    /// more and every open record is reported.
    pub(super) async fn end(&self) {
        let producer = {
            let mut producer = self.producer.lock().unwrap_or_else(PoisonError::into_inner);
            producer.take()
        };
        if let Some(producer) = producer {
            let ending = tokio::task::spawn_blocking(move || {
                if producer.in_flight_count() > 0 {
                    let _ = producer.flush(FLUSH_TIMEOUT);
                }
                producer.purge(PurgeConfig::default().queue().inflight());
                let _ = producer.flush(FLUSH_TIMEOUT);
            });
            if let Err(error) = ending.await {
                tracing::error!(%error, "ending the Kafka producer failed");
            }
        }
        self.ended.cancel();
    }
}

/// What a broker says about a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TopicFacts {
    pub(super) name: String,
    pub(super) partitions: usize,
    /// Of the partition that has fewest.
    pub(super) replicas: Option<usize>,
    pub(super) error: Option<Code>,
}

/// A ticket for record number `index` of a batch.
pub(super) fn ticket(reports: &Arc<Reports>, index: usize) -> Ticket {
    Ticket {
        reports: Arc::clone(reports),
        index,
    }
}
