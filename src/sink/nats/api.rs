//! The few questions to JetStream, and its answers in JSON.

use std::time::Duration;

use async_nats::RequestErrorKind;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;

use super::link::Link;

/// Longest wait for an answer; nobody answers while a cluster has no leader.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// `err_code` of an answer about a stream that does not exist.
const STREAM_NOT_FOUND: u32 = 10059;

/// An error as JetStream words it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct ApiError {
    /// Like an HTTP status.
    pub(super) code: u16,
    /// The precise one.
    pub(super) err_code: u32,
    /// For people.
    pub(super) description: String,
}

/// What is known of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stream {
    /// The subjects it takes; none for a mirror.
    pub(super) subjects: Vec<String>,
    /// Copies of each message.
    pub(super) replicas: usize,
    /// `file` or `memory`.
    pub(super) storage: String,
    /// How long repeated message ids are recognised.
    pub(super) duplicate_window: Duration,
    /// Whether it drops what no consumer is interested in.
    pub(super) needs_interest: bool,
    /// Why nothing that is published to it can be confirmed.
    pub(super) unfit: Option<Unfit>,
}

/// A stream that no event can be confirmed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unfit {
    /// It stores and says nothing.
    Silent,
    /// It copies another stream.
    Mirror,
    /// It takes nothing any more, and never will.
    Sealed,
}

