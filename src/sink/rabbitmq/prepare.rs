//! From [`Message`] to AMQP properties, with every limit checked *before* publishing.
//!
//! What the protocol cannot carry would close the channel or the whole connection and take other
//! messages with it, so it is refused here, alone and with a reason:
//!
//! * Short strings hold 255 bytes. An oversized exchange, routing key, header name, message id or
//!   content type makes the message impossible. `type`, `correlation_id` and `app_id` are
//!   conveniences that repeat what the event itself says: too long, they are left out.
//! * The content header (all properties and headers) must fit one frame.
//! * The body must fit the broker's `max_message_size`, which is not negotiated: a setting.
//! * RabbitMQ gives the headers `CC` and `BCC` a meaning of its own and demands arrays there.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use super::properties;
use crate::error::{Reason, ReasonCode};
use crate::event::encode::{BATCH, STRUCTURED};
use crate::event::{HeaderValue, Message};
use crate::sink::binding::is_dead_letter;

/// Frame type, channel, size and end marker.
const FRAME_OVERHEAD: usize = 8;

/// Class id, weight, body size and property flags of a content header.
const CONTENT_HEADER_FIXED: usize = 2 + 2 + 8 + 2;

/// `delivery_mode` of a message that survives a broker restart.
const PERSISTENT: u8 = 2;

/// What the connection and the settings allow.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits<'a> {
    /// Negotiated frame size, in bytes.
    pub(super) frame_max: usize,
    /// Largest body, by the settings.
    pub(super) max_message_size: usize,
    /// A body size this broker has refused since we connected; larger ones need no attempt.
    pub(super) refused_size: usize,
    /// The connection's user, if it is known.
    pub(super) user: Option<&'a str>,
    /// Whether messages are to expire when their rows do.
    pub(super) expiration: bool,
}

/// A message ready to be handed to lapin.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Prepared {
    /// Position in the batch.
    pub(super) index: usize,
    pub(super) exchange: ShortString,
    pub(super) routing_key: ShortString,
    pub(super) properties: BasicProperties,
}

/// Builds the properties of `message`, or says why RabbitMQ can never take it.
pub(super) fn prepare(
    index: usize,
    message: &Message,
    app_id: &str,
    limits: Limits<'_>,
) -> Result<Prepared, Reason> {
    check_body(message.body.len(), limits)?;
    let route = ReasonCode::InvalidRoute;
    let header = ReasonCode::InvalidHeader;
    let exchange = short(&message.destination, route, "exchange")?;
    let routing_key = short(&message.routing_key, route, "routing key")?;

    let mut properties = BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_message_id(short(&message.id, header, "message_id")?);
    let mut size = CONTENT_HEADER_FIXED + 1 + short_size(&message.id);

    if let Some(content_type) = &message.content_type {
        properties = properties.with_content_type(short(content_type, header, "content_type")?);
        size += short_size(content_type);
    }
    if let Ok(kind) = ShortString::try_new(message.event_type.as_str()) {
        properties = properties.with_type(kind);
        size += short_size(&message.event_type);
    }
    if let Ok(app_id_property) = ShortString::try_new(app_id) {
        properties = properties.with_app_id(app_id_property);
        size += short_size(app_id);
    }
    if let Some(id) = &message.correlation_id
        && let Ok(correlation_id) = ShortString::try_new(id.as_str())
    {
        properties = properties.with_correlation_id(correlation_id);
        size += short_size(id);
    }
    // AMQP timestamps are whole seconds since 1970, unsigned.
    if let Some(time) = message.time
        && let Ok(seconds) = u64::try_from(time.as_second())
    {
        properties = properties.with_timestamp(seconds);
        size += 8;
    }
    let content_type = message.content_type.as_deref();
    let encoded = content_type.is_some_and(|kind| kind == STRUCTURED || kind == BATCH);
    let (mut properties, mut size) =
        properties::apply(properties, size, message, limits.user, encoded)?;
    if limits.expiration
        && properties.expiration().is_none()
        && let Some(left) = left_to_live(message)
    {
        size += short_size(&left);
        properties = properties.with_expiration(left.into());
    }
    let headers = message.headers.iter();
    let headers: Vec<_> = headers
        .filter(|(name, _)| !properties::is_property(message, name))
        .collect();
    if !headers.is_empty() {
        let (table, table_size) = header_table(&headers)?;
        properties = properties.with_headers(table);
        size += table_size;
    }

    let room = limits.frame_max.saturating_sub(FRAME_OVERHEAD);
    if size > room {
        return Err(Reason::new(
            header,
            format!(
                "properties and headers take {size} bytes, more than the {room} that one frame of \
                 this connection carries; move data from the headers into the body"
            ),
        ));
    }
    Ok(Prepared {
        index,
        exchange,
        routing_key,
        properties,
    })
}

/// Milliseconds until the row of the message expires, as AMQP writes them. A dead letter does not expire.
///
/// It is what was left when the row was read: by the database's clock, whatever that of this host says.
fn left_to_live(message: &Message) -> Option<String> {
    let left = message.expires_in.filter(|_| !is_dead_letter(message))?;
    // Beyond what the broker takes, some seven weeks, it would not come to that.
    let left = u32::try_from(left.as_millis()).ok()?;
    Some(left.to_string())
}

fn check_body(size: usize, limits: Limits<'_>) -> Result<(), Reason> {
    if size > limits.max_message_size {
        return Err(Reason::new(
            ReasonCode::TooLarge,
            format!(
                "the body has {size} bytes, more than OUTRIGGER_RABBITMQ_MAX_MESSAGE_SIZE allows \
                 ({} bytes); raise it together with the broker's `max_message_size`, or publish a \
                 reference instead of the data",
                limits.max_message_size
            ),
        ));
    }
    if size >= limits.refused_size {
        return Err(Reason::new(
            ReasonCode::TooLarge,
            format!(
                "the body has {size} bytes, and the broker has just refused one of {} as too \
                 large; raise its `max_message_size` or lower OUTRIGGER_RABBITMQ_MAX_MESSAGE_SIZE \
                 to match it",
                limits.refused_size
            ),
        ));
    }
    Ok(())
}

/// The headers and their encoded size.
///
/// Whole numbers that fit 32 bits are sent as `I`, others as `l`: RabbitMQ hands them to AMQP 1.0
/// consumers as `int` and `long`, and a CloudEvents Integer is an `int` there.
fn header_table(headers: &[&(String, HeaderValue)]) -> Result<(FieldTable, usize), Reason> {
    let mut table = FieldTable::default();
    let mut size = 4;
    for (name, value) in headers {
        if name == "CC" || name == "BCC" {
            return Err(Reason::new(
                ReasonCode::InvalidHeader,
                format!(
                    "header `{name}` has a meaning of its own in RabbitMQ (further routing keys, \
                     as an array) and cannot carry a plain value; rename it"
                ),
            ));
        }
        let name = short(name, ReasonCode::InvalidHeader, "header name")?;
        size += short_size(name.as_str()) + 1;
        let value = match value {
            HeaderValue::Text(text) => {
                size += 4 + text.len();
                AMQPValue::LongString(text.as_str().into())
            }
            HeaderValue::Bool(flag) => {
                size += 1;
                AMQPValue::Boolean(*flag)
            }
            HeaderValue::Int(number) => match i32::try_from(*number) {
                Ok(number) => {
                    size += 4;
                    AMQPValue::LongInt(number)
                }
                Err(_) => {
                    size += 8;
                    AMQPValue::LongLongInt(*number)
                }
            },
        };
        table.insert(name, value);
    }
    Ok((table, size))
}

pub(super) fn short_size(text: &str) -> usize {
    1 + text.len()
}