impl Unfit {
    /// What is wrong with this stream, and what to do.
    pub(super) fn of(self, name: &str) -> String {
        match self {
            Self::Silent => format!(
                "stream `{name}` acknowledges nothing (`no_ack`), so no event could ever count as published; switch \
                 acknowledgements on, or publish to another stream"
            ),
            Self::Mirror => format!(
                "stream `{name}` takes no subjects; it is a mirror: publish to the stream it mirrors"
            ),
            Self::Sealed => format!(
                "stream `{name}` is sealed and takes nothing any more; publish to another stream"
            ),
        }
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    /// Nobody serves the JetStream API for this account.
    NoJetStream,
    /// The user may not ask. That says nothing about the stream.
    Forbidden,
    /// Anything else; the text says what.
    Other(String),
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct InfoAnswer {
    error: Option<ApiError>,
    config: Config,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Config {
    subjects: Vec<String>,
    num_replicas: usize,
    storage: String,
    duplicate_window: u64,
    retention: String,
    no_ack: bool,
    sealed: bool,
    mirror: Option<serde::de::IgnoredAny>,
}

impl Config {
    fn unfit(&self) -> Option<Unfit> {
        if self.mirror.is_some() {
            Some(Unfit::Mirror)
        } else if self.sealed {
            Some(Unfit::Sealed)
        } else if self.no_ack {
            Some(Unfit::Silent)
        } else {
            None
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct NamesAnswer {
    error: Option<ApiError>,
    streams: Option<Vec<String>>,
}

/// A stream by its name; `None` if there is none.
pub(super) async fn stream(link: &Link, name: &str) -> Result<Option<Stream>, Trouble> {
    let subject = format!("$JS.API.STREAM.INFO.{name}");
    let answer = ask(link, subject, Bytes::new()).await?;
    let answer: InfoAnswer = parsed(&answer)?;
    match answer.error {
        Some(error) if error.err_code == STREAM_NOT_FOUND => Ok(None),
        Some(error) => Err(Trouble::Other(error.description)),
        None => Ok(Some(Stream {
            needs_interest: answer.config.retention == "interest",
            unfit: answer.config.unfit(),
            subjects: answer.config.subjects,
            replicas: answer.config.num_replicas,
            storage: answer.config.storage,
            duplicate_window: Duration::from_nanos(answer.config.duplicate_window),
        })),
    }
}

/// The names of the streams that take this subject.
pub(super) async fn streams_taking(link: &Link, subject: &str) -> Result<Vec<String>, Trouble> {
    let body = json!({ "subject": subject }).to_string();
    let answer = ask(link, "$JS.API.STREAM.NAMES".to_owned(), body.into()).await?;
    let answer: NamesAnswer = parsed(&answer)?;
    match answer.error {
        Some(error) => Err(Trouble::Other(error.description)),
        None => Ok(answer.streams.unwrap_or_default()),
    }
}

async fn ask(link: &Link, subject: String, body: Bytes) -> Result<Bytes, Trouble> {
    let mut forbidden = link.forbidden();
    forbidden.mark_unchanged();
    let asking = link.client().request(subject.clone(), body);
    let refused = async {
        let heard = forbidden
            .wait_for(|known| known.contains(&subject))
            .await
            .is_ok();
        if !heard {
            // The connection is gone; the question fails by itself.
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        answer = asking => match answer {
            Ok(answer) => Ok(answer.payload),
            Err(error) if error.kind() == RequestErrorKind::NoResponders => Err(Trouble::NoJetStream),
            Err(error) => Err(Trouble::Other(error.to_string())),
        },
        () = refused => Err(Trouble::Forbidden),
        reason = link.ended() => Err(Trouble::Other(reason)),
        () = tokio::time::sleep(ANSWER_TIMEOUT) => Err(Trouble::Other(format!(
            "JetStream did not answer within {ANSWER_TIMEOUT:?}"
        ))),
    }
}

fn parsed<'a, T: Deserialize<'a>>(answer: &'a [u8]) -> Result<T, Trouble> {
    serde_json::from_slice(answer)
        .map_err(|error| Trouble::Other(format!("JetStream's answer is not understood: {error}")))
}

/// Whether a subject is one that a filter such as `orders.*.>` takes.
pub(super) fn takes(filter: &str, subject: &str) -> bool {
    let mut subject = subject.split('.');
    let mut filter = filter.split('.');
    loop {
        match (filter.next(), subject.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(_)) => {}
            (Some(wanted), Some(token)) if wanted == token => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn filters_take_what_the_server_takes() {
        for (filter, subject, expected) in [
            ("a.b", "a.b", true),
            ("a.b", "a.c", false),
            ("a.b", "a", false),
            ("a", "a.b", false),
            ("a.*", "a.b", true),
            ("a.*", "a.b.c", false),
            ("*.b", "a.b", true),
            ("a.>", "a.b.c", true),
            ("a.>", "a", false),
            (">", "a", true),
        ] {
            assert_eq!(takes(filter, subject), expected, "{filter} {subject}");
        }
    }

    #[test]
    fn answers_are_read_leniently() {
        let answer: InfoAnswer = parsed(
            br#"{"type":"io.nats.jetstream.api.v1.stream_info_response","config":{"name":"E","subjects":["e.>"],
            "num_replicas":3,"storage":"file","duplicate_window":120000000000,"later":1},"state":{}}"#,
        )
        .unwrap();
        assert_eq!(answer.config.subjects, ["e.>"]);
        assert_eq!(answer.config.num_replicas, 3);
        assert_eq!(answer.config.unfit(), None);
        for (config, expected) in [
            (r#"{"no_ack":true}"#, Unfit::Silent),
            (r#"{"sealed":true}"#, Unfit::Sealed),
            (r#"{"mirror":{"name":"A"},"no_ack":true}"#, Unfit::Mirror),
        ] {
            let config: Config = parsed(config.as_bytes()).unwrap();
            assert_eq!(config.unfit(), Some(expected));
        }
        let answer: InfoAnswer =
            parsed(br#"{"error":{"code":404,"err_code":10059,"description":"stream not found"}}"#)
                .unwrap();
        assert_eq!(answer.error.unwrap().err_code, STREAM_NOT_FOUND);
        let answer: NamesAnswer = parsed(br#"{"total":0,"streams":null}"#).unwrap();
        assert_eq!(answer.streams, None);
        assert!(parsed::<NamesAnswer>(b"+OK").is_err());
    }
}