/// A checked short string. `From` would panic instead.
fn short(text: &str, code: ReasonCode, field: &str) -> Result<ShortString, Reason> {
    ShortString::try_new(text).map_err(|_| {
        Reason::new(
            code,
            format!(
                "the {field} has {} bytes, more than the 255 AMQP allows; shorten it",
                text.len()
            ),
        )
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use amq_protocol::frame::{AMQPContentHeader, AMQPFrame, WriteContext, gen_frame};
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    const ROOMY: Limits<'_> = Limits {
        frame_max: 131_072,
        max_message_size: 1024,
        refused_size: usize::MAX,
        user: None,
        expiration: false,
    };

    fn message() -> Message {
        Message {
            seqs: vec![1],
            destination: "events".into(),
            routing_key: "order.placed".into(),
            body: Bytes::from_static(b"{}"),
            content_type: Some("application/json".into()),
            headers: Vec::new(),
            id: "id-1".into(),
            event_type: "order.placed".into(),
            time: Some("2026-01-02T03:04:05.678Z".parse().unwrap()),
            expires_in: None,
            correlation_id: Some("c-1".into()),
            source: "/shop".into(),
            key: None,
        }
    }

    fn prepared(message: &Message) -> Prepared {
        prepare(0, message, "outrigger", ROOMY).unwrap()
    }

    #[track_caller]
    fn refused(message: &Message, code: ReasonCode, part: &str) {
        let reason = prepare(0, message, "outrigger", ROOMY).unwrap_err();
        assert_eq!(reason.code, code, "{reason}");
        assert!(reason.detail.contains(part), "{reason} lacks {part:?}");
    }

    /// Size of the content header frame as lapin will encode it.
    fn encoded_size(properties: &BasicProperties) -> usize {
        let frame = AMQPFrame::Header(
            1,
            AMQPContentHeader {
                class_id: 60,
                body_size: 2,
                properties: properties.clone(),
            },
        );
        let mut buffer = vec![0; 1 << 18];
        let context = WriteContext::from(std::io::Cursor::new(&mut buffer[..]));
        let written = gen_frame(&frame)(context).unwrap();
        usize::try_from(written.into_inner().1).unwrap()
    }

    #[test]
    fn every_property_is_mapped() {
        let properties = prepared(&message()).properties;
        let text = |value: &Option<ShortString>| value.as_ref().map(|v| v.as_str().to_owned());
        assert_eq!(text(properties.message_id()).as_deref(), Some("id-1"));
        assert_eq!(text(properties.kind()).as_deref(), Some("order.placed"));
        assert_eq!(text(properties.app_id()).as_deref(), Some("outrigger"));
        assert_eq!(text(properties.correlation_id()).as_deref(), Some("c-1"));
        assert_eq!(
            text(properties.content_type()).as_deref(),
            Some("application/json")
        );
        assert_eq!(*properties.timestamp(), Some(1_767_323_045));
        assert_eq!(*properties.delivery_mode(), Some(2));
        assert_eq!(*properties.content_encoding(), None);
        assert_eq!(*properties.headers(), None);
    }

    #[test]
    fn header_values_keep_their_types() {
        let mut message = message();
        message.headers = vec![
            ("text".into(), HeaderValue::Text("a\0ü\u{10ffff}".into())),
            ("flag".into(), HeaderValue::Bool(true)),
            ("small".into(), HeaderValue::Int(i64::from(i32::MIN))),
            ("large".into(), HeaderValue::Int(i64::from(i32::MAX) + 1)),
            ("long".into(), HeaderValue::Text("x".repeat(5_000))),
        ];
        let properties = prepared(&message).properties;
        let table = properties.headers().as_ref().unwrap().inner();
        assert_eq!(
            table["text"],
            AMQPValue::LongString("a\0ü\u{10ffff}".into())
        );
        assert_eq!(table["flag"], AMQPValue::Boolean(true));
        assert_eq!(table["small"], AMQPValue::LongInt(i32::MIN));
        assert_eq!(
            table["large"],
            AMQPValue::LongLongInt(i64::from(i32::MAX) + 1)
        );
        assert_eq!(
            table["long"],
            AMQPValue::LongString("x".repeat(5_000).into())
        );
    }

    #[test]
    fn conveniences_that_do_not_fit_are_left_out() {
        let mut message = message();
        message.event_type = "t".repeat(256);
        message.correlation_id = Some("c".repeat(256));
        message.time = Some("1969-12-31T23:59:59Z".parse().unwrap());
        let properties = prepare(0, &message, &"a".repeat(256), ROOMY)
            .unwrap()
            .properties;
        assert_eq!(*properties.kind(), None);
        assert_eq!(*properties.correlation_id(), None);
        assert_eq!(*properties.app_id(), None);
        assert_eq!(*properties.timestamp(), None);
    }

    #[test]
    fn what_must_be_carried_and_does_not_fit_is_impossible() {
        let long = || "x".repeat(256);
        let (route, header) = (ReasonCode::InvalidRoute, ReasonCode::InvalidHeader);
        refused(
            &Message {
                destination: long(),
                ..message()
            },
            route,
            "exchange has 256 bytes",
        );
        refused(
            &Message {
                routing_key: long(),
                ..message()
            },
            route,
            "routing key has 256 bytes",
        );
        refused(
            &Message {
                id: long(),
                ..message()
            },
            header,
            "message_id has 256 bytes",
        );
        refused(
            &Message {
                content_type: Some(long()),
                ..message()
            },
            header,
            "content_type",
        );
        let headers = vec![(long(), HeaderValue::Bool(true))];
        refused(
            &Message {
                headers,
                ..message()
            },
            header,
            "header name has 256 bytes",
        );
        for name in ["CC", "BCC"] {
            let headers = vec![(name.to_owned(), HeaderValue::Text("key".into()))];
            refused(
                &Message {
                    headers,
                    ..message()
                },
                header,
                name,
            );
        }
    }

    #[test]
    fn properties_of_the_row_count_for_the_frame() {
        let text = |text: &str| HeaderValue::Text(text.to_owned());
        let message = Message {
            headers: vec![
                ("amqp-app-id".into(), text("x")),
                ("amqp-priority".into(), HeaderValue::Int(3)),
                ("amqp-reply-to".into(), text("answers")),
                (
                    "amqp-type".into(),
                    text("a-longer-type-than-that-of-the-event"),
                ),
            ],
            expires_in: Some(std::time::Duration::from_secs(60)),
            ..message()
        };
        let fits = |frame_max| {
            let limits = Limits {
                frame_max,
                expiration: true,
                ..ROOMY
            };
            prepare(0, &message, "outrigger", limits)
        };
        let properties = fits(ROOMY.frame_max).unwrap().properties;
        let expiration = properties.expiration().as_ref();
        assert_eq!(
            expiration.map(ToString::to_string).as_deref(),
            Some("60000")
        );
        let exact = encoded_size(&properties);
        fits(exact).unwrap();
        fits(exact - 1).unwrap_err();
    }

    #[test]
    fn multi_byte_text_is_measured_in_bytes() {
        let fits = Message {
            routing_key: "é".repeat(127),
            ..message()
        };
        assert_eq!(prepared(&fits).routing_key.as_str().len(), 254);
        let too_long = Message {
            routing_key: "é".repeat(128),
            ..message()
        };
        refused(&too_long, ReasonCode::InvalidRoute, "256 bytes");
    }

    #[test]
    fn bodies_are_limited_by_the_setting_and_by_experience() {
        let body = |size: usize| Message {
            body: vec![b'x'; size].into(),
            ..message()
        };
        prepared(&body(1024));
        refused(
            &body(1025),
            ReasonCode::TooLarge,
            "OUTRIGGER_RABBITMQ_MAX_MESSAGE_SIZE",
        );
        let learned = Limits {
            refused_size: 500,
            ..ROOMY
        };
        prepare(0, &body(499), "outrigger", learned).unwrap();
        let reason = prepare(0, &body(500), "outrigger", learned).unwrap_err();
        assert_eq!(reason.code, ReasonCode::TooLarge);
    }

    #[test]
    fn a_content_header_may_fill_its_frame_to_the_byte() {
        let sized = |size: usize| Message {
            headers: vec![("h".into(), HeaderValue::Text("x".repeat(size)))],
            ..message()
        };
        let overhead = encoded_size(&prepared(&sized(0)).properties);
        let limits = Limits {
            frame_max: 4096,
            ..ROOMY
        };
        let room = 4096 - overhead;
        let full = prepare(0, &sized(room), "outrigger", limits).unwrap();
        assert_eq!(encoded_size(&full.properties), 4096);
        let reason = prepare(0, &sized(room + 1), "outrigger", limits).unwrap_err();
        assert_eq!(reason.code, ReasonCode::InvalidHeader);
        assert!(reason.detail.contains("4089 bytes"), "{reason}");
    }

    fn header_value() -> impl Strategy<Value = HeaderValue> {
        prop_oneof![
            ".{0,300}".prop_map(HeaderValue::Text),
            any::<bool>().prop_map(HeaderValue::Bool),
            any::<i64>().prop_map(HeaderValue::Int),
            any::<i32>().prop_map(|n| HeaderValue::Int(n.into())),
        ]
    }

    proptest! {
        /// The arithmetic above agrees with the real encoder for any message.
        #[test]
        fn the_size_is_the_encoders(
            headers in proptest::collection::btree_map(".{0,60}", header_value(), 0..12),
            id in ".{0,60}",
            event_type in ".{0,80}",
            content_type in proptest::option::of(".{0,60}"),
            correlation_id in proptest::option::of(".{0,80}"),
            second in proptest::option::of(-1_000_000_000i64..4_000_000_000),
        ) {
            let message = Message {
                headers: headers.into_iter().collect(),
                id,
                event_type,
                content_type,
                correlation_id,
                time: second.map(|s| jiff::Timestamp::from_second(s).unwrap()),
                ..message()
            };
            prop_assume!(!message.headers.iter().any(|(name, _)| name == "CC" || name == "BCC"));
            let prepared = prepared(&message);
            let size = encoded_size(&prepared.properties);
            let fits = |frame_max| prepare(0, &message, "outrigger", Limits { frame_max, ..ROOMY });
            prop_assert!(fits(size).is_ok());
            prop_assert!(fits(size - 1).is_err());
        }
    }
}
